"""Rows of pictures with masks: read, checked and named before training."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from transformers import AutoImageProcessor

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.metrics import IGNORED
from hf_transfer_plugin.tasks.base import TaskData
from hf_transfer_plugin.tasks.columns import choose_columns
from hf_transfer_plugin.tasks.image_classification import read_images
from hf_transfer_plugin.tasks.maps import COLOURS
from hf_transfer_plugin.tasks.masks import (
    FROM_ONE,
    MASK_COLUMNS,
    MOST,
    NUMBERS,
    SHOWN,
    TWO,
    VALUES,
    Looked,
    classes_of,
    look_at_masks,
    rows_with,
    values_of,
)
from hf_transfer_plugin.tasks.media import as_files
from hf_transfer_plugin.tasks.splitting import hold_out

logger = logging.getLogger(__name__)
FEW_OF = 4  # one class number of so many occurs: rather grey levels than numbers


def read(splits: DatasetDict, config: TransferConfig, seed: int) -> TaskData:
    """
    Checks the rows and brings them into the columns `image` and `label`, which holds the mask.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        seed (`int`):
            Seed of held-out and drawn rows.

    Returns:
        `TaskData`: The rows; rows whose mask labels no pixel are left out.

    Raises:
        ValueError: If a column is missing, or pictures or masks are unusable.
    """
    column = choose_columns(splits, config, {"label": MASK_COLUMNS})["label"]
    if "test" in splits and all(_is_missing(value) for value in splits["test"][column]):
        logger.warning("The test split has no masks and is left out.")
        splits = DatasetDict({split: rows for split, rows in splits.items() if split != "test"})
    plain, columns, facts = _plain(splits, config, column)
    kept, seen = _look(plain, config, column, facts)
    values = config.mask_values or _meaning(seen, config)
    if values == FROM_ONE and config.mask_values is None:
        logger.warning(
            "The image processor says `do_reduce_labels`: 0 in the masks is not labelled, and 1 is the first class. "
            "Where 0 is a class, say `--mask_values numbers`."
        )
    _warn_of_white(seen, values)
    pixels = {split: _by_class(looked.total, values) for split, looked in seen.items()}
    names = _names(kept, seen, values, config)
    kept, bare = _labelled(kept, seen, values)
    if bare:
        facts["unlabelled"] = bare
    _warn_of_missing(pixels, names)
    facts["train_pixels"] = dict(zip(names, pixels["train"].tolist(), strict=False))
    if len(names) <= len(COLOURS):
        facts["colours"] = dict(zip(names, COLOURS, strict=False))
    divided, held_out = hold_out(kept, config, seed)
    return TaskData(
        divided, columns, class_names=names, held_out=held_out, options={"mask_values": values}, facts=facts
    )


def read_again(splits: DatasetDict, config: TransferConfig, labelled: bool) -> TaskData:
    """
    As [`read`], for a trained model: the classes are those that the configuration names, and nothing is left out.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration; `mask_values` is that of the training.
        labelled (`bool`):
            Whether the masks are wanted.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or pictures or masks are unusable.
    """
    values, names = config.mask_values or NUMBERS, tuple(config.class_names or ())
    column = choose_columns(splits, config, {"label": MASK_COLUMNS})["label"] if labelled else None
    plain, columns, facts = _plain(splits, config, column)
    if column is not None:
        plain, seen = _look(plain, config, column, facts)
        _names(plain, seen, values, config)
        _warn_of_white(seen, values)
        for split, looked in seen.items():
            _require_labelled(split, int(_by_class(looked.total, values).sum()))
    return TaskData(plain, columns, class_names=names, options={"mask_values": values}, facts=facts)


def _is_missing(value: Any) -> bool:
    files = isinstance(value, Mapping)
    return value is None or (files and value.get("bytes") is None and not value.get("path"))


def _plain(
    splits: DatasetDict, config: TransferConfig, column: str | None
) -> tuple[DatasetDict, dict[str, str], dict[str, Any]]:
    """Pictures in `image`, and files of masks in `label`."""
    found, image, facts = read_images(splits, config)
    wanted = {"image": image} if column is None else {"image": image, "label": column}
    if image == column:
        raise ValueError(
            f"Pictures and masks must be two columns, but both are read from {column!r}. Name them with "
            "`--image_column` and `--label_column`."
        )
    if column is not None:
        found = as_files(found, column, config, "mask", flag="label")
    plain = {}
    for split, rows in found.items():
        rows = rows.select_columns(list(wanted.values()))
        # Both at once: one's name may be the other's role.
        plain[split] = rows.rename_columns({theirs: f"{role} " for role, theirs in wanted.items()}).rename_columns({
            f"{role} ": role for role in wanted
        })
    return DatasetDict(plain), wanted, facts


def _look(
    plain: DatasetDict, config: TransferConfig, column: str, facts: dict[str, Any]
) -> tuple[DatasetDict, dict[str, Looked]]:
    most = max(MOST, len(config.class_names or ()) + 1)
    kept, seen, skipped = look_at_masks(plain, column, most=most, skip=config.skip_unreadable)
    for split, left_out in skipped.items():
        logger.warning("Left out, since their masks cannot be read: %s.", "; ".join(left_out[:10]))
        known = facts.setdefault("skipped", {})
        known[split] = known.get(split, 0) + len(left_out)
    return kept, seen


def _meaning(seen: Mapping[str, Looked], config: TransferConfig) -> str:
    """What the pixels hold, where the user does not say it."""
    held = {value for looked in seen.values() for value in np.flatnonzero(looked.total).tolist()}
    if held == {0, IGNORED}:
        return TWO
    try:
        folder = Path(config.model).expanduser()
        processor = AutoImageProcessor.from_pretrained(
            str(folder) if folder.is_dir() else config.model,
            revision=config.model_revision or "main",
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError, KeyError, ImportError):
        return NUMBERS  # it is loaded again, and what is wrong is told then
    return FROM_ONE if getattr(processor, "do_reduce_labels", False) else NUMBERS


def _by_class(total: np.ndarray, values: str) -> np.ndarray:
    """Pixels of each class, of pixels of each value."""
    found = np.zeros(VALUES, np.int64)
    np.add.at(found, classes_of(np.arange(VALUES, dtype=np.uint8), values), total)
    return found[:IGNORED]


def _names(splits: DatasetDict, seen: Mapping[str, Looked], values: str, config: TransferConfig) -> tuple[str, ...]:
    """Names of the classes: as given, or what the masks hold."""
    if values == TWO:
        _refuse_between(splits, seen)
    counts = sum(_by_class(looked.total, values) for looked in seen.values())
    held = np.flatnonzero(counts)
    if config.class_names is None:
        count = int(held.max()) + 1 if len(held) else 0
        names = tuple(str(value) for value in values_of(np.arange(count, dtype=np.uint8), values))
        if len(names) < 2:
            raise ValueError(
                f"Masks must hold at least two classes, but hold {', '.join(names) or 'none'}"
                f"{' (0 and 255 are not labelled)' if values == FROM_ONE else ' (255 is not labelled)'}. If that is "
                "not what they mean, say `--mask_values numbers`, `numbers-from-1` or `0-and-255`."
            )
        return names
    names = tuple(config.class_names)
    beyond = values_of(held[held >= len(names)].astype(np.uint8), values)
    if len(beyond):
        split, rows = next((s, found) for s in splits if (found := rows_with(splits[s], seen[s], beyond)))
        raise ValueError(
            f"Class numbers must fit the {len(names)} class names ({', '.join(names[:SHOWN])}, …; `--mask_values "
            f"{values}`), but {len(rows)} masks in the {split} split hold {', '.join(map(str, beyond[:SHOWN]))} "
            f"({', '.join(rows[:SHOWN])}). Name all classes with `--class_names`, or mend the masks."
        )
    return names


def _refuse_between(splits: DatasetDict, seen: Mapping[str, Looked]) -> None:
    between = np.arange(2, IGNORED)
    for split, rows in splits.items():
        if bad := rows_with(rows, seen[split], between):
            found = np.flatnonzero(seen[split].total[2:IGNORED]) + 2
            raise ValueError(
                f"Masks must hold 0 and 255 (or 1) alone (`--mask_values {TWO}`), but {len(bad)} of {len(rows)} in "
                f"the {split} split hold {', '.join(map(str, found[:SHOWN]))} ({', '.join(bad[:SHOWN])}). Blurred "
                "edges come from resizing masks like photos: make them black or white again. For other classes say "
                "`--mask_values numbers`."
            )


def _labelled(splits: DatasetDict, seen: Mapping[str, Looked], values: str) -> tuple[DatasetDict, dict[str, int]]:
    """The rows whose masks label something, from which alone can be learnt, and how many others there were."""
    kept, bare = {}, {}
    for split, rows in splits.items():
        classes = [classes_of(held.astype(np.uint8), values) for held in seen[split].held]
        good = [number for number, known in enumerate(classes) if (known != IGNORED).any()]
        _require_labelled(split, len(good))
        kept[split] = rows if len(good) == len(rows) else rows.select(good)
        if len(good) < len(rows):
            bare[split] = len(rows) - len(good)
            logger.warning("%d masks of the %s split label no pixel; their rows are left out.", bare[split], split)
    return DatasetDict(kept), bare


def _require_labelled(split: str, found: int) -> None:
    if not found:
        raise ValueError(
            f"The {split} split must hold labelled pixels, but every mask is empty (255, or 0 with `--mask_values "
            "numbers-from-1`, is not labelled). Give masks with class numbers, or say with `--mask_values` what they "
            "hold."
        )


def _warn_of_white(seen: Mapping[str, Looked], values: str) -> None:
    for split, looked in seen.items():
        if values != TWO and np.flatnonzero(looked.total).tolist() == [0, IGNORED]:
            logger.warning(
                "The masks of the %s split hold 0 and 255 alone, and 255 is read as not labelled (`--mask_values "
                "%s`). Where it is a class, give all masks the same values.",
                split,
                values,
            )


def _warn_of_missing(pixels: Mapping[str, np.ndarray], names: tuple[str, ...]) -> None:
    lost = [name for name, count in zip(names, pixels["train"], strict=False) if not count]
    if not lost:
        return
    found = len(names) - len(lost)
    hint = " If the masks hold grey levels, number the classes 0, 1, 2 …" if found * FEW_OF < len(names) else ""
    logger.warning(
        "Of %d classes, %d occur in no training mask, so that they cannot be learnt (%s%s).%s",
        len(names),
        len(lost),
        ", ".join(lost[:10]),
        ", …" * (len(lost) > 10),
        hint,
    )
