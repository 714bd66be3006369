"""What a schedule makes of the prefix cache: one epoch or one pass stores what all its cuts need."""

import pytest

from hf_transfer_plugin import FrozenPrefixCache, GradualUnfreezing, attach
from tests.conftest import rows


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
