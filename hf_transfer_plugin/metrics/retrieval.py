"""Metrics of search, over ranked lists, and of similarity, over pairs."""

from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

CUTOFF = 10
_TREC = "Järvelin and Kekäläinen (2002), Cumulated Gain-Based Evaluation of IR Techniques, ACM TOIS 20(4)."
_SPEARMAN = "Spearman (1904), The Proof and Measurement of Association between Two Things."


class _RankedMetric(evaluate.Metric):
    """
    Shared frame: for each query the documents that were found, the best first, and those that are right, both by
    number; no file lock for in-memory use.
    """

    metric_name: ClassVar[str]
    figure: ClassVar[str]
    description: ClassVar[str]

    def __init__(self, config_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(config_name=config_name, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        numbers: Any = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            module_name=self.metric_name,
            description=self.description,
            citation=_TREC,
            features=datasets.Features({"predictions": numbers, "references": numbers}),
        )

    def _compute(self, predictions: Any, references: Any, k: int = CUTOFF) -> dict[str, float]:
        name = f"{self.figure}_at_{k}"
        return {name: float(ranking_rows(predictions, references, k=k)[name].mean())}


class NDCG(_RankedMetric):
    """Mean normalised discounted cumulative gain of the first `k` documents; see [`ranking_rows`]."""

    metric_name = figure = "ndcg"
    description = "Gain of the right documents by their rank, as a share of the best order's."


class MRR(_RankedMetric):
    """Mean reciprocal rank of the first right document among the first `k`; see [`ranking_rows`]."""

    metric_name = figure = "mrr"
    description = "One over the rank of the first right document, nothing where there is none."


class RetrievalRecall(_RankedMetric):
    """Mean share of the right documents that are among the first `k`; see [`ranking_rows`]."""

    metric_name, figure = "retrieval_recall", "recall"
    description = "Share of the right documents that were found."


def ranking_rows(
    found: Sequence[Sequence[int]], right: Sequence[Sequence[int]], *, k: int = CUTOFF
) -> dict[str, np.ndarray]:
    r"""
    nDCG, reciprocal rank and recall of each query, of its first `k` documents.

    With $r_i = 1$ where the document at rank $i$ is right, else 0, and $R$ right documents in all:

    $DCG = \sum_{i=1}^{k} r_i / \log_2(i + 1)$, its best $IDCG = \sum_{i=1}^{\min(k, R)} 1 / \log_2(i + 1)$, and
    $nDCG = DCG / IDCG$; the reciprocal rank is $1 / \min\{i \le k : r_i = 1\}$, or 0; recall is
    $\sum_{i=1}^{k} r_i / R$.

    Args:
        found (`Sequence[Sequence[int]]`):
            Numbers of the documents for each query, the best first.
        right (`Sequence[Sequence[int]]`):
            Numbers of those that are right.
        k (`int`, *optional*, defaults to 10):
            How many of the first count.

    Returns:
        `dict[str, np.ndarray]`: `ndcg_at_k`, `mrr_at_k` and `recall_at_k`, each of shape `(queries,)`.

    Raises:
        ValueError: If there are no queries, `k` is below 1, one has no right document or finds one twice.

    Example:
    ```python
    >>> ranking_rows([[4, 7, 9]], [[7, 9]], k=3)["mrr_at_3"]
    array([0.5])
    ```
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1, but got {k}.")
    if not len(found) or len(found) != len(right):
        raise ValueError(
            f"Each query needs the documents found and the right ones, but got {len(found)} lists of found and "
            f"{len(right)} of right ones."
        )
    discounts = 1 / np.log2(np.arange(2, k + 2))
    rows = np.zeros((3, len(found)))
    for number, (ranked, wanted) in enumerate(zip(found, right, strict=True)):
        good = set(wanted)
        if not good:
            raise ValueError(
                f"Every query needs a right document, but query {number} (counted from 0) has none. Leave it out."
            )
        first = list(ranked[:k])
        if len(set(first)) < len(first):
            raise ValueError(f"A document can be found once only, but query {number} has one twice: {first}.")
        hits = np.array([document in good for document in first] + [False] * (k - len(first)))
        ranks = np.flatnonzero(hits)
        rows[0, number] = discounts[hits].sum() / discounts[: len(good)].sum()
        rows[1, number] = 1 / (ranks[0] + 1) if len(ranks) else 0.0
        rows[2, number] = hits.sum() / len(good)
    return dict(zip((f"ndcg_at_{k}", f"mrr_at_{k}", f"recall_at_{k}"), rows, strict=True))


class SimilarityCorrelation(evaluate.Metric):
    """Spearman's and Pearson's correlation of similarities with the given scores; see [`correlations`]."""

    metric_name: ClassVar[str] = "similarity_correlation"

    def __init__(self, config_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(config_name=config_name, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            module_name=self.metric_name,
            description="How well similarities follow given scores: by rank, and in a line.",
            citation=_SPEARMAN,
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return correlations(np.asarray(predictions, float), np.asarray(references, float))


def correlations(values: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    r"""
    Pearson's $r = \sum (x - \bar x)(y - \bar y) / \sqrt{\sum (x - \bar x)^2 \sum (y - \bar y)^2}$, and
    Spearman's $\rho$: the same of the ranks, where equal values share the mean of theirs.

    Args:
        values (`np.ndarray`):
            $x$.
        wanted (`np.ndarray`):
            $y$.

    Returns:
        `dict[str, float]`: `spearman` and `pearson`; 0 where all values or all wanted ones are the same.

    Shape:
        - values, wanted: `(pairs,)`
    """
    return {"spearman": _pearson(_ranks(values), _ranks(wanted)), "pearson": _pearson(values, wanted)}


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum() / size) if size else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]
