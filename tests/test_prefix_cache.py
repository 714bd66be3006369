"""The prefix cache in a Trainer: what it uses and never uses, where it stays off, and what it leaves behind."""

import copy
import multiprocessing
import os
import shutil
import signal

import pytest
import torch
import transformers as tf
from datasets import Dataset
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    set_seed,
)

from hf_transfer_plugin import (
    FrozenPrefixCache,
    GradualUnfreezing,
    PlateauUnfreezing,
    TransferTrainer,
    attach,
    freeze_first,
    full,
)
from hf_transfer_plugin.adapters import attach_adapter
from hf_transfer_plugin.freezing import freeze_pattern
from hf_transfer_plugin.prefix_cache.aside import Aside
from hf_transfer_plugin.prefix_cache.listing import list_stores
from hf_transfer_plugin.prefix_cache.rows import row_digests
from hf_transfer_plugin.prefix_cache.segments import RECORD
from hf_transfer_plugin.prefix_cache.store import ActivationStore
from tests.test_prefix_cache_exactness import (
    BATCH,
    EPOCHS,
    MODELS,
    ROWS,
    Runs,
    check_exact,
    losses,
    rows_of,
    small,
    undropped,
    untouched_model,
    upper_lora,
    weights,
)
from tests.tiny_prefixes import BERTISH, wav2vec2

pytestmark = pytest.mark.slow
STEPS = EPOCHS * ROWS // BATCH


@pytest.fixture
def runs(make_trainer, tmp_path):
    return Runs(make_trainer, tmp_path)


def assert_same(found, expected):
    assert losses(found) == losses(expected)
    expected = weights(expected)
    for name, value in weights(found).items():
        assert torch.equal(value, expected[name]), name


def check_refused(runs, match, **options):
    """Training goes on, and is the run without cache."""
    live, cache = runs.train(), runs.cache(**options)
    assert_same(runs.train(cache), live)
    assert not cache.report["used"]
    assert match in cache.report["reason"], cache.report["reason"]
    assert cache.report["hits"] == 0
    assert not list(runs.folder.glob("cache/*/*.data"))


# Stores are picked up, completed, and never stale


def test_a_second_run_finds_everything_stored(runs):
    first, second = runs.cache(), runs.cache()
    one, two = runs.train(first), runs.train(second)
    assert_same(two, one)
    assert (first.report["rows_filled"], second.report["rows_filled"]) == (ROWS, 0)
    assert first.report["bytes"] == second.report["bytes"] > 0


def test_a_resumed_run_reads_what_is_stored_and_ends_bitwise_as_the_uninterrupted_one(runs):
    runs.changes |= {"save_strategy": "steps", "save_steps": 1}
    whole = runs.train(runs.cache())
    for step in (2, 5):
        cache = runs.cache()
        resumed = runs.trainer(cache)
        resumed.train(resume_from_checkpoint=str(runs.folder / "run" / f"checkpoint-{step}"))
        assert_same(resumed, whole)
        assert (cache.report["rows_filled"], cache.report["misses"]) == (0, 0)
        assert cache.report["hits"] == STEPS - step


def test_a_run_resumed_in_a_later_phase_finds_its_cut(runs):
    runs.schedule = GradualUnfreezing(every=3)
    runs.changes |= {"save_strategy": "steps", "save_steps": 1}
    whole = runs.train(runs.cache())
    cache = runs.cache()
    resumed = runs.trainer(cache)
    resumed.train(resume_from_checkpoint=str(runs.folder / "run" / "checkpoint-4"))
    assert_same(resumed, whole)
    assert cache.report["hits"] > 0


def test_a_store_whose_end_is_cut_off_is_completed(runs):
    runs.train(runs.cache())
    (data,) = runs.folder.glob("cache/*/*.data")
    os.truncate(data, data.stat().st_size // 2)
    index = data.with_suffix(".index")
    os.truncate(index, index.stat().st_size - RECORD.itemsize // 2)
    live, cache = runs.train(), runs.cache()
    assert_same(runs.train(cache), live)
    assert 0 < cache.report["rows_filled"] < ROWS
    assert cache.report["misses"] == 0


def _fill_until_killed(folder, make_trainer_args):
    torch.set_num_threads(1)
    set_seed(0)
    seen = []
    real = ActivationStore.write

    def write(self, keys, entries):
        seen.append(len(keys))
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, keys, entries)

    ActivationStore.write = write
    trainer = Trainer(small(), tf.TrainingArguments(**make_trainer_args), train_dataset=rows_of())
    attach(trainer, schedule=freeze_first(2), cache=FrozenPrefixCache(folder, storage="float32", recheck_every=2))
    trainer.train()


def test_a_fill_that_was_killed_is_completed(runs):
    arguments = runs.trainer().args.to_dict()
    keep = ("output_dir", "per_device_train_batch_size", "num_train_epochs", "use_cpu", "report_to", "save_strategy")
    process = multiprocessing.get_context("fork").Process(
        target=_fill_until_killed, args=(runs.folder / "cache", {name: arguments[name] for name in keep})
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    live, cache = runs.train(), runs.cache()
    assert_same(runs.train(cache), live)
    assert cache.report["rows_filled"] == ROWS - 2 * BATCH


def test_a_byte_that_changed_on_the_disk_is_noticed_and_the_row_made_again(runs, caplog):
    live = runs.train()
    runs.train(runs.cache())
    (data,) = runs.folder.glob("cache/*/*.data")
    with data.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 255]))
    cache = runs.cache()
    assert_same(runs.train(cache), live)
    assert "is damaged or gone" in caplog.text
    assert cache.report["used"]
    # Seen among the rows of the proof, and stored again with the rest.
    assert (cache.report["misses"], cache.report["rows_filled"]) == (0, 1)
    again = runs.cache()
    assert_same(runs.train(again), live)
    assert again.report["misses"] == 0


def test_other_weights_below_have_a_store_of_their_own(runs):
    runs.train(runs.cache())

    def other():
        model = small()
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight[17] += 1e-3
        return model

    runs.model = other
    cache = runs.cache()
    assert_same(runs.train(cache), runs.train())
    assert cache.report["rows_filled"] == ROWS
    assert len(list_stores(runs.folder / "cache")) == 2


def test_other_weights_above_have_the_same_store(runs):
    runs.train(runs.cache())
    runs.model = lambda: _moved(small(), "classifier.weight")
    cache = runs.cache()
    assert_same(runs.train(cache), runs.train())
    assert cache.report["rows_filled"] == 0


def _moved(model, name):
    with torch.no_grad():
        model.get_parameter(name).mul_(1.5)
    return model


def test_changed_rows_are_stored_anew_and_the_others_found(runs):
    runs.train(runs.cache())
    runs.data = copy.deepcopy(runs.data)
    for row in runs.data[:3]:
        row["input_ids"][1] = (row["input_ids"][1] + 1) % 50 + 3
    cache = runs.cache()
    assert_same(runs.train(cache), runs.train())
    assert cache.report["rows_filled"] == 3


def test_a_wider_fixed_padding_on_the_left_is_not_taken_for_the_same(runs):
    """GPT-2 counts positions from the left end, so the same text further right is another."""
    runs.model = lambda: small("gpt2")

    def left(width):
        return [_at_end(_widened(row, width)) for row in rows_of("gpt2")]

    runs.data = left(9)
    runs.train(runs.cache())
    runs.data = left(14)
    cache = runs.cache(recheck_every=0)
    assert_same(runs.train(cache), runs.train())
    assert cache.report["used"], cache.report["reason"]


def _widened(row, width):
    fills = {"labels": -100}
    return {k: torch.nn.functional.pad(v, (0, width - len(v)), value=fills.get(k, 0)) for k, v in row.items()}


def _at_end(row):
    """The row's own tokens at its right end."""
    length = int(row["attention_mask"].sum())
    start = int(row["attention_mask"].argmax())
    shift = len(row["attention_mask"]) - length - start
    found = {k: v.roll(shift) for k, v in row.items()}
    # What stands before it would have to foretell the first token.
    found["labels"][-length] = -100
    return found


# Evaluation


class Evaluations(TrainerCallback):
    """What was hit and missed by the end of each evaluation."""

    def __init__(self, cache):
        self.cache, self.counts = cache, []

    def on_evaluate(self, args, state, control, **kwargs):
        self.counts.append((self.cache.report["hits"], self.cache.report["misses"]))


def measured(trainer):
    return [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]


def test_evaluation_reads_stored_rows_from_the_second_time_on(runs):
    other = rows_of(count=ROWS + 8)[ROWS:]
    runs.changes |= {"eval_strategy": "epoch", "per_device_eval_batch_size": BATCH}
    live = runs.trainer()
    live.eval_dataset = other
    live.train()
    cache = runs.cache()
    cached = runs.trainer(cache)
    cached.eval_dataset = other
    watch = Evaluations(cache)
    cached.add_callback(watch)
    cached.train()
    assert_same(cached, live)
    assert measured(cached) == measured(live)
    per_epoch = ROWS // BATCH
    assert watch.counts == [
        (per_epoch, 2),
        (2 * per_epoch + 2, 2),
        (3 * per_epoch + 4, 2),
    ]


def test_evaluation_and_prediction_after_training_run_the_whole_model(runs):
    cache = runs.cache()
    cached = runs.train(cache)
    before = cache.report["hits"]
    assert cached.evaluate()["eval_loss"] == runs.train().evaluate()["eval_loss"]
    assert cached.predict(runs.data[:4]).predictions.shape == (4, 2)
    assert cache.report["hits"] == before


def test_texts_are_written_during_training(make_trainer, tmp_path):
    runs = Runs(make_trainer, tmp_path, lambda: small("t5"), rows_of("t5"), freeze_first(4))
    runs.changes = {
        "cls": Seq2SeqTrainer,
        "args_cls": Seq2SeqTrainingArguments,
        "predict_with_generate": True,
        "generation_max_length": 5,
        "eval_strategy": "epoch",
        "trainer_kwargs": {
            "compute_metrics": lambda found: {"sum": int(found.predictions[found.predictions > 0].sum())}
        },
    }
    live, cache = runs.train(), runs.cache()
    cached = runs.train(cache)
    assert_same(cached, live)
    assert measured(cached) == measured(live)
    assert [e["eval_sum"] for e in cached.state.log_history if "eval_sum" in e] == [
        e["eval_sum"] for e in live.state.log_history if "eval_sum" in e
    ]
    assert cache.report["used"]


# Other calls of the model


class Asks(TrainerCallback):
    """Calls the model by itself on a batch of its own, of the shape of training's."""

    def __init__(self, when):
        self.found = []
        self.asked = {"on_step_end": self._ask, "on_evaluate": self._ask}[when]
        setattr(self, when, self.asked)

    def _ask(self, args, state, control, model=None, **kwargs):
        was = model.training
        model.eval()
        with torch.no_grad():
            for i in range(3):
                batch = {k: torch.stack([row[k] for row in rows_of(count=BATCH)]) for k in rows_of(count=1)[0]}
                batch["input_ids"] = (batch["input_ids"] + i) % 50 + 3
                self.found.append(model(**batch).logits.clone())
                self.found.append(model.bert(**{k: v for k, v in batch.items() if k != "labels"})[0].clone())
                del batch
        model.train(was)


@pytest.mark.parametrize("when", ["on_step_end", "on_evaluate"])
def test_a_call_with_another_batch_is_not_fed(runs, when):
    runs.changes |= {"eval_strategy": "epoch", "per_device_eval_batch_size": BATCH}
    answers = []
    for cache in (None, runs.cache()):
        asks = Asks(when)
        runs.callbacks = [asks]
        runs.train(cache)
        answers.append(asks.found)
    assert cache.report["hits"] > 0
    assert len(answers[0]) == len(answers[1]) > 0
    for live, cached in zip(*answers, strict=True):
        assert torch.equal(live, cached)


def test_only_the_very_batch_and_nothing_beside_it_is_fed(model):
    aside, model = Aside(), small()

    def batch():
        return {"input_ids": torch.ones(4, 8, dtype=torch.long)}

    for _ in range(50):
        aside.keep({"cut": 0}, batch())
        assert aside.of_call(model, (), batch()) is None
    held = batch()
    aside.keep({"cut": 0}, held)
    assert aside.of_call(model, (), dict(held)) == {"cut": 0}
    assert aside.of_call(model, (), held | {"num_items_in_batch": torch.tensor(4)}) == {"cut": 0}
    for more in ({"token_type_ids": torch.ones(4, 8)}, {"output_hidden_states": True}, {"position_ids": [1]}):
        assert aside.of_call(model, (), held | more) is None
    aside.keep({"cut": 0}, held | {"weights": torch.ones(4)})
    assert aside.of_call(model, (), held) == {"cut": 0}
    aside.keep({"cut": 0}, held | {"attention_mask": torch.ones(4, 8)})
    assert aside.of_call(model, (), held) is None
    held["input_ids"].add_(1)
    assert aside.of_call(model, (), dict(held)) is None


class Again:
    """A loss term that calls the model, its base and a copy of other rows while the batch is worked on."""

    def prepare(self, model):
        self.rows = {k: torch.stack([row[k] for row in rows_of(count=BATCH)]) for k in rows_of(count=1)[0]}
        self.rows["input_ids"] = self.rows["input_ids"] % 40 + 5

    def __call__(self, model, inputs, outputs):
        same = model(**inputs).loss
        base = model.bert(self.rows["input_ids"], attention_mask=self.rows["attention_mask"])[0].square().mean()
        changed = {**inputs, "input_ids": inputs["input_ids"].flip(0)}
        return same + model(**self.rows).loss + base + model(**changed).loss


@pytest.mark.parametrize("adapted", [False, True], ids=["model", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_a_loss_term_may_call_the_model(runs, checkpointing, adapted):
    runs.changes |= {
        "cls": TransferTrainer,
        "activation_checkpointing": checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    }
    if adapted:
        runs.model, runs.schedule = upper_lora, full()

    def train(cache=None):
        trainer = runs.trainer(cache)
        trainer.terms = (Again(),)
        trainer.terms[0].prepare(trainer.model)
        trainer.train()
        return trainer

    live, cache = train(), runs.cache()
    assert_same(train(cache), live)
    assert cache.report["hits"] > 0


class Weighted(Trainer):
    """A loss of the user's own, with a column of weights that the model does not take."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        weight = inputs.pop("weight")
        outputs = model(**inputs)
        loss = (torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"], reduction="none") * weight).mean()
        return (loss, outputs) if return_outputs else loss


def test_columns_for_the_loss_alone_stop_no_run(runs):
    runs.data = [{**row, "weight": torch.tensor(0.5 + i % 3)} for i, row in enumerate(runs.data)]
    runs.changes |= {"cls": Weighted, "remove_unused_columns": False}
    live, cache = runs.train(), runs.cache()
    assert_same(runs.train(cache), live)
    assert cache.report["used"] or "weight" in cache.report["reason"]


# What it leaves behind


class Crash(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_nothing_is_left_on_the_model(runs, tmp_path):
    trainer = runs.train(runs.cache())
    assert untouched_model(trainer.model) == []
    trainer.model.save_pretrained(tmp_path / "saved")
    again = type(trainer.model).from_pretrained(tmp_path / "saved")
    twin = copy.deepcopy(trainer.model)
    batch = {k: v[None] for k, v in runs.data[0].items()}
    trainer.model.eval(), again.eval(), twin.eval()
    torch.testing.assert_close(again(**batch).logits, trainer.model(**batch).logits)
    assert torch.equal(twin(**batch).logits, trainer.model(**batch).logits)


def test_nothing_is_left_on_the_model_after_a_crash(runs):
    runs.callbacks = [Crash(3)]
    trainer = runs.trainer(runs.cache())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [
        name
        for name in untouched_model(trainer.model)
        if name == "" or "forward" in vars(trainer.model.get_submodule(name))
    ] == []
    batch = {k: v[None] for k, v in runs.data[5].items() if k != "labels"}
    expected = small().bert
    expected.load_state_dict(trainer.model.bert.state_dict())
    assert torch.equal(trainer.model.bert.eval()(**batch)[0], expected.eval()(**batch)[0])


def test_a_crash_within_the_model_leaves_nothing_fed(runs):
    trainer = runs.trainer(runs.cache())

    def fails(module, args):
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt

    handle = trainer.model.classifier.register_forward_pre_hook(fails)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    handle.remove()
    batch = {k: v[None] for k, v in runs.data[5].items() if k != "labels"}
    expected = small().bert
    expected.load_state_dict(trainer.model.bert.state_dict())
    assert torch.equal(trainer.model.bert.eval()(**batch)[0], expected.eval()(**batch)[0])


class Recovers(Trainer):
    """Goes on without a batch on which the model failed, and asks its base about other texts."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        try:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        except ArithmeticError:
            model.classifier._forward_pre_hooks.clear()
            return model.bert(inputs["input_ids"].flip(0), inputs["attention_mask"].flip(0))[0].square().mean()


def test_a_pass_that_failed_and_was_caught_leaves_nothing_fed(runs):
    runs.changes["cls"] = Recovers

    def train(cache=None):
        trainer = runs.trainer(cache)

        def fails(module, args):
            if trainer.state.global_step == 2:
                raise ArithmeticError

        trainer.model.classifier.register_forward_pre_hook(fails)
        trainer.train()
        assert not trainer.model.classifier._forward_pre_hooks
        return trainer

    live, cache = train(), runs.cache()
    assert_same(train(cache), live)
    assert cache.report["hits"] == STEPS


def test_a_second_train_works_after_a_crash_and_after_the_first(runs):
    cache = runs.cache()
    trainer = runs.trainer(cache)
    crash = Crash(3)
    trainer.add_callback(crash)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(crash)
    for _ in range(2):
        before = weights(trainer)
        trainer.train()
        assert cache.report["used"]
        assert (cache.report["hits"], cache.report["rows_filled"]) == (STEPS, 0)
        after = weights(trainer)
        assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
        assert torch.equal(
            before["bert.embeddings.word_embeddings.weight"], after["bert.embeddings.word_embeddings.weight"]
        )


def test_a_second_train_on_changed_weights_reads_no_store_of_the_first(runs):
    """Loaders that live on keep what the collator knew in the first run."""
    runs.schedule = GradualUnfreezing(every=4)
    runs.changes |= {"eval_strategy": "epoch", "per_device_eval_batch_size": BATCH}
    found = []
    for cache in (None, runs.cache(recheck_every=0)):
        trainer = runs.trainer(cache, dataloader_num_workers=1, dataloader_persistent_workers=True)
        for _ in range(2):
            set_seed(0)
            trainer.train()
        found.append(trainer)
    for worker in multiprocessing.active_children():
        worker.terminate()
    assert measured(found[1]) == measured(found[0])
    assert_same(found[1], found[0])


class Snapshot(TrainerCallback):
    """A copy of the model from within training, as averaging of weights makes it."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            self.copy = copy.deepcopy(model)


def test_a_copy_made_in_training_is_a_model_of_its_own(runs):
    snapshot = Snapshot()
    runs.callbacks, runs.schedule = [snapshot], GradualUnfreezing(every=3)
    trainer = runs.train(runs.cache())
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    batch = {k: v[None] for k, v in runs.data[5].items()}
    expected = small()
    expected.load_state_dict(snapshot.copy.state_dict())
    assert torch.equal(snapshot.copy.eval()(**batch).logits, expected.eval()(**batch).logits)


# Stored values that are wrong


def test_wrong_values_with_a_right_checksum_are_found_by_the_next_check(runs, monkeypatch):
    real = ActivationStore.write
    with monkeypatch.context() as patch:
        patch.setattr(
            ActivationStore,
            "write",
            lambda self, keys, entries: real(
                self, keys, [[t * -1 if t.is_floating_point() else t for t in e] for e in entries]
            ),
        )
        cache = runs.cache(recheck_every=4)
        trainer = runs.train(cache)
    assert not cache.report["used"]
    assert "a batch that was computed again differs by 2.0e+00 from what is stored in" in cache.report["reason"]
    assert "(weights, data or files were changed)" in cache.report["reason"]
    assert cache.report["hits"] == 1
    assert trainer.state.global_step == STEPS


def test_a_check_at_every_batch_lets_nothing_wrong_in(runs, monkeypatch):
    live, real = runs.train(), ActivationStore.write
    with monkeypatch.context() as patch:
        patch.setattr(
            ActivationStore,
            "write",
            lambda self, keys, entries: real(self, keys, [[t * 1.01 for t in e] for e in entries]),
        )
        cache = runs.cache(recheck_every=1)
        assert_same(runs.train(cache), live)
    assert not cache.report["used"]


@pytest.mark.parametrize("name", MODELS)
def test_what_was_stored_in_bfloat16_stands_every_check(make_trainer, tmp_path, name):
    model, schedule = MODELS[name]
    runs = Runs(make_trainer, tmp_path, model, rows_of(name), schedule)
    live, cache = runs.train(), runs.cache(storage="float16", fill_precision="bfloat16", recheck_every=1)
    cached = runs.train(cache)
    assert cache.report["used"], cache.report["reason"]
    assert cache.report["rechecks"] == cache.report["hits"] == STEPS
    assert {cut["fill_precision"] for cut in cache.report["cuts"]} == {"bfloat16"}
    assert losses(cached) != losses(live)
    # Later ones tell of training: a tiny ResNet with BatchNorm over 4 rows goes apart at the least difference.
    assert losses(cached)[0] == pytest.approx(losses(live)[0], rel=0.005)


# Refusals


def test_rows_that_are_random_need_views(runs):
    runs.model, runs.data = (lambda: small("vit")), augmented()
    runs.changes |= {"remove_unused_columns": False}
    cache = runs.cache()
    runs.train(cache)
    assert not cache.report["used"]
    assert "keep a number of views of each with `FrozenPrefixCache(views=...)`" in cache.report["reason"]


def augmented():
    rows = rows_of("vit", 8)
    data = Dataset.from_dict({"at": list(range(8))})

    def change(batch):
        pixels = [rows[i]["pixel_values"] + torch.rand(1) for i in batch["at"]]
        return {"pixel_values": pixels, "labels": [rows[i]["labels"] for i in batch["at"]]}

    return data.with_transform(change)


def test_views_are_drawn_once_and_read_again(make_trainer, tmp_path):
    runs = Runs(make_trainer, tmp_path, lambda: small("vit"), augmented(), freeze_first(3))
    runs.changes = {"remove_unused_columns": False, "num_train_epochs": 4}
    cache, seen = runs.cache(views=2), []
    trainer = runs.trainer(cache)
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: seen.append(sorted(row_digests(collate(rows)))) or collate(rows)
    trainer.train()
    report = cache.report
    assert report["used"], report["reason"]
    assert (report["rows_filled"], report["misses"], report["hits"]) == (16, 0, 8)
    last = [sorted(sum(seen[-2 * (i + 1) : len(seen) - 2 * i], [])) for i in range(4)]
    assert last[0] == last[2] != last[1] == last[3]
    again = runs.cache(views=2)
    assert_same(runs.train(again), trainer)
    assert again.report["rows_filled"] == 0


def masking(rows):
    batch = {k: torch.stack([row[k] for row in rows]) for k in ("input_ids", "attention_mask")}
    drawn = torch.rand(batch["input_ids"].shape) < 0.5
    return {
        **batch,
        "labels": torch.where(drawn, batch["input_ids"], -100),
        "input_ids": torch.where(drawn, 4, batch["input_ids"]),
    }


def test_a_collator_that_masks_at_random_is_refused(runs):
    runs.model = lambda: tf.BertForMaskedLM(tf.BertConfig(**BERTISH))
    runs.changes |= {"trainer_kwargs": {"data_collator": masking}}
    check_refused(runs, "the collator makes other batches of the same rows each time, as masking does")


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(rows_of())


def sounds(**changes):
    return {"model": lambda: wav2vec2(**changes), "data": rows_of("wav2vec2")}


# What is other about the run, and what the reason says.
OFF = {
    "stream": ({"data": Stream(), "max_steps": 4}, "the data is a stream without length"),
    "layerdrop": (
        sounds(layerdrop=0.1, apply_spec_augment=False),
        "`config.layerdrop` leaves out layers at random; set it to 0",
    ),
    "specaugment": (
        sounds(layerdrop=0.0, mask_time_prob=0.5, mask_time_length=2),
        "SpecAugment masks what the frozen layers see",
    ),
    "neftune": ({"neftune_noise_alpha": 5.0}, "NEFTune adds noise below the frozen layers"),
    "short": ({"max_steps": 3}, "less than an epoch has a frozen part, so no row would be read twice"),
    "everything": ({"schedule": full()}, "nothing lies below"),
    "embeddings": ({"schedule": freeze_pattern(r"encoder\.layer")}, "nothing lies below"),
    "adapters": (
        {"model": lambda: attach_adapter(undropped(), {"name": "lora"}), "schedule": full()},
        "there is nothing to gain",
    ),
}


@pytest.mark.parametrize("case", OFF)
def test_what_cannot_be_cached_trains_without(make_trainer, tmp_path, case):
    changes, match = OFF[case]
    check_refused(Runs(make_trainer, tmp_path, **changes), match)


def test_a_budget_or_a_disk_that_is_too_small_is_named_with_the_size(runs, monkeypatch):
    check_refused(
        runs, "16 rows make below 'bert.encoder.layer.1' takes 9.2 kB, but there is room for 5.0 kB in", budget=5000
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40 - 2**30, 2**30))
    check_refused(runs, "16 rows make below 'bert.encoder.layer.1' takes 9.2 kB, but there is room for 0 B in")


def test_dropout_that_is_kept_is_refused(runs):
    def trainer(cache=None):
        set_seed(0)
        made = runs.make_trainer(small(), train=runs.data, max_steps=6, per_device_train_batch_size=BATCH)
        attach(made, schedule=runs.schedule, cache=cache, keep_dropout=True)
        return made

    runs.trainer = trainer
    check_refused(runs, "`keep_dropout` lets the frozen layers drop out")


def test_a_model_that_heeds_padding_is_refused(runs):
    """GPT-2 counts positions from the left end of the batch: a text padded on the left is another in each batch."""
    runs.model = lambda: small("gpt2")
    rows = rows_of("gpt2")
    runs.data = [{k: v[: int(row["attention_mask"].sum())].tolist() for k, v in row.items()} for row in rows]
    runs.changes |= {"trainer_kwargs": {"data_collator": padded_left}}
    check_refused(runs, "the activations depend on how a row is padded or on its companions")


def padded_left(rows):
    width = max(len(row["input_ids"]) for row in rows)
    fills = {"labels": -100}
    return {
        k: torch.tensor([[fills.get(k, 0)] * (width - len(row[k])) + list(row[k]) for row in rows]) for k in rows[0]
    }


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"storage": "float8"}, "float8"),
        ({"fill": "later"}, '`fill` must be "ahead" or "first-epoch", but got \'later\''),
        ({"budget": "much"}, "a size such as \"20GB\", but got 'much'"),
        ({"budget": 0}, "but got 0"),
        ({"budget": True}, "but got True"),
        ({"views": 0}, "`views` must be a whole number of at least 1, but got 0"),
        ({"recheck_every": -1}, "`recheck_every` must be a whole number of at least 0, but got -1"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        FrozenPrefixCache(tmp_path, **options)


@pytest.mark.parametrize("fill", ["ahead", "first-epoch"])
@pytest.mark.parametrize("kind", ["file", "closed"])
def test_a_folder_that_cannot_be_written_stops_the_run_before_it_trains(runs, kind, fill, monkeypatch):
    if kind == "file":
        (runs.folder / "cache").write_text("no folder")
    else:
        monkeypatch.setattr("hf_transfer_plugin.prefix_cache.folders.write_atomically", _denied)
    trainer = runs.trainer(runs.cache(fill=fill))
    with pytest.raises(ValueError, match="The prefix cache needs a folder that it can write to, but got"):
        trainer.train()
    assert trainer.state.global_step == 0


def _denied(*args, **kwargs):
    raise PermissionError(13, "Permission denied")


# Data and phases of other kinds


def test_columns_of_fixed_size_are_read(runs):
    from datasets import Features, List, Value

    width = len(runs.data[0]["input_ids"])
    features = Features({
        "input_ids": List(Value("int64"), length=width),
        "attention_mask": List(Value("int64"), length=width),
        "labels": Value("int64"),
    })
    lists = {k: [row[k].tolist() for row in runs.data] for k in features}
    runs.data = Dataset.from_dict(lists, features=features)
    check_exact(runs)


def test_a_datasets_dataset_is_read(runs):
    runs.data = Dataset.from_dict({k: [row[k].tolist() for row in runs.data] for k in runs.data[0]})
    assert check_exact(runs)["rows_filled"] == ROWS


def test_phases_that_were_not_foreseen_are_stored_when_they_begin(runs):
    runs.schedule = PlateauUnfreezing(min_delta=10.0)
    runs.changes |= {"eval_strategy": "epoch", "num_train_epochs": 5}
    report = check_exact(runs)
    assert [cut["fed"] for cut in report["cuts"]][:3] == [
        "bert.pooler.dense",
        "bert.encoder.layer.2",
        "bert.encoder.layer.1",
    ]
    assert report["rows_filled"] >= 3 * ROWS


def test_the_first_epoch_fills_where_it_shall(runs):
    report = check_exact(runs, fill="first-epoch")
    per_epoch = ROWS // BATCH
    assert (report["misses"], report["hits"], report["rows_filled"]) == (per_epoch, 2 * per_epoch, 0)
