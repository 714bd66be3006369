"""Text classification: one class, several, or a number, for single texts, pairs, and rows of a table."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import DataCollatorWithPadding

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks import classes
from hf_transfer_plugin.tasks.base import Outcome, Task, TaskData
from hf_transfer_plugin.tasks.cells import tidy
from hf_transfer_plugin.tasks.class_report import SHORT, shortened
from hf_transfer_plugin.tasks.columns import LABEL_COLUMNS, TEXT_COLUMNS, check_texts, choose_columns
from hf_transfer_plugin.tasks.labels import SINGLE, LabelScheme, known_labels, read_labels
from hf_transfer_plugin.tasks.splitting import hold_out
from hf_transfer_plugin.tasks.tables import (
    choose_features,
    find_leaks,
    known_kinds,
    ranking,
    read_table,
    warn_of,
    with_cells,
)

logger = logging.getLogger(__name__)

TABLE_HINT = "Rows of a table become texts with `--feature_columns all`."
PAIR_COLUMNS = {"sentence1": "sentence2", "premise": "hypothesis", "question1": "question2", "text1": "text2"}


def read(splits: DatasetDict, config: TransferConfig, seed: int) -> TaskData:
    """
    Checks the rows and brings them into the columns `text`, `text_pair` and `label`; of a table also `row`, the cells.

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
    kinds, facts = choose_features(splits["train"], config, columns["label"]) if config.feature_columns else ({}, {})
    plain = _plain_splits(splits, columns, scheme, kinds)
    if kinds:
        facts["leaks"] = find_leaks(plain["train"])
        warn_of(facts)
    strata = "label" if scheme.problem_type == SINGLE else None
    plain, held_out = hold_out(plain, config, seed, strata=strata, class_names=scheme.class_names)
    return TaskData(
        plain,
        columns,
        scheme.problem_type,
        scheme.class_names,
        held_out,
        {"feature_columns": kinds} if kinds else {},
        {"table": facts} if kinds else {},
    )


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
    kinds = known_kinds(config) if config.feature_columns else {}
    plain = _plain_splits(splits, columns, scheme, kinds)
    options = {"feature_columns": kinds} if kinds else {}
    return TaskData(plain, columns, scheme.problem_type, scheme.class_names, options=options)


def _checked_columns(splits: DatasetDict, config: TransferConfig, *, labelled: bool = True) -> dict[str, str]:
    columns = _columns(splits, config, labelled)
    for split, rows in splits.items():
        for role in ("text", "text_pair"):
            if role in columns:
                check_texts(split, rows[columns[role]], columns[role], role)
    return columns


def _columns(splits: DatasetDict, config: TransferConfig, labelled: bool) -> dict[str, str]:
    if config.feature_columns:
        return choose_columns(splits, config, {"label": LABEL_COLUMNS}) if labelled else {}
    columns = choose_columns(splits, config, {"text": TEXT_COLUMNS}, hint=" " + TABLE_HINT)
    pair = None if config.text_column else PAIR_COLUMNS.get(columns["text"])
    columns |= choose_columns(splits, config, {"text_pair": (pair,) if pair else ()}, optional=("text_pair",))
    return columns | (choose_columns(splits, config, {"label": LABEL_COLUMNS}) if labelled else {})


def _plain_splits(
    splits: DatasetDict, columns: dict[str, str], scheme: LabelScheme, kinds: Mapping[str, str]
) -> DatasetDict:
    plain = DatasetDict({split: _plain(rows, columns, scheme) for split, rows in splits.items()})
    cells = read_table(splits, kinds) if kinds else {}
    return DatasetDict({s: with_cells(rows, cells[s]) if kinds else rows for s, rows in plain.items()})


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


def metrics(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Tells the problem type, and whether rows of a table are read.
        outcome (`Outcome`):
            The model's logits.

    Returns:
        `dict[str, float]`: As for all classes; of a table with two classes also `roc_auc`.
    """
    found = classes.metrics(data, outcome)
    return found | ranking(data, outcome) if "feature_columns" in data.options else found


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    return {role: shortened(row[role]) for role in ("text", "text_pair") if role in row}


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    if "row" in row:
        return {"row": {name: tidy(value) for name, value in row["row"].items()}}
    return {role: row[role] for role in ("text", "text_pair") if role in row}


def _is_short(row: Mapping[str, Any]) -> bool:
    found = _example(row)
    return all(len(str(text)) <= SHORT for text in found.get("row", found).values())


TEXT_CLASSIFICATION = Task(
    name="text-classification",
    auto_classes=("AutoModelForSequenceClassification",),
    roles=("text", "text_pair", "label"),
    read=read,
    read_again=read_again,
    encode=encode,
    collator=lambda processor, data: DataCollatorWithPadding(processor),
    metrics=metrics,
    report=partial(classes.report, show=_shown),
    answers=classes.answers,
    baseline=classes.baseline,
    examples=partial(classes.examples, show=_example, fits=_is_short),
    best_metric=classes.best_metric,
    options=("class_names", "problem_type", "feature_columns"),
    # Some heads, as BART's, also return the states of every token.
    reduce=lambda logits, labels: logits[0] if isinstance(logits, (tuple, list)) else logits,
    probe=True,
    strategy={"name": "lp-ft", "frozen": 1},
)
