"""The demo that looks at images: what it accepts and computes, by itself, by a client and in a browser."""

import json
import re
import sys
import urllib.request
from pathlib import Path

import gradio.utils
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_transfer_plugin.hub import render_space
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.tasks.image_classification import Preparing
from hf_transfer_plugin.tasks.media import image_uri
from tests.test_demo import settings_of, space  # noqa: F401
from tests.test_demo_browser import browser, client, faults, open_page, page, served  # noqa: F401
from tests.test_image_classification import FILES
from tests.tiny_pictures import content, picture, processor_of, save_model

TASK, SINGLE = "image-classification", "single_label_classification"
NAMES = ["dark", "light"]


def image_record(**changes):
    values = {
        "task": TASK,
        "base_model": "tiny-vit",
        "problem_type": SINGLE,
        "class_names": NAMES,
        "dataset": {"name": "pictures", "local": True, "columns": {"image": "image", "label": "label"}},
        "metrics": {"accuracy": 0.9},
        "metrics_split": "test",
        "examples": [
            {"image": image_uri({"bytes": content(picture(i, light=i)), "path": None}), "label": NAMES[i]}
            for i in range(2)
        ],
        "versions": {"transformers": "5.23.0"},
    }
    return TransferRecord(**{**values, **changes})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    labels = {"id2label": dict(enumerate(NAMES)), "problem_type": SINGLE}
    return save_model("vit", tmp_path_factory.mktemp("demo") / "model", head=True, **labels)


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
    settings = settings_of(space, render_space(image_record(), tmp_path / "space", "me/model"))
    demo = space.app.TASKS[settings.task, settings.form]
    loaded = space.loading.load(settings, model, demo.auto_class, processor=demo.processor)
    space.page.build(settings, demo, loaded, model)
    return demo, loaded, space.page.answering(settings, demo, loaded)


def test_the_page_says_what_it_does_not_see(asked, space, tmp_path):  # noqa: F811
    demo, loaded, _ = asked
    settings = settings_of(space, render_space(image_record(), tmp_path / "other", "me/model"))
    assert "details of a few pixels are lost" in space.page.about(settings, demo, loaded, "me/model")


def test_the_space_holds_its_examples_and_says_how_to_send_a_file(tmp_path):
    folder = render_space(image_record(), tmp_path, "me/model")
    assert sorted(file.name for file in (folder / "examples").iterdir()) == [
        "example-0-image.png",
        "example-1-image.png",
    ]
    text = (folder / "README.md").read_text()
    assert "A fine-tuned model gives an image one of its classes" in text
    assert 'predict(handle_file("picture.jpg"), api_name="/classify")' in text
    assert "soundfile" not in (folder / "requirements.txt").read_text()


@pytest.mark.parametrize("kind", FILES)
def test_every_image_gives_the_pixels_of_training(kind, asked, uploads):
    (uploads / "picture").write_bytes(FILES[kind]())
    demo, loaded, _ = asked
    image, left_out = demo.read(loaded, [uploads / "picture"])
    pixels = loaded.processor(images=image, return_tensors="pt")["pixel_values"][0]
    trained = Preparing(processor_of("vit"))({"image": [{"bytes": FILES[kind](), "path": None}]})["pixel_values"][0]
    assert torch.equal(pixels, trained)
    assert left_out == ""


def test_answer_is_that_of_the_pipeline(asked, uploads, model):
    file = uploads / "a.png"
    picture(1, light=True).save(file)
    found = asked[2]({"path": str(file)})
    assert found == pytest.approx({a["label"]: a["score"] for a in pipeline(TASK, model=model)(str(file))}, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "There is no image"),
        ("picture.png", "handle_file"),
        ({"url": "http://example.org/a.png"}, "handle_file"),
        ({"path": "/etc/hostname"}, "no uploaded file"),
        ({"path": "app.py"}, "no uploaded file"),
    ],
)
def test_what_is_no_upload_is_refused(value, message, asked, uploads):
    with pytest.raises(Exception, match=message):
        asked[2](value)


def test_files_that_are_no_images_are_refused(asked, uploads, space, monkeypatch):  # noqa: F811
    file = uploads / "a.png"
    file.write_text("<svg onload=alert(1)>")
    with pytest.raises(space.limits.InputError, match="cannot be read as an image. Send PNG"):
        asked[2]({"path": str(file)})
    picture(1, light=True).save(file, "PNG")
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(space.limits.InputError, match="cannot be read as an image"):
        asked[2]({"path": str(file)})
    picture(1, light=True).save(file, "PPM")  # Pillow reads it, but the page does not say so
    with pytest.raises(space.limits.InputError, match="cannot be read as an image"):
        asked[2]({"path": str(file)})
    Image.new("I;16", (9, 9)).save(file, "PNG")
    with pytest.raises(space.limits.InputError, match="more than 8 bits"):
        asked[2]({"path": str(file)})
    # A few kilobytes that processors would blow up to gigabytes.
    for size in ((1, 51), (5100, 100)):
        Image.new("RGB", size).save(file)
        with pytest.raises(space.limits.InputError, match=f"{size[0]:,} x {size[1]:,} pixels; at most 50 times"):
            asked[2]({"path": str(file)})
    monkeypatch.setattr(space.image_input, "MAX_PIXELS", 500)
    picture(1, light=True).save(file, "PNG")
    with pytest.raises(space.limits.InputError, match="has 720 pixels; at most 500 are read"):
        asked[2]({"path": str(file)})


@pytest.fixture(scope="module")
def url(served, model, tmp_path_factory):  # noqa: F811
    folder = render_space(image_record(), tmp_path_factory.mktemp("work") / "space", "me/model")
    return served([sys.executable, "app.py", "--model", model], cwd=folder)[0]


@pytest.mark.hub
def test_a_client_sends_a_file(url, client, model, tmp_path):  # noqa: F811
    from gradio_client import handle_file

    file = tmp_path / "light.png"
    picture(3, light=True).save(file)
    found = client(url).predict(handle_file(str(file)), api_name="/classify")
    expected = {a["label"]: a["score"] for a in pipeline(TASK, model=model)(str(file))}
    assert {a["label"]: a["confidence"] for a in found["confidences"]} == pytest.approx(expected, abs=1e-6)
    with pytest.raises(Exception, match="There is no image"):
        client(url).predict(None, api_name="/classify")


@pytest.mark.hub
def test_a_file_of_the_server_is_not_read(url, tmp_path):  # noqa: F811
    file = tmp_path / "secret.png"
    picture(3, light=True).save(file)
    given = {"path": str(file), "meta": {"_type": "gradio.FileData"}}
    sent = json.dumps({"data": [given]}).encode()
    address, headers = url.rstrip("/") + "/gradio_api/call/classify", {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(address, sent, headers)) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}/{event}") as answer:
        told = answer.read().decode()
    assert "event: error" in told
    assert "confidences" not in told


@pytest.mark.hub
def test_the_page_answers_an_uploaded_image_without_accessibility_faults(url, page, tmp_path):  # noqa: F811
    from playwright.sync_api import expect

    file = tmp_path / "light.png"
    picture(3, light=True, size=(300, 240)).save(file)
    open_page(page, url)
    assert faults(page) in {"", "[]"}
    expect(page.get_by_text(re.compile(r"Image: PNG, JPEG, .+ at most 5 MB")).first).to_be_visible()
    page.locator("#image input[type=file]").first.set_input_files(str(file))
    expect(page.locator("#image img").first).to_be_visible()
    page.locator("button.primary").click()
    expect(page.locator(".answer")).to_contain_text("%")
    assert faults(page) in {"", "[]"}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#image img")).to_have_count(0)
