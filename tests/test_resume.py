"""A run that stopped and went on is, bit for bit, the run that never stopped."""

import itertools
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hf_transfer_plugin import FreezingCallback, GradualUnfreezing, LayerwiseDecay, attach
from hf_transfer_plugin.callbacks.resuming import STATE_KEY, missing_parts, set_aside_incomplete
from hf_transfer_plugin.freezing import bitfit, freeze_first
from hf_transfer_plugin.layers import discover_layer_groups
from hf_transfer_plugin.schedules import ChainThaw, LayerSampling, LinearProbeThenFineTune, PlateauUnfreezing
from tests.conftest import bert, rows

STEPS = 6
FACTORS = {
    "schedule": {
        "gradual": GradualUnfreezing(),
        "chain": ChainThaw(),
        "lp-ft": LinearProbeThenFineTune(frozen=1),
        "plateau": PlateauUnfreezing(),
        "sampling": LayerSampling(active=1, every=2),
    },
    "optim": {name: name for name in ("adamw_torch_fused", "adamw_torch", "adafactor", "sgd")},
    "accumulation": {"1": 1, "2": 2},
    "precision": {"fp32": False, "bf16": True},
    "checkpointing": {"off": False, "non-reentrant": True},
}
CELLS = list(itertools.product(*(values for values in FACTORS.values())))


def pairwise(cells):
    """Few cells in which every two values of different factors meet, each with a step to resume from."""
    pairs = {cell: set(itertools.combinations(enumerate(cell), 2)) for cell in cells}
    left, chosen = set().union(*pairs.values()), []
    while left:
        chosen.append(max(cells, key=lambda cell: len(pairs[cell] & left)))
        left -= pairs[chosen[-1]]
    return [(cell, 1 + i % (STEPS - 1)) for i, cell in enumerate(chosen)]


class Setting:
    """Makes the same Trainer again and again."""

    def __init__(self, make_trainer, folder, cell=CELLS[0], schedule=None, rates=None, **changes):
        values = dict(zip(FACTORS, cell, strict=True))
        self.schedule = schedule or FACTORS["schedule"][values["schedule"]]
        self.rates = rates or LayerwiseDecay(0.8, warmup_steps=2)
        self.make, self.folder = make_trainer, folder
        self.arguments = {
            "optim": values["optim"],
            "gradient_accumulation_steps": FACTORS["accumulation"][values["accumulation"]],
            "per_device_train_batch_size": 4,
            "bf16": FACTORS["precision"][values["precision"]],
            "activation_checkpointing": FACTORS["checkpointing"][values["checkpointing"]],
            "activation_checkpointing_kwargs": {"use_reentrant": False},
            "max_steps": STEPS,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "max_grad_norm": 0.5,
            **changes,
        }

    def trainer(self, model=None, callbacks=None, alone=False):
        set_seed(0)
        callbacks = [*(callbacks or []), *([FreezingCallback(self.schedule)] if alone else [])]
        trainer = self.make(model or bert(), output_dir=str(self.folder), callbacks=callbacks, **self.arguments)
        if not alone:
            attach(trainer, schedule=self.schedule, learning_rates=self.rates)
        return trainer


def outcome(trainer, after=0):
    """Weights, and what was logged after a step; timings and the sum over the process's own steps excepted."""
    history = [
        {k: v for k, v in entry.items() if not k.startswith("train_") and not k.endswith(("_runtime", "_per_second"))}
        for entry in trainer.state.log_history
        if entry["step"] > after and "train_runtime" not in entry
    ]
    return {k: v.clone() for k, v in trainer.model.state_dict().items()}, history


def assert_same(found, expected):
    assert found[1] == expected[1]
    for name, value in expected[0].items():
        assert torch.equal(found[0][name], value), name


def check_resume(setting, steps, alone=False, make=bert):
    whole = setting.trainer(make(), alone=alone)
    whole.train()
    weights, history = outcome(whole)
    assert {"grad_norm", "learning_rate", "loss"} <= history[0].keys()
    for step in steps:
        resumed = setting.trainer(make(), alone=alone)
        resumed.train(resume_from_checkpoint=str(setting.folder / f"checkpoint-{step}"))
        assert_same(outcome(resumed, step), (weights, [entry for entry in history if entry["step"] > step]))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("cell", "step"), pairwise(CELLS), ids=lambda v: "-".join(v) if isinstance(v, tuple) else v)
def test_a_resumed_run_ends_bitwise_as_the_uninterrupted_one(make_trainer, tmp_path, cell, step):
    check_resume(Setting(make_trainer, tmp_path / "run", cell), [step])


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_every_cell_resumes_from_every_checkpoint(make_trainer, tmp_path, cell):
    check_resume(Setting(make_trainer, tmp_path / "run", cell), range(1, STEPS))


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_callback_alone_resumes_bitwise(make_trainer, tmp_path, step):
    check_resume(Setting(make_trainer, tmp_path / "run"), [step], alone=True)


@pytest.mark.parametrize("policy", [freeze_first(2), bitfit()], ids=lambda policy: policy.name)
def test_fixed_policies_resume_bitwise(make_trainer, tmp_path, policy):
    check_resume(Setting(make_trainer, tmp_path / "run", schedule=policy), [2])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fresh", [False, True], ids=["model", "model_init"])
@pytest.mark.parametrize("schedule", [GradualUnfreezing(frozen=1), freeze_first(2)], ids=lambda s: s.name)
def test_a_model_loaded_in_16_bits_resumes_bitwise(make_trainer, tmp_path, schedule, fresh):
    """Its weights that learn are kept and saved in 32 bits; rounded on loading, the run would be another."""

    def half():
        return bert().to(torch.bfloat16)

    setting = Setting(make_trainer, tmp_path / "run", schedule=schedule, bf16=True, learning_rate=1e-4)
    if fresh:
        setting.make = lambda model, output_dir, callbacks, **changes: Trainer(
            model_init=half, args=make_trainer(output_dir=output_dir, **changes).args, train_dataset=rows(),
            eval_dataset=rows(8), callbacks=callbacks,
        )  # fmt: skip
    check_resume(setting, [2, 4], make=half)


# Killed at any moment


class Death(TrainerCallback):
    """Kills its process in the n-th training forward, the n-th evaluation forward, or halfway through the n-th file
    that torch saves."""

    def __init__(self, where, count):
        self.where, self.left = where, count

    def dies(self):
        self.left -= 1
        return self.left <= 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self.where == "save":
            self.before, torch.save = torch.save, self.save
        else:
            model.register_forward_pre_hook(self.forward)

    def save(self, value, file, **kwargs):
        self.before(value, file, **kwargs)
        if self.dies():
            cut(file)
            os.kill(os.getpid(), signal.SIGKILL)

    def forward(self, module, inputs):
        if module.training == (self.where == "train") and self.dies():
            os.kill(os.getpid(), signal.SIGKILL)


def moments():
    """Ten seeded moments; of the files of a checkpoint three are written by torch (optimizer, scheduler, random)."""
    draw = random.Random(0)
    most = {"train": STEPS * 2, "evaluate": STEPS, "save": STEPS * 3}
    kinds = ["train", "evaluate", "save"] * 3 + ["save"]
    return [(kind, draw.randint(2, most[kind])) for kind in kinds]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "count"), moments())
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(make_trainer, tmp_path, where, count):
    cell = ("sampling" if count % 2 else "gradual", "adamw_torch_fused", "2", "fp32", "off")
    setting = Setting(make_trainer, tmp_path / "run", cell)
    whole = Setting(make_trainer, tmp_path / "whole", cell).trainer()
    whole.train()

    def train_and_die():
        setting.trainer(callbacks=[Death(where, count)]).train()

    process = multiprocessing.get_context("fork").Process(target=train_and_die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    trainer = setting.trainer()
    after = max((int(c.name[11:]) for c in setting.folder.glob("checkpoint-*") if not missing_parts(c)), default=0)
    trainer.train(resume_from_checkpoint=after > 0)
    assert_same(outcome(trainer, after), outcome(whole, after))


# Whole and half-written checkpoints


@pytest.fixture
def finished(make_trainer, tmp_path):
    setting = Setting(make_trainer, tmp_path / "run", max_steps=3)
    trainer = setting.trainer()
    trainer.train()
    return setting, outcome(trainer)


def cut(file):
    os.truncate(file, os.path.getsize(file) // 2)


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("damage", [Path.unlink, cut], ids=["missing", "cut"])
@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_without_one_of_its_files_is_set_aside(finished, caplog, file, damage):
    setting, whole = finished
    damage(setting.folder / "checkpoint-2" / file)
    damage(setting.folder / "checkpoint-3" / file)
    trainer = setting.trainer()
    assert sorted(os.listdir(setting.folder)) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert f"checkpoint-3 is incomplete ({file}) and was renamed to incomplete-checkpoint-3" in caplog.text
    assert caplog.text.count("incomplete-checkpoint") == 2
    names = {f"checkpoint-{step}" for step in (1, 2, 3)}
    assert set(os.listdir(setting.folder)) == names | {"incomplete-checkpoint-2", "incomplete-checkpoint-3"}
    assert_same(outcome(trainer, 1), (whole[0], [entry for entry in whole[1] if entry["step"] > 1]))


@pytest.mark.parametrize("file", FILES)
def test_a_named_incomplete_checkpoint_is_refused(finished, file):
    setting, _ = finished
    trainer = setting.trainer()
    (setting.folder / "checkpoint-2" / file).unlink()
    with pytest.raises(ValueError, match=rf"whole checkpoint only, but '.*checkpoint-2' lacks {file}. Name an earl"):
        trainer.train(resume_from_checkpoint=str(setting.folder / "checkpoint-2"))
    assert (setting.folder / "checkpoint-2").is_dir()


def test_two_incomplete_checkpoints_of_one_step_are_both_kept(finished):
    setting, _ = finished
    for expected in ("incomplete-checkpoint-3", "incomplete-checkpoint-3.2"):
        shutil.copytree(setting.folder / "checkpoint-2", setting.folder / "checkpoint-3", dirs_exist_ok=True)
        (setting.folder / "checkpoint-3" / "optimizer.pt").unlink()
        set_aside_incomplete(setting.trainer().args)
        assert (setting.folder / expected).is_dir()


def test_resuming_where_no_whole_checkpoint_is_left_says_so(finished):
    setting, _ = finished
    for folder in setting.folder.glob("checkpoint-*"):
        (folder / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="There is no whole checkpoint in .* to resume from"):
        setting.trainer().train(resume_from_checkpoint=True)


def test_parts_of_sharded_weights_and_of_several_processes(finished):
    folder = finished[0].folder / "checkpoint-3"
    weights = folder / "model.safetensors"
    shutil.copy(weights, folder / "model-00001-of-00002.safetensors")
    weights.rename(folder / "model-00002-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert missing_parts(folder) == []
    written_by(folder, 2)
    assert missing_parts(folder) == []
    (folder / "rng_state_1.pth").unlink()
    assert missing_parts(folder) == ["rng_state_1.pth"]
    cut(folder / "model-00002-of-00002.safetensors")
    assert missing_parts(folder) == ["model-00002-of-00002.safetensors", "rng_state_1.pth"]
    (folder / "optimizer.pt").unlink()
    assert missing_parts(folder) == ["model-00002-of-00002.safetensors", "optimizer.pt", "rng_state_1.pth"]


def written_by(folder, processes, state=True):
    """Makes the checkpoint one of so many processes; a plain Trainer's state does not tell how many."""
    mine, *others = [path.read_bytes() for path in folder.glob("rng_state*.pth")]
    assert not others
    (folder / "rng_state.pth").unlink()
    for i in range(processes):
        (folder / f"rng_state_{i}.pth").write_bytes(mine)
    file = folder / "trainer_state.json"
    kept = json.loads(file.read_text())
    if state:
        kept["stateful_callbacks"][STATE_KEY]["processes"] = processes
    else:
        del kept["stateful_callbacks"][STATE_KEY]["processes"]
    file.write_text(json.dumps(kept))


@pytest.mark.parametrize("sharded", [False, True], ids=["full", "sharded"])
def test_parts_of_a_checkpoint_of_fsdp(finished, sharded):
    folder = finished[0].folder / "checkpoint-3"
    (folder / "model.safetensors").unlink()
    if not sharded:
        (folder / "optimizer.pt").rename(folder / "optimizer.bin")
        torch.save({}, folder / "pytorch_model_fsdp.bin")
        files = ("pytorch_model_fsdp.bin", "optimizer.bin")
    else:
        (folder / "optimizer.pt").unlink()
        files = ("pytorch_model_fsdp_0", "optimizer_0")
        for name in files:
            (folder / name).mkdir()
            (folder / name / ".metadata").write_text("whole")
    assert missing_parts(folder) == []
    for name in files:
        (folder / name / ".metadata").unlink() if sharded else cut(folder / name)
    assert missing_parts(folder) == list(files)


@pytest.mark.parametrize("state", [True, False], ids=["ours", "plain"])
@pytest.mark.parametrize("by_name", [True, False], ids=["named", "last"])
def test_another_number_of_processes_is_told_and_the_run_goes_on(finished, caplog, state, by_name):
    setting, _ = finished
    written_by(setting.folder / "checkpoint-3", 2, state)
    trainer = setting.trainer()
    with caplog.at_level(logging.WARNING, logger="hf_transfer_plugin"):
        trainer.train(resume_from_checkpoint=str(setting.folder / "checkpoint-3") if by_name else True)
    assert "checkpoint-3 was written by 2 processes and goes on with 1: the rows and random" in caplog.text
    assert caplog.text.count("incomplete") == 0


def test_the_same_number_of_processes_is_no_matter_to_tell(finished, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_transfer_plugin"):
        finished[0].trainer().train(resume_from_checkpoint=True)
    assert "written by" not in caplog.text


@pytest.mark.parametrize("only_model", [True, False])
def test_checkpoints_of_the_model_alone_are_left_and_not_resumed_from(make_trainer, tmp_path, only_model):
    setting = Setting(make_trainer, tmp_path / "run", max_steps=2, save_only_model=True)
    setting.trainer().train()
    names = sorted(os.listdir(setting.folder))
    again = Setting(make_trainer, tmp_path / "run", max_steps=2, save_only_model=only_model)
    for where in (True, str(setting.folder / "checkpoint-1")):
        with pytest.raises(
            ValueError, match=r"checkpoint-\d' holds nothing but the model \(`save_only_model`\). Start"
        ):
            again.trainer().train(resume_from_checkpoint=where)
    assert sorted(os.listdir(setting.folder)) == names == ["checkpoint-1", "checkpoint-2"]


def test_what_another_run_is_just_writing_is_left_alone(make_trainer, tmp_path):
    half = tmp_path / "run" / "checkpoint-7"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"")
    Setting(make_trainer, tmp_path / "run", max_steps=1, save_strategy="no").trainer().train()
    assert half.is_dir()


def test_without_an_output_folder_there_is_nothing_to_resume_from(make_trainer, tmp_path):
    trainer = Setting(make_trainer, tmp_path / "run", max_steps=1, save_strategy="no").trainer()
    trainer.args.output_dir = None
    with pytest.raises(ValueError, match="There is no whole checkpoint in None to resume from"):
        trainer.train(resume_from_checkpoint=True)


# Another run


def resume(setting, model=None, alone=False):
    setting.trainer(model, alone=alone).train(resume_from_checkpoint=str(setting.folder / "checkpoint-3"))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("alone", [False, True], ids=["attach", "callback"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": LayerSampling()}, r'schedule: \{.*"gradual-unfreezing", .*, against \{.*"layer-sampling"'),
        ({"schedule": GradualUnfreezing(until=0.2)}, r'schedule: \{.*"until": 0.5\}, against .*"until": 0.2\} now'),
        ({"max_steps": 30}, r'last phase: \["layer.0", .*"head"\], against \["head"\] now.* number of steps'),
    ],
)
def test_resuming_with_another_schedule_is_refused(make_trainer, tmp_path, changes, message, alone):
    setting = Setting(make_trainer, tmp_path / "run", max_steps=6)
    setting.trainer(alone=alone).train()
    other = Setting(make_trainer, tmp_path / "run", **{"max_steps": 6, **changes})
    with pytest.raises(ValueError, match=f"but the checkpoint has another {message}"):
        resume(other, alone=alone)


def test_resuming_with_other_rates_is_refused(make_trainer, tmp_path):
    Setting(make_trainer, tmp_path / "run").trainer().train()
    other = Setting(make_trainer, tmp_path / "run", rates=LayerwiseDecay(0.5))
    with pytest.raises(ValueError, match=r'another choice of learning rates: .*"decay": 0.8.* against .*"decay": 0.5'):
        resume(other)


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (freeze_first(3), freeze_first(2), r"'bert.encoder.layer.1.[a-z.A-Z]*' learns now and did not then \(and 15"),
        (freeze_first(2), freeze_first(3), r"'bert.encoder.layer.1.[a-z.A-Z]*' learned then and does not now \(and"),
    ],
)
def test_moments_of_other_parameters_are_refused(make_trainer, tmp_path, before, now, message):
    Setting(make_trainer, tmp_path / "run", schedule=before).trainer().train()
    with pytest.raises(ValueError, match=f"began with, but {message}"):
        resume(Setting(make_trainer, tmp_path / "run", schedule=now))


def test_a_layer_of_equal_shape_is_not_taken_for_another(make_trainer, tmp_path):
    """Same shapes, same count: torch would load the moments of layer 0 for layer 1 without a word."""

    def only(layer):
        model = bert()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(f"layer.{layer}." in name or name.startswith("classifier"))
        return model

    setting = Setting(make_trainer, tmp_path / "run", schedule=GradualUnfreezing())

    def run(layer, **kwargs):
        set_seed(0)
        trainer = make_trainer(only(layer), output_dir=str(setting.folder), **setting.arguments)
        attach(trainer, learning_rates=LayerwiseDecay(0.8))
        trainer.train(**kwargs)

    run(0)
    with pytest.raises(ValueError, match=r"'bert.encoder.layer.0.[a-zA-Z.]*' learned then and does not now"):
        run(1, resume_from_checkpoint=str(setting.folder / "checkpoint-3"))


def test_another_grouping_is_refused(make_trainer, tmp_path):
    setting = Setting(make_trainer, tmp_path / "run")
    setting.trainer().train()

    def regrouped(patterns):
        set_seed(0)
        model = bert()
        trainer = make_trainer(model, output_dir=str(setting.folder), **setting.arguments)
        attach(trainer, schedule=setting.schedule, learning_rates=setting.rates,
               groups=discover_layer_groups(model, patterns))  # fmt: skip
        trainer.train(resume_from_checkpoint=str(setting.folder / "checkpoint-3"))

    with pytest.raises(ValueError, match="'bert.embeddings.*' was in another layer group or place then"):
        regrouped(["embeddings|layer.0", "layer.1", "layer.2", "."])


def test_another_model_is_refused(make_trainer, tmp_path):
    setting = Setting(make_trainer, tmp_path / "run")
    setting.trainer().train()
    with pytest.raises(ValueError, match=r"'bert.encoder.layer.2[a-zA-Z.]*' learned then and does not now"):
        resume(setting, bert(num_hidden_layers=2))


def test_a_checkpoint_of_a_plain_trainer_is_refused(make_trainer, tmp_path):
    setting = Setting(make_trainer, tmp_path / "run")
    make_trainer(output_dir=str(setting.folder), **setting.arguments).train()
    with pytest.raises(ValueError, match="the checkpoint was written by a Trainer without `attach`"):
        resume(setting)


def test_a_plain_trainer_goes_on_after_ours(make_trainer, tmp_path):
    """What we keep in the state is nothing that a Trainer without us stumbles over."""
    setting = Setting(make_trainer, tmp_path / "run", restore_callback_states_from_checkpoint=True)
    setting.trainer(alone=True).train()
    trainer = make_trainer(output_dir=str(setting.folder), **setting.arguments)
    assert isinstance(trainer, Trainer)
    trainer.train(resume_from_checkpoint=str(setting.folder / "checkpoint-3"))
    assert trainer.state.global_step == STEPS


def pictures(count=8):
    values = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return [{"pixel_values": one, "labels": int(number % 2)} for number, one in enumerate(values)]


def looking(folder, **changes):
    """A Trainer over a ViT, whose weights Transformers saves under other names than they have."""
    set_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4))
    given = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **changes}
    args = TrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **given)
    trainer = Trainer(model, args, train_dataset=pictures(), eval_dataset=pictures(4))
    attach(trainer, schedule=GradualUnfreezing(until=0.5))
    return trainer


def test_weights_that_were_saved_under_other_names_go_on(tmp_path):
    whole = looking(tmp_path / "whole")
    whole.train()
    saved = load_file(tmp_path / "whole" / "checkpoint-2" / "model.safetensors")
    assert not saved.keys() & {name for name in whole.model.state_dict() if ".layers." in name}
    resumed = looking(tmp_path / "resumed")
    resumed.train(str(tmp_path / "whole" / "checkpoint-2"))
    first, second = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_best_model_is_whole_where_its_weights_have_other_names(tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    # Rows are never better known than before a rate that destroys all.
    trainer = looking(tmp_path, **best, learning_rate=10.0, lr_scheduler_type="constant")
    trainer.train()
    folder = trainer.state.best_model_checkpoint
    kept = ViTForImageClassification.from_pretrained(folder).state_dict()
    last = ViTForImageClassification.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    found = trainer.model.state_dict()
    assert all(torch.equal(found[name], kept[name]) for name in found)
    assert folder.endswith("checkpoint-2")
    assert not torch.equal(kept["vit.layers.1.attention.k_proj.weight"], last["vit.layers.1.attention.k_proj.weight"])
