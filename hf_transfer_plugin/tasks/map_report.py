"""What is told of maps of classes: how well they fit the masks, class by class and drawn over the worst pictures."""

from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from hf_transfer_plugin.metrics import bootstrap_interval, class_ious, map_scores, pixel_counts
from hf_transfer_plugin.tasks.base import Outcome, TaskData
from hf_transfer_plugin.tasks.maps import drawn, mask_in, told_shares
from hf_transfer_plugin.tasks.masks import classes_of, read_mask, resized
from hf_transfer_plugin.tasks.media import image_uri, picture_uri, read_image

THUMBNAIL, LARGE = 96, 384  # pixels of the longer side
BOTH, ANSWERED, TRUE = range(3)


def metrics(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Not needed here.
        outcome (`Outcome`):
            Counts of pixels of each row, at the size at which the model reads them.

    Returns:
        `dict[str, float]`: `mean_iou`, `mean_accuracy` and `pixel_accuracy`; see [`map_scores`].
    """
    return map_scores(_counts(outcome).sum(0))


def _counts(outcome: Outcome) -> np.ndarray:
    return np.asarray(outcome.predictions[0])


def report(data: TaskData, outcome: Outcome, count: int) -> dict[str, Any]:
    """
    Args:
        data (`TaskData`):
            Names the classes.
        outcome (`Outcome`):
            Counts of pixels, small maps of every row, and maps of the first rows.
        count (`int`):
            Rows at most in each list.

    Returns:
        `dict[str, Any]`: `per_class`; the `intervals` of the mean IoU; `errors`, the rows with the lowest mean IoU,
        and `samples`, the first rows: drawn masks and answers, and which part of the picture each class has.
    """
    counts = _counts(outcome)
    flat = counts.reshape(len(counts), -1).astype(np.float64)

    def mean_iou(rows: np.ndarray) -> float:
        # How often each row was drawn, instead of the rows: a product in the place of a large copy.
        drawn_rows = np.bincount(rows, minlength=len(flat)).astype(np.float64)
        return map_scores((drawn_rows @ flat).reshape(counts.shape[1:]))["mean_iou"]

    scores = np.array([map_scores(one)["mean_iou"] for one in counts])
    worst = [int(row) for row in np.argsort(scores, kind="stable") if scores[row] < 1][:count]
    return {
        "per_class": _per_class(counts.sum(0), data.class_names),
        "intervals": {"mean_iou": bootstrap_interval(mean_iou, len(counts))},
        "errors": [
            {**_shown(data, outcome, row, outcome.predictions[1][row], THUMBNAIL), "score": float(scores[row])}
            for row in worst
        ],
        "samples": [
            _shown(data, outcome, row, classes_of(mask_in(text), data.options["mask_values"]), LARGE)
            for row, text in enumerate(outcome.texts or [])
        ],
    }


def _per_class(counts: np.ndarray, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    both, answered, true = counts.astype(np.float64)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

    columns = {
        "iou": class_ious(counts),
        "precision": share(both, answered),
        "recall": share(both, true),
        "f1": share(2 * both, answered + true),
    }
    return {
        # Of a class that is neither in masks nor in answers there is no intersection over union.
        name: {
            **{key: float(values[i]) for key, values in columns.items() if not np.isnan(values[i])},
            "support": int(true[i]),
        }
        for i, name in enumerate(names)
    }


def _shown(data: TaskData, outcome: Outcome, row: int, answer: np.ndarray, longest: int) -> dict[str, Any]:
    """A row for the record: the picture, mask and answer drawn over it, and both in words."""
    given, counts = outcome.rows[row], _counts(outcome)[row]
    picture = read_image(given["image"])
    picture.thumbnail((longest, longest))
    mask = classes_of(read_mask(given["label"]), data.options["mask_values"])
    return {
        "image": picture_uri(picture, longest),
        "classes_in_the_mask": ", ".join(told_shares(counts[TRUE], data.class_names)),
        "classes_in_the_answer": ", ".join(told_shares(counts[ANSWERED], data.class_names)),
        "label": picture_uri(drawn(picture, resized(mask, picture.size)), longest),
        "prediction": picture_uri(drawn(picture, resized(np.asarray(answer, np.uint8), picture.size)), longest),
    }


def answers(data: TaskData, outcome: Outcome) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            Names the classes.
        outcome (`Outcome`):
            The model's map of every row, as a mask.

    Returns:
        `list[dict[str, Any]]`: Of each row `shares` (class -> part of the picture, for classes that are in it) and
        `predicted_mask`, a PNG as a data URI: as large as the picture, its pixels hold what the masks of the training
        did.
    """
    found = []
    for text in outcome.texts or []:
        counts = np.bincount(classes_of(mask_in(text), data.options["mask_values"]).ravel(), minlength=data.outputs)
        there = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
        shares = {data.class_names[number]: float(counts[number] / counts.sum()) for number in there}
        found.append({"shares": shares, "predicted_mask": text})
    return found


def baseline(data: TaskData, split: str, encoded: DatasetDict) -> tuple[str, dict[str, float]]:
    """
    Args:
        data (`TaskData`):
            The rows, and the pixels of each class in the training masks.
        split (`str`):
            Split to measure on.
        encoded (`DatasetDict`):
            Tells at what size the model reads masks.

    Returns:
        `tuple`: `"majority"`, and metrics of the commonest class of the training masks everywhere.
    """
    commonest = int(np.argmax(list(data.facts["train_pixels"].values())))
    height, width = encoded[split][0]["labels"].shape
    always = np.full((height, width), commonest, np.uint8)
    total = np.zeros((3, data.outputs), np.int64)
    for value in data.splits[split]["label"]:
        mask = resized(classes_of(read_mask(value), data.options["mask_values"]), (width, height))
        total += pixel_counts(always, mask, data.outputs)
    return "majority", map_scores(total)


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
        `list[dict[str, Any]]`: The first rows; `label` names the classes that the mask holds, the largest first.
    """
    rows: Dataset = data.splits[split]
    found = []
    for row in rows.select(range(min(count, len(rows)))):
        classes = classes_of(read_mask(row["label"]), data.options["mask_values"])
        counts = np.bincount(classes[classes < data.outputs], minlength=data.outputs)
        there = [data.class_names[int(n)] for n in np.argsort(-counts, kind="stable") if counts[n]]
        found.append({"image": image_uri(row["image"], LARGE), "label": there})
    return found
