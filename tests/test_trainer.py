from contextlib import nullcontext

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainerState,
)

from hf_transfer_plugin import (
    FreezingCallback,
    GradualUnfreezing,
    LayerwiseDecay,
    LinearProbeThenFineTune,
    PlateauUnfreezing,
    SlantedTriangular,
    TransferSeq2SeqTrainer,
    TransferTrainer,
    attach,
    feature_extraction,
    freeze_first,
    full,
)
from tests.conftest import bert, rows
from tests.test_callbacks import Watcher, weights


def t5():
    return T5ForConditionalGeneration(
        T5Config(d_model=16, num_layers=2, num_heads=2, d_ff=32, d_kv=8, vocab_size=120, decoder_start_token_id=0)
    )


def seq2seq_rows(count=32):
    return [{**row, "labels": row["input_ids"].flip(0)} for row in rows(count)]


class Rates(TrainerCallback):
    """Notes the optimizer's rates in each step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.steps.append([group["lr"] for group in optimizer.param_groups])


@pytest.mark.parametrize("kind", ["vanilla", "seq2seq"])
def test_attach_freezes_and_thaws_on_any_trainer(make_trainer, kind):
    watcher = Watcher()
    if kind == "vanilla":
        trainer = make_trainer(bert(), callbacks=[watcher], lr_scheduler_type="constant")
    else:
        trainer = make_trainer(
            t5(), cls=Seq2SeqTrainer, args_cls=Seq2SeqTrainingArguments, train=seq2seq_rows(), callbacks=[watcher],
            lr_scheduler_type="constant",
        )  # fmt: skip
    groups = attach(trainer, schedule=GradualUnfreezing(until=0.5), learning_rates=LayerwiseDecay(0.9))
    trainer.train()
    bottom, top = groups[0].parameters, groups[-1].parameters
    first, middle, last = watcher.seen[0], watcher.seen[6], watcher.seen[-1]
    assert all(torch.equal(first[name], middle[name]) for name in bottom)
    assert not all(torch.equal(first[name], middle[name]) for name in top)
    assert not all(torch.equal(middle[name], last[name]) for name in bottom)


def test_callback_alone_works_in_a_seq2seq_trainer(make_trainer):
    model, watcher = t5(), Watcher()
    trainer = make_trainer(
        model, cls=Seq2SeqTrainer, args_cls=Seq2SeqTrainingArguments, train=seq2seq_rows(), max_steps=3,
        callbacks=[FreezingCallback(freeze_first(3)), watcher],
    )  # fmt: skip
    trainer.train()
    first, last = watcher.seen[0], watcher.seen[-1]
    assert all(torch.equal(first[n], last[n]) for n in first if n.startswith(("shared", "encoder")))
    name = "decoder.block.1.layer.2.DenseReluDense.wi.weight"
    assert not torch.equal(first[name], last[name])


def test_rate_ratios_stay_constant_under_warm_up_and_cosine(make_trainer):
    rates = Rates()
    trainer = make_trainer(callbacks=[rates], lr_scheduler_type="cosine", warmup_steps=4)
    attach(trainer, learning_rates=LayerwiseDecay(0.5, head_multiplier=2.0))
    trainer.train()
    moving = [step for step in rates.steps if step[0] > 0]
    assert len({step[0] for step in moving}) > 5
    for step in moving:
        assert [rate / step[0] for rate in step[::2]] == pytest.approx([1, 0.25, 0.125, 0.0625, 0.03125])


def test_a_thawed_groups_rate_warms_up_and_then_follows_the_scheduler(make_trainer):
    rates = Rates()
    trainer = make_trainer(callbacks=[rates], lr_scheduler_type="constant")
    attach(trainer, schedule=GradualUnfreezing(every=4), learning_rates=LayerwiseDecay(1.0, warmup_steps=2))
    trainer.train()
    block = [step[2] for step in rates.steps]
    assert block[4:8] == pytest.approx([5e-3, 1e-2, 1e-2, 1e-2])
    assert [step[0] for step in rates.steps] == pytest.approx([1e-2] * 12)


def test_slanted_triangular_rates_begin_anew_for_each_group(make_trainer):
    rates = Rates()
    trainer = make_trainer(callbacks=[rates], lr_scheduler_type="constant", max_steps=20)
    attach(trainer, schedule=GradualUnfreezing(every=4), learning_rates=SlantedTriangular(0.25, ratio=2, decay=1.0))
    trainer.train()
    head, block = [s[0] for s in rates.steps], [s[2] for s in rates.steps]
    assert head[0] == pytest.approx(5e-3)
    assert head[5] == pytest.approx(1e-2)
    assert block[4] == pytest.approx(5e-3)
    assert block[8] == pytest.approx(1e-2)


class Reporter(TrainerCallback):
    """Stands for TensorBoard and the like, which come before a user's callbacks."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_rates_and_trainable_parameters_reach_reporters_that_came_first(make_trainer):
    reporter = Reporter()
    trainer = make_trainer(callbacks=[reporter], logging_steps=2, lr_scheduler_type="constant")
    attach(trainer, schedule=GradualUnfreezing(), learning_rates=LayerwiseDecay(0.5))
    trainer.train()
    logs = [entry for entry in reporter.logs if "loss" in entry]
    assert [k for k in logs[0] if k.startswith("learning_rate/")] == ["learning_rate/head"]
    assert logs[-1]["learning_rate/layer.2"] == pytest.approx(5e-3)
    assert logs[-1]["learning_rate/embeddings"] == pytest.approx(1e-2 * 0.5**4)
    assert (
        logs[0]["trainable_parameters"]
        < logs[-1]["trainable_parameters"]
        == sum(p.numel() for p in bert().parameters())
    )
    kept = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert kept[-1]["learning_rate/layer.2"] == pytest.approx(5e-3)


def test_a_second_train_starts_anew_and_trains_every_group(make_trainer):
    watcher = Watcher()
    trainer = make_trainer(callbacks=[watcher])
    groups = attach(trainer, schedule=GradualUnfreezing())
    trainer.train()
    trainer.train()
    assert len(watcher.seen) == 26
    second = watcher.seen[13:]
    assert all(torch.equal(second[0][n], second[3][n]) for n in groups[0].parameters)
    assert not all(torch.equal(second[0][n], second[-1][n]) for n in groups[0].parameters)


def test_attach_keeps_its_promise_with_model_init(make_trainer):
    watcher, args = Watcher(), make_trainer().args
    fresh = Trainer(model_init=lambda: bert(), args=args, train_dataset=rows(), callbacks=[watcher])
    attach(fresh, schedule=feature_extraction())
    fresh.train()
    first, last = watcher.seen[0], watcher.seen[-1]
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


def test_without_a_schedule_what_the_user_froze_stays_frozen(make_trainer):
    model = bert()
    model.bert.embeddings.requires_grad_(False)
    before = weights(model)
    trainer = make_trainer(model)
    attach(trainer, learning_rates=LayerwiseDecay(0.9))
    trainer.train()
    after = weights(model)
    assert all(torch.equal(before[n], after[n]) == ("embeddings" in n) for n in before if n.endswith("weight"))


@pytest.mark.parametrize(
    ("changes", "kwargs", "message"),
    [
        ({}, {}, "Nothing to attach"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch", "metric_for_best_model": "loss"},
         {"learning_rates": LayerwiseDecay(warmup_steps=3)}, "would compound"),
        ({}, {"learning_rates": SlantedTriangular()}, 'set `lr_scheduler_type="constant"`'),
        ({}, {"schedule": GradualUnfreezing(frozen=5)}, "`frozen` must lie between 0 and 4"),
        ({}, {"schedule": freeze_first(9)}, "`k` must lie between 0 and 4"),
        ({"ddp_static_graph": True}, {"schedule": GradualUnfreezing()}, "`ddp_static_graph=True` forbids"),
        ({}, {"terms": [lambda model, inputs, outputs: outputs.loss]}, "Use `TransferTrainer`"),
    ],
)  # fmt: skip
def test_combinations_that_go_wrong_are_refused_with_the_way_out(make_trainer, changes, kwargs, message):
    trainer = make_trainer(**changes)
    with pytest.raises(ValueError, match=message):
        attach(trainer, **kwargs)


def test_an_optimizer_that_already_exists_is_refused(make_trainer):
    model = bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = make_trainer(model, trainer_kwargs={"optimizers": (optimizer, None)})
    with pytest.raises(ValueError, match="already has one.*`optim=`"):
        attach(trainer, schedule=GradualUnfreezing())


def test_a_scheduler_that_already_exists_is_refused(make_trainer):
    model = bert()
    scheduler = torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD(model.parameters(), lr=0.1), lambda step: 0.0)
    trainer = make_trainer(model, trainer_kwargs={"optimizers": (None, scheduler)})
    with pytest.raises(ValueError, match=r"drives another optimizer.*name the scheduler with `lr_scheduler_type=`"):
        attach(trainer, schedule=GradualUnfreezing())


def test_a_second_attach_is_refused(make_trainer):
    trainer = make_trainer()
    attach(trainer, schedule=GradualUnfreezing())
    with pytest.raises(ValueError, match="already has a freezing schedule"):
        attach(trainer, schedule=GradualUnfreezing())


def test_a_frozen_model_without_a_schedule_has_nothing_to_train(make_trainer):
    model = bert().requires_grad_(False)
    trainer = make_trainer(model)
    with pytest.raises(ValueError, match="must leave something to train"):
        attach(trainer, learning_rates=LayerwiseDecay())


@pytest.mark.parametrize("schedule", [feature_extraction(), LinearProbeThenFineTune()])
def test_head_only_strategies_are_refused_for_a_tied_head(make_trainer, schedule):
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=120))
    trainer = make_trainer(model)
    with pytest.raises(ValueError, match="shares its weights with the embeddings"):
        attach(trainer, schedule=schedule)


def test_plateau_without_evaluation_is_refused(make_trainer):
    trainer = make_trainer()
    attach(trainer, schedule=PlateauUnfreezing())
    with pytest.raises(ValueError, match="`eval_strategy` is no"):
        trainer.train()


class Constant:
    """A term with a gradient that is known: the classifier's bias."""

    def __init__(self):
        self.prepared = 0

    def prepare(self, model):
        self.prepared += 1

    def __call__(self, model, inputs, outputs):
        return 0.0 * outputs.logits.sum() + 5.0 * model.classifier.bias.sum()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_term_is_added_once_a_step_also_under_accumulation(make_trainer, accumulation):
    def run(terms):
        gradients = []

        class Gradient(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
                gradients.append(model.classifier.bias.grad.clone())

        trainer = make_trainer(
            bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), cls=TransferTrainer, max_steps=1,
            gradient_accumulation_steps=accumulation, max_grad_norm=0.0, callbacks=[Gradient()],
            trainer_kwargs={"terms": terms, "schedule": freeze_first(1)},
        )  # fmt: skip
        torch.manual_seed(0)
        trainer.train()
        return gradients[0]

    term = Constant()
    torch.manual_seed(0)
    plain = run([])
    torch.manual_seed(0)
    added = run([term])
    assert term.prepared == 1
    torch.testing.assert_close(added - plain, torch.full((2,), 5.0))


def test_transfer_seq2seq_trainer_takes_a_schedule(make_trainer):
    trainer = make_trainer(
        t5(), cls=TransferSeq2SeqTrainer, args_cls=Seq2SeqTrainingArguments, train=seq2seq_rows(), max_steps=2,
        trainer_kwargs={"schedule": freeze_first(2)},
    )  # fmt: skip
    before = weights(trainer.model)
    trainer.train()
    assert torch.equal(before["shared.weight"], trainer.model.shared.weight)


class Elsewhere:
    """Stands for a Trainer whose accelerator shards: accelerate ignores that on CPU."""

    def __init__(self, trainer, monkeypatch, fsdp_version, use_orig_params):
        trainer.is_fsdp_enabled = True
        plugin = FullyShardedDataParallelPlugin(fsdp_version=fsdp_version, use_orig_params=use_orig_params)
        monkeypatch.setattr(trainer.accelerator.state, "fsdp_plugin", plugin, raising=False)


@pytest.mark.parametrize(
    ("strategy", "taken"),
    [
        ({"schedule": GradualUnfreezing()}, False),
        ({"schedule": freeze_first(1)}, False),
        ({"schedule": full(), "learning_rates": LayerwiseDecay(0.9)}, False),
        ({"learning_rates": LayerwiseDecay(0.9)}, False),
        ({"schedule": full()}, True),
    ],
)
@pytest.mark.parametrize(("fsdp_version", "use_orig_params"), [(2, None), (1, True), (1, False)])
def test_fsdp_1_without_the_original_parameters_is_refused_where_layers_differ(
    make_trainer, monkeypatch, fsdp_version, use_orig_params, strategy, taken
):
    trainer = make_trainer()
    Elsewhere(trainer, monkeypatch, fsdp_version, use_orig_params)
    taken = taken or use_orig_params is not False
    with nullcontext() if taken else pytest.raises(ValueError, match="Set `use_orig_params: true`, or use FSDP 2"):
        attach(trainer, **strategy)


def begin(trainer, optimizer, callback=None):
    """Starts the run with an optimizer that something else made, as DeepSpeed does."""
    callback = callback or next(c for c in trainer.callback_handler.callbacks if isinstance(c, FreezingCallback))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    state = TrainerState(max_steps=3, num_train_epochs=1)
    around = {"model": trainer.model, "optimizer": optimizer, "lr_scheduler": scheduler, "train_dataloader": None}
    callback.on_train_begin(trainer.args, state, None, **around)
    callback.on_step_begin(trainer.args, state, None, **around)
    logs = {"loss": 1.0}
    callback.on_log(trainer.args, state, None, logs=logs, **around)
    return logs


def flattened(optimizer):
    """The same groups, each one flat tensor of its own, as under DeepSpeed."""
    groups = []
    for group in optimizer.param_groups:
        flat = torch.nn.Parameter(torch.cat([p.detach().flatten() for p in group["params"]]))
        groups.append({"params": [flat], "lr": group["lr"]})
    return DeepSpeedOptimizerWrapper(torch.optim.SGD(groups))


def test_a_fixed_policy_goes_on_under_deepspeed_which_flattens_the_optimizer(make_trainer):
    trainer = make_trainer()
    attach(trainer, schedule=freeze_first(2), learning_rates=LayerwiseDecay(0.5))
    trainer.is_deepspeed_enabled = True
    logs = begin(trainer, flattened(trainer.create_optimizer()))
    assert [name for name in logs if name.startswith("learning_rate/")] == [
        "learning_rate/layer.1", "learning_rate/layer.2", "learning_rate/head",
    ]  # fmt: skip
    assert logs["learning_rate/layer.1"] == pytest.approx(2.5e-3)
    learning = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert not any("embeddings" in name or "layer.0" in name for name in learning)


def test_a_changing_schedule_under_deepspeed_is_refused(make_trainer):
    trainer = make_trainer()
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match=r"DeepSpeed fixes the trainable.*`freeze_first\(k\)`"):
        attach(trainer, schedule=GradualUnfreezing())


def test_a_callback_alone_is_refused_under_deepspeed(make_trainer):
    trainer = make_trainer()
    with pytest.raises(ValueError, match=r"DeepSpeed.*Use `attach\(trainer, schedule=...\)` with a fixed policy"):
        begin(trainer, flattened(trainer.create_optimizer()), FreezingCallback(freeze_first(2)))
