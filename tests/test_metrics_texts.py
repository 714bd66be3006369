"""Metrics of spans and texts against their libraries and values worked out by hand; no network."""

import importlib.util
import math
import os
import socket

import evaluate
import numpy as np
import pytest

from hf_transfer_plugin import _optional
from hf_transfer_plugin.metrics import (
    EntityF1,
    Rouge,
    SquadScore,
    Translation,
    bootstrap_interval,
    entity_counts,
    perplexity,
    rouge_rows,
    squad_rows,
    token_accuracy,
)

LIBRARIES = ("seqeval", "rouge_score", "sacrebleu")
TRUE = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-PER", "O"], ["O", "O"]]
TAGS = [["B-PER", "I-PER", "O", "B-PER"], ["O", "I-PER", "O"], ["B-LOC", "O"]]


@pytest.fixture(autouse=True)
def libraries_and_no_network(monkeypatch):
    for name in () if os.environ.get("CI") else LIBRARIES:  # there they must be installed
        pytest.importorskip(name, reason=f'needs {name}: pip install "hf-transfer-plugin[text]"')

    def refuse(*args, **kwargs):
        raise AssertionError("a metric went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_entities_by_hand():
    # True: PER, LOC and PER. Given: PER right; the LOC as PER; a PER that begins with I- is none; LOC out of nothing.
    found = EntityF1().compute(predictions=TAGS, references=TRUE)
    assert found["entity_precision"] == pytest.approx(1 / 3)
    assert found["entity_recall"] == pytest.approx(1 / 3)
    assert found["entity_f1"] == pytest.approx(1 / 3)
    assert found["entity_per_type"] == {
        "LOC": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1},
        "PER": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
    }


def test_entities_equal_seqeval():
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    draws = np.random.default_rng(0)
    names = np.array(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    true = [["O", "B-PER", "I-PER", "O", "B-LOC", "O", "B-PER", "O"] for _ in range(40)]
    given = [[str(draws.choice(names)) if draws.random() < 0.4 else tag for tag in row] for row in true]
    found = EntityF1().compute(predictions=given, references=true)
    wanted = classification_report(true, given, mode="strict", scheme=IOB2, output_dict=True, zero_division=0)
    for name in ("precision", "recall"):
        assert found[f"entity_{name}"] == pytest.approx(wanted["micro avg"][name])
    assert found["entity_f1"] == pytest.approx(wanted["micro avg"]["f1-score"])
    for kind, values in found["entity_per_type"].items():
        assert values == {
            **{name: pytest.approx(wanted[kind][name]) for name in ("precision", "recall")},
            "f1": pytest.approx(wanted[kind]["f1-score"]),
            "support": wanted[kind]["support"],
        }


def test_rows_without_entities_give_zero():
    found = EntityF1().compute(predictions=[["O", "O"]], references=[["O", "O"]])
    assert found == {"entity_precision": 0.0, "entity_recall": 0.0, "entity_f1": 0.0, "entity_per_type": {}}


def test_counts_of_rows_make_the_f1_of_a_draw():
    counts = entity_counts(TAGS, TRUE)
    assert counts.tolist() == [[1, 2, 2], [0, 0, 1], [0, 1, 0]]
    low, high = bootstrap_interval(lambda rows: 2 * counts[rows, 0].sum() / max(counts[rows, 1:].sum(), 1), 3)
    assert low == 0.0
    assert high == pytest.approx(2 * 3 / 12)  # three times the first row


def test_tags_that_mark_no_entities_are_refused():
    with pytest.raises(ValueError, match=r"'B-TYPE' or 'I-TYPE' \(IOB2\), but got 'NOUN', 'VERB'.*`Accuracy`"):
        EntityF1().compute(predictions=[["VERB", "NOUN"]], references=[["O", "VERB"]])


def test_answers_by_hand():
    given = ["The cat!", "a black cat", "dog", "", "something", "the"]
    true = [["cat"], ["black dog", "one black cat sat"], ["cat"], [], [""], ["a"]]
    rows = squad_rows(given, true)
    assert rows["exact_match"].tolist() == [1, 0, 0, 1, 0, 1]
    # "black cat" to "black dog": 1 of 2 and 2 words; to "one black cat sat": 2 of 2 and 4; the better counts.
    assert rows["f1"].tolist() == pytest.approx([1, 2 * 2 / (2 + 4), 0, 1, 0, 1])
    assert SquadScore().compute(predictions=given, references=[t or [""] for t in true]) == {
        "exact_match": pytest.approx(3 / 6),
        "f1": pytest.approx((3 + 2 / 3) / 6),
    }


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("  Denver   Broncos ", "denver broncos", True),
        ("Denver-Broncos", "DenverBroncos", True),
        ("a theatre", "theatre", True),
        ("another", "other", False),
        ("1,000", "1000", True),
    ],
)
def test_answers_are_normalised_as_in_the_script(answer, gold, same):
    assert bool(squad_rows([answer], [[gold]])["exact_match"][0]) is same


def test_words_count_as_often_as_they_occur():
    # Shared: one "very" and "good"; 3 words given, 2 true.
    assert squad_rows(["very very good"], [["very good"]])["f1"][0] == pytest.approx(2 * 2 / 5)


def test_rouge_by_hand():
    # Shared words: the, cat. Pairs: "the cat". Subsequence: the cat.
    rows = rouge_rows(["the cat sat"], ["the cat slept well"])
    assert rows["rouge1"][0] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert rows["rouge2"][0] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert rows["rougeL"][0] == rows["rouge1"][0]
    assert rouge_rows(["cat the"], ["the cat"])["rougeL"][0] == pytest.approx(1 / 2)


def test_rouge_is_the_mean_of_the_rows_without_stemming():
    found = Rouge().compute(predictions=["one cat", "dogs"], references=["one cat", "dog"])
    assert found == {"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5}
    assert Rouge().compute(predictions=[""], references=["a text"])["rougeL"] == 0.0


def test_rouge_says_where_it_reads_nothing(caplog):
    assert rouge_rows(["\u043a\u043e\u0442"], ["\u043a\u043e\u0442"])["rouge1"].tolist() == [0.0]
    assert "1 of 1 references have no letter from a to z, so ROUGE gives them 0. Look at chrF instead." in caplog.text


def test_bleu_by_hand():
    # Of 5 words 4, of 4 pairs 3, of 3 triples 2, of 2 quadruples 1; the lengths are equal, so there is no penalty.
    found = Translation().compute(predictions=["one two three four nine"], references=["one two three four five"])
    assert found["bleu"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))
    assert Translation().compute(predictions=["one cat sat here"], references=["one cat sat here"]) == {
        "bleu": pytest.approx(100.0),
        "chrf": pytest.approx(100.0),
    }


def test_translation_equals_sacrebleu_with_the_signatures_in_its_words():
    import sacrebleu

    given, true = ["ein Hund l\u00e4uft", "das ist gut"], ["ein Hund rennt", "das ist sehr gut"]
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    found = Translation().compute(predictions=given, references=true)
    assert found["bleu"] == pytest.approx(bleu.corpus_score(given, [true]).score)
    assert found["chrf"] == pytest.approx(chrf.corpus_score(given, [true]).score)
    for metric in (bleu, chrf):
        assert str(metric.get_signature()).rsplit("|version", 1)[0] in Translation.__doc__


def test_another_tokenizer_can_be_named():
    given, true = ["\u6211\u559c\u6b22\u4f60\u7684\u732b"], ["\u6211\u559c\u6b22\u4f60\u7684\u72d7"]
    plain = Translation().compute(predictions=given, references=true)["bleu"]
    assert Translation().compute(predictions=given, references=true, tokenize="zh")["bleu"] > plain


def test_text_metrics_work_inside_evaluate_combine():
    both = evaluate.combine([Rouge(), Translation()])
    found = both.compute(predictions=["one cat sat here"], references=["one cat sat here"])
    assert found.keys() == {"rouge1", "rouge2", "rougeL", "bleu", "chrf"}


def test_perplexity_by_hand():
    # Two tokens of probability 1/2 and 1/8: the geometric mean is 1/4.
    assert perplexity(math.log(2) + math.log(8), 2) == pytest.approx(4.0)
    assert token_accuracy(3, 4) == 0.75


@pytest.mark.parametrize("call", [lambda: perplexity(1.0, 0), lambda: token_accuracy(0, 0)])
def test_no_tokens_are_refused(call):
    with pytest.raises(ValueError, match="`tokens` must be at least 1, but got 0"):
        call()


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1e6])
def test_a_diverged_loss_has_no_perplexity(loss):
    with pytest.raises(ValueError, match="the model has diverged. Train anew with a lower `--learning_rate`"):
        perplexity(loss, 2)


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("seqeval", lambda: EntityF1().compute(predictions=TAGS, references=TRUE)),
        ("rouge_score", lambda: Rouge().compute(predictions=["a"], references=["a"])),
        ("sacrebleu", lambda: Translation().compute(predictions=["a"], references=["a"])),
    ],
)
def test_a_missing_library_is_named_with_its_extra(package, call, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(_optional, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(ImportError, match=rf"`{package}.*pip install \"hf-transfer-plugin\[text\]\""):
        call()
