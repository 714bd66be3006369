"""Text classification: one class, several, or a number, for single texts and pairs."""

import logging
from itertools import zip_longest
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import DataCollatorWithPadding

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.metrics import (
    F1,
    Accuracy,
    Precision,
    Recall,
    RegressionError,
    bootstrap_interval,
    calibration,
    macro_f1,
)
from hf_transfer_plugin.tasks.base import Outcome, Task, TaskData
from hf_transfer_plugin.tasks.class_report import SHORT, class_figures, confident_errors, predicted, probabilities
from hf_transfer_plugin.tasks.columns import LABEL_COLUMNS, TEXT_COLUMNS, check_texts, choose_columns
from hf_transfer_plugin.tasks.labels import MULTI, REGRESSION, SINGLE, LabelScheme, known_labels, read_labels
from hf_transfer_plugin.tasks.splitting import hold_out

logger = logging.getLogger(__name__)

BEST = {SINGLE: ("accuracy", True), MULTI: ("f1_macro", True), REGRESSION: ("mse", False)}
PAIR_COLUMNS = {"sentence1": "sentence2", "premise": "hypothesis", "question1": "question2", "text1": "text2"}


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
    strata = "label" if scheme.problem_type == SINGLE else None
    plain, held_out = hold_out(plain, config, seed, strata=strata, class_names=scheme.class_names)
    return TaskData(plain, columns, scheme.problem_type, scheme.class_names, held_out)


def read_again(splits: DatasetDict, config: TransferConfig, labelled: bool) -> TaskData:
    """
    As [`read`], for a trained model: the classes are those that the configuration names, and nothing is held out.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        labelled (`bool`):
            Whether the labels are wanted.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or texts or labels are unusable.
    """
    columns = _checked_columns(splits, config, labelled=labelled)
    names, problem = tuple(config.class_names or ()), config.problem_type or SINGLE
    scheme = known_labels(splits, columns["label"], config) if labelled else LabelScheme(problem, names, {})
    plain = DatasetDict({split: _plain(rows, columns, scheme) for split, rows in splits.items()})
    return TaskData(plain, columns, scheme.problem_type, scheme.class_names)


def _checked_columns(splits: DatasetDict, config: TransferConfig, *, labelled: bool = True) -> dict[str, str]:
    columns = _columns(splits, config, labelled)
    for split, rows in splits.items():
        for role in ("text", "text_pair"):
            if role in columns:
                check_texts(split, rows[columns[role]], columns[role], role)
    return columns


def _columns(splits: DatasetDict, config: TransferConfig, labelled: bool) -> dict[str, str]:
    columns = choose_columns(splits, config, {"text": TEXT_COLUMNS})
    pair = None if config.text_column else PAIR_COLUMNS.get(columns["text"])
    columns |= choose_columns(splits, config, {"text_pair": (pair,) if pair else ()}, optional=("text_pair",))
    return columns | (choose_columns(splits, config, {"label": LABEL_COLUMNS}) if labelled else {})


def _unlabelled(rows: Dataset | None, column: str) -> bool:
    return rows is not None and len(rows) > 0 and all(label == -1 for label in rows[column])


def _plain(rows: Dataset, columns: dict[str, str], scheme: LabelScheme) -> Dataset:
    values = {role: list(rows[name]) for role, name in columns.items() if role != "label"}
    if "label" in columns:
        values["label"] = [scheme.encode(label) for label in rows[columns["label"]]]
    return Dataset.from_dict(values)


def encode(data: TaskData, processor: Any, max_length: int, model_config: Any) -> tuple[DatasetDict, int]:
    """
    Tokenizes; texts longer than the model reads are truncated and counted.

    Args:
        data (`TaskData`):
            The rows.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.
        max_length (`int`):
            Tokens of a row at most.
        model_config (`PretrainedConfig`):
            The model's config; not needed here.

    Returns:
        `tuple[DatasetDict, int]`: Encoded splits, and the number of truncated rows.
    """
    truncated = 0

    def run(batch: dict[str, list[Any]]) -> dict[str, Any]:
        nonlocal truncated
        encoded = processor(batch["text"], batch.get("text_pair"), truncation=True, max_length=max_length)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        # Only rows that fill the length can have been cut.
        parts = zip(encoded.encodings or (), lengths, strict=False)
        truncated += sum(bool(part.overflowing) for part, length in parts if length == max_length)
        return {**encoded, **({"labels": batch["label"]} if "label" in batch else {}), "length": lengths}

    splits = {}
    for split, rows in data.splits.items():
        splits[split] = rows.map(
            run, batched=True, remove_columns=rows.column_names, load_from_cache_file=False, desc=f"Tokenizing {split}"
        )
    return DatasetDict(splits), truncated


def _logits(outcome: Outcome) -> np.ndarray:
    found = outcome.predictions
    return np.asarray(found[0] if isinstance(found, tuple) else found)


def metrics(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Tells the problem type.
        outcome (`Outcome`):
            The model's logits.

    Returns:
        `dict[str, float]`: Accuracy and the macro averages, or the errors of a regression.
    """
    return _measured(predicted(_logits(outcome), data.problem_type), np.asarray(outcome.rows["label"]), data)


def _measured(answers: np.ndarray, labels: np.ndarray, data: TaskData) -> dict[str, float]:
    if data.problem_type == REGRESSION:
        return RegressionError().compute(predictions=answers.tolist(), references=labels.reshape(-1).tolist())
    kind = "multilabel" if data.problem_type == MULTI else None
    given = {"predictions": answers.astype(int).tolist(), "references": labels.astype(int).tolist()}
    found = Accuracy(kind).compute(**given)
    for metric in (Precision(kind), Recall(kind), F1(kind)):
        found |= metric.compute(**given, labels=list(range(data.outputs)))
    return {name: value for name, value in found.items() if isinstance(value, float)}


def report(data: TaskData, outcome: Outcome, count: int) -> dict[str, Any]:
    """
    Args:
        data (`TaskData`):
            Names the classes.
        outcome (`Outcome`):
            The model's logits.
        count (`int`):
            Most confident errors at most.

    Returns:
        `dict[str, Any]`: `per_class`, `confusion_matrix` for single labels, `calibration`, `intervals` and `errors`,
        as far as the problem type has them.
    """
    logits, labels = _logits(outcome), np.asarray(outcome.rows["label"])
    answers = predicted(logits, data.problem_type)
    told = {"label": [_named(label, data) for label in labels], "prediction": [_named(a, data) for a in answers]}
    if data.problem_type == REGRESSION:
        distance = np.abs(answers - labels.reshape(-1))
        squared = bootstrap_interval(lambda chosen: float(np.mean(distance[chosen] ** 2)), len(labels))
        errors = confident_errors(outcome.rows, distance > 0, distance, told, count)
        return {"intervals": {"mse": squared}, "errors": errors}
    found = class_figures(answers, labels, data.class_names)
    chances = probabilities(logits, data.problem_type)
    if data.problem_type == MULTI:
        right = answers == labels
        sure = np.maximum(chances, 1 - chances)
        found["calibration"] = calibration(sure.ravel(), right.ravel())
        truth = labels.astype(int)
        drawn = bootstrap_interval(lambda rows: macro_f1(answers[rows], truth[rows], data.outputs), len(truth))
        interval = {"f1_macro": drawn}
        wrong, scores = ~right.all(1), np.where(right, 0, sure).max(1)
    else:
        right, scores = answers == labels, chances.max(-1)
        found["calibration"] = calibration(scores, right)
        interval = {"accuracy": bootstrap_interval(lambda rows: float(right[rows].mean()), len(labels))}
        wrong = ~right
    return {**found, "intervals": interval, "errors": confident_errors(outcome.rows, wrong, scores, told, count)}


def answers(data: TaskData, outcome: Outcome) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            Names the classes.
        outcome (`Outcome`):
            The model's logits.

    Returns:
        `list[dict[str, Any]]`: `prediction` of each row and, for classes, `score` and `probabilities` of every class.
    """
    logits = _logits(outcome)
    named = [_named(answer, data) for answer in predicted(logits, data.problem_type)]
    if data.problem_type == REGRESSION:
        return [{"prediction": value} for value in named]
    found = []
    for name, row in zip(named, probabilities(logits, data.problem_type), strict=True):
        score = {} if data.problem_type == MULTI else {"score": float(row.max())}
        found.append({
            "prediction": name,
            **score,
            "probabilities": dict(zip(data.class_names, row.tolist(), strict=True)),
        })
    return found


def baseline(data: TaskData, split: str, encoded: DatasetDict) -> tuple[str, dict[str, float]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to measure on.
        encoded (`DatasetDict`):
            Not needed here.

    Returns:
        `tuple`: `"majority"`, and metrics of always answering the commonest class (the mean, for numbers) of train.
    """
    train, labels = np.asarray(data.splits["train"]["label"]), np.asarray(data.splits[split]["label"])
    if data.problem_type == SINGLE:
        always = np.full(len(labels), np.bincount(train).argmax())
    elif data.problem_type == MULTI:
        always = np.tile((train.mean(0) > 0.5).astype(int), (len(labels), 1))
    else:
        always = np.full(len(labels), train.mean())
    return "majority", _measured(always, labels, data)


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


TEXT_CLASSIFICATION = Task(
    name="text-classification",
    auto_classes=("AutoModelForSequenceClassification",),
    roles=("text", "text_pair", "label"),
    read=read,
    read_again=read_again,
    encode=encode,
    collator=lambda processor, data: DataCollatorWithPadding(processor),
    metrics=metrics,
    report=report,
    answers=answers,
    baseline=baseline,
    examples=examples,
    best_metric=lambda data: BEST[data.problem_type],
    options=("class_names", "problem_type"),
    # Some heads, as BART's, also return the states of every token.
    reduce=lambda logits, labels: logits[0] if isinstance(logits, (tuple, list)) else logits,
    probe=True,
    strategy={"name": "lp-ft", "frozen": 1},
)
