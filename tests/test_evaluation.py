"""Answers in the order of the rows: evaluating and predicting with a finished run."""

import csv
import json

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments, ViTConfig, ViTModel

from hf_transfer_plugin.cli import main as cli
from hf_transfer_plugin.cli.train import parse
from hf_transfer_plugin.config import ConfigError, TransferConfig
from hf_transfer_plugin.recipes import evaluate_run, finetune, predict_run
from hf_transfer_plugin.recipes.defaults import with_defaults
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.tasks import TASKS
from tests.conftest import BAD, GOOD


def mixed(count):
    """Rows of very different lengths, so that grouping by length changes their order."""
    generator = np.random.default_rng(0)
    texts = [" ".join((GOOD if i % 2 else BAD)[j] for j in generator.integers(0, 5, 1 + i % 4)) for i in range(count)]
    return {"text": texts, "label": [["bad", "good"][i % 2] for i in range(count)]}


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("evaluation")
    Dataset.from_dict(mixed(60)).to_csv(str(folder / "rows.csv"), index=False)
    args = TrainingArguments(str(folder / "run"), max_steps=8, learning_rate=1e-2, use_cpu=True, report_to="none")
    finetune(TransferConfig(model=model_folder, dataset=str(folder / "rows.csv"), validation_fraction=0.4), args)
    return folder


def asked_alone(run, texts):
    """Probabilities of the model asked text by text, without Trainer."""
    model = AutoModelForSequenceClassification.from_pretrained(run / "run")
    tokenizer = AutoTokenizer.from_pretrained(run / "run")
    with torch.no_grad():
        return [model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0].softmax(0) for text in texts]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_every_row_has_its_own_answer(run, tmp_path, suffix):
    rows = mixed(23)
    Dataset.from_dict({"text": rows["text"]}).to_json(str(tmp_path / "new.jsonl"))
    output = tmp_path / f"answers.{suffix}"
    assert predict_run(run / "run", tmp_path / "new.jsonl", output, batch_size=4) == 23
    if suffix == "csv":
        with output.open(newline="") as file:
            found = [{**row, "probabilities": json.loads(row["probabilities"])} for row in csv.DictReader(file)]
    else:
        found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["text"] for row in found] == rows["text"]
    for row, expected in zip(found, asked_alone(run, rows["text"]), strict=True):
        assert list(row["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
        assert row["prediction"] == ["bad", "good"][int(expected.argmax())]
        assert float(row["score"]) == pytest.approx(float(expected.max()), abs=1e-5)


def test_errors_are_those_of_their_rows(run, tmp_path):
    rows = mixed(40)
    rows["label"] = ["bad"] * 40
    Dataset.from_dict(rows).to_csv(str(tmp_path / "rows.csv"), index=False)
    found = evaluate_run(run / "run", str(tmp_path / "rows.csv"), errors=40, batch_size=4)
    chances = [float(row[1]) for row in asked_alone(run, rows["text"])]
    wrong = sorted(((c, t) for c, t in zip(chances, rows["text"], strict=True) if c > 0.5), key=lambda p: -p[0])
    assert wrong
    assert [row["score"] for row in found["errors"]] == pytest.approx([c for c, _ in wrong], abs=1e-5)
    assert {row["text"] for row in found["errors"]} == {t for _, t in wrong}
    assert found["metrics"]["accuracy"] == pytest.approx(1 - len(wrong) / 40)
    assert found["intervals"]["accuracy"][0] <= found["metrics"]["accuracy"] <= found["intervals"]["accuracy"][1]
    assert found["calibration"]["ece"] >= 0


def test_record_tells_intervals_calibration_and_errors_of_the_run(run):
    record = TransferRecord.load(run / "run")
    low, high = record.intervals["accuracy"]
    assert low <= record.metrics["accuracy"] <= high
    assert sum(one["count"] for one in record.calibration["bins"]) == record.dataset["splits"]["validation"]
    assert len(record.errors) <= 4
    for name in ("reliability.png", "confusion.png"):
        assert (run / "run" / name).stat().st_size > 1000
    assert "majority" in record.baselines


def test_no_rows_of_the_data_are_kept_where_none_are_wanted(tmp_path, model_folder, reviews_file):
    args = TrainingArguments(str(tmp_path / "run"), max_steps=1, use_cpu=True, report_to="none")
    record = finetune(TransferConfig(model=model_folder, dataset=reviews_file, demo_examples=0), args)
    assert record.examples == record.errors == record.samples == []


def test_predict_and_evaluate_on_the_command_line(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Dataset.from_dict(mixed(9)).to_csv("rows.csv", index=False)
    assert cli(["predict", str(run / "run"), "rows.csv"]) == 0
    assert "9 answers are in predictions.jsonl." in capsys.readouterr().out
    assert cli(["predict", str(run / "run"), "rows.csv"]) == 2
    assert "`output` must be a new file, but 'predictions.jsonl' exists" in capsys.readouterr().err
    assert cli(["predict", str(run / "run"), "rows.csv", "--output", "a.xlsx"]) == 2
    assert "`output` must end in .jsonl or .csv, but got 'a.xlsx'" in capsys.readouterr().err
    assert cli(["evaluate", str(run / "run"), "--dataset", "rows.csv"]) == 0
    out = capsys.readouterr().out
    assert "95% interval" in out
    assert "Expected calibration error" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_column": "q"}, "`question_column` is of no use to text-classification, which takes .*text_column"),
        ({"packing": True}, "`packing` is of no use to text-classification"),
        ({"stride": 5}, "`stride` is of no use to text-classification"),
    ],
)
def test_fields_of_other_tasks_are_refused(tmp_path, model_folder, reviews_file, change, message):
    args = TrainingArguments(str(tmp_path / "run"), max_steps=1, use_cpu=True, report_to="none")
    with pytest.raises(ConfigError, match=message):
        finetune(TransferConfig(model=model_folder, dataset=reviews_file, **change), args)


def test_a_model_without_such_a_head_is_refused(tmp_path, tokenizer, reviews_file):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(tmp_path / "vit")
    tokenizer.save_pretrained(tmp_path / "vit")
    args = TrainingArguments(str(tmp_path / "run"), max_steps=1, use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=r"\(ViTConfig\) has no head for text-classification. Choose another"):
        finetune(TransferConfig(model=str(tmp_path / "vit"), dataset=reviews_file), args)


def test_a_head_of_no_classes_is_not_solved(tmp_path, model_folder):
    config = TransferConfig(model=model_folder, dataset="x.json", task="question-answering", strategy="lp-ft")
    args = TrainingArguments(str(tmp_path / "run"), max_steps=1, use_cpu=True, report_to="none")
    with pytest.raises(ConfigError, match="'lp-ft' solves an output layer of classes, which question-"):
        finetune(config, args)


def test_evaluating_never_may_be_typed_where_there_is_nothing_to_evaluate_on(tmp_path, model_folder, reviews_file):
    rows = Dataset.from_csv(reviews_file)
    args = TrainingArguments(str(tmp_path / "run"), max_steps=1, eval_strategy="no", use_cpu=True, report_to="none")
    config = TransferConfig(model=model_folder, dataset="memory", validation_fraction=0)
    record = finetune(config, args, splits=DatasetDict({"train": rows, "test": rows}), explicit=("eval_strategy",))
    assert record.metrics_split == "test"


def test_given_columns_stay_beside_the_answers(run, tmp_path):
    rows = {"id": [7, 8], "review": ["a fine warm film", "a dull cold film"], "note": [["x"], []]}
    Dataset.from_dict(rows).to_json(str(tmp_path / "new.jsonl"))
    predict_run(run / "run", tmp_path / "new.jsonl", tmp_path / "out.jsonl", text_column="review")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [list(row) for row in found] == [["id", "review", "note", "prediction", "score", "probabilities"]] * 2
    assert [row["note"] for row in found] == [["x"], []]


@pytest.mark.parametrize(
    "flag",
    [
        {"dataloader_drop_last": True},
        {"batch_eval_metrics": True},
        {"prediction_loss_only": True},
        {"eval_do_concat_batches": False},
    ],
)
def test_arguments_that_keep_outputs_back_are_refused(tmp_path, model_folder, reviews_file, flag):
    args = TrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none", **flag)
    with pytest.raises(ConfigError, match=f"`{next(iter(flag))}` keeps Trainer from giving the outputs for every row"):
        finetune(TransferConfig(model=model_folder, dataset=reviews_file), args)


def test_given_arguments_win_over_those_of_a_task(tmp_path):
    task = TASKS["summarization"]
    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=16, use_cpu=True, report_to="none")
    found = with_defaults(args, (), task)
    assert found.per_device_train_batch_size == 16
    assert found.per_device_eval_batch_size == task.arguments["per_device_eval_batch_size"]
    _, typed, _ = parse(["--task", "summarization", "--model", "m", "--dataset", "d", "--output_dir", "o"])
    assert typed.per_device_train_batch_size == task.arguments["per_device_train_batch_size"]
    words = ["--task", "summarization", "--model", "m", "--dataset", "d", "--output_dir", "o"]
    _, typed, _ = parse([*words, "--per_device_train_batch_size", "16"])
    assert typed.per_device_train_batch_size == 16


def test_hidden_labels_of_test_leave_nothing_to_measure(tmp_path, model_folder, reviews_file):
    rows = Dataset.from_csv(reviews_file)
    hidden = Dataset.from_dict({"text": list(rows["text"]), "label": [-1] * len(rows)})
    args = TrainingArguments(str(tmp_path / "run"), max_steps=1, use_cpu=True, report_to="none")
    config = TransferConfig(model=model_folder, dataset="memory", validation_fraction=0)
    with pytest.raises(ValueError, match="there is no test split, so nothing could be measured"):
        finetune(config, args, splits=DatasetDict({"train": rows, "test": hidden}))


def test_only_logits_are_kept_of_several_outputs():
    logits, states = torch.zeros(4, 2), torch.zeros(4, 9, 16)
    assert TASKS["text-classification"].reduce((logits, states), None) is logits
