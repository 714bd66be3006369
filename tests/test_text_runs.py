"""Tasks that write or guess words, from rows to record: tiny models through the whole path."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, Seq2SeqTrainingArguments, TrainerCallback

from hf_transfer_plugin import TransferConfig, finetune
from hf_transfer_plugin.recipes import evaluate_run, predict_run
from hf_transfer_plugin.recipes.finetuning import make_trainer
from hf_transfer_plugin.recipes.preparing import prepare
from hf_transfer_plugin.tasks.decoding import write_texts
from tests.tiny_writers import CORPUS, byte_tokenizer, tiny_llama, tiny_t5

TALK = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is Paris."}]
ROWS = {
    "text-generation": {"messages": [TALK] * 8},
    "raw": {"text": CORPUS * 4},
    "summarization": {"document": CORPUS * 2, "summary": ["A cat.", "Paris.", "Spanish.", "A river."] * 2},
    "translation": {"en": CORPUS * 2, "es": ["El gato.", "Es París.", "Un texto.", "Un río."] * 2},
    "fill-mask": {"text": CORPUS * 4},
}
ASKED = {
    "text-generation": {"messages": [TALK[:1]]},
    "raw": {"text": ["The cat"]},
    "summarization": {"document": CORPUS[:1]},
    "translation": {"en": CORPUS[:1]},
    "fill-mask": {"text": ["The cat [MASK] here."]},
}
CELLS = [
    ("text-generation", "llama", "perplexity", "commonest_token"),
    ("raw", "llama", "perplexity", "commonest_token"),
    ("summarization", "t5", "rougeL", "lead"),
    ("translation", "llama", "chrf", "copy"),
    ("fill-mask", "bert", "token_accuracy", "commonest_token"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved tiny models, each with its tokenizer."""
    root = tmp_path_factory.mktemp("writers")
    masked = byte_tokenizer(encoder=True, template=None, mask_token="[MASK]")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    bert = BertForMaskedLM(BertConfig(**sizes, vocab_size=len(masked), max_position_embeddings=64))
    made = {
        "llama": (tiny_llama(), byte_tokenizer()),
        "t5": (tiny_t5(), byte_tokenizer(encoder=True)),
        "bert": (bert, masked),
    }
    for name, (model, tokenizer) in made.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def splits(name):
    return DatasetDict({split: Dataset.from_dict(ROWS[name]) for split in ("train", "validation", "test")})


def config(folders, name, model, **changes):
    task = "text-generation" if name == "raw" else name
    writes = {} if name == "fill-mask" else {"max_target_length": 6}
    return TransferConfig(model=str(folders / model), dataset="rows", task=task, **writes, **changes)


def arguments(output, **changes):
    given = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True}
    return Seq2SeqTrainingArguments(str(output), use_cpu=True, **{**given, **changes})


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "model", "metric", "baseline"), CELLS, ids=[cell[0] for cell in CELLS])
def test_from_rows_to_record_and_back(folders, tmp_path, name, model, metric, baseline):
    record = finetune(config(folders, name, model), arguments(tmp_path / "run"), splits=splits(name))
    assert record.metrics[metric] >= 0
    assert baseline in record.baselines
    assert record.examples
    Dataset.from_dict(ROWS[name]).to_json(tmp_path / "rows.jsonl")
    again = evaluate_run(tmp_path / "run", str(tmp_path / "rows.jsonl"))
    for figure, value in record.metrics.items():
        assert again["metrics"][figure] == pytest.approx(value, rel=1e-4), figure
    Dataset.from_dict(ASKED[name]).to_json(tmp_path / "asked.jsonl")
    assert predict_run(tmp_path / "run", tmp_path / "asked.jsonl", tmp_path / "answers.jsonl") == 1
    assert "prediction" in json.loads((tmp_path / "answers.jsonl").read_text())


class _Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            control.should_save = control.should_training_stop = True


@pytest.mark.parametrize("strategy", ["group_by_length", pytest.param("random", marks=pytest.mark.slow)])
def test_a_resumed_run_hides_the_same_words(folders, tmp_path, strategy):
    """Six of twelve steps, amid the second epoch, and then the rest: bit by bit the weights of one run."""
    given = {"num_train_epochs": 3, "train_sampling_strategy": strategy, "save_strategy": "no"}

    def trained(name, *callbacks, resume=None):
        args = arguments(tmp_path / name, **given, resume_from_checkpoint=resume)
        prepared = prepare(config(folders, "fill-mask", "bert"), args, splits=splits("fill-mask"))
        prepared.args.save_strategy = "no"
        trainer = make_trainer(prepared, *callbacks)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = trained("whole").model.state_dict()
    trained("broken", _Stop())
    resumed = trained("broken", resume=str(tmp_path / "broken" / "checkpoint-6")).model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    before = load_file(tmp_path / "broken" / "checkpoint-6" / "model.safetensors")
    assert any(not torch.equal(before[name], whole[name]) for name in before)


SHARED = """
import json, sys
from accelerate import PartialState
from tests.tiny_writers import CORPUS, byte_tokenizer, tiny_llama
from hf_transfer_plugin.tasks.decoding import write_texts
state = PartialState(cpu=True)
processor = byte_tokenizer()
prompts = [processor(text[:size]).input_ids for text, size in zip(CORPUS + CORPUS[:1], (60, 9, 30, 14, 5))]
texts = write_texts(tiny_llama(), processor, prompts, 2, 8, title="Writing")
open(sys.argv[1] + "/" + str(state.process_index), "w").write(json.dumps([prompts, texts]))
state.destroy_process_group()
"""


@pytest.mark.distributed
def test_processes_share_the_writing(tmp_path):
    root = Path(__file__).parents[1]
    (tmp_path / "shared.py").write_text(SHARED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*command, str(tmp_path / "shared.py"), str(tmp_path)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (prompts, first), (_, second) = (json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1))
    assert first == second == write_texts(tiny_llama(), byte_tokenizer(), prompts, 5, 8, title="Writing")


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "model"), [("summarization", "t5"), ("fill-mask", "bert")])
def test_processes_train_in_step_after_measuring_the_model_before(tmp_path, folders, name, model):
    root = Path(__file__).parents[1]
    Dataset.from_dict(ROWS[name]).to_json(str(tmp_path / "rows.jsonl"))
    flags = {
        "task": name,
        "model": str(folders / model),
        "dataset": str(tmp_path / "rows.jsonl"),
        "output_dir": str(tmp_path / "run"),
        "max_length": "24",
        "max_steps": "4",
        "save_steps": "2",
        "save_strategy": "steps",
        "baselines": "true",
        "validation_fraction": "0.3",
        "use_cpu": "true",
        "report_to": "none",
        **({"max_target_length": "8"} if name == "summarization" else {}),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*command, "hf_transfer_plugin", "train", *words],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads((tmp_path / "run" / "transfer_record.json").read_text())
    assert record["hardware"]["processes"] == 2
    assert "perplexity" in record["baselines"]["pretrained"]


def test_smoothed_labels_are_refused_where_the_decoder_reads_them(folders, tmp_path):
    with pytest.raises(ValueError, match="`label_smoothing_factor` takes the labels away"):
        prepare(
            config(folders, "summarization", "t5"),
            arguments(tmp_path / "run", label_smoothing_factor=0.1),
            splits=splits("summarization"),
        )


def test_empty_texts_are_not_left_out_of_the_answers(folders, tmp_path):
    record = finetune(config(folders, "raw", "llama"), arguments(tmp_path / "run", max_steps=1), splits=splits("raw"))
    Dataset.from_dict({"text": ["The cat", " "]}).to_json(tmp_path / "asked.jsonl")
    with pytest.raises(ValueError, match="row 1"):
        predict_run(record.path.parent, tmp_path / "asked.jsonl", tmp_path / "answers.jsonl")


@pytest.mark.parametrize(
    ("task", "rows", "named", "asked"),
    [
        (
            "translation",
            {"translation": [{"en": en, "es": es} for en, es in zip(*ROWS["translation"].values(), strict=True)]},
            {"text_column": "en", "target_column": "es"},
            {"translation": [{"en": CORPUS[0], "es": ""}]},
        ),
        (
            "text-generation",
            {"instruction": ["Say it."] * 8, "input": ["Paris", ""] * 4, "output": ["It is Paris."] * 8},
            {},
            {"instruction": ["Say it."]},
        ),
    ],
    ids=["pairs in objects", "prompts and answers"],
)
def test_columns_of_training_are_found_again(folders, tmp_path, task, rows, named, asked):
    Dataset.from_dict(rows).to_json(tmp_path / "rows.jsonl")
    told = TransferConfig(
        model=str(folders / "llama"),
        dataset=str(tmp_path / "rows.jsonl"),
        task=task,
        max_target_length=6,
        validation_fraction=0.25,
        **named,
    )
    record = finetune(told, arguments(tmp_path / "run", max_steps=1))
    again = evaluate_run(tmp_path / "run", str(tmp_path / "rows.jsonl"))
    assert again["rows"] == 8
    assert again["metrics"].keys() == record.metrics.keys()
    Dataset.from_dict(asked).to_json(tmp_path / "asked.jsonl")
    assert predict_run(tmp_path / "run", tmp_path / "asked.jsonl", tmp_path / "answers.jsonl") == 1
