"""Text classification: one class, several, or a number, for single texts and pairs."""

import logging
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.model_selection import train_test_split
from transformers import DataCollatorWithPadding

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.metrics import F1, Accuracy, ConfusionMatrix, Precision, Recall, RegressionError
from hf_transfer_plugin.tasks.base import Task, TaskData
from hf_transfer_plugin.tasks.labels import MULTI, REGRESSION, SINGLE, LabelScheme, known_labels, read_labels

logger = logging.getLogger(__name__)

TEXT_COLUMNS = (
    "text",
    "sentence",
    "review",
    "content",
    "message",
    "body",
    "sentence1",
    "premise",
    "question1",
    "title",
)
PAIR_COLUMNS = {"sentence1": "sentence2", "premise": "hypothesis", "question1": "question2", "text1": "text2"}
SHORT = 300
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "sentiment", "score", "rating", "stars")


def read(splits: DatasetDict, config: TransferConfig, seed: int) -> TaskData:
    """
    Checks the rows and brings them into the columns `text`, `text_pair` and `label`.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        seed (`int`):
            Seed of held-out and drawn rows.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or texts or labels are unusable.
    """
    columns = _checked_columns(splits, config)
    if _unlabelled(splits.get("test"), columns["label"]):
        logger.warning("The test split has no labels (all are -1) and is left out.")
        splits = DatasetDict({split: rows for split, rows in splits.items() if split != "test"})
    scheme = read_labels(splits, columns["label"], config)
    plain = DatasetDict({split: _plain(rows, columns, scheme) for split, rows in splits.items()})
    held_out = "validation" not in plain and config.validation_fraction > 0
    if held_out:
        kept, out = _stratified(plain["train"], config.validation_fraction, seed, scheme.problem_type)
        plain["validation"], plain["train"] = plain["train"].select(out), plain["train"].select(kept)
    if config.max_train_samples is not None and config.max_train_samples < len(plain["train"]):
        _, drawn = _stratified(plain["train"], config.max_train_samples, seed, scheme.problem_type)
        plain["train"] = plain["train"].select(drawn)
    return TaskData(plain, columns, scheme.problem_type, scheme.class_names, held_out)


def read_labelled(splits: DatasetDict, config: TransferConfig) -> TaskData:
    """
    As [`read`], for a trained model: the classes are those that the configuration names, and nothing is held out.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or texts or labels are unusable.
    """
    columns = _checked_columns(splits, config)
    scheme = known_labels(splits, columns["label"], config)
    plain = DatasetDict({split: _plain(rows, columns, scheme) for split, rows in splits.items()})
    return TaskData(plain, columns, scheme.problem_type, scheme.class_names)


def _checked_columns(splits: DatasetDict, config: TransferConfig) -> dict[str, str]:
    columns = _columns(next(iter(splits.values())), config)
    for split, rows in splits.items():
        _require_columns(split, rows, columns)
        for role in ("text", "text_pair"):
            if role in columns:
                _check_texts(split, rows[columns[role]], columns[role])
    return columns


def _columns(rows: Dataset, config: TransferConfig) -> dict[str, str]:
    names = rows.column_names

    def choose(role: str, given: str | None, guesses: Sequence[str]) -> str:
        found = given if given is not None else next((guess for guess in guesses if guess in names), None)
        if found is None or found not in names:
            asked = f"{given!r}" if given is not None else f"one of {', '.join(guesses)}"
            raise ValueError(
                f"The {role} column must be in the data: expected {asked}, but the columns are "
                f"{', '.join(sorted(names))}. Name it with `--{role}_column`."
            )
        return found

    columns = {"text": choose("text", config.text_column, TEXT_COLUMNS)}
    pair = config.text_pair_column or (None if config.text_column else PAIR_COLUMNS.get(columns["text"]))
    if config.text_pair_column is not None or (pair is not None and pair in names):
        columns["text_pair"] = choose("text_pair", pair, ())
    columns["label"] = choose("label", config.label_column, LABEL_COLUMNS)
    return columns


def _require_columns(split: str, rows: Dataset, columns: dict[str, str]) -> None:
    missing = sorted(set(columns.values()) - set(rows.column_names))
    if missing:
        raise ValueError(
            f"The {split} split must have the same columns as train, but lacks {missing[0]!r}; it has "
            f"{', '.join(sorted(rows.column_names))}."
        )


def _check_texts(split: str, texts: Sequence[Any], column: str) -> None:
    bad = [row for row, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if bad:
        what = "empty or missing" if not isinstance(texts[bad[0]], (int, float)) else "a number"
        raise ValueError(
            f"Every row of {column!r} must hold text, but {len(bad)} of {len(texts)} in the {split} split do not "
            f"(row {bad[0]}, counted from 0, is {what}). Remove such rows, or name another `--text_column`."
        )


def _unlabelled(rows: Dataset | None, column: str) -> bool:
    return rows is not None and len(rows) > 0 and all(label == -1 for label in rows[column])


def _plain(rows: Dataset, columns: dict[str, str], scheme: LabelScheme) -> Dataset:
    values = {role: list(rows[name]) for role, name in columns.items() if role != "label"}
    values["label"] = [scheme.encode(label) for label in rows[columns["label"]]]
    return Dataset.from_dict(values)


def _stratified(rows: Dataset, size: float, seed: int, problem_type: str) -> tuple[list[int], list[int]]:
    """Row numbers kept and drawn; stratified by class where every class has two rows or more."""
    labels = list(rows["label"])
    numbers = np.arange(len(rows))
    strata = labels if problem_type == SINGLE and min(np.bincount(labels)[np.unique(labels)]) > 1 else None
    try:
        kept, drawn = train_test_split(numbers, test_size=size, random_state=seed, stratify=strata)
    except ValueError:
        if strata is None:
            raise ValueError(
                f"{len(rows)} rows are too few to draw {size} of them; give a validation split."
            ) from None
        logger.warning("Too few rows for a stratified draw of %s; drawing at random.", size)
        kept, drawn = train_test_split(numbers, test_size=size, random_state=seed)
    return sorted(kept.tolist()), sorted(drawn.tolist())


def encode(data: TaskData, processor: Any, max_length: int | None) -> tuple[DatasetDict, int]:
    """
    Tokenizes; texts longer than the model reads are truncated and counted.

    Args:
        data (`TaskData`):
            The rows.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.
        max_length (`int`, *optional*):
            Tokens of a row at most.

    Returns:
        `tuple[DatasetDict, int]`: Encoded splits, and the number of truncated rows.
    """
    truncated = 0

    def run(batch: dict[str, list[Any]]) -> dict[str, Any]:
        nonlocal truncated
        encoded = processor(batch["text"], batch.get("text_pair"), truncation=True, max_length=max_length)
        truncated += sum(bool(item.overflowing) for item in encoded.encodings or ())
        return {**encoded, "labels": batch["label"]}

    splits = {}
    for split, rows in data.splits.items():
        splits[split] = rows.map(
            run, batched=True, remove_columns=rows.column_names, load_from_cache_file=False, desc=f"Tokenizing {split}"
        )
    return DatasetDict(splits), truncated


def predicted(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """
    From logits to answers.

    Args:
        logits (`np.ndarray` of shape `(rows, outputs)`):
            The model's outputs.
        problem_type (`str`):
            As in the model's config.

    Returns:
        `np.ndarray`: Class numbers, rows of 0/1, or values.
    """
    if problem_type == SINGLE:
        return logits.argmax(-1)
    return (logits > 0).astype(int) if problem_type == MULTI else logits.reshape(-1)


def compute_metrics(data: TaskData) -> Callable[[Any], dict[str, float]]:
    """
    Args:
        data (`TaskData`):
            Tells the problem type.

    Returns:
        `Callable`: From Trainer's predictions to scalar metrics.
    """

    def compute(prediction: Any) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        return _metrics(predicted(np.asarray(logits), data.problem_type), np.asarray(prediction.label_ids), data)

    return compute


def _metrics(answers: np.ndarray, labels: np.ndarray, data: TaskData) -> dict[str, float]:
    if data.problem_type == REGRESSION:
        return RegressionError().compute(predictions=answers.tolist(), references=labels.reshape(-1).tolist())
    kind = "multilabel" if data.problem_type == MULTI else None
    given = {"predictions": answers.astype(int).tolist(), "references": labels.astype(int).tolist()}
    found = Accuracy(kind).compute(**given)
    for metric in (Precision(kind), Recall(kind), F1(kind)):
        found |= metric.compute(**given, labels=list(range(data.outputs)))
    return {name: value for name, value in found.items() if isinstance(value, float)}


def report(data: TaskData, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """
    Args:
        data (`TaskData`):
            Names the classes.
        logits (`np.ndarray` of shape `(rows, outputs)`):
            The model's outputs.
        labels (`np.ndarray`):
            The true labels.

    Returns:
        `dict[str, Any]`: `per_class`, and `confusion_matrix` for single labels; empty for regression.
    """
    if data.problem_type == REGRESSION:
        return {}
    kind = "multilabel" if data.problem_type == MULTI else None
    answers, labels = predicted(logits, data.problem_type).astype(int), labels.astype(int)
    given = {"predictions": answers.tolist(), "references": labels.tolist()}
    numbers = list(range(data.outputs))
    columns = {
        name: metric.compute(**given, labels=numbers)[f"{name}_per_class"]
        for name, metric in (("precision", Precision(kind)), ("recall", Recall(kind)), ("f1", F1(kind)))
    }
    support = labels.sum(0) if kind else np.bincount(labels, minlength=data.outputs)
    per_class = {
        class_name: {**{name: values[i] for name, values in columns.items()}, "support": int(support[i])}
        for i, class_name in enumerate(data.class_names)
    }
    if kind:
        return {"per_class": per_class}
    return {"per_class": per_class, **ConfusionMatrix().compute(**given, labels=numbers)}


def majority(data: TaskData, split: str) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to measure on.

    Returns:
        `dict[str, float]`: Metrics of always answering the commonest class (the mean, for numbers) of train.
    """
    train, labels = np.asarray(data.splits["train"]["label"]), np.asarray(data.splits[split]["label"])
    if data.problem_type == SINGLE:
        answers = np.full(len(labels), np.bincount(train).argmax())
    elif data.problem_type == MULTI:
        answers = np.tile((train.mean(0) > 0.5).astype(int), (len(labels), 1))
    else:
        answers = np.full(len(labels), train.mean())
    return _metrics(answers, labels, data)


def examples(data: TaskData, split: str, count: int) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to take them from.
        count (`int`):
            How many.

    Returns:
        `list[dict[str, Any]]`: The first short rows, of every label in turn; `label` is the class name, the names of
        all that hold, or the number.
    """
    waiting: dict[Any, list[dict[str, Any]]] = {}
    for row in data.splits[split]:
        if all(len(text) <= SHORT for role, text in row.items() if role != "label"):
            label = _named(row["label"], data)
            kind = None if data.problem_type == REGRESSION else str(label)
            waiting.setdefault(kind, []).append({**row, "label": label})
    turns = zip_longest(*(rows[:count] for _, rows in sorted(waiting.items(), key=lambda item: str(item[0]))))
    return [row for turn in turns for row in turn if row is not None][:count]


def _named(label: Any, data: TaskData) -> Any:
    if data.problem_type == SINGLE:
        return data.class_names[label]
    if data.problem_type == MULTI:
        return [name for name, holds in zip(data.class_names, label, strict=True) if holds]
    return float(np.ravel(label)[0])


def _best_metric(data: TaskData) -> tuple[str, bool]:
    return {SINGLE: ("accuracy", True), MULTI: ("f1_macro", True), REGRESSION: ("mse", False)}[data.problem_type]


TEXT_CLASSIFICATION = Task(
    name="text-classification",
    auto_class="AutoModelForSequenceClassification",
    read=read,
    read_labelled=read_labelled,
    encode=encode,
    collator=DataCollatorWithPadding,
    compute_metrics=compute_metrics,
    report=report,
    majority=majority,
    examples=examples,
    best_metric=_best_metric,
)
