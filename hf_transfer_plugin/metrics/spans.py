"""Metrics of spans: entities in a text, and answers taken from it."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from hf_transfer_plugin._optional import require

_SEQEVAL = "Nakayama (2018), seqeval: A Python framework for sequence labeling evaluation."
_SQUAD = "Rajpurkar et al. (2016), SQuAD: 100,000+ Questions for Machine Comprehension of Text, arXiv:1606.05250."
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class EntityF1(evaluate.Metric):
    """
    Precision, recall and F1 of whole entities by seqeval, strict IOB2: start, end and type must all be right, and a
    predicted `I-` that follows no `B-` of its type is no entity.
    """

    metric_name: ClassVar[str] = "entity_f1"

    def __init__(self, config_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(config_name=config_name, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            module_name=self.metric_name,
            description="Precision, recall and F1 of whole entities, over all and for each type.",
            citation=_SEQEVAL,
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        answered, true = entities(predictions), entities(references)
        types = sorted({span[-1] for spans in (*answered, *true) for span in spans})
        per_type = {}
        for name in types:
            mine, wanted = ([{s for s in spans if s[-1] == name} for spans in rows] for rows in (answered, true))
            counts = _counts(mine, wanted).sum(0)
            per_type[name] = {**_scores(counts), "support": int(counts[2])}
        whole = _scores(_counts(answered, true).sum(0))
        return {**{f"entity_{name}": value for name, value in whole.items()}, "entity_per_type": per_type}


def entities(rows: Sequence[Sequence[str]]) -> list[set[tuple[int, int, str]]]:
    """
    Entities of tagged rows, strict IOB2.

    Args:
        rows (`Sequence[Sequence[str]]`):
            Tags of each row: `O`, `B-TYPE` or `I-TYPE`.

    Returns:
        `list[set[tuple[int, int, str]]]`: Of each row, first tag, end (exclusive) and type of every entity.

    Raises:
        ValueError: If a tag is none of IOB2's.
        ImportError: If seqeval is not installed.
    """
    scheme = require("seqeval.scheme", extra="text")
    strange = sorted({tag for row in rows for tag in row if tag != "O" and tag[:2] not in {"B-", "I-"}})
    if strange:
        raise ValueError(
            f"Tags of entities must be 'O', 'B-TYPE' or 'I-TYPE' (IOB2), but got {', '.join(map(repr, strange[:5]))}. "
            "Use `Accuracy` and `F1` over the tags where they mark no entities."
        )
    found = scheme.Entities([list(row) for row in rows], scheme.IOB2)
    return [{(one.start, one.end, one.tag) for one in row} for row in found.entities]


def entity_counts(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """
    What the entity F1 of any draw of rows is made of: `2 * right / (answered + true)` of the summed columns.

    Args:
        predictions (`Sequence[Sequence[str]]`):
            Tags given.
        references (`Sequence[Sequence[str]]`):
            True tags.

    Returns:
        `np.ndarray` of shape `(rows, 3)`: Entities found right, answered and true.

    Example:
    ```python
    >>> counts = entity_counts(predictions, references)
    >>> def f1(rows):
    ...     right, answered, true = counts[rows].sum(0)
    ...     return 2 * right / max(answered + true, 1)
    >>> bootstrap_interval(f1, len(counts))
    ```
    """
    return _counts(entities(predictions), entities(references))


def _counts(answered: Sequence[set[Any]], true: Sequence[set[Any]]) -> np.ndarray:
    return np.array([(len(a & t), len(a), len(t)) for a, t in zip(answered, true, strict=True)]).reshape(-1, 3)


def _scores(counts: np.ndarray) -> dict[str, float]:
    right, answered, true = (int(count) for count in counts)
    return {
        "precision": right / answered if answered else 0.0,
        "recall": right / true if true else 0.0,
        "f1": 2 * right / (answered + true) if answered + true else 0.0,
    }


class SquadScore(evaluate.Metric):
    """
    Exact match and F1 of answers, in 0..1, as in "SQuAD: 100,000+ Questions for Machine Comprehension of Text"
    (Rajpurkar et al., 2016), https://huggingface.co/papers/1606.05250, and its script for SQuAD 2.

    Each row has one or several true answers, and the best counts; an empty string says that there is no answer.
    """

    metric_name: ClassVar[str] = "squad_score"

    def __init__(self, config_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(config_name=config_name, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            module_name=self.metric_name,
            description="Share of answers that match exactly, and mean F1 of their words.",
            citation=_SQUAD,
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in squad_rows(predictions, references).items()}


def squad_rows(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """
    Scores of each answer.

    Answers are compared in lower case, without punctuation, without the articles a, an and the, and with single
    spaces. With `P` and `T` the words of answer and truth, counted as often as they occur:

        F1 = 2 |P and T| / (|P| + |T|), or 1 where both are empty

    Args:
        predictions (`Sequence[str]`):
            Answers given.
        references (`Sequence[Sequence[str]]`):
            True answers of each row; an empty list or `[""]` where there is none.

    Returns:
        `dict[str, np.ndarray]`: `exact_match` and `f1`, of shape `(rows,)`.
    """
    matches, overlaps = [], []
    for answer, wanted in zip(predictions, references, strict=True):
        given, golds = _words(answer), [_words(gold) for gold in wanted]
        # As in the script of SQuAD 2: a truth of articles and punctuation alone is no answer.
        golds = [gold for gold in golds if gold] or [[]]
        matches.append(float(given in golds))
        overlaps.append(max(_overlap(given, gold) for gold in golds))
    return {"exact_match": np.array(matches), "f1": np.array(overlaps)}


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _overlap(given: list[str], gold: list[str]) -> float:
    if not given and not gold:
        return 1.0
    return 2 * (Counter(given) & Counter(gold)).total() / (len(given) + len(gold))
