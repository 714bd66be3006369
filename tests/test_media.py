"""Images and sounds in rows: which column holds them, which files are read, and what becomes of them on a page."""

import base64
import io
import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pillow

from hf_transfer_plugin import TransferConfig
from hf_transfer_plugin.hub.samples import SampleFile, with_files
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.tasks import load_splits
from hf_transfer_plugin.tasks.media import (
    COLUMNS,
    check_media,
    image_uri,
    look_at_image,
    media_columns,
    name_of,
    read_image,
    with_media,
    with_names,
)
from tests.tiny_pictures import content, picture, write_folder


def config(dataset="rows", **changes):
    return TransferConfig(model="m", dataset=str(dataset), task="image-classification", **changes)


def in_memory(*values, column="image"):
    features = Features({column: Image(decode=False)})
    return DatasetDict(train=Dataset.from_dict({column: list(values)}, features=features))


def value(number=0, **settings):
    return {"bytes": content(picture(number, light=True, **settings)), "path": None}


# Columns and files


@pytest.mark.parametrize("name", COLUMNS["image"])
def test_image_column_is_guessed(name):
    splits, column = media_columns(in_memory(value(), column=name), config(), "image")
    assert column == name
    assert splits["train"][0][name].keys() == {"bytes", "path"}


def test_named_column_wins():
    rows = in_memory(value())["train"].add_column("other", [content(picture(1, light=False))])
    splits, column = media_columns(DatasetDict(train=rows), config(image_column="other"), "image")
    assert column == "other"
    assert read_image(splits["train"][0]["other"]).size == (30, 24)


def test_files_beside_the_data_are_taken_before_those_where_the_command_runs(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for folder, number in ((tmp_path, 1), (tmp_path / "data", 2)):
        Pillow.new("RGB", (number, number)).save(folder / "a.png")
    Pillow.new("RGB", (3, 3)).save(tmp_path / "b.png")
    (tmp_path / "data" / "rows.csv").write_text("image\na.png\nb.png\n")
    monkeypatch.chdir(tmp_path)
    given = config(tmp_path / "data" / "rows.csv")
    rows = media_columns(load_splits(given), given, "image")[0]["train"]
    assert [read_image(value).size for value in rows["image"]] == [(2, 2), (3, 3)]


def test_missing_column_is_told():
    with pytest.raises(ValueError, match="The image column must be in the data: expected one of image, img"):
        media_columns(DatasetDict(train=Dataset.from_dict({"x": [1]})), config(), "image")


def test_paths_in_a_file_are_taken_from_its_folder(tmp_path):
    (tmp_path / "files").mkdir()
    picture(1, light=True).save(tmp_path / "files" / "a.png")
    (tmp_path / "rows.csv").write_text(f"file_name,label\nfiles/a.png,x\n{tmp_path}/files/a.png,y\n")
    given = config(tmp_path / "rows.csv")
    splits, column = media_columns(load_splits(given), given, "image")
    assert column == "file_name"
    assert [read_image(row["file_name"]).size for row in splits["train"]] == [(30, 24)] * 2


def test_folders_of_classes_and_splits_are_read(tmp_path):
    splits = load_splits(config(write_folder(tmp_path, train=4, validation=2, test=2)))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 4, "validation": 2, "test": 2}
    assert splits["train"].features["label"].names == ["dark", "light"]


def test_folder_with_a_metadata_file_is_read(tmp_path):
    for name in ("a.png", "b.png"):
        picture(1, light=True).save(tmp_path / name)
    lines = [json.dumps({"file_name": name, "score": 0.5}) for name in ("a.png", "b.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    train = load_splits(config(tmp_path))["train"]
    assert sorted(train.column_names) == ["image", "score"]
    assert len(train) == 2


@pytest.mark.parametrize(("name", "role"), [("a.PNG", "image"), ("a.jpeg", "image"), ("a.flac", "audio")])
def test_a_single_file_is_a_row(tmp_path, name, role):
    (tmp_path / name).write_bytes(b"x")
    assert load_splits(config(tmp_path / name))["train"][0] == {role: str(tmp_path / name)}


# Opening


def test_every_file_is_opened_before_training():
    bad = {"bytes": b"no image", "path": "notes.png"}
    with pytest.raises(ValueError, match=r"1 of 2 in the train split do not \(notes.png: cannot identify.+skip_"):
        check_media(in_memory(value(), bad), "image", look_at_image, role="image", skip=False)
    kept, told = check_media(in_memory(value(), bad, value(1)), "image", look_at_image, role="image", skip=True)
    assert len(kept["train"]) == 2
    assert told["kinds"] == {"RGB": 2}
    assert list(told["skipped"]) == ["train"]
    assert told["skipped"]["train"][0].startswith("notes.png: ")


def test_a_file_that_only_the_metadata_knows_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    for number in range(2):
        (tmp_path / "train" / f"{number}.png").write_bytes(content(picture(number, light=True)))
    lines = [json.dumps({"file_name": f"{name}.png", "label": "a"}) for name in (0, 1, "gone")]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(lines))
    given = TransferConfig(model="model", dataset=str(tmp_path))
    splits, column = media_columns(load_splits(given), given, "image")
    with pytest.raises(ValueError, match=r"1 of 3 in the train split do not \(gone.png: .*No such file"):
        check_media(splits, column, look_at_image, role="image", skip=False)


def test_a_split_of_which_nothing_can_be_read_is_refused_all_the_same():
    bad = {"bytes": b"", "path": None}
    with pytest.raises(ValueError, match="1 of 1 in the train split") as error:
        check_media(in_memory(bad), "image", look_at_image, role="image", skip=True)
    assert "skip_unreadable" not in str(error.value)


def test_missing_values_are_told_by_their_row():
    with pytest.raises(ValueError, match="row 1, counted from 0: it is missing"):
        check_media(in_memory(value(), None), "image", look_at_image, role="image", skip=False)
    assert name_of({"path": "/a/b.png"}, 3) == "b.png"


def test_truncated_images_are_found():
    cut = {"bytes": value()["bytes"][:300], "path": "cut.png"}
    with pytest.raises(OSError, match="truncated|broken"):
        look_at_image(cut)


def test_a_missing_library_is_no_broken_file():
    def look(_):
        raise ImportError("needs soundfile")

    with pytest.raises(ImportError, match="needs soundfile"):
        check_media(in_memory(value()), "image", look, role="image", skip=True)


def test_images_are_turned_as_the_camera_says_and_made_rgb():
    image = Pillow.new("L", (20, 10), 0)
    image.putpixel((0, 0), 255)
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    found = read_image({"bytes": content(image, exif=exif), "path": None})
    assert (found.mode, found.size) == ("RGB", (20, 10))
    assert found.getpixel((19, 9)) == (255, 255, 255)


@pytest.mark.parametrize("look", [read_image, look_at_image])
def test_deep_images_are_refused(look):
    deep = Pillow.fromarray(np.full((4, 4), 40_000, np.uint16))
    with pytest.raises(ValueError, match="8 bits for each colour are expected, but its mode is I;16"):
        look({"bytes": content(deep), "path": None})


def test_rows_are_made_when_they_are_read():
    made = []

    def make(batch):
        made.append(len(batch["image"]))
        return {"size": [read_image(one).width for one in batch["image"]]}

    rows = with_media(in_memory(value(), value(1))["train"], ["image"], make)
    assert made == []
    assert rows[1] == {"size": 30}
    assert rows[:] == {"size": [30, 30]}
    assert made == [1, 2]


def test_rows_are_told_by_the_names_of_their_files(tmp_path):
    picture(1, light=True).save(tmp_path / "a.png")
    features = Features({"image": Image(), "label": Value("string")})
    rows = Dataset.from_dict({"image": [str(tmp_path / "a.png"), None], "label": ["x", "y"]}, features=features)
    assert list(with_names(rows)) == [
        {"image": str(tmp_path / "a.png"), "label": "x"},
        {"image": None, "label": "y"},
    ]


# Records and pages


@pytest.mark.parametrize(
    ("size", "longest", "kind", "shown"),
    [((30, 24), 384, "png", (30, 24)), ((300, 150), 96, "jpeg", (96, 48)), ((2000, 1000), 384, "jpeg", (384, 192))],
)
def test_images_in_a_record_are_small(size, longest, kind, shown):
    uri = image_uri(value(size=size), longest)
    head, _, body = uri.partition(",")
    assert head == f"data:image/{kind};base64"
    with Pillow.open(io.BytesIO(base64.b64decode(body))) as image:
        assert image.size == shown


def test_data_uris_become_files_beside_the_card():
    sound = f"data:audio/flac;base64,{base64.b64encode(b'fLaC').decode()}"
    evil = "data:text/html;base64,PHNjcmlwdD4="
    record = TransferRecord(
        task="image-classification",
        base_model="x",
        examples=[{"image": image_uri(value()), "label": "a"}, {"text": evil}],
        errors=[{"audio": sound, "label": "b"}],
    )
    told, files = with_files(record)
    assert set(files) == {"examples/example-0-image.png", "examples/error-0-audio.flac"}
    assert files["examples/error-0-audio.flac"] == b"fLaC"
    assert told.examples[1]["text"] == evil
    assert isinstance(told.examples[0]["image"], SampleFile)
    assert told.examples[0]["image"].markdown == "![example-0-image](examples/example-0-image.png)"
    assert told.errors[0]["audio"].markdown == "[error-0-audio](examples/error-0-audio.flac)"
    assert record.examples[0]["image"].startswith("data:")


def test_records_without_files_are_left_as_they_are():
    record = TransferRecord(task="fill-mask", base_model="x", examples=[{"text": "data:image/png;base64,%%%"}])
    assert with_files(record) == (record, {})
