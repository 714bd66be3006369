import math

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import GenerationConfig

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.metrics import Rouge, Translation
from hf_transfer_plugin.tasks import Outcome
from hf_transfer_plugin.tasks.prompts import Asking, first_tokens
from hf_transfer_plugin.tasks.writing import SUMMARIZATION, TRANSLATION
from tests.tiny_writers import CORPUS, byte_tokenizer, tiny_llama, tiny_t5

SUMMARIES = ["A cat and a dog.", "Paris.", "A summary.", "A river."]
SPANISH = ["El gato.", "Es París.", "Un texto.", "Un río largo."]


def config(task="summarization", **changes):
    return TransferConfig(model="-", dataset="-", task=task, **changes)


def splits(**columns):
    rows = Dataset.from_dict(columns)
    return DatasetDict({"train": rows, "validation": rows})


def summaries(texts=CORPUS, targets=SUMMARIES, **changes):
    return SUMMARIZATION.read(splits(document=texts, summary=targets), config(**changes), 0)


def translations(columns=None, **changes):
    found = columns or {"en": CORPUS, "es": SPANISH}
    return TRANSLATION.read(splits(**found), config("translation", **changes), 0)


def learned(row, processor):
    return processor.decode([label for label in row["labels"] if label != -100])


def prepared(task, data, model, processor, max_length=256):
    task.set_up(model, processor, data)
    return task.encode(data, processor, max_length, model.config)


# --- columns


def test_columns_are_guessed():
    assert summaries().columns == {"text": "document", "target": "summary"}
    assert translations().columns == {"text": "en", "target": "es"}
    named = translations({"es": SPANISH, "en": CORPUS}, source_language="es", target_language="en_XX")
    assert named.columns == {"text": "es", "target": "en"}
    assert named.splits["train"]["text"] == SPANISH
    assert named.options["source_language"] == "es"


def test_the_hub_s_column_of_translations():
    pairs = {"translation": [{"en": a, "es": b, "de": "x"} for a, b in zip(CORPUS, SPANISH, strict=True)]}
    data = translations(pairs, source_language="es", target_language="en")
    assert data.splits["train"]["target"] == CORPUS
    assert data.columns == {"text": "es", "target": "en"}
    coded = translations(pairs, text_column="en", target_column="es", source_language="eng_Latn")
    assert coded.splits["train"]["target"] == SPANISH
    for changes, match in (
        ({}, "holds the languages de, en, es: one of them must be named, but got None. Choose it with `--source"),
        ({"source_language": "en", "target_language": "fr"}, "but got 'fr'. Choose it with `--target_language`"),
        ({"source_language": "en", "target_language": "en"}, "must be two languages, but both are 'en'"),
    ):
        with pytest.raises(ValueError, match=match):
            translations(pairs, **changes)
    lacking = {"translation": [{"en": "a", "es": "b"}, {"en": "c", "es": None}]}
    with pytest.raises(ValueError, match="Every row of 'es' must hold text, but 1 of 2"):
        translations(lacking, source_language="en", target_language="es")
    with pytest.raises(ValueError, match="must hold a text for each language"):
        translations({"translation": [["a", "b"]]}, source_language="en", target_language="es")


def test_targets_that_are_none_are_refused():
    with pytest.raises(
        ValueError, match=r"Every row of 'summary' must hold text, but 1 of 4 .* another `--target_column`"
    ):
        summaries(targets=["a", "", "b", "c"])
    with pytest.raises(ValueError, match="row 0, counted from 0, is a number"):
        summaries(targets=[1, 2, 3, 4])
    with pytest.raises(ValueError, match="must differ from the text, but 'summary' is the same as 'document'"):
        summaries(targets=CORPUS)
    with pytest.raises(ValueError, match="must be two columns, but both are 'document'"):
        summaries(text_column="document", target_column="document")
    with pytest.raises(ValueError, match="The target column must be in the data: expected one of summary"):
        SUMMARIZATION.read(splits(document=CORPUS), config(), 0)


def test_the_package_of_the_metrics_is_asked_for_before_training(monkeypatch):
    monkeypatch.setattr("hf_transfer_plugin._optional.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"`rouge_score.rouge_scorer` is needed here .*\[text\]"):
        summaries()
    with pytest.raises(ImportError, match=r"`sacrebleu` is needed here .*\[text\]"):
        translations()
    SUMMARIZATION.read_again(splits(document=CORPUS), config(), False)


# --- prompts and encoding


def test_default_prompts():
    processor = byte_tokenizer()
    for task, data, model, prompt in (
        (SUMMARIZATION, summaries(), tiny_llama(), "Summarize the following text.\n\n{text}"),
        (SUMMARIZATION, summaries(), tiny_t5(), "{text}"),
        (
            SUMMARIZATION,
            summaries(),
            tiny_t5(task_specific_params={"summarization": {"prefix": "summarize: "}}),
            "summarize: {text}",
        ),
        (TRANSLATION, translations(), tiny_llama(), "Translate the following text.\n\n{text}"),
        (
            TRANSLATION,
            translations(source_language="en", target_language="es"),
            tiny_llama(),
            "Translate the following text from English to Spanish.\n\n{text}",
        ),
        (
            TRANSLATION,
            translations(source_language="en", target_language="es"),
            tiny_t5(task_specific_params={"translation_en_to_es": {"prefix": "en to es: "}}),
            "en to es: {text}",
        ),
        (SUMMARIZATION, summaries(prompt="TL;DR {text} !"), tiny_llama(), "TL;DR {text} !"),
    ):
        prepared(task, data, model, processor)
        assert data.options["prompt"] == prompt


def test_a_causal_model_learns_the_answer_only():
    processor, data = byte_tokenizer(), summaries(prompt="Text: {text} Summary?")
    found, cut = prepared(SUMMARIZATION, data, tiny_llama(), processor)
    row = found["train"][0]
    asked = [
        {"role": "user", "content": f"Text: {CORPUS[0]} Summary?"},
        {"role": "assistant", "content": SUMMARIES[0]},
    ]
    assert processor.decode(row["input_ids"]) == processor.apply_chat_template(asked, tokenize=False)
    assert learned(row, processor) == "A cat and a dog.<|im_end|>"
    assert cut == 0
    assert data.options["causal"] is True


def test_without_a_template_the_answer_follows_on_a_new_line():
    processor, data = byte_tokenizer(template=None), summaries(prompt="Text: {text}")
    row = prepared(SUMMARIZATION, data, tiny_llama(), processor)[0]["train"][1]
    assert processor.decode(row["input_ids"]) == f"Text: {CORPUS[1]}\nParis.<|im_end|>"
    assert learned(row, processor) == "Paris.<|im_end|>"


@pytest.mark.parametrize("template", [None, "chatml"])
def test_long_texts_are_cut_so_that_prompt_and_answer_stay_whole(template):
    processor = byte_tokenizer() if template else byte_tokenizer(template=None)
    data = summaries(texts=[CORPUS[0] * 9, *CORPUS[1:]], prompt="Text: {text} Summary?", max_target_length=10)
    found, cut = prepared(SUMMARIZATION, data, tiny_llama(), processor, 70)
    row = found["train"][0]
    text = processor.decode(row["input_ids"])
    assert cut == 2
    assert 60 <= len(row["input_ids"]) <= 70
    assert "Text: The cat sat" in text
    assert " Summary?" in text
    assert learned(row, processor).endswith("<|im_end|>")
    with pytest.raises(ValueError, match="'Text: {text} Summary.' must leave room for a text, but takes more than"):
        prepared(SUMMARIZATION, data, tiny_llama(), processor, 6)


def test_long_targets_are_cut_and_told(caplog):
    for model, processor in ((tiny_llama(), byte_tokenizer()), (tiny_t5(), byte_tokenizer(encoder=True))):
        caplog.clear()
        data = summaries(targets=[CORPUS[1] * 3, *SUMMARIES[1:]], max_target_length=12)
        found, _ = prepared(SUMMARIZATION, data, model, processor)
        wanted = learned(found["train"][0], processor)
        assert wanted.startswith("What is the capital")
        assert wanted.endswith("<|im_end|>")
        assert max(len([x for x in labels if x != -100]) for labels in found["train"]["labels"]) == 12
        assert "1 of 4 targets of the train split are longer than 12 tokens and were cut" in caplog.text


def test_an_encoder_decoder_reads_the_prompt_and_learns_the_target():
    processor, data = byte_tokenizer(encoder=True), summaries(prompt="sum: {text} end")
    found, cut = prepared(SUMMARIZATION, data, tiny_t5(), processor, 20)
    row = found["train"][1]
    text = processor.decode(row["input_ids"])
    assert text.startswith("sum: What is")
    assert text.endswith(" end<|im_end|>")
    assert len(row["input_ids"]) <= 20
    assert processor.decode(row["labels"]) == "Paris.<|im_end|>"
    assert cut == 8
    batch = SUMMARIZATION.collator(processor, data)([found["train"][0], row])
    assert batch["labels"][1].tolist() == [*row["labels"], *[-100] * (batch["labels"].shape[1] - len(row["labels"]))]


def test_a_text_is_cut_by_tokens():
    processor = byte_tokenizer()
    ids = processor(CORPUS[0]).input_ids
    assert first_tokens(processor, CORPUS[0], 5) == processor.decode(ids[:5])
    assert first_tokens(processor, CORPUS[0], -3) == processor.decode(ids[:-3])
    assert first_tokens(processor, CORPUS[0], 500) == CORPUS[0]
    assert first_tokens(processor, CORPUS[0], -500) == ""
    slow = byte_tokenizer()
    slow.__class__ = type("SlowTokenizer", (type(slow),), {"is_fast": False})
    asking = Asking(slow, "{text}", causal=False)
    (text,), (tokens,), cut = asking.fitted([CORPUS[0]], 8)
    assert CORPUS[0].startswith(text)
    assert 4 <= len(tokens) <= 8
    assert cut == 1


class Coded(type(byte_tokenizer())):
    """Has codes for languages, as mBART's and NLLB's tokenizers do."""

    src_lang = tgt_lang = None


def test_codes_of_languages():
    processor = byte_tokenizer(encoder=True)
    processor.add_special_tokens({"additional_special_tokens": ["en_XX", "es_XX"]})
    processor.__class__ = Coded
    model = tiny_t5()
    data = translations(source_language="en_XX", target_language="es_XX")
    prepared(TRANSLATION, data, model, processor)
    assert (processor.src_lang, processor.tgt_lang) == ("en_XX", "es_XX")
    assert model.generation_config.forced_bos_token_id == processor.convert_tokens_to_ids("es_XX")
    for changes in ({}, {"source_language": "en_XX", "target_language": "es"}):
        with pytest.raises(ValueError, match=r"_language` must be one of the 2 codes of Coded \(en_XX, es_XX\), but"):
            TRANSLATION.set_up(model, processor, translations(**changes))
    # A summary needs no language.
    SUMMARIZATION.set_up(tiny_t5(), processor, summaries())


# --- what it writes


def both():
    return [(tiny_llama(), byte_tokenizer()), (tiny_t5(), byte_tokenizer(encoder=True))]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", [0, 1])
def test_batches_write_what_single_texts_do(kind, beams):
    model, processor = both()[kind]
    model.generation_config.num_beams = beams
    texts = [text[:size] for text, size in zip(CORPUS, (66, 9, 30, 14), strict=True)]
    data = summaries(texts=texts, max_target_length=9)
    found, _ = prepared(SUMMARIZATION, data, model, processor)
    rows = data.splits["train"]
    together = SUMMARIZATION.generate(model, processor, data, rows, 3)
    assert together == [SUMMARIZATION.generate(model, processor, data, rows.select([n]), 1)[0] for n in range(4)]
    assert len(set(together)) > 1
    asked = Asking(processor, data.options["prompt"], causal=not kind).tokens(texts[2:3])
    ids = torch.tensor(asked)
    direct = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, num_beams=beams, do_sample=False
    )
    new = direct[0] if kind else direct[0, ids.shape[1] :]
    assert together[2] == processor.decode(new, skip_special_tokens=True).strip()


def test_how_the_pretrained_model_wrote_does_not_stay():
    model, processor = tiny_llama(), byte_tokenizer()
    own = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 142, "min_length": 56, "num_beams": 4}
    model.generation_config = GenerationConfig(**own, eos_token_id=7)
    SUMMARIZATION.set_up(model, processor, summaries(max_target_length=20))
    found = model.generation_config
    assert (found.do_sample, found.max_new_tokens, found.num_beams) == (False, 20, 4)
    assert found.temperature is found.top_p is found.max_length is found.min_length is None
    assert found.eos_token_id == [2, 7]
    assert found.pad_token_id == 0
    found.validate(strict=True)


def test_metrics_with_and_without_texts():
    model, processor = tiny_t5(), byte_tokenizer(encoder=True)
    data = summaries()
    found, _ = prepared(SUMMARIZATION, data, model, processor)
    batch = SUMMARIZATION.collator(processor, data)(list(found["train"]))
    output = model(**batch)
    sums = SUMMARIZATION.reduce((output.logits, output.encoder_last_hidden_state), batch["labels"]).detach().numpy()
    rows = data.splits["train"]
    metrics = SUMMARIZATION.metrics(data, Outcome(rows, found["train"], sums))
    assert metrics["perplexity"] == pytest.approx(math.exp(output.loss.item()), rel=1e-4)
    assert "rougeL" not in metrics
    texts = ["A cat.", "Paris.", "no", "A river."]
    metrics = SUMMARIZATION.metrics(data, Outcome(rows, found["train"], sums, texts))
    # "A cat" of "A cat and a dog": P 1, R 2/5, F 4/7; then 1, 0, 1.
    assert metrics["rougeL"] == pytest.approx((4 / 7 + 2) / 4)
    report = SUMMARIZATION.report(data, Outcome(rows, found["train"], sums, texts), 2)
    assert report["samples"][1] == {"text": CORPUS[1], "label": "Paris.", "prediction": "Paris."}
    low, high = report["intervals"]["rougeL"]
    assert low <= metrics["rougeL"] <= high
    data = translations()
    metrics = TRANSLATION.metrics(data, Outcome(data.splits["train"], found["train"], sums, SPANISH))
    assert metrics["chrf"] == pytest.approx(100)
    assert TRANSLATION.best_metric(data) == ("chrf", True)
    assert "perplexity" in TRANSLATION.report(data, Outcome(rows, found["train"], sums, texts), 2)["intervals"]


def test_a_causal_model_is_measured_on_its_answers():
    model, processor = tiny_llama(), byte_tokenizer()
    data = summaries()
    found, _ = prepared(SUMMARIZATION, data, model, processor)
    batch = SUMMARIZATION.collator(processor, data)(list(found["train"]))
    output = model(**batch)
    sums = SUMMARIZATION.reduce(output.logits, batch["labels"]).detach().numpy()
    metrics = SUMMARIZATION.metrics(data, Outcome(data.splits["train"], found["train"], sums))
    assert metrics["perplexity"] == pytest.approx(math.exp(output.loss.item()), rel=1e-4)
    assert sums[:, 2].tolist() == [sum(label != -100 for label in labels) for labels in found["train"]["labels"]]


def test_baselines():
    data = summaries()
    name, found = SUMMARIZATION.baseline(data, "validation", data.splits)
    lead = ["The cat sat on the mat.", "What is the capital of France?", "Summarize the following text.", CORPUS[3]]
    assert name == "lead"
    assert found == Rouge().compute(predictions=lead, references=SUMMARIES)
    name, found = TRANSLATION.baseline(translations(), "validation", DatasetDict())
    assert name == "copy"
    assert found == Translation().compute(predictions=CORPUS, references=SPANISH)


CHINESE = ["今天天气很好,我们去公园散步吧。", "他在大学学习计算机科学和数学。"]
NEARLY = ["今天天气很好,我们去公园跑步吧。", "他在大学学习计算机科学与数学。"]


@pytest.mark.parametrize("language", ["zh", "zh_CN", "zho_Hans", None])
def test_bleu_of_chinese_counts_its_signs(language):
    data = translations(
        {"en": NEARLY, "zh": CHINESE}, source_language="en", target_column="zh", target_language=language
    )
    rows = data.splits["validation"]
    sums = torch.ones(2, 3).numpy()
    found = TRANSLATION.metrics(data, Outcome(rows, rows, sums, NEARLY))
    assert Translation().compute(predictions=NEARLY, references=CHINESE)["bleu"] < 1
    assert found["bleu"] == Translation().compute(predictions=NEARLY, references=CHINESE, tokenize="zh")["bleu"] > 70
    assert TRANSLATION.baseline(data, "validation", DatasetDict())[1]["bleu"] == found["bleu"]


@pytest.mark.parametrize("kind", [0, 1])
def test_rows_to_predict_need_no_target(kind):
    model, processor = both()[kind]
    rows = DatasetDict({"test": Dataset.from_dict({"document": CORPUS})})
    data = SUMMARIZATION.read_again(rows, config(max_target_length=3, prompt="Say: {text}"), False)
    found, _ = prepared(SUMMARIZATION, data, model, processor)
    batch = SUMMARIZATION.collator(processor, data)(list(found["test"]))
    output = model(**batch)
    sums = SUMMARIZATION.reduce(output.logits, batch.get("labels")).detach().numpy()
    texts = SUMMARIZATION.generate(model, processor, data, data.splits["test"], 2)
    outcome = Outcome(data.splits["test"], found["test"], sums, texts)
    assert SUMMARIZATION.metrics(data, outcome) == {}
    assert SUMMARIZATION.answers(data, outcome) == [{"prediction": text} for text in texts]


def test_examples_are_the_first_rows():
    found = SUMMARIZATION.examples(summaries(texts=["x" * 4000, *CORPUS[1:]]), "validation", 2)
    assert found[1] == {"text": CORPUS[1], "label": "Paris."}
    assert len(found[0]["text"]) == 1500
