"""Metrics of boxes: how many of the given objects are found, how tightly, and how much is found that is not there."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from hf_transfer_plugin._optional import require

LARGEST = 100  # found boxes of a picture that COCO looks at
AT_LEAST = 0.5  # intersection over union from which a box counts as found
_CITATION = "Lin et al. (2014), Microsoft COCO: Common Objects in Context, https://huggingface.co/papers/1405.0312."
_FIRST, _SECOND = 0, 5  # of COCO's ten thresholds 0.5, 0.55 ... 0.95


class MeanAveragePrecision(evaluate.Metric):
    """
    COCO's mean average precision, see [`average_precision`]. A row of predictions is
    `{"boxes": [[x0, y0, x1, y1]], "scores": [...], "labels": [...]}` in pixels, one of references the same without
    scores.
    """

    metric_name: ClassVar[str] = "mean_average_precision"

    def __init__(self, config_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(config_name=config_name, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        boxes = datasets.List(datasets.List(datasets.Value("float64")))
        given = {"boxes": boxes, "labels": datasets.List(datasets.Value("int64"))}
        found = {**given, "scores": datasets.List(datasets.Value("float64"))}
        return evaluate.MetricInfo(
            module_name=self.metric_name,
            description="COCO's mean average precision over faster-coco-eval.",
            citation=_CITATION,
            features=datasets.Features({"predictions": found, "references": given}),
        )

    def _compute(self, predictions: Any, references: Any, classes: int | None = None) -> dict[str, Any]:
        return average_precision(predictions, references, classes)


def average_precision(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], classes: int | None = None
) -> dict[str, Any]:
    """
    Microsoft COCO: Common Objects in Context (https://huggingface.co/papers/1405.0312), by faster-coco-eval.

    A found box is right at the threshold t where its class is right and its intersection over union with a given box
    that nobody surer has taken is at least t. Of the boxes of a class, surest first, the precision after each is taken
    with the recall there; AP(class, t) is the mean, over the 101 recalls 0, 0.01 ... 1, of the best precision at that
    recall or a greater one, and 0 beyond the greatest:

        map = mean of AP over t = 0.5, 0.55 ... 0.95 and over the classes that are given anywhere
        map_50, map_75 = the same for t = 0.5 and for t = 0.75 alone
        mar_100 = mean over t and classes of the share of given boxes that are found among the surest 100 of a picture

    Args:
        predictions (`Sequence[Mapping]`):
            Of each picture `boxes` of shape `(found, 4)`, as left, top, right and bottom in pixels, and their `scores`
            and `labels`.
        references (`Sequence[Mapping]`):
            Of each picture `boxes` and `labels` that are given.
        classes (`int`, *optional*):
            How many classes there are; as many as the labels need without it.

    Returns:
        `dict[str, Any]`: `map`, `map_50`, `map_75`, `mar_100`, and `map_per_class`: a value for each class, `None` for
        one that is given nowhere.

    Raises:
        ValueError: If no box is given at all.
        ImportError: If faster-coco-eval is not installed.
    """
    coco = require("faster_coco_eval", extra="detection")
    labels = [int(label) for row in (*predictions, *references) for label in row["labels"]]
    count = max([classes or 0, *(label + 1 for label in labels)])
    if not any(len(row["labels"]) for row in references):
        raise ValueError("The references must hold boxes, but hold none in any row. Measure on rows with objects.")
    made = [_as_coco(coco.COCO(), rows, count) for rows in (references, predictions)]
    evaluation = coco.COCOeval_faster(*made, iouType="bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    # Thresholds, recalls, classes; of objects of all sizes, with as many boxes a picture as COCO allows.
    precision, recall = evaluation.eval["precision"][..., 0, -1], evaluation.eval["recall"][..., 0, -1]
    given = recall[_FIRST] > -1
    by_class = precision.mean((0, 1))
    return {
        "map": float(precision[..., given].mean()),
        "map_50": float(precision[_FIRST][:, given].mean()),
        "map_75": float(precision[_SECOND][:, given].mean()),
        "mar_100": float(recall[:, given].mean()),
        "map_per_class": [float(value) if there else None for value, there in zip(by_class, given, strict=True)],
    }


def _as_coco(made: Any, rows: Sequence[Mapping[str, Any]], classes: int) -> Any:
    """Boxes as an annotation file of COCO tells them: numbered from 1, with left, top, width and height."""
    told: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        scores = row.get("scores")
        for place, (box, label) in enumerate(zip(row["boxes"], row["labels"], strict=True)):
            left, top, right, bottom = (float(value) for value in box)
            width, height = right - left, bottom - top
            told.append({
                "id": len(told) + 1,
                "image_id": number,
                "category_id": int(label),
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": 0,
                **({} if scores is None else {"score": float(scores[place])}),
            })
    made.dataset = {
        "images": [{"id": number} for number in range(len(rows))],
        "categories": [{"id": number, "name": str(number)} for number in range(classes)],
        "annotations": told,
    }
    made.createIndex()
    return made


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """
    Intersection over union: the area that two boxes share, divided by the area that they cover together.

    Args:
        first (`np.ndarray` of shape `(n, 4)`):
            Boxes as left, top, right and bottom.
        second (`np.ndarray` of shape `(m, 4)`):
            Other boxes.

    Returns:
        `np.ndarray` of shape `(n, m)`: Values between 0 and 1.
    """
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clip(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    covered = areas[0][:, None] + areas[1][None, :] - shared
    return np.divide(shared, covered, out=np.zeros_like(shared), where=covered > 0)


def match_boxes(
    found: Mapping[str, Any], given: Mapping[str, Any], at_least: float = AT_LEAST
) -> tuple[np.ndarray, np.ndarray]:
    """
    Pairs found boxes with given ones as COCO does: surest first, each takes the free box of its class that it overlaps
    most.

    Args:
        found (`Mapping`):
            `boxes`, `scores` and `labels` of a picture.
        given (`Mapping`):
            `boxes` and `labels` of the same.
        at_least (`float`, *optional*, defaults to 0.5):
            Intersection over union from which a box counts as found.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Which of the found boxes are right, and which of the given ones are found.
    """
    boxes, wanted = (np.asarray(one["boxes"], float).reshape(-1, 4) for one in (found, given))
    labels, true = np.asarray(found["labels"], int), np.asarray(given["labels"], int)
    scores = np.where(labels[:, None] == true[None, :], overlaps(boxes, wanted), 0.0)
    right, hit = np.zeros(len(boxes), bool), np.zeros(len(wanted), bool)
    for place in np.argsort(-np.asarray(found["scores"], float), kind="stable"):
        free = np.where(hit, 0.0, scores[place])
        if len(free) and free.max() >= at_least:
            right[place] = hit[int(free.argmax())] = True
    return right, hit
