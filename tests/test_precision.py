"""Weights that learn are kept in 32 bits; a 16-bit weight would lose its small updates."""

import logging

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification, ResNetConfig, ResNetForImageClassification

from hf_transfer_plugin import GradualUnfreezing, attach, bitfit, freeze_first, full
from hf_transfer_plugin.trainer.precision import keep_master_weights, unify_precision
from tests.conftest import VOCABULARY, bert, rows
from tests.test_callbacks import Watcher
from tests.test_frozen import images


def llama():
    return LlamaForSequenceClassification(
        LlamaConfig(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
                    num_attention_heads=2, num_key_value_heads=2, pad_token_id=0)
    )  # fmt: skip


def resnet():
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    )


MODELS = {"bert": (bert, rows), "llama": (llama, rows), "resnet": (resnet, images)}
STRATEGIES = [GradualUnfreezing(every=2, frozen=1), freeze_first(1), bitfit(), full()]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "strategy"),
    [(n, s) for n in MODELS for s in STRATEGIES if (n, s.name) != ("llama", "bitfit")],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_model_loaded_in_16_bits_learns_in_32_under_autocast(make_trainer, name, strategy):
    make, data = MODELS[name]
    model, watcher = make().to(torch.bfloat16), Watcher()
    # So small a rate that in bfloat16 nothing but biases of zero would move.
    trainer = make_trainer(
        model, train=data(), callbacks=[watcher], bf16=True, learning_rate=1e-6, lr_scheduler_type="constant",
        max_steps=12,
    )  # fmt: skip
    groups = attach(trainer, schedule=strategy)
    trainer.train()
    kept = {n for n, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    first, last = watcher.seen[0], watcher.seen[-1]
    moved = {n for n in first if not torch.equal(first[n], last[n])}
    assert moved
    assert moved <= kept
    frozen = groups[0].parameters if strategy.name != "bitfit" else ()
    assert all((n in kept) == (strategy.name == "full") for n in frozen)
    if strategy.name in ("gradual-unfreezing", "full"):
        assert all(moved & set(group.parameters) for group in groups[1:])


def test_modules_are_turned_as_a_whole(make_trainer):
    model = bert().to(torch.bfloat16)
    attach(trainer := make_trainer(model, bf16=True, max_steps=1), schedule=bitfit())
    trainer.train()
    for module in model.modules():
        assert len({parameter.dtype for parameter in module.parameters(recurse=False)}) <= 1


def test_in_32_bits_nothing_is_turned(make_trainer, caplog):
    with caplog.at_level(logging.INFO, logger="hf_transfer_plugin"):
        attach(trainer := make_trainer(bf16=True, max_steps=1), schedule=full())
        trainer.train()
    assert "32 bits" not in caplog.text


def test_without_autocast_the_loss_of_small_updates_is_told(make_trainer, caplog):
    model = bert().to(torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        attach(trainer := make_trainer(model, max_steps=1), schedule=full())
        trainer.train()
    assert "small updates are rounded away. Set `bf16=True`" in caplog.text
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_everything_that_will_ever_learn_is_trainable_when_the_model_is_wrapped(make_trainer, monkeypatch):
    """Accelerate keeps 32-bit copies only of what is trainable at that moment."""
    trainer = make_trainer(max_steps=2)
    attach(trainer, schedule=GradualUnfreezing(frozen=1))
    seen, prepare = [], trainer.accelerator.prepare

    def note(*args, **kwargs):
        seen.extend({n for n, p in a.named_parameters() if p.requires_grad} for a in args if hasattr(a, "forward"))
        return prepare(*args, **kwargs)

    monkeypatch.setattr(trainer.accelerator, "prepare", note)
    trainer.train()
    names = {name for name, _ in trainer.model.named_parameters()}
    assert seen == [{name for name in names if "embeddings" not in name}]


def test_a_model_that_learned_in_part_is_saved_in_32_bits_and_loaded_as_it_was(make_trainer, tmp_path):
    model = bert().to(torch.bfloat16)
    attach(trainer := make_trainer(model, bf16=True, max_steps=2), schedule=freeze_first(2))
    trainer.train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.save_pretrained(tmp_path / "mixed")
    frozen = sum(p.numel() for p in before.values() if p.dtype == torch.bfloat16)
    assert unify_precision(model) == frozen > 0
    assert unify_precision(model) == 0
    model.save_pretrained(tmp_path / "whole")
    rounded, kept = (
        dict(type(model).from_pretrained(tmp_path / name).named_parameters()) for name in ("mixed", "whole")
    )
    assert rounded["classifier.weight"].dtype == torch.bfloat16
    assert not torch.equal(rounded["classifier.weight"].float(), before["classifier.weight"])
    assert all(torch.equal(kept[name], value.float()) for name, value in before.items())
    assert {parameter.dtype for parameter in kept.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_one_precision_keeps_it(dtype):
    model = bert().to(dtype)
    assert unify_precision(model) == 0
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


class Packed(torch.Tensor):
    """A tensor of a quantisation library: it says that it is bfloat16."""


def test_tensors_of_other_libraries_are_left_alone(make_trainer):
    layer = nn.Linear(2, 2, dtype=torch.bfloat16)
    layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16).as_subclass(Packed), requires_grad=False)
    model = nn.Sequential(layer)
    args = make_trainer(bf16=True).args
    assert keep_master_weights(model, {"0.bias"}, args) == layer.bias.numel() == 2
    assert (layer.weight.dtype, layer.bias.dtype) == (torch.bfloat16, torch.float32)
