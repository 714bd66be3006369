"""The demos that label words, answer questions and guess words: what they compute, and what they refuse."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
)

from hf_transfer_plugin.hub import render_space
from hf_transfer_plugin.record import TransferRecord
from tests.conftest import TINY
from tests.test_demo import quiet_peft, settings_of, space  # noqa: F401

pytestmark = pytest.mark.slow

IOB = ["O", "B-film", "I-film", "B-mood", "I-mood"]
TAGS = ["noun", "adjective", "verb"]
CONTEXT = "a fine warm film . great fun and a great cast . lovely work ."
HEADS = {
    "token-classification": BertForTokenClassification,
    "question-answering": BertForQuestionAnswering,
    "fill-mask": BertForMaskedLM,
}
COLUMNS = {"question-answering": {"question": "q", "context": "c", "answers": "a"}}
EXAMPLES = {
    "token-classification": {"text": "a fine warm film", "label": ["O", "B-mood", "I-mood", "B-film"]},
    "question-answering": {"question": "great fun ?", "context": CONTEXT, "label": "great fun"},
    "fill-mask": {"text": "a fine [MASK] film", "label": "warm"},
}


def text_record(task, **changes):
    values = {
        "task": task,
        "base_model": "tiny-bert",
        "dataset": {
            "name": "films.jsonl",
            "local": True,
            "columns": COLUMNS.get(task, {"text": "t"}),
            "splits": {"test": 9},
        },
        "metrics": {"accuracy": 0.5},
        "metrics_split": "test",
        "examples": [EXAMPLES[task]] if task in EXAMPLES else [],
        "versions": {"transformers": "5.23.0"},
    }
    return TransferRecord(**{**values, **changes})


def encoder(folder, tokenizer, task, names=(), seed=0):
    """A tiny model whose output layers are large enough to prefer something."""
    torch.manual_seed(seed)
    labels = {"id2label": dict(enumerate(names))} if names else {}
    model = HEADS[task](BertConfig(**TINY, initializer_range=0.5, **labels))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def answer_of(space, tmp_path, model, row, **changes):  # noqa: F811
    """Loaded model and the function behind the button."""
    settings = settings_of(space, render_space(row, tmp_path / "space", "me/model", **changes))
    demo = space.app.TASKS[settings.task, settings.form]
    with quiet_peft():
        loaded = space.loading.load(settings, model, demo.auto_class)
    space.page.build(settings, demo, loaded, model)
    return loaded, space.page.answering(settings, demo, loaded)


@pytest.fixture
def told(space, monkeypatch):  # noqa: F811
    """What visitors are warned of."""
    warned = []
    monkeypatch.setattr(space.page.gr, "Warning", warned.append)
    return warned


# Words and their labels


def parts(space, text, pieces):  # noqa: F811
    """Words of a text that a tokenizer split into `pieces`, one word each."""
    offsets, place = [], 0
    for piece in pieces:
        place = text.index(piece, place)
        offsets.append((place, place + len(piece)))
        place += len(piece)
    found = space.tags.words(text, list(range(len(pieces))), offsets)
    return [text[start:end] for start, end, _ in found], [token for *_, token in found]


@pytest.mark.parametrize(
    ("text", "pieces", "words", "tokens"),
    [
        ("a film.", ["a", "film", "."], ["a", "film", "."], [0, 1, 2]),
        ("I don't.", ["I", "don", "'", "t", "."], ["I", "don't", "."], [0, 1, 4]),
        ("well-known", ["well", "-", "known"], ["well-known"], [0]),
        ("the U.S. won", ["the", "U", ".", "S", ".", "won"], ["the", "U.S.", "won"], [0, 1, 5]),
        ("he won . . .", ["he", "won", ".", ".", "."], ["he", "won", ".", ".", "."], [0, 1, 2, 3, 4]),
        ("`` he ...", ["`", "`", "he", ".", ".", "."], ["``", "he", "..."], [0, 2, 3]),
        ("你好", ["你", "好"], ["你", "好"], [0, 1]),
        ("a b", ["a", " b"], ["a", "b"], [0, 1]),
        ("a - b", ["a", "-", "b"], ["a", "-", "b"], [0, 1, 2]),
    ],
)
def test_words_are_those_that_were_labelled(space, text, pieces, words, tokens):  # noqa: F811
    assert parts(space, text, pieces) == (words, tokens)


def test_word_has_the_label_of_its_first_token_and_special_tokens_are_none(space):  # noqa: F811
    found = space.tags.words("filmed it", [None, 0, 0, 1, None], [(0, 0), (0, 4), (4, 6), (7, 9), (0, 0)])
    assert found == [(0, 6, 1), (7, 9, 3)]


def tagged(*names, score=0.5):
    return [{"start": 2 * i, "end": 2 * i + 1, "entity": name, "score": score} for i, name in enumerate(names)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["O", "B-a", "I-a", "O"], [(2, 5, "a")]),
        (["B-a", "B-a"], [(0, 1, "a"), (2, 3, "a")]),
        (["I-a", "I-a"], [(0, 3, "a")]),
        (["B-a", "I-b"], [(0, 1, "a"), (2, 3, "b")]),
        (["B-a", "O", "I-a"], [(0, 1, "a"), (4, 5, "a")]),
        (["O", "O"], []),
        (["B-a-b", "I-a-b"], [(0, 3, "a-b")]),
    ],
)
def test_names_with_b_and_i_make_spans(space, names, expected):  # noqa: F811
    assert [(s["start"], s["end"], s["entity"]) for s in space.tags.spans(tagged(*names))] == expected


def test_score_of_a_span_is_the_mean_of_its_words(space):  # noqa: F811
    words = [*tagged("B-a", score=0.9), *tagged("B-a", "I-a", score=0.4)[1:]]
    assert space.tags.spans(words)[0]["score"] == pytest.approx(0.65)


@pytest.mark.parametrize(
    ("names", "expected"), [(IOB, True), (["B-a", "I-a"], True), (TAGS, False), (["O"], False), ([], False)]
)
def test_spans_are_made_only_of_such_names(space, names, expected):  # noqa: F811
    assert space.tags.in_spans(names) is expected


@pytest.mark.parametrize("names", [TAGS, IOB])
def test_labels_are_those_of_the_model(space, tmp_path, tokenizer, names):  # noqa: F811
    folder = encoder(tmp_path / "model", tokenizer, "token-classification", names)
    row = text_record("token-classification", class_names=names)
    loaded, answer = answer_of(space, tmp_path, folder, row)
    shown, table = answer("a fine warm film")
    batch = tokenizer("a fine warm film", return_tensors="pt")
    chances = AutoModelForTokenClassification.from_pretrained(folder)(**batch).logits[0, 1:-1].softmax(-1)
    words, labels = ["a", "fine", "warm", "film"], [names[label] for label in chances.argmax(-1)]
    if names == TAGS:
        assert [line[:2] for line in table] == [list(pair) for pair in zip(words, labels, strict=True)]
        assert [line[2] for line in table] == pytest.approx(chances.max(-1).values.tolist(), abs=1e-4)
    else:
        assert {e["entity"] for e in shown["entities"]} == {name[2:] for name in labels if name != "O"}
    assert shown["text"] == "a fine warm film"
    assert loaded.as_base is None


def test_words_past_the_limit_get_no_label_and_this_is_said(space, tmp_path, tokenizer, told):  # noqa: F811
    folder = encoder(tmp_path / "model", tokenizer, "token-classification", TAGS)
    _, answer = answer_of(space, tmp_path, folder, text_record("token-classification", class_names=TAGS))
    _, table = answer("warm " * 50)
    assert len(table) == 30  # 32 tokens less the two special ones
    assert told == ["Only the first 32 tokens were read; the rest was left out."]


def test_adapter_labels_words(space, tmp_path, tokenizer, model_folder):  # noqa: F811
    model = AutoModelForTokenClassification.from_pretrained(model_folder, id2label=dict(enumerate(TAGS)))
    with quiet_peft():
        model = get_peft_model(model, LoraConfig(task_type="TOKEN_CLS", target_modules=["query"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "adapter")
    row = text_record("token-classification", class_names=TAGS)
    loaded, answer = answer_of(space, tmp_path, str(tmp_path / "adapter"), row)
    logits = model.eval()(**tokenizer("a fine film", return_tensors="pt")).logits[0, 1:-1]
    assert [line[1] for line in answer("a fine film")[1]] == [TAGS[label] for label in logits.argmax(-1)]
    assert loaded.as_base is None


def test_model_with_other_labels_is_refused(space, tmp_path, tokenizer):  # noqa: F811
    folder = encoder(tmp_path / "model", tokenizer, "token-classification", TAGS)
    with pytest.raises(space.loading.DemoError, match="has 3 outputs for token-classification, but .* for 5"):
        answer_of(space, tmp_path, folder, text_record("token-classification", class_names=IOB))


# Questions and contexts


def test_spans_of_a_window_by_hand(space):  # noqa: F811
    begin, end = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 3.0, 1.0])
    places, scores = space.question_input.spans(begin, end, torch.tensor([[0, 1], [2, 4], [5, 9]]), 2)
    found = {tuple(place): score for place, score in zip(places.tolist(), scores.tolist(), strict=True)}
    assert found == {(0, 1): 1, (0, 4): 4, (2, 4): 3, (2, 9): 1, (5, 9): 3}


def best_span(folder, tokenizer, question, context):
    """The answer of a context that one window holds."""
    batch = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt")
    offsets, inside = batch.pop("offset_mapping")[0].tolist(), [part == 1 for part in batch.sequence_ids(0)]
    answer = AutoModelForQuestionAnswering.from_pretrained(folder)(**batch)
    begin, end = answer.start_logits[0].tolist(), answer.end_logits[0].tolist()
    places = [i for i, kept in enumerate(inside) if kept]
    scores = {(offsets[i][0], offsets[j][1]): begin[i] + end[j] for i in places for j in places if i <= j < i + 30}
    total = sum(math.exp(score) for score in scores.values())
    best = max(scores, key=scores.get)
    return context[slice(*best)], math.exp(scores[best]) / total


@pytest.mark.parametrize("seed", [0, 1])
def test_answer_is_the_best_span_of_the_context(space, tmp_path, tokenizer, seed):  # noqa: F811
    folder = encoder(tmp_path / "model", tokenizer, "question-answering", seed=seed)
    loaded, answer = answer_of(space, tmp_path, folder, text_record("question-answering"))
    chances, shown = answer("great fun ?", CONTEXT)
    text, chance = best_span(folder, tokenizer, "great fun ?", CONTEXT)
    assert next(iter(chances.items())) == (text, pytest.approx(chance, abs=1e-5))
    (entity,) = shown["entities"]
    assert shown["text"][entity["start"] : entity["end"]] == text
    assert loaded.as_base is None


def test_windows_of_a_long_context_are_all_read(space, tmp_path, tokenizer):  # noqa: F811
    folder = encoder(tmp_path / "model", tokenizer, "question-answering")
    row = text_record("question-answering", options={"max_length": 20, "stride": 6})
    loaded, answer = answer_of(space, tmp_path, folder, row)
    asked, told = space.question_input.read(loaded, ["fun ?", CONTEXT * 9])
    assert told == ""
    windows = asked["windows"]
    assert len(windows["input_ids"]) > 8
    assert max(map(len, windows["input_ids"])) == 20
    places = [place for offsets in windows["offset_mapping"] for place in offsets]
    assert max(end for _, end in places) == len(CONTEXT * 9)
    raw = space.question_input.ask(loaded, loaded.model, asked)
    single = [
        space.question_input.ask(loaded, loaded.model, {"context": raw["context"], "windows": window})
        for window in (only(windows, i) for i in range(len(windows["input_ids"])))
    ]
    assert raw["answers"][0][:2] in {found["answers"][0][:2] for found in single}
    assert raw["answers"][0][2] < max(found["answers"][0][2] for found in single)


def test_windows_move_by_half_at_least(space, tmp_path, tokenizer):  # noqa: F811
    folder = encoder(tmp_path / "model", tokenizer, "question-answering")
    loaded, _ = answer_of(space, tmp_path, folder, text_record("question-answering", options={"stride": 128}))
    asked, _ = space.question_input.read(loaded, ["fun ?", "warm " * 270])
    assert len(asked["windows"]["input_ids"]) == 20  # 27 words at first, then 14 more in each


def only(windows, number):
    """One window of several, as an encoding of its own."""
    from transformers import BatchEncoding

    data = {name: [values[number]] for name, values in windows.items()}
    return BatchEncoding(data, encoding=[windows.encodings[number]])


def test_no_answer_wins_only_where_it_may_and_scores_higher(space, tmp_path, tokenizer):  # noqa: F811
    folder = encoder(tmp_path / "model", tokenizer, "question-answering")
    for allowed in (True, False):
        row = text_record("question-answering", options={"no_answer": allowed})
        loaded, answer = answer_of(space, tmp_path, folder, row)
        lean = torch.zeros_like(loaded.model.qa_outputs.bias)

        def at_the_marker(module, inputs, output, lean=lean):
            output = output.clone()
            output[:, 0] += lean
            return output

        loaded.model.qa_outputs.register_forward_hook(at_the_marker)
        lean += 100
        chances, shown = answer("fun ?", CONTEXT)
        assert (next(iter(chances)) == space.question_input.NO_ANSWER) is allowed
        assert len(shown["entities"]) == 1 - allowed
        lean -= 200
        assert space.question_input.NO_ANSWER not in answer("fun ?", CONTEXT)[0]


def test_question_that_fills_the_window_is_refused(space, tmp_path, tokenizer):  # noqa: F811
    folder = encoder(tmp_path / "model", tokenizer, "question-answering")
    _, answer = answer_of(space, tmp_path, folder, text_record("question-answering"))
    with pytest.raises(space.limits.InputError, match="question is too long"):
        answer("fun " * 40, CONTEXT)
    with pytest.raises(space.limits.InputError, match="Context is empty"):
        answer("fun ?", " ")


def test_slow_tokenizer_is_refused_where_places_are_needed(space, tmp_path, tokenizer, monkeypatch):  # noqa: F811
    folder = encoder(tmp_path / "model", tokenizer, "question-answering")
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda self: False))
    with pytest.raises(space.loading.DemoError, match="no fast version"):
        answer_of(space, tmp_path, folder, text_record("question-answering"))


# Words that were left out


@pytest.mark.parametrize("mask", ["[MASK]", "<mask>", "[mask]", "<MASK>"])
def test_guesses_are_those_of_the_model(space, tmp_path, tokenizer, mask):  # noqa: F811
    folder = encoder(tmp_path / "model", tokenizer, "fill-mask")
    _, answer = answer_of(space, tmp_path, folder, text_record("fill-mask"))
    found = answer(f"a fine {mask} film")
    batch = tokenizer("a fine [MASK] film", return_tensors="pt")
    top = AutoModelForMaskedLM.from_pretrained(folder)(**batch).logits[0, 3].softmax(-1)[: len(tokenizer)].topk(10)
    assert len(found) == 10
    assert list(found.values()) == pytest.approx(top.values.tolist(), abs=1e-6)
    assert next(iter(found)) in {tokenizer.decode([top.indices[0]]), *tokenizer.convert_ids_to_tokens(top.indices)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a fine film", r"Write \[MASK\] in place .* has none"),
        ("a [MASK] [MASK] film", "once, but has 2"),
        ("a [MASK] <mask> film", "once, but has 2"),
        ("", "is empty"),
        (7, "got int"),
    ],
)
def test_text_without_exactly_one_mask_is_refused(space, tmp_path, tokenizer, text, message):  # noqa: F811
    folder = encoder(tmp_path / "model", tokenizer, "fill-mask")
    _, answer = answer_of(space, tmp_path, folder, text_record("fill-mask"))
    with pytest.raises(space.limits.InputError, match=message):
        answer(text)


def test_long_text_is_read_around_its_mask(space, tmp_path, tokenizer, told):  # noqa: F811
    folder = encoder(tmp_path / "model", tokenizer, "fill-mask")
    loaded, _ = answer_of(space, tmp_path, folder, text_record("fill-mask"))
    text, said = space.mask_input.read(loaded, ["warm " * 60 + "[MASK]" + " cold" * 60])
    ids = tokenizer(text).input_ids
    assert 28 <= len(ids) <= 32
    assert ids.count(tokenizer.mask_token_id) == 1
    assert "warm" in text
    assert "cold" in text
    assert said == "Only 32 tokens around [MASK] were read; the rest was left out."
    assert space.mask_input.read(loaded, ["[MASK]" + " cold" * 60])[0].startswith("[MASK] cold")


def test_base_that_guesses_words_is_compared(space, tmp_path, tokenizer):  # noqa: F811
    base = encoder(tmp_path / "base", tokenizer, "fill-mask", seed=1)
    folder = encoder(tmp_path / "model", tokenizer, "fill-mask")
    loaded, answer = answer_of(space, tmp_path, folder, text_record("fill-mask", base_model_id=None))
    assert loaded.as_base is None
    settings = settings_of(space, tmp_path / "space")
    for named, expected in ((base, True), (encoder(tmp_path / "qa", tokenizer, "question-answering"), False)):
        object.__setattr__(settings, "base_model", named)
        row = space.app.TASKS["fill-mask", ""]
        loaded = space.loading.load(settings, folder, row.auto_class)
        assert (loaded.as_base is not None) is expected
        if expected:
            ours, other = space.page.answering(settings, row, loaded)("a [MASK] film", True)
            assert ours == answer("a [MASK] film")
            assert other != ours


def test_tokenizer_without_a_mask_is_refused(space, tmp_path, tokenizer):  # noqa: F811
    folder = encoder(tmp_path / "model", tokenizer, "fill-mask")
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(folder)
    plain.mask_token = None
    plain.save_pretrained(folder)
    with pytest.raises(space.loading.DemoError, match="has no mask token"):
        answer_of(space, tmp_path, folder, text_record("fill-mask"))
