"""Image segmentation from files to card: tiny models through the whole path."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image as Pillow
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    MaskFormerConfig,
    MobileNetV2ImageProcessor,
    SegformerImageProcessor,
    TrainerCallback,
    TrainingArguments,
    pipeline,
)

from hf_transfer_plugin import FrozenPrefixCache, TransferConfig, TransferRecord, finetune
from hf_transfer_plugin.recipes import evaluate_run, predict_run
from hf_transfer_plugin.recipes.finetuning import make_trainer
from hf_transfer_plugin.recipes.preparing import prepare
from hf_transfer_plugin.tasks.image_segmentation import complete, set_up
from hf_transfer_plugin.tasks.maps import mask_in
from hf_transfer_plugin.tasks.masks import read_mask
from hf_transfer_plugin.trainer import attach
from tests.tiny_pictures import content
from tests.tiny_scenes import MODELS, SIDE, models_in, scene, write_scenes

TASK = "image-segmentation"
NAMES = ["ground", "light", "red"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return models_in(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", train=20, test=6)


def arguments(output, **changes):
    given = {"num_train_epochs": 2, "per_device_train_batch_size": 6, "learning_rate": 3e-3, "save_strategy": "no"}
    return TrainingArguments(
        str(output), use_cpu=True, report_to="none", disable_tqdm=True, log_level="error", **{**given, **changes}
    )


def config(model, data="rows", **changes):
    return TransferConfig(model=model, dataset=str(data), task=TASK, **changes)


def file(image, kind="PNG", **settings):
    image = Pillow.fromarray(image) if isinstance(image, np.ndarray) else image
    return {"bytes": content(image, kind, **settings), "path": None}


def rows(masks, pictures=None):
    """Pictures and masks in memory."""
    pictures = pictures or [scene(i, mask.shape[::-1])[0] for i, mask in enumerate(map(read_mask, masks))]
    images = [one if isinstance(one, dict) else file(one) for one in pictures]
    return Dataset.from_dict({"image": images, "mask": list(masks)})


def splits(count=12, change=lambda mask: mask, **more):
    made = [file(change(scene(i)[1])) for i in range(count)]
    return DatasetDict({split: rows(made) for split in ("train", "validation", "test")} | more)


@pytest.fixture(scope="module")
def run(models, scenes, tmp_path_factory):
    """A finished run over a folder of pictures and masks."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    given = config(models("mobilenet"), scenes, class_names=NAMES, demo_examples=2)
    finetune(given, arguments(folder, num_train_epochs=6, learning_rate=1e-2))
    return folder


def refused(model, data, tmp_path, message, **changes):
    with pytest.raises(ValueError, match=message):
        prepare(config(model, **changes), arguments(tmp_path), splits=data)


# The whole path


def test_a_folder_of_scenes_becomes_a_model_with_record_and_card(run):
    record = TransferRecord.load(run)
    assert record.class_names == NAMES
    assert record.model_class == "MobileNetV2ForSemanticSegmentation"
    assert record.strategy["name"] == "full"
    assert record.dataset["columns"] == {"image": "image", "label": "mask"}
    assert record.dataset["splits"] == {"train": 18, "validation": 2, "test": 6}
    assert record.dataset["read_size"] == [SIDE, SIDE]
    assert record.options == {"mask_values": "numbers"}
    low, high = record.intervals["mean_iou"]
    assert record.baselines["majority"]["mean_iou"] < low <= record.metrics["mean_iou"] <= high
    assert record.per_class["light"]["iou"] > 0
    assert sum(values["support"] for values in record.per_class.values()) == 6 * SIDE * SIDE
    assert [set(row["label"]) for row in record.examples] == [set(NAMES)] * 2
    scores = [row["score"] for row in record.errors]
    assert scores == sorted(scores)
    assert all(row["label"].startswith("data:image/") for row in record.errors + record.samples)
    assert len(record.samples) == 2


def test_the_saved_model_answers_like_a_pipeline(run, scenes, tmp_path):
    output = tmp_path / "answers.jsonl"
    assert predict_run(run, str(scenes / "test"), output) == 6
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    segment = pipeline(TASK, model=str(run))
    for row in answers:
        mask = mask_in(row["predicted_mask"])
        with Pillow.open(row["image"]) as image:
            assert mask.shape == image.size[::-1]
        found = {one["label"]: np.asarray(one["mask"]) > 0 for one in segment(row["image"])}
        assert found.keys() == row["shares"].keys()
        for name, there in found.items():
            assert (there == (mask == NAMES.index(name))).all()
            assert row["shares"][name] == pytest.approx(there.mean())


def test_a_run_is_measured_again_as_it_was(run, scenes):
    record, found = TransferRecord.load(run), evaluate_run(run, str(scenes), errors=1)
    assert found["metrics"] == record.metrics
    assert found["per_class"] == record.per_class
    assert len(found["samples"]) == len(found["errors"]) == 1


def test_a_single_picture_is_answered(run, scenes, tmp_path):
    assert predict_run(run, str(scenes / "test" / "20.png"), tmp_path / "one.csv") == 1
    assert "ground" in (tmp_path / "one.csv").read_text()


# Models and processors


def test_models_that_answer_with_a_set_of_masks_are_refused():
    message = "must give each pixel a class.+MaskFormerConfig is of a model that answers with a set of masks"
    with pytest.raises(ValueError, match=message):
        complete(SegformerImageProcessor(), None, MaskFormerConfig())


def test_crops_become_whole_pictures(models, tmp_path, caplog):
    prepared = prepare(config(models("mobilenet")), arguments(tmp_path), splits=splits(2))
    assert "would crop pictures; they are squeezed to 32 x 32 pixels" in caplog.text
    prepared.processor.save_pretrained(tmp_path / "saved")
    again = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    pixels = again(images=scene(0)[0], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(pixels, prepared.encoded["train"][0]["pixel_values"])


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (
            MobileNetV2ImageProcessor(crop_size={"height": 32, "width": 32}, size={"shortest_edge": 40}),
            "whole picture",
        ),
        (SegformerImageProcessor(do_resize=False), "in one size"),
    ],
)
def test_processors_that_do_not_show_the_whole_picture_are_refused(processor, message):
    with pytest.raises(ValueError, match=message):
        set_up(None, processor, None)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_groups_a_loss_and_a_head(name, models, tmp_path):
    prepared = prepare(config(models(name)), arguments(tmp_path), splits=splits(2))
    assert prepared.groups[-1].name == "head"
    assert prepared.new_weights
    assert prepared.model.config.id2label == {0: "0", 1: "1", 2: "2"}
    train = prepared.encoded["train"]
    batch = {key: torch.stack([train[0][key], train[1][key]]) for key in train[0]}
    outputs = prepared.model(**batch)
    assert torch.isfinite(outputs.loss)
    assert outputs.logits.shape[1] == 3


def test_a_batch_of_one_picture_is_refused_where_the_head_pools_whole_pictures(models, tmp_path):
    message = r"at least two rows, since MobileNetV2.+ 13 training rows in batches of 6 .+_batch_size 7`"
    refused(models("mobilenet"), splits(train=splits(13)["train"]), tmp_path, message)
    assert len(prepare(config(models("segformer")), arguments(tmp_path), splits=splits(13)).encoded["train"]) == 13


STRATEGIES = ("full", "bitfit", "norm-only", "gradual-unfreezing", "chain-thaw", "plateau", "layer-sampling")


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        pytest.param(n, s, marks=() if (n, s) == ("segformer", "layer-sampling") else pytest.mark.slow)
        for n in ("segformer", "mobilenet", "upernet")
        for s in STRATEGIES
    ],
)
def test_every_strategy_trains_every_kind_of_backbone(name, strategy, models, tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 1} if strategy == "plateau" else {}
    given = config(models(name), strategy=strategy, demo_examples=0)
    record = finetune(given, arguments(tmp_path, max_steps=4, **changes), splits=splits())
    assert np.isfinite(record.metrics["loss"])
    assert record.phases


def test_strategies_that_solve_a_layer_of_classes_are_refused(models, tmp_path):
    refused(models("segformer"), splits(2), tmp_path, "'lp-ft' solves an output layer of classes", strategy="lp-ft")


@pytest.mark.parametrize("name", ["segformer", "mobilenet"])
def test_what_is_frozen_stays_still_to_the_bit(name, models, tmp_path):
    given = config(models(name), strategy='{"name": "freeze-first", "k": 2}')
    prepared = prepare(given, arguments(tmp_path, max_steps=3), splits=splits())
    model, groups = prepared.model, prepared.groups
    before = {key: value.clone() for key, value in model.state_dict().items()}
    # With the statistics that stand beside weights.
    places = {weight.rpartition(".")[0] for group in groups[:2] for weight in group.parameters}
    trainer = make_trainer(prepared)
    attach(trainer, schedule=prepared.strategy, groups=groups)
    trainer.train()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert not {key for key in moved if key.rpartition(".")[0] in places}
    later = {weight for group in groups[2:] for weight in group.parameters if weight.endswith(".weight")}
    # The segmentation head reads MobileNetV2 below its last convolution.
    assert {weight for weight in later if ".conv_1x1." not in weight} <= moved


def test_smoothed_labels_are_refused(models, tmp_path):
    with pytest.raises(ValueError, match="image-segmentation learns from masks. Leave `--label_smoothing_factor` out"):
        prepare(config(models("segformer")), arguments(tmp_path, label_smoothing_factor=0.1), splits=splits(2))


def test_lora_learns_inside_segformer(models, tmp_path):
    record = finetune(config(models("segformer"), strategy="lora"), arguments(tmp_path / "run"), splits=splits())
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert record.adapter["trainable_parameters"] < sum(group["parameters"] for group in record.groups)
    splits()["test"].save_to_disk(str(tmp_path / "data"))
    assert evaluate_run(tmp_path / "run", str(tmp_path / "data"))["metrics"] == record.metrics


@pytest.mark.parametrize("name", ["segformer", pytest.param("mobilenet", marks=pytest.mark.slow)])
def test_the_prefix_cache_is_read_and_in_32_bits_changes_none(name, models, tmp_path):
    found = []
    for cache in (None, FrozenPrefixCache(tmp_path / "cache", storage="float32")):
        output = arguments(tmp_path / f"run-{cache is None}", num_train_epochs=3)
        prepared = prepare(config(models(name), strategy="feature-extraction"), output, splits=splits())
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
@pytest.mark.parametrize("name", ["segformer", "mobilenet"])
def test_a_resumed_run_equals_one_that_was_not_stopped(name, models, tmp_path):
    given = config(models(name), strategy="gradual-unfreezing", demo_examples=0)
    finetune(given, arguments(tmp_path / "whole", num_train_epochs=3), splits=splits())
    parts = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 3}
    prepared = prepare(given, arguments(tmp_path / "parts", **parts), splits=splits())
    trainer = make_trainer(prepared, Stop())
    attach(trainer, schedule=prepared.strategy, learning_rates=prepared.rates, groups=prepared.groups)
    trainer.train()
    again = arguments(tmp_path / "parts", **parts, resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    finetune(given, again, splits=splits())
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[key], second[key]) for key in first)
