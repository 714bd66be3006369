import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from transformers import GPT2Config, GPT2ForSequenceClassification, ResNetConfig, ResNetForImageClassification

from hf_transfer_plugin.features import (
    collect_features,
    extract_features,
    extraction,
    find_output_layer,
    solve_linear_head,
)
from hf_transfer_plugin.prefix_cache import FeatureStore
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
    features, labels = collect_features(model, encoded, collate, batch_size=2)
    assert labels.tolist() == [0, 1, 0, 1, 1]
    assert model.training
    model.eval()
    for i, row in enumerate(encoded):
        with torch.no_grad():
            alone = model.bert(input_ids=torch.tensor([row["input_ids"]])).last_hidden_state.mean(1)[0]
        np.testing.assert_allclose(features[i], alone.numpy(), atol=1e-5)


def test_the_input_of_a_chosen_layer_is_kept(encoded):
    model = bert()
    features, _ = collect_features(model, encoded, collate, module=model.classifier)
    model.eval()
    with torch.no_grad():
        expected = model.bert(input_ids=torch.tensor([encoded[1]["input_ids"]])).pooler_output[0]
    np.testing.assert_allclose(features[1], expected.numpy(), atol=1e-5)
    assert not model.classifier._forward_pre_hooks


def test_a_layer_over_all_tokens_gives_the_token_that_the_model_answers_from(encoded):
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=120, pad_token_id=0, num_labels=2)
    model = GPT2ForSequenceClassification(config)
    features, _ = collect_features(model, encoded, collate, module=model.score, batch_size=5)
    model.eval()
    for i, row in enumerate(encoded):
        with torch.no_grad():
            hidden = model.transformer(input_ids=torch.tensor([row["input_ids"]])).last_hidden_state[0, -1]
        np.testing.assert_allclose(features[i], hidden.numpy(), atol=1e-5)


def test_a_layer_that_takes_tokens_is_refused(encoded):
    model = bert()
    with pytest.raises(
        ValueError,
        match=r"one vector a row, or one a labelled token, but the input of Linear has the shape \(5, 9, 16\) for 5",
    ):
        collect_features(model, encoded, collate, module=model.bert.encoder.layer[0].intermediate.dense)


def test_the_output_layer_is_found_or_its_absence_told():
    model = bert(num_labels=3)
    assert find_output_layer(model, ("classifier.weight", "classifier.bias")) is model.classifier
    with pytest.raises(ValueError, match="linear output layer with 3 outputs"):
        find_output_layer(model, ("bert.pooler.dense.weight",))


def test_features_come_as_a_dataset_in_the_order_of_the_rows(encoded):
    model = bert()
    found = extract_features(model, encoded, collate, batch_size=2)
    expected, labels = collect_features(model, encoded, collate, batch_size=2)
    assert found.column_names == ["features", "labels"]
    assert found.features["features"].length == 16
    assert found["features"][:].dtype == np.float32
    np.testing.assert_array_equal(found["features"][:], expected)
    assert found["labels"][:].tolist() == labels.tolist() == [0, 1, 0, 1, 1]


def test_rows_without_labels_have_features_but_no_solved_head(encoded):
    bare = lambda rows: {k: v for k, v in collate(rows).items() if k != "labels"}
    model = bert()
    found = extract_features(model, encoded, bare)
    assert found.column_names == ["features"]
    np.testing.assert_array_equal(found["features"][:], extract_features(model, encoded, collate)["features"][:])
    with pytest.raises(ValueError, match="solved on `labels`, but the batches hold attention_mask, input_ids. Use"):
        collect_features(model, encoded, bare)


@pytest.mark.parametrize(("labels", "dtype"), [([[0.0, 1.0]] * 5, np.float32), ([[0, 1]] * 5, np.int64)])
def test_several_labels_a_row_stay_together(encoded, labels, dtype):
    several = encoded.remove_columns("labels").add_column("labels", labels)
    found = extract_features(bert(), several, collate)
    assert found["labels"][:].dtype == dtype
    np.testing.assert_array_equal(found["labels"][:], labels)


def tagged(rows):
    """Labels for tokens: none for the first, the number of the token for the others."""
    batch = collate(rows)
    places = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"]).clone()
    places[(batch["attention_mask"] == 0) | (places == 0)] = -100
    return {**batch, "labels": places}


def test_each_labelled_token_has_a_row_that_tells_whose_it_is(encoded):
    model = bert()
    found = extract_features(model, encoded, tagged, batch_size=3)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    assert found.column_names == ["features", "labels", "row"]
    assert found["row"][:].tolist() == [row for row, n in enumerate(lengths) for _ in range(n - 1)]
    assert found["labels"][:].tolist() == [place for n in lengths for place in range(1, n)]
    model.eval()
    with torch.no_grad():
        hidden = model.bert(input_ids=torch.tensor([encoded[2]["input_ids"]])).last_hidden_state[0, 1:]
    np.testing.assert_allclose(
        found.filter(lambda row: row == 2, input_columns="row")["features"][:], hidden, atol=1e-5
    )


def test_of_images_the_channels_are_averaged_over_all_places():
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=2)
    model = ResNetForImageClassification(config)
    images = [{"pixel_values": torch.rand(3, 32, 32), "labels": torch.tensor(i)} for i in range(2)]
    found = extract_features(model, images, lambda rows: {k: torch.stack([r[k] for r in rows]) for k in rows[0]})
    model.eval()
    with torch.no_grad():
        maps = model.resnet(torch.stack([image["pixel_values"] for image in images])).last_hidden_state
    np.testing.assert_allclose(found["features"][:], maps.mean((2, 3)), atol=1e-6)


# Kept in a store


@pytest.fixture
def calls(monkeypatch):
    """Counts batches that are computed."""
    counted = []
    vectors = extraction._Watcher.vectors
    monkeypatch.setattr(extraction._Watcher, "vectors", lambda self, *args: counted.append(1) or vectors(self, *args))
    return counted


def same(first, second):
    assert first.column_names == second.column_names
    for name in first.column_names:
        np.testing.assert_array_equal(first[name][:], second[name][:])


@pytest.mark.parametrize("collator", [collate, tagged])
@pytest.mark.parametrize("chosen", [False, True])
def test_what_a_store_has_is_not_computed_again(encoded, tmp_path, calls, collator, chosen):
    model = bert()
    module = (model.bert.encoder.layer[2] if collator is tagged else model.classifier) if chosen else None
    live = extract_features(model, encoded, collator, module=module)
    same(extract_features(model, encoded, collator, module=module, store=FeatureStore(tmp_path)), live)
    assert len(calls) == 2
    same(extract_features(model, encoded, collator, module=module, store=FeatureStore(tmp_path)), live)
    part = extract_features(model, encoded.select([3]), collator, module=module, store=FeatureStore(tmp_path))
    wanted = live.filter(lambda row: row == 3, input_columns="row") if collator is tagged else live.select([3])
    np.testing.assert_array_equal(part["features"][:], wanted["features"][:])
    assert len(calls) == 2


@pytest.mark.parametrize(
    "change",
    ["weights of the base", "rows", "module", "config"],
)
def test_features_of_something_else_are_never_read(encoded, tmp_path, calls, change):
    model, store, module = bert(), FeatureStore(tmp_path), None
    before = extract_features(model, encoded, collate, store=store)
    if change == "weights of the base":
        model.bert.encoder.layer[0].output.dense.bias.data[0] += 1
    elif change == "rows":
        encoded = encoded.map(lambda row: {"input_ids": [3, *row["input_ids"][1:]]})
    elif change == "module":
        module = model.classifier
    else:
        model.config.layer_norm_eps = 1e-3
    after = extract_features(model, encoded, collate, module=module, store=store)
    assert len(calls) == 2
    assert (after["features"][:] != before["features"][:]).any() or change == "config"


def test_another_head_reads_the_same_features(encoded, tmp_path, calls):
    model, store = bert(), FeatureStore(tmp_path)
    before = extract_features(model, encoded, collate, store=store)
    torch.nn.init.normal_(model.classifier.weight)
    same(extract_features(model, encoded, collate, store=store), before)
    before = extract_features(model, encoded, collate, module=model.classifier, store=store)
    torch.nn.init.normal_(model.classifier.weight)
    same(extract_features(model, encoded, collate, module=model.classifier, store=store), before)
    assert len(calls) == 2


def test_tokens_with_other_labels_are_kept_apart(encoded, tmp_path, calls):
    def last_only(rows):
        batch = tagged(rows)
        return {**batch, "labels": batch["labels"].where(batch["labels"] > 1, -100)}

    model, store = bert(), FeatureStore(tmp_path)
    many = extract_features(model, encoded, tagged, store=store)
    few = extract_features(model, encoded, last_only, store=store)
    assert len(calls) == 2
    same(few, extract_features(model, encoded, last_only))
    assert len(few) == len(many) - 5
    same(extract_features(model, encoded, collate, store=store), extract_features(model, encoded, collate))


def test_other_labels_of_whole_rows_read_the_same_features_as_no_model_is_given_any(encoded, tmp_path, calls):
    given, model = [], bert()
    model.register_forward_pre_hook(lambda module, args, kwargs: given.append(set(kwargs)), with_kwargs=True)

    def turned(rows):
        batch = collate(rows)
        return {**batch, "labels": 1 - batch["labels"]}

    store = FeatureStore(tmp_path)
    before = extract_features(model, encoded, collate, module=model.classifier, store=store)
    after = extract_features(model, encoded, turned, module=model.classifier, store=store)
    np.testing.assert_array_equal(after["features"][:], before["features"][:])
    assert (after["labels"][:] == 1 - before["labels"][:]).all()
    assert given
    assert all("labels" not in names for names in given)


def test_a_damaged_row_is_computed_again(encoded, tmp_path, calls, caplog):
    model = bert()
    live = extract_features(model, encoded, collate, store=FeatureStore(tmp_path))
    file = next(tmp_path.rglob("*.data"))
    file.write_bytes(b"\1" * file.stat().st_size)
    same(extract_features(model, encoded, collate, store=FeatureStore(tmp_path)), live)
    assert len(calls) == 2
    assert "damaged" in caplog.text


def test_a_store_without_room_says_so_and_the_model_is_left_as_it_was(encoded, tmp_path):
    model = bert().train()
    with pytest.raises(ValueError, match=r"prefix cache in '.*' may take 100 B, but it has 0 B and needs"):
        extract_features(model, encoded, collate, module=model.classifier, store=FeatureStore(tmp_path, budget=100))
    assert model.training
    assert not model.classifier._forward_hooks


def test_a_store_of_another_format_is_made_anew(encoded, tmp_path, calls):
    model = bert()
    extract_features(model, encoded, collate, store=FeatureStore(tmp_path))
    meta = next(tmp_path.rglob("meta.json"))
    meta.write_text(meta.read_text().replace('"format": 1', '"format": 0').replace('"slots"', '"shapes"'))
    extract_features(model, encoded, collate, store=FeatureStore(tmp_path))
    extract_features(model, encoded, collate, store=FeatureStore(tmp_path))
    assert len(calls) == 2
