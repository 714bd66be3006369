import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import TrainerCallback

import hf_transfer_plugin.callbacks.head as head_module
from hf_transfer_plugin import (
    ChainThaw,
    FreezingCallback,
    GradualUnfreezing,
    LayerSampling,
    LinearProbeThenFineTune,
    PlateauUnfreezing,
    discover_layer_groups,
    feature_extraction,
    freeze_first,
    full,
)
from hf_transfer_plugin.callbacks import NonFiniteLossCallback, progress_of
from hf_transfer_plugin.callbacks.agreement import RankAgreement
from hf_transfer_plugin.freezing import learning_names
from tests.conftest import bert, rows


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


class Watcher(TrainerCallback):
    """Notes the weights before each step and after training."""

    def __init__(self):
        self.seen = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.seen.append(weights(model))

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(weights(model))


@pytest.mark.parametrize(
    "schedule",
    [GradualUnfreezing(), ChainThaw(), LayerSampling(active=1, every=2), freeze_first(2), full()],
    ids=lambda s: s.name,
)
def test_frozen_groups_stay_bitwise_and_learning_groups_move_at_every_step(make_trainer, schedule):
    model, watcher = bert(), Watcher()
    trainer = make_trainer(model, callbacks=[FreezingCallback(schedule), watcher], lr_scheduler_type="constant")
    trainer.train()
    groups = discover_layer_groups(model)
    for step, (before, after) in enumerate(zip(watcher.seen, watcher.seen[1:], strict=False)):
        progress = progress_of(trainer.args, trainer.state, step)
        learning = learning_names(schedule, progress, model, groups)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved <= learning
        for group in groups:
            if set(group.parameters) <= learning:
                assert moved & set(group.parameters), f"{group.name} did not move at step {step}"


def test_the_same_parameters_are_trainable_after_training_as_before(make_trainer):
    model = bert()
    make_trainer(model, callbacks=[FreezingCallback(feature_extraction())]).train()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_frozen_before_the_trainer_is_refused_with_the_way_out(make_trainer):
    model = bert()
    model.bert.encoder.requires_grad_(False)
    trainer = make_trainer(model, callbacks=[FreezingCallback(GradualUnfreezing())])
    with pytest.raises(RuntimeError, match=r"lacks \d+, e.g. 'bert.encoder.*Do not freeze the model yourself"):
        trainer.train()


def test_the_number_of_trainable_parameters_is_logged_and_kept_in_the_history(make_trainer):
    trainer = make_trainer(callbacks=[FreezingCallback(freeze_first(4))], logging_steps=4)
    trainer.train()
    logged = [entry["trainable_parameters"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == [16 * 16 + 16 + 2 * 16 + 2] * 3


def test_phases_tell_what_learned_when(make_trainer):
    callback = FreezingCallback(GradualUnfreezing(until=0.5))
    make_trainer(callbacks=[callback]).train()
    assert [phase["step"] for phase in callback.phases] == [0, 2, 3, 4, 6]
    assert callback.phases[0]["groups"] == ["head"]
    assert callback.phases[-1]["groups"] == ["embeddings", "layer.0", "layer.1", "layer.2", "head"]


def test_plateau_needs_evaluations_and_thaws_by_them(make_trainer):
    with pytest.raises(ValueError, match="`eval_strategy` is no"):
        make_trainer(callbacks=[FreezingCallback(PlateauUnfreezing())]).train()
    callback = FreezingCallback(PlateauUnfreezing(min_delta=100.0))
    make_trainer(callbacks=[callback], eval_strategy="steps", eval_steps=3).train()
    assert [phase["step"] for phase in callback.phases] == [0, 6, 9]


def probe_logits(model, data):
    """A slow reference: standardise the classifier's inputs, solve, and give the decision function."""
    with torch.no_grad():
        model.eval()
        inputs = {name: torch.stack([row[name] for row in data]) for name in ("input_ids", "attention_mask")}
        features = model.bert(**inputs).pooler_output.numpy()
    labels = [int(row["labels"]) for row in data]
    scaler = StandardScaler().fit(features)
    probe = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(features), labels)
    return probe.decision_function(scaler.transform(features)), inputs


def test_the_solved_heads_logits_equal_the_probes(make_trainer):
    model, data = bert(), rows()
    expected, inputs = probe_logits(model, data)
    watcher = Watcher()
    schedule = LinearProbeThenFineTune(regularization=1.0)
    trainer = make_trainer(model, train=data, callbacks=[FreezingCallback(schedule), watcher], max_steps=2)
    trainer.train()
    model.load_state_dict(watcher.seen[0], strict=False)
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(("limit", "solved_on"), [(8, 16), (None, 32), (20, 32)])
def test_the_head_is_solved_on_at_most_so_many_rows_an_output(make_trainer, monkeypatch, limit, solved_on):
    seen, solve = [], head_module.solve_linear_head

    def note(features, labels, **fields):
        seen.append(len(features))
        return solve(features, labels, **fields)

    monkeypatch.setattr(head_module, "solve_linear_head", note)
    schedule = LinearProbeThenFineTune(rows_per_output=limit)
    make_trainer(callbacks=[FreezingCallback(schedule)], max_steps=1).train()
    assert seen == [solved_on]


def test_lp_ft_is_one_run_in_which_the_body_learns_from_the_first_step(make_trainer):
    model, watcher = bert(), Watcher()
    make_trainer(model, callbacks=[FreezingCallback(LinearProbeThenFineTune()), watcher], max_steps=3).train()
    name = "bert.encoder.layer.0.output.dense.weight"
    assert len(watcher.seen) == 4
    assert not torch.equal(watcher.seen[0][name], watcher.seen[-1][name])


def test_solving_the_head_leaves_the_random_state_alone(make_trainer):
    order = []

    def run(schedule):
        def note(batch):
            order.append(int(batch[0]["input_ids"][0]))
            return {k: torch.stack([row[k] for row in batch]) for k in batch[0]}

        order.clear()
        trainer = make_trainer(bert(hidden_dropout_prob=0.0), callbacks=[FreezingCallback(schedule)], max_steps=4,
                               trainer_kwargs={"data_collator": note})  # fmt: skip
        trainer.train()
        return order[-4:]

    assert run(LinearProbeThenFineTune()) == run(full())


def test_a_nan_loss_stops_the_run_and_names_the_step(make_trainer):
    model = bert()
    trainer = make_trainer(model, callbacks=[NonFiniteLossCallback(), poison := Poison(at=4)])
    with pytest.raises(RuntimeError, match="became nan at step 5"):
        trainer.train()
    assert poison.steps == 4


class Poison(TrainerCallback):
    def __init__(self, at):
        self.at, self.steps = at, 0

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.steps = state.global_step
        if state.global_step == self.at:
            nn.init.constant_(model.classifier.weight, float("nan"))


class Boom(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_runs_that_broke_off_leave_one_hook_and_the_next_whole_one_none(make_trainer):
    trainer = make_trainer(callbacks=[NonFiniteLossCallback(), boom := Boom()], max_steps=1)
    before = len(trainer.model._forward_hooks)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert len(trainer.model._forward_hooks) == before + 1
    trainer.remove_callback(boom)
    trainer.train()
    assert len(trainer.model._forward_hooks) == before


def test_an_infinite_loss_stops_the_run_too(make_trainer, monkeypatch):
    real = nn.CrossEntropyLoss.forward
    monkeypatch.setattr(nn.CrossEntropyLoss, "forward", lambda self, *args: real(self, *args) * float("inf"))
    with pytest.raises(RuntimeError, match="became inf at step 1"):
        make_trainer(callbacks=[NonFiniteLossCallback()]).train()


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels last"])
def test_a_sample_of_the_weights_sees_them_in_any_order_of_memory(layout):
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.Linear(3, 2, bias=False))
    if layout == "transposed":
        model[1].weight = nn.Parameter(torch.randn(3, 2).t())
    elif layout == "channels last":
        model.to(memory_format=torch.channels_last)
    agreement = RankAgreement(model, discover_layer_groups(model, [r"^0", r"^1"]))
    before = agreement.sample_sums()
    with torch.no_grad():
        model[0].weight[1, 1, 1, 1] += 1
        model[1].weight[1, 1] += 1
    after = agreement.sample_sums()
    assert all(one != other for one, other in zip(before, after, strict=True))
