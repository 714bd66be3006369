"""What a record says of answers that are classes: which are missed, how sure the model is, and where it errs most."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from hf_transfer_plugin.metrics import F1, ConfusionMatrix, Precision, Recall
from hf_transfer_plugin.tasks.labels import MULTI, SINGLE

SHORT = 300


def probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """
    From logits to probabilities: `exp(z) / sum(exp(z))` for classes that exclude each other, `1 / (1 + exp(-z))` for
    those of which several may hold.

    Args:
        logits (`np.ndarray` of shape `(rows, classes)`):
            The model's outputs.
        problem_type (`str`):
            As in the model's config.

    Returns:
        `np.ndarray` of shape `(rows, classes)`: The probabilities.
    """
    logits = logits.astype(np.float64)
    if problem_type == MULTI:
        return 1 / (1 + np.exp(-logits))
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def predicted(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """
    From logits to answers.

    Args:
        logits (`np.ndarray` of shape `(rows, outputs)`):
            The model's outputs.
        problem_type (`str`):
            As in the model's config.

    Returns:
        `np.ndarray`: Class numbers, rows of 0/1, or values.
    """
    if problem_type == SINGLE:
        return logits.argmax(-1)
    return (logits > 0).astype(int) if problem_type == MULTI else logits.reshape(-1)


def class_figures(answers: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """
    Args:
        answers (`np.ndarray` of shape `(rows,)` or, of zeros and ones, `(rows, classes)`):
            The model's answers.
        labels (`np.ndarray` of the same shape):
            The true labels.
        class_names (`Sequence[str]`):
            Names of the classes.

    Returns:
        `dict[str, Any]`: `per_class`, and `confusion_matrix` where a row has one class.
    """
    kind = "multilabel" if labels.ndim == 2 else None
    given = {"predictions": answers.astype(int).tolist(), "references": labels.astype(int).tolist()}
    numbers = list(range(len(class_names)))
    columns = {
        name: metric.compute(**given, labels=numbers)[f"{name}_per_class"]
        for name, metric in (("precision", Precision(kind)), ("recall", Recall(kind)), ("f1", F1(kind)))
    }
    support = labels.sum(0) if kind else np.bincount(labels.astype(int), minlength=len(numbers))
    per_class = {
        class_name: {**{name: values[i] for name, values in columns.items()}, "support": int(support[i])}
        for i, class_name in enumerate(class_names)
    }
    if kind:
        return {"per_class": per_class}
    return {"per_class": per_class, **ConfusionMatrix().compute(**given, labels=numbers)}


def confident_errors(
    rows: Dataset,
    wrong: np.ndarray,
    scores: np.ndarray,
    told: Mapping[str, Sequence[Any]],
    count: int,
    *,
    show: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """
    Args:
        rows (`Dataset`):
            The checked rows.
        wrong (`np.ndarray` of shape `(rows,)`):
            Which answers are wrong.
        scores (`np.ndarray` of shape `(rows,)`):
            What to sort by: how sure the model was, or how far off.
        told (`Mapping[str, Sequence]`):
            `label` and `prediction` of every row, in words.
        count (`int`):
            How many at most.
        show (`Callable`):
            Of a row what is told of it.

    Returns:
        `list[dict[str, Any]]`: The rows with the highest scores among the wrong ones.
    """
    numbers = [int(i) for i in np.argsort(-scores, kind="stable") if wrong[i]][:count]
    return [
        {**show(rows[i]), **{name: values[i] for name, values in told.items()}, "score": float(scores[i])}
        for i in numbers
    ]


def shortened(text: str, limit: int = SHORT) -> str:
    """
    Args:
        text (`str`):
            A text.
        limit (`int`, *optional*, defaults to 300):
            Characters at most.

    Returns:
        `str`: The text, or its beginning.
    """
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
