import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, ResNetConfig, ResNetForImageClassification

from hf_transfer_plugin import (
    bitfit,
    discover_layer_groups,
    feature_extraction,
    freeze_first,
    freeze_pattern,
    full,
    norm_only,
    set_trainable,
)
from hf_transfer_plugin.freezing import FrozenModules, still_modules


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_feature_extraction_trains_the_head_only(model, groups):
    assert feature_extraction()(model, groups) == set(groups[-1].parameters)


@pytest.mark.parametrize("k", [0, 2, 4])
def test_freeze_first_freezes_the_k_groups_nearest_to_the_input(model, groups, k):
    assert freeze_first(k)(model, groups) == {n for group in groups[k:] for n in group.parameters}


@pytest.mark.parametrize("k", [-1, 5, 20, "2", True, 1.0])
def test_freeze_first_refuses_k_out_of_range_and_lists_the_groups(model, groups, k):
    with pytest.raises(ValueError, match="`k` must lie between 0 and 4.*embeddings, layer.0, layer.1"):
        freeze_first(k)(model, groups)


def test_freeze_pattern_freezes_what_matches_and_refuses_idle_patterns(model, groups):
    chosen = freeze_pattern([r"embeddings", r"layer\.0\."])(model, groups)
    assert not any("embeddings" in name or "layer.0." in name for name in chosen)
    assert len(chosen) == len(trainable(model)) - 5 - 16
    with pytest.raises(ValueError, match="'nonsense'.*match none"):
        freeze_pattern("nonsense")(model, groups)
    with pytest.raises(ValueError, match=r"must be a regular expression, but '\*' is not: nothing to repeat"):
        freeze_pattern("*")


def test_a_policy_that_leaves_nothing_to_train_is_refused(model, groups):
    with pytest.raises(ValueError, match="must leave something to train"):
        freeze_pattern(".")(model, groups)


def test_bitfit_and_norm_only_train_their_kind_and_the_head(model, groups):
    head = set(groups[-1].parameters)
    assert bitfit()(model, groups) == {n for n in trainable(model) if n.endswith("bias")} | head
    assert norm_only()(model, groups) == {n for n in trainable(model) if "LayerNorm" in n} | head


def test_full_trains_everything(model, groups):
    assert full()(model, groups) == trainable(model)


def test_policies_are_described_by_json_values():
    assert freeze_first(3).to_dict() == {"name": "freeze-first", "k": 3}
    assert freeze_pattern("a").to_dict() == {"name": "freeze-pattern", "patterns": ["a"]}


def test_set_trainable_sets_exactly_the_named_parameters_and_counts_them(model):
    count = set_trainable(model, ["classifier.weight", "classifier.bias"])
    assert trainable(model) == {"classifier.weight", "classifier.bias"}
    assert count == 2 * 16 + 2


def test_set_trainable_refuses_unknown_names_and_integer_weights(model):
    with pytest.raises(ValueError, match="has no 'nowhere'"):
        set_trainable(model, ["nowhere"])
    model.register_parameter("packed", nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False))
    with pytest.raises(ValueError, match="'packed' holds torch.int8"):
        set_trainable(model, ["packed"])


def test_frozen_batchnorm_keeps_its_statistics_under_train_mode():
    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    )
    groups = discover_layer_groups(model)
    still = FrozenModules(model)
    still.update(freeze_first(2)(model, groups))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    model(torch.randn(4, 3, 32, 32))
    moved = {name for name, buffer in model.named_buffers() if not torch.equal(before[name], buffer)}
    assert moved
    assert all("stages.1" in name for name in moved)
    still.release()
    model.train()
    model(torch.randn(4, 3, 32, 32))
    assert not torch.equal(before["resnet.embedder.embedder.normalization.running_mean"],
                           model.resnet.embedder.embedder.normalization.running_mean)  # fmt: skip


def test_frozen_dropout_does_not_fire_also_between_groups():
    model = GPT2ForSequenceClassification(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=120, pad_token_id=0, embd_pdrop=0.5, resid_pdrop=0.5)
    )
    groups = discover_layer_groups(model)
    seen = []
    model.transformer.h[1].register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().clone()))
    still = FrozenModules(model)
    still.update(freeze_first(2)(model, groups))
    inputs = {"input_ids": torch.arange(3, 11)[None]}
    for _ in range(2):
        model.train()
        model(**inputs)
    assert torch.equal(seen[0], seen[1])
    still.update(full()(model, groups))
    for _ in range(2):
        model.train()
        model(**inputs)
    assert not torch.equal(seen[2], seen[3])


def test_the_head_keeps_its_dropout_over_a_frozen_body(model, groups):
    still = still_modules(model, feature_extraction()(model, groups))
    assert model.dropout not in still
    assert model.bert.embeddings in still
    assert model.bert.encoder in still
    assert not any(inner in still for outer in still for inner in outer.modules() if inner is not outer)
