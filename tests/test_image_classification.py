"""Image classification from files to card: tiny models through the whole path."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pillow
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    TrainerCallback,
    TrainingArguments,
    ViTImageProcessor,
    pipeline,
)

from hf_transfer_plugin import FrozenPrefixCache, TransferConfig, TransferRecord, finetune
from hf_transfer_plugin.cli import main as cli
from hf_transfer_plugin.features import extract_features
from hf_transfer_plugin.hub import render_card
from hf_transfer_plugin.hub.snippets import getting_started
from hf_transfer_plugin.recipes import evaluate_run, predict_run
from hf_transfer_plugin.recipes.finetuning import make_trainer
from hf_transfer_plugin.recipes.preparing import prepare
from hf_transfer_plugin.tasks.image_classification import IMAGE_CLASSIFICATION, Preparing
from hf_transfer_plugin.trainer import attach
from tests.tiny_pictures import content, picture, processor_of, save_model, write_folder

TASK = "image-classification"
MULTI = "multi_label_classification"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Saved tiny models, made when they are asked for."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def saved(name, **labels):
        key = (name, *labels)
        if key not in made:
            made[key] = save_model(name, root / "-".join(key), head=bool(labels), **labels)
        return made[key]

    return saved


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("pictures"), train=24, test=8))


def arguments(output, **changes):
    given = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "save_strategy": "no"}
    return TrainingArguments(
        str(output), use_cpu=True, report_to="none", disable_tqdm=True, log_level="error", **{**given, **changes}
    )


def config(model, data, **changes):
    return TransferConfig(model=model, dataset=str(data), task=TASK, **changes)


def rows(count=16, label=lambda i: i % 2, kind=None):
    """Pictures in memory."""
    labels = [label(i) for i in range(count)]
    values = [{"bytes": content(picture(i, light=i % 2)), "path": None} for i in range(count)]
    kinds = Features({"image": Image(), "label": kind or Value("int64")})
    return Dataset.from_dict({"image": values, "label": labels}, features=kinds)


def splits(**changes):
    return DatasetDict({split: rows(**changes) for split in ("train", "validation", "test")})


@pytest.fixture(scope="module")
def run(models, pictures, tmp_path_factory):
    """A finished run over a folder of pictures, with the default strategy and all baselines."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    finetune(config(models("vit"), pictures, baselines=True, demo_examples=2), arguments(folder))
    return folder


# The whole path


def test_a_folder_of_classes_becomes_a_model_with_record_and_card(run):
    record = TransferRecord.load(run)
    assert record.class_names == ["dark", "light"]
    assert record.metrics["accuracy"] == 1
    assert record.strategy["name"] == "lp-ft"
    assert record.dataset["splits"] == {"train": 21, "validation": 3, "test": 8}
    assert record.baselines["majority"]["accuracy"] == 0.5
    assert record.baselines["linear_probe"]["accuracy"] == 1
    assert [row["label"] for row in record.examples] == ["dark", "light"]
    assert "image_modes" not in record.dataset
    text = (run / "README.md").read_text()
    assert "pipeline_tag: image-classification" in text
    assert "It knows pictures like those" in text
    assert (run / "examples" / "example-0-image.png").is_file()


def test_the_saved_model_answers_like_a_pipeline(run, pictures, tmp_path):
    output = tmp_path / "answers.jsonl"
    assert predict_run(run, f"{pictures}/test", output) == 8
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    classify = pipeline(TASK, model=str(run))
    for row in answers:
        assert row["image"].endswith(".png")  # the file, not what it holds
        found = {one["label"]: one["score"] for one in classify(row["image"], top_k=None)}
        assert found == pytest.approx(row["probabilities"], abs=1e-6)
    assert {row["prediction"] for row in answers} == {"dark", "light"}
    assert evaluate_run(run, pictures)["metrics"]["accuracy"] == 1


def test_rows_to_answer_are_left_out_only_when_told(run, pictures, tmp_path, caplog, monkeypatch, capsys):
    Path(tmp_path / "photos").mkdir()
    for number in range(3):
        Path(tmp_path / "photos" / f"{number}.png").write_bytes(content(picture(number, light=True)))
    Path(tmp_path / "photos" / "torn.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    assert cli(["predict", str(run), "photos"]) == 2
    assert "torn.png: cannot identify" in capsys.readouterr().err
    assert cli(["predict", str(run), "photos", "--skip_unreadable"]) == 0
    answers = [json.loads(line) for line in Path("predictions.jsonl").read_text().splitlines()]
    assert [Path(row["image"]).name for row in answers] == ["0.png", "1.png", "2.png"]
    assert "Left out, since they cannot be opened: torn.png" in caplog.text


def test_a_single_file_is_predicted(run, pictures, tmp_path):
    file = f"{pictures}/test/dark/24.png"
    assert predict_run(run, file, tmp_path / "one.csv") == 1
    assert "dark" in (tmp_path / "one.csv").read_text()


def test_the_code_on_the_card_runs(run, capsys, monkeypatch):
    monkeypatch.chdir(run)
    code = re.search(r"```python\n(.+?)```", (run / "README.md").read_text(), re.DOTALL).group(1)
    exec(compile(code, "card", "exec"), {})  # noqa: S102
    assert "dark" in capsys.readouterr().out
    card = render_card(TransferRecord.load(run), model="me/model")
    assert 'classify("https://huggingface.co/me/model/resolve/main/examples/example-0-image.png", top_k=None)' in card


def test_errors_are_shown_as_small_pictures(models, tmp_path):
    data = splits(count=12)
    finetune(config(models("resnet"), "rows", strategy="full"), arguments(tmp_path, max_steps=1), splits=data)
    record = TransferRecord.load(tmp_path)
    assert record.errors
    assert all(row["image"].startswith("data:image/") for row in record.errors)
    text = render_card(record, tmp_path / "README.md")
    assert "![error-0-image](examples/error-0-image.png)" in text
    with Pillow.open(tmp_path / "examples" / "error-0-image.png") as image:
        assert max(image.size) <= 96


# Labels


@pytest.mark.slow
def test_several_labels_from_a_metadata_file(models, tmp_path):
    for split, count in {"train": 8, "test": 4}.items():
        (tmp_path / "data" / split).mkdir(parents=True)
        lines = []
        for i in range(count):
            picture(i, light=i % 2).save(tmp_path / "data" / split / f"{i}.png")
            names = [["light"], ["dark", "red"]][i % 2]
            lines.append(json.dumps({"file_name": f"{i}.png", "labels": names}))
        (tmp_path / "data" / split / "metadata.jsonl").write_text("\n".join(lines))
    record = finetune(config(models("vit"), tmp_path / "data", validation_fraction=0.25), arguments(tmp_path / "run"))
    assert (record.problem_type, record.class_names) == (MULTI, ["dark", "light", "red"])
    assert {"accuracy", "f1_macro"} <= record.metrics.keys()
    assert record.examples[0]["label"] in (["light"], ["dark", "red"])
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.problem_type == MULTI


def test_numbers_are_a_regression(models, tmp_path):
    data = DatasetDict({
        split: rows(12, lambda i: i % 2 + 0.5, kind=Value("float32")) for split in ("train", "validation", "test")
    })
    record = finetune(config(models("vit"), "rows", baselines=True), arguments(tmp_path), splits=data)
    assert record.problem_type == "regression"
    assert record.metrics["mse"] < record.baselines["majority"]["mse"] == pytest.approx(0.25)
    assert record.errors[0]["image"].startswith("data:image/")
    assert "every image" in (tmp_path / "README.md").read_text()


def test_a_head_for_other_classes_is_replaced(models, pictures, tmp_path):
    model = models("vit", num_labels=5)
    prepared = prepare(config(model, pictures), arguments(tmp_path))
    assert {"classifier.weight", "classifier.bias"} <= prepared.new_weights
    assert prepared.model.classifier.out_features == 2


def test_a_test_split_without_labels_is_left_out(models, tmp_path):
    names = ClassLabel(names=["dark", "light"])
    data = DatasetDict(
        train=rows(12, kind=names), validation=rows(4, kind=names), test=rows(4, lambda i: -1, kind=names)
    )
    prepared = prepare(config(models("vit"), "rows"), arguments(tmp_path), splits=data)
    assert set(prepared.encoded) == {"train", "validation"}
    assert prepared.data.class_names == ("dark", "light")


# Pixels


def turned(image):
    exif = image.getexif()
    exif[0x0112] = 6  # a camera held on its side
    return content(image, "JPEG", exif=exif, quality=95)


FILES = {
    "colour": lambda: content(picture(1, light=True, size=(50, 31))),
    "large": lambda: content(picture(2, light=False, size=(301, 200)), "JPEG"),
    "gray": lambda: content(picture(3, light=True, mode="L")),
    "palette": lambda: content(picture(4, light=True, mode="P"), transparency=3),
    "alpha": lambda: content(picture(5, light=True, mode="RGBA")),
    "gray-alpha": lambda: content(picture(5, light=True, mode="LA")),
    "one-bit": lambda: content(picture(6, light=True, mode="1")),
    "print": lambda: content(picture(7, light=True, mode="CMYK"), "JPEG"),
    "turned": lambda: turned(picture(8, light=True, size=(40, 20))),
    "animation": lambda: content(picture(9, light=True), "GIF"),
}


@pytest.mark.parametrize("name", ["vit", "mobilenet"])
def test_every_image_gives_the_pixels_of_the_pipeline(name, models, tmp_path):
    folder, processor = models(name), processor_of(name)
    classify = pipeline(TASK, model=folder)
    for kind, make in FILES.items():
        file = tmp_path / f"{kind}.img"
        file.write_bytes(make())
        ours = [
            Preparing(processor)({"image": [value]})["pixel_values"][0]
            for value in ({"bytes": make(), "path": None}, {"bytes": None, "path": str(file)})
        ]
        theirs = classify.preprocess(str(file))["pixel_values"][0]
        assert all(torch.equal(one, theirs) for one in ours), kind


def test_rows_are_prepared_when_they_are_read(models, tmp_path):
    prepared = prepare(config(models("vit"), "rows"), arguments(tmp_path), splits=splits())
    train = prepared.encoded["train"]
    assert train.column_names == ["image", "labels"]
    assert train[0]["pixel_values"].shape == (3, 32, 32)
    features = extract_features(prepared.model, train, IMAGE_CLASSIFICATION.collator(None, None))
    assert features["features"][:].shape == (16, 16)
    assert features["labels"][:].tolist() == [0, 1] * 8


def test_a_processor_that_leaves_sizes_is_refused(models, pictures, tmp_path):
    model = save_model("vit", tmp_path / "model")
    ViTImageProcessor(do_resize=False).save_pretrained(model)
    with pytest.raises(ValueError, match="must come out of the processor in one size.+40, 60.+`crop_size`"):
        prepare(config(model, pictures), arguments(tmp_path / "run"))


# Bad files


def broken(folder):
    write_folder(folder, train=12, test=4)
    (folder / "train" / "dark" / "0.png").write_bytes(content(picture(0, light=False))[:200])
    (folder / "train" / "dark" / "notes.png").write_text("no image")
    return folder


def test_unreadable_images_are_named(models, tmp_path):
    with pytest.raises(ValueError, match=r"2 of 13.+0\.png.+notes\.png.+--skip_unreadable"):
        prepare(config(models("vit"), broken(tmp_path / "data")), arguments(tmp_path / "run"))


def test_unreadable_images_are_left_out_and_counted_where_the_user_says_so(models, tmp_path, caplog):
    given = config(models("vit"), broken(tmp_path / "data"), skip_unreadable=True)
    record = finetune(given, arguments(tmp_path / "run", max_steps=1))
    assert record.dataset["skipped"] == {"train": 2}
    assert sum(record.dataset["splits"].values()) == 15
    assert "notes.png" in caplog.text
    assert "could not be opened and were left out: 2 of train." in (tmp_path / "run" / "README.md").read_text()


def test_images_deeper_than_eight_bits_are_refused(models, tmp_path):
    folder = write_folder(tmp_path / "data", train=12, test=4)
    Pillow.fromarray(np.full((20, 20), 40_000, np.uint16)).save(folder / "train" / "dark" / "deep.png")
    with pytest.raises(ValueError, match="deep.png: 8 bits for each colour are expected, but its mode is I;16"):
        prepare(config(models("vit"), folder), arguments(tmp_path / "run"))


def test_text_columns_are_no_images(models, tmp_path):
    data = DatasetDict(train=Dataset.from_dict({"image": [1, 2], "label": ["a", "b"]}))
    with pytest.raises(ValueError, match="must hold image files, their paths or their bytes, but holds .+int64"):
        prepare(config(models("vit"), "rows"), arguments(tmp_path), splits=data)


def test_colours_are_told_where_they_are_not_all_alike(models, tmp_path):
    data = splits(count=8)
    gray = {"bytes": content(picture(1, light=True, mode="L")), "path": None}
    data["train"] = Dataset.from_dict({"image": [gray] * 8, "label": [0, 1] * 4}, features=data["train"].features)
    prepared = prepare(config(models("vit"), "rows"), arguments(tmp_path), splits=data)
    assert prepared.data.facts == {"image_modes": {"L": 8, "RGB": 16}}
    card = render_card(
        TransferRecord(
            task=TASK,
            base_model="x",
            dataset={"image_modes": {"L": 8, "RGB": 16}, "splits": {"train": 8}, "name": "d"},
        )
    )
    assert "16 RGB, 8 L. All are read as RGB." in card


# Training: batch statistics, strategies, adapters, cache, resume


def statistics(model):
    return {n: b.clone() for n, b in model.named_buffers() if "running" in n or "num_batches" in n}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["mobilenet", "resnet"])
@pytest.mark.parametrize("strategy", ["feature-extraction", '{"name": "freeze-first", "k": 1}'])
def test_frozen_batch_statistics_stay_still_to_the_bit(name, strategy, models, tmp_path):
    prepared = prepare(config(models(name), "rows", strategy=strategy), arguments(tmp_path), splits=splits())
    before = statistics(prepared.model)
    frozen = {
        path
        for path, module in prepared.model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and f"{path}.weight" in names_of(prepared, strategy)
    }
    finetune(config(models(name), "rows", strategy=strategy), arguments(tmp_path / "run"), splits=splits())
    after = load_file(tmp_path / "run" / "model.safetensors")
    still = {n for n in before if n.rpartition(".")[0] in frozen}
    assert still
    assert all(torch.equal(before[n], after[n]) for n in still)
    moved = {n for n in before if n.rpartition(".")[0] not in frozen and n.endswith("running_mean")}
    assert all(not torch.equal(before[n], after[n]) for n in moved)
    assert bool(moved) == (strategy != "feature-extraction")


def names_of(prepared, strategy):
    """Names of what a strategy holds still throughout."""
    groups = prepared.groups[:-1] if strategy == "feature-extraction" else prepared.groups[:1]
    return {name for group in groups for name in group.parameters}


STRATEGIES = ("full", "bitfit", "norm-only", "gradual-unfreezing", "chain-thaw", "plateau", "layer-sampling", "lp-ft")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *(
            pytest.param("vit", s, marks=() if s in ("bitfit", "layer-sampling") else pytest.mark.slow)
            for s in STRATEGIES
        ),
        *(
            pytest.param(n, s, marks=() if s == "lp-ft" else pytest.mark.slow)
            for n in ("convnext", "mobilenet")
            for s in STRATEGIES
        ),
    ],
)
def test_every_strategy_trains_every_kind_of_backbone(name, strategy, models, tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 1} if strategy == "plateau" else {}
    record = finetune(
        config(models(name), "rows", strategy=strategy),
        arguments(tmp_path, max_steps=4, **changes),
        splits=splits(),
    )
    assert np.isfinite(record.metrics["loss"])
    assert record.phases


@pytest.mark.parametrize("adapter", ["lora", pytest.param("ia3", marks=pytest.mark.slow)])
def test_adapters_learn_inside_a_vision_transformer(adapter, models, tmp_path, monkeypatch, capsys):
    record = finetune(config(models("vit"), "rows", strategy=adapter), arguments(tmp_path), splits=splits())
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert record.adapter["trainable_parameters"] < sum(group["parameters"] for group in record.groups) / 2
    assert evaluate_run_on(tmp_path, splits()["test"])["metrics"]["accuracy"] == record.metrics["accuracy"]
    monkeypatch.chdir(tmp_path)
    code = getting_started(record, str(tmp_path), adapter=True)
    code = re.sub(r'classify\(".+?", ', "classify(PICTURE, ", code)
    exec(compile(code, "card", "exec"), {"PICTURE": picture(1, light=True)})  # noqa: S102
    assert "'score'" in capsys.readouterr().out


def evaluate_run_on(run, data):
    folder = run.parent / f"{run.name}-data"
    data.save_to_disk(str(folder))
    return evaluate_run(run, str(folder))


@pytest.mark.parametrize("name", ["vit", pytest.param("mobilenet", marks=pytest.mark.slow)])
def test_the_prefix_cache_is_read_and_in_32_bits_changes_none(name, models, tmp_path):
    found = []
    for cache in (None, FrozenPrefixCache(tmp_path / "cache", storage="float32")):
        output = arguments(tmp_path / f"run-{cache is None}", num_train_epochs=3)
        prepared = prepare(config(models(name), "rows", strategy="feature-extraction"), output, splits=splits())
        trainer = make_trainer(prepared)
        attach(trainer, schedule=prepared.strategy, cache=cache, groups=prepared.groups)
        trainer.train()
        found.append({key: value.clone() for key, value in prepared.model.state_dict().items()})
    assert cache.report["hits"] > 0, cache.report["reason"]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


class Stop(TrainerCallback):
    """Ends training after a step, as a crash would."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3
        control.should_save = state.global_step == 3


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_stopped(models, tmp_path):
    given = config(models("mobilenet"), "rows", strategy="gradual-unfreezing")
    whole = arguments(tmp_path / "whole", num_train_epochs=3)
    finetune(given, whole, splits=splits())
    parts = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 3}
    prepared = prepare(given, arguments(tmp_path / "parts", **parts), splits=splits())
    trainer = make_trainer(prepared, Stop())
    attach(trainer, schedule=prepared.strategy, learning_rates=prepared.rates, groups=prepared.groups)
    trainer.train()
    again = arguments(tmp_path / "parts", **parts, resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    finetune(given, again, splits=splits())
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[key], second[key]) for key in first)
