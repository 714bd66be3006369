"""The gradient of a step does not depend on how its rows are divided into micro-batches."""

import logging

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
)

from hf_transfer_plugin import TransferTrainer, attach
from hf_transfer_plugin.freezing import full
from hf_transfer_plugin.trainer.loss_scale import count_targets
from tests.conftest import TINY, VOCABULARY, rows

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
PER_EXAMPLE = {
    "bert-classes": lambda: BertForSequenceClassification(BertConfig(**TINY, **STILL)),
    "bert-labels": lambda: BertForSequenceClassification(
        BertConfig(**TINY, **STILL, num_labels=3, problem_type="multi_label_classification")
    ),
    "vit": lambda: ViTForImageClassification(
        ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8,
                  patch_size=4, **STILL)
    ),
}  # fmt: skip
PER_TOKEN = {
    "bert-tokens": lambda: BertForTokenClassification(BertConfig(**TINY, **STILL)),
    "bert-masked": lambda: BertForMaskedLM(BertConfig(**TINY, **STILL)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0,
                 decoder_start_token_id=0)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
}  # fmt: skip


def data(name, count=8):
    """Rows whose numbers of targets differ widely, so that a mean of means is far from the mean."""
    generator = torch.Generator().manual_seed(0)
    if name == "vit":
        images = torch.rand(count, 3, 8, 8, generator=generator)
        return [{"pixel_values": image, "labels": torch.tensor(i % 2)} for i, image in enumerate(images)]
    found = rows(count)
    for i, row in enumerate(found):
        if name == "bert-labels":
            row["labels"] = torch.tensor([float(i % 2), float(i % 3 == 0), 1.0])
        elif name != "bert-classes":
            most = 2 if name == "bert-tokens" else VOCABULARY
            row["labels"] = torch.randint(0, most, (8,), generator=generator)
            row["labels"][8 - i :] = -100
    return found


def train(make_trainer, name, model, cls, size, accumulation, attached=True, **changes):
    """One step of gradient descent at rate 1, so that the weights move by the gradient."""
    torch.manual_seed(0)
    trainer = make_trainer(
        model(), cls=cls, train=data(name), max_steps=1, per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant",
        max_grad_norm=0.0, train_sampling_strategy="sequential", **changes,
    )  # fmt: skip
    if attached:
        attach(trainer, schedule=full(), terms=changes.pop("terms", ()))
    trainer.train()
    return trainer, {k: v.clone() for k, v in trainer.model.state_dict().items()}


def gap(first, second):
    return max(float((first[k] - second[k]).abs().max()) for k in first)


@pytest.mark.parametrize("cls", [Trainer, TransferTrainer])
@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_losses_over_examples_do_not_grow_with_accumulation(make_trainer, name, cls):
    large, expected = train(make_trainer, name, PER_EXAMPLE[name], cls, 8, 1)
    small, found = train(make_trainer, name, PER_EXAMPLE[name], cls, 4, 2)
    assert gap(found, expected) < 1e-6
    norms = [t.state.log_history[0]["grad_norm"] for t in (large, small)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("name", PER_TOKEN)
def test_losses_over_tokens_weigh_every_target_alike_in_a_transfer_trainer(make_trainer, name, caplog):
    _, expected = train(make_trainer, name, PER_TOKEN[name], TransferTrainer, 8, 1)
    with caplog.at_level(logging.WARNING):
        trainer, found = train(make_trainer, name, PER_TOKEN[name], TransferTrainer, 4, 2)
    assert gap(found, expected) < 1e-6
    assert trainer.rescales_loss == (name != "llama")
    assert "num_items_in_batch" not in caplog.text


@pytest.mark.parametrize("name", ["bert-tokens", "bert-masked", "t5"])
def test_a_plain_trainer_averages_micro_batches_and_says_so_once(make_trainer, name, caplog):
    _, expected = train(make_trainer, name, PER_TOKEN[name], Trainer, 8, 1)
    with caplog.at_level(logging.WARNING):
        trainer, found = train(make_trainer, name, PER_TOKEN[name], Trainer, 4, 2)
    assert caplog.text.count("drops `num_items_in_batch`") == 1
    assert "`TransferTrainer` (or `TransferMixin`" in caplog.text
    assert not trainer.model_accepts_loss_kwargs
    _, upstream = train(make_trainer, name, PER_TOKEN[name], Trainer, 4, 2, attached=False)
    assert gap(found, expected) > 1e-4
    assert gap(upstream, expected) > 1.2 * gap(found, expected)


def test_a_head_that_counts_is_left_alone(make_trainer, caplog):
    _, expected = train(make_trainer, "llama", PER_TOKEN["llama"], Trainer, 8, 1)
    with caplog.at_level(logging.WARNING):
        trainer, found = train(make_trainer, "llama", PER_TOKEN["llama"], Trainer, 4, 2)
    assert gap(found, expected) < 1e-6
    assert trainer.model_accepts_loss_kwargs
    assert not caplog.text


class OwnLoss(Trainer):
    """Counts by itself, over a model that does not."""

    calls = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.calls += 1
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum")
        loss = loss / (num_items_in_batch or labels.ne(-100).sum())
        return (loss, outputs) if return_outputs else loss


def test_a_loss_of_the_users_own_that_counts_is_left_alone(make_trainer):
    _, expected = train(make_trainer, "bert-tokens", PER_TOKEN["bert-tokens"], OwnLoss, 8, 1)
    trainer, found = train(make_trainer, "bert-tokens", PER_TOKEN["bert-tokens"], OwnLoss, 4, 2)
    assert trainer.model_accepts_loss_kwargs
    assert gap(found, expected) < 1e-6


def test_nothing_is_probed_where_a_step_is_one_batch(make_trainer, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("probed")

    monkeypatch.setattr("hf_transfer_plugin.trainer.attaching.mend_loss_scale", fail)
    train(make_trainer, "bert-classes", PER_EXAMPLE["bert-classes"], Trainer, 8, 1)


def test_probing_leaves_the_run_alone(make_trainer):
    """Dropout on: the same random numbers are drawn with and without the probe."""
    model = lambda: BertForSequenceClassification(BertConfig(**TINY))

    def run(attached):
        trainer = make_trainer(model(), gradient_accumulation_steps=2, per_device_train_batch_size=4, max_steps=3)
        if attached:
            attach(trainer, schedule=full())
        else:
            trainer.model_accepts_loss_kwargs = False
        trainer.train()
        return trainer.model.state_dict()

    torch.manual_seed(0)
    first = run(False)
    torch.manual_seed(0)
    assert gap(run(True), first) == 0


class Pull:
    """A term whose gradient is known: the mean of the classifier's weights."""

    def prepare(self, model):
        self.weight = model.classifier.weight

    def __call__(self, model, inputs, outputs):
        return self.weight.mean()


@pytest.mark.parametrize("name", ["bert-classes", "bert-tokens"])
def test_terms_and_clipping_see_the_same_scale(make_trainer, name):
    makers = {**PER_EXAMPLE, **PER_TOKEN}

    def run(size, accumulation, terms):
        torch.manual_seed(0)
        trainer = make_trainer(
            makers[name](), cls=TransferTrainer, train=data(name), max_steps=1, per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant",
            max_grad_norm=0.05, train_sampling_strategy="sequential",
        )  # fmt: skip
        attach(trainer, schedule=full(), terms=terms)
        trainer.train()
        return trainer.state.log_history[0]["grad_norm"], trainer.model.state_dict()

    (norm, expected), (small_norm, found) = run(8, 1, [Pull()]), run(4, 2, [Pull()])
    assert norm == pytest.approx(small_norm, rel=1e-5)
    assert gap(found, expected) < 1e-6
    assert gap(run(8, 1, [])[1], expected) > 1e-4


class Pairs(Trainer):
    """Its batches are nothing that the model takes, and its loss is a mean."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        first, second = (model(input_ids=inputs[name]).logits for name in ("a_ids", "b_ids"))
        loss = ((first - second) ** 2).mean()
        return (loss, None) if return_outputs else loss


def pairs(count=8):
    return [{"a_ids": r["input_ids"], "b_ids": r["input_ids"].flip(0), "labels": r["labels"]} for r in rows(count)]


def one_step(make_trainer, model, size, accumulation, cls=Trainer, train=None, **changes):
    torch.manual_seed(0)
    trainer = make_trainer(
        model(), cls=cls, train=train, max_steps=1, per_device_train_batch_size=size, optim="sgd", learning_rate=1.0,
        gradient_accumulation_steps=accumulation, lr_scheduler_type="constant", max_grad_norm=0.0,
        train_sampling_strategy="sequential", **changes,
    )  # fmt: skip
    attach(trainer, schedule=full())
    trainer.train()
    return trainer, {k: v.clone() for k, v in trainer.model.state_dict().items()}


def test_a_loss_of_the_users_own_over_other_batches_than_the_models_is_probed_as_it_is(make_trainer):
    model, more = PER_EXAMPLE["bert-classes"], {"cls": Pairs, "train": pairs(), "remove_unused_columns": False}
    _, expected = one_step(make_trainer, model, 8, 1, **more)
    _, found = one_step(make_trainer, model, 4, 2, **more)
    assert gap(found, expected) < 1e-6


def test_a_model_that_returns_a_tuple_is_probed(make_trainer):
    def model():
        made = PER_EXAMPLE["bert-classes"]()
        made.config.return_dict = False
        return made

    _, expected = one_step(make_trainer, model, 8, 1, train=data("bert-classes"))
    _, found = one_step(make_trainer, model, 4, 2, train=data("bert-classes"))
    assert gap(found, expected) < 1e-6


class Unwilling(OwnLoss):
    """Its loss cannot be had outside of training."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            raise KeyError("teacher_logits")
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def test_a_probe_that_fails_warns_once_and_changes_nothing(make_trainer, caplog):
    with caplog.at_level(logging.WARNING):
        trainer, _ = one_step(
            make_trainer, PER_TOKEN["bert-tokens"], 4, 2, cls=Unwilling, train=data("bert-tokens"), eval_strategy="no"
        )
    assert caplog.text.count("could not be found out (KeyError: 'teacher_logits')") == 1
    assert trainer.model_accepts_loss_kwargs


@pytest.mark.parametrize("name", ["bert-tokens", "t5"])
def test_a_first_batch_without_targets_hides_nothing(make_trainer, name):
    blind = [{**row, "labels": torch.full_like(row["labels"], -100)} for row in data(name, 2)]
    trainer, _ = one_step(make_trainer, PER_TOKEN[name], 2, 2, train=blind + data(name))
    assert not trainer.model_accepts_loss_kwargs


def test_a_first_batch_whose_loss_is_no_number_is_told(make_trainer, caplog, monkeypatch):
    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", lambda *args: torch.tensor(float("nan")))
    trainer = make_trainer(PER_EXAMPLE["bert-classes"](), gradient_accumulation_steps=2)
    with caplog.at_level(logging.WARNING):
        attach(trainer, schedule=full())
    assert caplog.text.count("could not be found out (the loss is nan)") == 1


def test_labels_that_a_collator_has_shifted_are_counted_as_trainer_counts_them(make_trainer):
    trainer = make_trainer(PER_TOKEN["llama"](), train=data("llama"))
    batch = {"labels": torch.full((2, 8), 5), "shift_labels": torch.tensor([[1, 2, -100], [3, -100, -100]])}
    assert count_targets(trainer, batch) == trainer._get_num_items_in_batch([batch], torch.device("cpu")) == 3


class Parallel(torch.nn.Module):
    """What DataParallel gives: each device's loss over its rows."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, num_items_in_batch=None, **inputs):
        parts = zip(*(value.chunk(2) for value in inputs.values()), strict=True)
        return {"loss": torch.stack([self.model(**dict(zip(inputs, part, strict=True))).loss for part in parts])}


@pytest.mark.parametrize("averaged", [True, False])
def test_two_devices_in_one_process_weigh_every_target_alike(make_trainer, averaged):
    trainer = make_trainer(PER_TOKEN["bert-tokens"](), cls=TransferTrainer, train=data("bert-tokens"))
    trainer.args._n_gpu, trainer.args.average_tokens_across_devices = 2, averaged
    attach(trainer, schedule=full())
    assert trainer.rescales_loss
    batch = {k: torch.stack([row[k] for row in data("bert-tokens")]) for k in data("bert-tokens")[0]}
    count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    model = trainer.model.eval()
    found = trainer.compute_loss(Parallel(model).eval(), dict(batch), num_items_in_batch=count).mean()
    assert float(found) == pytest.approx(float(model(**batch).loss), rel=1e-5)
