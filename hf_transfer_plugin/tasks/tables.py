"""Tables: which columns of a row are read, how they become one text, and which of them betray the label."""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.metrics import roc_auc_score

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.config.names import FEATURE_KINDS
from hf_transfer_plugin.tasks.base import Outcome, TaskData
from hf_transfer_plugin.tasks.cells import kind_of, read_cells, row_text
from hf_transfer_plugin.tasks.class_report import probabilities
from hf_transfer_plugin.tasks.labels import SINGLE

logger = logging.getLogger(__name__)
ALL, NOT_NAMED = "all", "not named"
CHOICES = 20  # different values of a category, up to which they are listed
FEWEST = 5  # rows outside the commonest label, below which nothing is said of leaks
NEARLY_ONE = 0.9999
_NO_NAME = re.compile(r"(unnamed: ?\d+|__index_level_\d+__|level_\d+|)", re.IGNORECASE)
_ID = re.compile(r"(?i:(.*[_\W])?(id|ids|uuid|guid|index|rownames?|rowid))|.*[a-z](Id|ID|UUID)", re.DOTALL)


def choose_features(rows: Dataset, config: TransferConfig, label: str | None) -> tuple[dict[str, str], dict[str, Any]]:
    """
    Tells from the training rows which columns are read, and what they hold.

    Args:
        rows (`Dataset`):
            The training rows.
        config (`TransferConfig`):
            Names the columns, or asks for all.
        label (`str`, *optional*):
            Column of the label.

    Returns:
        `tuple[dict, dict]`: Column -> kind, in the order in which they are written; and what the record shall tell:
        `left_out` (column -> why), `constant` and `choices`. Of all columns those with long texts stand last, so that
        truncating cuts nothing else.

    Raises:
        ValueError: If a named column is missing, is the label or holds several values in a cell, or none is left.
    """
    given = config.feature_columns
    every = given in (ALL, [ALL])
    names = [name for name in rows.column_names if name != label] if every else list(given or ())
    _check_named(names, rows.column_names, label)
    fixed: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    found = {name: fixed.get(name) or kind_of(rows, name) for name in names}
    left_out = {name: NOT_NAMED for name in rows.column_names if name not in (*names, label)}
    kinds = {name: kind for name, kind in found.items() if kind}
    for name in found.keys() - kinds.keys():
        if not every:
            raise ValueError(
                f"`feature_columns` must name columns with one value in each cell, but {name!r} is nested "
                f"({rows.features[name]}). Leave it out, or make columns of its parts."
            )
        left_out[name] = "nested"
    cells = read_cells("train", rows, kinds)
    values = {name: [row[name] for row in cells] for name in kinds}
    constant = [name for name, column in values.items() if len(set(column)) < 2]
    if every:
        left_out |= dict.fromkeys(constant, "constant")
        left_out |= {n: "looks like an id" for n, k in kinds.items() if n not in left_out and _is_id(n, k, values[n])}
    kept = sorted((name for name in kinds if name not in left_out), key=lambda name: every and kinds[name] == "text")
    if not kept:
        told = ", ".join(f"{name} ({left_out[name]})" for name in rows.column_names if name in left_out)
        raise ValueError(
            f"`feature_columns` must leave a column beside the label to read, but none is left: {told or 'no other'}."
        )
    choices = {name: sorted(set(values[name]) - {None}) for name in kept if kinds[name] == "category"}
    facts = {
        "left_out": {name: left_out[name] for name in rows.column_names if name in left_out},
        "constant": [name for name in constant if name in kept],
        "choices": {name: words for name, words in choices.items() if len(words) <= CHOICES},
    }
    return {name: kinds[name] for name in kept}, facts


def _check_named(names: Sequence[str], there: Sequence[str], label: str | None) -> None:
    missing = [name for name in names if name not in there]
    if missing:
        raise ValueError(
            f"`feature_columns` must name columns of the data, but {missing[0]!r} is not among {', '.join(there)}."
        )
    if label in names:
        raise ValueError(
            f"`feature_columns` must not name the label, but names {label!r}, which the model shall tell. Leave it "
            "out, or name another `--label_column`."
        )


def _is_id(name: str, kind: str, values: Sequence[Any]) -> bool:
    """By its name with mostly different values, or a number that counts the rows, or a word that no other row has."""
    present = [value for value in values if value is not None]
    different = len(set(present))
    if _NO_NAME.fullmatch(name) or (_ID.fullmatch(name) and different * 2 > len(present)):
        return True
    if different < len(values) or len(values) < CHOICES:
        return False
    if kind == "number":
        return all(after - before == 1 for before, after in zip(values, values[1:], strict=False))
    return kind == "category" and all(" " not in value and any(map(str.isdigit, value)) for value in values)


def read_table(splits: DatasetDict, kinds: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """
    Args:
        splits (`DatasetDict`):
            As loaded.
        kinds (`Mapping[str, str]`):
            Column -> kind, in the order of the training.

    Returns:
        `dict[str, list[dict]]`: Split -> the cells of each row; columns that are not named are not read.

    Raises:
        ValueError: If a split lacks a column or is empty, or a value is of another kind than in training.
    """
    for split, rows in splits.items():
        missing = [name for name in kinds if name not in rows.column_names]
        if missing:
            raise ValueError(
                f"The {split} split must have the columns that the model was trained on, but lacks "
                f"{', '.join(map(repr, missing))}; it has {', '.join(rows.column_names)}. Where nothing is known, add "
                "the column with empty cells."
            )
        if not len(rows):
            raise ValueError(f"The {split} split must hold rows, but is empty.")
    return {split: read_cells(split, rows, kinds) for split, rows in splits.items()}


def known_kinds(config: TransferConfig) -> dict[str, str]:
    """
    Args:
        config (`TransferConfig`):
            Of a trained model: the columns with their kinds.

    Returns:
        `dict[str, str]`: Column -> kind, in the order of the training.

    Raises:
        ValueError: If it names no kinds.
    """
    given = config.feature_columns
    if not isinstance(given, Mapping):
        raise ValueError(
            "`feature_columns` of a trained model must be those of its record, column -> kind "
            f"({', '.join(FEATURE_KINDS)}), but got {given!r}. Leave it out: the record names them."
        )
    return dict(given)


def with_cells(rows: Dataset, cells: Sequence[Mapping[str, Any]]) -> Dataset:
    """
    Args:
        rows (`Dataset`):
            The labels of the rows, or nothing.
        cells (`Sequence[Mapping]`):
            Their cells.

    Returns:
        `Dataset`: With the column `text`, which the model reads, and `row`, the cells.
    """
    values = {"text": [row_text(row) for row in cells], "row": list(cells)}
    return Dataset.from_dict(values | {name: list(rows[name]) for name in rows.column_names})


def find_leaks(rows: Dataset) -> list[str]:
    """
    Columns of which each value has one label: `deny_reason` beside `deny`. Values that mostly stand in one row alone
    tell nothing; a missing value counts as one, and so does whether there is one. For numbers as labels: columns that
    rise and fall with them.

    Args:
        rows (`Dataset`):
            The training rows with `row` and `label`.

    Returns:
        `list[str]`: Their names.
    """
    cells, labels = list(rows["row"]), list(rows["label"])
    columns = {name: [row[name] for row in cells] for name in cells[0]}
    if isinstance(labels[0], float):
        return [name for name, values in columns.items() if _follows(values, labels)]
    keys = [tuple(label) if isinstance(label, list) else label for label in labels]
    if len(keys) - max(Counter(keys).values()) < FEWEST:
        return []
    return [n for n, values in columns.items() if _tells(values, keys) or _tells([v is None for v in values], keys)]


def _tells(values: Sequence[Any], labels: Sequence[Any]) -> bool:
    seen: dict[Any, Any] = {}
    if any(seen.setdefault(value, label) != label for value, label in zip(values, labels, strict=True)):
        return False
    return 1 < len(seen) <= len(values) / 2


def _follows(values: Sequence[Any], labels: Sequence[float]) -> bool:
    pairs = [(v, label) for v, label in zip(values, labels, strict=True) if isinstance(v, (int, float))]
    if len(pairs) < max(FEWEST, len(values) / 2):
        return False
    x, y = np.asarray(pairs, dtype=float).T
    return bool(x.std() and y.std() and abs(np.corrcoef(x, y)[0, 1]) > NEARLY_ONE)


def warn_of(facts: Mapping[str, Any]) -> None:
    """
    Tells which columns are not read, and which the model should perhaps not read.

    Args:
        facts (`Mapping[str, Any]`):
            `left_out`, `constant` and `leaks`.
    """
    told = ", ".join(f"{name} ({why})" for name, why in facts["left_out"].items() if why != NOT_NAMED)
    if told:
        logger.warning("Columns that are not read: %s. To read one of them, name all in `feature_columns`.", told)
    if facts["constant"]:
        logger.warning("Columns with the same value in every training row: %s.", ", ".join(facts["constant"]))
    for name in facts["leaks"]:
        logger.warning(
            "The column %r tells the label in every training row. If it is not known when the model is asked, the "
            "figures will be too good: leave it out of `feature_columns`.",
            name,
        )


def ranking(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Tells the problem type.
        outcome (`Outcome`):
            The model's logits.

    Returns:
        `dict[str, float]`: `roc_auc` where there are two classes; nothing otherwise.
    """
    if data.problem_type != SINGLE or len(data.class_names) != 2:
        return {}
    chances = probabilities(np.asarray(outcome.predictions), data.problem_type)[:, 1]
    return roc_auc(chances, np.asarray(outcome.rows["label"]))


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """
    How often a row of the second class has a higher score than one of the first: accuracy tells little where one class
    is rare, as fraud is.

    Args:
        scores (`np.ndarray` of shape `(rows,)`):
            Of the second class.
        labels (`np.ndarray` of shape `(rows,)`):
            0 or 1.

    Returns:
        `dict[str, float]`: `roc_auc`; nothing where one class is missing.
    """
    return {"roc_auc": float(roc_auc_score(labels, scores))} if len(set(labels.tolist())) == 2 else {}
