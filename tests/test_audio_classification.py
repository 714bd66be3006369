"""Audio classification: what is opened, told and refused, and the whole path with tiny models."""

import json
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    TrainerCallback,
    TrainingArguments,
    pipeline,
)

from hf_transfer_plugin import TransferConfig, finetune
from hf_transfer_plugin.recipes import evaluate_run, predict_run
from hf_transfer_plugin.recipes.finetuning import make_trainer
from hf_transfer_plugin.recipes.preparing import prepare
from hf_transfer_plugin.tasks import TASKS, load_splits, sounds
from hf_transfer_plugin.tasks.sound_rows import Preparing, SoundBatches, least_samples
from hf_transfer_plugin.tasks.sounds import look_into_audio, read_audio
from tests.tiny_sounds import RATE, as_bytes, sound_rows, tone, wav2vec2, whisper

TASK = TASKS["audio-classification"]
MAKERS = {"wav2vec2": wav2vec2, "whisper": whisper}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("hearing")
    return {name: make(root / name) for name, make in MAKERS.items()}


def config(model="-", **changes):
    return TransferConfig(**{"model": model, "dataset": "rows", "task": TASK.name, **changes})


def splits(**changes):
    return DatasetDict({split: Dataset.from_dict(sound_rows(**changes)) for split in ("train", "validation", "test")})


def arguments(output, **changes):
    given = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True}
    return TrainingArguments(str(output), use_cpu=True, **{**given, **changes})


def value(samples, rate=RATE, path=None, kind="FLAC"):
    return {"bytes": as_bytes(samples, rate, kind), "path": path}


def rows_of(*values, label=("high", "low")):
    return DatasetDict({"train": Dataset.from_dict({"audio": list(values), "label": list(label)})})


def sound_folder(folder, names=("high", "low"), count=3):
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{name}{i}.flac").write_bytes(as_bytes(tone(name, 0.3 + 0.01 * i)))
    return str(folder)


# What is in a file


def test_channels_are_averaged_and_rates_resampled():
    stereo = read_audio(value(tone(channels=2)), RATE)
    assert stereo == pytest.approx(tone()[:, 0] / 2, abs=1e-4)
    slow = read_audio(value(tone(rate=8000), 8000), RATE)
    assert len(slow) == len(tone())
    inner = slice(400, -400)
    assert slow[inner] == pytest.approx(tone()[inner, 0], abs=5e-3)


def test_only_the_beginning_is_read_where_only_that_is_wanted():
    assert len(read_audio(value(tone(seconds=1.0)), RATE, 0.25)) == RATE // 4
    assert len(read_audio(value(tone(seconds=1.0, rate=8000), 8000), RATE, 0.25)) == RATE // 4


def test_a_sound_is_looked_into_to_its_end(monkeypatch):
    monkeypatch.setattr(sounds, "PIECE", 1000)
    found = look_into_audio(value(tone(seconds=0.5, channels=2)))
    assert found == (RATE, 2, 0.5, False)
    assert look_into_audio(value(tone(loudness=0))).silent


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (value(tone(seconds=0), kind="WAV"), "it is empty"),
        ({"bytes": None, "path": None}, "it is missing"),
        ({"bytes": None, "path": "there/nothing.wav"}, "nothing.wav: there is no such file"),
        ({"bytes": b"no sound at all", "path": "there/broken.wav"}, "broken.wav: it is no sound that can be read"),
    ],
)
def test_unreadable_sounds_are_named_or_skipped_when_asked(bad, reason, caplog):
    data = rows_of(value(tone()), bad, value(tone("low")), value(tone()), label=("high", "low", "low", "high"))
    with pytest.raises(ValueError, match=f"1 of 4 in the train split do not .*{reason}.*--skip_unreadable"):
        TASK.read(data, config(), 0)
    read = TASK.read(data, config(skip_unreadable=True, validation_fraction=0), 0)
    assert len(read.splits["train"]) == 3
    assert read.facts["skipped"] == {"train": 1}
    assert reason in caplog.text


def test_values_that_are_no_numbers_are_refused():
    import io

    import soundfile

    content = io.BytesIO()
    soundfile.write(content, np.full((100, 1), np.nan, np.float32), RATE, format="WAV", subtype="FLOAT")
    with pytest.raises(ValueError, match="it holds values that are no numbers"):
        look_into_audio({"bytes": content.getvalue(), "path": None})


def test_nothing_readable_is_refused_even_when_skipping():
    bad = {"bytes": b"x", "path": None}
    with pytest.raises(ValueError, match="2 of 2 in the train split do not"):
        TASK.read(rows_of(bad, bad), config(skip_unreadable=True), 0)


def test_a_missing_system_library_is_named_with_its_package(monkeypatch):
    def broken(package, extra):
        raise OSError("sndfile library not found")

    monkeypatch.setattr(sounds, "require", broken)
    with pytest.raises(ImportError, match="libsndfile is not. Install it .*apt install libsndfile1"):
        TASK.read(splits(), config(), 0)


def test_what_is_there_is_counted_and_told(caplog):
    given = [value(tone()), value(tone(rate=8000), 8000), value(tone(channels=2)), value(tone(loudness=0))]
    data = TASK.read(rows_of(*given, label=["high", "low"] * 2), config(validation_fraction=0), 0)
    assert data.facts == {
        "sampling_rates": {"16000 Hz, 1 channel": 2, "8000 Hz, 1 channel": 1, "16000 Hz, 2 channels": 1},
        "silent": {"train": 1},
    }
    assert "several sampling rates (1 at 8000 Hz, 3 at 16000 Hz)" in caplog.text
    assert "1 sounds have more than one channel" in caplog.text
    assert "1 sounds hold nothing but silence" in caplog.text


def test_a_column_of_something_else_is_refused():
    data = DatasetDict({"train": Dataset.from_dict({"audio": [1, 2], "label": ["high", "low"]})})
    with pytest.raises(ValueError, match="must hold audio files, their paths or their bytes"):
        TASK.read(data, config(), 0)


def test_several_classes_and_numbers_are_read_too():
    audio = [value(tone()), value(tone("low"))]
    several = TASK.read(rows_of(*audio, label=[["a", "b"], ["b"]]), config(validation_fraction=0), 0)
    assert several.problem_type == "multi_label_classification"
    assert several.splits["train"]["label"][:] == [[1.0, 1.0], [0.0, 1.0]]
    numbers = TASK.read(rows_of(*audio, label=[0.5, 1.5]), config(validation_fraction=0), 0)
    assert numbers.problem_type == "regression"


@pytest.mark.parametrize("seconds", [0, -1, "long", True, float("inf")])
def test_seconds_must_be_a_number(seconds):
    with pytest.raises(ValueError, match="`max_seconds` must be a number above 0"):
        config(max_seconds=seconds)


# What the model reads


def test_the_shortest_sound_by_hand():
    """Wav2vec2's seven convolutions reach over 400 samples, and each step is 320 more."""

    class Config:
        conv_kernel, conv_stride = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
        mask_time_prob, mask_time_length, apply_spec_augment = 0.05, 10, False

    assert least_samples(Config) == 400
    Config.apply_spec_augment = True
    assert least_samples(Config) == 400 + 10 * 320
    assert least_samples(object()) == 0


def test_sounds_that_are_too_short_for_convolutions_still_train(models, tmp_path):
    short = [value(tone(name, 0.01)) for name in ("high", "low") * 4]
    data = DatasetDict({split: rows_of(*short, label=["high", "low"] * 4)["train"] for split in ("train", "test")})
    record = finetune(config(models["wav2vec2"], validation_fraction=0), arguments(tmp_path / "run"), splits=data)
    assert record.options["min_samples"] == 885
    assert np.isfinite(record.metrics["loss"])


def test_long_sounds_are_cropped_and_counted(models, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    prepared = prepare(config(models["wav2vec2"], max_seconds=0.35), arguments(tmp_path / "run"), splits=splits())
    long = sum(0.3 + 0.02 * (i % 5) > 0.35 for i in range(12))
    assert prepared.data.facts["cropped"] == {"train": long, "validation": long, "test": long}
    assert f"{long} of 12 sounds of the train split are longer than 0.35 seconds" in caplog.text
    assert max(len(row["input_values"]) for row in prepared.encoded["train"]) == int(0.35 * RATE)


@pytest.mark.parametrize("name", MAKERS)
def test_training_reads_what_the_pipeline_reads(models, name):
    extractor = AutoFeatureExtractor.from_pretrained(models[name])
    sound = value(tone(rate=22_050), 22_050)
    mine = Preparing(extractor, 30.0).inputs([sound])[extractor.model_input_names[0]][0]
    model = AutoModelForAudioClassification.from_pretrained(models[name])
    heard = pipeline("audio-classification", model=model, feature_extractor=extractor)
    given = heard.preprocess({"raw": read_audio(sound, RATE), "sampling_rate": RATE})
    assert torch.equal(torch.as_tensor(mine), given[extractor.model_input_names[0]][0])


def test_an_autocast_around_it_changes_nothing(models):
    preparing = Preparing(AutoFeatureExtractor.from_pretrained(models["whisper"]), 30.0)
    plain = preparing.inputs([value(tone())])["input_features"][0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = preparing.inputs([value(tone())])["input_features"][0]
    assert np.array_equal(plain, rounded)


def test_batches_are_padded_and_keep_their_labels(models):
    extractor = AutoFeatureExtractor.from_pretrained(models["wav2vec2"])
    rows = [{"input_values": np.ones(n, np.float32), "labels": label} for n, label in ((3, 1), (5, 0))]
    batch = SoundBatches(extractor)(rows)
    assert batch["input_values"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["labels"].dtype == torch.long
    several = SoundBatches(extractor)([{**row, "labels": [0.0, 1.0]} for row in rows])["labels"]
    assert several.dtype == torch.float32
    assert several.shape == (2, 2)


# From rows to record


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", MAKERS)
def test_from_rows_to_record_and_back(models, tmp_path, name):
    record = finetune(config(models[name]), arguments(tmp_path / "run"), splits=splits())
    assert record.class_names == ["high", "low"]
    assert record.baselines["majority"]["accuracy"] == 0.5
    assert record.dataset["sampling_rates"] == {"16000 Hz, 1 channel": 36}
    assert [row["label"] for row in record.examples] == ["high", "low"] * 2
    assert all(row["audio"].startswith("data:audio/flac;base64,") for row in [*record.examples, *record.errors])
    card = (tmp_path / "run" / "README.md").read_text()
    assert "The sounds: 36 at 16000 Hz, 1 channel." in card
    assert (tmp_path / "run" / "examples" / "example-0-audio.flac").is_file()
    folder = sound_folder(tmp_path / "others")
    again = evaluate_run(tmp_path / "run", folder)
    assert again["rows"] == 6
    assert predict_run(tmp_path / "run", folder, tmp_path / "answers.jsonl") == 6
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    right = [answer["prediction"] == ("high", "low")[i >= 3] for i, answer in enumerate(answers)]
    assert np.mean(right) == pytest.approx(again["metrics"]["accuracy"])


@pytest.mark.slow
def test_two_pitches_are_told_apart(models, tmp_path):
    given = {"num_train_epochs": 12, "learning_rate": 1e-2, "save_strategy": "no", "eval_strategy": "no"}
    record = finetune(config(models["whisper"]), arguments(tmp_path / "run", **given), splits=splits())
    assert record.metrics["accuracy"] == 1


def test_folders_files_and_lists_are_read_alike(tmp_path):
    folder = sound_folder(tmp_path / "sounds")
    found = load_splits(config(dataset=folder))
    assert TASK.read(found, config(dataset=folder, validation_fraction=0), 0).class_names == ("high", "low")
    listed = tmp_path / "list.csv"
    listed.write_text("audio,label\nsounds/high/high0.flac,high\nsounds/low/low0.flac,low\n")
    read = TASK.read(load_splits(config(dataset=str(listed))), config(dataset=str(listed), validation_fraction=0), 0)
    assert read.facts["sampling_rates"] == {"16000 Hz, 1 channel": 2}
    one = f"{folder}/high/high0.flac"
    alone = TASK.read_again(load_splits(config(dataset=one)), config(dataset=one, class_names=["a", "b"]), False)
    assert len(alone.splits["train"]) == 1


class _Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            control.should_save = control.should_training_stop = True


@pytest.mark.slow
def test_a_resumed_run_ends_like_an_uninterrupted_one(models, tmp_path):
    """Four of six steps, amid the second epoch, and then the rest: SpecAugment hides the same moments."""

    def trained(name, *callbacks, resume=None):
        args = arguments(tmp_path / name, num_train_epochs=2, save_strategy="no", resume_from_checkpoint=resume)
        prepared = prepare(config(models["wav2vec2"], strategy="full"), args, splits=splits())
        prepared.args.save_strategy = "no"
        trainer = make_trainer(prepared, *callbacks)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    whole = trained("whole")
    trained("broken", _Stop())
    resumed = trained("broken", resume=str(tmp_path / "broken" / "checkpoint-4"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"adapter": "lora"}, {"strategy": "gradual-unfreezing"}, {"strategy": "bitfit"}])
def test_adapters_and_strategies_work(models, tmp_path, changes):
    record = finetune(config(models["whisper"], **changes), arguments(tmp_path / "run"), splits=splits())
    again = evaluate_run(tmp_path / "run", sound_folder(tmp_path / "others"))
    assert record.phases
    assert 0 <= again["metrics"]["accuracy"] <= 1


@pytest.mark.slow
def test_the_prefix_cache_is_hit_and_exact(models, tmp_path):
    frozen = {"strategy": {"name": "freeze-first", "k": 3}}
    given = {"num_train_epochs": 3, "save_strategy": "no", "eval_strategy": "no"}
    plain = finetune(config(models["whisper"], **frozen), arguments(tmp_path / "plain", **given), splits=splits())
    cached = finetune(
        config(models["whisper"], **frozen, prefix_cache=str(tmp_path / "cache")),
        arguments(tmp_path / "cached", **given),
        splits=splits(),
    )
    assert cached.prefix_cache["hits"] > 0
    assert cached.metrics["loss"] == pytest.approx(plain.metrics["loss"], abs=1e-4)
