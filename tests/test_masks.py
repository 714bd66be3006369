"""Masks: what their pixels hold, what is refused of them, how they are measured and drawn."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image as Pillow
from sklearn.metrics import accuracy_score, jaccard_score, recall_score
from transformers import SegformerImageProcessor

from hf_transfer_plugin import TransferConfig, finetune
from hf_transfer_plugin.config import ConfigError
from hf_transfer_plugin.metrics import MeanIou, class_ious, map_scores, pixel_counts
from hf_transfer_plugin.recipes import evaluate_run, predict_run
from hf_transfer_plugin.recipes.preparing import prepare
from hf_transfer_plugin.tasks.base import Outcome, TaskData
from hf_transfer_plugin.tasks.image_segmentation import IMAGE_SEGMENTATION, reduce
from hf_transfer_plugin.tasks.map_report import report
from hf_transfer_plugin.tasks.maps import COLOURS, colours, drawn, mask_in, mask_uri, most_likely, told_shares
from hf_transfer_plugin.tasks.masks import classes_of, read_mask, values_of
from tests.test_image_segmentation import NAMES, arguments, config, file, refused, rows, splits
from tests.tiny_scenes import SIDE, models_in, scene, write_scenes


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return models_in(tmp_path_factory.mktemp("models"))


# Metrics


def test_scores_of_maps_by_hand():
    # Class 0: 2 in both, 3 answered, 2 true -> 2/3. Class 1: 1 in both, 1 answered, 2 true -> 1/2. Class 2: nowhere.
    true = np.array([[0, 0, 1], [1, 255, 255]])
    answered = np.array([[0, 0, 1], [0, 2, 1]])
    counts = pixel_counts(answered, true, 3)
    assert counts.tolist() == [[2, 1, 0], [3, 1, 0], [2, 2, 0]]
    assert class_ious(counts)[:2].tolist() == pytest.approx([2 / 3, 1 / 2])
    assert np.isnan(class_ious(counts)[2])
    assert map_scores(counts) == pytest.approx({
        "mean_iou": (2 / 3 + 1 / 2) / 2,
        "mean_accuracy": (2 / 2 + 1 / 2) / 2,
        "pixel_accuracy": 3 / 4,
    })
    assert np.isnan(map_scores(pixel_counts(answered, np.full((2, 3), 255), 3))["mean_iou"])


def test_scores_of_maps_equal_scikit_learns():
    draws = np.random.default_rng(0)
    true, answered = draws.integers(0, 4, (2, 9, 7)), draws.integers(0, 4, (2, 9, 7))
    found = MeanIou().compute(predictions=answered.tolist(), references=true.tolist())
    flat = true.ravel(), answered.ravel()
    assert found["iou_per_class"] == pytest.approx(jaccard_score(*flat, average=None).tolist())
    assert found["mean_iou"] == pytest.approx(jaccard_score(*flat, average="macro"))
    assert found["mean_accuracy"] == pytest.approx(recall_score(*flat, average="macro"))
    assert found["pixel_accuracy"] == pytest.approx(accuracy_score(*flat))


def test_batches_are_reduced_to_counts_and_small_maps():
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 32, 24))
    labels[0, :5] = 255
    counts, maps = reduce((logits, None), (labels,))
    assert (counts.dtype, tuple(maps.shape), maps.dtype) == (torch.int64, (2, 96, 96), torch.uint8)
    for number in range(2):
        answered = most_likely(logits[number], (32, 24))
        assert counts[number].tolist() == pixel_counts(answered, labels[number].numpy(), 3).tolist()
        assert (maps[number].numpy()[1::3, 1::4] == answered).all()


def test_maps_are_made_as_transformers_makes_them():
    logits = torch.randn(1, 5, 7, 9)
    outputs = type("Outputs", (), {"logits": logits})
    theirs = SegformerImageProcessor().post_process_semantic_segmentation(outputs, target_sizes=[(41, 30)])[0]
    assert (most_likely(logits[0], (41, 30)) == theirs.numpy()).all()


# What masks hold


def modes(mask):
    grey = Pillow.fromarray(mask)
    coloured = grey.convert("P")
    coloured.putpalette(colours(3).ravel().tolist())
    return {
        "L": grey,
        "P": coloured,
        "RGB": Pillow.merge("RGB", [grey] * 3),
        "RGBA": Pillow.merge("RGBA", [grey] * 3 + [Pillow.new("L", grey.size, 255)]),
        "LA": Pillow.merge("LA", [grey, Pillow.new("L", grey.size, 255)]),
        "I;16": Pillow.fromarray(mask.astype(np.uint16)),
    }


@pytest.mark.parametrize("mode", modes(scene(1)[1]))
def test_class_numbers_are_read_in_every_mode(mode):
    mask = scene(1)[1]
    image = modes(mask)[mode]
    assert image.mode == mode
    assert (read_mask(file(image)) == mask).all()
    assert read_mask(file(image)).dtype == np.uint8


def test_masks_of_one_bit_hold_zero_and_one():
    mask = (scene(1)[1] > 0).astype(np.uint8)
    assert (read_mask(file(Pillow.fromarray(mask * 255).convert("1"))) == mask).all()


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (Pillow.new("RGB", (4, 4), (1, 2, 3)), "PNG", "in colours or transparent .its mode is RGB.; give each colour"),
        (Pillow.new("RGBA", (4, 4), (1, 1, 1, 9)), "PNG", "in colours or transparent .its mode is RGBA"),
        (Pillow.new("L", (4, 4)), "JPEG", "is a JPEG, which blurs class numbers"),
        (Pillow.fromarray(np.full((4, 4), 300, np.uint16)), "PNG", "go up to 254, but it holds 300 to 300"),
    ],
)
def test_what_is_no_mask_is_refused(image, kind, message):
    with pytest.raises(ValueError, match=message):
        read_mask(file(image, kind))


def test_values_become_classes_and_back():
    held = np.array([0, 1, 2, 255], np.uint8)
    assert classes_of(held, "numbers").tolist() == [0, 1, 2, 255]
    assert classes_of(held, "numbers-from-1").tolist() == [255, 0, 1, 255]
    assert classes_of(np.array([0, 255], np.uint8), "0-and-255").tolist() == [0, 1]
    for values, classes in (("numbers", [0, 1]), ("numbers-from-1", [0, 253]), ("0-and-255", [0, 1])):
        wanted = np.array(classes, np.uint8)
        assert (classes_of(values_of(wanted, values), values) == wanted).all()


def defects(mask):
    return np.where(mask == 1, 255, 0).astype(np.uint8)


def test_masks_of_0_and_255_have_two_classes(models, tmp_path):
    record = finetune(
        config(models("segformer"), demo_examples=1),
        arguments(tmp_path / "run", max_steps=2),
        splits=splits(change=defects),
    )
    assert record.options == {"mask_values": "0-and-255"}
    assert record.class_names == ["0", "255"]
    everything = DatasetDict(test=rows([file(np.full((30, 40), 255, np.uint8))]))
    everything.save_to_disk(str(tmp_path / "white"))
    found = evaluate_run(tmp_path / "run", str(tmp_path / "white"))
    assert found["per_class"]["255"]["support"] == SIDE * SIDE  # not "not labelled"
    predict_run(tmp_path / "run", str(tmp_path / "white"), tmp_path / "p.jsonl")
    answer = json.loads((tmp_path / "p.jsonl").read_text())
    assert set(np.unique(mask_in(answer["predicted_mask"]))) <= {0, 255}


def test_the_processors_word_on_zero_is_kept_and_told(models, tmp_path, caplog):
    model = models("segformer", do_reduce_labels=True)
    prepared = prepare(config(model), arguments(tmp_path), splits=splits())
    assert prepared.data.options == {"mask_values": "numbers-from-1"}
    assert prepared.data.class_names == ("1", "2")
    assert "0 in the masks is not labelled, and 1 is the first class" in caplog.text
    labels = prepared.encoded["train"][0]["labels"]
    assert set(labels.unique().tolist()) == {0, 1, 255}
    assert prepared.model.config.semantic_loss_ignore_index == 255
    own = prepare(config(model, mask_values="numbers"), arguments(tmp_path), splits=splits())
    assert own.data.class_names == ("0", "1", "2")
    assert own.processor.do_reduce_labels is False


# BEiT's processor interpolates between class numbers.
@pytest.mark.parametrize("name", ["segformer", "mobilenet", "mobilevit"])
@pytest.mark.parametrize("values", ["numbers", "numbers-from-1"])
def test_masks_are_made_small_as_the_processor_does_it(name, values, models, tmp_path):
    prepared = prepare(config(models(name), mask_values=values), arguments(tmp_path), splits=splits(2))
    picture, mask = scene(0)
    theirs = prepared.processor(images=picture, segmentation_maps=mask, return_tensors="pt")
    ours = prepared.encoded["train"][0]
    assert torch.equal(ours["labels"], theirs["labels"][0])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"][0])


def test_names_are_given_or_what_the_masks_hold(models, tmp_path):
    first = prepare(config(models("segformer")), arguments(tmp_path), splits=splits())
    assert first.data.class_names == ("0", "1", "2")
    given = config(models("segformer"), class_names=[*NAMES, "blue"])
    second = prepare(given, arguments(tmp_path), splits=splits())
    assert second.model.config.id2label == dict(enumerate([*NAMES, "blue"]))


# Bad data


def with_masks(masks, pictures=None):
    """Good splits, but train."""
    return splits(4) | {"train": rows(masks, pictures)}


def test_masks_of_other_sizes_are_refused(models, tmp_path):
    data = with_masks([file(scene(i, (20, 15))[1]) for i in range(3)], [scene(i)[0] for i in range(3)])
    message = r"have the size of its picture, but 3 of 3 .+row 0, counted from 0 is 40 x 30, its mask 20 x 15"
    refused(models("segformer"), DatasetDict(data), tmp_path, message)


def turned(image, turn):
    exif = image.getexif()
    exif[0x0112] = turn
    return file(image, "JPEG", exif=exif, quality=95)


def test_a_turn_of_the_camera_holds_for_both(models, tmp_path):
    picture, mask = scene(0)

    def with_picture(one):
        return DatasetDict(with_masks([file(mask)] * 3, [one] * 3))

    upright = turned(picture.transpose(Pillow.Transpose.ROTATE_90), 6)
    one, other = (
        prepare(config(models("segformer")), arguments(tmp_path), splits=with_picture(given)).encoded["train"][0]
        for given in (upright, picture)
    )
    assert torch.equal(one["labels"], other["labels"])
    assert (one["pixel_values"] - other["pixel_values"]).abs().mean() < 0.3
    message = r"turned alike, but EXIF turns 3 of 3 pictures in the train split .row 0.+Save the pictures turned"
    refused(models("segformer"), with_picture(turned(picture, 3)), tmp_path, message)
    refused(models("segformer"), with_picture(turned(picture, 6)), tmp_path, message)


def broken():
    damaged = {"bytes": file(scene(0)[1])["bytes"][:60], "path": "damaged.png"}
    return DatasetDict(with_masks([file(scene(i)[1]) for i in range(4)] + [damaged], [scene(i)[0] for i in range(5)]))


def test_unreadable_masks_are_named_or_left_out(models, tmp_path, caplog):
    message = r"'mask' must hold a readable mask, but 1 of 5 in the train split .+damaged\.png.+--skip_unreadable"
    refused(models("segformer"), broken(), tmp_path, message)
    prepared = prepare(config(models("segformer"), skip_unreadable=True), arguments(tmp_path), splits=broken())
    assert prepared.data.facts["skipped"] == {"train": 1}
    assert len(prepared.encoded["train"]) == 4
    assert "damaged.png" in caplog.text


def test_photos_are_no_masks(models, tmp_path):
    noise = np.random.default_rng(0).integers(0, 250, (30, 40)).astype(np.uint8)
    message = "holds 2[0-9]{2} different values, as a photo does"
    refused(models("segformer"), DatasetDict(with_masks([file(noise)] * 2)), tmp_path, message)
    refused(models("segformer"), DatasetDict(with_masks([file(scene(0)[0])], [scene(0)[0]])), tmp_path, "in colours")


def test_class_numbers_beyond_the_names_are_refused(models, tmp_path):
    message = r"fit the 2 class names .ground, light, .+ but 12 masks in the train split hold 2 .row 0.+--class_names"
    refused(models("segformer"), splits(), tmp_path, message, class_names=NAMES[:2])


def test_white_that_is_not_read_is_told(models, tmp_path, caplog):
    data = splits(change=lambda mask: np.minimum(mask, 1))
    prepare(config(models("segformer")), arguments(tmp_path), splits=data)
    assert "255 is read as not labelled" not in caplog.text
    data["test"] = splits(change=defects)["test"]
    prepare(config(models("segformer")), arguments(tmp_path), splits=data)
    assert "The masks of the test split hold 0 and 255 alone, and 255 is read as not labelled" in caplog.text
    caplog.clear()
    again = config("m", class_names=["ground", "light"])
    IMAGE_SEGMENTATION.read_again(DatasetDict(test=data["test"]), again, True)
    assert "255 is read as not labelled (`--mask_values numbers`)" in caplog.text


def test_a_class_that_is_nowhere_has_no_iou():
    counts = np.array([[[2, 0, 0], [3, 1, 0], [2, 0, 0]]])
    outcome = Outcome(None, None, (counts, np.zeros((1, 96, 96), np.uint8)))
    figures = report(TaskData(DatasetDict(), {}, class_names=tuple(NAMES)), outcome, 0)["per_class"]
    assert figures["ground"]["iou"] == pytest.approx(2 / 3)
    assert figures["light"]["iou"] == 0
    assert "iou" not in figures["red"]
    assert figures["red"]["support"] == 0


def test_values_between_black_and_white_are_refused(models, tmp_path):
    def blurred(mask):
        return np.where(mask == 1, 255, np.where(mask == 2, 128, 0)).astype(np.uint8)

    message = r"0 and 255 .or 1. alone .+ but 12 of 12 in the train split hold 128 .row 0.+Blurred edges"
    refused(models("segformer"), splits(change=blurred), tmp_path, message, mask_values="0-and-255")
    # Masks of one bit hold 0 and 1, and may stand beside them.
    data = splits(change=defects) | {"test": rows([file(Pillow.fromarray(defects(scene(0)[1])).convert("1"))])}
    given = config(models("segformer"), mask_values="0-and-255")
    prepared = prepare(given, arguments(tmp_path), splits=DatasetDict(data))
    assert prepared.data.class_names == ("0", "255")
    assert set(prepared.encoded["test"][0]["labels"].unique().tolist()) == {0, 1}


def test_splits_without_labelled_pixels_are_refused_and_such_rows_left_out(models, tmp_path, caplog):
    empty = file(np.full((30, 40), 255, np.uint8))
    message = r"The validation split must hold labelled pixels, but every mask is empty"
    refused(models("segformer"), splits(validation=rows([empty] * 2)), tmp_path, message)
    data = splits(train=rows([empty, *(file(scene(i)[1]) for i in range(4))]))
    prepared = prepare(config(models("segformer")), arguments(tmp_path), splits=data)
    assert prepared.data.facts["unlabelled"] == {"train": 1}
    assert len(prepared.encoded["train"]) == 4
    assert "1 masks of the train split label no pixel" in caplog.text


def test_one_class_is_refused(models, tmp_path):
    message = r"at least two classes, but hold 0 .255 is not labelled..+--mask_values"
    refused(models("segformer"), splits(change=np.zeros_like), tmp_path, message)


def test_classes_without_a_training_pixel_are_told(models, tmp_path, caplog):
    prepare(config(models("segformer")), arguments(tmp_path), splits=splits(change=lambda mask: mask * 60))
    assert "Of 121 classes, 118 occur in no training mask" in caplog.text
    assert "If the masks hold grey levels, number the classes 0, 1, 2" in caplog.text


def test_a_test_split_without_masks_is_left_out(models, tmp_path, caplog):
    kinds = rows([file(scene(0)[1])]).features
    bare = Dataset.from_dict({"image": [file(scene(0)[0])], "mask": [None]}, features=kinds)
    prepared = prepare(config(models("segformer")), arguments(tmp_path), splits=splits(test=bare))
    assert set(prepared.encoded) == {"train", "validation"}
    assert "has no masks and is left out" in caplog.text


def test_pictures_and_masks_are_two_columns(models, tmp_path):
    refused(models("segformer"), splits(), tmp_path, "must be two columns", label_column="image")
    data = DatasetDict(train=Dataset.from_dict({"image": [file(scene(0)[0])], "mask": [3]}))
    refused(models("segformer"), data, tmp_path, "'mask' must hold mask files.+int64.+--label_column")


def test_an_unknown_meaning_is_refused():
    with pytest.raises(ConfigError, match="`mask_values` must be one of numbers, numbers-from-1, 0-and-255"):
        config("m", mask_values="white")
    with pytest.raises(ValueError, match="`mask_values` is of no use to image-classification"):
        prepare(
            TransferConfig(model="m", dataset="d", task="image-classification", mask_values="numbers"),
            arguments("run"),
            splits=splits(2),
        )


def test_paths_in_a_table_are_taken_from_its_folder(models, tmp_path):
    write_scenes(tmp_path / "data", train=4)
    (tmp_path / "data" / "train" / "metadata.jsonl").unlink()
    lines = [f"train/{i}.png,train/masks/{i}.png" for i in range(4)]
    (tmp_path / "data" / "rows.csv").write_text("\n".join(["image,annotation", *lines]))
    given = config(models("segformer"), tmp_path / "data" / "rows.csv", validation_fraction=0.25)
    prepared = prepare(given, arguments(tmp_path / "run"))
    assert prepared.data.columns == {"image": "image", "label": "annotation"}
    assert len(prepared.encoded["train"]) == 3


# Drawings


def test_masks_are_drawn_in_colours_that_differ():
    picture, mask = scene(3)
    mask[0] = 255
    pixels = np.asarray(drawn(picture, mask), float)
    assert (pixels[0] == np.asarray(picture)[0]).all()
    there = mask == 1
    expected = 0.6 * np.array(COLOURS["orange"]) + 0.4 * np.asarray(picture, float)[there]
    assert np.abs(pixels[there] - expected).max() <= 1
    assert len(np.unique(colours(150), axis=0)) == 150


def test_a_mask_in_a_record_is_a_picture_of_class_numbers():
    mask = scene(2)[1]
    uri = mask_uri(mask)
    assert (mask_in(uri) == mask).all()
    with Pillow.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        assert image.mode == "P"
        assert np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0).tolist() == sorted(
            list(colour) for colour in list(COLOURS.values())[:3]
        )


def test_shares_are_told_from_the_largest():
    assert told_shares(np.array([10, 0, 90]), ["a", "b", "c"]) == ["c 90%", "a 10%"]
    assert told_shares(np.zeros(3), ["a", "b", "c"]) == []
