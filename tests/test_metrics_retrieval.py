"""Metrics of search and similarity, against values worked out by hand, scikit-learn and scipy."""

import math

import evaluate
import numpy as np
import pytest
from datasets import Dataset
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import ndcg_score

from hf_transfer_plugin.metrics import (
    METRICS,
    MRR,
    NDCG,
    RetrievalRecall,
    SimilarityCorrelation,
    correlations,
    ranking_rows,
)
from hf_transfer_plugin.tasks.retrieval import bm25, cosines, search_of, shared_words, unit

# The right documents of the first query stand at the ranks 2 and 3, that of the second nowhere.
FOUND, RIGHT = [[4, 7, 9, 1], [0, 1, 2, 3]], [[7, 9], [8]]


def test_gain_reciprocal_rank_and_recall_by_hand():
    rows = ranking_rows(FOUND, RIGHT, k=3)
    gained = 1 / math.log2(3) + 1 / math.log2(4)
    best = 1 / math.log2(2) + 1 / math.log2(3)
    assert rows["ndcg_at_3"].tolist() == pytest.approx([gained / best, 0])
    assert rows["ndcg_at_3"][0] == pytest.approx(0.6934264)
    assert rows["mrr_at_3"].tolist() == [0.5, 0]
    assert rows["recall_at_3"].tolist() == [1, 0]
    assert ranking_rows(FOUND, RIGHT, k=2)["recall_at_2"].tolist() == [0.5, 0]


def test_gain_is_that_of_scikit_learn():
    scores = np.random.default_rng(0).random((20, 30))
    right = [sorted(np.random.default_rng(n).choice(30, 1 + n % 12, replace=False).tolist()) for n in range(20)]
    truth = np.array([[document in wanted for document in range(30)] for wanted in right], float)
    found = np.argsort(-scores, axis=1).tolist()
    assert ranking_rows(found, right)["ndcg_at_10"].mean() == pytest.approx(ndcg_score(truth, scores, k=10))


def test_metrics_work_alone_and_combined():
    assert NDCG().compute(predictions=FOUND, references=RIGHT, k=3)["ndcg_at_3"] == pytest.approx(0.3467132)
    combined = evaluate.combine([MRR(), RetrievalRecall()])
    assert combined.compute(predictions=FOUND, references=RIGHT) == {"mrr_at_10": 0.25, "recall_at_10": 0.5}
    assert {"ndcg", "mrr", "recall", "similarity_correlation"} <= set(METRICS)


@pytest.mark.parametrize(
    ("found", "right", "k", "said"),
    [
        ([], [], 10, "Each query needs the documents found"),
        ([[1]], [], 10, "1 lists of found and 0 of right ones"),
        ([[1], [2]], [[1], []], 10, "query 1 .* has none"),
        ([[1, 1]], [[1]], 10, "query 0 has one twice"),
        ([[1]], [[1]], 0, "`k` must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_said(found, right, k, said):
    with pytest.raises(ValueError, match=said):
        ranking_rows(found, right, k=k)


def test_correlations_by_hand_with_equal_values():
    found = correlations(np.array([1.0, 2.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0]))
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4.
    assert found["spearman"] == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert found["pearson"] == pytest.approx(4.5 / math.sqrt(4.75 * 5))


def test_correlations_are_those_of_scipy():
    values, wanted = np.random.default_rng(0).integers(0, 9, (2, 50)).astype(float)
    found = SimilarityCorrelation().compute(predictions=values, references=wanted)
    assert found["spearman"] == pytest.approx(spearmanr(values, wanted).statistic)
    assert found["pearson"] == pytest.approx(pearsonr(values, wanted).statistic)
    assert correlations(np.ones(3), np.arange(3.0)) == {"spearman": 0.0, "pearson": 0.0}


def test_bm25_by_hand():
    scores = next(iter(bm25(["warm warm film"], ["a warm film", "a cold film", "a"])))[0]
    mean, n = 7 / 3, 3
    idf = {"warm": math.log(1 + (n - 1 + 0.5) / 1.5), "film": math.log(1 + (n - 2 + 0.5) / 2.5)}
    one = 2.2 / (1 + 1.2 * (1 - 0.75 + 0.75 * 3 / mean))
    assert scores.tolist() == pytest.approx([(2 * idf["warm"] + idf["film"]) * one, idf["film"] * one, 0])
    assert next(iter(bm25(["x"], ["!", "?"]))).tolist() == [[0, 0]]


def test_shared_words():
    found = shared_words(["a warm film", "!"], ["a warm film", "cold"])
    assert found.tolist() == pytest.approx([1, 0])
    assert shared_words(["!"], ["?"]).tolist() == [0]


def test_search_finds_every_right_text_and_never_the_query_itself():
    rows = Dataset.from_dict({
        "text": ["a", "a", "b", "c"],
        "text_pair": ["x", "y", "a", "c"],
        "negative": ["z", "b", "z", "x"],
    })
    search = search_of(rows)
    assert search.queries == ["a", "b", "c"]
    assert search.documents == ["x", "y", "a", "c", "z", "b"]
    assert search.right == [[0, 1], [2], [3]]
    # A text that is its own right answer stays among those that are found.
    assert search.itself == [2, 5, -1]
    found, scores = search.ranked([np.ones((3, 6))], 4)
    assert found == [[0, 1, 3, 4], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert scores[0] == [1, 1, 1, 1]


def test_labelled_texts_search_for_their_like():
    search = search_of(Dataset.from_dict({"text": ["a", "b", "c", "a", "d"], "label": [0, 0, 1, 0, 1]}))
    assert search.documents == ["a", "b", "c", "d"]
    assert search.right == [[1], [0], [3], [2]]
    assert search.itself == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="no label stands at two different texts"):
        search_of(Dataset.from_dict({"text": ["a", "a"], "label": [0, 0]}))


def test_cosines_and_broken_vectors():
    found = np.concatenate(list(cosines(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[6.0, 8.0], [4.0, -3.0]]))))
    assert found.tolist() == [pytest.approx([1, 0], abs=1e-7), [0, 0]]
    with pytest.raises(ValueError, match="1 of 2 are not"):
        unit(np.array([[1.0, np.nan], [1.0, 0.0]]))
