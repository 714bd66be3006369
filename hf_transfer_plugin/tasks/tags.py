"""Words and their tags: what the tags are called, and what is wrong with them."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks.labels import SINGLE, known_labels

logger = logging.getLogger(__name__)

WORD = re.compile(r"\w+(?:[-'’.]\w+)*|[^\w\s]")


def split_words(text: str) -> list[str]:
    """
    Splits plain text: runs of letters and digits are words, also with a hyphen, an apostrophe or a full stop inside;
    every other sign is a word of its own.

    Args:
        text (`str`):
            A text.

    Returns:
        `list[str]`: Its words.

    Example:
    ```python
    >>> split_words("Don't pay $3.50!")
    ["Don't", 'pay', '$', '3.50', '!']
    ```
    """
    return WORD.findall(text)


def check_words(split: str, rows: Sequence[Any], column: str) -> None:
    """
    Args:
        split (`str`):
            Name of the split.
        rows (`Sequence`):
            Values of the column.
        column (`str`):
            Its name.

    Raises:
        ValueError: If a row is no list of words, or a word is empty.
    """
    for number, words in enumerate(rows):
        where = f"row {number} of the {split} split, counted from 0,"
        if not isinstance(words, (list, tuple)):
            what = "plain text" if isinstance(words, str) else f"a {type(words).__name__}"
            raise ValueError(
                f"Every row of {column!r} must be a list of words, but {where} is {what}. Split the text into words, "
                'one for each tag (JSON lines and Parquet hold lists; in CSV write `["a", "b"]`), or name another '
                "`--text_column`."
            )
        bad = [word for word in words if not isinstance(word, str) or not word.strip()]
        if bad or not words:
            what = f"holds {bad[0]!r}" if bad else "has no words"
            raise ValueError(
                f"Every row of {column!r} must be a list of words, but {where} {what}. Remove such words with their "
                "tags, and rows without words."
            )


def check_pairs(split: str, rows: Dataset, columns: dict[str, str]) -> None:
    """
    Args:
        split (`str`):
            Name of the split.
        rows (`Dataset`):
            Its rows, with lists of words that were checked.
        columns (`dict[str, str]`):
            Role -> column.

    Raises:
        ValueError: If a row is no list of tags, or has not one tag for each word.
    """
    for number, (words, tags) in enumerate(zip(rows[columns["text"]], rows[columns["label"]], strict=True)):
        where = f"row {number} of the {split} split, counted from 0,"
        if not isinstance(tags, (list, tuple)) or any(tag is None for tag in tags):
            raise ValueError(
                f"Every row of {columns['label']!r} must be a list of tags, but {where} is {_short(tags)}. Name "
                "another `--label_column`, or write a tag for every word."
            )
        if len(words) != len(tags):
            raise ValueError(
                f"Every word must have one tag, but {where} has {len(words)} words in {columns['text']!r} and "
                f"{len(tags)} tags in {columns['label']!r}. Correct or remove such rows."
            )


def read_tags(splits: DatasetDict, column: str, config: TransferConfig) -> tuple[dict[Any, int], tuple[str, ...]]:
    """
    Tells the tags from the training split, and checks all splits against it. A tag that the data or the user declares
    may be missing in train, which is told in a warning.

    Args:
        splits (`DatasetDict`):
            The splits, with checked lists.
        column (`str`):
            The column of tags.
        config (`TransferConfig`):
            May name the classes.

    Returns:
        `tuple`: Tag -> class number, and the names in the order of their numbers.

    Raises:
        ValueError: If tags are no words and no whole numbers, outside the names, only one, or unknown to train.
    """
    found = {split: set(chain.from_iterable(rows[column])) for split, rows in splits.items()}
    train = found["train"]
    kinds = sorted({type(tag).__name__ for tags in found.values() for tag in tags})
    if kinds not in (["int"], ["str"]):
        raise ValueError(
            f"Tags in {column!r} must be all words or all whole numbers, but are of type {', '.join(kinds)}. Name "
            "another `--label_column`, or write all as words."
        )
    numbers, names = _named(train, getattr(splits["train"].features[column], "feature", None), config)
    if len(train) < 2:
        raise ValueError(
            f"The train split must hold at least two tags in {column!r}, but every word has {next(iter(train))!r}."
        )
    for split, tags in found.items():
        undeclared = tags - numbers.keys()
        if undeclared:
            told = ", ".join(names[numbers[tag]] for tag in sorted(train)[:10])
            raise ValueError(
                f"Every tag of the {split} split must occur in train, but {min(undeclared)!r} does not (train has "
                f"{told}{', …' * (len(train) > 10)}). Correct it or add training rows."
            )
        for tag in sorted(tags - train):
            logger.warning(
                "Tag %r of the %s split occurs in no training row, so it cannot be learnt and counts as wrong.",
                names[numbers[tag]],
                split,
            )
    return numbers, names


def _named(train: set[Any], feature: Any, config: TransferConfig) -> tuple[dict[Any, int], tuple[str, ...]]:
    """From the data's ClassLabel, from the user, or from the sorted tags."""
    given = tuple(config.class_names or ())
    if isinstance(feature, ClassLabel):
        if given and len(given) != feature.num_classes:
            raise ValueError(
                f"`class_names` must name the {feature.num_classes} tags of the data, but names {len(given)}."
            )
        given = given or tuple(feature.names)
    if not given:
        tags = sorted(train)
        return {tag: i for i, tag in enumerate(tags)}, tuple(str(tag) for tag in tags)
    numbers = dict(enumerate(given)) if isinstance(next(iter(train)), int) else dict(zip(given, given, strict=True))
    if train - numbers.keys():
        numbered = isinstance(next(iter(train)), int)
        raise ValueError(
            f"Tags must be {f'the numbers 0 to {len(given) - 1} of' if numbered else 'among'} `class_names` "
            f"{_short(list(given))}, but the data also has {min(train - numbers.keys())!r}. Correct the tags, or name "
            "all of them."
        )
    return {tag: i for i, tag in enumerate(numbers)}, given


def known_tags(splits: DatasetDict, column: str, config: TransferConfig) -> dict[Any, int]:
    """
    The tags of a model that is trained already.

    Args:
        splits (`DatasetDict`):
            The splits, with checked lists.
        column (`str`):
            The column of tags.
        config (`TransferConfig`):
            Names the classes.

    Returns:
        `dict`: Tag -> class number.

    Raises:
        ValueError: If a tag is not among the model's classes.
    """
    flat = DatasetDict()
    for split, rows in splits.items():
        distinct = Dataset.from_dict({column: sorted(set(chain.from_iterable(rows[column])))})
        feature = getattr(rows.features[column], "feature", None)
        flat[split] = distinct.cast_column(column, feature) if feature is not None else distinct
    return known_labels(flat, column, replace(config, problem_type=SINGLE)).numbers


def marks_spans(class_names: Sequence[str]) -> bool:
    """
    Args:
        class_names (`Sequence[str]`):
            Names of the tags.

    Returns:
        `bool`: Whether they mark spans as IOB2 does: `O`, and `B-` and `I-` before the name of a type.
    """
    begins = any(name.startswith("B-") for name in class_names)
    return begins and all(name == "O" or name.startswith(("B-", "I-")) for name in class_names)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
