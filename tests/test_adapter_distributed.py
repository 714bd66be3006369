"""Adapters in two processes under torchrun: equal to each other, and to one process with the same batches."""

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed_worker import ADAPTER_CELLS, STEPS, attached_adapter
from tests.test_distributed import launch

__all__ = ["launch"]  # the fixture
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def cells(launch):
    return launch("adapters")


@pytest.mark.parametrize("cell", ADAPTER_CELLS, ids=lambda cell: "-".join(map(str, cell)))
def test_ranks_stay_equal_and_equal_one_process(cells, tmp_path, cell):
    out, (first, second) = cells
    key = "-".join(map(str, cell))
    assert first[key] == second[key]
    learned = {tuple(names) for _, names in first[key]["sums"]}
    assert len(learned) == 1 if cell[1] == "full" else len(learned) > 1
    trainer = attached_adapter(tmp_path / "one", cell, batch=8)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    locked = {n for n, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    found, tolerance = load_file(out / f"{key}.safetensors"), 1e-6 if cell[2] == "sgd" else 1e-4
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert first[key]["norms"] == pytest.approx([entry["grad_norm"] for entry in history], rel=1e-4)
    assert first[key]["losses"] == pytest.approx([entry["loss"] for entry in history], rel=1e-4)
    assert locked
    assert all(torch.equal(found[name], before[name]) for name in locked)
    assert first[key]["looks for unused"]


def test_a_settled_choice_needs_no_search_for_unused_parameters_and_a_changing_one_does(launch):
    _, (first, second) = launch("unused")
    assert first == second
    for adapter in ("lora", "adalora", "ia3"):
        ways = [first["settled"][f"{adapter} {choice}"] for choice in (None, True, False)]
        assert ways[0]["told"] == "no error"
        assert len(ways[0]["sums"]) == STEPS
        assert ways[0] == ways[1] == ways[2]
    assert "needs `ddp_find_unused_parameters=True`" in first["changing"]


def test_two_processes_resume_adapters_bitwise_from_the_last_whole_checkpoint(launch):
    _, (first, second) = launch("adapter_resume")
    assert first == second
    assert set(first) == {"lora", "adalora", "p-tuning"}
    assert all(one["same"] and one["aside"] == STEPS - 3 for one in first.values())


def test_sharded_adapters_equal_one_process(launch):
    _, found = launch("sharded_adapters")
    assert len(found[0]) == 4
    for worst in found:
        assert all(value <= 1e-6 for value in worst.values()), worst
