"""Masks in rows: pictures whose pixels hold class numbers, opened and refused before training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from PIL import Image as Pillow
from PIL import ImageOps

from hf_transfer_plugin.metrics import IGNORED
from hf_transfer_plugin.tasks.media import check_media, name_of, source_of

NUMBERS, FROM_ONE, TWO = "numbers", "numbers-from-1", "0-and-255"
MASK_COLUMNS = ("mask", "segmentation_mask", "annotation", "segmentation", "label", "labels")
VALUES = 256
MOST = 100  # values of one mask, from which on it is rather a photo
ORIENTATION = 0x0112  # EXIF's tag of how the camera was held
SIDEWAYS = (5, 6, 7, 8)
SHOWN = 3


def read_mask(value: Mapping[str, Any] | None) -> np.ndarray:
    """
    Opens a mask, turned as its EXIF says.

    Args:
        value (`Mapping`):
            `{"bytes", "path"}`.

    Returns:
        `np.ndarray` of `uint8` of shape `(height, width)`: What its pixels hold.

    Raises:
        ValueError: If it is missing, in colours, lossy, or its numbers are above 255.
        OSError: If it cannot be read.
    """
    with Pillow.open(source_of(value)) as image:
        if image.format == "JPEG":
            raise ValueError("it is a JPEG, which blurs class numbers; save masks as PNG")
        return _numbers(ImageOps.exif_transpose(image))


def _numbers(image: Pillow.Image) -> np.ndarray:
    if image.mode in ("1", "L", "P"):
        return np.asarray(image).astype(np.uint8)
    values = np.asarray(image)
    if image.mode in ("LA", "RGB", "RGBA"):
        colours = values[..., : 1 if image.mode == "LA" else 3]
        clear = image.mode != "RGB" and (values[..., -1] != IGNORED).any()
        # Some tools save grey masks with three channels that hold the same.
        if not clear and (colours == colours[..., :1]).all():
            return colours[..., 0].copy()
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        if values.min() >= 0 and values.max() < VALUES:
            return values.astype(np.uint8)
        raise ValueError(f"class numbers go up to 254, but it holds {values.min()} to {values.max()}")
    raise ValueError(
        f"it is in colours or transparent (its mode is {image.mode}); give each colour its class number, and save it "
        "with one channel (mode L or P)"
    )


def classes_of(mask: np.ndarray, values: str) -> np.ndarray:
    """
    Args:
        mask (`np.ndarray` of `uint8`):
            What pixels hold.
        values (`str`):
            What it stands for, as `mask_values` in [`TransferConfig`].

    Returns:
        `np.ndarray` of `uint8` of the same shape: Class numbers; 255 is not labelled.
    """
    if values == TWO:
        return np.where(mask == IGNORED, 1, mask).astype(np.uint8)
    if values == FROM_ONE:
        return np.where(mask == IGNORED, IGNORED, mask - np.uint8(1)).astype(np.uint8)  # 0 - 1 is 255 here
    return mask


def values_of(classes: np.ndarray, values: str) -> np.ndarray:
    """
    Args:
        classes (`np.ndarray` of `uint8`):
            Class numbers.
        values (`str`):
            As in [`classes_of`].

    Returns:
        `np.ndarray` of `uint8` of the same shape: What a mask of them holds.
    """
    if values == TWO:
        return np.where(classes == 1, IGNORED, classes).astype(np.uint8)
    return (classes + np.uint8(1)).astype(np.uint8) if values == FROM_ONE else classes


def resized(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Args:
        classes (`np.ndarray` of `uint8` of shape `(height, width)`):
            Class numbers.
        size (`tuple[int, int]`):
            Width and height.

    Returns:
        `np.ndarray` of `uint8` of shape `size`, turned round: Of each pixel the class nearest to its middle.
    """
    return np.array(Pillow.fromarray(classes).resize(size, Pillow.Resampling.NEAREST))


@dataclass
class Looked:
    """
    What was seen of the masks of a split, row by row.

    Args:
        most (`int`):
            Different values that a mask may hold.
        sizes (`list[tuple[int, int]]`, *optional*):
            Width and height of each.
        turns (`list[int]`, *optional*):
            EXIF's orientation of each; 1 where it tells none.
        held (`list[np.ndarray]`, *optional*):
            Of each the values that it holds.
        total (`np.ndarray`, *optional*):
            Pixels of every value, of all rows.
    """

    most: int = MOST
    sizes: list[tuple[int, int]] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    held: list[np.ndarray] = field(default_factory=list)
    total: np.ndarray = field(default_factory=lambda: np.zeros(VALUES, np.int64))

    def __call__(self, value: Mapping[str, Any] | None) -> str:
        """
        Args:
            value (`Mapping`):
                A mask: `{"bytes", "path"}`.

        Returns:
            `str`: `"mask"`: there is nothing else to count.

        Raises:
            ValueError: If it is no mask.
            OSError: If it cannot be read.
        """
        mask = read_mask(value)
        counts = np.bincount(mask.ravel(), minlength=VALUES)
        held = np.flatnonzero(counts)
        if len(held) > self.most:
            raise ValueError(f"it holds {len(held)} different values, as a photo does, and no class numbers")
        self.sizes.append((mask.shape[1], mask.shape[0]))
        self.turns.append(size_and_turn(value)[1])
        self.held.append(held)
        self.total += counts
        return "mask"


def size_and_turn(value: Mapping[str, Any] | None) -> tuple[tuple[int, int], int]:
    """
    Args:
        value (`Mapping`):
            A picture: `{"bytes", "path"}`.

    Returns:
        `tuple[tuple[int, int], int]`: Width and height as it is shown, and EXIF's orientation, 1 for upright.
    """
    with Pillow.open(source_of(value)) as image:
        turn = image.getexif().get(ORIENTATION, 1)
        return (image.size[::-1] if turn in SIDEWAYS else image.size), turn if 1 < turn <= max(SIDEWAYS) else 1


def look_at_masks(
    splits: DatasetDict, column: str, *, most: int, skip: bool
) -> tuple[DatasetDict, dict[str, Looked], dict[str, list[str]]]:
    """
    Opens every mask once, and asks that it fits its picture.

    Args:
        splits (`DatasetDict`):
            Pictures in the column `image`, and masks in `label`.
        column (`str`):
            What the data calls the column of masks.
        most (`int`):
            Different values that a mask may hold.
        skip (`bool`):
            Go on without masks that cannot be read.

    Returns:
        `tuple`: The splits, what was seen, and the names of what was left out, by split.

    Raises:
        ValueError: If masks cannot be read, or do not fit their pictures.
    """
    kept: dict[str, Dataset] = {}
    seen: dict[str, Looked] = {}
    skipped: dict[str, list[str]] = {}
    for split, rows in splits.items():
        looked = Looked(most)
        named = DatasetDict({split: rows.rename_column("label", column) if column != "label" else rows})
        found, told = check_media(named, column, looked, role="mask", skip=skip)
        kept[split] = found[split].rename_column(column, "label") if column != "label" else found[split]
        seen[split] = looked
        skipped |= told["skipped"]
        _check_fit(split, kept[split], looked)
    return DatasetDict(kept), seen, skipped


def _check_fit(split: str, rows: Dataset, looked: Looked) -> None:
    """Asks that masks have the size of their pictures, and are turned like these."""
    bad, turned = [], []
    for number, row in enumerate(rows):
        size, turn = size_and_turn(row["image"])
        mask, other = looked.sizes[number], looked.turns[number]
        name = name_of(row["image"], number)
        # Where turning makes the sizes fit, the mask was drawn on the turned picture.
        drawn = other == 1 and turn in SIDEWAYS and size[0] != size[1]
        if turn != other and not (drawn and size == mask):
            turned.append(name)
        elif size != mask:
            bad.append(f"{name} is {size[0]} x {size[1]}, its mask {mask[0]} x {mask[1]}")
    if turned:
        raise ValueError(
            f"A picture and its mask must be turned alike, but EXIF turns {len(turned)} of {len(rows)} pictures in "
            f"the {split} split ({', '.join(turned[:SHOWN])}) otherwise than their masks. Save the pictures turned, "
            "without that tag, in the way in which the masks were drawn."
        )
    if bad:
        raise ValueError(
            f"A mask must have the size of its picture, but {len(bad)} of {len(rows)} in the {split} split have not "
            f"({'; '.join(bad[:SHOWN])}, in pixels of width x height). Give each picture its own mask."
        )


def rows_with(rows: Dataset, looked: Looked, wanted: np.ndarray) -> list[str]:
    """
    Args:
        rows (`Dataset`):
            Rows of a split.
        looked (`Looked`):
            What was seen of their masks.
        wanted (`np.ndarray`):
            Values of pixels.

    Returns:
        `list[str]`: Names of the masks that hold one of them.
    """
    found = [number for number, held in enumerate(looked.held) if np.isin(held, wanted).any()]
    return [name_of(value, number) for number, value in zip(found, rows.select(found)["label"], strict=True)]
