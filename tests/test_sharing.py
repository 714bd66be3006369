"""`train --push`: checked before training, checkpoints on the way, picked up on another machine."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.hub import HubError, push_checkpoint
from hf_transfer_plugin.recipes import finetune, preparing
from tests.conftest import reviews
from tests.test_publish import FAULTS, PUBLISHED, REPO, here, hub  # noqa: F401

CHECKPOINTS = f"{REPO}-checkpoints"
FLAGS = ["--max_steps", "8", "--save_steps", "2", "--save_strategy", "steps", "--save_total_limit", "2"]
FLAGS += ["--strategy", "gradual-unfreezing", "--use_cpu", "true", "--report_to", "none", "--learning_rate", "1e-3"]
BEST = ["--eval_strategy", "steps", "--eval_steps", "2", "--load_best_model_at_end", "true"]
PUSH = ["--push", REPO, "--hub_strategy", "checkpoint"]
KILLED = """
import os, signal, sys
from hf_transfer_plugin.callbacks import InterruptCallback
from hf_transfer_plugin.cli import main

def stop(self, args, state, control, **kwargs):
    if state.global_step == 5:
        os.kill(os.getpid(), signal.SIGKILL)

InterruptCallback.on_step_begin = stop
main(sys.argv[1:])
"""


@pytest.fixture
def words(model_folder, tmp_path):
    data = tmp_path / "reviews.csv"
    rows = reviews()
    data.write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in zip(rows["text"], rows["label"], strict=True)))

    def make(name, *more):
        named = {"model": model_folder, "dataset": data, "output_dir": tmp_path / name, "base_model_id": "tester/base"}
        return ["train", *(str(w) for n, v in named.items() for w in (f"--{n}", v)), *FLAGS, *more]

    return make


def train(hub, words, **options):  # noqa: F811
    return hub.run(["-m", "hf_transfer_plugin", *words], check=False, **options)


@pytest.mark.hub
@pytest.mark.parametrize("best", [[], BEST], ids=["last", "best"])
def test_a_killed_run_goes_on_on_another_machine_as_if_nothing_had_been(hub, words, tmp_path, best):  # noqa: F811
    whole = train(hub, words("whole", *best))
    assert whole.returncode == 0, whole.stderr
    (tmp_path / "killed.py").write_text(KILLED)
    killed = hub.run([tmp_path / "killed.py", *words("broken", *best, *PUSH)], check=False)
    assert killed.returncode == -9, killed.stderr
    shutil.rmtree(tmp_path / "broken")
    there = hub.files(CHECKPOINTS)
    assert not any("training_args" in name for name in there)
    assert not any(str(tmp_path).encode() in content for content in there.values())
    assert hub.repo(CHECKPOINTS).private
    assert hub.repo_ids() == [CHECKPOINTS]
    done = train(hub, words("elsewhere", *best, *PUSH, "--resume_from_hub", REPO))
    assert done.returncode == 0, done.stderr
    assert "Resuming from the Hub: " in done.stderr
    assert f"Pushed to {hub.endpoint}/{REPO}." in done.stdout
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    found = load_file(tmp_path / "elsewhere" / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not (tmp_path / "elsewhere" / ".from-hub").exists()
    assert set(hub.files(REPO)) - {".gitattributes"} == PUBLISHED
    kept = {name.split("/")[0] for name in hub.files(CHECKPOINTS)} - {".gitattributes"}
    assert "checkpoint-8" in kept
    assert len(kept) <= 2
    assert hub.leaks() == []


@pytest.mark.hub
def test_without_the_network_training_goes_on_and_the_push_can_be_repeated(hub, words, tmp_path):  # noqa: F811
    hub.faults.add("POST", "/commit/", times=99, status=403)
    done = train(hub, words("run", *PUSH))
    assert done.returncode == 2
    assert "The checkpoint of step 8 is here, but not on the Hub. Could not push a checkpoint" in done.stderr
    assert "error: The run is whole in" in done.stderr
    assert f"`hf-transfer-plugin push {tmp_path / 'run'} {REPO}`" in done.stderr
    hub.faults.clear()
    assert hub.run(["-m", "hf_transfer_plugin", "push", tmp_path / "run", REPO]).returncode == 0
    assert set(hub.files(REPO)) - {".gitattributes"} == PUBLISHED


@pytest.mark.hub
def test_there_is_nothing_to_resume_from(hub, words):  # noqa: F811
    done = train(hub, words("run", "--resume_from_hub", REPO))
    assert done.returncode == 2
    assert f"error: Could not download the checkpoints of {CHECKPOINTS}: there is no such repository" in done.stderr
    hub_made = hub.run(f"from huggingface_hub import HfApi; HfApi().create_repo({CHECKPOINTS!r})")
    assert hub_made.returncode == 0
    done = train(hub, words("run", "--resume_from_hub", REPO))
    assert f"error: {CHECKPOINTS} holds no checkpoint." in done.stderr


@pytest.mark.hub
@pytest.mark.parametrize("options", [{"token": None}, {"token": "reader"}, {"token": "hf_wrong"}])
def test_token_and_rights_are_looked_at_before_anything_is_loaded(hub, words, tmp_path, options):  # noqa: F811
    done = train(hub, words("run", *PUSH), **options)
    assert done.returncode == 2
    assert "error: Could not" in done.stderr
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "run" / "checkpoint-2"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": None}))
    for name in ("model.safetensors", "optimizer.pt", "training_args.bin"):
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.mark.hub
def test_checkpoints_stay_out_of_a_public_repository(here, checkpoint):  # noqa: F811
    here.api().create_repo(CHECKPOINTS, private=False)
    with pytest.raises(HubError, match="is public, and optimizer states should not be"):
        push_checkpoint(checkpoint, REPO)
    assert set(here.files(CHECKPOINTS)) <= {".gitattributes"}
    push_checkpoint(checkpoint, REPO, private=False)
    assert {name for name in here.files(CHECKPOINTS) if "/" in name} == {
        f"checkpoint-2/{name}" for name in ("trainer_state.json", "model.safetensors", "optimizer.pt")
    }


@pytest.mark.hub
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("path", ["/commit/", "/tree/", "/repos/create", "/preupload/"])
def test_one_fault_on_the_way_of_a_checkpoint(here, checkpoint, path, fault):  # noqa: F811
    rule = here.faults.add("*", path, **FAULTS[fault])
    push_checkpoint(checkpoint, REPO)
    assert rule.hits == 1
    assert len(here.commits(CHECKPOINTS)) == 2


def pull(hub, folder):  # noqa: F811
    code = "import json\nfrom hf_transfer_plugin.hub import client, pull_checkpoints\nclient.WAITS = (0.0,) * 4\n"
    done = hub.run(f"{code}print(json.dumps(pull_checkpoints({REPO!r}, {str(folder)!r})))")
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.hub
@pytest.mark.parametrize(
    "fault",
    [{"status": 503}, {"drop": "before"}, {"drop": "after"}, {"cut": 5}],
    ids=["503", "before", "after", "cut"],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/api/models/"), ("HEAD", "resolve"), ("GET", "resolve")])
def test_one_fault_on_the_way_back(here, checkpoint, tmp_path, method, path, fault):  # noqa: F811
    push_checkpoint(checkpoint, REPO)
    rule = here.faults.add(method, path, **fault)
    assert pull(here, tmp_path / "elsewhere") == ["checkpoint-2"]
    assert rule.hits == 1
    arrived = tmp_path / "elsewhere" / "checkpoint-2"
    assert {p.name: p.read_bytes() for p in arrived.iterdir() if p.suffix != ".json"} == {
        name: name.encode() for name in ("model.safetensors", "optimizer.pt")
    }
    assert not (tmp_path / "elsewhere" / ".from-hub").exists()


@pytest.mark.hub
def test_what_is_here_already_stays(here, checkpoint):  # noqa: F811
    push_checkpoint(checkpoint, REPO)
    (checkpoint / "optimizer.pt").write_bytes(b"mine")
    assert pull(here, checkpoint.parent) == ["checkpoint-2"]
    assert (checkpoint / "optimizer.pt").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("config", "args", "message"),
    [
        ({"push": REPO}, {}, "`model` is a local folder .*, so the card could not name the base model"),
        ({}, {"push_to_hub": True}, "`--push_to_hub` is Trainer's own push"),
        ({}, {"hub_token": "hf_abc"}, "`--hub_token` is Trainer's own push"),
    ],
)
def test_what_could_not_be_pushed_is_refused_before_training(
    tmp_path, model_folder, reviews_file, monkeypatch, config, args, message
):
    monkeypatch.setattr(preparing, "load_splits", lambda config: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=message):
        finetune(
            TransferConfig(model=model_folder, dataset=reviews_file, **config),
            TrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none", **args),
        )
