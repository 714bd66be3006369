"""How far a measured figure depends on the rows that were drawn."""

from collections.abc import Callable

import numpy as np


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    rows: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[float]:
    """
    Percentile bootstrap (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13): rows are drawn with
    replacement, as many as there are, and the statistic is taken of each draw.

    The time is that of `resamples` calls, so the statistic should use arrays: `macro_f1` instead of scikit-learn's,
    counts or scores of each row that were worked out before (`entity_counts`, `squad_rows`, `rouge_rows`).

    Args:
        statistic (`Callable`):
            From row numbers (an array) to a value.
        rows (`int`):
            How many rows there are.
        resamples (`int`, *optional*, defaults to 1000):
            How many draws.
        level (`float`, *optional*, defaults to 0.95):
            Share of the draws that lie inside.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draws.

    Returns:
        `list[float]`: Low and high end: the `(1 - level) / 2` and `(1 + level) / 2` quantiles. Draws without a finite
        value are left out.

    Raises:
        ValueError: If there are no rows, `level` is no share, or the statistic is finite in no draw.

    Example:
    ```python
    >>> right = answers == labels
    >>> bootstrap_interval(lambda rows: right[rows].mean(), len(right))
    ```
    """
    if rows < 1 or resamples < 1:
        raise ValueError(f"`rows` and `resamples` must be at least 1, but got {rows} and {resamples}.")
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie between 0 and 1, e.g. 0.95, but got {level}.")
    draws = np.random.default_rng(seed)
    values = np.array([statistic(draws.integers(0, rows, rows)) for _ in range(resamples)], dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        raise ValueError(
            f"`statistic` must give a finite value for some draw of the {rows} rows, but gave none in {resamples}. "
            "Measure on more rows."
        )
    return [float(value) for value in np.quantile(values, [(1 - level) / 2, (1 + level) / 2])]
