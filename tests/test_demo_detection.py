"""The demo that finds things: what it accepts and computes, by itself, by a client and in a browser."""

import json
import re
import sys
from pathlib import Path

import gradio.utils
import numpy as np
import pytest
from transformers import pipeline

from hf_transfer_plugin.hub import render_space
from hf_transfer_plugin.hub.card import render_card
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.tasks.media import picture_uri
from tests.test_demo import settings_of, space  # noqa: F401
from tests.test_demo_browser import browser, client, faults, open_page, page, served  # noqa: F401
from tests.tiny_detectors import save_model, scene

TASK = "object-detection"
NAMES = ("blue", "red")
FIGURES = {"average_precision": 0.5, "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 8}


def record(**changes):
    values = {
        "task": TASK,
        "base_model": "tiny-yolos",
        "class_names": list(NAMES),
        "dataset": {"name": "scenes", "local": True, "columns": {"image": "image", "objects": "objects"}},
        "metrics": {"map": 0.5, "map_50": 0.75, "map_75": 0.25, "mar_100": 0.8},
        "metrics_split": "test",
        "options": {"box_format": "xywh", "score_threshold": 0.25},
        "examples": [{"image": picture_uri(scene(i)[0]), "label": "blue, red"} for i in range(2)],
        "versions": {"transformers": "5.23.0"},
    }
    return TransferRecord(**{**values, **changes})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model("yolos", tmp_path_factory.mktemp("demo") / "model", names=NAMES)


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    """Gradio's folder of uploaded files."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    folder = Path(gradio.utils.get_upload_folder())
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def asked(space, model, tmp_path):  # noqa: F811
    """The row of the table, the loaded model, and the function behind the button."""
    settings = settings_of(space, render_space(record(), tmp_path / "space", "me/model"))
    demo = space.app.TASKS[settings.task, settings.form]
    loaded = space.loading.load(settings, model, demo.auto_class, processor=demo.processor)
    space.page.build(settings, demo, loaded, model)
    return demo, loaded, space.page.answering(settings, demo, loaded)


def test_the_space_asks_for_an_image_and_a_threshold(tmp_path):
    folder = render_space(record(), tmp_path, "me/model")
    assert 'predict(handle_file("picture.jpg"), 0.5, api_name="/detect")' in (folder / "README.md").read_text()
    settings = json.loads((folder / "demo.json").read_text())
    assert settings["inputs"] == ["image", "threshold"]
    assert settings["examples"][0] == {
        "image": "examples/example-0-image.png",
        "label": "blue, red",
        "threshold": 0.25,
    }


def test_answer_is_that_of_the_pipeline(asked, uploads, model):
    file = uploads / "a.png"
    scene(1)[0].save(file)
    (shown, drawn), rows = asked[2]({"path": str(file)}, 0.0)
    expected = sorted(pipeline(TASK, model=model)(str(file), threshold=0.0), key=lambda one: -one["score"])
    assert [row[:2] for row in rows] == [[one["label"], pytest.approx(one["score"], abs=1e-3)] for one in expected]
    for row, one in zip(rows, expected, strict=True):
        cut = np.clip(
            list(one["box"].values()), 0, [60, 48, 60, 48]
        )  # to the image; the pipeline cuts to whole pixels
        assert row[2:] == pytest.approx(cut.tolist(), abs=1.05)
    assert shown.size == (480, 384)
    assert len(drawn) == 8
    assert re.fullmatch(r"(blue|red) 0\.\d\d", drawn[0][1])


def test_what_is_drawn_is_the_box_in_the_size_of_the_page(space):  # noqa: F811
    image = scene(0, size=(1000, 500))[0]
    (shown, drawn), rows = space.detection_input.show(None, (image, [["red", 0.9, 100, 100, 300, 400]]))
    assert shown.size == (768, 384)
    mask = drawn[0][0]
    covered = np.argwhere(mask == 1)
    assert covered.min(0).tolist() == [77, 77]
    assert covered.max(0).tolist() == [306, 229]
    assert mask[200, 150] == pytest.approx(0.08)
    assert rows == [["red", 0.9, 100, 100, 300, 400]]
    # Nothing found is an answer, too.
    assert space.detection_input.show(None, (image, []))[1] == []


def test_a_higher_threshold_finds_no_more(asked, uploads):
    file = uploads / "a.png"
    scene(1)[0].save(file)
    counts = [len(asked[2]({"path": str(file)}, sure)[1]) for sure in (0.0, 0.3, 0.9)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


def test_a_threshold_that_is_none_is_refused(asked, uploads):
    file = uploads / "a.png"
    scene(1)[0].save(file)
    for sure in ("0.5", True, 1, -0.1, float("nan"), [0.5]):
        with pytest.raises(Exception, match=r"a number from 0 to below 1, such as 0\.5"):
            asked[2]({"path": str(file)}, sure)


def test_what_is_no_upload_is_refused(asked, uploads):
    with pytest.raises(Exception, match="There is no image"):
        asked[2](None, 0.5)
    with pytest.raises(Exception, match="no uploaded file"):
        asked[2]({"path": "/etc/hostname"}, 0.5)


def test_without_a_threshold_that_of_the_training_holds(space, tmp_path, uploads):  # noqa: F811
    settings = settings_of(space, render_space(record(), tmp_path / "space", "me/model"))
    assert space.detection_input.inputs(settings)[1].value == 0.25
    file = uploads / "a.png"
    scene(1)[0].save(file)
    assert space.detection_input.check(settings, [{"path": str(file)}, None]) == [file, 0.25]


# The card


def test_the_card_tells_classes_counts_and_how_to_ask():
    found = render_card(
        record(
            per_class={"blue": FIGURES, "red": {k: v for k, v in FIGURES.items() if k != "average_precision"}},
            baselines={"mean_box": {"map": 0.01}},
            dataset={
                "name": "scenes",
                "splits": {"train": 9},
                "without_objects": {"train": 2},
                "clipped_boxes": {"train": 3},
            },
        ),
        model="me/model",
    )
    assert "| | mAP | mAP@50 | mAP@75 | mAR@100 | seconds |" in found
    assert "| commonest class in its mean place, in every picture | 0.010 |" in found
    assert "| class | AP | precision | recall | F1 | objects |" in found
    assert "| blue | 0.500 | 0.500 | 0.250 | 0.333 | 8 |" in found
    assert "| red |  | 0.500 | 0.250 | 0.333 | 8 |" in found
    assert "are of boxes with a score above 0.25" in found
    assert "Files that show none of the objects: 2 of train." in found
    assert "Boxes that reached out of their picture by a pixel at most, and were cut: 3 of train." in found
    assert "It finds 2 kinds of things and nothing else." in found
    assert (
        'detect("https://huggingface.co/me/model/resolve/main/examples/example-0-image.png", threshold=0.25)' in found
    )


def test_the_code_on_the_card_runs(model, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = render_card(record(options={"score_threshold": 0.0}), tmp_path / "README.md", model=model)
    code = re.search(r"```python\n(.+?)```", text, re.DOTALL).group(1)
    exec(compile(code, "card", "exec"), {})  # noqa: S102
    assert re.match(r"(blue|red) 0\.\d+ \{'xmin'", capsys.readouterr().out)


# By a client and in a browser


@pytest.fixture(scope="module")
def url(served, model, tmp_path_factory):  # noqa: F811
    folder = render_space(record(), tmp_path_factory.mktemp("work") / "space", "me/model")
    return served([sys.executable, "app.py", "--model", model], cwd=folder)[0]


@pytest.mark.hub
def test_a_client_sends_a_file(url, client, model, tmp_path):  # noqa: F811
    from gradio_client import handle_file

    file = tmp_path / "scene.png"
    scene(3)[0].save(file)
    drawn, table = client(url).predict(handle_file(str(file)), 0.0, api_name="/detect")
    expected = sorted(pipeline(TASK, model=model)(str(file), threshold=0.0), key=lambda one: -one["score"])
    assert [row[0] for row in table["data"]] == [one["label"] for one in expected]
    assert table["headers"] == ["what", "score", "x0", "y0", "x1", "y1"]
    assert len(drawn["annotations"]) == len(expected)
    with pytest.raises(Exception, match="There is no image"):
        client(url).predict(None, 0.5, api_name="/detect")


@pytest.mark.hub
def test_the_page_answers_an_uploaded_image_without_accessibility_faults(url, page, tmp_path):  # noqa: F811
    from playwright.sync_api import expect

    file = tmp_path / "scene.png"
    scene(3, size=(300, 240))[0].save(file)
    open_page(page, url)
    assert faults(page) in {"", "[]"}
    page.locator("#image input[type=file]").first.set_input_files(str(file))
    expect(page.locator("#image img").first).to_be_visible()
    page.get_by_role("spinbutton").first.fill("0.1")
    page.locator("button.primary").click()
    expect(page.locator(".rows")).to_contain_text(re.compile("blue|red"))
    expect(page.locator(".answer img").first).to_be_visible()
    assert faults(page) in {"", "[]"}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
