"""Boxes that a detector found: measured, told row by row, drawn on the picture, and what beats none."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from PIL import Image as Pillow
from PIL import ImageDraw

from hf_transfer_plugin.metrics.detection import average_precision, match_boxes
from hf_transfer_plugin.tasks.base import Outcome, TaskData
from hf_transfer_plugin.tasks.media import image_uri, picture_uri, read_image

THUMBNAIL = 192  # pixels of the longer side of a drawn picture, in a table
RIGHT, INVENTED, MISSED = "#008a4f", "#d1242f", "#f2b705"  # also told apart by brightness
NAMED = 6  # objects of a picture that a table names


def found_boxes(outcome: Outcome) -> list[dict[str, np.ndarray]]:
    """
    Args:
        outcome (`Outcome`):
            What the model gave, of shape `(rows, boxes, 6)`: class, score, and corners as shares of the picture.

    Returns:
        `list[dict[str, np.ndarray]]`: Of each row `boxes` in pixels of the picture, `scores` and `labels`.
    """
    given = np.asarray(outcome.predictions, float)
    sizes = zip(outcome.rows["width"], outcome.rows["height"], strict=True)
    return [
        {"labels": row[:, 0].astype(int), "scores": row[:, 1], "boxes": row[:, 2:] * np.array([*size, *size])}
        for row, size in zip(given, sizes, strict=True)
    ]


def given_boxes(rows: Dataset) -> list[dict[str, np.ndarray]]:
    """
    Args:
        rows (`Dataset`):
            Checked rows.

    Returns:
        `list[dict[str, np.ndarray]]`: Of each row `boxes` in pixels, and `labels`.
    """
    return [
        {"boxes": np.asarray(boxes, float).reshape(-1, 4), "labels": np.asarray(labels, int)}
        for boxes, labels in zip(rows["boxes"], rows["categories"], strict=True)
    ]


def sure(found: Mapping[str, np.ndarray], threshold: float) -> dict[str, np.ndarray]:
    """
    Args:
        found (`Mapping[str, np.ndarray]`):
            Boxes of a picture.
        threshold (`float`):
            How sure the model must be.

    Returns:
        `dict[str, np.ndarray]`: Those of which it is surer.
    """
    kept = found["scores"] > threshold
    return {name: values[kept] for name, values in found.items()}


def metrics(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Names the classes.
        outcome (`Outcome`):
            What the model gave.

    Returns:
        `dict[str, float]`: `map`, `map_50`, `map_75` and `mar_100`, see [`average_precision`]; nothing where the
        objects are not known.
    """
    if "boxes" not in outcome.rows.column_names:
        return {}
    return _headline(average_precision(found_boxes(outcome), given_boxes(outcome.rows), data.outputs))


def _headline(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in found.items() if isinstance(value, float)}


def report(data: TaskData, outcome: Outcome, count: int) -> dict[str, Any]:
    """
    Args:
        data (`TaskData`):
            Names the classes, and the score from which a box is an answer.
        outcome (`Outcome`):
            What the model gave.
        count (`int`):
            Rows in each list at most.

    Returns:
        `dict[str, Any]`: `per_class`: average precision, and precision, recall and F1 of the answers; `errors`: the
        rows with the most objects missed and invented; `samples`: the first rows. Both with drawn pictures.
    """
    threshold = float(data.options["score_threshold"])
    found, given = found_boxes(outcome), given_boxes(outcome.rows)
    answered = [sure(one, threshold) for one in found]
    matched = [match_boxes(one, wanted) for one, wanted in zip(answered, given, strict=True)]
    each = average_precision(found, given, data.outputs)["map_per_class"]
    wrong = [int((~right).sum()) + int((~hit).sum()) for right, hit in matched]
    surest = [float(one["scores"][~right].max(initial=0)) for one, (right, _) in zip(answered, matched, strict=True)]
    worst = sorted(range(len(wrong)), key=lambda row: (-wrong[row], -surest[row]))

    def told(row: int) -> dict[str, Any]:
        right, hit = matched[row]
        picture = draw(outcome.rows[row]["image"], answered[row], given[row], right, hit, data.class_names)
        return {
            "image": picture_uri(picture, THUMBNAIL),
            "missed": int((~hit).sum()),
            "invented": int((~right).sum()),
            "label": words(given[row], data.class_names),
            "prediction": words(answered[row], data.class_names),
        }

    return {
        "per_class": _per_class(data, answered, given, matched, each),
        "errors": [told(row) for row in worst[:count] if wrong[row]],
        "samples": [told(row) for row in range(min(count, len(given)))],
    }


def _per_class(
    data: TaskData,
    answered: Sequence[Mapping[str, np.ndarray]],
    given: Sequence[Mapping[str, np.ndarray]],
    matched: Sequence[tuple[np.ndarray, np.ndarray]],
    each: Sequence[float | None],
) -> dict[str, dict[str, float]]:
    size = data.outputs

    def counted(labels: Sequence[np.ndarray]) -> np.ndarray:
        return np.bincount(np.concatenate([np.zeros(0, int), *labels]), minlength=size)

    right = counted([one["labels"][kept] for one, (kept, _) in zip(answered, matched, strict=True)])
    said, true = counted([one["labels"] for one in answered]), counted([one["labels"] for one in given])
    figures = {}
    for number, name in enumerate(data.class_names):
        hits, both = right[number], said[number] + true[number]
        figures[name] = {
            **({} if each[number] is None else {"average_precision": float(each[number] or 0)}),
            "precision": float(hits / said[number]) if said[number] else 0.0,
            "recall": float(hits / true[number]) if true[number] else 0.0,
            "f1": float(2 * hits / both) if both else 0.0,
            "support": int(true[number]),
        }
    return figures


def words(objects: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """
    Args:
        objects (`Mapping[str, np.ndarray]`):
            Boxes of a picture; surest first where they have scores.
        names (`Sequence[str]`):
            Names of the classes.

    Returns:
        `str`: Their classes, with scores where there are: `"coat 0.97, bag 0.61"`, or `"nothing"`.
    """
    labels = [names[label] for label in objects["labels"]]
    if "scores" in objects:
        told = [f"{name} {score:.2f}" for name, score in zip(labels, objects["scores"], strict=True)]
    else:
        told = [f"{count} {name}" if count > 1 else name for name, count in Counter(labels).items()]
    return ", ".join(told[:NAMED]) + f" and {len(told) - NAMED} more" * (len(told) > NAMED) or "nothing"


def draw(
    value: Mapping[str, Any],
    found: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
    right: np.ndarray,
    hit: np.ndarray,
    names: Sequence[str],
) -> Pillow.Image:
    """
    Args:
        value (`Mapping`):
            `{"bytes", "path"}` of the picture.
        found (`Mapping[str, np.ndarray]`):
            Boxes that were found.
        given (`Mapping[str, np.ndarray]`):
            Boxes that are given.
        right (`np.ndarray`):
            Which of the found ones are right.
        hit (`np.ndarray`):
            Which of the given ones are found.
        names (`Sequence[str]`):
            Names of the classes.

    Returns:
        `PIL.Image.Image`: The picture, at most twice as large as a table shows it, with right boxes in green, invented
        ones in red, and missed ones in dashed yellow.
    """
    picture = read_image(value)
    scale = 2 * THUMBNAIL / max(picture.size)
    picture = picture.resize((max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)))
    pen = ImageDraw.Draw(picture)
    for box, label in zip(given["boxes"][~hit] * scale, given["labels"][~hit], strict=True):
        _dashed(pen, box.tolist())
        _named(pen, box.tolist(), f"missed: {names[label]}", MISSED, "black")
    # The surest last, and what is right above what is not, so that their names can be read.
    for place in sorted(range(len(right)), key=lambda one: (bool(right[one]), found["scores"][one])):
        box, label, score, kept = (
            found["boxes"][place] * scale,
            found["labels"][place],
            found["scores"][place],
            right[place],
        )
        colour = RIGHT if kept else INVENTED
        pen.rectangle(box.tolist(), outline=colour, width=3)
        _named(pen, box.tolist(), f"{names[label]} {score:.2f}", colour, "white")
    return picture


def _dashed(pen: ImageDraw.ImageDraw, box: Sequence[float], dash: int = 8) -> None:
    left, top, right, bottom = box
    for x in np.arange(left, right, 2 * dash):
        for y in (top, bottom):
            pen.line([x, y, min(x + dash, right), y], fill=MISSED, width=3)
    for y in np.arange(top, bottom, 2 * dash):
        for x in (left, right):
            pen.line([x, y, x, min(y + dash, bottom)], fill=MISSED, width=3)


def _named(pen: ImageDraw.ImageDraw, box: Sequence[float], text: str, colour: str, ink: str) -> None:
    """A name at the upper left corner of a box, inside the picture."""
    left, top = max(box[0], 0), max(box[1], 0)
    place = pen.textbbox((left + 3, top + 2), text, font_size=20)
    pen.rectangle([left, top, place[2] + 3, place[3] + 3], fill=colour)
    pen.text((left + 3, top + 2), text, fill=ink, font_size=20)


def answers(data: TaskData, outcome: Outcome) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            Names the classes, and the score from which a box is an answer.
        outcome (`Outcome`):
            What the model gave.

    Returns:
        `list[dict[str, Any]]`: `objects` of each row, surest first: `label`, `score`, and `box` as left, top, right
        and bottom in pixels of the picture as it is shown; and the `threshold` of their scores.
    """
    threshold = float(data.options["score_threshold"])
    told = []
    for row in found_boxes(outcome):
        kept = sure(row, threshold)
        told.append({
            "objects": [
                {"label": data.class_names[label], "score": float(score), "box": [round(float(v), 2) for v in box]}
                for label, score, box in zip(kept["labels"], kept["scores"], kept["boxes"], strict=True)
            ],
            "threshold": threshold,
        })
    return told


def baseline(data: TaskData, split: str, encoded: DatasetDict) -> tuple[str, dict[str, float]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to measure on.
        encoded (`DatasetDict`):
            Not needed here.

    Returns:
        `tuple`: `"mean_box"`, and metrics of finding the commonest class of train in every picture, where its boxes
        are on average. Finding nothing would be a mAP of 0.
    """
    train, rows = data.splits["train"], data.splits[split]
    labels = np.concatenate([np.asarray(one, int) for one in train["categories"]])
    shares = np.concatenate([
        np.asarray(boxes, float).reshape(-1, 4) / np.array([width, height, width, height])
        for boxes, width, height in zip(train["boxes"], train["width"], train["height"], strict=True)
    ])
    common = int(np.bincount(labels).argmax())
    always = np.concatenate([[common, 1.0], shares[labels == common].mean(0)])
    outcome = Outcome(rows, rows, np.tile(always, (len(rows), 1, 1)))
    return "mean_box", metrics(data, outcome)


def examples(data: TaskData, split: str, count: int) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to take them from.
        count (`int`):
            How many.

    Returns:
        `list[dict[str, Any]]`: The first rows with objects: `image`, and their classes as `label`.
    """
    found: list[dict[str, Any]] = []
    for row, given in zip(data.splits[split], given_boxes(data.splits[split]), strict=True):
        if len(found) == count:
            break
        if len(given["labels"]):
            found.append({"image": image_uri(row["image"]), "label": words(given, data.class_names)})
    return found
