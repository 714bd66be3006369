"""Answers that are classes or numbers, whatever they are given for: measured, told row by row, and what beats none."""

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from hf_transfer_plugin.metrics import (
    F1,
    Accuracy,
    Precision,
    Recall,
    RegressionError,
    bootstrap_interval,
    calibration,
    macro_f1,
)
from hf_transfer_plugin.tasks.base import Outcome, TaskData
from hf_transfer_plugin.tasks.class_report import class_figures, confident_errors, predicted, probabilities
from hf_transfer_plugin.tasks.labels import MULTI, REGRESSION, SINGLE

BEST = {SINGLE: ("accuracy", True), MULTI: ("f1_macro", True), REGRESSION: ("mse", False)}
Show = Callable[[Mapping[str, Any]], dict[str, Any]]


def best_metric(data: TaskData) -> tuple[str, bool]:
    """
    Args:
        data (`TaskData`):
            Tells the problem type.

    Returns:
        `tuple[str, bool]`: The metric that decides, and whether greater is better.
    """
    return BEST[data.problem_type]


def is_unlabelled(rows: Dataset | None, column: str) -> bool:
    """
    Args:
        rows (`Dataset`, *optional*):
            Rows of a split.
        column (`str`):
            Column of the labels.

    Returns:
        `bool`: Whether there are rows, all with the label -1, as in the test splits of competitions.
    """
    return rows is not None and len(rows) > 0 and all(label == -1 for label in rows[column])


def _logits(outcome: Outcome) -> np.ndarray:
    found = outcome.predictions
    return np.asarray(found[0] if isinstance(found, tuple) else found)


def metrics(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Tells the problem type.
        outcome (`Outcome`):
            The model's logits.

    Returns:
        `dict[str, float]`: Accuracy and the macro averages, or the errors of a regression.
    """
    return _measured(predicted(_logits(outcome), data.problem_type), np.asarray(outcome.rows["label"]), data)


def _measured(answers: np.ndarray, labels: np.ndarray, data: TaskData) -> dict[str, float]:
    if data.problem_type == REGRESSION:
        return RegressionError().compute(predictions=answers.tolist(), references=labels.reshape(-1).tolist())
    kind = "multilabel" if data.problem_type == MULTI else None
    given = {"predictions": answers.astype(int).tolist(), "references": labels.astype(int).tolist()}
    found = Accuracy(kind).compute(**given)
    for metric in (Precision(kind), Recall(kind), F1(kind)):
        found |= metric.compute(**given, labels=list(range(data.outputs)))
    return {name: value for name, value in found.items() if isinstance(value, float)}


def report(data: TaskData, outcome: Outcome, count: int, *, show: Show) -> dict[str, Any]:
    """
    Args:
        data (`TaskData`):
            Names the classes.
        outcome (`Outcome`):
            The model's logits.
        count (`int`):
            Most confident errors at most.
        show (`Callable`):
            Of a row what shall stand beside its answer, by role.

    Returns:
        `dict[str, Any]`: `per_class`, `confusion_matrix` for single labels, `calibration`, `intervals` and `errors`,
        as far as the problem type has them.
    """
    logits, labels = _logits(outcome), np.asarray(outcome.rows["label"])
    answers = predicted(logits, data.problem_type)
    told = {"label": [named(label, data) for label in labels], "prediction": [named(a, data) for a in answers]}
    if data.problem_type == REGRESSION:
        distance = np.abs(answers - labels.reshape(-1))
        squared = bootstrap_interval(lambda chosen: float(np.mean(distance[chosen] ** 2)), len(labels))
        errors = confident_errors(outcome.rows, distance > 0, distance, told, count, show=show)
        return {"intervals": {"mse": squared}, "errors": errors}
    found = class_figures(answers, labels, data.class_names)
    chances = probabilities(logits, data.problem_type)
    if data.problem_type == MULTI:
        right = answers == labels
        sure = np.maximum(chances, 1 - chances)
        found["calibration"] = calibration(sure.ravel(), right.ravel())
        truth = labels.astype(int)
        drawn = bootstrap_interval(lambda rows: macro_f1(answers[rows], truth[rows], data.outputs), len(truth))
        interval = {"f1_macro": drawn}
        wrong, scores = ~right.all(1), np.where(right, 0, sure).max(1)
    else:
        right, scores = answers == labels, chances.max(-1)
        found["calibration"] = calibration(scores, right)
        interval = {"accuracy": bootstrap_interval(lambda rows: float(right[rows].mean()), len(labels))}
        wrong = ~right
    return {
        **found,
        "intervals": interval,
        "errors": confident_errors(outcome.rows, wrong, scores, told, count, show=show),
    }


def answers(data: TaskData, outcome: Outcome) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            Names the classes.
        outcome (`Outcome`):
            The model's logits.

    Returns:
        `list[dict[str, Any]]`: `prediction` of each row and, for classes, `score` and `probabilities` of every class.
    """
    logits = _logits(outcome)
    told = [named(answer, data) for answer in predicted(logits, data.problem_type)]
    if data.problem_type == REGRESSION:
        return [{"prediction": value} for value in told]
    found = []
    for name, row in zip(told, probabilities(logits, data.problem_type), strict=True):
        score = {} if data.problem_type == MULTI else {"score": float(row.max())}
        found.append({
            "prediction": name,
            **score,
            "probabilities": dict(zip(data.class_names, row.tolist(), strict=True)),
        })
    return found


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
        `tuple`: `"majority"`, and metrics of always answering the commonest class (the mean, for numbers) of train.
    """
    train, labels = np.asarray(data.splits["train"]["label"]), np.asarray(data.splits[split]["label"])
    if data.problem_type == SINGLE:
        always = np.full(len(labels), np.bincount(train).argmax())
    elif data.problem_type == MULTI:
        always = np.tile((train.mean(0) > 0.5).astype(int), (len(labels), 1))
    else:
        always = np.full(len(labels), train.mean())
    return "majority", _measured(always, labels, data)


def examples(
    data: TaskData, split: str, count: int, *, show: Show, fits: Callable[[Mapping[str, Any]], bool] | None = None
) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to take them from.
        count (`int`):
            How many.
        show (`Callable`):
            Of a row what shall stand beside its label, by role.
        fits (`Callable`, *optional*):
            Whether a row is short enough to be shown.

    Returns:
        `list[dict[str, Any]]`: The first rows that fit, of every label in turn; `label` is the class name, the names
        of all that hold, or the number.
    """
    rows = data.splits[split]
    waiting: dict[str, list[tuple[int, Any]]] = {}
    for number, value in enumerate(rows["label"]):
        label = named(value, data)
        queue = waiting.setdefault("" if data.problem_type == REGRESSION else str(label), [])
        if len(queue) < count and (fits is None or fits(rows[number])):
            queue.append((number, label))
    turns = zip_longest(*(chosen for _, chosen in sorted(waiting.items())))
    found = [one for turn in turns for one in turn if one is not None][:count]
    return [{**show(rows[number]), "label": label} for number, label in found]


def named(label: Any, data: TaskData) -> Any:
    """
    Args:
        label (`Any`):
            A label or an answer, as numbers.
        data (`TaskData`):
            Names the classes.

    Returns:
        `str`, `list[str]` or `float`: The name of its class, those of all that hold, or the number.
    """
    if data.problem_type == SINGLE:
        return data.class_names[label]
    if data.problem_type == MULTI:
        return [name for name, holds in zip(data.class_names, label, strict=True) if holds]
    return float(np.ravel(label)[0])
