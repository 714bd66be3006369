"""Batches and settings that are not those of the proof: the prefix cache leaves them out, or says why it stays off."""

import random
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithFlattening, Trainer, TrainerCallback

from hf_transfer_plugin import ChainThaw, FrozenPrefixCache, PlateauUnfreezing, freeze_first
from hf_transfer_plugin.prefix_cache.collating import SeededViews
from hf_transfer_plugin.prefix_cache.store import ActivationStore
from hf_transfer_plugin.trainer.cacheable import refusal_of
from tests.test_prefix_cache_exactness import BATCH, EPOCHS, ROWS, Runs, losses, rows_of, small, weights
from tests.tiny_prefixes import text

pytestmark = pytest.mark.slow

STEPS = EPOCHS * ROWS // BATCH


@pytest.fixture
def runs(make_trainer, tmp_path):
    return Runs(make_trainer, tmp_path)


def check_same(found, expected):
    assert losses(found) == losses(expected)
    wanted = weights(expected)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(found).items())


def check_off(runs, match, **options):
    live, cache = runs.train(), runs.cache(**options)
    check_same(runs.train(cache), live)
    assert not cache.report["used"]
    assert match in cache.report["reason"]
    assert cache.report["rows_filled"] == cache.report["hits"] == 0


# Rows


class Evaluates(TrainerCallback):
    trainer = None

    def on_epoch_end(self, args, state, control, **kwargs):
        self.trainer.evaluate()


class Aside(Trainer):
    """A column for the user alone."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        inputs.pop("where", None)
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_batches_that_cannot_be_told_are_left_out_and_stop_nothing(runs, caplog):
    def collated(rows):
        batch = {name: torch.stack([row[name] for row in rows]) for name in runs.data[0]}
        return batch | ({"where": object()} if "where" in rows[0] else {})

    runs.changes |= {"cls": Aside, "remove_unused_columns": False, "trainer_kwargs": {"data_collator": collated}}

    def train(cache=None):
        runs.callbacks = [Evaluates()]
        trainer = runs.callbacks[0].trainer = runs.trainer(cache)
        trainer.eval_dataset = [{**row, "where": "here"} for row in runs.data[:8]]
        trainer.train()
        return trainer

    live, cache = train(), runs.cache()
    check_same(train(cache), live)
    assert cache.report["hits"] == STEPS
    assert "leaves out batches that it cannot tell (`where` holds object" in caplog.text


def test_rows_that_are_masked_whole_are_not_taken_for_empty(runs):
    for i in (3, 7):
        runs.data[i]["attention_mask"] = torch.zeros_like(runs.data[i]["attention_mask"])
    live, cache = runs.train(), runs.cache(recheck_every=0)
    check_same(runs.train(cache), live)
    assert (cache.report["hits"], cache.report["rows_filled"]) == (STEPS, ROWS)


def translations():
    torch.manual_seed(3)
    # By chance an answer is longer or shorter than its text.
    return [
        {"input_ids": text([4 + 5 * i % 9])["input_ids"][0], "labels": text([4 + 7 * i % 11])["input_ids"][0]}
        for i in range(ROWS)
    ]


def padded_to(size):
    def collated(rows):
        batch = {}
        for name, fill in (("input_ids", 1), ("labels", -100)):
            width = -(-max(len(row[name]) for row in rows) // size) * size
            batch[name] = torch.stack([
                torch.nn.functional.pad(row[name], (0, width - len(row[name])), value=fill) for row in rows
            ])
        return {**batch, "attention_mask": (batch["input_ids"] != 1).long()}

    return collated


@pytest.mark.sampled(2)
@pytest.mark.parametrize("frozen", [2, 4], ids=["encoder", "decoder"])
@pytest.mark.parametrize("size", [8, 16], ids=["dynamic", "fixed"])
def test_answers_may_be_as_wide_as_their_texts_now_and_then_or_always(runs, size, frozen):
    runs.model, runs.data, runs.schedule = lambda: small("bart"), translations(), freeze_first(frozen)
    runs.changes["trainer_kwargs"] = {"data_collator": padded_to(size)}
    live, cache = runs.train(), runs.cache(recheck_every=1)
    cached = runs.train(cache)
    assert (cache.report["hits"], cache.report["misses"]) == (STEPS, 0)
    assert cache.report["cuts"][0]["fed"].startswith("model.encoder" if frozen == 2 else "model.decoder")
    if size == 16:
        check_same(cached, live)
    assert losses(cached) == pytest.approx(losses(live), abs=1e-6)


def test_random_labels_are_refused_as_they_make_other_rows(runs):
    def collated(rows):
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return {**batch, "labels": torch.tensor([random.randrange(2) for _ in rows])}

    runs.changes["trainer_kwargs"] = {"data_collator": collated}
    check_off(runs, "the collator makes other batches of the same rows each time, as masking does")


def test_rows_that_are_put_into_one_are_refused(runs):
    runs.data = [{"input_ids": row["input_ids"].tolist()} for row in rows_of("llama")]
    runs.model, runs.schedule = lambda: small("llama"), freeze_first(3)
    runs.changes["trainer_kwargs"] = {"data_collator": DataCollatorWithFlattening()}
    check_off(runs, "the collator makes 1 rows of 5")


class Bare(torch.utils.data.Dataset):
    """Rows of which nothing tells how long they are."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def test_a_collator_that_wants_several_rows_trains_without(runs):
    def collated(rows):
        if len(rows) < 2:
            raise RuntimeError("pairs only")
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    runs.data = Bare(runs.data)
    runs.changes["trainer_kwargs"] = {"data_collator": collated}
    check_off(runs, "pairs only")


# Settings


@pytest.mark.parametrize("name", ["dispatch_batches", "split_batches"])
def test_one_process_may_dispatch_or_split_its_batches(runs, name):
    runs.changes["accelerator_config"] = {name: True}
    live, cache = runs.train(), runs.cache()
    check_same(runs.train(cache), live)
    assert (cache.report["hits"], cache.report["misses"]) == (STEPS, 0)


def test_several_processes_must_not_dispatch_batches(runs):
    def refusal(dispatch, processes):
        trainer = runs.trainer()
        changed = {"args": SimpleNamespace(**{**vars(trainer.args), "world_size": processes, "n_gpu": 0})}
        changed["accelerator"] = SimpleNamespace(dispatch_batches=dispatch)
        changed |= {"is_fsdp_enabled": False, "is_deepspeed_enabled": False}
        loader = trainer.get_train_dataloader()
        return refusal_of(SimpleNamespace(**changed), trainer.model, loader, keep_dropout=False)

    assert refusal(True, 1) is refusal(None, 2) is refusal(False, 2) is None
    assert refusal(True, 2) == "`dispatch_batches` cuts the batches of one process up for the others; set it to False"


# Slow to end: workers that wait for more are given time.
@pytest.mark.slow
def test_workers_that_live_on_do_not_make_rows_stored_in_vain(runs, caplog):
    runs.changes |= {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "num_train_epochs": 8}
    runs.schedule = ChainThaw()
    live, cache = runs.train(), runs.cache()
    check_same(runs.train(cache), live)
    assert cache.report["rows_filled"] == ROWS
    assert cache.report["hits"] > 0
    assert "`dataloader_persistent_workers` keeps workers that do not know" in cache.report["reason"]
    assert "Not cached from here on: `dataloader_persistent_workers`" in caplog.text


class Drawn(Bare):
    """Each row has a word at random."""

    def __getitem__(self, index):
        row = dict(self.rows[index])
        return {**row, "input_ids": row["input_ids"].index_fill(0, torch.tensor([1]), int(torch.randint(3, 60, ())))}


def test_more_views_than_epochs_are_not_stored(runs):
    runs.data = Drawn(runs.data)
    cache = runs.cache(views=EPOCHS + 1)
    trainer = runs.trainer(cache)
    trainer.train()
    assert cache.report["reason"].startswith("fewer epochs have a frozen part than there are views")
    assert cache.report["rows_filled"] == 0
    cache = runs.cache(views=EPOCHS)
    runs.trainer(cache).train()
    assert cache.report["rows_filled"] > ROWS
    assert cache.report["hits"] == STEPS


def test_a_view_that_draws_elsewhere_is_told_where_to_draw(runs):
    own = torch.Generator().manual_seed(0)

    class Own(Bare):
        def __getitem__(self, index):
            row = dict(self.rows[index])
            noise = torch.randint(3, 60, row["input_ids"].shape, generator=own)
            return {**row, "input_ids": noise * row["attention_mask"]}

    runs.data = Own(runs.data)
    cache = runs.cache(views=2)
    runs.trainer(cache).train()
    assert "what is drawn must come from `random`, `numpy.random` or torch's own generator" in cache.report["reason"]


# Faults


class Break(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise RuntimeError("the user's own fault")


def test_a_disk_that_fails_at_the_end_does_not_hide_why_training_broke_off(runs, monkeypatch, caplog):
    def full(self):
        raise ValueError("No space left on device.")

    runs.callbacks = [Break()]
    trainer = runs.trainer(runs.cache())
    monkeypatch.setattr(FrozenPrefixCache, "close", lambda self: full(self) if self.report else None)
    with pytest.raises(RuntimeError, match="the user's own fault"):
        trainer.train()
    assert "Not all that the frozen layers made could be stored: No space left on device." in caplog.text


def test_a_disk_that_fails_at_the_end_breaks_no_finished_run(runs, monkeypatch, caplog):
    def full(self):
        raise OSError("No space left on device.")

    class Fill(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            monkeypatch.setattr(ActivationStore, "flush", full)
            monkeypatch.setattr(ActivationStore, "close", full)

    trainer = runs.trainer(runs.cache())
    hooks = len(trainer.model._forward_pre_hooks), len(trainer.model._forward_hooks)
    trainer.callback_handler.callbacks.insert(0, Fill())
    assert trainer.train().global_step == trainer.state.max_steps
    assert "Not all that the frozen layers made could be stored: No space left on device." in caplog.text
    assert (len(trainer.model._forward_pre_hooks), len(trainer.model._forward_hooks)) == hooks


def test_a_folder_that_fails_in_a_later_phase_ends_the_cache_and_not_the_training(runs, monkeypatch):
    runs.schedule, runs.changes["num_train_epochs"] = PlateauUnfreezing(min_delta=0.5), 4
    runs.changes["eval_strategy"] = "epoch"
    live, made = runs.train(), []

    def make(self):
        made.append(self.folder)
        if len(made) > 1:
            raise ValueError(f"The folder '{self.folder}' cannot be written.")
        return real(self)

    real = ActivationStore.make
    monkeypatch.setattr(ActivationStore, "make", make)
    cache = runs.cache()
    check_same(runs.train(cache), live)
    assert len(made) > 1
    assert cache.report["used"]
    assert "cannot be written" in cache.report["reason"]


# Views


def test_views_are_read_as_the_dataset_is():
    data = Dataset.from_dict({"input_ids": [[i, i + 1] for i in range(6)], "length": [2] * 6}).with_format("torch")
    views = SeededViews(data, 2, 0)
    assert views.column_names == ["input_ids", "length"]
    assert views.features == data.features
    assert list(views["length"]) == [2] * 6
    assert len(list(views)) == len(views) == 6
    calls = []

    class Counting(Dataset):
        def __getitems__(self, keys):
            calls.append(keys)
            return super().__getitems__(keys)

    data.__class__ = Counting
    assert [row["input_ids"].tolist() for row in views.__getitems__([4, 1])] == [[4, 5], [1, 2]]
    assert calls == [[4, 1]]
    with pytest.raises(AttributeError, match="nothing_like_it"):
        views.nothing_like_it  # noqa: B018


def test_what_a_row_draws_does_not_depend_on_those_before_it():
    views = SeededViews(Drawn(rows_of()), 2, 0)
    before = torch.random.get_rng_state()
    one = {i: views[i]["input_ids"] for i in range(4)}
    many = views.__getitems__([3, 1, 2, 0])
    for i, row in zip([3, 1, 2, 0], many, strict=True):
        assert torch.equal(row["input_ids"], one[i])
    views.set_epoch(1)
    assert not all(torch.equal(views[i]["input_ids"], one[i]) for i in range(4))
    assert torch.equal(torch.random.get_rng_state(), before)
