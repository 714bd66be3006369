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
