"""Search over the rows of a split: who asks for what, what vectors find, and what shared words find."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from hf_transfer_plugin.tasks.excerpts import excerpt

BLOCK = 512
WORDS = r"(?u)\b\w+\b"
K1, B = 1.2, 0.75
SHOWN = 300


@dataclass(frozen=True)
class Search:
    """
    Queries, the documents among which they search, and which of them are right.

    Args:
        queries (`list[str]`):
            Different texts.
        documents (`list[str]`):
            Different texts.
        right (`list[list[int]]`):
            Numbers of each query's right documents.
        itself (`list[int]`):
            Number of the document that is the query itself and no right one, else -1; it is never found.
        query_rows (`list[int]`):
            A row of the split for each query.
        document_places (`list[tuple[str, int]]`):
            Column and row of each document.
    """

    queries: list[str]
    documents: list[str]
    right: list[list[int]]
    itself: list[int]
    query_rows: list[int]
    document_places: list[tuple[str, int]]

    def ranked(self, scores: Iterable[np.ndarray], k: int) -> tuple[list[list[int]], list[list[float]]]:
        """
        Args:
            scores (`Iterable[np.ndarray]`):
                Blocks of queries × documents, in the order of the queries.
            k (`int`):
                How many documents to find.

        Returns:
            `tuple`: Numbers of the best documents for each query, and their scores; equal ones in their order.
        """
        found, kept, start = [], [], 0
        for block in scores:
            block = block.copy()
            for row, own in enumerate(self.itself[start : start + len(block)]):
                if own >= 0:
                    block[row, own] = -np.inf
            order = np.argsort(-block, axis=1, kind="stable")[:, :k]
            for row, numbers in enumerate(order):
                numbers = numbers[np.isfinite(block[row, numbers])]
                found.append(numbers.tolist())
                kept.append(block[row, numbers].tolist())
            start += len(block)
        return found, kept


def search_of(rows: Dataset) -> Search:
    """
    Pairs and triplets: the first texts search among all second ones and negatives. Labelled texts: each searches among
    the others for those with its label; one whose label is the only one of its kind does not search.

    Args:
        rows (`Dataset`):
            Rows of `text` and `text_pair`, perhaps `negative`; or of `text` and `label`.

    Returns:
        `Search`: The search.

    Raises:
        ValueError: If nothing could be searched for.
    """
    if "text_pair" not in rows.column_names:
        return _by_label(rows)
    places: dict[str, tuple[str, int]] = {}
    for column in ("text_pair", "negative"):
        for number, text in enumerate(rows[column] if column in rows.column_names else ()):
            places.setdefault(text, (column, number))
    numbers = {text: number for number, text in enumerate(places)}
    first: dict[str, int] = {}
    right: dict[str, dict[int, None]] = {}
    for row, (query, document) in enumerate(zip(rows["text"], rows["text_pair"], strict=True)):
        first.setdefault(query, row)
        right.setdefault(query, {})[numbers[document]] = None
    own = {query: numbers.get(query, -1) for query in first}
    itself = [-1 if own[query] in right[query] else own[query] for query in first]
    wanted = [list(found) for found in right.values()]
    return Search(list(first), list(places), wanted, itself, list(first.values()), list(places.values()))


def _by_label(rows: Dataset) -> Search:
    first: dict[str, int] = {}
    for row, text in enumerate(rows["text"]):
        first.setdefault(text, row)
    documents, labels = list(first), rows["label"]
    kinds: dict[int, list[int]] = {}
    for number, row in enumerate(first.values()):
        kinds.setdefault(labels[row], []).append(number)
    found = []
    for number, row in enumerate(first.values()):
        others = [other for other in kinds[labels[row]] if other != number]
        if others:
            found.append((documents[number], others, number, row))
    if not found:
        raise ValueError(
            f"Texts of the same label must find each other, but in {len(rows)} rows no label stands at two different "
            "texts. Give more rows of each label."
        )
    queries, right, itself, query_rows = (list(part) for part in zip(*found, strict=True))
    return Search(queries, documents, right, itself, query_rows, [("text", row) for row in first.values()])


def cosines(queries: np.ndarray, documents: np.ndarray) -> Iterable[np.ndarray]:
    """
    Args:
        queries (`np.ndarray`):
            Vectors.
        documents (`np.ndarray`):
            Vectors.

    Yields:
        `np.ndarray`: Blocks of their cosines, queries × documents.

    Raises:
        ValueError: If a vector holds something else than finite numbers.
    """
    queries, documents = unit(queries), unit(documents)
    for start in range(0, len(queries), BLOCK):
        yield queries[start : start + BLOCK] @ documents.T


def unit(vectors: np.ndarray) -> np.ndarray:
    """
    Args:
        vectors (`np.ndarray`):
            Vectors.

    Returns:
        `np.ndarray`: Those of length 1 in the same direction; nothing stays nothing.

    Raises:
        ValueError: If one holds something else than finite numbers.
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors)).any(-1).sum())
        raise ValueError(
            f"Vectors must be finite numbers, but {bad} of {len(vectors)} are not. Train with a lower "
            "`--learning_rate`."
        )
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def bm25(queries: Sequence[str], documents: Sequence[str]) -> Iterable[np.ndarray]:
    r"""
    Scores by shared words: BM25 as Lucene has it (Robertson and Zaragoza 2009, The Probabilistic Relevance Framework).

    $score(q, d) = \sum_{t \in q} idf_t \cdot f_{t,d} (k_1 + 1) / (f_{t,d} + k_1 (1 - b + b |d| / avg))$ with
    $idf_t = \ln(1 + (N - n_t + 0.5) / (n_t + 0.5))$, where $f_{t,d}$ counts the word $t$ in $d$, $|d|$ are the words
    of $d$ and $avg$ their mean, $n_t$ of $N$ documents hold $t$; $k_1 = 1.2$, $b = 0.75$. A word that a query holds
    twice counts twice.

    Args:
        queries (`Sequence[str]`):
            Queries.
        documents (`Sequence[str]`):
            Documents.

    Yields:
        `np.ndarray`: Blocks of scores, queries × documents.
    """
    counter = CountVectorizer(token_pattern=WORDS)
    try:
        counts = counter.fit_transform(documents).astype(np.float64).tocsr()
    except ValueError:  # no document has a word
        yield np.zeros((len(queries), len(documents)))
        return
    lengths = np.asarray(counts.sum(1)).ravel()
    holding = np.asarray((counts > 0).sum(0)).ravel()
    idf = np.log1p((len(documents) - holding + 0.5) / (holding + 0.5))
    pressed = K1 * (1 - B + B * lengths / max(lengths.mean(), 1e-9))
    rows = np.repeat(np.arange(len(documents)), np.diff(counts.indptr))
    counts.data = counts.data * (K1 + 1) / (counts.data + pressed[rows]) * idf[counts.indices]
    asked = counter.transform(queries).tocsr()
    for start in range(0, len(queries), BLOCK):
        yield np.asarray((asked[start : start + BLOCK] @ counts.T).todense())


def shared_words(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """
    Args:
        first (`Sequence[str]`):
            Texts.
        second (`Sequence[str]`):
            As many texts.

    Returns:
        `np.ndarray` of shape `(pairs,)`: Cosine of the TF-IDF vectors of each pair; 0 where none has a word.
    """
    weigher = TfidfVectorizer(token_pattern=WORDS)
    try:
        weigher.fit([*first, *second])
    except ValueError:  # no text has a word
        return np.zeros(len(first))
    return np.asarray(weigher.transform(first).multiply(weigher.transform(second)).sum(1)).ravel()


def wrong_finds(search: Search, found: list[list[int]], scores: list[list[float]], count: int) -> list[dict[str, Any]]:
    """
    Args:
        search (`Search`):
            The search.
        found (`list[list[int]]`):
            Numbers of the documents for each query, the best first.
        scores (`list[list[float]]`):
            Their scores.
        count (`int`):
            Rows at most.

    Returns:
        `list[dict[str, Any]]`: Queries that found a wrong document first, the one with the highest score before the
        others.
    """
    wrong = [n for n, ranked in enumerate(found) if ranked and ranked[0] not in search.right[n]]
    wrong.sort(key=lambda n: -scores[n][0])
    return [
        {
            "text": excerpt(search.queries[n], 0, SHOWN),
            "label": excerpt(search.documents[search.right[n][0]], 0, SHOWN),
            "prediction": excerpt(search.documents[found[n][0]], 0, SHOWN),
            "score": scores[n][0],
        }
        for n in wrong[:count]
    ]


def far_pairs(rows: Dataset, values: np.ndarray, count: int) -> list[dict[str, Any]]:
    """
    Args:
        rows (`Dataset`):
            Pairs and their scores.
        values (`np.ndarray`):
            Their similarities.
        count (`int`):
            Rows at most.

    Returns:
        `list[dict[str, Any]]`: The pairs whose rank among the similarities is farthest from that among the scores.
    """
    wanted = np.asarray(rows["label"], dtype=float)
    off = np.abs(values.argsort().argsort() - wanted.argsort(kind="stable").argsort())
    return [
        {
            "text": excerpt(rows[n]["text"], 0, SHOWN),
            "text_pair": excerpt(rows[n]["text_pair"], 0, SHOWN),
            "label": float(wanted[n]),
            "score": float(values[n]),
        }
        for n in np.argsort(-off, kind="stable")[:count].tolist()
    ]
