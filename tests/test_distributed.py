"""Two processes under torchrun: they stay equal to each other, and to one process with the same batches."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed_worker import CELLS, STEPS, STRATEGIES, attached

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Runs one function of the worker on two processes; gives the folder and what each rank found."""

    def run(name, timeout=600):
        out = tmp_path_factory.mktemp(name)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        worker = [str(ROOT / "tests" / "distributed_worker.py"), str(out), name]
        done = subprocess.run(
            [*command, *worker],
            env={**environment, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return out, [json.loads((out / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]

    return run


@pytest.fixture(scope="module")
def cells(launch):
    return launch("cells")


@pytest.fixture(scope="module")
def caching(launch):
    return launch("caching")


@pytest.fixture(scope="module")
def order(launch):
    return launch("ordered", timeout=120)[1]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)))
def test_ranks_stay_equal_and_equal_one_process(cells, tmp_path, cell):
    out, (first, second) = cells
    key = "-".join(map(str, cell))
    assert first[key]["sums"] == second[key]["sums"]
    learned = {tuple(names) for _, names in first[key]["sums"]}
    assert len(learned) == 1 if cell[0] in ("lp-ft", "freeze-first") else len(learned) > 1
    trainer = attached(tmp_path / "one", cell, batch=8)
    trainer.train()
    found, tolerance = load_file(out / f"{key}.safetensors"), 1e-6 if cell[1] == "sgd" else 1e-4
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry]
    assert first[key]["norms"] == pytest.approx(norms, rel=1e-4)


def test_every_strategy_has_its_cells():
    assert {cell[0] for cell in CELLS} == set(STRATEGIES)


def test_what_cannot_go_right_is_refused(launch):
    _, (first, second) = launch("refusals")
    assert first == second
    assert "`ddp_static_graph=True` forbids a changing schedule" in first["static graph"]
    assert "needs `ddp_find_unused_parameters=True`" in first["unused"]
    assert "needs non-reentrant checkpointing" in first["reentrant"]
    assert "needs `ddp_find_unused_parameters=True`" in first["callback"]
    assert first["fixed policy"] == "no error"


def test_ranks_that_disagree_stop_the_run(launch):
    _, (first, second) = launch("disagreements", timeout=120)
    assert first == second
    assert first["one blind"] is False
    assert "The loss became nan at step 1, so the run was stopped" in first["not a number"]
    assert "After step 2 the processes no longer agree on the weights of 'layer.1'" in first["at a thaw"]
    assert "After step 6 the processes no longer agree on the weights of 'embeddings'" in first["before a save"]
    assert first["not looked at"] == "no error"


def test_ranks_that_begin_otherwise_stop_the_run_instead_of_waiting(launch):
    _, (first, second) = launch("apart", timeout=120)
    assert first == second
    assert "After step 0 the processes no longer agree on which parameters learn" in first["names"]
    alike = "All processes of a run must train alike, but they differ in the {}. Give every process the same"
    whats = {"schedule": "schedule", "rates": "choice of learning rates", "steps": "number of steps"}
    for name, what in {**whats, "measure": "measured `eval_m`"}.items():
        assert alike.format(what) in first[name]


def test_processes_whose_first_batches_differ_take_the_groups_of_the_first(launch):
    _, (first, second) = launch("modalities", timeout=120)
    assert first == second
    assert (first["verified"], first["trained"]) == (True, "no error")
    assert len(first["groups"]) > 5


def test_fsdp_1_keeps_names_decay_and_groups_and_what_it_flattens_is_refused(launch):
    _, found = launch("wrapped", timeout=120)
    for one in found:
        assert "Set `use_orig_params: true`, or use FSDP 2" in one.pop("alone")
        assert one == {"decay": True, "groups": True, "full": True}


def test_two_processes_resume_bitwise_from_the_last_whole_checkpoint(launch):
    _, found = launch("resume")
    every = [f"checkpoint-{step}" for step in range(1, STEPS + 1)]
    aside = [f"incomplete-{name}" for name in every[3:]]
    assert found == [{"same": True, "attached": every, "resumed": every + aside}] * 2


def test_sharded_models_equal_one_process(launch):
    _, found = launch("sharded")
    assert len(found[0]) == 8
    for worst in found:
        assert all(value <= 1e-6 for value in worst.values()), worst


def test_two_processes_share_what_is_stored_and_learn_the_same_as_without(caching):
    _, (first, second) = caching
    for name in [f"{s} {fill}" for s in ("frozen", "gradual", "lp-ft", "chain") for fill in ("ahead", "first-epoch")]:
        one, other = first[name], second[name]
        assert one["sums"] == other["sums"]
        assert one["same"], (name, one["worst"])
        for found in (one, other):
            assert found["report"]["used"], found["report"]["reason"]
            assert found["report"]["hits"] > 0
    # Each has stored half of the rows, and reads those of the other.
    for found in (first, second):
        report = found["frozen ahead"]["report"]
        assert (report["rows_filled"], report["misses"], report["hits"]) == (16, 0, 16)
        assert report["rechecks"] > 0


def test_a_process_that_cannot_cache_turns_it_off_on_all(caching):
    _, (first, second) = caching
    reasons = [found["one refuses"]["report"]["reason"] for found in (first, second)]
    assert reasons == ["another process cannot use it", "rank 1 cannot"]
    for found in (first, second):
        assert found["one refuses"]["same"]
        assert not found["one refuses"]["report"]["used"]
        assert "The prefix cache needs a folder that it can write to, but got" in found["one cannot write"]


@pytest.mark.parametrize("count", [40, 36])
def test_two_processes_take_the_same_rows_in_each_step_when_these_are_sorted(order, count):
    """Steps of 2 x 2 micro-batches of 4; of 36 rows, the last batches are filled up with the epoch's first."""
    ranks = [[found[f"{count} {sort}"] for found in order] for sort in (False, True)]
    for one, other in ranks:
        assert one["sums"] == other["sums"]

    def steps(sort):
        batches = [found["batches"] for found in ranks[sort]]
        epoch = len(batches[0]) // 2
        starts = [e * epoch + i for e in (0, 1) for i in range(0, epoch, 2)]
        ends = [min(s + 2, (s // epoch + 1) * epoch) for s in starts]
        return [[r for both in zip(*(b[s:e] for b in batches), strict=True) for rows in both for r in rows]
                for s, e in zip(starts, ends, strict=True)]  # fmt: skip

    drawn, found = steps(False), steps(True)
    assert [Counter(rows) for rows in found] == [Counter(rows) for rows in drawn]
    lengths = [1 + 7 * i % 23 for i in range(count)]
    ordered = [rows == sorted(rows, key=lambda row: -lengths[row]) for rows in found]
    assert len(found) == 6
    assert ordered == [count == 40, True, False] * 2
    assert found[2] == drawn[2]
    assert order[0][f"{count} worst"] < 1e-6
