"""Speech recognition: spelling, languages, what is refused, and the whole path with tiny models of both kinds."""

import json
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoProcessor, TrainingArguments, pipeline
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from hf_transfer_plugin import TransferConfig, finetune
from hf_transfer_plugin.recipes import evaluate_run, predict_run
from hf_transfer_plugin.recipes.preparing import prepare
from hf_transfer_plugin.tasks import TASKS, Outcome, TaskData
from hf_transfer_plugin.tasks.speech_vocabulary import spelled, spelling
from hf_transfer_plugin.tasks.speech_writing import spelled_out, wanted_texts
from tests.tiny_sounds import as_bytes, sound_rows, tone, wav2vec2, whisper

TASK = TASKS["automatic-speech-recognition"]
WORDS = {"high": "High ñ", "low": "low, low"}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("speech")
    return {
        "whisper": whisper(root / "whisper"),
        "multilingual": whisper(root / "multilingual", multilingual=True),
        "headless": wav2vec2(root / "headless"),
        "english": wav2vec2(root / "english", LETTERS),
    }


def config(model="-", **changes):
    given = {"model": model, "dataset": "rows", "task": TASK.name, "max_target_length": 16}
    return TransferConfig(**{**given, **changes})


def data_of(words=WORDS, **changes):
    rows = sound_rows(**changes)
    made = {"audio": rows["audio"], "sentence": [words[name] for name in rows["label"]]}
    return DatasetDict({split: Dataset.from_dict(made) for split in ("train", "validation", "test")})


def arguments(output, **changes):
    given = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True}
    return TrainingArguments(str(output), use_cpu=True, **{**given, **changes})


def prepared(models, name, tmp_path, data=None, **changes):
    return prepare(config(models[name], **changes), arguments(tmp_path / "run"), splits=data or data_of())


# From rows to record


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [("whisper", WORDS), ("headless", WORDS), ("english", {"high": "High, it's", "low": "low low"})],
)
def test_from_rows_to_record_and_back(models, tmp_path, name, words):
    record = finetune(config(models[name], baselines=True), arguments(tmp_path / "run"), splits=data_of(words))
    assert record.baselines["majority"]["wer"] == pytest.approx(0.5)
    assert ("pretrained" in record.baselines) == (name != "headless")
    assert record.dataset["columns"] == {"audio": "audio", "text": "sentence"}
    assert len(record.intervals["wer"]) == 2
    assert ("perplexity" in record.metrics) == (name == "whisper")
    assert all(row["audio"].startswith("data:audio/flac") for row in [*record.examples, *record.samples])
    folder = tmp_path / "others"
    folder.mkdir()
    for number, kind in enumerate(("high", "low") * 2):
        (folder / f"{number}.flac").write_bytes(as_bytes(tone(kind)))
    lines = [f"{number}.flac,{json.dumps(words[kind])}" for number, kind in enumerate(("high", "low") * 2)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,sentence", *lines]) + "\n")
    again = evaluate_run(tmp_path / "run", str(folder))
    assert again["rows"] == 4
    assert again["metrics"]["wer"] >= 0
    assert predict_run(tmp_path / "run", folder / "0.flac", tmp_path / "answers.jsonl") == 1
    answer = json.loads((tmp_path / "answers.jsonl").read_text())
    assert again["samples"][0]["prediction"] == answer["prediction"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whisper", "headless"])
def test_two_words_are_learned(models, tmp_path, name):
    """The loss goes down, and what is written is what is measured."""
    given = {"num_train_epochs": 8, "learning_rate": 1e-2, "save_strategy": "no", "eval_strategy": "no"}
    record = finetune(config(models[name]), arguments(tmp_path / "run", **given), splits=data_of())
    untrained = finetune(
        config(models[name]), arguments(tmp_path / "untrained", **{**given, "max_steps": 1}), splits=data_of()
    )
    assert record.metrics["loss"] < 0.6 * untrained.metrics["loss"]


def test_the_pipeline_writes_the_same(models, tmp_path):
    finetune(config(models["english"]), arguments(tmp_path / "run"), splits=data_of({"high": "HIGH", "low": "LOW"}))
    (tmp_path / "one.flac").write_bytes(as_bytes(tone()))
    predict_run(tmp_path / "run", tmp_path / "one.flac", tmp_path / "answers.jsonl")
    heard = pipeline("automatic-speech-recognition", model=str(tmp_path / "run"))
    sound = tone()[:, 0]
    written = heard({"raw": np.round(sound * 2**15) / np.float32(2**15), "sampling_rate": 16_000})["text"]
    assert json.loads((tmp_path / "answers.jsonl").read_text())["prediction"] == written.strip()


# Spelling


def test_a_model_without_letters_gets_those_of_the_texts(models, tmp_path, caplog):
    made = prepared(models, "headless", tmp_path)
    tokens = made.processor.tokenizer.get_vocab()
    assert set(tokens) == {"[PAD]", "[UNK]", "|", *"ghilñow,"}
    assert made.model.lm_head.out_features == len(tokens)
    assert made.model.config.pad_token_id == tokens["[PAD]"]
    assert any(name.startswith("lm_head") for name in made.new_weights)
    assert "gets an output layer for the 8 characters" in caplog.text
    text = made.processor.tokenizer.decode(made.encoded["train"][1]["labels"], group_tokens=False)
    assert text == "low, low"


def test_texts_take_the_case_of_the_vocabulary_and_lose_signs_that_it_lacks(models, tmp_path, caplog):
    made = prepared(models, "english", tmp_path, data_of({"high": "High, it's", "low": "low"}))
    assert made.data.options["case"] == "upper"
    assert made.data.options["dropped"] == ","
    assert "lacks ,, which is left out" in caplog.text
    assert wanted_texts(made.data.splits["train"], made.data)[:2] == ["HIGH IT'S", "LOW"]
    assert made.model.config.ctc_loss_reduction == "mean"
    assert made.model.config.ctc_zero_infinity
    assert not made.new_weights


def test_letters_that_the_vocabulary_lacks_are_refused_with_their_count(models, tmp_path):
    with pytest.raises(ValueError, match=r"lacks 1: 'Ñ' \(6 times\)\. Spell the texts with its letters \(ABC.*head"):
        prepared(models, "english", tmp_path)


def test_texts_of_signs_alone_are_refused(models, tmp_path):
    with pytest.raises(ValueError, match="6 of 12 in the train split hold only signs"):
        prepared(models, "english", tmp_path, data_of({"high": "high", "low": "?!"}))


def test_spelling_by_hand():
    options = {"case": "lower", "dropped": ",."}
    assert spelled("Hola, Ma\u0303nana.  Sí", options) == "hola m\u00e3nana sí"
    assert spelled("Straße", {"case": "upper", "dropped": ""}) == "STRASSE"
    assert spelled(" as  it is ", {}) == "as it is"


def test_a_vocabulary_of_both_cases_keeps_the_case():
    class Tokenizer:
        def get_vocab(self):
            return dict.fromkeys(["[PAD]", "|", *"aAbB"])

    assert spelling(Tokenizer(), ["aB b"]) == {"case": "", "dropped": ""}


def test_what_is_said_of_padding_is_left_out(models):
    tokenizer = AutoProcessor.from_pretrained(models["english"]).tokenizer
    tokens = tokenizer.get_vocab()
    ids = torch.tensor([
        [tokens[t] for t in row] for row in (["H", "H", "[PAD]", "H", "|", "I"], ["L", "O", "X", "X", "X", "X"])
    ])
    logits = torch.nn.functional.one_hot(ids, len(tokens)).float()
    assert spelled_out(tokenizer, logits, [600, 200]) == ["HH I", "LO"]


# Whisper


def test_labels_begin_behind_the_token_that_the_model_adds(models, tmp_path):
    made = prepared(models, "whisper", tmp_path)
    labels = made.encoded["train"][0]["labels"]
    whole = made.processor.tokenizer("High ñ").input_ids
    read = shift_tokens_right(torch.tensor([labels]), 0, 1)[0].tolist()
    assert [*read, labels[-1]] == whole
    assert labels[-1] == made.processor.tokenizer.eos_token_id


def test_a_multilingual_model_needs_the_language(models, tmp_path):
    with pytest.raises(ValueError, match="`source_language` must name the language that is spoken.*got None"):
        prepared(models, "multilingual", tmp_path)
    with pytest.raises(ValueError, match="got 'klingon'"):
        prepared(models, "multilingual", tmp_path, source_language="klingon")


@pytest.mark.parametrize("given", [{"source_language": "Spanish"}, {"language": ["es"]}])
def test_texts_begin_with_language_and_task(models, tmp_path, given):
    made = prepared(models, "multilingual", tmp_path, **given)
    tokens = made.processor.tokenizer.convert_ids_to_tokens(made.encoded["train"][0]["labels"])
    assert tokens[:3] == ["<|es|>", "<|transcribe|>", "<|notimestamps|>"]
    assert made.data.options["source_language"] == "es"
    settings = made.model.generation_config
    assert (settings.language, settings.task, settings.forced_decoder_ids) == ("es", "transcribe", None)


def test_tokens_of_the_texts_may_be_written(models, tmp_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mute") / "whisper"
    whisper(folder)
    model, tokenizer = (
        AutoModelForSpeechSeq2Seq.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder).tokenizer,
    )
    comma, bracket = (tokenizer(sign).input_ids[-2] for sign in ",[")
    model.generation_config.suppress_tokens = [comma, bracket]
    model.save_pretrained(folder)
    made = prepare(config(str(folder)), arguments(tmp_path / "run"), splits=data_of())
    assert made.model.generation_config.suppress_tokens == [bracket]


def test_long_texts_are_cut_and_told(models, tmp_path, caplog):
    data = data_of({"high": "High ñ", "low": "low"})
    made = prepared(models, "whisper", tmp_path, data, max_target_length=5)
    assert "6 of 12 texts of the train split are longer than 5 tokens" in caplog.text
    assert max(len(row["labels"]) for row in made.encoded["train"]) == 4
    assert made.encoded["train"][1]["labels"][-1] == made.processor.tokenizer.eos_token_id


def test_no_more_is_written_than_the_decoder_has_places(models, tmp_path):
    made = prepared(models, "whisper", tmp_path, max_target_length=500)
    assert made.data.options["max_target_length"] == 36
    assert made.model.generation_config.max_new_tokens == 36


# Rows


def test_long_training_sounds_are_left_out_and_counted(caplog):
    data = TASK.read(data_of(), config(max_seconds=0.35), 0)
    assert (len(data.splits["train"]), len(data.splits["test"])) == (8, 12)
    assert data.facts["too_long"] == {"train": 4}
    assert "4 training sounds are longer than 0.35 seconds and are left out" in caplog.text
    with pytest.raises(ValueError, match=r"at most 0.1 seconds long, but all 12 are longer"):
        TASK.read(data_of(), config(max_seconds=0.1), 0)


def test_training_sounds_longer_than_the_window_are_refused(models, tmp_path):
    rows = Dataset.from_dict({"audio": [{"bytes": as_bytes(tone(seconds=1.5)), "path": None}] * 4, "text": ["a"] * 4})
    with pytest.raises(ValueError, match="hears 1 seconds, but 4 of 4 .*`--max_seconds 1`"):
        prepared(models, "whisper", tmp_path, DatasetDict({"train": rows, "test": rows}), validation_fraction=0)


def test_empty_texts_and_missing_columns_are_refused():
    rows = sound_rows(2)
    with pytest.raises(ValueError, match="row 1, counted from 0, is empty or missing"):
        TASK.read(DatasetDict({"train": Dataset.from_dict({"audio": rows["audio"], "text": ["a", " "]})}), config(), 0)
    with pytest.raises(ValueError, match="The text column must be in the data"):
        TASK.read(
            DatasetDict({"train": Dataset.from_dict({"audio": rows["audio"], "words": ["a", "b"]})}), config(), 0
        )


def test_a_processor_without_a_tokenizer_is_refused(models):
    processor = AutoProcessor.from_pretrained(models["english"])
    model = AutoModelForCTC.from_pretrained(models["english"])
    with pytest.raises(
        ValueError, match="must have a feature extractor and a tokenizer, but Wav2Vec2FeatureExtractor"
    ):
        TASK.set_up(model, processor.feature_extractor, TaskData(DatasetDict(), {}))


# Figures


def test_error_rates_of_what_was_written(caplog):
    caplog.set_level(logging.WARNING)
    rows = Dataset.from_dict({"audio": [None, None], "seconds": [1.0, 1.0], "text": ["Hello, you", "one two"]})
    data = TaskData(DatasetDict({"train": rows}), {}, options={"ctc": False})
    found = TASK.metrics(data, Outcome(rows, rows, np.zeros((2, 3)), ["hello you", "one"]))
    # As they are: hello, and one missing word, of four. Normalised: the missing word alone.
    assert found == {"wer": 2 / 4, "cer": pytest.approx((2 + 4) / 17), "wer_normalized": 1 / 4}
    assert TASK.answers(data, Outcome(rows, rows, None, ["a", "b"])) == [{"prediction": "a"}, {"prediction": "b"}]
    name, majority = TASK.baseline(data, "train", DatasetDict())
    assert (name, majority["wer"]) == ("majority", 2 / 4)


def test_an_adapter_on_a_model_without_letters_is_refused(models, tmp_path):
    with pytest.raises(ValueError, match="`adapter` needs a model that brings its output layer, but that of Wav2Vec2"):
        prepared(models, "headless", tmp_path, adapter="lora")


def test_sounds_are_prepared_in_32_bits_when_the_model_runs_in_16(models, tmp_path):
    record = finetune(config(models["whisper"]), arguments(tmp_path / "run", bf16=True), splits=data_of())
    assert np.isfinite(record.metrics["wer"])
