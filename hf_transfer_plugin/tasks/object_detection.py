"""Object detection: where things are in a picture, as boxes, and what they are."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import DatasetDict

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.config.names import BOX_FORMATS
from hf_transfer_plugin.tasks.base import Task, TaskData
from hf_transfer_plugin.tasks.boxes import Objects, are_bare, check_boxes, name_classes, picture_size, read_objects
from hf_transfer_plugin.tasks.columns import choose_columns
from hf_transfer_plugin.tasks.detecting import Batching, encode, reduce, set_up
from hf_transfer_plugin.tasks.found_boxes import answers, baseline, examples, metrics, report
from hf_transfer_plugin.tasks.media import check_media, look_at_image, media_columns, name_of
from hf_transfer_plugin.tasks.splitting import hold_out, warn_of_lost

logger = logging.getLogger(__name__)

OBJECT_COLUMNS = ("objects", "annotations", "annotation", "bboxes", "bbox", "boxes")
CLASS_COLUMNS = ("category", "categories", "label", "labels", "class", "classes")


def read(splits: DatasetDict, config: TransferConfig, seed: int) -> TaskData:
    """
    Checks the rows and brings them into the columns `image`, `width`, `height`, `boxes` (left, top, right and bottom
    in pixels) and `categories` (class numbers).

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
        ValueError: If a column is missing, or pictures, boxes or classes are unusable.
    """
    data = _read(splits, config, labelled=True)
    if config.label_column is not None and "label" not in data.columns:
        raise ValueError(
            f"`label_column` names the classes of bare boxes, but the objects in {data.columns['objects']!r} tell "
            "their own. Leave `--label_column` out."
        )
    plain, held_out = _divided(data.splits, config, seed)
    warn_of_lost(data.splits["train"], plain["train"], "categories", "class", data.class_names)
    return TaskData(
        plain, data.columns, class_names=data.class_names, held_out=held_out, options=data.options, facts=data.facts
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
            Whether the objects are wanted.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or pictures, boxes or classes are unusable.
    """
    return _read(splits, config, labelled=labelled)


def _read(splits: DatasetDict, config: TransferConfig, *, labelled: bool) -> TaskData:
    columns = choose_columns(splits, config, {"objects": OBJECT_COLUMNS}) if labelled else {}
    found, columns["image"], facts = _read_images(splits, config)
    options = {"box_format": config.box_format, "score_threshold": config.score_threshold}
    names = tuple(config.class_names or ())
    if not labelled:
        return TaskData(_plain(found, columns["image"]), columns, class_names=names, options=options, facts=facts)
    label = None
    if are_bare(found, columns["objects"]):
        label = choose_columns(found, config, {"label": CLASS_COLUMNS}, optional=("label",)).get("label")
        columns |= {} if label is None else {"label": label}
    objects, corners = {}, {}
    for split, rows in found.items():
        called = [name_of(value, number) for number, value in enumerate(rows[columns["image"]])]
        objects[split] = read_objects(split, rows, columns["objects"], label, called)
        sizes = np.stack([rows["width"], rows["height"]], 1).astype(float)
        corners[split], cut = check_boxes(split, objects[split], sizes, called, config.box_format, BOX_FORMATS)
        _tell(split, objects[split], len(rows), cut, facts)
    names, numbers = name_classes(objects, found, columns["objects"], label, names)
    plain = _plain(found, columns["image"])
    for split, rows in plain.items():
        boxes, categories = _by_row(objects[split], corners[split], numbers, len(rows))
        plain[split] = rows.add_column("boxes", boxes).add_column("categories", categories)
    return TaskData(plain, columns, class_names=names, options=options, facts=facts)


def _divided(splits: DatasetDict, config: TransferConfig, seed: int) -> tuple[DatasetDict, bool]:
    """As [`hold_out`], with the same share of pictures without objects in each part."""
    filled = [int(bool(boxes)) for boxes in splits["train"]["boxes"]]
    if all(filled):
        return hold_out(splits, config, seed)
    marked = DatasetDict({**splits, "train": splits["train"].add_column("filled", filled)})
    plain, held_out = hold_out(marked, config, seed, strata="filled", class_names=("without objects", "with objects"))
    for split, rows in plain.items():
        if "filled" in rows.column_names and not any(rows["filled"]):
            raise ValueError(
                f"The {split} split must hold objects, but none of the {len(rows)} rows drawn for it has any: of "
                f"{len(filled)} rows {sum(filled)} have objects. Give more pictures with objects, a validation split "
                "of their own, or a larger `--max_train_samples`."
            )
    return DatasetDict({
        split: rows.remove_columns("filled") if "filled" in rows.column_names else rows
        for split, rows in plain.items()
    }), held_out


def _read_images(splits: DatasetDict, config: TransferConfig) -> tuple[DatasetDict, str, dict[str, Any]]:
    """Opens every picture once; the columns `width` and `height` tell its size as it is shown."""
    found, column = media_columns(splits, config, "image")
    seen: list[tuple[int, int]] = []

    def look(value: Mapping[str, Any] | None) -> str:
        mode = look_at_image(value)
        seen.append(picture_size(value))
        return mode

    kept, told = check_media(found, column, look, role="image", skip=config.skip_unreadable)
    facts: dict[str, Any] = {"image_modes": told["kinds"]} if set(told["kinds"]) != {"RGB"} else {}
    if told["skipped"]:
        facts["skipped"] = {split: len(names) for split, names in told["skipped"].items()}
        logger.warning("Left out, since they cannot be opened: %s.", "; ".join(sum(told["skipped"].values(), [])[:10]))
    start = 0
    for split, rows in kept.items():
        sizes = seen[start : start + len(rows)]
        start += len(rows)
        rows = rows.remove_columns([name for name in ("width", "height") if name in rows.column_names])
        rows = rows.add_column("width", [width for width, _ in sizes])
        kept[split] = rows.add_column("height", [height for _, height in sizes])
    return kept, column, facts


def _plain(found: DatasetDict, column: str) -> DatasetDict:
    rows = found.select_columns([column, "width", "height"])
    return rows if column == "image" else rows.rename_column(column, "image")


def _by_row(
    objects: Objects, corners: np.ndarray, numbers: Mapping[Any, int], rows: int
) -> tuple[list[list[list[float]]], list[list[int]]]:
    boxes: list[list[list[float]]] = [[] for _ in range(rows)]
    categories: list[list[int]] = [[] for _ in range(rows)]
    for row, box, label in zip(objects.rows.tolist(), corners.tolist(), objects.labels, strict=True):
        boxes[row].append(box)
        categories[row].append(numbers[label])
    return boxes, categories


def _tell(split: str, objects: Objects, rows: int, cut: int, facts: dict[str, Any]) -> None:
    """Counts for the record: how many boxes there are, and what is unusual about them."""
    empty = rows - len(set(objects.rows.tolist()))
    counts = {
        "objects": len(objects.boxes),
        "without_objects": empty,
        "clipped_boxes": cut,
        "crowds": objects.crowds,
    }
    for name, count in counts.items():
        if count:
            facts.setdefault(name, {})[split] = count


OBJECT_DETECTION = Task(
    name="object-detection",
    auto_classes=("AutoModelForObjectDetection",),
    roles=("image", "objects", "label"),
    read=read,
    read_again=read_again,
    encode=encode,
    collator=lambda processor, data: Batching(data.outputs, data.options.get("padding", "")),
    metrics=metrics,
    report=report,
    answers=answers,
    baseline=baseline,
    examples=examples,
    best_metric=lambda data: ("map", True),
    options=("class_names", "skip_unreadable", "box_format", "score_threshold"),
    processor="AutoImageProcessor",
    reduce=reduce,
    set_up=set_up,
    arguments={
        "remove_unused_columns": False,
        "train_sampling_strategy": "random",
        "num_train_epochs": 10.0,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
    },
)
