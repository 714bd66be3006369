"""Adapters from rows to record and back, for every task; what is saved is what was trained."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import PeftConfig
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, BertModel, TrainerCallback, TrainingArguments

from hf_transfer_plugin import TransferConfig, finetune
from hf_transfer_plugin.recipes import evaluate_run, predict_run
from hf_transfer_plugin.recipes import finetuning as recipe
from hf_transfer_plugin.recipes.finetuning import make_trainer, prepare
from hf_transfer_plugin.recipes.trained import load_run_model
from hf_transfer_plugin.tasks.likelihood import shifted_sums
from hf_transfer_plugin.trainer import attach
from tests.conftest import TINY, reviews
from tests.test_text_runs import ASKED, ROWS, arguments
from tests.tiny_writers import byte_tokenizer, tiny_llama, tiny_t5

pytestmark = pytest.mark.slow

FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "transfer_record.json",
    "transfer_config.json",
    "README.md",
}
TASKS = {
    "text-generation": ("llama", {"max_target_length": 6}),
    "summarization": ("t5", {"max_target_length": 6}),
    "translation": ("llama", {"max_target_length": 6}),
    "fill-mask": ("bert", {}),
    "token-classification": ("encoder", {}),
    "question-answering": ("encoder", {}),
}
WORDS = ["the", "cat", "sat", "in", "Paris"]
MORE_ROWS = {
    "token-classification": {"tokens": [WORDS] * 8, "tags": [["O", "O", "O", "O", "B-LOC"]] * 8},
    "question-answering": {
        "question": ["What is it?"] * 8,
        "context": ["It is Paris, said the teacher."] * 8,
        "answers": [{"text": ["Paris"], "answer_start": [6]}] * 8,
    },
}
MORE_ASKED = {
    "token-classification": {"tokens": [WORDS]},
    "question-answering": {"question": ["What?"], "context": ["It is Paris."]},
}


def _slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    masked = byte_tokenizer(encoder=True, template=None, mask_token="[MASK]")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = BertConfig(**sizes, vocab_size=len(masked), max_position_embeddings=64)
    made = {
        "llama": (tiny_llama(), byte_tokenizer()),
        "t5": (tiny_t5(), byte_tokenizer(encoder=True)),
        "bert": (BertForMaskedLM(config), masked),
        "encoder": (BertModel(config), masked),
    }
    for name, (model, tokenizer) in made.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.mark.sampled(2)
@pytest.mark.parametrize("task", [task if task in ("text-generation", "fill-mask") else _slow(task) for task in TASKS])
def test_from_rows_to_record_and_back(folders, tmp_path, task):
    model, options = TASKS[task]
    rows, asked = {**ROWS, **MORE_ROWS}[task], {**ASKED, **MORE_ASKED}[task]
    splits = DatasetDict({split: Dataset.from_dict(rows) for split in ("train", "validation", "test")})
    config = TransferConfig(model=str(folders / model), dataset="rows", task=task, adapter="lora", **options)
    record = finetune(config, arguments(tmp_path / "run", learning_rate=1e-2), splits=splits)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= FILES
    assert not files & {"config.json", "model.safetensors", "training_args.bin"}
    assert ("generation_config.json" in files) == (task in ("text-generation", "summarization", "translation"))
    assert record.adapter["name"] == "lora"
    assert record.model_class.startswith(("Bert", "Llama", "T5"))
    Dataset.from_dict(rows).to_json(tmp_path / "rows.jsonl")
    again = evaluate_run(tmp_path / "run", str(tmp_path / "rows.jsonl"))
    for figure, value in record.metrics.items():
        assert again["metrics"][figure] == pytest.approx(value, rel=1e-4), figure
    Dataset.from_dict(asked).to_json(tmp_path / "asked.jsonl")
    assert predict_run(tmp_path / "run", tmp_path / "asked.jsonl", tmp_path / "answers.jsonl") == 1


def test_masks_from_a_base_without_an_output_layer(folders, tmp_path):
    """The new layers learn, are saved and come back; the tied matrix stays the base's."""
    splits = DatasetDict({s: Dataset.from_dict(ROWS["fill-mask"]) for s in ("train", "validation", "test")})
    config = TransferConfig(model=str(folders / "encoder"), dataset="rows", task="fill-mask", adapter="lora")
    args = arguments(tmp_path / "run", load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch")
    record = finetune(config, args, splits=splits)
    Dataset.from_dict(ROWS["fill-mask"]).to_json(tmp_path / "rows.jsonl")
    again = evaluate_run(tmp_path / "run", str(tmp_path / "rows.jsonl"))
    assert again["metrics"]["perplexity"] == pytest.approx(record.metrics["perplexity"], rel=1e-4)
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert any("transform.dense.weight" in name for name in saved)
    assert not any("decoder" in name or "word_embeddings" in name for name in saved)


def train(model_folder, folder, **changes):
    config = TransferConfig(model=model_folder, dataset="rows", validation_fraction=0.3, **changes)
    args = TrainingArguments(
        str(folder), num_train_epochs=2, per_device_train_batch_size=8, learning_rate=1e-2, report_to="none",
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    return finetune(config, args, splits=DatasetDict({"train": Dataset.from_dict(reviews())}))


class _Keep(TrainerCallback):
    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.model = model


@pytest.fixture
def trained_model(monkeypatch):
    """The model as it was when training ended."""
    keep = _Keep()
    make = recipe.make_trainer
    monkeypatch.setattr(recipe, "make_trainer", lambda prepared, *callbacks: make(prepared, keep, *callbacks))
    return keep


NAMES = ["lora", "dora", "rslora", "pissa", "olora", "lora+", "adalora", "ia3", "vera", "oft", "boft", "ln-tuning",
         "prefix", "prompt", "p-tuning"]  # fmt: skip
QUICK = ("lora", "pissa", "adalora", "prompt")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", [name if name in QUICK else _slow(name) for name in NAMES])
def test_what_is_saved_answers_as_what_was_trained(model_folder, tmp_path, trained_model, name):
    """Bit for bit; to rounding where the adapter was made of the weights, or its ranks were scored."""
    record = train(model_folder, tmp_path / "run", adapter=name)
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 7, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    loaded = load_run_model(tmp_path / "run", record).eval()
    with torch.no_grad():
        before, after = trained_model.model.eval()(**inputs).logits, loaded(**inputs).logits
    if name in ("pissa", "olora", "adalora"):
        assert torch.allclose(before, after, atol=1e-6)
        assert PeftConfig.from_pretrained(tmp_path / "run").peft_type.value == "LORA"
    else:
        assert torch.equal(before, after)
    untrained = BertModel.from_pretrained(model_folder)
    if name not in ("prefix", "prompt", "p-tuning"):
        with torch.no_grad(), loaded.disable_adapter():
            base = loaded.get_base_model().bert(**inputs).last_hidden_state
            assert torch.allclose(base, untrained.eval()(**inputs).last_hidden_state, atol=1e-6)


def test_adalora_leaves_ranks_out(model_folder, tmp_path):
    train(model_folder, tmp_path / "run", adapter={"name": "adalora", "init_r": 6, "target_r": 2})
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    ranks = [value.shape[0] for name, value in weights.items() if "lora_A" in name]
    assert len(ranks) == 18
    assert sum(ranks) < 18 * 6
    saved = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert sorted(saved["rank_pattern"].values()) == sorted(ranks)


def test_lora_with_a_schedule_norms_and_rates(model_folder, tmp_path):
    record = train(
        model_folder,
        tmp_path / "run",
        adapter={"name": "lora", "layers": 2, "also_train": ["norms"]},
        strategy="gradual-unfreezing",
        learning_rates="layerwise-decay",
    )
    assert record.phases[0]["groups"] == ["head"]
    assert record.phases[-1]["groups"] == ["layer.1", "layer.2", "head"]
    assert record.rates[-1]["layer.1"] < record.rates[-1]["head"]
    assert "base_model: " not in (tmp_path / "run" / "README.md").read_text().split("---")[1]
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert any("LayerNorm" in name for name in saved)
    assert any(name.endswith("classifier.weight") for name in saved)


def test_a_run_of_an_adapter_is_not_written_over(model_folder, tmp_path):
    train(model_folder, tmp_path / "run", adapter="lora")
    with pytest.raises(ValueError, match="holds another run"):
        train(model_folder, tmp_path / "run", adapter="lora")
    with pytest.raises(ValueError, match="holds an adapter. Merge it first"):
        train(str(tmp_path / "run"), tmp_path / "next")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("output", ["both", "merged"])
def test_the_adapter_is_merged_when_asked(model_folder, tmp_path, output):
    record = train(model_folder, tmp_path / "run", adapter="lora", adapter_output=output)
    merged = tmp_path / "run" / ("merged" if output == "both" else "")
    assert {path.name for path in merged.iterdir()} >= {"model.safetensors", "config.json", "README.md"}
    assert (tmp_path / "run" / "adapter_model.safetensors").exists() == (output == "both")
    assert record.path == tmp_path / "run" / "transfer_record.json"
    assert "AutoPeft" not in (merged / "README.md").read_text()
    Dataset.from_dict(reviews()).to_json(tmp_path / "rows.jsonl")
    found = [evaluate_run(folder, str(tmp_path / "rows.jsonl"))["metrics"] for folder in (merged, tmp_path / "run")]
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("strategy", ["feature-extraction", "bitfit", "norm-only"])
def test_a_strategy_that_leaves_the_adapter_out_is_refused(model_folder, tmp_path, strategy):
    with pytest.raises(ValueError, match=f"with the strategy `{strategy}` only what stands beside it does"):
        train(model_folder, tmp_path / "run", adapter="lora", strategy=strategy)


def test_the_record_tells_what_ever_learns_and_what_is_saved(model_folder, tmp_path):
    record = train(model_folder, tmp_path / "run", adapter="pissa", strategy={"name": "freeze-first", "k": 1})
    assert record.adapter["trainable_parameters"] == record.phases[-1]["trainable_parameters"]
    assert (record.adapter["saved_as"], record.adapter["saved_rank"]) == ("LORA", 2 * record.adapter["r"])
    saved = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(Path(model_folder).resolve())


def test_what_cannot_be_merged_is_told_before_training(model_folder, tmp_path):
    with pytest.raises(ValueError, match="nothing to merge"):
        train(model_folder, tmp_path / "run", adapter="prompt", adapter_output="merged")


def test_prompts_leave_room_for_the_text(tmp_path, tokenizer):
    """40 places, 10 of them for prompts: 30 tokens of a text are read."""
    BertModel(BertConfig(**TINY)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = TransferConfig(
        model=str(tmp_path / "base"), dataset="rows", adapter={"name": "prompt", "num_virtual_tokens": 10}
    )
    long = {"text": ["a fine warm film " * 12] * 20, "label": [0, 1] * 10}
    args = TrainingArguments(str(tmp_path / "run"), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
    prepared = prepare(config, args, splits=DatasetDict({"train": Dataset.from_dict(long)}))
    assert max(prepared.encoded["train"]["length"]) == 30
    trainer = make_trainer(prepared)
    attach(trainer, schedule=prepared.strategy, groups=prepared.groups)
    trainer.train()


def test_a_writer_with_prompts_is_measured_on_its_text():
    """The outputs of learned tokens are no outputs of the text."""
    logits, labels = torch.randn(2, 9, 5), torch.randint(0, 5, (2, 6))
    assert torch.equal(shifted_sums(logits, labels), shifted_sums(logits[:, 3:], labels))
    by_hand = torch.nn.functional.cross_entropy(logits[0, 3:-1], labels[0, 1:], reduction="sum")
    assert shifted_sums(logits, labels)[0, 0] == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prompt", "p-tuning", "prefix"])
def test_a_writer_learns_prompts(folders, tmp_path, name):
    splits = DatasetDict({s: Dataset.from_dict(ROWS["raw"]) for s in ("train", "validation", "test")})
    config = TransferConfig(
        model=str(folders / "llama"), dataset="rows", task="text-generation", max_length=32, max_target_length=4,
        adapter={"name": name, "num_virtual_tokens": 4},
    )  # fmt: skip
    record = finetune(config, arguments(tmp_path / "run", learning_rate=1e-2), splits=splits)
    Dataset.from_dict(ROWS["raw"]).to_json(tmp_path / "rows.jsonl")
    again = evaluate_run(tmp_path / "run", str(tmp_path / "rows.jsonl"))
    assert again["metrics"]["perplexity"] == pytest.approx(record.metrics["perplexity"], rel=1e-4)
    assert len(record.samples) > 0
