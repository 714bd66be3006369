"""Rows held out for validation, and training rows drawn, both by seed."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.model_selection import train_test_split

from hf_transfer_plugin.config import TransferConfig

logger = logging.getLogger(__name__)


def hold_out(
    splits: DatasetDict,
    config: TransferConfig,
    seed: int,
    *,
    strata: str | None = None,
    class_names: Sequence[str] = (),
) -> tuple[DatasetDict, bool]:
    """
    Makes the validation split where there is none, and draws training rows where fewer are wanted. With `strata`, a
    class of a single row stays in train, and classes that train has no longer are told in a warning.

    Args:
        splits (`DatasetDict`):
            The checked rows.
        config (`TransferConfig`):
            `validation_fraction` and `max_train_samples`.
        seed (`int`):
            Seed of the draws.
        strata (`str`, *optional*):
            Column of class numbers to stratify by.
        class_names (`Sequence[str]`, *optional*):
            Names of the classes, for the warning.

    Returns:
        `tuple[DatasetDict, bool]`: The splits, and whether validation was held out of train.

    Raises:
        ValueError: If there are too few rows.
    """
    plain = DatasetDict(splits)
    held_out = "validation" not in plain and config.validation_fraction > 0
    if held_out:
        train = plain["train"]
        kept, out = _draw(len(train), config.validation_fraction, seed, strata and train[strata])
        plain["validation"], plain["train"] = train.select(out), train.select(kept)
    if config.max_train_samples is not None and config.max_train_samples < len(plain["train"]):
        train = plain["train"]
        _, drawn = _draw(len(train), config.max_train_samples, seed, strata and train[strata], with_lone=True)
        plain["train"] = train.select(drawn)
    if strata:
        warn_of_lost(splits["train"], plain["train"], strata, "class", class_names)
    return plain, held_out


def hold_out_groups(splits: DatasetDict, config: TransferConfig, seed: int, column: str) -> tuple[DatasetDict, bool]:
    """
    As [`hold_out`], but rows with the same value of a column stay together, if there are values enough: what is asked
    about something that was learnt is easier.

    Args:
        splits (`DatasetDict`):
            The checked rows.
        config (`TransferConfig`):
            `validation_fraction` and `max_train_samples`.
        seed (`int`):
            Seed of the draws.
        column (`str`):
            The column.

    Returns:
        `tuple[DatasetDict, bool]`: The splits, and whether validation was held out of train.

    Raises:
        ValueError: If there are too few rows.
    """
    values = list(dict.fromkeys(splits["train"][column]))
    if "validation" in splits or len(values) * config.validation_fraction < 1:
        return hold_out(splits, config, seed)
    single = DatasetDict({"train": Dataset.from_dict({column: values})})
    drawn, held_out = hold_out(single, replace(config, max_train_samples=None), seed)
    chosen, rows = set(drawn["validation"][column]), splits["train"]
    parts: dict[bool, list[int]] = {True: [], False: []}
    for number, value in enumerate(rows[column]):
        parts[value in chosen].append(number)
    divided = DatasetDict({**splits, "train": rows.select(parts[False]), "validation": rows.select(parts[True])})
    return hold_out(divided, config, seed)[0], held_out


def warn_of_lost(before: Dataset, after: Dataset, column: str, kind: str, names: Sequence[str] = ()) -> None:
    """
    Tells in a warning which classes or tags the training rows have no longer.

    Args:
        before (`Dataset`):
            The training rows before validation was held out and rows were drawn.
        after (`Dataset`):
            The training rows that are left.
        column (`str`):
            Column of numbers, or of lists of numbers.
        kind (`str`):
            What a number stands for.
        names (`Sequence[str]`, *optional*):
            Names in the order of the numbers.
    """
    if len(before) == len(after):
        return
    lost = sorted(_numbers(before, column) - _numbers(after, column))
    if lost:
        told = ", ".join(repr(names[number]) if names else str(number) for number in lost[:10])
        logger.warning(
            "%s %s%s occurs in no training row after the split, so it cannot be learnt. Give more training rows with "
            "it, or a validation split of their own.",
            kind,
            told,
            ", …" * (len(lost) > 10),
        )


def _numbers(rows: Dataset, column: str) -> set[int]:
    values = list(rows[column])
    return set(chain.from_iterable(values)) if values and isinstance(values[0], list) else set(values)


def _draw(
    rows: int, size: float, seed: int, labels: Sequence[Any] | None, *, with_lone: bool = False
) -> tuple[list[int], list[int]]:
    """
    Row numbers kept and drawn, stratified by class. The only row of a class is kept, or drawn `with_lone`, as far as
    there are rows enough.
    """
    numbers = np.arange(rows)
    attempts: list[tuple[np.ndarray, float, np.ndarray | None]] = [(numbers, size, None)]
    if labels is not None:
        classes = np.asarray(list(labels))
        lone = (np.bincount(classes) == 1)[classes]
        whole = math.ceil(size * rows) if isinstance(size, float) else size
        count = whole - int(lone.sum()) * with_lone if lone.any() else size
        attempts = [(numbers[~lone], count, classes[~lone]), (numbers[~lone], count, None), *attempts]
    for number, (others, count, strata) in enumerate(attempts):
        try:
            kept, drawn = train_test_split(others, test_size=count, random_state=seed, stratify=strata)
        except ValueError:
            continue
        if number:
            logger.warning("Too few rows for a stratified draw of %s; drawing at random.", size)
        apart = np.setdiff1d(numbers, others)
        kept, drawn = (kept, np.append(drawn, apart)) if with_lone else (np.append(kept, apart), drawn)
        return sorted(kept.tolist()), sorted(drawn.tolist())
    raise ValueError(f"{rows} rows are too few to draw {size} of them; give a validation split.")
