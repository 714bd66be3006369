"""Life around the run: searches, second runs, early ends, evaluations, and Trainers with a will of their own."""

import importlib
import os

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from hf_transfer_plugin import (
    FreezingCallback,
    GradualUnfreezing,
    LayerwiseDecay,
    SlantedTriangular,
    attach,
    discover_layer_groups,
    feature_extraction,
    freeze_first,
    full,
)
from hf_transfer_plugin.learning_rates import groups_of
from tests.conftest import bert, rows
from tests.test_callbacks import Watcher, weights

HEAD = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


def library(name):
    """A library of the `test` extra; where it is missing the test is skipped, but not in CI."""
    if os.environ.get("CI"):
        return importlib.import_module(name)
    return pytest.importorskip(name, reason="pip install 'hf-transfer-plugin[test]'", exc_type=ImportError)


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


class Runs(Watcher):
    """Keeps the weights of each run apart, and the rates at its first step."""

    def __init__(self):
        super().__init__()
        self.runs, self.rates = [], []

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        self.runs.append([])
        self.seen = self.runs[-1]
        self.rates.append([group["initial_lr"] for group in optimizer.param_groups])


def search(make_trainer, model_init, schedule, space, *, trials=2, groups=None):
    """Runs a search on an attached Trainer, and gives what each trial did."""
    library("optuna").logging.set_verbosity(30)
    runs = Runs()
    trainer = Trainer(
        model_init=model_init, args=make_trainer(max_steps=2).args, train_dataset=rows(), eval_dataset=rows(8),
        callbacks=[runs],
    )  # fmt: skip
    attach(trainer, schedule=schedule, learning_rates=LayerwiseDecay(0.5), groups=groups)
    trainer.hyperparameter_search(hp_space=space, n_trials=trials, direction="minimize", backend="optuna")
    return trainer, runs


def test_every_trial_of_a_search_freezes_its_own_fresh_model_and_takes_the_trials_rate(make_trainer):
    made = []

    def model_init():
        made.append(bert())
        return made[-1]

    trainer, runs = search(
        make_trainer, model_init, freeze_first(4),
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2)},
    )  # fmt: skip
    assert len(runs.runs) == 2
    assert len(made) >= 3
    assert all(moved(run[0], run[-1]) == HEAD for run in runs.runs)
    assert len({rates[0] for rates in runs.rates}) == 2


def test_groups_are_found_anew_where_a_trial_makes_a_deeper_model(make_trainer):
    patterns = ["embeddings", r"layer\.\d+", "."]
    groups = discover_layer_groups(bert(), patterns)
    for given in (None, groups):
        trainer, runs = search(
            make_trainer,
            lambda trial: bert(num_hidden_layers=trial.suggest_int("layers", 2, 2) if trial else 3),
            feature_extraction() if given is None else freeze_first(2),
            lambda trial: {},
            trials=1,
            groups=given,
        )
        assert moved(runs.runs[0][0], runs.runs[0][-1]) == HEAD
        freezing = next(c for c in trainer.callback_handler.callbacks if isinstance(c, FreezingCallback))
        assert len(freezing.groups) == (4 if given is None else 3)


def test_a_trial_that_chooses_an_optimizer_without_layers_is_refused(make_trainer, monkeypatch):
    def layerless(args, model=None):
        return torch.optim.SGD, {"lr": 0.1, **({"model": model} if args.optim == "lomo" else {})}

    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(layerless))
    with pytest.raises(ValueError, match="`optim=.*LOMO.* brings parameter groups of its own"):
        search(make_trainer, lambda: bert(), full(), lambda trial: {"optim": "lomo"}, trials=1)


def test_both_of_two_runs_follow_the_schedule_from_its_beginning(make_trainer):
    runs = Runs()
    trainer = make_trainer(callbacks=[runs], lr_scheduler_type="constant")
    groups = attach(trainer, schedule=GradualUnfreezing(until=0.5), learning_rates=LayerwiseDecay(0.5))
    for _ in range(2):
        trainer.train()
        assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert len(runs.runs) == 2
    for run in runs.runs:
        assert moved(run[0], run[2]) == set(groups[-1].parameters)
        assert moved(run[6], run[-1]) == set(run[0])
    # The second run's optimizer is a new one: its first step has no moments of the first run.
    assert trainer.optimizer is None
    assert runs.rates[0] == runs.rates[1]


class Break(TrainerCallback):
    """Breaks the first run off, as Ctrl-C in a notebook does."""

    def __init__(self, at):
        self.at, self.left = at, 1

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.at and self.left:
            self.left = 0
            raise KeyboardInterrupt


def test_a_run_after_one_that_broke_off_follows_the_schedule_and_leaves_the_model_trainable(make_trainer):
    runs = Runs()
    trainer = make_trainer(callbacks=[Break(at=2), runs], lr_scheduler_type="constant")
    groups = attach(trainer, schedule=GradualUnfreezing(until=0.5), learning_rates=LayerwiseDecay(0.5))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not all(parameter.requires_grad for parameter in trainer.model.parameters())
    trainer.train()
    run = runs.runs[-1]
    assert moved(run[0], run[2]) == set(groups[-1].parameters)
    assert moved(run[6], run[-1]) == set(run[0])
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert not any(module._forward_pre_hooks for module in trainer.model.modules())


@pytest.mark.parametrize("alone", [True, False], ids=["callback", "attach"])
def test_the_best_model_is_loaded_with_frozen_weights_and_trainability_right(make_trainer, alone):
    model, schedule = bert(), freeze_first(3)
    found = [parameter.requires_grad for parameter in model.parameters()]
    before = weights(model)
    trainer = make_trainer(
        model, callbacks=[FreezingCallback(schedule)] if alone else None, max_steps=3, learning_rate=0.5,
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model="loss", lr_scheduler_type="constant",
    )  # fmt: skip
    groups = discover_layer_groups(model)
    if not alone:
        attach(trainer, schedule=schedule)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert min(losses) < losses[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses))
    assert moved(before, weights(model)) <= {n for group in groups[3:] for n in group.parameters}
    # A policy is one state for the whole run; attach leaves the model as the policy has it, the callback as it came.
    learning = {n for group in groups[3:] for n in group.parameters}
    expected = found if alone else [name in learning for name, _ in model.named_parameters()]
    assert [parameter.requires_grad for parameter in model.parameters()] == expected


def test_early_stopping_ends_a_schedule_half_way_and_leaves_model_and_trainer_ready(make_trainer):
    runs = Runs()
    trainer = make_trainer(
        callbacks=[EarlyStoppingCallback(1, 100.0), runs], eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, save_total_limit=1, load_best_model_at_end=True, metric_for_best_model="loss",
        lr_scheduler_type="constant",
    )  # fmt: skip
    groups = attach(trainer, schedule=GradualUnfreezing(until=1.0))
    for _ in range(2):
        trainer.train()
        assert trainer.state.global_step == 2
        assert all(parameter.requires_grad for parameter in trainer.model.parameters())
        assert not any(module._forward_pre_hooks for module in trainer.model.modules())
    # Nothing but the head moved before the first thaw at step 3; in the second run neither.
    assert all(moved(run[0], run[-1]) <= set(groups[-1].parameters) for run in runs.runs)
    assert all(moved(run[0], run[1]) == set(groups[-1].parameters) for run in runs.runs)


class Evaluations(TrainerCallback):
    """Evaluates in the middle of each phase by hand, as a user's own callback may."""

    def __init__(self):
        self.trainer, self.states = None, []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        before = [parameter.requires_grad for parameter in model.parameters()]
        hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
        with torch.random.fork_rng(devices=[]):  # an evaluation's loader draws a number, in any Trainer
            self.trainer.evaluate()
        self.states.append((before, [parameter.requires_grad for parameter in model.parameters()]))
        assert hooks == sum(len(module._forward_pre_hooks) for module in model.modules())


def test_evaluations_between_phases_change_nothing(make_trainer):
    def run(callbacks):
        torch.manual_seed(0)
        trainer = make_trainer(bert(), callbacks=callbacks)
        for callback in callbacks:
            callback.trainer = trainer
        attach(trainer, schedule=GradualUnfreezing(until=0.5), learning_rates=LayerwiseDecay(0.9, warmup_steps=2))
        with torch.random.fork_rng(devices=[]):
            trainer.evaluate()
        trainer.train()
        return weights(trainer.model)

    plain, evaluated = run([]), run([watched := Evaluations()])
    assert not moved(plain, evaluated)
    assert all(before == after for before, after in watched.states)
    assert len({tuple(before) for before, _ in watched.states}) == 5


def test_a_freezing_callback_may_be_added_later_and_taken_away_again(make_trainer):
    watcher, model = Watcher(), bert()
    trainer = make_trainer(model, callbacks=[watcher], max_steps=2)
    trainer.add_callback(callback := FreezingCallback(freeze_first(4)))
    trainer.train()
    assert moved(watcher.seen[0], watcher.seen[-1]) == HEAD
    assert trainer.pop_callback(FreezingCallback) is callback
    trainer.train()
    assert moved(watcher.seen[3], watcher.seen[-1]) > HEAD


def test_what_the_user_freezes_between_two_runs_stays_frozen_after_the_second(make_trainer):
    trainer = make_trainer(callbacks=[FreezingCallback(freeze_first(4))], max_steps=1)
    trainer.train()
    trainer.model.bert.embeddings.requires_grad_(False)
    trainer.train()
    frozen = {name for name, parameter in trainer.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in weights(trainer.model) if "embeddings" in name}


def test_callbacks_added_after_attach_see_the_weights_of_the_schedule(make_trainer):
    trainer = make_trainer(max_steps=2)
    attach(trainer, schedule=freeze_first(4))
    trainer.add_callback(watcher := Watcher())
    trainer.train()
    assert moved(watcher.seen[0], watcher.seen[-1]) == HEAD


def test_a_second_freezing_callback_beside_attach_is_refused(make_trainer):
    trainer = make_trainer()
    attach(trainer, schedule=freeze_first(4))
    trainer.add_callback(FreezingCallback(full()))
    with pytest.raises(ValueError, match=r"undo each other at every step.*Keep one of them"):
        trainer.train()


class Lookahead(Trainer):
    """A Trainer that does something to the optimizer that Trainer makes."""

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        optimizer.param_groups[0]["weight_decay"] = 0.3
        return optimizer


class OwnSGD(Trainer):
    """A Trainer that makes its optimizer itself, from every parameter that is trainable."""

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            learning = [p for p in (model or self.model).parameters() if p.requires_grad]
            self.optimizer = torch.optim.SGD(learning, lr=self.args.learning_rate, momentum=0.9)
        return self.optimizer


class HeadSGD(OwnSGD):
    """A Trainer that makes its optimizer itself, from the head alone."""

    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.SGD(self.model.classifier.parameters(), lr=0.1)
        return self.optimizer


def test_a_create_optimizer_that_calls_super_keeps_the_layers(make_trainer):
    runs = Runs()
    trainer = make_trainer(cls=Lookahead, callbacks=[runs])
    attach(trainer, schedule=freeze_first(1), learning_rates=LayerwiseDecay(0.5))
    trainer.train()
    assert runs.rates[0][::2] == pytest.approx([1e-2, 5e-3, 2.5e-3, 1.25e-3])


def test_a_create_optimizer_of_its_own_works_with_a_schedule_for_two_runs(make_trainer):
    runs = Runs()
    trainer = make_trainer(cls=OwnSGD, callbacks=[runs], lr_scheduler_type="constant")
    groups = attach(trainer, schedule=GradualUnfreezing(until=0.5))
    trainer.train()
    trainer.train()
    for run in runs.runs:
        assert moved(run[0], run[2]) == set(groups[-1].parameters)
        # A key's bias shifts every score alike: its gradient is zero, but for rounding.
        assert moved(run[6], run[-1]) >= {name for name in run[0] if "key.bias" not in name}


@pytest.mark.parametrize("rates", [LayerwiseDecay(0.9), SlantedTriangular()])
def test_a_create_optimizer_of_its_own_is_refused_with_learning_rates(make_trainer, rates):
    trainer = make_trainer(cls=OwnSGD, lr_scheduler_type="constant")
    attach(trainer, schedule=GradualUnfreezing(), learning_rates=rates)
    before = weights(trainer.model)
    with pytest.raises(ValueError, match=r"OwnSGD trains with another.*Call `super\(\).create_optimizer\(\)`"):
        trainer.train()
    assert not moved(before, weights(trainer.model))


def test_a_create_optimizer_of_its_own_that_leaves_parameters_out_is_refused(make_trainer):
    trainer = make_trainer(cls=HeadSGD)
    attach(trainer, schedule=GradualUnfreezing())
    with pytest.raises(RuntimeError, match=r"lacks \d+.*`attach` did not make it"):
        trainer.train()


def test_an_optimizer_set_after_attach_is_refused_with_learning_rates(make_trainer):
    trainer = make_trainer(max_steps=1)
    attach(trainer, learning_rates=LayerwiseDecay(0.9))
    trainer.train()
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="Trainer trains with another"):
        trainer.train()


@pytest.mark.parametrize("schedule", [None, full()])
def test_an_optimizer_given_by_the_user_is_refused(make_trainer, schedule):
    model = bert()
    given = (torch.optim.SGD(model.parameters(), lr=0.1), None)
    trainer = make_trainer(model, trainer_kwargs={"optimizers": given})
    with pytest.raises(ValueError, match=r"already has one.*name the optimizer with `optim=`"):
        attach(trainer, schedule=schedule, learning_rates=LayerwiseDecay(0.9))


def test_a_class_given_by_the_user_is_taken_over_with_its_arguments(make_trainer):
    seen = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
            seen.append(optimizer.optimizer)

    given = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5})
    trainer = make_trainer(callbacks=[Look()], max_steps=1, trainer_kwargs={"optimizer_cls_and_kwargs": given})
    attach(trainer, learning_rates=LayerwiseDecay(0.5))
    trainer.train()
    assert type(seen[0]) is torch.optim.SGD
    rates = [group["initial_lr"] for group in seen[0].param_groups[::2]]
    assert rates == pytest.approx([0.1, 0.05, 0.025, 0.0125, 0.00625])
    assert all(group["momentum"] == 0.5 for group in seen[0].param_groups)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.optim.SGD, {"momentum": 0.5}), r"an `lr`.*`optimizer_cls_and_kwargs` gave \['momentum'\]"),
        ((lambda: torch.optim.SGD, {"lr": 0.1}), "`optimizer_cls_and_kwargs` brings parameter groups of its own"),
    ],
)  # fmt: skip
def test_a_class_given_by_the_user_that_cannot_be_divided_is_refused(make_trainer, given, message):
    trainer = make_trainer(trainer_kwargs={"optimizer_cls_and_kwargs": given})
    with pytest.raises(ValueError, match=message):
        attach(trainer, schedule=full())


class Rated(Trainer):
    """A Trainer that gives the classifier a decay of its own, and has a parameter outside the model."""

    rate, outside = None, torch.nn.Parameter(torch.zeros(3))

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        optimizer_class, arguments = Trainer.get_optimizer_cls_and_kwargs(args, model)
        own = {"lr": self.rate} if self.rate else {}
        head = list(model.classifier.parameters())
        rest = [p for n, p in model.named_parameters() if "classifier" not in n]
        arguments["optimizer_dict"] = [{"params": rest, **own}, {"params": [*head, self.outside], "weight_decay": 0.7}]
        return optimizer_class, arguments


def test_the_groups_of_a_subclass_are_divided_by_layer_and_keep_their_settings(make_trainer):
    trainer = make_trainer(cls=Rated)
    groups = attach(trainer, schedule=full(), learning_rates=LayerwiseDecay(0.5, head_multiplier=3.0))
    made = trainer.create_optimizer().param_groups
    names = [name for group in made for name in group["param_names"]]
    assert sorted(names) == sorted(["outside.0", *(n for n, _ in trainer.model.named_parameters())])
    assert [group["lr"] for group in made] == pytest.approx([3e-2, 3e-2, 5e-3, 2.5e-3, 1.25e-3, 6.25e-4])
    heavy = [group["param_names"] for group in made if group["weight_decay"] == 0.7]
    assert heavy == [["classifier.weight", "classifier.bias", "outside.0"]]
    assert set(names[:5]) == {"outside.0", *groups[-1].parameters}
    assert groups_of(trainer.optimizer, trainer.model, groups) == ["head", *reversed(groups.names)]


def test_the_groups_of_a_subclass_hold_only_what_the_schedule_lets_learn(make_trainer):
    trainer = make_trainer(cls=Rated)
    attach(trainer, schedule=freeze_first(4))
    names = {name for group in trainer.create_optimizer().param_groups for name in group["param_names"]}
    assert names == {"outside.0", *HEAD}


def test_rates_of_a_subclass_are_kept_without_learning_rates_and_refused_with_them(make_trainer):
    class Slow(Rated):
        rate = 1e-5

    trainer = make_trainer(cls=Slow)
    attach(trainer, schedule=full())
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {1e-2, 1e-5}
    with pytest.raises(ValueError, match=r"Two sources give the rates.*`Slow.get_optimizer_cls_and_kwargs`"):
        attach(make_trainer(cls=Slow), learning_rates=LayerwiseDecay(0.5))
