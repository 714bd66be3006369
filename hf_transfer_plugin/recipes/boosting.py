"""What a language model that reads a table must beat: gradient boosted trees on the columns themselves."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import OrdinalEncoder

from hf_transfer_plugin.metrics import bootstrap_interval, macro_f1
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.tasks import Outcome, TaskData
from hf_transfer_plugin.tasks.class_report import predicted
from hf_transfer_plugin.tasks.labels import MULTI, REGRESSION

BOOSTING = "gradient_boosting"
CATEGORIES = 254  # scikit-learn's trees tell no more apart
COMPONENTS = 16  # numbers that stand for a text
STOPPING_ROWS, STOPPING_CLASS = 200, 10  # rows, and of the rarest class, from which some are held out for stopping
LEAF, LEAVES = 20, 20  # scikit-learn's smallest leaf, and how many of them few rows shall make
ROUNDS = {True: 500, False: 100}  # with and without stopping
LEAST = 1e-12


def compare_with_boosting(record: TransferRecord, prepared: Any, outcome: Outcome, split: str) -> None:
    """
    Where rows of a table were read and baselines are asked for, trains gradient boosting on the same rows, measures it
    on the same others, and tells how far the deciding metric differs: a paired bootstrap over the measured rows.

    Args:
        record (`TransferRecord`):
            The record; gets the baseline, and its distance among the intervals: this model's figure minus its own.
        prepared (`Prepared`):
            The parts.
        outcome (`Outcome`):
            What the model gave for the split.
        split (`str`):
            Its name.
    """
    data, task = prepared.data, prepared.task
    wanted = prepared.config.baselines and "feature_columns" in data.options
    if not wanted or prepared.args.process_index:  # the first process writes the record
        return
    started = time.perf_counter()
    logits = boost(data, split, prepared.args.seed)
    metrics = task.metrics(data, Outcome(outcome.rows, outcome.features, logits))
    record.baselines[BOOSTING] = {**metrics, "seconds": time.perf_counter() - started}
    name = task.best_metric(data)[0]
    difference = difference_of(data, outcome.predictions, logits, np.asarray(outcome.rows["label"]))
    record.intervals[f"{name}_minus_{BOOSTING}"] = bootstrap_interval(difference, len(outcome.rows))


def difference_of(data: TaskData, ours: Any, theirs: Any, labels: np.ndarray) -> Callable[[np.ndarray], float]:
    """
    Args:
        data (`TaskData`):
            Tells the problem type.
        ours (`np.ndarray` of shape `(rows, outputs)`):
            Logits of one model.
        theirs (`np.ndarray` of the same shape):
            Logits of the other.
        labels (`np.ndarray`):
            The truth.

    Returns:
        `Callable`: From row numbers to the deciding metric of the first on these rows, minus that of the second.
    """
    mine, other = (predicted(np.asarray(logits), data.problem_type) for logits in (ours, theirs))
    if data.problem_type == REGRESSION:
        truth = labels.reshape(-1)
        each = (mine - truth) ** 2 - (other - truth) ** 2
    elif data.problem_type == MULTI:
        truth, count = labels.astype(int), data.outputs
        return lambda rows: macro_f1(mine[rows], truth[rows], count) - macro_f1(other[rows], truth[rows], count)
    else:
        each = (mine == labels).astype(float) - (other == labels)
    return lambda rows: float(each[rows].mean())


def boost(data: TaskData, split: str, seed: int) -> np.ndarray:
    """
    Trains gradient boosted trees on the training rows: numbers as they are, missing ones too, categories as such,
    dates as days, and of a long text 16 numbers (TF-IDF, then an SVD). A tenth of the rows is held out to stop by,
    where there are 200; with fewer rows leaves may be smaller than scikit-learn's 20 rows.

    Args:
        data (`TaskData`):
            Rows of a table, with `row`.
        split (`str`):
            Split to answer.
        seed (`int`):
            Seed of held-out rows.

    Returns:
        `np.ndarray` of shape `(rows, outputs)`: Logits, as a model gives them, or values. Several classes that may
        hold at once have a model each.
    """
    kinds = data.options["feature_columns"]
    train, asked, categories = columns_of(data.splits["train"]["row"], data.splits[split]["row"], kinds, seed)
    labels = np.asarray(data.splits["train"]["label"])
    if data.problem_type == REGRESSION:
        given = _settings(len(labels), len(labels), seed)
        model = HistGradientBoostingRegressor(categorical_features=categories, **given)
        return model.fit(train, labels).predict(asked)[:, None]
    if data.problem_type != MULTI:
        return np.log(_chances(train, labels, asked, categories, seed, data.outputs))
    each = [_chances(train, column, asked, categories, seed, 2) for column in labels.astype(int).T]
    return np.stack([np.log(chances[:, 1]) - np.log(chances[:, 0]) for chances in each], 1)


def _chances(
    train: np.ndarray, labels: np.ndarray, asked: np.ndarray, categories: np.ndarray, seed: int, classes: int
) -> np.ndarray:
    """Probability of each class, never quite 0 or 1; a class that no training row has gets none."""
    seen, counts = np.unique(labels, return_counts=True)
    found = np.zeros((len(asked), classes))
    if len(seen) == 1:
        found[:, seen] = 1
    else:
        given = _settings(len(labels), int(counts.min()), seed)
        model = HistGradientBoostingClassifier(categorical_features=categories, **given)
        found[:, seen] = model.fit(train, labels).predict_proba(asked)
    return found.clip(LEAST, 1 - LEAST)


def _settings(rows: int, rarest: int, seed: int) -> dict[str, Any]:
    stopping = rows >= STOPPING_ROWS and rarest >= STOPPING_CLASS
    return {
        "early_stopping": stopping,
        "max_iter": ROUNDS[stopping],
        "min_samples_leaf": min(LEAF, max(2, rows // LEAVES)),
        "random_state": seed,
    }


def columns_of(
    train: Sequence[Mapping[str, Any]], asked: Sequence[Mapping[str, Any]], kinds: Mapping[str, str], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Args:
        train (`Sequence[Mapping]`):
            Cells of the training rows, from which categories and words are known.
        asked (`Sequence[Mapping]`):
            Cells of the others.
        kinds (`Mapping[str, str]`):
            Column -> kind.
        seed (`int`):
            Seed of the SVD.

    Returns:
        `tuple[np.ndarray, np.ndarray, np.ndarray]`: Numbers of both, NaN for what is missing or was not seen in
        training, and which of the columns are categories.
    """
    train, asked = list(train), list(asked)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    categories: list[bool] = []
    for name, kind in kinds.items():
        first, second = ([row[name] for row in rows] for rows in (train, asked))
        if kind == "category":
            found = _encoded(first, second)
        elif kind == "text":
            found = _condensed(first, second, seed)
        else:
            found = (_numbers(first, kind), _numbers(second, kind))
            if np.isnan(found[0]).all():  # Nothing can be learned of it, and scikit-learn fails on it.
                found = (np.zeros_like(found[0]), np.zeros_like(found[1]))
        parts.append(found)
        categories += [kind == "category"] * found[0].shape[1]
    return np.hstack([one for one, _ in parts]), np.hstack([other for _, other in parts]), np.array(categories)


def _numbers(values: Sequence[Any], kind: str) -> np.ndarray:
    found = [_days(value) if kind == "date" else value for value in values]
    return np.array([np.nan if value is None else float(value) for value in found])[:, None]


def _days(value: str | None) -> float | None:
    try:
        day = datetime.fromisoformat(value or "")
    except ValueError:
        return None
    return (day.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds() / 86400


def _encoded(first: Sequence[Any], second: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, max_categories=CATEGORIES)
    # To the encoder None is a category like others, NaN is none.
    known, new = ([[np.nan if value is None else value] for value in values] for values in (first, second))
    return encoder.fit_transform(np.array(known, dtype=object)), encoder.transform(np.array(new, dtype=object))


def _condensed(first: Sequence[Any], second: Sequence[Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
    words = TfidfVectorizer(token_pattern=r"\w+")
    try:
        known = words.fit_transform(value or "" for value in first)
    except ValueError:  # no words at all
        return np.zeros((len(first), 1)), np.zeros((len(second), 1))
    if known.shape[1] <= COMPONENTS:
        return known.toarray(), words.transform(value or "" for value in second).toarray()
    reduction = TruncatedSVD(COMPONENTS, random_state=seed)
    return reduction.fit_transform(known), reduction.transform(words.transform(value or "" for value in second))
