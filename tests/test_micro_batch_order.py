"""Rows sorted by length within an optimizer step: the same steps, the same gradients, less padding."""

import logging
from collections import Counter

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    set_seed,
)

from hf_transfer_plugin import FrozenPrefixCache, LinearProbeThenFineTune, TransferTrainer, attach, freeze_first
from hf_transfer_plugin.cli import main
from hf_transfer_plugin.freezing import freeze_pattern, full
from hf_transfer_plugin.hub import render_card
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.trainer.ordering import StepOrder, _order
from tests.conftest import bert
from tests.conftest import rows as alike_rows
from tests.test_loss_scale import PER_TOKEN, STILL, OwnLoss

pytestmark = pytest.mark.slow

MICRO, ACCUMULATION = 4, 4
STEP = MICRO * ACCUMULATION


def texts(count=40, labels="rows"):
    """Rows of 3 to 24 tokens; each begins with its own number."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 25, (count,), generator=generator).tolist()
    ids = [[3 + i, *torch.randint(3, 110, (n - 1,), generator=generator).tolist()] for i, n in enumerate(lengths)]
    made = {"input_ids": ids, "attention_mask": [[1] * n for n in lengths]}
    made["labels"] = [i % 2 for i in range(count)] if labels == "rows" else [[t % 2 for t in row] for row in ids]
    return Dataset.from_dict(made)


class Recording:
    """A collator that keeps the first token, thus the number, of each row, and counts what it pads."""

    def __init__(self, collate):
        self.collate, self.batches, self.padded = collate, [], 0

    def __call__(self, rows):
        batch = self.collate([dict(row) for row in rows])
        self.batches.append([int(row["input_ids"][0]) - 3 for row in rows])
        if "attention_mask" in batch:
            self.padded += int(batch["attention_mask"].numel() - batch["attention_mask"].sum())
        return batch


class Gradients(TrainerCallback):
    """The gradient of every step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


@pytest.fixture
def run(make_trainer, tokenizer):
    """A Trainer attached with or without the order, and its recording collator."""

    def make(sort, model=None, cls=Trainer, collator=DataCollatorWithPadding, options=None, collate=None, **changes):
        set_seed(0)
        changes = {
            "train": texts(), "max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": MICRO,
            "gradient_accumulation_steps": ACCUMULATION, **changes,
        }  # fmt: skip
        recording = Recording(collate or collator(tokenizer))
        kwargs = {"data_collator": recording, **changes.pop("trainer_kwargs", {})}
        gradients = Gradients()
        callbacks = [gradients, *changes.pop("callbacks", ())]
        model = model() if model else bert(**STILL)
        trainer = make_trainer(model, cls=cls, trainer_kwargs=kwargs, callbacks=callbacks, **changes)
        if sort is not None:
            attach(trainer, sort_micro_batches=sort, **{"schedule": full(), **(options or {})})
        recording.batches, recording.padded = [], 0
        trainer.gradients = gradients.steps
        return trainer, recording

    return make


def steps_of(recording, epochs=2):
    """The rows of each step, in the order of its micro-batches; an epoch has 40 rows: 16, 16 and 8."""
    per_epoch = len(recording.batches) // epochs
    found = []
    for epoch in range(epochs):
        batches = recording.batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        starts = range(0, per_epoch, ACCUMULATION)
        found += [[row for batch in batches[i : i + ACCUMULATION] for row in batch] for i in starts]
    return found


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def worst(first, second):
    """The largest difference of two gradients, relative to the largest entry."""
    largest = max(float(value.abs().max()) for value in second.values())
    return max(float((first[name] - second[name]).abs().max()) for name in second) / largest


def test_one_window_by_hand():
    lengths = [5, 9, 7, 8, 6, 1, 2]
    assert list(StepOrder([0, 1, 2, 3, 4, 5, 6], lengths, 3)) == [1, 2, 0, 3, 4, 5, 6]
    assert list(StepOrder([0, 1, 2, 3, 4, 5, 6], lengths, 3, keep_first=True)) == [0, 1, 2, 3, 4, 5, 6]
    assert list(StepOrder([4, 0, 5, 1, 3], lengths, 3, keep_first=True)) == [4, 0, 5, 1, 3]
    assert list(StepOrder([5, 0, 4, 6, 2, 1], lengths, 3)) == [4, 0, 5, 1, 2, 6]
    assert len(StepOrder([0, 1, 2, 3], lengths, 3)) == 4


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accelerator_config": {"use_seedable_sampler": False}},
        {"train_sampling_strategy": "sequential"},
        {"dataloader_drop_last": True, "data_seed": 3},
    ],
    ids=["seedable", "random", "sequential", "drop-last"],
)
def test_each_step_has_the_rows_that_were_drawn_in_batches_of_like_length(run, changes):
    plain, drawn = run(False, **changes)
    plain.train()
    ordered, sorted_ = run(True, **changes)
    ordered.train()
    assert len(plain.get_train_dataloader()) == len(ordered.get_train_dataloader())
    lengths = [len(row) for row in texts()["input_ids"]]
    steps = list(zip(steps_of(drawn), steps_of(sorted_), strict=True))
    assert len(steps) == 6
    for number, (before, after) in enumerate(steps):
        if number % 3 == 2:  # Eight rows: the epoch's last step is not full.
            assert len(before) == 8
            assert after == before
        else:
            assert Counter(before) == Counter(after)
            assert after == sorted(before, key=lambda row: -lengths[row])
    assert sorted_.padded < 0.6 * drawn.padded


@pytest.mark.parametrize(("name", "bound"), [("rows", 1e-12), ("llama", 1e-12), ("bert-tokens", 1e-7)])
def test_the_gradient_of_a_step_is_the_same(run, tokenizer, name, bound):
    """In 64 bits, relative to the largest entry; a share of the targets is a number of 32 bits."""
    model = {"rows": lambda: bert(**STILL), **PER_TOKEN}[name]
    changes = {"cls": TransferTrainer, "max_grad_norm": 0.0, "max_steps": 2}
    if name != "rows":
        changes |= {"train": texts(labels="tokens"), "collate": DataCollatorForTokenClassification(tokenizer)}
    first, second = (run(sort, model=lambda: model().double(), **changes)[0] for sort in (False, True))
    for trainer in (first, second):
        trainer.train()
    assert len(first.gradients) == 2
    for found, expected in zip(second.gradients, first.gradients, strict=True):
        assert worst(found, expected) < bound


def test_a_resumed_run_equals_the_uninterrupted_one_bitwise(run, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(tmp_path / "whole"), "model": bert}
    whole, recording = run(True, **saving)
    whole.train()
    for step, batches in {2: 12, 3: 10, 4: 6}.items():
        resumed, again = run(True, **saving)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert len(again.batches) == batches
        assert again.batches == recording.batches[-batches:]
        expected = weights(whole)
        assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("schedule", [freeze_first(2), LinearProbeThenFineTune(frozen=1)], ids=["frozen", "lp-ft"])
def test_the_cache_knows_its_rows_and_the_head_is_solved(run, tmp_path, schedule):
    found = {}
    for sort in (False, True):
        cache = FrozenPrefixCache(tmp_path / f"cache-{sort}", storage="float32")
        options = {"schedule": schedule, "cache": cache}
        trainer, _ = run(sort, options=options, optim="sgd", learning_rate=1e-2)
        trainer.train()
        assert cache.report["used"], cache.report["reason"]
        found[sort] = weights(trainer), cache.report["hits"], cache.report["misses"]
    assert found[True][1:] == found[False][1:]
    assert found[True][1] > 0
    assert worst(found[True][0], found[False][0]) < 1e-4


def test_the_mixin_orders_too_and_a_second_run_as_well(run):
    trainer, recording = run(
        None, cls=TransferTrainer, trainer_kwargs={"sort_micro_batches": True}, num_train_epochs=1
    )
    lengths = [len(row) for row in texts()["input_ids"]]
    for _ in range(2):
        recording.batches = []
        trainer.train()
        for step in steps_of(recording, epochs=1)[:2]:
            assert step == sorted(step, key=lambda row: -lengths[row])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gradient_accumulation_steps": 1}, "with one process and `gradient_accumulation_steps=1` a step is one bat"),
        ({"train": alike_rows(length=8)}, "all rows have 8 tokens; let the collator pad them instead"),
    ],
    ids=["one-batch", "one-length"],
)
def test_where_it_changes_nothing_it_says_so_and_leaves_the_loader_alone(run, caplog, changes, why):
    with caplog.at_level(logging.WARNING):
        trainer, _ = run(True, **changes)
    assert f"`sort_micro_batches` changes nothing here: {why}" in caplog.text
    assert "get_train_dataloader" not in vars(trainer)


def test_the_first_step_stays_as_drawn_where_processes_fill_up_with_its_rows(run):
    """Two processes of micro-batches of 4, made by hand: 40 rows go up in 8 x 2, 36 do not."""
    for rows, kept in ((40, False), (36, True)):
        trainer, _ = run(False, train=texts(rows))
        dataset = trainer.train_dataset
        plain = DataLoader(dataset, batch_size=MICRO)
        shards = [BatchSamplerShard(plain.batch_sampler, 2, rank) for rank in (0, 1)]
        drawn = [list(shard) for shard in shards]
        order = _order(trainer, DataLoader(dataset, batch_sampler=shards[0]))
        assert (order.window, order.keep_first) == (32, kept)
        plain.batch_sampler.sampler = order
        found = [list(shard) for shard in shards]
        for start in range(0, len(found[0]), ACCUMULATION):
            steps = [
                Counter(row for rank in (0, 1) for batch in one[rank][start : start + ACCUMULATION] for row in batch)
                for one in (drawn, found)
            ]
            assert steps[0] == steps[1]


class Stream(IterableDataset):
    def __iter__(self):
        yield from texts()


class Drawn(torch.utils.data.Dataset):
    """Rows of a class of one's own, whose lengths would take every row."""

    def __init__(self):
        self.rows = texts()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": Stream(), "max_steps": 2},
            r"needs to know the length of each row ahead, but the training data is a stream \(Str",
        ),
        ({"train": Drawn()}, "reads the length of each row from a column `input_ids` .* but got Drawn. Encode the"),
        (
            {"train": texts().with_transform(lambda rows: rows), "remove_unused_columns": False},
            "reads the length of each row .* but got Dataset with input_ids, attention_mask, labels. Encode the rows",
        ),
        (
            {"train_sampling_strategy": "group_by_length"},
            r"but `train_sampling_strategy='group_by_length'` already brings together rows by their length. Use \"ran",
        ),
        ({"train_sampling_strategy": "batch_rebalance"}, "but `train_sampling_strategy='batch_rebalance'` already"),
    ],
    ids=["stream", "no-lengths", "transform", "grouped", "rebalanced"],
)
def test_rows_that_cannot_be_sorted_are_refused(run, changes, message):
    with pytest.raises(ValueError, match=message):
        run(True, **changes)


class OwnBatches(Trainer):
    loss_is_scaled_for_ga = False

    def get_train_dataloader(self):
        sampler = torch.utils.data.BatchSampler(range(40), 4, drop_last=False)
        return DataLoader(self.train_dataset, sampler=sampler, batch_size=None, collate_fn=self.data_collator)


class OwnSampler(torch.utils.data.BatchSampler):
    pass


class OwnBatchSampler(Trainer):
    def get_train_dataloader(self):
        sampler = OwnSampler(range(40), 4, drop_last=False)
        return DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator)


@pytest.mark.parametrize(("cls", "kind"), [(OwnBatches, "DataLoader"), (OwnBatchSampler, "OwnSampler")])
def test_batches_that_somebody_composes_are_refused(run, cls, kind):
    with pytest.raises(ValueError, match=f"brings batches that {kind} composes. Use a plain sampler, or leave out"):
        run(True, cls=cls)


class Contrast(Trainer):
    """A loss that compares the rows of a batch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        alike = outputs.logits @ outputs.logits.T
        loss = torch.nn.functional.cross_entropy(10 * alike, torch.arange(len(alike)))
        return (loss, outputs) if return_outputs else loss


class MeanOfTokens(Trainer):
    """Takes the count, and averages over the micro-batch all the same."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
        return (loss, outputs) if return_outputs else loss


class SaysItIsScaled(MeanOfTokens):
    loss_is_scaled_for_ga = True


class Broken(Trainer):
    def compute_loss(self, *args, **kwargs):
        raise KeyError("weights")


def normed():
    model = bert(**STILL)
    model.classifier = torch.nn.Sequential(torch.nn.BatchNorm1d(16), model.classifier)
    return model


class Spread:
    """A term that looks at how far apart the rows of a batch are."""

    def prepare(self, model):
        pass

    def __call__(self, model, inputs, outputs):
        return outputs.logits.var(dim=0).sum()


ONES_OWN = r"but {} of the same 8 rows was [-e\d.]+ and, divided into other micro-batches, [-e\d.]+. Divide a loss"
REFUSED = {  # keyword arguments, whether labels are of tokens, message
    "contrast": ({"cls": Contrast}, False, ONES_OWN.format("the loss")),
    "compute_loss": ({"cls": MeanOfTokens, "model": PER_TOKEN["bert-tokens"]}, True, "the loss of BertForTokenCla"),
    "said": ({"cls": SaysItIsScaled, "model": PER_TOKEN["llama"]}, True, ONES_OWN.format("the loss")),
    "function": (
        {
            "model": PER_TOKEN["bert-tokens"],
            "trainer_kwargs": {
                "compute_loss_func": lambda outputs, labels, num_items_in_batch: torch.nn.functional.cross_entropy(
                    outputs.logits.flatten(0, 1), labels.flatten()
                )
            },
        },
        True,
        ONES_OWN.format("the loss"),
    ),
    "plain": (
        {"model": PER_TOKEN["bert-tokens"]},
        True,
        "the loss of BertForTokenClassification is a mean over the tokens of each micro-batch, .* `TransferTrainer`",
    ),
    "broken": ({"cls": Broken}, False, r"it could not be computed for a few rows \(KeyError: 'weights'\). Mend it"),
    "batch-norm": ({"model": normed}, False, "'classifier.0' is a BatchNorm that learns, .* Freeze it, or leave out"),
    "term": ({"cls": TransferTrainer, "options": {"terms": (Spread(),)}}, False, ONES_OWN.format("the term Spread")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_losses_that_would_weigh_rows_otherwise_are_refused(run, tokenizer, name):
    changes, tokens, message = REFUSED[name]
    if tokens:
        changes = {"train": texts(labels="tokens"), "collate": DataCollatorForTokenClassification(tokenizer)} | changes
    with pytest.raises(ValueError, match=message):
        run(True, **changes)


def test_rows_that_lie_in_one_another_in_a_batch_are_refused(run):
    collate = DataCollatorWithFlattening()
    with pytest.raises(ValueError, match="cannot be told apart in what the collator makes. Use one that keeps rows"):
        run(
            True,
            model=PER_TOKEN["llama"],
            train=texts(labels="tokens").remove_columns("attention_mask"),
            collate=collate,
        )


ALLOWED = {
    "frozen batch norm": {"model": normed, "options": {"schedule": freeze_pattern("bert|classifier.0")}},
    "own loss that counts": {"cls": OwnLoss, "model": PER_TOKEN["bert-tokens"]},
    "smoothed labels": {"cls": Trainer, "model": PER_TOKEN["llama"], "label_smoothing_factor": 0.1},
    "masking": {"cls": TransferTrainer, "model": PER_TOKEN["bert-masked"]},
}


@pytest.mark.parametrize("name", ALLOWED)
def test_losses_that_weigh_every_row_alike_are_taken(run, tokenizer, name):
    changes = dict(ALLOWED[name])
    if "model" in changes and changes["model"] is not normed:
        changes |= {"train": texts(labels="tokens"), "collate": DataCollatorForTokenClassification(tokenizer)}
    if name == "masking":
        data = texts().remove_columns("labels")
        changes |= {"train": data, "collate": DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)}
    trainer, recording = run(True, max_steps=1, **changes)
    trainer.train()
    lengths = [len(row) for row in texts()["input_ids"]]
    found = steps_of(recording, epochs=1)[0]
    if name != "masking":
        assert found == sorted(found, key=lambda row: -lengths[row])
    assert len(found) == STEP


def test_nothing_random_is_drawn_at_attach(run):
    trainers = []
    for sort in (False, True):
        run(sort, model=bert)
        trainers.append(torch.get_rng_state())
    assert torch.equal(*trainers)


@pytest.mark.slow
def test_the_command_line_sorts_and_record_and_card_say_so(tmp_path, model_folder, reviews_file):
    words = f"train --model {model_folder} --dataset {reviews_file} --output_dir {tmp_path / 'run'} --max_steps 2"
    words += " --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --use_cpu true --report_to none"
    assert main([*words.split(), "--sort_micro_batches"]) == 0
    record = TransferRecord.load(tmp_path / "run")
    assert record.arguments["sort_micro_batches"] is True
    assert record.arguments["train_sampling_strategy"] == "random"
    assert "| sort_micro_batches | True |" in render_card(record).replace("\\_", "_")


def test_a_grouping_that_somebody_typed_is_refused_and_not_changed(tmp_path, model_folder, reviews_file, capsys):
    words = f"train --model {model_folder} --dataset {reviews_file} --output_dir {tmp_path / 'run'} --max_steps 2"
    words += " --sort_micro_batches --train_sampling_strategy group_by_length --use_cpu true --report_to none"
    assert main(words.split()) == 2
    assert "but `train_sampling_strategy='group_by_length'` already brings together rows" in capsys.readouterr().err
