"""Whether a classifier is right as often as it says."""

from typing import Any

import numpy as np


def calibration(confidences: np.ndarray, right: np.ndarray, bins: int = 15) -> dict[str, Any]:
    """
    Expected calibration error and what it is made of, from "On Calibration of Modern Neural Networks" (Guo et al.,
    2017), https://huggingface.co/papers/1706.04599.

    With `B_m` the rows whose confidence lies in `((m - 1) / M, m / M]`, of `M` bins and `n` rows:

        ECE = sum over m of |B_m| / n * |acc(B_m) - conf(B_m)|

    where `acc` is the share of right answers and `conf` the mean confidence.

    Args:
        confidences (`np.ndarray` of shape `(rows,)`):
            Probability that the model gave to its answer.
        right (`np.ndarray` of `bool` of shape `(rows,)`):
            Whether the answer was right.
        bins (`int`, *optional*, defaults to 15):
            Bins of equal width; the paper's number.

    Returns:
        `dict[str, Any]`: `ece`, and `bins` with `low`, `high`, `count`, `confidence` and `accuracy` of each; the last
        two are `None` in an empty bin.

    Raises:
        ValueError: If there are no rows, the shapes differ, or a confidence is no probability.
    """
    confidences, right = np.asarray(confidences, dtype=float), np.asarray(right, dtype=bool)
    if confidences.ndim != 1 or confidences.shape != right.shape or not len(right):
        raise ValueError(
            "`confidences` and `right` must hold one value for each of the same rows, but have the shapes "
            f"{confidences.shape} and {right.shape}. Pass the probability of the answer given, not of every class."
        )
    if not ((confidences >= 0) & (confidences <= 1)).all():
        raise ValueError(
            f"`confidences` must lie between 0 and 1, but got {confidences.min()} to {confidences.max()}. Turn logits "
            "into probabilities first (softmax or sigmoid)."
        )
    numbers = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    error, found = 0.0, []
    for number in range(bins):
        inside = numbers == number
        count = int(inside.sum())
        mean, share = (float(confidences[inside].mean()), float(right[inside].mean())) if count else (None, None)
        found.append({
            "low": number / bins,
            "high": (number + 1) / bins,
            "count": count,
            "confidence": mean,
            "accuracy": share,
        })
        if mean is not None and share is not None:
            error += count / len(right) * abs(share - mean)
    return {"ece": error, "bins": found}
