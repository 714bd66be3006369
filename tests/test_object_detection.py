"""Object detection from files to card: tiny models through the whole path, bad boxes, and mAP by hand."""

import json
import logging
import sys
import types

import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Pillow
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments, pipeline

from hf_transfer_plugin import FrozenPrefixCache, TransferConfig, TransferRecord, finetune
from hf_transfer_plugin.config import ConfigError
from hf_transfer_plugin.layers import discover_layer_groups
from hf_transfer_plugin.metrics import MeanAveragePrecision, average_precision, match_boxes
from hf_transfer_plugin.metrics.detection import overlaps
from hf_transfer_plugin.recipes import evaluate_run, predict_run
from hf_transfer_plugin.recipes.finetuning import make_trainer
from hf_transfer_plugin.recipes.preparing import prepare
from hf_transfer_plugin.tasks import detecting, load_splits
from hf_transfer_plugin.tasks.base import Outcome
from hf_transfer_plugin.tasks.detecting import Batching, Preparing, reduce, target
from hf_transfer_plugin.tasks.found_boxes import INVENTED, MISSED, RIGHT, draw, words
from hf_transfer_plugin.tasks.object_detection import OBJECT_DETECTION
from hf_transfer_plugin.trainer import attach
from tests.test_launch import launch  # noqa: F401
from tests.tiny_detectors import MODELS, content, processor_of, save_model, scene, write_folder

TASK = "object-detection"
NAMES = ["blue", "red"]
# With the mask read, with the frame for a whole, and with squares.
FREE = {"shortest_edge": 64, "longest_edge": 128}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Saved tiny models, made when they are asked for."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def saved(name, **size):
        key = (name, *size)
        if key not in made:
            made[key] = save_model(name, root / "-".join(key), **size)
        return made[key]

    return saved


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("scenes") / "data", train=12, validation=4, test=6))


def arguments(output, **changes):
    given = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_strategy": "no"}
    return TrainingArguments(
        str(output), use_cpu=True, report_to="none", disable_tqdm=True, log_level="error", **{**given, **changes}
    )


def config(model, data, **changes):
    return TransferConfig(model=model, dataset=str(data), task=TASK, **changes)


def rows(count=8, objects=lambda i: scene(i)[1], **settings):
    """Scenes in memory; every row needs the same keys."""
    values = [{"bytes": content(scene(i)[0]), "path": None} for i in range(count)]
    made = Dataset.from_dict({"image": values, "objects": [objects(i) for i in range(count)]}, **settings)
    return made if settings else made.cast_column("image", Image())


def splits(**changes):
    return DatasetDict({split: rows(**changes) for split in ("train", "validation", "test")})


def read(data, **changes):
    return OBJECT_DETECTION.read(data, config("model", "rows", **changes), 0)


@pytest.fixture(scope="module")
def run(models, scenes, tmp_path_factory):
    """A finished run over a folder of scenes of several sizes, with a model that reads masks."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    finetune(config(models("detr", **FREE), scenes, demo_examples=2, score_threshold=0.2), arguments(folder))
    return folder


# The whole path


def test_a_folder_of_scenes_becomes_a_model_with_record_and_card(run):
    record = TransferRecord.load(run)
    assert record.class_names == NAMES
    assert record.metrics.keys() == {"loss", "map", "map_50", "map_75", "mar_100"}
    assert record.dataset["splits"] == {"train": 12, "validation": 4, "test": 6}
    assert record.dataset["objects"] == {"train": 18, "validation": 6, "test": 9}
    assert record.baselines.keys() == {"mean_box"}
    assert record.options == {"box_format": "xywh", "score_threshold": 0.2, "padding": "mask"}
    assert sum(figures["support"] for figures in record.per_class.values()) == 9
    assert {"average_precision", "precision", "recall", "f1"} <= record.per_class["red"].keys()
    assert [row["label"] for row in record.examples] == ["red", "blue, red"]
    assert all(row["image"].startswith("data:image/") for row in record.errors + record.samples)
    assert "pipeline_tag: object-detection" in (run / "README.md").read_text()


def test_a_trained_model_is_measured_again_and_answers_rows(run, scenes, tmp_path):
    record = TransferRecord.load(run)
    assert evaluate_run(run, scenes)["metrics"] == pytest.approx(record.metrics)
    assert predict_run(run, scenes, tmp_path / "answers.jsonl", split="test") == 6
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert {row["threshold"] for row in answers} == {0.2}
    assert predict_run(run, scenes + "/test/20.png", tmp_path / "one.csv") == 1


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("rt_detr", {}),
        ("yolos", {}),
        ("detr", FREE),
        ("deformable", {"height": 128, "width": 128}),
    ],
)
def test_answers_are_those_of_the_pipeline(name, size, models):
    folder = models(name, **size)
    data = DatasetDict({"test": rows(3)})
    detect = pipeline(TASK, model=folder)
    settings = config(folder, "rows", class_names=["one", "two", "three"], score_threshold=0.0)
    read_again = OBJECT_DETECTION.read_again(data, settings, False)
    OBJECT_DETECTION.set_up(detect.model, detect.image_processor, read_again)
    encoded = OBJECT_DETECTION.encode(read_again, detect.image_processor, 0, None)[0]["test"]
    batch = OBJECT_DETECTION.collator(None, read_again)([encoded[i] for i in range(3)])
    with torch.no_grad():
        outputs = detect.model(**batch).to_tuple()
    outcome = Outcome(read_again.splits["test"], encoded, reduce(outputs[2:], batch["labels"]).numpy())
    for row, given in zip(OBJECT_DETECTION.answers(read_again, outcome), range(3), strict=True):
        found = detect(scene(given)[0], threshold=0.0)
        found.sort(key=lambda one: -one["score"])
        # Some image processors keep as many boxes as there are queries, some more.
        ours = row["objects"][: len(found)]
        assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in found], abs=1e-4)
        for one, other in zip(ours, found, strict=True):
            # The pipeline cuts to whole pixels.
            assert one["box"] == pytest.approx(list(other["box"].values()), abs=1.05)


@pytest.mark.parametrize("padding", ["mask", "frame"])
def test_boxes_come_back_as_shares_of_their_picture_whatever_stands_beside_it(padding):
    pictures = [
        {"pixel_values": torch.ones(3, height, width), "labels": target([[8, 4, 16, 12]], [0], width, height)}
        for width, height in ((32, 16), (16, 40))
    ]
    batch = Batching(1, padding)(pictures)
    assert batch["pixel_values"].shape == (2, 3, 40, 32)
    assert batch["pixel_values"][0, :, 16:].sum() == 0
    assert ("pixel_mask" in batch) == (padding == "mask")
    # A model that answers with the targets, and is sure of them.
    boxes = torch.stack([one["boxes"] for one in batch["labels"]])
    found = reduce((torch.tensor([[[9.0, 0.0]], [[9.0, 0.0]]]), boxes), batch["labels"])
    assert torch.allclose(found[:, 0, 2:], torch.tensor([[0.25, 0.25, 0.5, 0.75], [0.5, 0.1, 1.0, 0.3]]))
    assert found[:, 0, 1].tolist() == pytest.approx([0.99988] * 2, abs=1e-5)
    assert [tuple(one.shape) for one in batch["labels"]] == [(2,)]


def test_answers_that_depend_on_padding_are_told(models, tmp_path, caplog):
    for name, size, told in (("yolos", FREE, True), ("detr", FREE, False), ("yolos", {}, False)):
        caplog.clear()
        prepared = prepare(config(models(name, **size), "rows"), arguments(tmp_path), splits=splits(count=2))
        assert (prepared.data.options.get("padding") == "frame") is told
        assert ("answers depend on what stands beside them" in caplog.text) is told


def test_targets_are_those_of_the_image_processor():
    picture, objects = scene(3, size=(61, 47))
    told = [{"bbox": box, "category_id": 1, "area": 1, "iscrowd": 0} for box in objects["bbox"]]
    theirs = processor_of("detr")(picture, annotations={"image_id": 0, "annotations": told}, return_tensors="pt")
    corners = [[x, y, x + w, y + h] for x, y, w, h in objects["bbox"]]
    made = Preparing(processor_of("detr"))({
        "image": [{"bytes": content(picture), "path": None}], "width": [61], "height": [47], "boxes": [corners],
        "categories": [[1, 1]],
    })  # fmt: skip
    assert torch.allclose(made["labels"][0]["boxes"], theirs["labels"][0]["boxes"], atol=1e-6)
    assert torch.equal(made["labels"][0]["class_labels"], theirs["labels"][0]["class_labels"])
    assert torch.equal(made["pixel_values"][0], theirs["pixel_values"][0])


# Rows


def test_a_picture_without_objects_is_trained_on_and_counted(models, tmp_path):
    data = splits(objects=lambda i: scene(i)[1] if i % 2 else {"bbox": [], "category": []})
    record = finetune(config(models("rt_detr"), "rows"), arguments(tmp_path, max_steps=1), splits=data)
    assert record.dataset["without_objects"] == {"train": 4, "validation": 4, "test": 4}
    assert np.isfinite(record.metrics["loss"])


def test_a_batch_of_one_picture_is_trained_on(models, tmp_path):
    data = DatasetDict({"train": rows(5), "validation": rows(2)})
    record = finetune(config(models("rt_detr"), "rows", demo_examples=1), arguments(tmp_path), splits=data)
    assert np.isfinite(record.metrics["loss"])


def listed(i):
    objects = scene(i)[1]
    return [
        {"bbox": box, "category_id": 7 if name == "red" else 3} for box, name in zip(*objects.values(), strict=True)
    ]


def crowded(i):
    return [{**one, "iscrowd": place} for place, one in enumerate(listed(i))]


def relative(i):
    boxes = [[(x + w / 2) / 60, (y + h / 2) / 48, w / 60, h / 48] for x, y, w, h in scene(i)[1]["bbox"]]
    return {"boxes": boxes, "labels": scene(i)[1]["category"]}


def cornered(i):
    return {"bbox": [[x, y, x + w, y + h] for x, y, w, h in scene(i)[1]["bbox"]], "class": scene(i)[1]["category"]}


def test_objects_are_read_in_every_shape():
    plain = read(splits()).splits["train"]
    assert plain[0]["boxes"][0] == [float(v) for v in cornered(0)["bbox"][0]]
    assert plain.column_names == ["image", "width", "height", "boxes", "categories"]
    for objects, names, settings in (
        (listed, ("3", "7"), {}),
        (lambda i: json.dumps(listed(i)), ("3", "7"), {}),
        (cornered, ("blue", "red"), {"box_format": "xyxy"}),
        (relative, ("blue", "red"), {"box_format": "yolo"}),
    ):
        data = read(splits(objects=objects), **settings)
        assert data.class_names == names
        assert np.allclose(sum(data.splits["train"]["boxes"], []), sum(plain["boxes"], []), atol=1e-5)
        assert data.splits["train"]["categories"] == plain["categories"]


def test_bare_boxes_take_their_classes_from_a_column():
    def bare(split):
        made = rows()
        kinds = [scene(i)[1]["category"] for i in range(8)]
        return (
            made
            .remove_columns("objects")
            .add_column("bboxes", [scene(i)[1]["bbox"] for i in range(8)])
            .add_column("labels", kinds)
        )

    data = read(DatasetDict({split: bare(split) for split in ("train", "validation")}))
    assert data.columns == {"objects": "bboxes", "image": "image", "label": "labels"}
    assert data.class_names == ("blue", "red")


def test_a_column_of_classes_beside_objects_that_tell_their_own_is_refused():
    data = DatasetDict(train=rows().add_column("kind", ["red"] * 8))
    with pytest.raises(ValueError, match="but the objects in 'objects' tell their own. Leave `--label_column` out"):
        read(data, label_column="kind")


def test_classes_are_named_by_features_and_by_the_configuration():
    kinds = Features({
        "image": Image(),
        "objects": {
            "bbox": List(List(Value("float32"))),
            "category": List(ClassLabel(names=["red", "blue", "green"])),
        },
    })
    numbered = {"red": 0, "blue": 1}

    def objects(i):
        return {**scene(i)[1], "category": [numbered[name] for name in scene(i)[1]["category"]]}

    assert read(splits(objects=objects, features=kinds)).class_names == ("red", "blue", "green")
    data = splits(objects=objects)
    named = read(data, class_names=["cat", "dog"])
    assert named.class_names == ("cat", "dog")
    assert named.splits["train"][0]["categories"] == [0, 1]
    # A trained model knows classes by name, however another data set numbers them.
    again = OBJECT_DETECTION.read_again(
        splits(objects=objects, features=kinds), config("m", "rows", class_names=["blue", "red"]), True
    )
    assert again.splits["test"][0]["categories"] == [1, 0]


def test_a_class_of_the_picture_is_none_of_its_objects():
    kinds = Features({
        "image": Image(),
        "objects": {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=["red", "blue"]))},
        "label": ClassLabel(names=["kitchen", "street"]),
    })
    values = [{"bytes": content(scene(i)[0]), "path": None} for i in range(4)]
    objects = [{**scene(i)[1], "category": [i % 2, 0]} if i else {"bbox": [], "category": []} for i in range(4)]
    made = Dataset.from_dict({"image": values, "objects": objects, "label": [1, 0, 1, 0]}, features=kinds)
    data = read(DatasetDict(train=made, validation=made))
    assert data.class_names == ("red", "blue")
    assert data.splits["train"]["categories"] == [[], [1, 0], [0, 0], [1, 0]]
    # Where boxes are bare, it is the class of each.
    bare = made.remove_columns("objects").add_column("bboxes", [one["bbox"][:1] for one in objects])
    data = read(DatasetDict(train=bare, validation=bare))
    assert data.class_names == ("kitchen", "street")
    assert data.splits["train"]["categories"] == [[], [0], [1], [0]]


def test_one_class_is_enough(models, tmp_path):
    data = splits(objects=lambda i: {**scene(i)[1], "category": ["cell"] * 2})
    finetune(config(models("yolos"), "rows"), arguments(tmp_path, max_steps=1), splits=data)
    folder = tmp_path.parent / "one-class"
    data["test"].save_to_disk(str(folder))
    assert evaluate_run(tmp_path, str(folder))["per_class"]["cell"]["support"] == 16


def test_crowds_are_left_out_and_counted():
    data = read(splits(objects=crowded))
    assert data.facts["crowds"] == {"train": 8, "validation": 8, "test": 8}
    assert data.facts["objects"]["train"] == 8


def test_crowds_are_known_where_only_they_are_marked():
    def marked(i):
        first, second = listed(i)
        return json.dumps([first, {**second, "iscrowd": 1}])

    data = read(splits(objects=marked))
    assert data.facts["crowds"]["train"] == data.facts["objects"]["train"] == 8


def test_boxes_are_meant_for_the_picture_as_it_is_shown():
    picture = scene(0)[0]
    exif = picture.getexif()
    exif[0x0112] = 6  # a camera held on its side: 60 x 48 pixels are shown as 48 x 60
    value = {"bytes": content(picture, "JPEG", exif=exif), "path": None}
    made = {"image": [value] * 4, "objects": [{"bbox": [[0, 0, 48, 60]], "category": ["red"]}] * 4}
    data = read(DatasetDict(train=Dataset.from_dict(made).cast_column("image", Image())))
    assert {(row["width"], row["height"]) for row in data.splits["train"]} == {(48, 60)}


def changed(number, **objects):
    """Scenes of which one has other objects."""
    return splits(objects=lambda i: {**scene(i)[1], **objects} if i == number else scene(i)[1])


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"bbox": [[1, 1, 5, 5]]}, r"a class for each box.+but 1 of the train split is.+row 3.+1 boxes, 2 classes"),
        ({"bbox": [[1, 1, 5, 5], [1, 1, 0, 5]]}, r"a width and a height above 0.+row 3.+\[1, 1, 0, 5\] in 60 x 48"),
        ({"bbox": [[1, 1, 5, 5], [9, 9, -5, 5]]}, r"above 0.+\[9, 9, -5, 5\]"),
        ({"bbox": [[1, 1, 5, 5], [50, 1, 12, 5]]}, r"inside its picture.+row 3.+\[50, 1, 12, 5\] in 60 x 48 pixels"),
        ({"bbox": [[1, 1, 5, 5], [-3, 1, 12, 5]]}, r"inside its picture"),
        ({"bbox": [[1, 1, 5, 5], [60.5, 1, 0.4, 5]]}, r"inside its picture"),
        ({"bbox": [[1, 1, 5, 5], [1, 1, 5, float("nan")]]}, r"four finite numbers.+row 3"),
        ({"bbox": [[1, 1, 5, 5], [1, 1, 5]]}, r"four finite numbers.+row 3"),
        ({"iscrowd": [0]}, r"row 3.+2 boxes, 1 values of `iscrowd`"),
        ({"category": ["red", None]}, r"all names or all whole numbers, but are of the types NoneType, str"),
    ],
)
def test_bad_objects_are_refused_with_their_rows(objects, message):
    with pytest.raises(ValueError, match=message):
        read(changed(3, **objects))


def test_classes_and_objects_of_other_kinds_are_refused():
    def nested(i):
        return json.dumps({**scene(i)[1], "category": [["red"], ["blue"]]})

    with pytest.raises(ValueError, match="all names or all whole numbers, but are of the types list"):
        read(splits(objects=nested))
    with pytest.raises(ValueError, match="must hold objects such as"):
        read(splits(objects=lambda i: json.dumps([*listed(i), 5])))


def test_boxes_outside_by_rounding_are_cut_and_counted():
    data = read(changed(3, bbox=[[-0.6, 1, 5, 5], [40, 1, 20.9, 5]]))
    assert data.splits["train"][3]["boxes"] == [[0.0, 1.0, 4.4, 6.0], [40.0, 1.0, 60.0, 6.0]]
    assert data.facts["clipped_boxes"] == {"train": 2, "validation": 2, "test": 2}


@pytest.mark.parametrize(
    ("objects", "given", "fits"),
    [(cornered, "xywh", "xyxy"), (relative, "xywh", "yolo"), (lambda i: scene(i)[1], "xyxy", "xywh")],
)
def test_another_format_is_told_by_its_name(objects, given, fits):
    with pytest.raises(ValueError, match=f"--box_format {given}.+would fit `--box_format {fits}`"):
        read(splits(objects=objects), box_format=given)


def test_a_split_without_any_object_is_refused():
    data = DatasetDict(train=rows(), validation=rows(objects=lambda i: {"bbox": [], "category": []}))
    with pytest.raises(ValueError, match="The validation split must hold objects, but all its 8 pictures are without"):
        read(data)


def test_pictures_without_objects_are_divided_evenly():
    def sparse(count, every):
        return DatasetDict(train=rows(count, lambda i: {"bbox": [], "category": []} if i % every else scene(i)[1]))

    for seed in range(5):
        config_of = config("m", "rows", validation_fraction=0.25)
        divided = OBJECT_DETECTION.read(sparse(8, 2), config_of, seed).splits
        assert [sum(map(bool, divided[split]["boxes"])) for split in ("train", "validation")] == [3, 1]
        assert "filled" not in divided["train"].column_names + divided["validation"].column_names
    with pytest.raises(ValueError, match=r"validation split must hold objects, but none of the 2.+of 8 rows 1 have"):
        OBJECT_DETECTION.read(sparse(8, 8), config("m", "rows", validation_fraction=0.25), 0)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (lambda i: {"category": ["red"]}, "must have boxes .bbox.+but have category"),
        (lambda i: {"bbox": [[1, 1, 5, 5]]}, "must have classes .category.+but have bbox"),
        (lambda i: "red", "must hold objects such as .+but holds 'red'"),
        (lambda i: [[1, 1, 5, 5]], "must hold objects such as .+--label_column"),
    ],
)
def test_columns_of_something_else_are_refused(objects, message):
    with pytest.raises(ValueError, match=message):
        read(splits(objects=objects))


def test_unknown_classes_are_refused():
    with pytest.raises(ValueError, match="must be among cat, blue, but the data has 'red'"):
        read(splits(), class_names=["cat", "blue"])
    with pytest.raises(ValueError, match="must be among cat, dog, but the data has 7"):
        read(splits(objects=lambda i: {"bbox": [[1, 1, 5, 5]], "category": [i and 7]}), class_names=["cat", "dog"])


def test_unreadable_pictures_are_named_or_left_out(tmp_path):
    data = write_folder(tmp_path / "data", train=6, validation=2)
    (data / "train" / "3.png").write_bytes(b"no picture")
    found = load_splits(config("m", data))
    with pytest.raises(ValueError, match=r"readable image, but 1 of 6 in the train split do not \(3.png"):
        OBJECT_DETECTION.read(found, config("m", data), 0)
    kept = OBJECT_DETECTION.read(found, config("m", data, skip_unreadable=True), 0)
    assert kept.facts["skipped"] == {"train": 1}
    assert len(kept.splits["train"]) == 5
    assert [row["width"] for row in kept.splits["train"]] == [60 + n % 3 * 4 for n in (0, 1, 2, 4, 5)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box_format": "coco"}, "`box_format` must be one of xywh, xyxy, yolo, but got 'coco'"),
        ({"score_threshold": 1}, "`score_threshold` must be at least 0 and below 1, but got 1"),
        ({"class_names": []}, "`class_names` must be at least one name"),
    ],
)
def test_wrong_options_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config("m", "rows", **changes)


def test_more_objects_than_queries_are_told(models, tmp_path, caplog):
    many = {"bbox": [[i, i, 5, 5] for i in range(9)], "category": ["red"] * 9}
    with caplog.at_level(logging.WARNING):
        prepare(config(models("yolos"), "rows"), arguments(tmp_path), splits=splits(objects=lambda i: many))
    assert "A picture has 9 objects, but YolosForObjectDetection finds 8 at most" in caplog.text


# Measures


ONE = {"boxes": [[0, 0, 10, 10]], "labels": [0]}


def test_average_precision_by_hand():
    # One of two boxes is found: precision 1 up to recall 0.5, which are 51 of 101 recalls, and 0 beyond.
    found = [{**ONE, "scores": [0.9]}, {"boxes": [], "labels": [], "scores": []}]
    given = [ONE, {"boxes": [[20, 20, 30, 30]], "labels": [0]}]
    measured = average_precision(found, given, 2)
    assert measured["map"] == measured["map_50"] == measured["map_75"] == pytest.approx(51 / 101)
    assert measured["mar_100"] == 0.5
    assert measured["map_per_class"] == [pytest.approx(51 / 101), None]
    assert MeanAveragePrecision().compute(predictions=found, references=given, classes=2) == measured
    # An overlap of 64 of 100 pixels is enough for 0.5, 0.55 and 0.6: three of ten thresholds.
    close = average_precision([{"boxes": [[0, 0, 8, 8]], "labels": [0], "scores": [0.9]}], [ONE])
    assert (close["map"], close["map_50"], close["map_75"]) == (pytest.approx(0.3), 1, 0)
    assert average_precision([{"boxes": [], "labels": [], "scores": []}], [ONE])["map"] == 0


def test_boxes_are_paired_by_hand():
    assert overlaps(np.array([[0, 0, 10, 10.0]]), np.array([[0, 0, 8, 8.0], [5, 0, 15, 10], [20, 20, 30, 30]])) == (
        pytest.approx(np.array([[0.64, 1 / 3, 0]]))
    )
    found = {"boxes": [[0, 0, 8, 8], [0, 0, 10, 10], [0, 0, 10, 10]], "scores": [0.9, 0.8, 0.7], "labels": [0, 0, 1]}
    right, hit = match_boxes(found, ONE)
    assert right.tolist() == [True, False, False]  # the surest takes it, though another fits better
    assert hit.tolist() == [True]
    right, hit = match_boxes({"boxes": [], "scores": [], "labels": []}, ONE)
    assert (right.tolist(), hit.tolist()) == ([], [False])


def test_no_box_at_all_cannot_be_measured():
    with pytest.raises(ValueError, match="must hold boxes, but hold none in any row"):
        average_precision([{**ONE, "scores": [0.5]}], [{"boxes": [], "labels": []}])


def scattered(seed, rows=12, classes=3):
    """Given boxes, and found ones: most of them shifted, some at random."""
    draws, found, given = np.random.default_rng(seed), [], []
    for _ in range(rows):
        count = int(draws.integers(0, 5))
        low = draws.uniform(0, 150, (count, 2))
        boxes = np.concatenate([low, low + draws.uniform(5, 120, (count, 2))], 1)
        labels = draws.integers(0, classes, count)
        given.append({"boxes": boxes, "labels": labels})
        near, low = boxes + draws.normal(0, 6, boxes.shape), draws.uniform(0, 150, (3, 2))
        more = np.concatenate([near, np.concatenate([low, low + 40], 1)])
        scores = draws.uniform(0, 1, len(more))
        found.append({"boxes": more, "scores": scores, "labels": np.append(labels, draws.integers(0, classes, 3))})
    return found, given


def test_average_precision_equals_that_of_torchmetrics(monkeypatch):
    pytest.importorskip("torchmetrics", reason='pip install "hf-transfer-plugin[test]"')
    from torchmetrics.detection import mean_ap

    # It asks for torchvision only to turn boxes of corners into boxes with sizes.
    ops = types.ModuleType("torchvision.ops")
    ops.box_convert = lambda boxes, in_fmt, out_fmt: torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.ops", ops)
    monkeypatch.setattr(mean_ap, "_TORCHVISION_AVAILABLE", True)
    found, given = scattered(0)
    metric = mean_ap.MeanAveragePrecision(backend="faster_coco_eval", class_metrics=True)
    metric.update(
        *([{name: torch.as_tensor(v) for name, v in row.items()} for row in part] for part in (found, given))
    )
    theirs, ours = metric.compute(), average_precision(found, given, 3)
    for name in ("map", "map_50", "map_75", "mar_100"):
        assert ours[name] == pytest.approx(float(theirs[name]), abs=1e-6)
    assert ours["map_per_class"] == pytest.approx(theirs["map_per_class"].tolist(), abs=1e-6)


def test_objects_are_told_in_words():
    given = {"labels": np.array([0, 1, 0])}
    assert words(given, NAMES) == "2 blue, red"
    assert words({**given, "scores": np.array([0.9, 0.8, 0.7])}, NAMES) == "blue 0.90, red 0.80, blue 0.70"
    assert words({"labels": np.array([], int)}, NAMES) == "nothing"
    assert words({"labels": np.zeros(9, int), "scores": np.ones(9)}, NAMES).endswith("blue 1.00 and 3 more")


# Models, strategies, adapters, cache, resume


HEADS = ("class_labels_classifier", "bbox_predictor", "class_embed", "bbox_embed", "enc_score_head", "enc_bbox_head")


@pytest.mark.parametrize("name", [name for name in MODELS if name != "yolos"])
def test_a_detector_is_divided_into_backbone_encoder_decoder_and_head(name):
    kind, made = MODELS[name]
    model = getattr(transformers, f"{kind}ForObjectDetection")(made())
    groups = discover_layer_groups(model)
    parts = [group.name.partition(".")[0] for group in groups]
    assert list(dict.fromkeys(parts)) == ["embeddings", "backbone", "encoder", "decoder", "head"]
    assert parts.count("backbone") == 4
    assert parts.count("decoder") == 2
    assert {n for n, _ in model.named_parameters() if any(head in n for head in HEADS)} <= set(groups[-1].parameters)
    assert sum(len(group.parameters) for group in groups) == len(dict(model.named_parameters()))
    # Too small a picture for four levels of maps: verified by the first real batch.
    assert groups.verified or name == "deformable"


@pytest.mark.parametrize("name", ["rt_detr", pytest.param("detr", marks=pytest.mark.slow)])
def test_a_head_for_other_classes_is_new_and_learns_first(name, models, tmp_path):
    prepared = prepare(
        config(models(name), "rows", strategy="gradual-unfreezing"), arguments(tmp_path), splits=splits()
    )
    assert prepared.model.config.id2label == {0: "blue", 1: "red"}
    assert prepared.new_weights
    assert prepared.new_weights <= set(prepared.groups[-1].parameters)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("rt_detr", "feature-extraction"),
        pytest.param("yolos", '{"name": "freeze-first", "k": 2}', marks=pytest.mark.slow),
        *(pytest.param(name, "feature-extraction", marks=pytest.mark.slow) for name in MODELS if name != "rt_detr"),
        *(
            pytest.param("rt_detr", name, marks=pytest.mark.slow)
            for name in (
                "full",
                "bitfit",
                "norm-only",
                "gradual-unfreezing",
                "chain-thaw",
                "plateau",
                "layer-sampling",
            )
        ),
    ],
)
def test_what_is_frozen_stays_still_to_the_bit(name, strategy, models, tmp_path):
    given = config(models(name), "rows", strategy=strategy)
    prepared = prepare(given, arguments(tmp_path), splits=splits())
    before = {key: value.clone() for key, value in prepared.model.state_dict().items()}
    record = finetune(given, arguments(tmp_path / "run", num_train_epochs=1), splits=splits())
    # By the model's own names: some parts are saved under others.
    after = type(prepared.model).from_pretrained(tmp_path / "run").state_dict()
    assert before.keys() == after.keys()
    if strategy in ("feature-extraction", '{"name": "freeze-first", "k": 2}'):
        groups = prepared.groups[:-1] if strategy == "feature-extraction" else prepared.groups[:2]
        frozen = {parameter for group in groups for parameter in group.parameters}
        still = {
            key for key in after if key in frozen or "running" in key and f"{key.rpartition('.')[0]}.weight" in frozen
        }
        assert frozen <= still
        assert all(torch.equal(before[key], after[key]) for key in still)
        assert any(not torch.equal(before[key], after[key]) for key in after if key not in still)
    assert np.isfinite(record.metrics["loss"])


@pytest.mark.parametrize(
    "name", ["yolos", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rt_detr", "detr"))]
)
def test_lora_is_saved_and_loaded_again(name, models, tmp_path):
    data = splits(count=4)
    given = arguments(tmp_path, max_steps=1)
    record = finetune(config(models(name), "rows", strategy="lora"), given, splits=data)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    folder = tmp_path.parent / "lora-data"
    data["test"].save_to_disk(str(folder))
    assert evaluate_run(tmp_path, str(folder))["metrics"] == pytest.approx(record.metrics, abs=1e-5)


@pytest.mark.parametrize("name", ["d_fine", "deformable"])
def test_lora_that_peft_cannot_put_on_is_refused(name, models, tmp_path):
    model = models(name, height=128, width=128)
    with pytest.raises(ValueError, match=f"PEFT cannot put LORA into {MODELS[name][0]}ForObjectDetection"):
        prepare(config(model, "rows", strategy="lora"), arguments(tmp_path), splits=splits())


def test_smoothed_labels_are_refused(models, tmp_path):
    smoothed = arguments(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="object-detection learns from boxes. Leave `--label_smoothing_factor` out"):
        prepare(config(models("yolos"), "rows"), smoothed, splits=splits(count=2))


def test_lp_ft_is_refused(models, tmp_path):
    with pytest.raises(ConfigError, match="'lp-ft' solves an output layer of classes, which object-detection has not"):
        prepare(config(models("yolos"), "rows", strategy="lp-ft"), arguments(tmp_path), splits=splits())


@pytest.mark.parametrize("name", ["yolos", pytest.param("rt_detr", marks=pytest.mark.slow)])
def test_the_prefix_cache_is_read_and_in_32_bits_changes_nothing(name, models, tmp_path):
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
@pytest.mark.parametrize("name", ["rt_detr", "detr"])
def test_a_resumed_run_equals_one_that_was_not_stopped(name, models, tmp_path):
    given = config(models(name), "rows", strategy="gradual-unfreezing")
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


def test_drawn_pictures_show_what_is_right_invented_and_missed():
    gray = {"bytes": content(Pillow.new("RGB", (100, 100), "gray")), "path": None}
    given = {"boxes": np.array([[10, 40, 40, 80], [60, 40, 90, 80.0]]), "labels": np.array([0, 1])}
    found = {
        "boxes": np.array([[10, 40, 40, 80], [1, 85, 30, 99.0]]), "labels": np.array([0, 0]), "scores": np.ones(2)
    }  # fmt: skip
    picture = draw(gray, found, given, np.array([True, False]), np.array([True, False]), NAMES)
    colours = {colour for _, colour in picture.getcolors(10**6)}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in (RIGHT, INVENTED, MISSED)} <= colours


@pytest.mark.distributed
def test_two_processes_find_in_every_row_what_one_does(launch, models, tmp_path):  # noqa: F811
    data = write_folder(tmp_path / "data", train=16, validation=4, test=7)  # odd: one process gets a row twice
    given = {"model": models("yolos"), "dataset": data, "task": TASK, "output_dir": tmp_path / "run", "max_steps": 3}
    given |= {"score_threshold": 0.2, "demo_examples": 7, "use_cpu": "true", "report_to": "none"}
    # The learning is not compared: Transformers divides box losses of DETR and YOLOS by the processes once too often.
    done = launch("train", *(str(word) for flag, value in given.items() for word in (f"--{flag}", value)))
    assert done.returncode == 0, done.stderr
    record, alone = TransferRecord.load(tmp_path / "run"), evaluate_run(tmp_path / "run", str(data), errors=7)
    assert record.hardware["processes"] == 2
    # Row by row, in their order: every box above the threshold with its score.
    assert len(record.samples) == 7
    assert [row["prediction"] for row in record.samples] == [row["prediction"] for row in alone["samples"]]
    assert any(row["prediction"] != "nothing" for row in record.samples)
    assert {name: record.metrics[name] for name in ("map", "mar_100")} == pytest.approx({
        name: alone["metrics"][name] for name in ("map", "mar_100")
    })


@pytest.mark.parametrize(("name", "told"), [("detr", True), ("rt_detr", False)])
def test_losses_that_weigh_more_with_several_processes_are_told(name, told, models, monkeypatch, caplog):
    model = transformers.AutoModelForObjectDetection.from_pretrained(models(name))
    for processes in (1, 2):
        monkeypatch.setattr(
            detecting, "PartialState", lambda processes=processes: types.SimpleNamespace(num_processes=processes)
        )
        detecting._tell_of_processes(model)
        assert ("2 times as heavy" in caplog.text) == (told and processes == 2)
