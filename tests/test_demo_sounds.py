"""The demos that listen: what they compute, what they refuse, and the whole page with a file."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
)

from hf_transfer_plugin.hub import render_space
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.tasks.sounds import audio_uri, read_audio
from tests.test_demo import settings_of, space  # noqa: F401
from tests.test_demo_browser import browser, client, faults, open_page, served  # noqa: F401
from tests.tiny_sounds import RATE, as_bytes, tone, wav2vec2, whisper

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
NAMES = ["high", "low"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def record(task="audio-classification", problem_type=SINGLE, **changes):
    example = {"audio": audio_uri(tone()[:, 0], RATE), "label": "high"}
    speech = task == "automatic-speech-recognition"
    values = {
        "task": task,
        "base_model": "tiny",
        "problem_type": "" if speech else problem_type,
        "class_names": [] if speech or problem_type == REGRESSION else NAMES,
        "dataset": {"name": "sounds", "local": True, "columns": {"audio": "audio"}, "splits": {"test": 9}},
        "metrics": {"wer": 0.5} if speech else {"accuracy": 0.5},
        "metrics_split": "test",
        "examples": [example],
        "options": {"max_seconds": 1.0},
        "versions": {"transformers": "5.23.0"},
    }
    return TransferRecord(**{**values, **changes})


def classifier(folder, kind=SINGLE):
    pretrained = wav2vec2(folder / "base")
    labels = {"num_labels": 1} if kind == REGRESSION else {"id2label": dict(enumerate(NAMES))}
    torch.manual_seed(0)
    model = AutoModelForAudioClassification.from_pretrained(pretrained, problem_type=kind, **labels)
    model.save_pretrained(folder)
    AutoFeatureExtractor.from_pretrained(pretrained).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    """Where gradio puts what is uploaded."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


def sent(uploads, content, name="sound.flac"):
    (uploads / name).write_bytes(content)
    return {"path": str(uploads / name), "meta": {"_type": "gradio.FileData"}}


def page_of(space, tmp_path, model, **kwargs):  # noqa: F811
    settings = settings_of(space, render_space(record(**kwargs), tmp_path / "space", "me/model"))
    demo = space.app.TASKS[settings.task, settings.form]
    loaded = space.loading.load(settings, model, demo.auto_class, None, demo.processor)
    space.page.build(settings, demo, loaded, model)
    return loaded, space.page.answering(settings, demo, loaded)


@pytest.fixture
def told(space, monkeypatch):  # noqa: F811
    """What visitors are told."""
    found = []
    monkeypatch.setattr(space.page.gr, "Warning", found.append)
    monkeypatch.setattr(space.page.gr, "Info", found.append)
    return found


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_a_sound_is_classified_as_the_model_does(space, tmp_path, uploads, kind):  # noqa: F811
    model = classifier(tmp_path / "model", kind)
    loaded, answer = page_of(space, tmp_path, model, problem_type=kind)
    content = as_bytes(tone(rate=8000, channels=2), 8000)
    found = answer(sent(uploads, content))
    samples = read_audio({"bytes": content, "path": None}, RATE)
    with torch.inference_mode():
        batch = loaded.processor(samples, sampling_rate=RATE, return_tensors="pt")
        logits = loaded.model(**batch).logits[0]
    expected = {SINGLE: logits.softmax(0), MULTI: logits.sigmoid(), REGRESSION: logits}[kind].tolist()
    assert (list(found.values()) if kind != REGRESSION else [found]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["whisper", "letters"])
def test_speech_is_transcribed_by_models_of_both_kinds(space, tmp_path, uploads, kind, told):  # noqa: F811
    model = whisper(tmp_path / "model") if kind == "whisper" else wav2vec2(tmp_path / "model", LETTERS)
    loaded, answer = page_of(space, tmp_path, model, task="automatic-speech-recognition")
    auto = AutoModelForSpeechSeq2Seq if kind == "whisper" else AutoModelForCTC
    assert type(loaded.model) in auto._model_mapping.values()
    loaded.model.generation_config = getattr(loaded.model, "generation_config", None)
    processor = AutoProcessor.from_pretrained(model)
    batch = processor.feature_extractor(
        read_audio({"bytes": as_bytes(tone()), "path": None}, RATE), sampling_rate=RATE, return_tensors="pt"
    )
    with torch.inference_mode():
        if kind == "whisper":
            ids = loaded.model.generate(**batch, do_sample=False)[0]
            expected = processor.tokenizer.decode(ids, skip_special_tokens=True)
        else:
            expected = processor.tokenizer.decode(loaded.model(**batch).logits[0].argmax(-1).tolist())
    assert answer(sent(uploads, as_bytes(tone()))) == expected.strip()


def test_the_end_of_a_long_sound_is_left_out_and_told(space, tmp_path, uploads, told):  # noqa: F811
    loaded, answer = page_of(space, tmp_path, classifier(tmp_path / "model"))
    long = answer(sent(uploads, as_bytes(tone(seconds=1.5))))
    assert told == ["Only the first 1 seconds were read."]
    assert answer(sent(uploads, as_bytes(tone(seconds=1.0)))) == long
    assert len(told) == 1


def test_short_sounds_are_lengthened_as_in_training(space, tmp_path, uploads):  # noqa: F811
    options = {"max_seconds": 1.0, "min_samples": 885}
    loaded, answer = page_of(space, tmp_path, classifier(tmp_path / "model"), options=options)
    assert set(answer(sent(uploads, as_bytes(tone(seconds=0.01))))) == set(NAMES)
    file = [Path(sent(uploads, as_bytes(tone(seconds=0.01)))["path"])]
    assert len(space.audio_input.read(loaded, file)[0]) == 885


def nothing():
    content = io.BytesIO()
    soundfile.write(content, np.full((100, 1), np.nan, np.float32), RATE, format="WAV", subtype="FLOAT")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no sound", "cannot be read as a sound. Send WAV"),
        (as_bytes(tone(loudness=0)), "is silent. Look whether the microphone is on"),
        (as_bytes(tone(seconds=0), kind="WAV"), "empty or damaged"),
        (nothing(), "empty or damaged"),
    ],
)
def test_what_is_no_sound_is_refused(space, tmp_path, uploads, content, message):  # noqa: F811
    _, answer = page_of(space, tmp_path, classifier(tmp_path / "model"))
    with pytest.raises(space.limits.InputError, match=message):
        answer(sent(uploads, content))


def test_only_uploads_are_opened(space, tmp_path, uploads):  # noqa: F811
    _, answer = page_of(space, tmp_path, classifier(tmp_path / "model"))
    (tmp_path / "private.flac").write_bytes(as_bytes(tone()))
    (uploads / "link.flac").symlink_to(tmp_path / "private.flac")
    for path in ("private.flac", "uploads/../private.flac", "uploads/link.flac", "uploads/missing.flac"):
        with pytest.raises(space.limits.InputError, match="is no uploaded file"):
            answer({"path": str(tmp_path / path)})
    for value in ("x", 3, ["x"], {}, {"path": 3}):
        with pytest.raises(space.limits.InputError, match="must be an uploaded file"):
            answer(value)
    with pytest.raises(space.limits.InputError, match="There is no sound"):
        answer(None)


def test_a_space_that_listens_asks_for_what_it_needs(tmp_path):
    folder = render_space(record(), tmp_path / "space", "me/model")
    assert "soundfile==" in (folder / "requirements.txt").read_text()
    assert "soxr==" in (folder / "requirements.txt").read_text()
    assert (folder / "examples" / "example-0-audio.flac").is_file()
    assert 'predict(handle_file("sound.wav"), api_name="/classify")' in (folder / "README.md").read_text()
    assert "import Client, handle_file" in (folder / "README.md").read_text()


@pytest.mark.hub
@pytest.mark.parametrize("task", ["audio-classification", "automatic-speech-recognition"])
def test_a_client_and_a_browser_are_answered(tmp_path, served, client, browser, task):  # noqa: F811
    from gradio_client import handle_file
    from playwright.sync_api import expect

    speech = task == "automatic-speech-recognition"
    model = wav2vec2(tmp_path / "model", LETTERS) if speech else classifier(tmp_path / "model")
    folder = render_space(record(task), tmp_path / "space", "me/model")
    url, _ = served([sys.executable, "app.py", "--model", model], cwd=folder)
    (tmp_path / "mine.flac").write_bytes(as_bytes(tone()))
    asked = client(url).predict(
        handle_file(str(tmp_path / "mine.flac")), api_name="/transcribe" if speech else "/classify"
    )
    assert isinstance(asked, str) if speech else {c["label"] for c in asked["confidences"]} == set(NAMES)
    page = browser.new_page()
    open_page(page, url)
    page.locator("input[type=file]").first.set_input_files(str(tmp_path / "mine.flac"))
    expect(page.locator("#audio")).to_contain_text("0:00")
    page.locator("button.primary").click()
    if speech:
        expect(page.locator(".answer textarea")).to_have_value(asked)
    else:
        expect(page.locator(".answer")).to_contain_text("%")
    assert faults(page) in {"", "[]"}
    if os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{os.environ['SCREENSHOTS']}/{task}.png", full_page=True)
    page.close()
