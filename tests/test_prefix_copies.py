"""Copies of a model from within training are plain models: they run by themselves, from the input, and learn."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from transformers import TrainerCallback

from hf_transfer_plugin import FrozenPrefixCache, GradualUnfreezing, attach, freeze_first
from hf_transfer_plugin.freezing import FrozenModules
from tests.conftest import bert, rows

pytestmark = pytest.mark.slow


def _pickled(model):
    return pickle.loads(pickle.dumps(model))


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": _pickled, "torch.save": _saved}


class Copying(TrainerCallback):
    """Copies the model amid training, and what it is then."""

    def __init__(self, make):
        self.make = make

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            self.copy, self.state = self.make(model), copy.deepcopy(model.state_dict())
            self.again = self.make(self.copy)


def batch():
    return {name: torch.stack([row[name] for row in rows(4)]) for name in ("input_ids", "attention_mask")}


def trained(make_trainer, tmp_path, make, cache, schedule):
    copying = Copying(make)
    trainer = make_trainer(callbacks=[copying])
    cache = FrozenPrefixCache(tmp_path / "cache") if cache else None
    attach(trainer, schedule=schedule, cache=cache)
    trainer.train()
    return copying, cache


@pytest.mark.sampled(3)
@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("cached", [True, False], ids=["cache", "frozen"])
def test_a_copy_made_in_training_is_a_plain_model(make_trainer, tmp_path, make, cached):
    copying, cache = trained(make_trainer, tmp_path, make, cached, freeze_first(2))
    if cached:
        assert cache.report["hits"] > 3
    expected = bert()
    expected.load_state_dict(copying.state)
    expected = expected.eval()(**batch()).logits
    for found in (copying.copy, copying.again):
        assert torch.equal(found.eval()(**batch()).logits, expected)
        # Nothing holds it still, and it drops out from the embeddings on.
        assert all(module.training for module in found.train().modules())
        assert not torch.equal(found(**batch()).logits, found(**batch()).logits)
        assert all(module.training for module in found.modules())


@pytest.mark.slow
def test_a_saved_copy_needs_no_package_of_ours(make_trainer, tmp_path):
    made = []
    copying, _ = trained(
        make_trainer, tmp_path, lambda m: made.append(pickle.dumps(m)) or m, True, GradualUnfreezing(every=4)
    )
    (tmp_path / "model.pickle").write_bytes(made[0])
    torch.save(batch(), tmp_path / "batch.pt")
    script = (
        "import pickle, sys, torch\n"
        "sys.modules['hf_transfer_plugin'] = None\n"
        "model = pickle.loads(open(sys.argv[1] + '/model.pickle', 'rb').read()).eval()\n"
        "torch.set_num_threads(1)\n"
        "torch.save(model(**torch.load(sys.argv[1] + '/batch.pt')).logits, sys.argv[1] + '/logits.pt')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    expected = bert()
    expected.load_state_dict(copying.state)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected.eval()(**batch()).logits)


def test_a_copy_keeps_the_methods_that_a_module_had_of_its_own():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    model.requires_grad_(False)
    model[0].train = model[0].train
    still = FrozenModules(model)
    still.update(frozenset())
    for make in COPIES.values():
        found = make(model).train()
        assert [module.training for module in found.modules()] == [True] * 3
    assert not any(module.training for module in model.train()[1:])
    still.release()
    assert all(module.training for module in model.train().modules())
