"""Adapters under everything a Trainer does: a resumed run is the uninterrupted one, and what is frozen is frozen."""

import itertools
import logging
import multiprocessing
import os
import shutil
import signal

import pytest
import torch
import torch._dynamo.utils
from safetensors.torch import load_file
from transformers import (
    Trainer,
    TrainerCallback,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    set_seed,
)

from hf_transfer_plugin import (
    ChainThaw,
    FreezingCallback,
    GradualUnfreezing,
    LayerSampling,
    LayerwiseDecay,
    LinearProbeThenFineTune,
    TransferTrainer,
    attach,
    freeze_first,
    full,
)
from hf_transfer_plugin.adapters import METHODS, attach_adapter
from hf_transfer_plugin.callbacks import beside, progress_of
from hf_transfer_plugin.callbacks.adapters import ALLOCATION, HeldFlags, RankAllocationCallback
from hf_transfer_plugin.callbacks.prompts import ENCODER
from hf_transfer_plugin.callbacks.resuming import missing_parts
from hf_transfer_plugin.freezing import freeze_pattern, learning_names
from hf_transfer_plugin.layers import discover_layer_groups
from tests.conftest import bert, rows
from tests.test_callbacks import Watcher, weights
from tests.test_frozen import images, resnet
from tests.test_life import library, moved
from tests.test_loss_scale import PER_EXAMPLE, PER_TOKEN, data, gap, train
from tests.test_resume import Death, Setting, assert_same, check_resume, cut, moments, outcome, pairwise

pytestmark = pytest.mark.slow

STEPS = 6
PROMPTS = ("prefix", "prompt", "p-tuning")
ADAPTERS = {
    **{name: {"name": name} for name in METHODS},
    **{name: {"name": name, "lora_dropout": 0.1} for name in ("lora", "dora", "rslora", "lora+", "adalora")},
    **{name: {"name": name, "num_virtual_tokens": 4} for name in PROMPTS},
    "p-tuning": {"name": "p-tuning", "num_virtual_tokens": 4, "encoder_hidden_size": 8},
    "trainable-tokens": {"name": "trainable-tokens", "token_indices": [3, 4, 5, 6, 7]},
    "upper": {"name": "lora", "lora_dropout": 0.1, "layers": 2, "also_train": ["norms", "biases"]},
}
SCHEDULES = {
    "full": full(),
    "gradual": GradualUnfreezing(every=2),
    "sampling": LayerSampling(active=1, every=2),
    "lp-ft": LinearProbeThenFineTune(),
    "freeze-first": freeze_first(1),
}
FACTORS = {
    "adapter": ADAPTERS,
    "schedule": SCHEDULES,
    "optim": {name: name for name in ("adamw_torch_fused", "adafactor", "sgd")},
    "accumulation": {"1": 1, "2": 2},
    "precision": {"fp32": False, "bf16": True},
    "checkpointing": {"off": False, "non-reentrant": True},
}


def possible(cell):
    """AdaLoRA and what has one group cannot be frozen in part; a model that writes has no head to solve."""
    return cell[1] == "full" or cell[0] not in ("adalora", "trainable-tokens")


CELLS = [cell for cell in itertools.product(*FACTORS.values()) if possible(cell)]
PAIRS = pairwise(CELLS)


def one_for_each_adapter(cells):
    """Of each adapter the cell that brings most pairs of the other factors' values."""
    chosen, met = [], set()
    for name in ADAPTERS:
        found = max(
            (cell for cell in cells if cell[0] == name),
            key=lambda cell: len(set(itertools.combinations(enumerate(cell[1:]), 2)) - met),
        )
        met |= set(itertools.combinations(enumerate(found[1:]), 2))
        chosen.append(found)
    return chosen


QUICK = one_for_each_adapter(CELLS)


def small():
    return bert(num_hidden_layers=2)


class Adapted:
    """Makes the same base again and again, each time with other random numbers in the adapter and the head."""

    def __init__(self, name, base=small):
        self.name, self.base, self.count = name, base, 0
        self.spec = ADAPTERS[name] if isinstance(name, str) else name

    def __call__(self):
        writes = self.name == "trainable-tokens"
        set_seed(5)
        model = PER_TOKEN["llama"]() if writes else self.base()
        self.count += 1
        set_seed(self.count)
        return attach_adapter(model, {**self.spec, **({"layers": 1} if self.name == "upper" else {})})


def setting(make_trainer, folder, cell=("lora", "full", "adamw_torch_fused", "1", "fp32", "off"), **changes):
    """As for models without adapters, but evaluated only where asked for, and saved only where resumed from."""
    name, schedule, optim, accumulation, precision, checkpointing = cell
    if name == "trainable-tokens":
        changes["train"] = data("llama", 32)
    ratio = 16.0 if name == "lora+" else 1.0
    return Setting(
        make_trainer, folder, ("gradual", optim, accumulation, precision, checkpointing),
        **{
            "schedule": SCHEDULES[schedule],
            "rates": LayerwiseDecay(1.0 if name == "lora+" else 0.8, warmup_steps=2, lora_b_multiplier=ratio),
            "max_steps": 4, "save_steps": 2, "eval_strategy": "no", "weight_decay": 0.1, **changes,
        },
    )  # fmt: skip


def check_cell(make_trainer, folder, cell, steps, **changes):
    """Resumes from each step; the base does not move, and something else does."""
    made, make = [], Adapted(cell[0])

    def watched():
        model = make()
        made.append((model, weights(model), discover_layer_groups(model).locked))
        return model

    check_resume(setting(make_trainer, folder, cell, **changes), steps, make=watched)
    for model, before, locked in made:
        changed = moved(before, weights(model))
        assert changed
        assert not changed & locked
        assert any("bert" in name or "model.layers" in name for name in locked)


# Resume


@pytest.mark.sampled(4)
@pytest.mark.parametrize("cell", QUICK, ids="-".join)
def test_a_resumed_run_ends_bitwise_as_the_uninterrupted_one(make_trainer, tmp_path, cell):
    check_cell(make_trainer, tmp_path / "run", cell, [2])


def test_every_value_of_every_factor_is_in_a_quick_cell():
    for i, values in enumerate(FACTORS.values()):
        assert {cell[i] for cell in QUICK} == set(values)


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "step"), PAIRS, ids=lambda v: "-".join(v) if isinstance(v, tuple) else "every")
def test_every_pair_of_settings_resumes_from_every_checkpoint(make_trainer, tmp_path, cell, step):
    check_cell(make_trainer, tmp_path / "run", cell, range(1, STEPS), max_steps=STEPS, save_steps=1)


@pytest.mark.parametrize(("name", "steps"), [("lora", (1, 2, 3)), ("upper", (2,))])
def test_adapters_resume_before_at_and_after_a_thaw(make_trainer, tmp_path, name, steps):
    cell = (name, "gradual", "adamw_torch_fused", "1", "fp32", "off")
    check_cell(make_trainer, tmp_path / "run", cell, steps, save_steps=1)


@pytest.mark.slow
def test_adalora_resumes_before_within_and_after_the_budgeting(make_trainer, tmp_path):
    """Of ten steps the ranks shrink from the second to the seventh."""
    cell = ("adalora", "full", "adamw_torch_fused", "1", "fp32", "off")
    check_cell(make_trainer, tmp_path / "run", cell, (1, 4, 8), max_steps=10, save_steps=1)
    counts = []
    for step in (1, 4, 8):
        saved = load_file(tmp_path / "run" / f"checkpoint-{step}" / "adapter_model.safetensors")
        counts.append(sum(int((value == 0).sum()) for name, value in saved.items() if "lora_E" in name))
    assert 0 == counts[0] < counts[1] < counts[2]


def best_of(make_trainer, folder, name):
    """A run whose loss grows at its end, and the weights of its best step."""
    model, watch = Adapted(name)(), Watcher()
    run = setting(
        make_trainer, folder, (name, "full", "sgd", "1", "fp32", "off"), rates=LayerwiseDecay(1.0), save_steps=1,
        eval_strategy="steps", load_best_model_at_end=True, metric_for_best_model="loss", learning_rate=20.0,
        lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=1.0,
    )  # fmt: skip
    trainer = run.trainer(model, callbacks=[watch])
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert min(losses) < losses[-1]
    best = int(trainer.state.best_model_checkpoint.rsplit("-", 1)[1])
    return trainer, flags, watch.seen[best], min(losses)


@pytest.mark.parametrize("name", ["lora", "adalora", "p-tuning", "ia3"])
def test_the_best_adapter_is_loaded_as_it_was_with_flags_right(make_trainer, tmp_path, name):
    trainer, flags, best, loss = best_of(make_trainer, tmp_path / "run", name)
    assert not moved(best, weights(trainer.model))
    assert {n: parameter.requires_grad for n, parameter in trainer.model.named_parameters()} == flags
    assert trainer.model.active_adapter == "default"
    assert trainer.evaluate()["eval_loss"] == loss


@pytest.mark.parametrize(("name", "file"), [("adalora", ALLOCATION), ("p-tuning", ENCODER)])
def test_every_trial_of_a_search_keeps_its_files_and_its_best(make_trainer, tmp_path, name, file):
    library("optuna").logging.set_verbosity(30)
    arguments = make_trainer(
        max_steps=4, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="loss", learning_rate=20.0, optim="sgd",
        lr_scheduler_type="constant",
    ).args  # fmt: skip
    trainer = Trainer(model_init=Adapted(name), args=arguments, train_dataset=rows(), eval_dataset=rows(8))
    attach(trainer, schedule=full())
    found = trainer.hyperparameter_search(hp_space=lambda trial: {}, n_trials=2, direction="minimize")
    assert len(found.run_id) == 1
    assert [len(list((tmp_path / "run").glob(f"run-{i}/*/{file}"))) for i in (0, 1)] == [4, 4]


@pytest.mark.parametrize("name", ["lora", "adalora", "p-tuning"])
def test_a_second_run_is_that_of_a_new_trainer(make_trainer, tmp_path, name):
    schedule = "full" if name == "adalora" else "gradual"
    run = setting(make_trainer, tmp_path / "run", (name, schedule, "adamw_torch_fused", "1", "fp32", "off"))

    def second(again):
        model = Adapted(name)()
        trainer = run.trainer(model)
        trainer.train()
        if not again:
            trainer = run.trainer(model)
        set_seed(9)
        trainer.train()
        return outcome(trainer)

    assert_same(second(True), second(False))


@pytest.mark.parametrize("again", [True, False], ids=["the same Trainer", "another"])
@pytest.mark.parametrize(
    ("given", "first", "second"), [({}, (2, 6), (1, 2)), ({"tinit": 2, "tfinal": 3}, (2, 3), (2, 3))]
)
def test_a_shorter_second_run_of_adalora_has_phases_of_its_own(make_trainer, tmp_path, given, first, second, again):
    """A tenth of 20 steps is 2 and three tenths are 6; of 6 steps they are 0.6 and 1.8, rounded."""
    model = Adapted({"name": "adalora", **given})()
    config = model.peft_config["default"]
    trainer = setting(make_trainer, tmp_path, max_steps=20, save_strategy="no").trainer(model)
    trainer.train()
    assert (config.tinit, config.tfinal) == first
    if not again:
        trainer = setting(make_trainer, tmp_path, save_strategy="no").trainer(model)
    trainer.args.max_steps = 6
    trainer.train()
    assert (config.tinit, config.tfinal, config.total_step) == (*second, 6)
    model.save_pretrained(tmp_path / "saved")
    assert "computed" not in (tmp_path / "saved" / "adapter_config.json").read_text()


# Killed and damaged


FILES = {"adalora": ("adapter_model.safetensors", ALLOCATION), "p-tuning": ("adapter_model.safetensors", ENCODER)}


@pytest.mark.parametrize(("name", "file"), [(name, file) for name in FILES for file in FILES[name]])
def test_a_checkpoint_without_one_of_the_adapters_files_is_set_aside(make_trainer, tmp_path, caplog, name, file):
    cell = (name, "full", "adamw_torch_fused", "1", "fp32", "off")
    run, make = setting(make_trainer, tmp_path / "run", cell, max_steps=3, save_steps=1), Adapted(name)
    whole = run.trainer(make())
    whole.train()
    assert missing_parts(run.folder / "checkpoint-3") == []
    cut(run.folder / "checkpoint-2" / file)
    (run.folder / "checkpoint-3" / file).unlink()
    assert missing_parts(run.folder / "checkpoint-2") == missing_parts(run.folder / "checkpoint-3") == [file]
    with pytest.raises(ValueError, match=rf"whole checkpoint only, but '.*checkpoint-3' lacks {file}. Name an earl"):
        run.trainer(make()).train(resume_from_checkpoint=str(run.folder / "checkpoint-3"))
    resumed = run.trainer(make())
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=True)
    assert f"checkpoint-3 is incomplete ({file}) and was renamed" in caplog.text
    assert_same(outcome(resumed, 1), outcome(whole, 1))


def test_an_adapter_in_a_pickle_is_not_resumed_from(make_trainer, tmp_path):
    """Trainer would load it: PEFT reads a pickle where there is nothing else."""
    run, make = setting(make_trainer, tmp_path / "run"), Adapted("lora")
    run.trainer(make()).train()
    checkpoint = run.folder / "checkpoint-2"
    torch.save(load_file(checkpoint / "adapter_model.safetensors"), checkpoint / "adapter_model.bin")
    (checkpoint / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"whole checkpoint only, but '.*checkpoint-2' lacks adapter_model\.safet"):
        run.trainer(make()).train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_moved_elsewhere_is_resumed_from(make_trainer, tmp_path, name):
    cell = (name, "full", "adamw_torch_fused", "1", "fp32", "off")
    run, make = setting(make_trainer, tmp_path / "run", cell), Adapted(name)
    whole = run.trainer(make())
    whole.train()
    shutil.move(run.folder / "checkpoint-2", tmp_path / "elsewhere")
    resumed = run.trainer(make())
    resumed.train(resume_from_checkpoint=str(tmp_path / "elsewhere"))
    assert_same(outcome(resumed, 2), outcome(whole, 2))


def test_a_plain_checkpoint_of_adalora_is_refused(make_trainer, tmp_path):
    """With the callbacks alone nobody looks at the parts of a checkpoint before."""
    arguments = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    make_trainer(Adapted("adalora")(), callbacks=[FreezingCallback(full())], **arguments).train()
    alone = [FreezingCallback(full()), RankAllocationCallback()]
    trainer = make_trainer(Adapted("adalora")(), callbacks=alone, **arguments)
    with pytest.raises(ValueError, match=rf"from the importance of AdaLoRA's ranks, but '.*-1' has no {ALLOCATION}"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


def test_adalora_without_ranks_to_give_up_is_refused(make_trainer, tmp_path):
    spec = {"name": "adalora", "init_r": 4, "target_r": 4}
    with pytest.raises(ValueError, match="must begin with more ranks .* but got 4 and 4. Lower `target_r`"):
        setting(make_trainer, tmp_path).trainer(Adapted(spec)()).train()


def test_the_best_of_prefixes_with_a_projection_is_refused(make_trainer, tmp_path):
    spec = {"name": "prefix", "num_virtual_tokens": 4, "prefix_projection": True, "encoder_hidden_size": 8}
    run = setting(
        make_trainer, tmp_path, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        metric_for_best_model="loss",
    )  # fmt: skip
    with pytest.raises(ValueError, match="cannot read prefixes with a projection back .* `prefix_projection=False`"):
        run.trainer(Adapted(spec)()).train()


class DeathBeside(TrainerCallback):
    """Kills its process halfway through the n-th file beside a checkpoint's weights."""

    def __init__(self, count):
        self.left = count

    def on_train_begin(self, args, state, control, **kwargs):
        self.before, beside.save_file = beside.save_file, self.save

    def save(self, tensors, file):
        self.before(tensors, file)
        self.left -= 1
        if not self.left:
            cut(file)
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adalora", "p-tuning", "lora"])
@pytest.mark.parametrize(("where", "count"), [*moments()[:3], ("beside", 1), ("beside", 3)])
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(make_trainer, tmp_path, name, where, count):
    if name == "lora" and where == "beside":
        where = "save"
    schedule = "full" if name == "adalora" else "gradual"
    cell = (name, schedule, "adamw_torch_fused", "2", "fp32", "off")
    changes = {"max_steps": STEPS, "save_steps": 1, "eval_strategy": "steps"}
    run, make = setting(make_trainer, tmp_path / "run", cell, **changes), Adapted(name)
    whole = setting(make_trainer, tmp_path / "whole", cell, **changes).trainer(make())
    whole.train()

    def train_and_die():
        death = DeathBeside(count) if where == "beside" else Death(where, count)
        run.trainer(Adapted(name)(), callbacks=[death]).train()

    process = multiprocessing.get_context("fork").Process(target=train_and_die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    after = max((int(c.name[11:]) for c in run.folder.glob("checkpoint-*") if not missing_parts(c)), default=0)
    trainer = run.trainer(make() if after else Adapted(name)())
    trainer.train(resume_from_checkpoint=after > 0)
    assert_same(outcome(trainer, after), outcome(whole, after))


# Frozen is frozen


class Reference(Trainer):
    """Asks the model without its adapter, too, as preference losses do: before its own forward pass or after it."""

    when = "before"

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        def reference():
            with torch.no_grad(), model.disable_adapter():
                return model(**inputs).logits

        if self.when == "before":
            expected = reference()
        outputs = model(**inputs)
        if self.when == "after":
            expected = reference()
        if self.when == "set":
            model.set_adapter("default")
            expected = torch.zeros_like(outputs.logits)
        loss = outputs.loss + (outputs.logits - expected).pow(2).mean()
        return (loss, outputs) if return_outputs else loss


THAWING = [GradualUnfreezing(every=2), ChainThaw(), LayerSampling(active=1, every=1), freeze_pattern(r"layer\.1")]


def strays(make_trainer, schedule, cls=Trainer, when="before", name="lora", **changes):
    """Names that moved at a step at which they were frozen."""
    model, watch = Adapted(name)(), Watcher()
    trainer = make_trainer(
        model, cls=cls, callbacks=[watch], lr_scheduler_type="constant",
        **{"max_steps": 5, "weight_decay": 0.5, **changes},
    )  # fmt: skip
    trainer.when = when
    groups = attach(trainer, schedule=schedule)
    trainer.train()
    found, changed = set(), set()
    for step, (before, after) in enumerate(zip(watch.seen, watch.seen[1:], strict=False)):
        learning = learning_names(schedule, progress_of(trainer.args, trainer.state, step), model, groups)
        now = moved(before, after)
        assert now & learning
        found, changed = found | now - learning, changed | now
    assert not changed & groups.locked
    return found


def reference_cells():
    """Every schedule with every moment, every second time under activation checkpointing."""
    cells = itertools.product(reversed(THAWING), ("before", "after", "set"))
    return [(*cell, bool(i % 2)) for i, cell in enumerate(cells)]


@pytest.mark.parametrize(
    ("schedule", "when", "checkpointing"), reference_cells(), ids=lambda v: getattr(v, "name", str(v))
)
def test_frozen_adapters_do_not_move_though_the_loss_switches_them_off_and_on(
    make_trainer, schedule, when, checkpointing
):
    assert not strays(make_trainer, schedule, Reference, when, activation_checkpointing=checkpointing)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "upper", "dora", "ia3", "vera", "oft", "boft", "ln-tuning"])
@pytest.mark.parametrize("schedule", THAWING, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_adapters_of_every_method_do_not_move(make_trainer, name, schedule, checkpointing):
    for when in ("before", "after", "set"):
        assert not strays(
            make_trainer, schedule, Reference, when, name, activation_checkpointing=checkpointing,
            gradient_accumulation_steps=2, per_device_train_batch_size=4,
        )  # fmt: skip


def test_without_held_flags_they_would_move_or_the_backward_pass_break(make_trainer, monkeypatch):
    """`set_adapter` and the end of `disable_adapter` let all of an adapter learn."""
    with monkeypatch.context() as patch:
        patch.setattr(HeldFlags, "_set_back", lambda self, gradient=None: None)
        assert strays(make_trainer, THAWING[0], Reference)
    monkeypatch.setattr(HeldFlags, "_after", lambda *args: None)
    with pytest.raises(torch.utils.checkpoint.CheckpointError, match="have different metadata"):
        strays(make_trainer, THAWING[3], Reference, "after", activation_checkpointing=True)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adafactor", "sgd"])
def test_weight_decay_and_momentum_never_touch_a_frozen_adapter(make_trainer, optim):
    assert not strays(make_trainer, ChainThaw(), optim=optim, gradient_accumulation_steps=2)


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}


def test_statistics_beneath_adapters_of_convolutions_do_not_move_and_resume(make_trainer, tmp_path):
    make = Adapted({"name": "lora"}, resnet)
    run = setting(make_trainer, tmp_path / "run", train=images(), schedule=GradualUnfreezing(every=2))
    models = []

    def made():
        models.append((model := make(), statistics(model)))
        return model

    check_resume(run, [2], make=made)
    for model, before in models:
        assert before
        assert all(torch.equal(before[name], value) for name, value in statistics(model).items())
    plain = make_trainer(make(), train=images(), max_steps=2)
    before = statistics(plain.model)
    plain.train()
    assert not all(torch.equal(before[name], value) for name, value in statistics(plain.model).items())


def test_statistics_of_norms_that_learn_are_saved_and_resumed(make_trainer, tmp_path):
    make = Adapted({"name": "lora", "also_train": ["norms"]}, resnet)
    run = setting(make_trainer, tmp_path / "run", train=images())
    model = make()
    before = statistics(model)
    trainer = run.trainer(model)
    trainer.train()
    after = statistics(model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if "modules_to_save" in name
    }
    check_resume(run, [2], make=make)


def wav2vec2():
    return Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8),
            conv_kernel=(10, 3), conv_stride=(5, 2), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
            classifier_proj_size=16, mask_time_length=2,
        )
    )  # fmt: skip


def sounds(count=16):
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(count, 400, generator=generator)
    return [{"input_values": wave, "labels": torch.tensor(i % 2)} for i, wave in enumerate(waves)]


def test_adapters_of_a_model_of_sound_resume_over_a_base_that_does_not_move(make_trainer, tmp_path):
    make, models = Adapted({"name": "lora"}, wav2vec2), []

    def made():
        model = make()
        models.append((model, weights(model), discover_layer_groups(model).locked))
        return model

    run = setting(make_trainer, tmp_path / "run", train=sounds(), schedule=GradualUnfreezing(every=2))
    check_resume(run, [2], make=made)
    for model, before, locked in models:
        changed = moved(before, weights(model))
        assert changed
        assert not changed & locked


# The scale of the loss


def still(base, name):
    """Without dropout, or micro-batches would draw other masks than one batch."""
    spec = {"name": name} if name == "ia3" else {"name": name, "lora_dropout": 0.0}
    if name == "adalora":
        spec |= {"tinit": 0, "tfinal": 0}
    return Adapted(spec, base)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("adapter", ["lora", "adalora", "ia3"])
@pytest.mark.parametrize(
    ("name", "cls"), [("bert-classes", Trainer), ("bert-masked", TransferTrainer), ("llama", Trainer)]
)
def test_micro_batches_equal_one_batch(make_trainer, name, cls, adapter):
    base = {**PER_EXAMPLE, **PER_TOKEN}[name]
    large, expected = train(make_trainer, name, still(base, adapter), cls, 8, 1)
    small, found = train(make_trainer, name, still(base, adapter), cls, 2, 4)
    names = ("base_model.model." + n for n in ("bert", "classifier", "cls", "model"))
    assert any(name.startswith(tuple(names)) for name in found)
    assert gap(found, expected) < 1e-6
    for key in ("loss", "grad_norm"):
        values = [trainer.state.log_history[0][key] for trainer in (large, small)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_the_penalty_of_adalora_is_counted_once_and_its_weight_left_as_it_was(make_trainer, monkeypatch):
    """Of PEFT's half of a mean distance of AAᵀ and BᵀB from the unit matrix nothing more than that is in the loss."""
    trainer, _ = train(make_trainer, "llama", still(PER_TOKEN["llama"], "adalora"), Trainer, 4, 2)
    model = still(PER_TOKEN["llama"], "adalora")()
    distances = []
    for name, matrix in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            matrix = matrix.detach()
            square = matrix @ matrix.T if "lora_A" in name else matrix.T @ matrix
            distances.append(float((square - torch.eye(len(square))).norm()))
    plain, _ = train(make_trainer, "llama", still(PER_TOKEN["llama"], "lora"), Trainer, 8, 1)
    losses = [t.state.log_history[0]["loss"] for t in (trainer, plain)]
    assert losses[0] - losses[1] == pytest.approx(0.5 * sum(distances) / len(distances), rel=1e-4)
    assert trainer.model.peft_config["default"].orth_reg_weight == 0.5
    assert not trainer.model.base_model._forward_pre_hooks
    monkeypatch.setattr(RankAllocationCallback, "_share_penalty", lambda *args: None)
    twice, _ = train(make_trainer, "llama", still(PER_TOKEN["llama"], "adalora"), Trainer, 4, 2)
    assert twice.state.log_history[0]["loss"] > losses[0] + 0.9 * (losses[0] - losses[1])


def test_the_model_that_drops_the_count_is_named_and_not_its_wrapper(make_trainer, caplog):
    with caplog.at_level(logging.WARNING):
        train(make_trainer, "bert-masked", still(PER_TOKEN["bert-masked"], "lora"), Trainer, 4, 2)
    assert "BertForMaskedLM drops `num_items_in_batch`" in caplog.text


# Below the lowest adapter


def hook_of_transformers(model):
    model.enable_input_require_grads()


def hook_of_peft(model):
    """As PEFT's preparation of quantised models leaves them, where it does not know Transformers' own."""

    def make_inputs_require_grad(module, inputs, output):
        output.requires_grad_(True)

    model.get_input_embeddings().register_forward_hook(make_inputs_require_grad)


def own_checkpointing(model):
    model.activation_checkpointing_enable()


@pytest.mark.parametrize(
    ("prepare", "arguments"),
    [
        ([], False),
        ([], True),
        ([hook_of_transformers], True),
        ([hook_of_peft], True),
        ([hook_of_transformers, hook_of_peft], True),
        ([own_checkpointing], False),
        ([own_checkpointing, hook_of_transformers, hook_of_peft], False),
    ],
    ids=lambda value: "+".join(f.__name__ for f in value) if isinstance(value, list) else str(value),
)
def test_what_lies_below_the_lowest_adapter_is_neither_recomputed_nor_differentiated(make_trainer, prepare, arguments):
    base, calls, differentiated = bert(), [], []
    for i, block in enumerate(base.bert.encoder.layer):
        block.attention.output.LayerNorm.register_full_backward_hook(
            lambda m, into, out, i=i: differentiated.append(i)
        )
        block.attention.register_forward_pre_hook(
            lambda m, args, i=i: calls.append(i) if torch.is_grad_enabled() else None
        )
    for step in prepare:
        step(base)
    model = attach_adapter(base, {"name": "lora", "layers": 1})
    if hook_of_peft in prepare:
        hook_of_peft(model)
    hooks = bool(base.get_input_embeddings()._forward_hooks)
    trainer = make_trainer(model, max_steps=1, activation_checkpointing=arguments)
    attach(trainer, schedule=full())
    trainer.train()
    checkpointing = arguments or bool(prepare)
    assert calls.count(0) == calls.count(1) == 1
    assert calls.count(2) == (2 if checkpointing else 1)
    assert set(differentiated) == {2}
    # As it was found; Trainer's own activation checkpointing leaves its hook.
    assert bool(base.get_input_embeddings()._forward_hooks) == (hooks or arguments)
    differentiated.clear()
    trainer.train()
    assert set(differentiated) == {2}


def test_a_hook_is_left_to_reentrant_checkpointing_which_needs_it(make_trainer):
    model = Adapted("lora")()
    watch = Watcher()
    trainer = make_trainer(
        model, callbacks=[watch], max_steps=1, activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": True},
    )  # fmt: skip
    attach(trainer, schedule=full())
    trainer.train()
    assert any(".layer.0." in name for name in moved(watch.seen[0], watch.seen[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiling_happens_once_a_phase_and_no_more(make_trainer, checkpointing):
    """Of the four steps two train the head, and two the layer's adapters, too."""
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    graphs = []

    class Graphs(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            graphs.append(counters["stats"]["unique_graphs"])

    model = attach_adapter(bert(num_hidden_layers=1, problem_type="single_label_classification"), "lora")
    trainer = make_trainer(
        model, callbacks=[Graphs()], max_steps=4, torch_compile=True, torch_compile_backend="eager",
        activation_checkpointing=checkpointing,
    )  # fmt: skip
    attach(trainer, schedule=GradualUnfreezing(every=2))
    trainer.train()
    torch._dynamo.reset()
    assert graphs[0] > 0
    assert graphs == [graphs[0] * phase for phase in (1, 1, 2, 2)]
