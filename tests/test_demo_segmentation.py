"""The demo that gives every pixel a class: what it computes, by itself, by a client and in a browser."""

import sys
from pathlib import Path

import gradio.utils
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_transfer_plugin.hub import render_space
from hf_transfer_plugin.hub.demo import SPACE_TASKS
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.tasks.maps import most_likely
from hf_transfer_plugin.tasks.media import picture_uri
from tests.test_demo import settings_of, space  # noqa: F401
from tests.test_demo_browser import browser, client, faults, open_page, page, served  # noqa: F401
from tests.tiny_scenes import save_model, scene

TASK, NAMES = "image-segmentation", ["ground", "light", "red"]


def scene_record(**changes):
    values = {
        "task": TASK,
        "base_model": "tiny-segformer",
        "class_names": NAMES,
        "dataset": {"name": "scenes", "local": True, "columns": {"image": "image", "label": "mask"}},
        "metrics": {"mean_iou": 0.9, "pixel_accuracy": 0.95},
        "metrics_split": "test",
        "options": {"mask_values": "numbers"},
        "examples": [{"image": picture_uri(scene(i)[0]), "label": ["ground", "light"]} for i in range(2)],
        "versions": {"transformers": "5.23.0"},
    }
    return TransferRecord(**{**values, **changes})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    names = dict(enumerate(NAMES))
    folder = tmp_path_factory.mktemp("demo") / "model"
    return save_model("segformer", folder, id2label=names, label2id={v: k for k, v in names.items()})


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
    settings = settings_of(space, render_space(scene_record(), tmp_path / "space", "me/model"))
    demo = space.app.TASKS[settings.task, settings.form]
    loaded = space.loading.load(settings, model, demo.auto_class, processor=demo.processor)
    space.page.build(settings, demo, loaded, model)
    return demo, loaded, space.page.answering(settings, demo, loaded)


def test_the_space_says_how_to_send_a_file(tmp_path):
    text = (render_space(scene_record(), tmp_path, "me/model") / "README.md").read_text()
    assert "A fine-tuned model gives each pixel of an image its class" in text
    assert 'predict(handle_file("picture.jpg"), api_name="/segment")' in text
    assert (TASK, "") in SPACE_TASKS


def test_answer_is_that_of_the_pipeline(asked, uploads, model):
    file = uploads / "a.png"
    scene(1, (60, 44))[0].save(file)
    (image, masks), shares = asked[2]({"path": str(file)})
    assert image.size == (60, 44)
    theirs = {one["label"]: np.asarray(one["mask"]) > 0 for one in pipeline(TASK, model=model)(str(file))}
    ours = {name: mask > 0 for mask, name in masks}
    assert ours.keys() == theirs.keys() == shares.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert shares == pytest.approx({name: there.mean() for name, there in theirs.items()})
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_large_images_are_answered_at_a_size_that_a_page_can_show(asked, uploads):
    file = uploads / "a.png"
    scene(1, (60, 44))[0].resize((1800, 900)).save(file)
    (image, masks), _ = asked[2]({"path": str(file)})
    assert image.size == (1024, 512)
    assert all(mask.shape == (512, 1024) for mask, _ in masks)


def test_every_class_is_weighed_at_every_pixel(space):  # noqa: F811
    logits = torch.randn(1, 4, 5, 6)
    model = torch.nn.Identity()
    model.forward, model.device = lambda pixel_values: type("Outputs", (), {"logits": logits}), "cpu"
    batch = type("Batch", (dict,), {"to": lambda self, device: self})(pixel_values=torch.zeros(1))
    loaded = type("Loaded", (), {"processor": staticmethod(lambda images, return_tensors: batch)})
    found = space.segmentation_input.ask(loaded, model, Image.new("RGB", (31, 23)))[1]
    assert (found == most_likely(logits[0], (23, 31))).all()


@pytest.mark.parametrize(
    ("value", "message"), [(None, "There is no image"), ({"path": "/etc/hostname"}, "no uploaded file")]
)
def test_what_is_no_upload_is_refused(value, message, asked, uploads):
    with pytest.raises(Exception, match=message):
        asked[2](value)


def test_an_answer_that_is_no_number_is_told(asked, uploads, space):  # noqa: F811
    file = uploads / "a.png"
    scene(1)[0].save(file)
    with torch.no_grad():
        asked[1].model.decode_head.classifier.bias[0] = float("nan")
    with pytest.raises(space.limits.InputError, match="has no answer"):
        asked[2]({"path": str(file)})


@pytest.fixture(scope="module")
def url(served, model, tmp_path_factory):  # noqa: F811
    folder = render_space(scene_record(), tmp_path_factory.mktemp("work") / "space", "me/model")
    return served([sys.executable, "app.py", "--model", model], cwd=folder)[0]


@pytest.mark.hub
def test_a_client_sends_a_file(url, client, model, tmp_path):  # noqa: F811
    from gradio_client import handle_file

    file = tmp_path / "scene.png"
    scene(3)[0].save(file)
    drawn, shares = client(url).predict(handle_file(str(file)), api_name="/segment")
    theirs = {one["label"]: (np.asarray(one["mask"]) > 0).mean() for one in pipeline(TASK, model=model)(str(file))}
    assert {one["label"]: one["confidence"] for one in shares["confidences"]} == pytest.approx(theirs)
    assert [one["label"] for one in drawn["annotations"]] == sorted(theirs, key=theirs.get, reverse=True)
    for one in drawn["annotations"]:
        with Image.open(one["image"]) as mask:
            assert (np.asarray(mask)[..., 3] > 0).mean() == pytest.approx(theirs[one["label"]])
    with pytest.raises(Exception, match="There is no image"):
        client(url).predict(None, api_name="/segment")


@pytest.mark.hub
def test_the_page_answers_an_uploaded_image_without_accessibility_faults(url, page, tmp_path):  # noqa: F811
    from playwright.sync_api import expect

    file = tmp_path / "scene.png"
    scene(3, (300, 240))[0].save(file)
    open_page(page, url)
    assert faults(page) in {"", "[]"}
    page.locator("#image input[type=file]").first.set_input_files(str(file))
    expect(page.locator("#image img").first).to_be_visible()
    page.locator("button.primary").click()
    expect(page.locator(".answer")).to_contain_text("%")
    expect(page.locator(".drawn img").first).to_be_visible()
    assert faults(page) in {"", "[]"}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#image img")).to_have_count(0)
    expect(page.locator(".drawn img")).to_have_count(0)
