"""Rows held out for validation, and training rows drawn, both by seed."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import DatasetDict
from sklearn.model_selection import train_test_split

from hf_transfer_plugin.config import TransferConfig

logger = logging.getLogger(__name__)


def hold_out(
    splits: DatasetDict, config: TransferConfig, seed: int, *, strata: str | None = None
) -> tuple[DatasetDict, bool]:
    """
    Makes the validation split where there is none, and draws training rows where fewer are wanted.

    Args:
        splits (`DatasetDict`):
            The checked rows.
        config (`TransferConfig`):
            `validation_fraction` and `max_train_samples`.
        seed (`int`):
            Seed of the draws.
        strata (`str`, *optional*):
            Column of class numbers to stratify by.

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
        _, drawn = _draw(len(train), config.max_train_samples, seed, strata and train[strata])
        plain["train"] = train.select(drawn)
    return plain, held_out


def _draw(rows: int, size: float, seed: int, labels: Sequence[Any] | None) -> tuple[list[int], list[int]]:
    """Row numbers kept and drawn; stratified by class where every class has two rows or more."""
    numbers = np.arange(rows)
    labels = None if labels is None else list(labels)
    strata = labels if labels is not None and min(np.bincount(labels)[np.unique(labels)]) > 1 else None
    try:
        kept, drawn = train_test_split(numbers, test_size=size, random_state=seed, stratify=strata)
    except ValueError:
        if strata is None:
            raise ValueError(f"{rows} rows are too few to draw {size} of them; give a validation split.") from None
        logger.warning("Too few rows for a stratified draw of %s; drawing at random.", size)
        kept, drawn = train_test_split(numbers, test_size=size, random_state=seed)
    return sorted(kept.tolist()), sorted(drawn.tolist())
