"""Error rates of transcripts: by hand, and against edit distances counted here."""

import random

import numpy as np
import pytest

from hf_transfer_plugin.metrics import CharacterErrorRate, WordErrorRate, error_counts, error_rate, normalized
from hf_transfer_plugin.metrics import speech as speech_metrics


def distance(given, wanted):
    """Levenshtein's, row by row of its table."""
    before = list(range(len(given) + 1))
    for i, one in enumerate(wanted, 1):
        row = [i]
        for j, other in enumerate(given, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (one != other)))
        before = row
    return before[-1]


def test_word_error_rate_by_hand():
    # cat -> bat, and "down" is too much: 2 errors in 3 words; in the second row one word of two is missing.
    given = {"predictions": ["the bat sat down", "hello"], "references": ["the cat sat", "hello there"]}
    assert WordErrorRate().compute(**given)["wer"] == pytest.approx((2 + 1) / (3 + 2))
    assert error_counts(given["predictions"], given["references"])[0].tolist() == [2, 1]
    assert error_counts(given["predictions"], given["references"])[1].tolist() == [3, 2]


def test_character_error_rate_by_hand():
    # One substitution in "abc"; two insertions into "d".
    assert CharacterErrorRate().compute(predictions=["abd", "def"], references=["abc", "d"])["cer"] == 3 / 4


def test_the_rate_is_that_of_the_corpus_not_the_mean_of_rows():
    given = {"predictions": ["x", "a b c d e f g h i"], "references": ["y", "a b c d e f g h i"]}
    assert WordErrorRate().compute(**given)["wer"] == pytest.approx(1 / 10)


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_counts_equal_edit_distances(unit):
    draw = random.Random(0)
    rows = [(" ".join(draw.choices(["ab", "cd", "e"], k=draw.randint(1, 8))) for _ in range(2)) for _ in range(40)]
    given, wanted = zip(*rows, strict=True)
    split = str.split if unit == "words" else list
    expected = [distance(split(one), split(other)) for one, other in zip(given, wanted, strict=True)]
    errors, lengths = error_counts(given, wanted, unit)
    assert errors.tolist() == expected
    assert lengths.tolist() == [len(split(one)) for one in wanted]


def test_an_empty_answer_misses_every_word():
    assert WordErrorRate().compute(predictions=["", " "], references=["a b", "c"])["wer"] == 1


def test_where_nothing_was_said_every_word_is_an_error():
    errors, lengths = error_counts(["a b", ""], ["", ""])
    assert (errors.tolist(), lengths.tolist()) == ([2, 0], [0, 0])
    assert np.isnan(error_rate(errors, lengths))


def test_composed_and_decomposed_letters_are_the_same():
    assert WordErrorRate().compute(predictions=["man\u0303ana"], references=["ma\u00f1ana"])["wer"] == 0


def test_normalised_texts_have_neither_case_nor_punctuation():
    assert normalized("  Don't STOP, now!  It’s 5-6 €") == "dont stop now its 5 6"
    assert normalized("Straße") == "strasse"
    given = {"predictions": ["hello world"], "references": ["Hello, World!"]}
    assert WordErrorRate().compute(**given)["wer"] == 1
    assert WordErrorRate().compute(**given, normalize=True)["wer"] == 0


@pytest.mark.parametrize("text", ["നമസ്കാരം", "हिन्दी में"])
def test_marks_that_are_vowels_stay(text):
    assert normalized(text) == text


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="`unit` must be words or characters, but got 'letters'"):
        error_counts(["a"], ["a"], "letters")


def test_jiwer_is_named_where_it_is_missing(monkeypatch):
    def missing(package, extra):
        raise ImportError(f"{package} of {extra}")

    monkeypatch.setattr(speech_metrics, "require", missing)
    with pytest.raises(ImportError, match="jiwer of audio"):
        error_counts(["a"], ["a"])
