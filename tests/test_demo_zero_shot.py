"""The demo that chooses among names: what it accepts and computes, by itself, by a client and in a browser."""

import re
import sys
from pathlib import Path

import gradio.utils
import pytest
from transformers import AutoProcessor, pipeline

from hf_transfer_plugin.hub import render_space
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.tasks.media import image_uri
from tests.test_demo import settings_of, space  # noqa: F401
from tests.test_demo_browser import browser, client, faults, open_page, page, served  # noqa: F401
from tests.tiny_pictures import content, picture
from tests.tiny_towers import save_towers

TASK, SINGLE = "zero-shot-image-classification", "single_label_classification"
NAMES = ["dark", "light"]


def named_record(**changes):
    values = {
        "task": TASK,
        "base_model": "tiny-clip",
        "model_class": "CLIPModel",
        "problem_type": SINGLE,
        "class_names": NAMES,
        "options": {"caption_template": "this is {label}."},
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


def captioned_record():
    uri = image_uri({"bytes": content(picture(1, light=True)), "path": None})
    rows = [{"image": uri, "text": text} for text in ("a light picture", "a dark picture")]
    return named_record(problem_type="", class_names=[], options={}, examples=rows)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("demo"), {}

    def saved(name):
        if name not in made:
            made[name] = save_towers(name, root / name)
        return made[name]

    return saved


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    """Gradio's folder of uploaded files."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    folder = Path(gradio.utils.get_upload_folder())
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def asked(space, tmp_path):  # noqa: F811
    """Makes the loaded model and the function behind the button."""

    def of(model, record):
        settings = settings_of(space, render_space(record, tmp_path / "space", "me/model"))
        demo = space.app.TASKS[settings.task, settings.form]
        loaded = space.loading.load(settings, model, demo.auto_class, processor=demo.processor)
        space.page.build(settings, demo, loaded, model)
        return loaded, space.page.answering(settings, demo, loaded)

    return of


def test_the_space_holds_names_to_choose_from(tmp_path, space):  # noqa: F811
    folder = render_space(named_record(), tmp_path / "named", "me/model")
    settings = settings_of(space, folder)
    assert settings.inputs == ["image", "candidates"]
    assert settings.examples[1]["candidates"] == "dark\nlight"
    assert settings.examples[1]["label"] == "light"
    assert (
        'predict(handle_file("picture.jpg"), "one name\\nanother name", api_name="/classify")'
        in (folder / "README.md").read_text()
    )
    captioned = settings_of(space, render_space(captioned_record(), tmp_path / "captioned", "me/model"))
    assert captioned.examples[0]["candidates"] == "a light picture\na dark picture"
    assert captioned.examples[0]["label"] == "a light picture"


@pytest.mark.parametrize("name", ["clip", "dual"])
def test_answer_is_that_of_the_pipeline(name, asked, models, uploads):
    file = uploads / "a.png"
    picture(1, light=True).save(file)
    loaded, answer = asked(models(name), named_record())
    assert loaded.max_tokens == 12
    found = answer({"path": str(file)}, "very light\n\ndark \nDark\n")
    given = {"candidate_labels": ["very light", "dark"], "hypothesis_template": "this is {}."}
    expected = {a["label"]: a["score"] for a in pipeline(TASK, model=models(name))(str(file), **given)}
    assert found == pytest.approx(expected, abs=1e-5)


def test_siglip_judges_each_name_by_itself(asked, models, uploads):
    file = uploads / "a.png"
    picture(1, light=True).save(file)
    _, answer = asked(models("siglip"), captioned_record())
    alone = answer({"path": str(file)}, "a dark picture\na light picture")
    among = answer({"path": str(file)}, "a dark picture\nthe number 1\na light picture")
    assert {name: among[name] for name in alone} == pytest.approx(alone, abs=1e-5)


def test_captions_of_a_model_of_captions_are_read_as_they_are(asked, models, space, uploads):  # noqa: F811
    picture(1, light=True).save(uploads / "a.png")
    loaded, _ = asked(models("clip"), captioned_record())
    (_, names, captions), said = space.zero_shot_input.read(loaded, [uploads / "a.png", ["dark", "light " * 20]])
    assert (captions, said) == (["dark", "light " * 20], "Of 1 class names only the first 12 tokens were read.")
    assert names == captions
    assert isinstance(loaded.processor, type(AutoProcessor.from_pretrained(models("clip"))))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "at least two different class names"),
        ("", "at least two different class names"),
        ("dark\n Dark ", "at least two different class names"),
        (7, "must be a string with one a line, but got int"),
        ("\n".join(f"n{i}" for i in range(51)), "There are 51 class names.+at most 50"),
        ("dark\n" + "x" * 201, "up to 201 characters"),
        ("dark\nli\ud800ght", "broken characters"),
    ],
)
def test_names_that_cannot_be_chosen_from_are_refused(value, message, space):  # noqa: F811
    with pytest.raises(space.limits.InputError, match=message):
        space.zero_shot_input.names_of(value)


def test_images_are_checked_as_elsewhere(asked, models, uploads):
    _, answer = asked(models("clip"), named_record())
    with pytest.raises(Exception, match="There is no image"):
        answer(None, "dark\nlight")
    with pytest.raises(Exception, match="no uploaded file"):
        answer({"path": "/etc/hostname"}, "dark\nlight")


@pytest.fixture(scope="module")
def url(served, models, tmp_path_factory):  # noqa: F811
    folder = render_space(named_record(), tmp_path_factory.mktemp("work") / "space", "me/model")
    return served([sys.executable, "app.py", "--model", models("clip")], cwd=folder)[0]


@pytest.mark.hub
def test_a_client_sends_a_file_and_names(url, client, tmp_path):  # noqa: F811
    from gradio_client import handle_file

    file = tmp_path / "light.png"
    picture(3, light=True).save(file)
    found = client(url).predict(handle_file(str(file)), "gray\nlight\nvery dark", api_name="/classify")
    assert {a["label"] for a in found["confidences"]} == {"gray", "light", "very dark"}
    assert sum(a["confidence"] for a in found["confidences"]) == pytest.approx(1, abs=1e-5)
    with pytest.raises(Exception, match="at least two different class names"):
        client(url).predict(handle_file(str(file)), "one", api_name="/classify")


@pytest.mark.hub
def test_the_page_answers_names_that_a_visitor_types(url, page, tmp_path):  # noqa: F811
    from playwright.sync_api import expect

    file = tmp_path / "light.png"
    picture(3, light=True, size=(300, 240)).save(file)
    open_page(page, url)
    assert faults(page) in {"", "[]"}
    names = page.locator("#candidates textarea")
    assert page.locator("#image").bounding_box()["y"] < names.bounding_box()["y"]
    expect(names).to_have_value("dark\nlight")
    page.locator("#image input[type=file]").first.set_input_files(str(file))
    expect(page.locator("#image img").first).to_be_visible()
    names.fill("very gray\na number")
    page.locator("button.primary").click()
    expect(page.locator(".answer")).to_contain_text(re.compile("very gray|a number"))
    assert faults(page) in {"", "[]"}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
