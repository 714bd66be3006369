import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from transformers import GPT2Config, GPT2ForSequenceClassification

from hf_transfer_plugin.features import extract_features, find_output_layer, solve_linear_head
from tests.conftest import bert

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(2.0, 3.0, size=(60, 5))


def standardised(features):
    return StandardScaler().fit_transform(features)


def test_two_classes_give_a_symmetric_pair_whose_difference_is_the_solvers_decision(features):
    labels = (features[:, 0] > 2).astype(int)
    head = solve_linear_head(features, labels, problem_type=SINGLE, outputs=2, regularization=1.0)
    expected = LogisticRegression(C=1.0, max_iter=1000).fit(standardised(features), labels)
    logits = head.logits(features)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], expected.decision_function(standardised(features)))
    np.testing.assert_allclose(logits[:, 0], -logits[:, 1])


def test_several_classes_give_the_solvers_own_logits(features):
    labels = np.digitize(features[:, 1], [0, 3])
    head = solve_linear_head(features, labels, problem_type=SINGLE, outputs=3, regularization=0.5)
    expected = LogisticRegression(C=0.5, max_iter=1000).fit(standardised(features), labels)
    np.testing.assert_allclose(head.logits(features), expected.decision_function(standardised(features)), atol=1e-9)


def test_a_class_without_rows_is_never_answered(features):
    labels = np.where(features[:, 1] > 2, 2, 0)
    head = solve_linear_head(features, labels, problem_type=SINGLE, outputs=3)
    assert set(head.logits(features).argmax(1)) == {0, 2}


def test_several_labels_are_solved_one_by_one(features):
    labels = np.stack([features[:, 0] > 2, features[:, 1] > 2], 1).astype(float)
    head = solve_linear_head(features, labels, problem_type=MULTI, outputs=2, regularization=1.0)
    for j in range(2):
        expected = LogisticRegression(C=1.0, max_iter=1000).fit(standardised(features), labels[:, j])
        np.testing.assert_allclose(head.logits(features)[:, j], expected.decision_function(standardised(features)))


@pytest.mark.parametrize(("on", "odds"), [(0, 0.5 / 60.5), (60, 60.5 / 0.5)])
def test_a_label_that_no_row_or_every_row_has_is_solved_to_the_odds_of_its_share(features, on, odds):
    labels = np.stack([features[:, 0] > 2, np.arange(60) < on], 1).astype(float)
    head = solve_linear_head(features, labels, problem_type=MULTI, outputs=2, regularization=1.0)
    np.testing.assert_allclose(head.logits(features)[:, 1], np.log(odds))
    assert np.ptp(head.logits(features)[:, 0]) > 0.1


def test_numbers_are_solved_by_ridge(features):
    values = features @ np.arange(5.0) + 7
    head = solve_linear_head(features, values, problem_type=REGRESSION, outputs=1, regularization=2.0)
    expected = Ridge(alpha=0.5).fit(standardised(features), values).predict(standardised(features))
    np.testing.assert_allclose(head.logits(features)[:, 0], expected)


def test_one_class_cannot_be_solved(features):
    with pytest.raises(ValueError, match=r"at least two classes.*only \[1\]"):
        solve_linear_head(features, np.ones(60), problem_type=SINGLE, outputs=2)


@pytest.fixture
def encoded():
    generator = np.random.default_rng(0)
    ids = [generator.integers(3, 120, size=n).tolist() for n in (4, 9, 6, 2, 7)]
    return Dataset.from_dict({
        "input_ids": ids,
        "attention_mask": [[1] * len(i) for i in ids],
        "labels": [0, 1, 0, 1, 1],
    })


def collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    pad = lambda values: values + [0] * (width - len(values))
    return {
        "input_ids": torch.tensor([pad(row["input_ids"]) for row in rows]),
        "attention_mask": torch.tensor([pad(row["attention_mask"]) for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def test_features_are_mean_pooled_over_real_tokens_in_the_order_of_the_rows(encoded):
    model = bert().train()
    features, labels = extract_features(model, encoded, collate, batch_size=2)
    assert labels.tolist() == [0, 1, 0, 1, 1]
    assert model.training
    model.eval()
    for i, row in enumerate(encoded):
        with torch.no_grad():
            alone = model.bert(input_ids=torch.tensor([row["input_ids"]])).last_hidden_state.mean(1)[0]
        np.testing.assert_allclose(features[i], alone.numpy(), atol=1e-5)


def test_the_input_of_a_chosen_layer_is_kept(encoded):
    model = bert()
    features, _ = extract_features(model, encoded, collate, module=model.classifier)
    model.eval()
    with torch.no_grad():
        expected = model.bert(input_ids=torch.tensor([encoded[1]["input_ids"]])).pooler_output[0]
    np.testing.assert_allclose(features[1], expected.numpy(), atol=1e-5)
    assert not model.classifier._forward_pre_hooks


def test_a_layer_over_all_tokens_gives_the_token_that_the_model_answers_from(encoded):
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=120, pad_token_id=0, num_labels=2)
    model = GPT2ForSequenceClassification(config)
    features, _ = extract_features(model, encoded, collate, module=model.score, batch_size=5)
    model.eval()
    for i, row in enumerate(encoded):
        with torch.no_grad():
            hidden = model.transformer(input_ids=torch.tensor([row["input_ids"]])).last_hidden_state[0, -1]
        np.testing.assert_allclose(features[i], hidden.numpy(), atol=1e-5)


def test_a_layer_that_takes_tokens_is_refused(encoded):
    model = bert()
    with pytest.raises(ValueError, match="must take one vector a row"):
        extract_features(model, encoded, collate, module=model.bert.encoder.layer[0].intermediate.dense)


def test_the_output_layer_is_found_or_its_absence_told():
    model = bert(num_labels=3)
    assert find_output_layer(model, ("classifier.weight", "classifier.bias")) is model.classifier
    with pytest.raises(ValueError, match="linear output layer with 3 outputs"):
        find_output_layer(model, ("bert.pooler.dense.weight",))
