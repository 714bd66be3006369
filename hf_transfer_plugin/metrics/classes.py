"""Metrics of classes and numbers, over scikit-learn."""

from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
from sklearn import metrics as sklearn_metrics

_CITATION = "Pedregosa et al. (2011), Scikit-learn: Machine Learning in Python, JMLR 12."


class _ScikitMetric(evaluate.Metric):
    """Shared frame: the feature types of predictions and references, and no file lock for in-memory use."""

    metric_name: ClassVar[str]
    description: ClassVar[str]
    value_type: ClassVar[str] = "int64"

    def __init__(self, config_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(config_name=config_name, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        value: Any = datasets.Value(self.value_type)
        if self.config_name == "multilabel":
            value = datasets.Sequence(value)
        return evaluate.MetricInfo(
            module_name=self.metric_name,
            description=self.description,
            citation=_CITATION,
            features=datasets.Features({"predictions": value, "references": value}),
        )


class Accuracy(_ScikitMetric):
    """Share of examples whose every label is right. `config_name="multilabel"` for rows of 0/1."""

    metric_name = "accuracy"
    description = "Share of examples predicted right."

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(sklearn_metrics.accuracy_score(references, predictions))}


class _ClassAveraged(_ScikitMetric):
    """
    Macro average and the value of each class of `labels`; a class never predicted counts as 0, not as an error.

    The average is over the classes that occur among the references or the predictions, as scikit-learn's is without
    `labels`: data that lacks a class is not held against a model that does not name it.
    """

    def _compute(self, predictions: Any, references: Any, labels: list[int] | None = None) -> dict[str, Any]:
        values = sklearn_metrics.precision_recall_fscore_support(
            references, predictions, labels=labels, average=None, zero_division=0
        )
        mine = values[("precision", "recall", "f1").index(self.metric_name)]
        seen = mine[_occurring(np.asarray(references), np.asarray(predictions), labels)]
        return {
            f"{self.metric_name}_macro": float(seen.mean()) if len(seen) else 0.0,
            f"{self.metric_name}_per_class": [float(v) for v in mine],
        }


def _occurring(references: np.ndarray, predictions: np.ndarray, labels: list[int] | None) -> np.ndarray:
    """Of each class of `labels`, whether it is in either; in rows of 0/1 the classes are the columns."""
    if references.ndim == 2:
        found = (references | predictions).any(0)
        return found if labels is None else found[labels]
    both = np.union1d(references, predictions)
    return np.isin(both if labels is None else labels, both)


class Precision(_ClassAveraged):
    """TP / (TP + FP), macro and per class."""

    metric_name = "precision"
    description = "TP / (TP + FP), as macro average and for each class."


class Recall(_ClassAveraged):
    """TP / (TP + FN), macro and per class."""

    metric_name = "recall"
    description = "TP / (TP + FN), as macro average and for each class."


class F1(_ClassAveraged):
    """Harmonic mean of precision and recall, macro and per class."""

    metric_name = "f1"
    description = "2 PR / (P + R), as macro average and for each class."


class ConfusionMatrix(_ScikitMetric):
    """Counts; rows are the true classes, columns the predicted ones."""

    metric_name = "confusion_matrix"
    description = "Counts of true class (row) by predicted class (column)."

    def _compute(self, predictions: Any, references: Any, labels: list[int] | None = None) -> dict[str, Any]:
        return {"confusion_matrix": sklearn_metrics.confusion_matrix(references, predictions, labels=labels).tolist()}


class RegressionError(_ScikitMetric):
    """Mean squared error, mean absolute error, R² and Pearson's r."""

    metric_name = "regression_error"
    description = "Mean squared error, mean absolute error, R2 and Pearson correlation."
    value_type = "float64"

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        x, y = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
        varies = len(x) > 1 and x.std() > 0 and y.std() > 0
        return {
            "mse": float(sklearn_metrics.mean_squared_error(y, x)),
            "mae": float(sklearn_metrics.mean_absolute_error(y, x)),
            "r2": float(sklearn_metrics.r2_score(y, x)) if len(x) > 1 else 0.0,
            "pearson": float(np.corrcoef(x, y)[0, 1]) if varies else 0.0,
        }


def macro_f1(predictions: np.ndarray, references: np.ndarray, classes: int) -> float:
    """
    The same value as [`F1`] gives, from counts alone: fast enough for a thousand resamples.

    Args:
        predictions (`np.ndarray` of shape `(rows,)`, or `(rows, classes)` of 0/1):
            Answers.
        references (`np.ndarray` of the same shape):
            The truth.
        classes (`int`):
            How many classes there are.

    Returns:
        `float`: The mean of `2 TP / (answered + true)` over the classes that are in either; 0 if there are none.

    Example:
    ```python
    >>> bootstrap_interval(lambda rows: macro_f1(answers[rows], labels[rows], 6), len(labels))
    ```
    """
    if predictions.ndim == 2:
        right, total = (predictions & references).sum(0), predictions.sum(0) + references.sum(0)
    else:
        right = np.bincount(references[predictions == references], minlength=classes)
        total = np.bincount(predictions, minlength=classes) + np.bincount(references, minlength=classes)
    seen = total > 0
    return float((2 * right[seen] / total[seen]).mean()) if seen.any() else 0.0
