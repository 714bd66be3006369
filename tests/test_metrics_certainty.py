"""Calibration and bootstrap intervals against values worked out by hand."""

import json
import time

import numpy as np
import pytest

from hf_transfer_plugin.metrics import bootstrap_interval, calibration, macro_f1


def slow_error(confidences, right, bins):
    """The paper's formula, row by row."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, p in enumerate(confidences) if (m - 1) / bins < p <= m / bins]
        if inside:
            accuracy = sum(bool(right[i]) for i in inside) / len(inside)
            total += len(inside) / len(right) * abs(accuracy - sum(confidences[i] for i in inside) / len(inside))
    return total


def test_calibration_error_by_hand():
    # (0.5, 1]: three rows, mean confidence 0.8, 2 of 3 right. (0, 0.5]: one row of 0.4, right.
    found = calibration(np.array([0.7, 0.8, 0.9, 0.4]), np.array([True, False, True, True]), bins=2)
    assert found["ece"] == pytest.approx(3 / 4 * (0.8 - 2 / 3) + 1 / 4 * (1 - 0.4))
    assert found["bins"] == [
        {"low": 0.0, "high": 0.5, "count": 1, "confidence": 0.4, "accuracy": 1.0},
        {"low": 0.5, "high": 1.0, "count": 3, "confidence": pytest.approx(0.8), "accuracy": pytest.approx(2 / 3)},
    ]


def test_calibration_equals_the_formula_row_by_row():
    draws = np.random.default_rng(0)
    confidences = draws.random(300)
    right = draws.random(300) < confidences**2
    found = calibration(confidences, right)
    assert found["ece"] == pytest.approx(slow_error(confidences, right, 15))
    assert len(found["bins"]) == 15
    assert sum(one["count"] for one in found["bins"]) == 300


def test_calibration_keeps_empty_bins_and_both_ends():
    found = calibration(np.array([0.0, 1.0, 0.5], dtype=np.float32), np.array([False, True, True]), bins=4)
    assert [one["count"] for one in found["bins"]] == [1, 1, 0, 1]
    assert found["bins"][2] == {"low": 0.5, "high": 0.75, "count": 0, "confidence": None, "accuracy": None}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("confidence", "right", "expected"), [(1.0, True, 0.0), (1.0, False, 1.0), (0.75, True, 0.25)]
)
def test_calibration_error_of_one_answer(confidence, right, expected):
    assert calibration(np.array([confidence]), np.array([right]))["ece"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("confidences", "right", "word"),
    [
        (np.array([]), np.array([]), r"one value for each of the same rows.*\(0,\) and \(0,\)"),
        (np.array([[0.5, 0.5]]), np.array([True]), "the probability of the answer given"),
        (np.array([0.5, 0.6]), np.array([True]), r"\(2,\) and \(1,\)"),
        (np.array([0.5, 1.5]), np.array([True, True]), "between 0 and 1, but got 0.5 to 1.5.*softmax"),
        (np.array([0.5, np.nan]), np.array([True, True]), "between 0 and 1"),
    ],
)
def test_calibration_refuses_what_is_no_probability_of_a_row(confidences, right, word):
    with pytest.raises(ValueError, match=word):
        calibration(confidences, right)


def test_interval_by_hand():
    # Of two rows, a quarter of the draws is twice the first and a quarter twice the second.
    values = np.array([0.0, 1.0])
    assert bootstrap_interval(lambda rows: values[rows].mean(), 2, level=0.8) == [0.0, 1.0]
    assert bootstrap_interval(lambda rows: values[rows].mean(), 2, level=0.2) == [0.5, 0.5]
    assert bootstrap_interval(lambda rows: 3.0, 1) == [3.0, 3.0]


def test_interval_of_a_share_is_near_the_normal_one():
    right = np.arange(2000) < 1640
    low, high = bootstrap_interval(lambda rows: right[rows].mean(), 2000)
    half = 1.96 * np.sqrt(0.82 * 0.18 / 2000)
    assert (low, high) == (pytest.approx(0.82 - half, abs=0.002), pytest.approx(0.82 + half, abs=0.002))


def test_interval_is_seeded_and_widens_with_the_level():
    values = np.random.default_rng(1).random(50)
    mean = lambda rows: values[rows].mean()
    assert bootstrap_interval(mean, 50) == bootstrap_interval(mean, 50)
    assert bootstrap_interval(mean, 50) != bootstrap_interval(mean, 50, seed=1)
    (low, high), (lower, higher) = bootstrap_interval(mean, 50, level=0.5), bootstrap_interval(mean, 50)
    assert lower < low < high < higher


def test_a_thousand_resamples_of_two_thousand_rows_take_a_moment():
    draws = np.random.default_rng(0)
    labels, answers = draws.integers(0, 6, 2000), draws.integers(0, 6, 2000)
    started = time.perf_counter()
    bootstrap_interval(lambda rows: macro_f1(answers[rows], labels[rows], 6), 2000)
    assert time.perf_counter() - started < 1


def test_draws_without_a_value_are_left_out():
    found = bootstrap_interval(lambda rows: np.nan if 0 in rows else 1.0, 3)
    assert found == [1.0, 1.0]


@pytest.mark.parametrize(
    ("rows", "options", "word"),
    [
        (0, {}, "`rows` and `resamples` must be at least 1, but got 0 and 1000"),
        (3, {"resamples": 0}, "but got 3 and 0"),
        (3, {"level": 95}, "`level` must lie between 0 and 1, e.g. 0.95, but got 95"),
    ],
)
def test_intervals_refuse_impossible_numbers(rows, options, word):
    with pytest.raises(ValueError, match=word):
        bootstrap_interval(lambda rows: 1.0, rows, **options)


def test_a_statistic_without_values_is_refused():
    with pytest.raises(ValueError, match="finite value for some draw of the 4 rows, but gave none in 1000"):
        bootstrap_interval(lambda rows: np.nan, 4)
