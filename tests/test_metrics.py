"""Metrics against scikit-learn and against values worked out by hand; no network."""

import socket

import evaluate
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from hf_transfer_plugin.metrics import (
    F1,
    METRICS,
    Accuracy,
    ConfusionMatrix,
    Precision,
    Recall,
    RegressionError,
    macro_f1,
)
from hf_transfer_plugin.metrics import texts as text_metrics

TRUE = [0, 0, 0, 1, 1, 2, 2, 2, 2, 1]
ANSWERS = [0, 1, 0, 1, 1, 2, 0, 2, 1, 1]
ROWS_TRUE = [[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]]
ROWS_ANSWERS = [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]
AVERAGED = [(Precision, "precision"), (Recall, "recall"), (F1, "f1")]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_accuracy_by_hand_and_against_scikit_learn():
    assert Accuracy().compute(predictions=ANSWERS, references=TRUE) == {"accuracy": 0.7}
    assert sklearn_metrics.accuracy_score(TRUE, ANSWERS) == 0.7


def test_precision_recall_and_f1_by_hand():
    # Class 0: 2 right of 3 answered, of 3 true. Class 1: 3 of 5, of 3. Class 2: 2 of 2, of 4.
    given = {"predictions": ANSWERS, "references": TRUE}
    precision, recall, f1 = (m().compute(**given) for m in (Precision, Recall, F1))
    assert precision["precision_per_class"] == pytest.approx([2 / 3, 3 / 5, 1])
    assert recall["recall_per_class"] == pytest.approx([2 / 3, 1, 1 / 2])
    assert f1["f1_per_class"] == pytest.approx([2 / 3, 3 / 4, 2 / 3])
    assert precision["precision_macro"] == pytest.approx((2 / 3 + 3 / 5 + 1) / 3)
    assert recall["recall_macro"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert f1["f1_macro"] == pytest.approx((2 / 3 + 3 / 4 + 2 / 3) / 3)


@pytest.mark.parametrize(("metric", "name"), AVERAGED)
@pytest.mark.parametrize("labels", [None, [0, 1, 2], [0, 1, 2, 3]])
def test_averages_equal_scikit_learn(metric, name, labels):
    score = getattr(sklearn_metrics, f"{name}_score")
    found = metric().compute(predictions=ANSWERS, references=TRUE, labels=labels)
    # The average leaves class 3 out, which is nowhere; its own value is told.
    assert found[f"{name}_macro"] == pytest.approx(score(TRUE, ANSWERS, average="macro", zero_division=0))
    expected = score(TRUE, ANSWERS, average=None, labels=labels, zero_division=0)
    assert found[f"{name}_per_class"] == pytest.approx(list(expected))


@pytest.mark.parametrize(("metric", "name"), AVERAGED)
def test_classes_that_the_data_lacks_are_not_averaged(metric, name):
    found = metric().compute(predictions=[1, 1], references=[1, 1], labels=[0, 1, 2])
    assert found == {f"{name}_macro": 1.0, f"{name}_per_class": [0.0, 1.0, 0.0]}
    # A class that is only answered counts: (1 + 0) / 2, with 2 of 3 right for precision and recall of class 1.
    found = metric().compute(predictions=[1, 1, 0], references=[1, 1, 1], labels=[0, 1, 2])
    assert found[f"{name}_macro"] == pytest.approx({"precision": 1, "recall": 2 / 3, "f1": 4 / 5}[name] / 2)
    rows = [[0, 1, 0], [0, 1, 0]]
    found = metric("multilabel").compute(predictions=rows, references=rows, labels=[0, 1, 2])
    assert found == {f"{name}_macro": 1.0, f"{name}_per_class": [0.0, 1.0, 0.0]}
    found = metric("multilabel").compute(predictions=[[0, 0]], references=[[0, 0]], labels=[0, 1])
    assert found[f"{name}_macro"] == 0.0


@pytest.mark.parametrize(("metric", "name"), AVERAGED)
def test_a_class_never_predicted_counts_as_nothing_without_a_warning(metric, name, recwarn):
    found = metric().compute(predictions=[0, 0, 0], references=[0, 0, 1], labels=[0, 1, 2])
    assert found[f"{name}_per_class"][1:] == [0.0, 0.0]
    assert not [w for w in recwarn if "ill-defined" in str(w.message)]


@pytest.mark.parametrize(("metric", "name"), AVERAGED)
def test_multilabel_averages_equal_scikit_learn(metric, name):
    found = metric("multilabel").compute(predictions=ROWS_ANSWERS, references=ROWS_TRUE, labels=[0, 1, 2])
    score = getattr(sklearn_metrics, f"{name}_score")
    expected = score(np.array(ROWS_TRUE), np.array(ROWS_ANSWERS), average=None, zero_division=0)
    assert found[f"{name}_per_class"] == pytest.approx(list(expected))
    assert found[f"{name}_macro"] == pytest.approx(np.mean(expected))


def test_multilabel_by_hand():
    given = {"predictions": ROWS_ANSWERS, "references": ROWS_TRUE}
    assert Accuracy("multilabel").compute(**given) == {"accuracy": 0.25}  # only the second row is wholly right
    assert Recall("multilabel").compute(**given)["recall_per_class"] == [1.0, 0.5, 0.0]
    assert Precision("multilabel").compute(**given)["precision_per_class"] == [1.0, 1.0, 0.0]


def test_confusion_matrix_has_true_classes_as_rows():
    found = ConfusionMatrix().compute(predictions=ANSWERS, references=TRUE, labels=[0, 1, 2, 3])["confusion_matrix"]
    assert found == [[2, 1, 0, 0], [0, 3, 0, 0], [1, 1, 2, 0], [0, 0, 0, 0]]
    assert found == sklearn_metrics.confusion_matrix(TRUE, ANSWERS, labels=[0, 1, 2, 3]).tolist()


def test_regression_by_hand_and_against_scikit_learn():
    true, answers = [1.0, 2.0, 3.0, 6.0], [1.0, 3.0, 3.0, 4.0]
    found = RegressionError().compute(predictions=answers, references=true)
    assert found["mse"] == pytest.approx(5 / 4)
    assert found["mae"] == pytest.approx(3 / 4)
    assert found["r2"] == pytest.approx(1 - 5 / 14)
    assert found["pearson"] == pytest.approx(np.corrcoef(true, answers)[0, 1])
    assert found["mse"] == pytest.approx(sklearn_metrics.mean_squared_error(true, answers))
    assert found["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(true, answers))
    assert found["r2"] == pytest.approx(sklearn_metrics.r2_score(true, answers))


def test_r2_does_not_treat_truth_and_answer_alike():
    found = RegressionError().compute(predictions=[0.0, 1.0, 2.0], references=[0.0, 2.0, 4.0])
    assert found["r2"] == pytest.approx(1 - 5 / 8)


@pytest.mark.parametrize(("answers", "true"), [([2.0, 2.0], [1.0, 3.0]), ([1.0, 3.0], [2.0, 2.0]), ([1.0], [2.0])])
def test_regression_without_spread_gives_numbers(answers, true):
    found = RegressionError().compute(predictions=answers, references=true)
    assert found["pearson"] == 0.0
    assert all(np.isfinite(value) for value in found.values())


def test_metrics_work_inside_evaluate_combine():
    both = evaluate.combine([Accuracy(), F1()])
    found = both.compute(predictions=ANSWERS, references=TRUE)
    assert found["accuracy"] == 0.7
    assert found["f1_macro"] == pytest.approx(sklearn_metrics.f1_score(TRUE, ANSWERS, average="macro"))


TAGS = [["B-PER", "I-PER", "O"], ["O", "B-LOC", "O"]]
PAIRS = ["the cat sat", "a dog ran"], ["the cat slept", "a dog ran"]
RANKED = [[0, 1], [1, 2], [2, 0]], [[0], [2], [1]]
INPUTS = {
    "entity_f1": ([*TAGS, ["B-LOC", "O", "O"]], [*TAGS, ["O", "B-LOC", "O"]]),
    "squad_score": (["the cat", "no", ""], [["cat", "dog"], ["yes"], [""]]),
    "rouge": ([*PAIRS[0], "no"], [*PAIRS[1], "yes"]),
    "translation": ([*PAIRS[0], "no"], [*PAIRS[1], "yes"]),
    "word_error_rate": ([*PAIRS[0], "no"], [*PAIRS[1], "yes"]),
    "character_error_rate": ([*PAIRS[0], "no"], [*PAIRS[1], "yes"]),
    "mean_average_precision": (
        [{"boxes": [[0, 0, 8, 8]], "scores": [0.9], "labels": [0]}, *[{"boxes": [], "scores": [], "labels": []}] * 2],
        [{"boxes": [[0, 0, 8, 8]], "labels": [0]}, *[{"boxes": [[1, 1, 5, 5]], "labels": [0]}] * 2],
    ),
    "mean_iou": ([[[0, 1]], [[1, 1]], [[0, 0]]], [[[0, 0]], [[1, 255]], [[0, 1]]]),
    **dict.fromkeys(("ndcg", "mrr", "retrieval_recall"), RANKED),
}


@pytest.mark.parametrize("name", sorted(METRICS))
def test_metrics_take_batches_and_are_named_as_registered(name):
    answers, true = INPUTS.get(name, ([0, 1, 1], [0, 1, 0]))
    metric = METRICS[name]()
    metric.add_batch(predictions=answers[:2], references=true[:2])
    metric.add(prediction=answers[2], reference=true[2])
    found = metric.compute()
    assert found == METRICS[name]().compute(predictions=answers, references=true)
    assert metric.name == name


@pytest.mark.parametrize("labels", [(TRUE, ANSWERS, 3), (TRUE, ANSWERS, 4), (ROWS_TRUE, ROWS_ANSWERS, 3)])
def test_macro_f1_from_counts_equals_the_metric(labels):
    true, answers, classes = np.array(labels[0]), np.array(labels[1]), labels[2]
    expected = sklearn_metrics.f1_score(true, answers, average="macro", zero_division=0)
    assert macro_f1(answers, true, classes) == pytest.approx(expected)


def test_macro_f1_by_hand():
    # Class 0: 1 right of 1 answered and 2 true; class 1: 1 of 2 and 1; class 2 is nowhere.
    assert macro_f1(np.array([0, 1, 1]), np.array([0, 0, 1]), 3) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert macro_f1(np.array([[0, 1, 0]]), np.array([[0, 1, 0]]), 3) == 1
    assert macro_f1(np.array([[0, 0]]), np.array([[0, 0]]), 2) == 0


def test_bleu_has_a_tokenizer_for_languages_without_spaces(monkeypatch, caplog):
    name = text_metrics.bleu_tokenizer
    assert {name(code) for code in ("zh", "zh_CN", "zh-TW", "zho_Hans", "Chinese")} == {"zh"}
    assert {name(code) for code in (None, "", "en", "deu_Latn", "es_XX", "target")} == {"13a"}
    monkeypatch.setattr(text_metrics, "find_spec", lambda module: module)
    assert {name(code) for code in ("ja", "ja_XX", "jpn_Jpan")} == {"ja-mecab"}
    assert {name(code) for code in ("ko", "ko_KR", "kor_Hang")} == {"ko-mecab"}
    assert not caplog.text
    monkeypatch.setattr(text_metrics, "find_spec", lambda module: None)
    assert {name(code) for code in ("ja", "jpn_Jpan", "ko", "kor_Hang")} == {"char"}
    assert (
        'BLEU of jpn_Jpan counts characters, since MeCab is not installed. Run `pip install "sacrebleu[ja]"`'
        in caplog.text
    )
