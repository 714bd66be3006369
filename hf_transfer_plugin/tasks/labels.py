"""What the labels are: classes, several classes at once, or numbers; and what is wrong with them."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, DatasetDict
from datasets import Sequence as SequenceFeature

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks.list_cells import list_of, read_lists

MULTI, SINGLE, REGRESSION = "multi_label_classification", "single_label_classification", "regression"


@dataclass(frozen=True)
class LabelScheme:
    """
    How raw labels become numbers.

    Args:
        problem_type (`str`):
            As in the model's config.
        class_names (`tuple[str, ...]`):
            Names in the order of their numbers.
        numbers (`dict`):
            Raw label -> class number.
        indicator (`bool`):
            Whether multi-label rows are rows of 0/1 already.
    """

    problem_type: str
    class_names: tuple[str, ...]
    numbers: dict[Any, int]
    indicator: bool = False

    def encode(self, label: Any) -> Any:
        """
        Args:
            label (`Any`):
                A raw label; several may be a list written as JSON.

        Returns:
            `int`, `list[float]` or `float`: What the model is trained on.
        """
        if self.problem_type == REGRESSION:
            return float(label)
        if self.problem_type == SINGLE:
            return self.numbers[label]
        if isinstance(label, str):
            label = list_of(label) or []
        if self.indicator:
            return [float(value) for value in label]
        chosen = {self.numbers[value] for value in label}
        return [float(i in chosen) for i in range(len(self.class_names))]


def read_labels(splits: DatasetDict, column: str, config: TransferConfig) -> LabelScheme:
    """
    Tells the kind of labels from the training split and checks all splits against it. Text that is a list written as
    JSON, as in the cells of a CSV file, is read as a list of labels.

    Args:
        splits (`DatasetDict`):
            The splits.
        column (`str`):
            The label column.
        config (`TransferConfig`):
            May name the classes and the problem type.

    Returns:
        `LabelScheme`: How labels become numbers.

    Raises:
        ValueError: If labels are missing, of mixed types, of one class only, or unknown to the training split.
    """
    raw = read_lists({split: rows[column] for split, rows in splits.items()}, column)
    for split, labels in raw.items():
        _check_present(split, labels, column)
    train = raw["train"]
    listed = isinstance(train[0], (list, tuple))
    _check_lists(raw, column, listed=listed or config.problem_type == MULTI)
    if listed:
        return _multi_label(raw, splits["train"].features[column], column, config)
    kinds = {type(label).__name__ for label in train}
    if len(kinds) > 1 and not kinds <= {"int", "float"}:
        raise ValueError(f"Labels in {column!r} must be of one type, but are {', '.join(sorted(kinds))}.")
    _check_text(train, column)
    numeric = isinstance(train[0], float) and config.problem_type != SINGLE
    if config.problem_type == REGRESSION or (numeric and config.problem_type is None):
        _check_numbers(raw, column)
        return LabelScheme(REGRESSION, (), {})
    return _single_label(raw, splits["train"].features[column], column, config)


def known_labels(splits: DatasetDict, column: str, config: TransferConfig) -> LabelScheme:
    """
    The labels of a model that is trained already: its classes are given, new ones are refused.

    Args:
        splits (`DatasetDict`):
            The splits.
        column (`str`):
            The label column.
        config (`TransferConfig`):
            Names the classes and the problem type.

    Returns:
        `LabelScheme`: How labels become numbers.

    Raises:
        ValueError: If a label is missing or not among the model's classes.
    """
    names = tuple(config.class_names or ())
    scheme = LabelScheme(config.problem_type or SINGLE, names, {})
    raw = {split: list(rows[column]) for split, rows in splits.items()}
    if scheme.problem_type == MULTI:
        raw = read_lists(raw, column)
    for split, labels in raw.items():
        _check_present(split, labels, column)
    if scheme.problem_type == REGRESSION:
        _check_numbers(raw, column)
        return scheme
    single = scheme.problem_type == SINGLE
    _check_lists(raw, column, listed=not single)
    for split, labels in raw.items():
        feature = splits[split].features[column]
        values = set(labels) if single else {value for row in labels for value in row}
        if not single and values <= {0, 1} and {len(row) for row in labels} == {len(names)}:
            return LabelScheme(MULTI, names, {}, indicator=True)
        scheme.numbers.update(_known_numbers(values, feature if single else getattr(feature, "feature", None), names))
    return scheme


def _known_numbers(values: set[Any], feature: Any, names: tuple[str, ...]) -> dict[Any, int]:
    """Numbers of a model's classes: by name, or by position where the data has only positions."""
    given = dict(enumerate(feature.names)) if isinstance(feature, ClassLabel) else {}
    words = given or {value: str(value) for value in values}
    numbers: dict[Any, int] = {value: names.index(word) for value, word in words.items() if word in names}
    positions = range(len(names))
    numbered = any(_is_number(name) for name in names) and list(names) != [str(i) for i in positions]
    fits = len(given) in (0, len(names)) and all(isinstance(value, int) for value in values)
    if not numbers and fits and not numbered:
        numbers = {i: i for i in positions}
    unknown = sorted(values - numbers.keys(), key=str)
    if unknown:
        raise ValueError(
            f"Labels must be among the model's classes {', '.join(names)}, but the data has "
            f"{given.get(unknown[0], unknown[0])!r}."
        )
    return numbers


def _check_present(split: str, labels: Sequence[Any], column: str) -> None:
    if not labels:
        raise ValueError(f"The {split} split must hold rows, but is empty.")
    for row, label in enumerate(labels):
        if any(_is_missing(value) for value in (label if isinstance(label, list) else (label,))):
            raise ValueError(
                f"Every row must have a label, but row {row} of the {split} split has none in {column!r}. "
                "Remove such rows or fill the labels in. Rows are counted from 0."
            )


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _check_lists(raw: dict[str, list[Any]], column: str, *, listed: bool) -> None:
    for split, labels in raw.items():
        for row, label in enumerate(labels):
            if isinstance(label, (list, tuple)) != listed:
                what = "lists of labels" if listed else "one label a row"
                raise ValueError(
                    f"Labels in {column!r} must be {what}, but row {row} of the {split} split is {label!r}. "
                    "Rows are counted from 0."
                )


def _check_numbers(raw: dict[str, list[Any]], column: str) -> None:
    for split, labels in raw.items():
        for label in labels:
            if not isinstance(label, (int, float)) or isinstance(label, bool) or not math.isfinite(label):
                raise ValueError(
                    f"Regression needs finite numbers in {column!r}, but got {label!r} in the {split} split."
                )


def _check_text(labels: Sequence[Any], column: str) -> None:
    """Text labels of which some are numbers come from a column of mixed types."""
    if not isinstance(labels[0], str):
        return
    numbers = [label for label in labels if _is_number(label)]
    if numbers and len(numbers) < len(labels):
        word = next(label for label in labels if not _is_number(label))
        raise ValueError(
            f"Labels in {column!r} must be of one type, but some are numbers ({numbers[0]!r}) and some are words "
            f"({word!r}). Write them all as numbers or all as words."
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _names(values: Iterable[Any], feature: Any, config: TransferConfig) -> tuple[dict[Any, int], tuple[str, ...]]:
    """Class numbers and names: from the data's ClassLabel, from the user, or from the sorted values."""
    found = sorted(set(values))
    if isinstance(feature, ClassLabel):
        if config.class_names and len(config.class_names) != feature.num_classes:
            raise ValueError(
                f"`class_names` must name the {feature.num_classes} classes of the data, but names "
                f"{len(config.class_names)}."
            )
        return {i: i for i in range(feature.num_classes)}, tuple(config.class_names or feature.names)
    if config.class_names:
        given = list(config.class_names)
        by_name = all(isinstance(value, str) for value in found)
        if by_name and not set(found) <= set(given):
            raise ValueError(
                f"Labels must be among `class_names` {given}, but the data also has {sorted(set(found) - set(given))}."
            )
        if not by_name and not set(found) <= set(range(len(given))):
            raise ValueError(
                f"{len(given)} `class_names` need labels 0 to {len(given) - 1}, but the data has {found[:10]}."
            )
        return ({name: i for i, name in enumerate(given)} if by_name else {i: i for i in range(len(given))}), tuple(
            given
        )
    return {value: i for i, value in enumerate(found)}, tuple(str(value) for value in found)


def _single_label(raw: dict[str, list[Any]], feature: Any, column: str, config: TransferConfig) -> LabelScheme:
    numbers, names = _names(raw["train"], feature, config)
    counts = Counter(raw["train"])
    if len(counts) < 2:
        raise ValueError(
            f"The train split must hold at least two classes in {column!r}, but every row is {next(iter(counts))!r}."
        )
    if len(names) > 2 and len(counts) > len(raw["train"]) / 2 and not config.class_names:
        raise ValueError(
            f"Labels in {column!r} must be classes, but {len(counts)} of {len(raw['train'])} rows differ. Name "
            "another `--label_column`, or set `--problem_type regression` for numbers."
        )
    for split, labels in raw.items():
        unseen = sorted(set(labels) - counts.keys(), key=str)
        if unseen:
            raise ValueError(
                f"Every label of the {split} split must occur in train, but {unseen[0]!r} does not "
                f"(train has {', '.join(str(v) for v in sorted(counts)[:10])}). Correct it or add training rows."
            )
    return LabelScheme(SINGLE, names, numbers)


def _multi_label(raw: dict[str, list[Any]], feature: Any, column: str, config: TransferConfig) -> LabelScheme:
    if config.problem_type not in (None, MULTI):
        raise ValueError(f"Lists of labels are a {MULTI}, but `problem_type` is {config.problem_type!r}.")
    rows = raw["train"]
    lengths = {len(row) for row in rows}
    inner = feature.feature if isinstance(feature, SequenceFeature) or hasattr(feature, "feature") else None
    values = {value for row in rows for value in row}
    if len(lengths) == 1 and min(lengths) > 1 and values <= {0, 1} and not isinstance(inner, ClassLabel):
        return _indicators(raw, lengths.pop(), config)
    numbers, names = _names(values, inner, config)
    if len(names) < 2:
        raise ValueError(
            f"The train split must hold at least two labels in {column!r}, but has only {', '.join(names) or 'none'}."
        )
    for split, labels in raw.items():
        unseen = sorted({value for row in labels for value in row} - values, key=str)
        if unseen and split != "train":
            raise ValueError(f"Every label of the {split} split must occur in train, but {unseen[0]!r} does not.")
    return LabelScheme(MULTI, names, numbers)


def _indicators(raw: dict[str, list[Any]], width: int, config: TransferConfig) -> LabelScheme:
    names = tuple(config.class_names or (str(i) for i in range(width)))
    if len(names) != width:
        raise ValueError(f"`class_names` must name the {width} labels of a row, but names {len(names)}.")
    for split, labels in raw.items():
        for row, label in enumerate(labels):
            if len(label) != width or not set(label) <= {0, 1}:
                raise ValueError(
                    f"Every row of the {split} split must be {width} zeros and ones as in train, but row {row} is "
                    f"{label!r}."
                )
    return LabelScheme(MULTI, names, {}, indicator=True)
