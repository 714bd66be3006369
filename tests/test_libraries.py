"""`attach` on the Trainers of the libraries around transformers: the installed ones, with a tiny model each."""

import copy

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from hf_transfer_plugin import (
    ChainThaw,
    FreezingCallback,
    GradualUnfreezing,
    LayerwiseDecay,
    attach,
    discover_layer_groups,
    feature_extraction,
    freeze_first,
)
from tests.conftest import BAD, GOOD, TINY
from tests.test_callbacks import Watcher, weights
from tests.test_life import library, moved
from tests.test_trainer import seq2seq_rows, t5

# TRL still says `gradient_checkpointing`, which Transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing. is deprecated:FutureWarning")
LLAMA = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 32, "vocab_size": 120, "max_position_embeddings": 40, "pad_token_id": 0, "eos_token_id": 3,
    "bos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
SETTINGS = {
    "max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, "report_to": "none",
    "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "lr_scheduler_type": "constant",
    "dataloader_pin_memory": False, "bf16": False,
}  # fmt: skip


class Optimizer(TrainerCallback):
    """Keeps the optimizer's groups as they are at the beginning."""

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        self.groups = [dict(group) for group in optimizer.param_groups]


def check_gradual(trainer, groups, watcher):
    """With `until=0.5` of eight steps the last group alone moves first, and everything moves in the end."""
    trainer.train()
    first, last = watcher.seen[0], watcher.seen[-1]
    heard = {name for name in groups[-1].parameters if "pooler" not in name}
    assert moved(first, watcher.seen[1]) == heard
    for group in groups:
        assert moved(watcher.seen[4], last) & set(group.parameters), f"{group.name} did not move"
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


@pytest.fixture
def speaker(tokenizer):
    """The tokenizer with an end of text, as TRL wants it."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = "[SEP]"
    return tokenizer


def test_attach_on_seq2seq_trainer_holds_while_it_generates(tmp_path):
    watcher = Watcher()
    trainer = Seq2SeqTrainer(
        model=t5(), train_dataset=seq2seq_rows(), eval_dataset=seq2seq_rows(4), callbacks=[watcher],
        args=Seq2SeqTrainingArguments(
            str(tmp_path), **SETTINGS, predict_with_generate=True, generation_max_length=4, eval_strategy="steps",
            eval_steps=3,
        ),
    )  # fmt: skip
    groups = attach(trainer, schedule=GradualUnfreezing(), learning_rates=LayerwiseDecay(0.9))
    trainer.train()
    assert moved(watcher.seen[0], watcher.seen[1]) <= set(groups[-1].parameters)
    assert moved(watcher.seen[4], watcher.seen[-1]) & set(groups[0].parameters)
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [3, 6, 8]


def sft(tmp_path, speaker, watcher, **kwargs):
    trl = library("trl")
    return trl.SFTTrainer(
        LlamaForCausalLM(LlamaConfig(**LLAMA)),
        args=trl.SFTConfig(str(tmp_path), **SETTINGS, max_length=16, dataset_num_proc=None),
        train_dataset=Dataset.from_dict({"text": GOOD + BAD}), processing_class=speaker, callbacks=[watcher], **kwargs,
    )  # fmt: skip


def test_attach_on_trls_sft_trainer(tmp_path, speaker):
    trainer = sft(tmp_path, speaker, watcher := Watcher())
    groups = attach(trainer, schedule=GradualUnfreezing(), learning_rates=LayerwiseDecay(0.9))
    assert groups.names == ("embeddings", "layers.0", "layers.1", "layers.2", "head")
    assert groups.verified
    check_gradual(trainer, groups, watcher)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert "mean_token_accuracy" in logs[-1]
    assert logs[-1]["learning_rate/layers.2"] == pytest.approx(9e-3)


def test_a_schedule_thaws_trls_adapters_and_never_the_base(tmp_path, speaker):
    peft = library("peft")
    lora = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = sft(tmp_path, speaker, watcher := Watcher(), peft_config=lora)
    groups = attach(trainer, schedule=GradualUnfreezing(), learning_rates=LayerwiseDecay(0.5))
    assert [group.name for group in groups.open] == ["layers.0", "layers.1", "layers.2"]
    trainer.train()
    assert all(".layers.2." in name for name in moved(watcher.seen[0], watcher.seen[1]))
    everything = moved(watcher.seen[0], watcher.seen[-1])
    assert all("lora_" in name for name in everything)
    assert any(".layers.0." in name for name in everything)


def test_attach_on_trls_reward_trainer(tmp_path, speaker):
    trl = library("trl")
    rows = Dataset.from_dict({"chosen": GOOD, "rejected": BAD})
    trainer = trl.RewardTrainer(
        LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=1)),
        args=trl.RewardConfig(str(tmp_path), **SETTINGS, max_length=16),
        train_dataset=rows, processing_class=speaker, callbacks=[watcher := Watcher()],
    )  # fmt: skip
    groups = attach(trainer, schedule=GradualUnfreezing(), learning_rates=LayerwiseDecay(0.9))
    assert groups.names == ("embeddings", "layers.0", "layers.1", "layers.2", "head")
    check_gradual(trainer, groups, watcher)
    assert "accuracy" in next(entry for entry in trainer.state.log_history if "loss" in entry)


@pytest.fixture
def encoder(tmp_path, tokenizer):
    """A tiny Sentence Transformer over a BERT whose pooler runs, but feeds nothing."""
    library("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    BertModel(BertConfig(**TINY)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return SentenceTransformer(modules=[Transformer(str(tmp_path / "bert")), Pooling(16)], device="cpu")


def sentence_trainer(tmp_path, model, loss, *callbacks, labels=True, **changes):
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    rows = {"first": GOOD * 2, "second": BAD * 2, **({"label": [0, 1] * 5} if labels else {})}
    return SentenceTransformerTrainer(
        model=model, loss=loss, train_dataset=Dataset.from_dict(rows), callbacks=list(callbacks),
        args=SentenceTransformerTrainingArguments(str(tmp_path / "run"), **{**SETTINGS, **changes}),
    )  # fmt: skip


def softmax_loss(model):
    from sentence_transformers.sentence_transformer.losses import SoftmaxLoss

    return SoftmaxLoss(model, 16, 2)


def test_groups_of_a_sentence_transformer_know_that_nobody_hears_its_pooler(encoder):
    groups = discover_layer_groups(encoder)
    assert groups.names == ("embeddings", "layer.0", "layer.1", "layer.2")
    assert groups.verified
    assert {n for n in groups[-1].parameters if "pooler" in n}


def test_the_first_step_of_gradual_unfreezing_has_a_gradient_without_parameters_of_the_loss(tmp_path, encoder):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    watcher = Watcher()
    trainer = sentence_trainer(tmp_path, encoder, MultipleNegativesRankingLoss(encoder), watcher, labels=False)
    groups = attach(trainer, schedule=GradualUnfreezing(), learning_rates=LayerwiseDecay(0.9))
    check_gradual(trainer, groups, watcher)


def test_a_losss_own_parameters_learn_with_the_head_at_its_rate_and_decay(tmp_path, encoder):
    loss, kept, watcher = softmax_loss(encoder), Optimizer(), Watcher()
    before = weights(loss.classifier)
    trainer = sentence_trainer(tmp_path, encoder, loss, kept, watcher, weight_decay=0.1)
    groups = attach(
        trainer, schedule=GradualUnfreezing(), learning_rates=LayerwiseDecay(0.5, head_multiplier=3.0, warmup_steps=2)
    )
    trainer.train()
    assert moved(before, weights(loss.classifier)) == {"weight", "bias"}
    assert moved(watcher.seen[0], watcher.seen[1]) <= set(groups[-1].parameters)
    own = [group for group in kept.groups if any(name.startswith("outside.") for name in group["param_names"])]
    assert own == kept.groups[:2]
    assert [(group["initial_lr"], group["weight_decay"]) for group in own] == [(3e-2, 0.1), (3e-2, 0.0)]
    assert [list(map(id, group["params"])) for group in own] == [[id(p)] for p in loss.classifier.parameters()]
    assert kept.groups[2]["initial_lr"] == pytest.approx(1e-2)


def test_each_parameter_of_model_and_loss_is_in_the_optimizer_once(tmp_path, encoder):
    class Namesake(nn.Module):
        """A loss whose own parameter bears the name of one of the model's."""

        def __init__(self, model):
            super().__init__()
            self.model = model
            self.add_module("0", nn.ModuleDict({"model": nn.ModuleDict({"embeddings": nn.LayerNorm(16)})}))

        def forward(self, features, labels):
            sentences = [self.model(feature)["sentence_embedding"] for feature in features]
            return self.get_submodule("0.model.embeddings")(sentences[0] * sentences[1]).square().mean()

    loss, kept = Namesake(encoder), Optimizer()
    trainer = sentence_trainer(tmp_path, encoder, loss, kept, max_steps=1)
    attach(trainer, learning_rates=LayerwiseDecay(0.5))
    trainer.train()
    held = [parameter for group in kept.groups for parameter in group["params"]]
    assert len(held) == len(set(map(id, held))) == len(list(loss.parameters()))
    names = [name for group in kept.groups for name in group["param_names"]]
    assert len(set(names)) == len(names)
    assert kept.groups[0]["weight_decay"] == 0.0


def test_a_learning_rate_mapping_is_kept_alone_and_refused_beside_learning_rates(tmp_path, encoder):
    mapping = {"learning_rate_mapping": {"embeddings": 1e-5, "classifier": 0.5}}
    trainer = sentence_trainer(tmp_path, encoder, softmax_loss(encoder), kept := Optimizer(), max_steps=1, **mapping)
    attach(trainer, schedule=freeze_first(0))
    trainer.train()
    rates = {name: group["initial_lr"] for group in kept.groups for name in group["param_names"]}
    assert {rate for name, rate in rates.items() if "embeddings" in name} == {1e-5}
    assert {rate for name, rate in rates.items() if "outside" in name} == {0.5}
    assert {rate for name, rate in rates.items() if "encoder.layer" in name} == {1e-2}
    other = sentence_trainer(tmp_path, encoder, softmax_loss(encoder), max_steps=1, **mapping)
    with pytest.raises(ValueError, match=r"Two sources give the rates.*`learning_rate_mapping`"):
        attach(other, learning_rates=LayerwiseDecay(0.5))


def test_a_loss_rate_of_its_own_goes_with_learning_rates(tmp_path, encoder):
    trainer = sentence_trainer(
        tmp_path, encoder, softmax_loss(encoder), kept := Optimizer(), max_steps=1,
        learning_rate_mapping={"classifier": 0.5},
    )  # fmt: skip
    attach(trainer, learning_rates=LayerwiseDecay(0.5, head_multiplier=3.0))
    trainer.train()
    rates = {name: group["initial_lr"] for group in kept.groups for name in group["param_names"]}
    assert [rates["outside.0"], rates["outside.1"]] == [0.5, 0.5]
    assert {rate for name, rate in rates.items() if "layer.1." in name} == {5e-3}


def test_head_only_on_a_sentence_transformer_is_refused_since_its_groups_have_no_head(tmp_path, encoder):
    trainer = sentence_trainer(tmp_path, encoder, softmax_loss(encoder))
    with pytest.raises(ValueError, match="it has no task head"):
        attach(trainer, schedule=feature_extraction())


@pytest.mark.parametrize("alone", [False, True], ids=["attach", "callback"])
def test_setfit_trains_its_body_by_the_schedule_through_st_trainer(tmp_path, encoder, alone):
    setfit = library("setfit")
    from sklearn.linear_model import LogisticRegression

    model = setfit.SetFitModel(model_body=encoder, model_head=LogisticRegression())
    args = setfit.TrainingArguments(
        str(tmp_path / "setfit"), max_steps=6, batch_size=4, body_learning_rate=1e-2, report_to="none",
        show_progress_bar=False,
    )  # fmt: skip
    rows = Dataset.from_dict({"text": GOOD + BAD, "label": [1] * 5 + [0] * 5})
    trainer = setfit.Trainer(model=model, args=args, train_dataset=rows)
    seen = []

    class Seen(TrainerCallback):
        def on_step_begin(self, args, state, control, st_model=None, **kwargs):
            seen.append(weights(st_model))

    trainer.add_callback(Seen())
    schedule = ChainThaw() if alone else GradualUnfreezing()
    if alone:
        trainer.add_callback(FreezingCallback(schedule))
        groups = discover_layer_groups(encoder)
    else:
        groups = attach(trainer.st_trainer, schedule=schedule, learning_rates=LayerwiseDecay(0.5))
    trainer.train()
    assert moved(seen[0], seen[1]) <= set(groups[-1].parameters)
    assert moved(seen[0], weights(encoder)) & set(groups[0].parameters)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert model.predict(GOOD[:2]).shape == torch.Size([2])
