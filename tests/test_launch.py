"""The command line under a launcher: one voice, one record, one message for a fault."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertModel, set_seed

from hf_transfer_plugin.cli import main
from hf_transfer_plugin.record import TransferRecord
from tests.conftest import TINY
from tests.test_recipes import RUN_FILES

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[1]
FIRST_OF_ALL = """
import os, sys
from hf_transfer_plugin.cli import main
rank = int(os.environ["RANK"])
"""
# Eight rows a step, in the file's order.
EIGHT = ["--train_sampling_strategy", "sequential", "--validation_fraction", "0.2", "--max_steps", "8"]
GRADUAL = [*EIGHT, "--strategy", "gradual-unfreezing", "--optim", "sgd", "--learning_rate", "0.05"]


@pytest.fixture(scope="module")
def still_folder(tmp_path_factory, model_folder):
    """The tiny BERT without dropout."""
    folder = tmp_path_factory.mktemp("still") / "tiny-bert"
    set_seed(0)
    BertModel(BertConfig(**TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def words(reviews_file, still_folder, tmp_path):
    """The words of a run of `train`."""

    def make(name, *more):
        flags = {"model": still_folder, "dataset": reviews_file, "output_dir": tmp_path / name, "use_cpu": "true"}
        return ["train", *(str(w) for n, v in flags.items() for w in (f"--{n}", v)), "--report_to", "none", *more]

    return make


@pytest.fixture
def launch(tmp_path):
    """Starts processes with torchrun: of the command line, or of a script that does something else on a rank first."""

    def run(*argv, script=None, launcher=("torch.distributed.run", "--nproc_per_node", "2"), port=True):
        target = ["-m", "hf_transfer_plugin"]
        if script is not None:
            (tmp_path / "worker.py").write_text(FIRST_OF_ALL + script)
            target = [str(tmp_path / "worker.py")]
        where = ["--master_port", str(free_port())] if port else []
        command = [sys.executable, "-m", *launcher, *where, *target, *argv]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
        environment = kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
            try:
                out, err = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                process.terminate()  # Killed, the launcher would leave its processes behind.
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def weights(folder):
    return load_file(os.path.join(folder, "model.safetensors"))


def largest_difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def only_message(done, code=2):
    """The one message of a launch that failed; the launcher's own report is not ours."""
    _, *told = done.stderr.split("error: ")
    assert done.returncode != 0
    assert len(told) == 1, done.stderr
    assert not re.search(r'File ".*(hf_transfer_plugin/|worker\.py)', done.stderr), done.stderr
    exits = set(re.findall(r"exitcode\s*: (-?\d+)", done.stderr))
    # -15: ended by the launcher, because the other one had failed.
    assert str(code) in exits <= {str(code), "-15"}, done.stderr
    return told[0].splitlines()[0]


def test_from_a_file_to_a_record_with_the_default_strategy(launch, words, tmp_path):
    done = launch(*words("run", "--max_steps", "4", "--max_length", "4"))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    assert {name for name in os.listdir(folder) if (folder / name).stat().st_size} >= RUN_FILES
    record = TransferRecord.load(folder)
    assert record.strategy["name"] == "lp-ft"
    assert record.arguments["steps"] == 4
    assert record.hardware["processes"] == 2
    assert record.dataset["splits"] == {"train": 36, "validation": 4}
    for once in ("The plan:", "metric ", "accuracy ", "The run folder is", "Next: "):
        assert done.stdout.count(once) == 1, done.stdout
    shown = done.stderr.replace("\r", "\n")
    for once in ("Solving the head:   0%", "Tokenizing train:   0%", "40 rows are longer than 4 tokens"):
        assert shown.count(once) == 1, shown
    assert "[rank1]" not in shown


APART = """
import time
from pathlib import Path
from hf_transfer_plugin.recipes import finetuning, preparing, recording

def loading(name):
    real, file = getattr(preparing, name), Path(f"{name}.done")
    def load(*args, **kwargs):
        if rank == 0:
            time.sleep(0.5)
            loaded = real(*args, **kwargs)
            file.touch()
            return loaded
        assert file.exists(), f"rank 1 ran ahead into {name}"
        return real(*args, **kwargs)
    setattr(preparing, name, load)

for name in ("load_splits", "load_processor", "load_model"):
    loading(name)

def written(*args, **kwargs):
    raise AssertionError("rank 1 wrote")

if rank == 1:
    finetuning.write_atomically = recording.write_run = written
raise SystemExit(main(sys.argv[1:]))
"""


def test_two_processes_learn_what_one_learns_and_the_first_alone_loads_first_and_writes(launch, words, tmp_path):
    done = launch(*words("two", *GRADUAL, "--per_device_train_batch_size", "4"), script=APART)
    assert done.returncode == 0, done.stderr
    assert main(words("one", *GRADUAL, "--per_device_train_batch_size", "8")) == 0
    one, two = TransferRecord.load(tmp_path / "one"), TransferRecord.load(tmp_path / "two")
    assert [phase["step"] for phase in two.phases] == [0, 1, 2, 3, 4]
    assert two.phases == one.phases
    assert two.rates == one.rates
    assert two.metrics == pytest.approx(one.metrics, abs=1e-5)
    after = weights(tmp_path / "one")
    assert largest_difference(after, weights(tmp_path / "two")) < 1e-5
    before = BertModel.from_pretrained(words("")[2]).state_dict()
    moved = [name for name in before if not torch.allclose(before[name], after.get(f"bert.{name}", before[name]))]
    assert "embeddings.word_embeddings.weight" in moved


def test_a_fault_of_all_processes_is_told_once(launch, words, tmp_path):
    done = launch(*words("run", "--label_column", "stars"))
    assert only_message(done).startswith("The label column must be in the data: expected 'stars'")
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


WRONG_ON_ONE = """
import time
from hf_transfer_plugin import cli

real = cli._tells
if rank == 0:  # The one that shall tell is the last to ask, and the launcher must not end it before.
    cli._tells = lambda: time.sleep(2) or real()
raise SystemExit(main(sys.argv[1:] + ["--label_column", "stars"] * rank))
"""


def test_a_fault_of_one_process_before_training_ends_all_with_one_message(launch, words):
    alone = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = launch(*words("run"), script=WRONG_ON_ONE, launcher=alone, port=False)
    assert only_message(done).startswith("In process 1: The label column must be in the data: expected 'stars'")


WRONG_BETWEEN = """
from hf_transfer_plugin.recipes import finetuning
from hf_transfer_plugin.trainer import attaching

def fail(*args, **kwargs):
    raise ValueError("No space left for process 1.")

if rank == 1:
    places = {"record": (finetuning, "start_record"), "attach": (attaching, "optimizer_factory")}
    setattr(*places[sys.argv[-1]], fail)
raise SystemExit(main(sys.argv[1:-1]))
"""


@pytest.mark.parametrize("where", ["record", "attach"])
def test_a_fault_of_one_process_while_the_trainer_is_made_ends_all_with_one_message(launch, words, tmp_path, where):
    done = launch(*words("run"), where, script=WRONG_BETWEEN)
    assert "No space left for process 1." in only_message(done)
    assert not list((tmp_path / "run").glob("*"))


NOT_A_NUMBER = """
from torch import nn
real = nn.CrossEntropyLoss.forward
if rank == 1:
    nn.CrossEntropyLoss.forward = lambda self, *args: real(self, *args) * float("nan")
raise SystemExit(main(sys.argv[1:]))
"""


def test_a_fault_of_one_process_in_training_ends_all_with_one_message(launch, words, tmp_path):
    done = launch(*words("run"), script=NOT_A_NUMBER)
    assert only_message(done).startswith("The loss became nan at step 1, so the run was stopped.")
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "run" / "transfer_record.json").exists()


INTERRUPTED = """
import signal
from hf_transfer_plugin.callbacks import InterruptCallback

def stop(self, args, state, control, **kwargs):
    if state.global_step == 4 and rank == 1:
        signal.raise_signal(signal.SIGINT)

def go(*more):
    return main([*sys.argv[1:], *more])

assert go("--output_dir", "whole") == 0
InterruptCallback.on_step_begin = stop
assert go("--output_dir", "broken") == 130
InterruptCallback.on_step_begin = lambda *args, **kwargs: None
raise SystemExit(go("--output_dir", "broken", "--resume_from_checkpoint", "true"))
"""


def test_interrupted_on_one_process_all_stop_and_resume_as_if_they_had_not(launch, words, model_folder, tmp_path):
    # With dropout, so that the random state of each process counts.
    more = ["--model", model_folder, "--strategy", "gradual-unfreezing", "--per_device_train_batch_size", "4"]
    done = launch(*words("-", *EIGHT, *more), script=INTERRUPTED)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("Stopped after step")]
    assert told == [
        "Stopped after step 5; the checkpoint is saved. Continue with the same command and "
        "`--resume_from_checkpoint true`."
    ]
    whole, broken = TransferRecord.load(tmp_path / "whole"), TransferRecord.load(tmp_path / "broken")
    assert (broken.phases, broken.metrics) == (whole.phases, whole.metrics)
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "broken")) == 0


def test_accelerate_launch_from_a_file_to_a_record(launch, words, tmp_path):
    done = launch(
        *words("run", "--max_steps", "2"), launcher=("accelerate.commands.launch", "--cpu", "--num_processes", "1"),
        port=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert TransferRecord.load(tmp_path / "run").arguments["steps"] == 2
    assert done.stdout.count("The plan:") == done.stdout.count("accuracy ") == 1
