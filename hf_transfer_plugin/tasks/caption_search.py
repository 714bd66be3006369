"""Pictures and captions that search for each other: measured, told row by row, and what beats none."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset

from hf_transfer_plugin.metrics import bootstrap_interval, ranking_rows
from hf_transfer_plugin.tasks.base import Outcome
from hf_transfer_plugin.tasks.class_report import confident_errors, shortened
from hf_transfer_plugin.tasks.retrieval import cosines

DEPTHS = (1, 5)
BEST = "mean_recall"


class CaptionSearch:
    """
    Every picture searches among the different captions of its split for its own, and every caption for its pictures.

    Args:
        rows (`Dataset`):
            Checked rows with the column `text`.
    """

    def __init__(self, rows: Dataset) -> None:
        texts = rows["text"]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        self.captions, self.own = list(numbers), np.array([numbers[text] for text in texts])
        self.first = [int(np.argmax(self.own == number)) for number in range(len(self.captions))]

    def found(self, pictures: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Args:
            pictures (`np.ndarray` of shape `(rows, width)`):
                What the model makes of the pictures.
            texts (`np.ndarray` of shape `(rows, width)`):
                What it makes of their captions.

        Returns:
            `tuple`: Numbers of the captions for each picture, the best first; the cosine of the first; and rows of the
            pictures for each caption.
        """
        of_captions = texts[self.first]
        captions, nearest = _ranked(cosines(pictures, of_captions))
        return captions, nearest[:, 0], _ranked(cosines(of_captions, pictures))[0]

    def recalls(self, captions: np.ndarray, pictures: np.ndarray) -> dict[str, float]:
        """
        Args:
            captions (`np.ndarray`):
                Numbers of the captions for each picture.
            pictures (`np.ndarray`):
                Rows of the pictures for each caption.

        Returns:
            `dict[str, float]`: Recall both ways among the first 1 and 5, and the mean of these four.
        """
        theirs = [np.flatnonzero(self.own == number).tolist() for number in range(len(self.captions))]
        asked = {
            "image_to_text": (captions.tolist(), [[number] for number in self.own.tolist()]),
            "text_to_image": (pictures.tolist(), theirs),
        }
        found = {
            f"{way}_recall_at_{k}": float(ranking_rows(ranked, right, k=k)[f"recall_at_{k}"].mean())
            for way, (ranked, right) in asked.items()
            for k in DEPTHS
        }
        return {**found, BEST: float(np.mean(list(found.values())))}

    def chance(self) -> dict[str, float]:
        """
        Returns:
            `dict[str, float]`: What [`recalls`] gives on average for a random order: `k` of all that there are.
        """
        sizes = {"image_to_text": len(self.captions), "text_to_image": len(self.own)}
        found = {f"{way}_recall_at_{k}": min(k / size, 1.0) for way, size in sizes.items() for k in DEPTHS}
        return {**found, BEST: float(np.mean(list(found.values())))}


def _ranked(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    orders, scores = [], []
    for block in blocks:
        order = np.argsort(-block, axis=1, kind="stable")[:, : max(DEPTHS)]
        orders.append(order)
        scores.append(np.take_along_axis(block, order, 1))
    return np.concatenate(orders), np.concatenate(scores)


def _vectors(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    pictures, texts = outcome.predictions
    return np.asarray(pictures), np.asarray(texts)


def metrics(outcome: Outcome) -> dict[str, float]:
    """
    Args:
        outcome (`Outcome`):
            What the model makes of pictures and captions.

    Returns:
        `dict[str, float]`: Recall both ways.
    """
    search = CaptionSearch(outcome.rows)
    captions, _, pictures = search.found(*_vectors(outcome))
    return search.recalls(captions, pictures)


def report(outcome: Outcome, count: int, *, show: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """
    Args:
        outcome (`Outcome`):
            What the model makes of pictures and captions.
        count (`int`):
            Rows at most.
        show (`Callable`):
            Of a row what is told of it.

    Returns:
        `dict[str, Any]`: `intervals`, and as `errors` the pictures that found another caption first, the surest before
        the others.
    """
    search = CaptionSearch(outcome.rows)
    captions, nearest, _ = search.found(*_vectors(outcome))
    right = captions[:, 0] == search.own
    interval = bootstrap_interval(lambda rows: float(right[rows].mean()), len(right))
    told = {
        "label": [shortened(search.captions[number]) for number in search.own],
        "prediction": [shortened(search.captions[number]) for number in captions[:, 0]],
    }
    errors = confident_errors(outcome.rows, ~right, nearest, told, count, show=show)
    return {"intervals": {"image_to_text_recall_at_1": interval}, "errors": errors}


def answers(outcome: Outcome) -> list[dict[str, Any]]:
    """
    Args:
        outcome (`Outcome`):
            What the model makes of pictures and captions.

    Returns:
        `list[dict[str, Any]]`: Of each picture the caption that fits it best, and their cosine as `score`.
    """
    search = CaptionSearch(outcome.rows)
    captions, nearest, _ = search.found(*_vectors(outcome))
    return [
        {"prediction": search.captions[number], "score": float(score)}
        for number, score in zip(captions[:, 0], nearest, strict=True)
    ]
