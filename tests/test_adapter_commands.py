"""Runs made of runs: `merge`, `combine` and `extract`."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    TrainingArguments,
    set_seed,
)

from hf_transfer_plugin.adapters.loading import is_adapter
from hf_transfer_plugin.cli import main as cli
from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.recipes import evaluate_run, finetune, pretrained
from hf_transfer_plugin.recipes.adapter_runs import keep_merged, merge_run
from hf_transfer_plugin.recipes.derived_runs import combine_runs, extract_run
from hf_transfer_plugin.recipes.trained import base_of_run, load_bare_model, load_run_model
from hf_transfer_plugin.record import TransferRecord
from tests.conftest import TINY, reviews

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
TEXTS = ["a fine warm film", "a dull cold film", "great fun"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model_folder):
    """Two LoRA runs and one in full, from one base."""
    folder = tmp_path_factory.mktemp("runs")
    Dataset.from_dict(reviews()).to_csv(str(folder / "rows.csv"), index=False)
    for name, seed, adapter in (("one", 0, "lora"), ("two", 1, "lora"), ("full", 0, None)):
        args = TrainingArguments(
            str(folder / name), max_steps=6, learning_rate=2e-2, seed=seed, use_cpu=True, report_to="none"
        )
        changes = {"adapter": {"name": "lora", "r": 4}} if adapter else {"strategy": "full"}
        finetune(TransferConfig(model=model_folder, dataset=str(folder / "rows.csv"), **changes), args)
    return folder


def answers(model, folder):
    words = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**words).logits


def load_adapter_weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def loaded(folder):
    return load_run_model(folder, TransferRecord.load(folder))


def test_a_merged_run_is_a_whole_model_that_answers_alike(runs, tmp_path, capsys):
    output = tmp_path / "merged"
    assert cli(["merge", str(runs / "one"), str(output)]) == 0
    out = capsys.readouterr().out
    assert f"Merged 20 layers in float32 into {output}." in out
    assert "at most (allowed: 0.0001)" in out
    assert " kB as an adapter, " in out
    assert not is_adapter(output)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert output.stat().st_mode & 0o777 == 0o755
    plain = AutoModelForSequenceClassification.from_pretrained(output)
    assert plain.config.id2label == dict(enumerate(TransferRecord.load(output).class_names))
    expected = answers(loaded(runs / "one"), output)
    assert torch.allclose(answers(plain, output), expected, atol=1e-4)
    rows = str(runs / "rows.csv")
    assert evaluate_run(output, rows)["metrics"] == pytest.approx(
        evaluate_run(runs / "one", rows)["metrics"], abs=1e-5
    )
    before, after = TransferRecord.load(runs / "one"), TransferRecord.load(output)
    assert after.metrics == before.metrics
    assert "The adapter was merged into the base" in (output / "README.md").read_text()


def test_a_run_over_a_quantised_base_is_merged_on_request_only(runs, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(runs / "one", source)
    record = TransferRecord.load(source)
    record.adapter["base_precision"] = "4bit"
    record.save(source)
    with pytest.raises(ValueError, match="was trained over a base in 4bit, .* Add `--unquantised` to merge it into"):
        merge_run(source, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    merge_run(source, tmp_path / "merged", unquantised=True)
    assert TransferRecord.load(tmp_path / "merged").metrics == {}
    assert torch.allclose(
        answers(loaded(tmp_path / "merged"), source), answers(loaded(runs / "one"), source), atol=1e-4
    )


@pytest.mark.slow
def test_a_resumed_run_is_merged_anew(runs, tmp_path):
    shutil.copytree(runs / "one", tmp_path / "run")
    first = keep_merged(tmp_path / "run", alone=False)
    file = tmp_path / "run" / "adapter_model.safetensors"
    save_file({name: value + 0.1 for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    replace(first, metrics={"accuracy": 0.25}, created="2030-01-01").save(tmp_path / "run")
    keep_merged(tmp_path / "run", alone=False)
    merged = tmp_path / "run" / "merged"
    assert TransferRecord.load(merged).metrics == {"accuracy": 0.25}
    expected = answers(loaded(tmp_path / "run"), merged)
    assert torch.allclose(answers(loaded(merged), merged), expected, atol=1e-4)
    assert (expected - answers(loaded(runs / "one"), merged)).abs().max() > 1e-2


@pytest.mark.parametrize("there", ["notes", "run"])
def test_a_merging_that_fails_tells_that_the_run_is_whole(runs, tmp_path, there):
    """A folder that is no merged model of this run is nobody's to delete."""
    run = tmp_path / "run"
    shutil.copytree(runs / "one", run)
    if there == "notes":
        (run / "merged").mkdir()
        (run / "merged" / "notes.txt").write_text("mine")
    else:
        shutil.copytree(runs / "full", run / "merged")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    told = (
        rf"its run is whole in '{run}', but with the adapter, which was not merged: `output` must be a new folder.*"
        rf"`hf-transfer-plugin merge {run} OUTPUT`.*`hf-transfer-plugin push {run}`"
    )
    with pytest.raises(RuntimeError, match=told):
        keep_merged(run, alone=True)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    assert torch.equal(answers(loaded(run), run), answers(loaded(runs / "one"), run))


@pytest.mark.slow
def test_a_base_that_was_rounded_to_sixteen_bits_is_merged_as_it_was_saved(runs, tmp_path, model_folder, capsys):
    """The head beside the adapter learned in 32 bits, and stays so."""
    args = TrainingArguments(str(tmp_path / "run"), max_steps=4, bf16=True, use_cpu=True, report_to="none")
    chosen = {"adapter": {"name": "lora", "r": 4}, "base_precision": "bfloat16"}
    finetune(TransferConfig(model=model_folder, dataset=str(runs / "rows.csv"), **chosen), args)
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    head = next(value for name, value in saved.items() if name.endswith("classifier.weight"))
    assert not torch.equal(head, head.bfloat16().float())
    assert cli(["merge", str(tmp_path / "run"), str(tmp_path / "merged")]) == 0
    assert "in float32 into" in capsys.readouterr().out
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(plain.classifier.weight, head)
    expected = answers(loaded(tmp_path / "run"), tmp_path / "run")
    assert (answers(plain, tmp_path / "run") - expected).abs().max() <= 1e-4


def test_a_base_that_was_saved_in_sixteen_bits_does_not_round_the_head(runs, tmp_path, model_folder):
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    BertModel.from_pretrained(model_folder).to(torch.bfloat16).save_pretrained(base)
    record = TransferRecord.load(runs / "one")
    model = load_run_model(runs / "one", record, base=str(base))
    head = load_adapter_weights(runs / "one")["base_model.model.classifier.weight"]
    assert not torch.equal(head, head.bfloat16().float())
    assert torch.equal(model.base_model.model.classifier.modules_to_save["default"].weight, head)
    table = model.get_base_model().bert.embeddings.word_embeddings.weight
    assert table.dtype == torch.float32
    assert torch.equal(table, BertModel.from_pretrained(base).embeddings.word_embeddings.weight.float())
    merge_run(runs / "one", tmp_path / "merged", base=str(base))
    assert torch.equal(load_file(tmp_path / "merged" / "model.safetensors")["classifier.weight"], head)


@pytest.mark.slow
def test_two_runs_are_combined_and_all_are_measured(runs, tmp_path, capsys):
    output, rows = tmp_path / "both", str(runs / "rows.csv")
    words = ["combine", str(runs / "one"), str(runs / "two"), "--weights", "0.7", "0.3", "--output_dir", str(output)]
    assert cli([*words, "--dataset", rows]) == 0
    out = capsys.readouterr().out
    assert "Combined by cat: 0.7 of one, 0.3 of two." in out
    assert "has rank 8 and " in out
    assert [line.split() for line in out.splitlines() if line.startswith("metric")] == [
        ["metric", "one", "two", "both"]
    ]
    record = TransferRecord.load(output)
    assert record.metrics == pytest.approx(evaluate_run(output, rows)["metrics"])
    accuracies = [evaluate_run(runs / name, rows)["metrics"]["accuracy"] for name in ("one", "two")]
    found = next(line.split() for line in out.splitlines() if line.startswith("accuracy"))
    assert [float(cell) for cell in found[1:3]] == pytest.approx(accuracies, abs=1e-3)
    assert record.strategy["runs"] == ["one", "two"]
    assert record.strategy["weights"] == [0.7, 0.3]
    assert record.adapter["r"] == 8
    assert record.phases == []
    assert record.metrics_split == "train"
    assert record.dataset["splits"] == {"train": 40}
    card = (output / "README.md").read_text()
    assert "combine" in card
    one, two = (load_adapter_weights(runs / name) for name in ("one", "two"))
    both = load_adapter_weights(output)
    for name, value in both.items():
        if name.endswith("classifier.weight"):
            assert torch.allclose(value, 0.7 * one[name] + 0.3 * two[name], atol=1e-6)
            break
    else:
        pytest.fail("the head is not in the file")


@pytest.mark.parametrize("apart", ["folder", "revision"])
def test_bases_of_one_name_are_not_taken_for_one(runs, tmp_path, model_folder, apart):
    for name in ("one", "two"):
        shutil.copytree(runs / name, tmp_path / name)
        file = tmp_path / name / "adapter_config.json"
        config = json.loads(file.read_text())
        if apart == "folder":
            base = shutil.copytree(model_folder, tmp_path / f"for-{name}" / "tiny-bert")
            config |= {"base_model_name_or_path": str(base)}
        else:
            config |= {"base_model_name_or_path": "jane/base", "revision": f"for-{name}"}
        file.write_text(json.dumps(config))
    both = [tmp_path / "one", tmp_path / "two"]
    with pytest.raises(ValueError, match="must have the same base, .*for-one.* and .*for-two.*name it with `--base`"):
        combine_runs(both, [1, 1], tmp_path / "new")
    assert combine_runs(both, [1, 1], tmp_path / "new", base=model_folder)["rank"] == 8


def test_one_base_may_be_named_in_two_ways(runs, tmp_path, model_folder):
    shutil.copytree(runs / "two", tmp_path / "two")
    (tmp_path / "link").symlink_to(model_folder)
    file = tmp_path / "two" / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "link"), "revision": "v1"}
    file.write_text(json.dumps(config))
    assert combine_runs([runs / "one", tmp_path / "two"], [1, 1], tmp_path / "new")["rank"] == 8


def test_what_a_combination_does_not_measure_it_does_not_claim(runs, tmp_path, capsys):
    words = ["combine", str(runs / "one"), str(runs / "two"), "--weights", "1", "1"]
    assert cli([*words, "--combination_type", "svd", "--rank", "3", "--output_dir", str(tmp_path / "both")]) == 0
    assert "Its metrics are not known: add `--dataset` here" in capsys.readouterr().out
    record = TransferRecord.load(tmp_path / "both")
    assert record.metrics == record.intervals == record.baselines == record.calibration == {}
    assert record.errors == record.confusion_matrix == []
    assert record.adapter["r"] == 3
    splits = TransferRecord.load(runs / "one").dataset["splits"]
    assert record.dataset["splits"] == {"train": 2 * splits["train"]}
    assert "## Results" not in (tmp_path / "both" / "README.md").read_text()


@pytest.mark.slow
def test_a_full_run_becomes_a_small_one_and_tells_what_it_loses(runs, tmp_path, capsys):
    output, rows = tmp_path / "small", str(runs / "rows.csv")
    other = tmp_path / "other.csv"
    Dataset.from_dict(reviews(20)).to_csv(str(other), index=False)
    assert cli(["extract", str(runs / "full"), str(output), "--energy", "0.95", "--dataset", str(other)]) == 0
    out = capsys.readouterr().out
    assert "Missing of all changes: " in out
    assert "Taken over whole: pooler, classifier, 7 LayerNorm." in out
    assert "Lost: 18 bias, " in out
    assert next(line.split() for line in out.splitlines() if line.startswith("metric")) == ["metric", "full", "small"]
    assert is_adapter(output)
    record = TransferRecord.load(output)
    assert record.strategy["name"] == "extract"
    assert record.strategy["energy"] == 0.95
    assert record.metrics_split == "other.csv train"
    assert record.metrics == pytest.approx(evaluate_run(output, str(other))["metrics"])
    gap = (answers(loaded(output), output) - answers(loaded(runs / "full"), output)).abs().max()
    base, _ = load_bare_model(base_of_run(runs / "full", record), runs / "full", record)
    assert gap < 0.2 * (answers(base, output) - answers(loaded(runs / "full"), output)).abs().max()
    assert evaluate_run(output, rows)["rows"] == 40
    merge_run(output, tmp_path / "whole")
    assert torch.allclose(answers(loaded(tmp_path / "whole"), output), answers(loaded(output), output), atol=1e-4)


def test_a_whole_rank_is_chosen_for_all_layers(runs, tmp_path, capsys):
    assert cli(["extract", str(runs / "full"), str(tmp_path / "small"), "--rank", "16"]) == 0
    out = capsys.readouterr().out
    assert "That is no smaller than the model." in out
    assert TransferRecord.load(tmp_path / "small").metrics == {}


def test_a_head_that_the_base_lacks_is_taken_over_whole(tmp_path, model_folder):
    """It is random in the base, and other each time, so that nothing can be told from a difference to it."""
    rows = DatasetDict({split: Dataset.from_dict({"text": reviews()["text"]}) for split in ("train", "test")})
    args = TrainingArguments(str(tmp_path / "full"), max_steps=3, learning_rate=1e-2, use_cpu=True, report_to="none")
    chosen = {"task": "fill-mask", "strategy": "full", "max_length": 16}
    finetune(TransferConfig(model=model_folder, dataset="rows", **chosen), args, splits=rows)
    report = extract_run(tmp_path / "full", tmp_path / "small", energy=0.999)
    assert {"cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"} <= set(report["whole"])
    assert not any("cls" in name for name in report["modules"])
    assert "cls.predictions.bias" in report["lost"]
    found = []
    for seed in (1, 2):
        set_seed(seed)
        found.append(answers(loaded(tmp_path / "small"), tmp_path / "small"))
    assert torch.equal(*found)
    whole = loaded(tmp_path / "full").cls.predictions.transform.dense.weight
    taken = loaded(tmp_path / "small").get_base_model().cls.predictions.transform.dense.modules_to_save["default"]
    assert torch.equal(taken.weight, whole)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge", "{full}", "{new}"], "A run with an adapter is needed, but .*full' holds a whole model"),
        (["merge", "{one}", "{two}"], "`output` must be a new folder, but .*two' exists. Delete it or name another"),
        (["merge", "{new}", "{new}"], "Expected a run folder with a transfer_record.json"),
        (["merge", "{one}"], "the following arguments are required: output. Run `hf-transfer-plugin merge --help`"),
        (["extract", "{one}", "{new}"], "must hold a whole model to make a LoRA of, but .*one' holds an adapter"),
        (["extract", "{full}", "{new}", "--energy", "2"], "`energy` must be more than 0 and at most 1, but got 2.0"),
        (["extract", "{full}", "{new}", "--base", "{wide}"], r"parameters differ in shape, first `bert.embeddings"),
        (["combine", "{one}", "{full}", "--weights", "1", "1", "--output_dir", "{new}"], "but .*full' holds a whole"),
        (["combine", "{one}", "{one}", "--weights", "1", "1", "--output_dir", "{new}"], "must be different folders"),
        (["combine", "{one}", "{two}", "--weights", "1", "--output_dir", "{new}"], "a number for each of 2 adapters"),
        (["combine", "{one}", "{two}", "--output_dir", "{new}"], "arguments are required: --weights"),
        (["combine", "{one}", "{odd}", "--weights", "1", "1", "--output_dir", "{new}"], "same `class_names`, but"),
    ],
)
def test_faults_are_sentences_and_leave_nothing_behind(runs, tmp_path, tokenizer, capsys, words, message):
    places = {name: runs / name for name in ("one", "two", "full")}
    places |= {name: tmp_path / name for name in ("new", "odd", "wide")}
    if "{odd}" in words:
        shutil.copytree(runs / "two", places["odd"])
        replace(TransferRecord.load(places["odd"]), class_names=["no", "yes"]).save(places["odd"])
    if "{wide}" in words:
        BertModel(BertConfig(**{**TINY, "hidden_size": 32})).save_pretrained(places["wide"])
    there = sorted(tmp_path.iterdir())
    assert cli([word.format(**places) for word in words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert sorted(tmp_path.iterdir()) == there


def test_a_measurement_that_fails_leaves_no_run(runs, tmp_path):
    with pytest.raises(ValueError, match="no-such.csv"):
        combine_runs([runs / "one", runs / "two"], [1, 1], tmp_path / "both", dataset=str(tmp_path / "no-such.csv"))
    with pytest.raises(ValueError, match="no-such.csv"):
        extract_run(runs / "full", tmp_path / "small", rank=2, dataset=str(tmp_path / "no-such.csv"))
    assert list(tmp_path.iterdir()) == []


def test_the_base_is_found_or_asked_for(runs, tmp_path, model_folder):
    record = TransferRecord.load(runs / "one")
    assert base_of_run(runs / "one", record) == model_folder
    assert base_of_run(runs / "full", TransferRecord.load(runs / "full")) == model_folder
    moved = tmp_path / "moved"
    shutil.copytree(runs / "one", moved)
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone/base"}))
    with pytest.raises(ValueError, match="started from '/gone/base', which is not here, and its record names no"):
        load_run_model(moved, record)
    assert base_of_run(moved, replace(record, base_model_id="jane/base")) == "jane/base"
    found = load_run_model(moved, record, base=model_folder)
    assert torch.equal(answers(found, runs / "one"), answers(loaded(runs / "one"), runs / "one"))


def test_a_base_elsewhere_is_named_to_measure_and_to_answer(runs, tmp_path, model_folder, capsys):
    moved, rows = tmp_path / "moved", str(runs / "rows.csv")
    shutil.copytree(runs / "one", moved)
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone/base"}))
    assert cli(["evaluate", str(moved), "--dataset", rows]) == 2
    assert "Name the folder or Hub id of the base with `--base`." in capsys.readouterr().err
    assert cli(["evaluate", str(moved), "--dataset", rows, "--base", model_folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == evaluate_run(runs / "one", rows)["metrics"]
    output = tmp_path / "answers.jsonl"
    assert cli(["predict", str(moved), rows, "--output", str(output), "--base", model_folder]) == 0
    assert len(output.read_text().splitlines()) == 40
    assert cli(["evaluate", str(runs / "full"), "--dataset", rows, "--base", model_folder]) == 2
    assert re.search("but .*full' holds a whole model. Leave `--base` out", capsys.readouterr().err)


def test_a_base_in_a_folder_near_by_is_found_from_elsewhere(runs, tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(Path(model_folder).parent)
    base, rows, moved = Path(model_folder).name, str(runs / "rows.csv"), tmp_path / "moved"
    shutil.copytree(runs / "one", moved)
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone/base"}))
    told = combine_runs([moved, runs / "two"], [1, 1], tmp_path / "both", base=base, dataset=rows)
    extract_run(runs / "full", tmp_path / "small", rank=2, base=base)
    monkeypatch.chdir(tmp_path)
    assert list(told["measured"]) == [str(moved), str(runs / "two"), str(tmp_path / "both")]
    for made in ("both", "small"):
        assert base_of_run(made, TransferRecord.load(made)) == str(Path(model_folder).resolve())
        assert answers(loaded(made), made).shape == (3, 2)


def test_an_extracted_run_names_the_revision_of_its_base(runs, tmp_path, model_folder, monkeypatch):
    shutil.copytree(runs / "full", tmp_path / "full")
    file = tmp_path / "full" / "transfer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model": "jane/base", "model_revision": "v2"}))
    load = pretrained._load

    def local(auto_class, chosen, **settings):
        here = model_folder if chosen.model == "jane/base" else chosen.model
        return load(auto_class, replace(chosen, model=here), **settings)

    monkeypatch.setattr(pretrained, "_load", local)
    extract_run(tmp_path / "full", tmp_path / "small", rank=2)
    config = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("jane/base", "v2")


class _Loaded(Exception):
    """Stops a loading that has told what it loads."""


@pytest.mark.parametrize(
    ("source", "config", "base", "revision"),
    [
        ("one", {"base_model_name_or_path": "jane/base", "revision": "v2"}, None, "v2"),
        ("one", {"base_model_name_or_path": "jane/base", "revision": None}, None, None),
        ("one", {"base_model_name_or_path": "jane/base", "revision": "v2"}, "jane/base", "v2"),
        ("one", {"base_model_name_or_path": "jane/base", "revision": "v2"}, "jane/other", None),
        ("one", {"revision": "v2"}, None, None),
        ("full", {"model": "jane/base", "model_revision": "v2"}, None, "v2"),
        ("full", {"model_revision": "v2"}, None, None),
    ],
)
def test_the_base_is_of_the_revision_that_the_run_started_from(
    runs, tmp_path, monkeypatch, source, config, base, revision
):
    shutil.copytree(runs / source, tmp_path / "run")
    file = tmp_path / "run" / ("adapter_config.json" if source == "one" else "transfer_config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    asked, load = [], pretrained._load

    def spy(auto_class, chosen, **settings):
        if chosen.model == str(tmp_path / "run"):
            return load(auto_class, chosen, **settings)
        asked.append((chosen.model, chosen.model_revision))
        raise _Loaded

    monkeypatch.setattr(pretrained, "_load", spy)
    make = merge_run if source == "one" else extract_run
    with pytest.raises(_Loaded):
        make(tmp_path / "run", tmp_path / "new", base=base)
    assert [found for _, found in asked] == [revision]
    named = config.get("base_model_name_or_path", config.get("model"))
    assert named is None or asked[0][0] == (base or named)


@pytest.mark.parametrize("name", ["merge", "combine", "extract"])
def test_help_has_an_example(name, capsys):
    with pytest.raises(SystemExit):
        cli([name, "--help"])
    assert f"Example:\n  hf-transfer-plugin {name} " in capsys.readouterr().out
