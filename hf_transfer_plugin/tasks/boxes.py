"""Objects in rows: boxes with classes, in the shapes that data sets have, checked against the size of the picture."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from PIL import Image as Pillow

from hf_transfer_plugin.tasks.media import source_of

BOX_KEYS = ("bbox", "bboxes", "box", "boxes")
CLASS_KEYS = ("category", "categories", "label", "labels", "class", "classes", "category_id", "class_id", "name")
CROWD_KEY = "iscrowd"  # of COCO: one box around many things, which is no object
TOLERANCE = 1.0  # pixels by which rounding may put a box outside
NOTABLE = 0.01  # pixels; less is rounding of 32-bit numbers, and nothing to tell
TOLD = 3  # rows that an error names
ORIENTATION, LYING = (
    0x0112,
    (5, 6, 7, 8),
)  # a tag of cameras, and its values for pictures that they turned by a quarter


@dataclass(frozen=True)
class Objects:
    """
    The objects of a split as they lie in its rows.

    Args:
        boxes (`np.ndarray` of shape `(objects, 4)`):
            Boxes, of all rows one behind another.
        labels (`list`):
            Their classes, raw.
        rows (`np.ndarray` of shape `(objects,)`):
            Row of each.
        crowds (`int`):
            Boxes around crowds, which were left out.
    """

    boxes: np.ndarray
    labels: list[Any]
    rows: np.ndarray
    crowds: int = 0


def read_objects(split: str, rows: Dataset, column: str, label_column: str | None, names: Sequence[str]) -> Objects:
    """
    Reads the objects of a split: an object of lists, a list of objects, or lists of boxes with classes in a column of
    their own; either may be written as JSON.

    Args:
        split (`str`):
            Name of the split.
        rows (`Dataset`):
            Its rows.
        column (`str`):
            Column of the objects.
        label_column (`str`, *optional*):
            Column of the classes, where the objects are bare boxes.
        names (`Sequence[str]`):
            What an error calls each row.

    Returns:
        `Objects`: Boxes and classes. A row without objects has none.

    Raises:
        ValueError: If boxes or classes are missing, or a row has more of the one than of the other.
    """
    beside = [None] * len(rows) if label_column is None else rows[label_column]
    boxes, labels, owners, bad, crowds = [], [], [], [], 0
    for number, (value, other) in enumerate(zip(rows[column], beside, strict=True)):
        found, classes, crowd = _parts(_read(value), _read(other), column)
        if len(found) != len(classes):
            bad.append(f"{names[number]}: {len(found)} boxes, {len(classes)} classes")
            continue
        if crowd and len(crowd) != len(found):
            bad.append(f"{names[number]}: {len(found)} boxes, {len(crowd)} values of `{CROWD_KEY}`")
            continue
        kept = [place for place in range(len(found)) if not (crowd and crowd[place])]
        crowds += len(found) - len(kept)
        boxes += [found[place] for place in kept]
        labels += [classes[place] for place in kept]
        owners += [number] * len(kept)
    _refuse(
        split,
        bad,
        f"Every row must have a class for each box, and `{CROWD_KEY}` for each or for none",
        "Mend these rows, or name other columns with `--objects_column`",
    )
    wrong = sorted({names[row] for box, row in zip(boxes, owners, strict=True) if not _is_box(box)})
    _refuse(split, wrong, "Every box must be four finite numbers", "Mend or remove these rows")
    array = np.asarray(boxes, float).reshape(-1, 4)
    return Objects(array, labels, np.asarray(owners, int), crowds)


def _read(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _parts(value: Any, beside: Any, column: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Boxes, classes and crowd marks of one row."""
    if value is None or (isinstance(value, (list, tuple)) and not value):
        # A class of the picture itself says nothing about boxes where there are none.
        return [], list(beside) if isinstance(beside, (list, tuple)) else [], []
    if isinstance(value, Mapping):
        return _of_mapping(value, column)
    if isinstance(value, (list, tuple)) and all(isinstance(one, Mapping) for one in value):
        # Objects of JSON need not have the same keys.
        return _of_mapping({key: [one.get(key) for one in value] for key in set().union(*value)}, column)
    if isinstance(value, (list, tuple)) and beside is not None:
        return list(value), list(beside) if isinstance(beside, (list, tuple)) else [beside] * len(value), []
    raise ValueError(
        f'The column {column!r} must hold objects such as {{"bbox": [[x, y, width, height]], "category": ["cat"]}}, '
        f"a list of such with one box each, or boxes with a column of classes beside them, but holds {value!r:.80}. "
        "Name another with `--objects_column`, and the classes with `--label_column`."
    )


def are_bare(splits: DatasetDict, column: str) -> bool:
    """
    Args:
        splits (`DatasetDict`):
            The splits.
        column (`str`):
            Column of the objects.

    Returns:
        `bool`: Whether it holds boxes alone, whose classes stand in a column of their own.
    """
    first = next((value for rows in splits.values() for value in map(_read, rows[column]) if value), None)
    return isinstance(first, (list, tuple)) and not isinstance(first[0], Mapping)


def _of_mapping(value: Mapping[str, Any], column: str) -> tuple[list[Any], list[Any], list[Any]]:
    boxes = next((key for key in BOX_KEYS if key in value), None)
    label = next((key for key in CLASS_KEYS if key in value), None)
    if boxes is None or label is None:
        missing = f"boxes ({', '.join(BOX_KEYS)})" if boxes is None else f"classes ({', '.join(CLASS_KEYS)})"
        raise ValueError(f"The objects in {column!r} must have {missing}, but have {', '.join(sorted(value))}.")
    return list(value[boxes] or []), list(value[label] or []), list(value.get(CROWD_KEY) or [])


def _is_box(box: Any) -> bool:
    numbers = isinstance(box, (list, tuple)) and len(box) == 4
    return numbers and all(isinstance(v, (int, float)) and not isinstance(v, bool) and np.isfinite(v) for v in box)


def picture_size(value: Mapping[str, Any] | None) -> tuple[int, int]:
    """
    Args:
        value (`Mapping`):
            `{"bytes", "path"}` of a picture.

    Returns:
        `tuple[int, int]`: Its width and height as it is shown, turned as its camera says.
    """
    with Pillow.open(source_of(value)) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(ORIENTATION) in LYING else (width, height)


def as_corners(boxes: np.ndarray, sizes: np.ndarray, box_format: str) -> np.ndarray:
    """
    Args:
        boxes (`np.ndarray` of shape `(objects, 4)`):
            Boxes.
        sizes (`np.ndarray` of shape `(objects, 2)`):
            Width and height of the picture of each.
        box_format (`str`):
            `"xywh"`: left, top, width and height in pixels, as COCO; `"xyxy"`: left, top, right and bottom in pixels,
            as Pascal VOC; `"yolo"`: centre, width and height, as shares of the picture.

    Returns:
        `np.ndarray` of shape `(objects, 4)`: Left, top, right and bottom in pixels.
    """
    if box_format == "xyxy":
        return boxes.copy()
    first, extent = boxes[:, :2], boxes[:, 2:]
    if box_format == "yolo":
        first, extent = (first - extent / 2) * sizes, extent * sizes
    return np.concatenate([first, first + extent], 1)


def _faults(corners: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes are empty or turned round, and which lie outside by more than rounding."""
    empty = np.any(corners[:, 2:] <= corners[:, :2], axis=1)
    outside = np.any(corners[:, :2] < -TOLERANCE, axis=1) | np.any(corners[:, 2:] > sizes + TOLERANCE, axis=1)
    return np.asarray(empty), np.asarray(outside)


def check_boxes(
    split: str, found: Objects, sizes: np.ndarray, names: Sequence[str], box_format: str, formats: Iterable[str]
) -> tuple[np.ndarray, int]:
    """
    Brings boxes into corners, and refuses what cannot be one.

    Args:
        split (`str`):
            Name of the split.
        found (`Objects`):
            The objects.
        sizes (`np.ndarray` of shape `(rows, 2)`):
            Width and height of each picture, as it is shown.
        names (`Sequence[str]`):
            What an error calls each row.
        box_format (`str`):
            How the boxes are written.
        formats (`Iterable[str]`):
            What else they might be.

    Returns:
        `tuple[np.ndarray, int]`: Left, top, right and bottom of each box in pixels, and how many reached out of the
        picture by rounding and were cut.

    Raises:
        ValueError: If there is no box at all, or boxes are empty, turned round, outside, or look like another format.
    """
    if not len(found.boxes):
        raise ValueError(
            f"The {split} split must hold objects, but all its {len(sizes)} pictures are without. Name another column "
            "with `--objects_column`, or add pictures with objects."
        )
    own = sizes[found.rows]
    if box_format != "yolo" and found.boxes.max() <= 1 and sizes.max() > 2:
        raise ValueError(
            f"Boxes must be in pixels (`--box_format {box_format}`), but those of the {split} split lie between 0 and "
            f"1: {_listed(found.boxes[0])} in {names[found.rows[0]]}. {_fitting(found, own, box_format, formats)}"
        )
    corners = as_corners(found.boxes, own, box_format)
    hint = _fitting(found, own, box_format, formats)
    for fault, what in zip(
        _faults(corners, own),
        ("Every box must have a width and a height above 0", "Every box must lie inside its picture"),
        strict=True,
    ):
        told = [
            f"{names[row]}: {_listed(box)} in {width:.0f} x {height:.0f} pixels"
            for box, row, (width, height) in zip(found.boxes[fault], found.rows[fault], own[fault], strict=True)
        ]
        _refuse(split, told, f"{what} (read as `--box_format {box_format}`)", hint.rstrip("."))
    inside = np.clip(corners, 0, np.concatenate([own, own], 1))
    empty, _ = _faults(inside, own)
    told = [f"{names[row]}: {_listed(box)}" for box, row in zip(found.boxes[empty], found.rows[empty], strict=True)]
    _refuse(split, told, "Every box must lie inside its picture", "Mend or remove these rows")
    return inside, int((np.abs(inside - corners) > NOTABLE).any(1).sum())


def _fitting(found: Objects, sizes: np.ndarray, box_format: str, formats: Iterable[str]) -> str:
    """What to do, told by the format that all boxes would fit."""
    for other in formats:
        corners = as_corners(found.boxes, sizes, other)
        pixels = other == "yolo" or found.boxes.max() > 1
        if other != box_format and pixels and not any(fault.any() for fault in _faults(corners, sizes)):
            return f"All boxes of the split would fit `--box_format {other}`."
    return "Mend or remove these rows: boxes are meant for the picture as it is shown, turned as its camera says."


def _listed(box: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"


def _refuse(split: str, bad: Sequence[str], wanted: str, advice: str) -> None:
    if bad:
        raise ValueError(
            f"{wanted}, but {len(bad)} of the {split} split {'is' if len(bad) == 1 else 'are'} otherwise "
            f"({'; '.join(bad[:TOLD])}{'; …' * (len(bad) > TOLD)}). {advice}."
        )


def name_classes(
    found: Mapping[str, Objects], splits: DatasetDict, column: str, label_column: str | None, given: Sequence[str]
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """
    Args:
        found (`Mapping[str, Objects]`):
            Split -> its objects.
        splits (`DatasetDict`):
            The splits, whose features may name the classes.
        column (`str`):
            Column of the objects.
        label_column (`str`, *optional*):
            Column of the classes, where they have their own.
        given (`Sequence[str]`):
            Names that the configuration gives; empty without.

    Returns:
        `tuple[tuple[str, ...], dict]`: Names in the order of their numbers, and raw class -> number.

    Raises:
        ValueError: If classes are missing, of mixed kinds, or none of those given.
    """
    # Before they are compared: lists cannot be.
    kinds = {type(label).__name__ for objects in found.values() for label in objects.labels}
    if not kinds <= {"str"} and not kinds <= {"int"}:
        raise ValueError(
            f"The classes of objects in {column!r} must be all names or all whole numbers, but are of the types "
            f"{', '.join(sorted(kinds))}. Mend or remove such rows."
        )
    raw = {label for objects in found.values() for label in objects.labels}
    label = _class_label(splits["train" if "train" in splits else next(iter(splits))].features[label_column or column])
    if label is None:
        own = {value: str(value) for value in sorted(raw)}
    else:
        own = {number: name for number, name in enumerate(label.names)} | {name: name for name in label.names}
    names = tuple(given) or tuple(label.names if label is not None else own.values())
    numbers = {value: names.index(own[value]) for value in own if own[value] in names}
    if given and label is None and not (numbers.keys() & raw):
        numbers = {value: value for value in raw if isinstance(value, int) and 0 <= value < len(names)}
    unknown = sorted(raw - numbers.keys(), key=str)
    if unknown:
        raise ValueError(
            f"The classes of objects in {column!r} must be among {', '.join(names[:20])}, but the data has "
            f"{', '.join(map(repr, unknown[:5]))}. Leave such objects out, or name all classes with `--class_names`."
        )
    return names, numbers


def _class_label(feature: Any) -> ClassLabel | None:
    """Names of the classes, wherever they stand in a feature."""
    if isinstance(feature, ClassLabel):
        return feature if feature.names else None
    if isinstance(feature, Mapping):
        chosen = next((feature[key] for key in CLASS_KEYS if key in feature), None)
        return _class_label(chosen)
    inner = getattr(feature, "feature", None)
    return None if inner is None else _class_label(inner)
