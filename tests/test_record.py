"""The record: a round trip, and files that are never half written."""

import json
import os
from pathlib import Path

import pytest

from hf_transfer_plugin.record import RECORD_NAME, RECORD_VERSION, TransferRecord, write_atomically


def record(**changes):
    values = {
        "task": "text-classification",
        "base_model": "tiny",
        "class_names": ["bad", "güt"],
        "dataset": {"name": "r.csv", "splits": {"train": 3}},
        "phases": [{"step": 0, "groups": ["head"], "trainable_parameters": 5}],
        "metrics": {"accuracy": 0.1 + 0.2},
        "confusion_matrix": [[1, 0], [0, 2]],
    }
    return TransferRecord(**{**values, **changes})


def test_round_trip_by_folder_and_by_file(tmp_path):
    saved = record()
    file = saved.save(tmp_path / "new" / "run")
    assert file == tmp_path / "new" / "run" / RECORD_NAME == saved.path
    for place in (file, file.parent, str(file.parent)):
        loaded = TransferRecord.load(place)
        assert loaded == saved
        assert loaded.path == file
    assert loaded.metrics["accuracy"] == 0.1 + 0.2


def test_file_is_readable_json_without_paths(tmp_path):
    text = record().save(tmp_path).read_text(encoding="utf-8")
    values = json.loads(text)
    assert values["record_version"] == RECORD_VERSION
    assert "path" not in values
    assert str(tmp_path) not in text
    assert "güt" in text
    assert text.endswith("}\n")


def test_same_record_gives_the_same_bytes(tmp_path):
    assert record().save(tmp_path / "a").read_bytes() == record().save(tmp_path / "b").read_bytes()


def test_missing_record_is_told_with_the_way_out(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            ValueError, match=r"Expected a run folder with a transfer_record.json, but .* has none\. Make"
        ):
            TransferRecord.load(place)


def test_record_that_is_no_json_is_told_by_name(tmp_path):
    file = record().save(tmp_path)
    file.write_text(file.read_text()[:40])
    with pytest.raises(ValueError, match=r"'.*transfer_record.json' must be a record, but is no JSON: "):
        TransferRecord.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "unknown"), [({"record_version": RECORD_VERSION + 1}, r"\[\]"), ({"carbon": 3}, r"\['carbon'\]")]
)
def test_newer_record_is_refused(tmp_path, changes, unknown):
    file = record().save(tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=f"newer version of hf-transfer-plugin .unknown: {unknown}.*Upgrade with"):
        TransferRecord.load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_json_does_not_know_are_refused_and_the_old_file_stays(tmp_path, value):
    before = record().save(tmp_path).read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        record(metrics={"loss": value}).save(tmp_path)
    assert (tmp_path / RECORD_NAME).read_bytes() == before
    assert os.listdir(tmp_path) == [RECORD_NAME]


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_failing_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, broken):
    file = tmp_path / "card.md"
    write_atomically(file, "old")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["card.md"]


def test_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "card.md", "new")
    assert os.listdir(tmp_path) == []


def test_whole_text_is_on_disk_before_the_file_gets_its_name(tmp_path, monkeypatch):
    seen = []
    real = os.replace

    def look(source, target):
        seen.append((str(Path(source).parent), Path(source).read_text(encoding="utf-8"), Path(target).exists()))
        real(source, target)

    monkeypatch.setattr(os, "replace", look)
    write_atomically(tmp_path / "deep" / "card.md", "é" * 9)
    assert seen == [(str(tmp_path / "deep"), "é" * 9, False)]
    assert (tmp_path / "deep" / "card.md").stat().st_mode & 0o777 == 0o644
