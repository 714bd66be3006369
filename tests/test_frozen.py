"""Frozen means frozen: weights, statistics and dropout, whatever Trainer does around them, and at no cost."""

import pytest
import torch
import torch._dynamo.utils
from transformers import (
    ReformerConfig,
    ReformerForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    TrainerCallback,
)

from hf_transfer_plugin import (
    FreezingCallback,
    GradualUnfreezing,
    TransferTrainer,
    attach,
    feature_extraction,
    freeze_first,
    full,
)
from hf_transfer_plugin.callbacks import progress_of
from hf_transfer_plugin.freezing import learning_names
from hf_transfer_plugin.schedules import ChainThaw, LayerSampling
from tests.conftest import bert
from tests.test_callbacks import Watcher


@pytest.mark.sampled(3)
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "rmsprop", "adagrad"])
@pytest.mark.parametrize("schedule", [ChainThaw(), LayerSampling(active=1, every=2)], ids=lambda s: s.name)
def test_weight_decay_and_momentum_never_touch_a_frozen_weight(make_trainer, schedule, optim):
    """These schedules freeze again what had learned, so that optimizers hold moments of frozen weights."""
    model, watcher = bert(), Watcher()
    trainer = make_trainer(
        model, callbacks=[watcher], optim=optim, weight_decay=0.5, lr_scheduler_type="constant",
        gradient_accumulation_steps=2, per_device_train_batch_size=4,
    )  # fmt: skip
    groups = attach(trainer, schedule=schedule)
    trainer.train()
    refrozen = set()
    for step, (before, after) in enumerate(zip(watcher.seen, watcher.seen[1:], strict=False)):
        learning = learning_names(schedule, progress_of(trainer.args, trainer.state, step), model, groups)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved
        assert moved <= learning
        refrozen |= {n for n in before if n not in learning and not torch.equal(before[n], watcher.seen[0][n])}
    assert refrozen


def test_frozen_batchnorm_does_not_move_in_a_trainer(make_trainer):
    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    )
    generator = torch.Generator().manual_seed(0)
    data = [
        {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": torch.tensor(i % 2)} for i in range(16)
    ]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    trainer = make_trainer(model, train=data, callbacks=[FreezingCallback(feature_extraction())], max_steps=3)
    trainer.train()
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    control = make_trainer(model, train=data, callbacks=[FreezingCallback(full())], max_steps=3)
    control.train()
    assert not all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_bottom_layers_are_neither_recomputed_nor_differentiated(make_trainer, checkpointing):
    model, calls, differentiated = bert(), [], []
    for i, block in enumerate(model.bert.encoder.layer):
        block.output.dense.register_full_backward_hook(lambda m, into, out, i=i: differentiated.append(i))
        block.attention.register_forward_pre_hook(
            lambda m, args, i=i: calls.append(i) if torch.is_grad_enabled() else None
        )
    trainer = make_trainer(
        model, callbacks=[FreezingCallback(freeze_first(3))], max_steps=1, activation_checkpointing=checkpointing
    )
    trainer.train()
    assert calls.count(0) == calls.count(1) == 1
    assert calls.count(2) == (2 if checkpointing else 1)
    assert differentiated == [2]


def passes_gradients(model):
    """Whether what the embeddings give needs a gradient while they are frozen."""
    tokens = torch.tensor([[3, 4, 5, 6]])
    model.get_input_embeddings().requires_grad_(False)
    return model.get_input_embeddings()(tokens).requires_grad


def test_the_hook_of_activation_checkpointing_is_given_back_and_taken_again_in_a_second_run(make_trainer):
    model, differentiated = bert(), []
    for i, block in enumerate(model.bert.encoder.layer):
        block.output.dense.register_full_backward_hook(lambda m, into, out, i=i: differentiated.append(i))
    trainer = make_trainer(model, activation_checkpointing=True, max_steps=1)
    attach(trainer, schedule=freeze_first(3))
    for _ in range(2):
        differentiated.clear()
        trainer.train()
        assert differentiated == [2]
        assert model._require_grads_hooks
    assert passes_gradients(model)


def test_reversible_layers_learn_over_frozen_embeddings(make_trainer):
    config = ReformerConfig(
        attn_layers=["local", "local"], hidden_size=16, attention_head_size=8, num_attention_heads=2, vocab_size=120,
        feed_forward_size=32, axial_pos_embds=False, max_position_embeddings=40, local_attn_chunk_length=4,
        is_decoder=False, num_labels=2,
    )  # fmt: skip
    model, watcher = ReformerForSequenceClassification(config), Watcher()
    trainer = make_trainer(model, callbacks=[watcher], max_steps=2)
    groups = attach(trainer, schedule=freeze_first(1))
    trainer.train()
    moved = {name for name in watcher.seen[0] if not torch.equal(watcher.seen[0][name], watcher.seen[-1][name])}
    assert not moved & set(groups[0].parameters)
    assert all(moved & set(group.parameters) for group in groups[1:])
    assert not passes_gradients(model)


def resnet():
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    )


def images(count=16):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, 32, 32, generator=generator)
    return [{"pixel_values": image, "labels": torch.tensor(i % 2)} for i, image in enumerate(pixels)]


@pytest.mark.parametrize("keep_dropout", [False, True])
def test_statistics_move_from_the_thaw_on_and_not_before(make_trainer, keep_dropout):
    model, schedule, watcher = resnet(), GradualUnfreezing(every=2), Buffers()
    trainer = make_trainer(model, train=images(), callbacks=[watcher], max_steps=8)
    groups = attach(trainer, schedule=schedule, keep_dropout=keep_dropout)
    trainer.train()
    thawed = {}
    for step, (before, after) in enumerate(zip(watcher.seen, watcher.seen[1:], strict=False)):
        learning = learning_names(schedule, progress_of(trainer.args, trainer.state, step), model, groups)
        for name in before:
            weight = name.rsplit(".", 1)[0] + ".weight"
            assert torch.equal(before[name], after[name]) == (weight not in learning), (step, name)
            thawed.setdefault(weight in learning, set()).add(step)
    assert thawed[True]
    assert thawed[False]


class Buffers(Watcher):
    """Notes the statistics instead of the weights."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.seen.append({n: b.clone() for n, b in model.named_buffers() if "running" in n})

    on_train_end = on_step_begin


@pytest.mark.parametrize(("options", "fires"), [({}, False), ({"keep_dropout": True}, True)])
@pytest.mark.parametrize("how", ["callback", "attach", "mixin"])
def test_dropout_of_frozen_layers_is_off_unless_kept(make_trainer, how, options, fires):
    model, policy, seen = bert(hidden_dropout_prob=0.5), freeze_first(3), []
    model.bert.encoder.layer[2].register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().clone()))
    settings = {"max_steps": 2, "per_device_train_batch_size": 32, "train_sampling_strategy": "sequential"}
    if how == "callback":
        trainer = make_trainer(model, callbacks=[FreezingCallback(policy, **options)], **settings)
    elif how == "attach":
        trainer = make_trainer(model, **settings)
        attach(trainer, schedule=policy, **options)
    else:
        kwargs = {"schedule": policy, **options}
        trainer = make_trainer(model, cls=TransferTrainer, trainer_kwargs=kwargs, **settings)
    trainer.train()
    assert torch.equal(*seen[-2:]) != fires


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiling_happens_once_a_phase_and_no_more(make_trainer, checkpointing):
    """Of the six steps, two each train the head, the layer too, and everything."""
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    graphs = []

    class Graphs(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            graphs.append(counters["stats"]["unique_graphs"])

    # BERT's head writes the problem type into its config at its first forward, which compiles anew by itself.
    model = bert(num_hidden_layers=1, problem_type="single_label_classification")
    trainer = make_trainer(
        model, callbacks=[Graphs()], max_steps=6, torch_compile=True, torch_compile_backend="eager",
        activation_checkpointing=checkpointing,
    )  # fmt: skip
    attach(trainer, schedule=GradualUnfreezing(every=2))
    trainer.train()
    torch._dynamo.reset()
    assert graphs[0] > 0
    assert graphs == [graphs[0] * phase for phase in (1, 1, 2, 2, 3, 3)]
