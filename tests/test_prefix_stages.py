"""What a schedule makes of the prefix cache: one epoch or one pass stores what all its cuts need."""

import pytest
import torch

from hf_transfer_plugin import FrozenPrefixCache, GradualUnfreezing, attach, freeze_first
from tests.conftest import rows


def trained(make_trainer, schedule, cache, **changes):
    torch.manual_seed(0)
    trainer = make_trainer(train=rows(32), **changes)
    attach(trainer, schedule=schedule, cache=cache)
    trainer.train()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_weights_are_those_of_a_run_without_it(make_trainer, tmp_path, storage):
    live = trained(make_trainer, freeze_first(3), None)
    cache = FrozenPrefixCache(tmp_path / "cache", storage=storage)
    cached = trained(make_trainer, freeze_first(3), cache)
    assert (cache.report["hits"], cache.report["misses"]) == (12, 0)
    far = max(float((cached[name] - value).abs().max()) for name, value in live.items())
    assert far == 0 if storage == "float32" else 0 < far < 1e-3


def test_what_learns_below_leaves_it_off_and_says_why(make_trainer, tmp_path):
    cache = FrozenPrefixCache(tmp_path / "cache")
    trained(make_trainer, freeze_first(1), cache)
    assert not cache.report["used"]
    assert "there is nothing to gain" in cache.report["reason"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("fill", "misses"), [("ahead", 0), ("first-epoch", 4)])
def test_one_epoch_stores_the_cuts_of_all_phases(make_trainer, tmp_path, fill, misses):
    cache = FrozenPrefixCache(tmp_path / "cache", fill=fill)
    trainer = make_trainer(train=rows(32), max_steps=20)
    attach(trainer, schedule=GradualUnfreezing(every=6), cache=cache)
    trainer.train()
    # Four batches an epoch; and at each of two thaws those that were made ahead of it.
    assert misses <= cache.report["misses"] <= misses + 4
    assert [cut["fed"] for cut in cache.report["cuts"]] == [
        "bert.pooler.dense",
        "bert.encoder.layer.2",
        "bert.encoder.layer.1",
    ]
    assert cache.report["hits"] >= 14 - misses
    assert cache.report["rows_filled"] == (32 if fill == "ahead" else 0)
