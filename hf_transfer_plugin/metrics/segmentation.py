"""Metrics of maps that give every pixel a class, from counts of pixels alone."""

from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

IGNORED = 255  # in a mask: this pixel is not labelled
_EVERINGHAM = "Everingham et al. (2010), The Pascal Visual Object Classes Challenge, IJCV 88."


class MeanIou(evaluate.Metric):
    """
    Mean intersection over union, mean accuracy and pixel accuracy of maps of class numbers; see [`map_scores`]. Pixels
    that the mask holds as 255 do not count.
    """

    metric_name: ClassVar[str] = "mean_iou"

    def __init__(self, config_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(config_name=config_name, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        values = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            module_name=self.metric_name,
            description="Mean intersection over union of the classes, and the share of pixels that are right.",
            citation=_EVERINGHAM,
            features=datasets.Features({"predictions": values, "references": values}),
        )

    def _compute(self, predictions: Any, references: Any, classes: int | None = None) -> dict[str, Any]:
        answered, true = ([np.asarray(one) for one in maps] for maps in (predictions, references))
        known = [one[one != IGNORED] for one in (*answered, *true)]
        count = classes or max((int(one.max()) for one in known if one.size), default=0) + 1
        counts = np.sum([pixel_counts(a, t, count) for a, t in zip(answered, true, strict=True)], axis=0)
        return {**map_scores(counts), "iou_per_class": class_ious(counts).tolist()}


def pixel_counts(answered: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    """
    Counts pixels, where the mask labels them.

    Args:
        answered (`np.ndarray` of shape `(height, width)`):
            The answer: class numbers.
        true (`np.ndarray` of the same shape):
            The mask; 255 is not labelled.
        classes (`int`):
            How many classes there are.

    Returns:
        `np.ndarray` of `int64` of shape `(3, classes)`: Of each class the pixels that are it in both, in the answer,
        and in the mask.
    """
    labelled = true != IGNORED
    answered, true = answered[labelled], true[labelled]
    return np.stack([
        np.bincount(one, minlength=classes)[:classes] for one in (true[answered == true], answered, true)
    ]).astype(np.int64)


def class_ious(counts: np.ndarray) -> np.ndarray:
    """
    Intersection over union of each class: with `P` the pixels that the answer says are of the class, and `T` those
    that are, `|P ∩ T| / |P ∪ T|`, where `|P ∪ T| = |P| + |T| - |P ∩ T|`.

    Args:
        counts (`np.ndarray` of shape `(3, classes)`):
            As [`pixel_counts`] gives them, of one row or added up.

    Returns:
        `np.ndarray` of shape `(classes,)`: The values; no number (NaN) for a class that is in neither.
    """
    both, answered, true = np.asarray(counts, dtype=np.float64)
    union = answered + true - both
    return np.divide(both, union, out=np.full_like(both, np.nan), where=union > 0)


def map_scores(counts: np.ndarray) -> dict[str, float]:
    """
    How well maps agree with masks.

    With `P` and `T` of each class as in [`class_ious`], over all rows together:

        mean IoU       = mean of |P ∩ T| / |P ∪ T| over the classes that are in P or T
        mean accuracy  = mean of |P ∩ T| / |T| over the classes that are in T
        pixel accuracy = sum of |P ∩ T| / sum of |T|

    Args:
        counts (`np.ndarray` of shape `(3, classes)`):
            As [`pixel_counts`] gives them, added up over the rows.

    Returns:
        `dict[str, float]`: `mean_iou`, `mean_accuracy` and `pixel_accuracy`; no numbers (NaN) where nothing is
        labelled.
    """
    both, _, true = np.asarray(counts, dtype=np.float64)
    if not true.sum():
        return dict.fromkeys(("mean_iou", "mean_accuracy", "pixel_accuracy"), float("nan"))
    there = true > 0
    return {
        "mean_iou": float(np.nanmean(class_ious(counts))),
        "mean_accuracy": float((both[there] / true[there]).mean()),
        "pixel_accuracy": float(both.sum() / true.sum()),
    }
