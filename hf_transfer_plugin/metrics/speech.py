"""Metrics of transcripts: how many words and characters differ from those that were said."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from hf_transfer_plugin._optional import require

UNITS = ("words", "characters")
_MORRIS = "Morris et al. (2004), From WER and RIL to MER and WIL, https://doi.org/10.21437/Interspeech.2004-668."


class _ErrorRate(evaluate.Metric):
    """Shared frame: one transcript and one wanted text a row, and no file lock for in-memory use."""

    metric_name: ClassVar[str]
    figure: ClassVar[str]
    description: ClassVar[str]
    unit: ClassVar[str]

    def __init__(self, config_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(config_name=config_name, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            module_name=self.metric_name,
            description=self.description,
            citation=_MORRIS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: Any, references: Any, normalize: bool = False) -> dict[str, float]:
        if normalize:
            predictions, references = map(normalized, predictions), map(normalized, references)
        errors, lengths = error_counts(list(predictions), list(references), self.unit)
        return {self.figure: error_rate(errors, lengths)}


class WordErrorRate(_ErrorRate):
    """
    `(substituted + deleted + inserted words) / words that were said`, over all rows together, so that it may exceed 1.
    `compute(normalize=True)` takes case and punctuation away first; see [`normalized`].
    """

    metric_name, figure, unit = "word_error_rate", "wer", "words"
    description = "Word error rate over jiwer."


class CharacterErrorRate(_ErrorRate):
    """As [`WordErrorRate`], with characters in the place of words; spaces count too."""

    metric_name, figure, unit = "character_error_rate", "cer", "characters"
    description = "Character error rate over jiwer."


def error_counts(
    predictions: Sequence[str], references: Sequence[str], unit: str = "words"
) -> tuple[np.ndarray, np.ndarray]:
    """
    The smallest number of substitutions, deletions and insertions that turn each text into what was said, by jiwer.
    Unicode is composed (NFC) and spaces are single before that.

    Args:
        predictions (`Sequence[str]`):
            Transcripts.
        references (`Sequence[str]`):
            What was said.
        unit (`str`, *optional*, defaults to `"words"`):
            `"words"`, which spaces part, or `"characters"`.

    Returns:
        `tuple[np.ndarray, np.ndarray]` of shape `(rows,)` each: Errors of each row, and units that were said. Where
        nothing was said, every unit of the transcript is an error.

    Raises:
        ValueError: If `unit` is another.
        ImportError: If jiwer is not installed.
    """
    if unit not in UNITS:
        raise ValueError(f"`unit` must be {' or '.join(UNITS)}, but got {unit!r}.")
    jiwer = require("jiwer", extra="audio")
    count = jiwer.process_words if unit == "words" else jiwer.process_characters
    errors, lengths = [], []
    for given, wanted in zip(map(_plain, predictions), map(_plain, references), strict=True):
        length = len(wanted.split()) if unit == "words" else len(wanted)
        if length:
            found = count(wanted, given)
            errors.append(found.substitutions + found.deletions + found.insertions)
        else:
            errors.append(len(given.split()) if unit == "words" else len(given))
        lengths.append(length)
    return np.array(errors, dtype=np.int64), np.array(lengths, dtype=np.int64)


def error_rate(errors: np.ndarray, lengths: np.ndarray) -> float:
    """
    `sum of errors / sum of lengths`.

    Args:
        errors (`np.ndarray` of shape `(rows,)`):
            Errors of each row.
        lengths (`np.ndarray` of shape `(rows,)`):
            Units that were said in each.

    Returns:
        `float`: The rate; no number (NaN) where nothing was said.
    """
    return float(errors.sum() / lengths.sum()) if lengths.sum() else float("nan")


def normalized(text: str) -> str:
    """
    Takes away what a transcript need not tell: case is folded, apostrophes are left out, and all other punctuation and
    symbols (categories P and S of Unicode) become spaces. Marks stay, since in many scripts they are vowels.

    Args:
        text (`str`):
            A transcript.

    Returns:
        `str`: Its words.
    """
    folded = re.sub("['’ʼ]", "", unicodedata.normalize("NFC", text).casefold())
    return _plain("".join(" " if unicodedata.category(one)[0] in "PS" else one for one in folded))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
