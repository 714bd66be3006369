"""Text classification: one class, several, or a number, for single texts and pairs."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import DataCollatorWithPadding

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks import classes
from hf_transfer_plugin.tasks.base import Task, TaskData
from hf_transfer_plugin.tasks.class_report import SHORT, shortened
from hf_transfer_plugin.tasks.columns import LABEL_COLUMNS, TEXT_COLUMNS, check_texts, choose_columns
from hf_transfer_plugin.tasks.labels import SINGLE, LabelScheme, known_labels, read_labels
from hf_transfer_plugin.tasks.splitting import hold_out

logger = logging.getLogger(__name__)

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
    if classes.is_unlabelled(splits.get("test"), columns["label"]):
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


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    return {role: shortened(text) for role, text in row.items() if role != "label"}


def _example(row: Mapping[str, Any]) -> dict[str, str]:
    return {role: text for role, text in row.items() if role != "label"}


def _is_short(row: Mapping[str, Any]) -> bool:
    return all(len(text) <= SHORT for text in _example(row).values())


TEXT_CLASSIFICATION = Task(
    name="text-classification",
    auto_classes=("AutoModelForSequenceClassification",),
    roles=("text", "text_pair", "label"),
    read=read,
    read_again=read_again,
    encode=encode,
    collator=lambda processor, data: DataCollatorWithPadding(processor),
    metrics=classes.metrics,
    report=partial(classes.report, show=_shown),
    answers=classes.answers,
    baseline=classes.baseline,
    examples=partial(classes.examples, show=_example, fits=_is_short),
    best_metric=classes.best_metric,
    options=("class_names", "problem_type"),
    # Some heads, as BART's, also return the states of every token.
    reduce=lambda logits, labels: logits[0] if isinstance(logits, (tuple, list)) else logits,
    probe=True,
    strategy={"name": "lp-ft", "frozen": 1},
)
