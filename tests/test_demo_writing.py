"""The demos that write: summaries, translations, continuations and a chat, on tiny models."""

import threading
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.conftest import BAD, GOOD
from tests.test_demo import settings_of, space  # noqa: F401
from tests.test_demo_texts import answer_of, text_record, told  # noqa: F401

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] not in ['system', 'user', 'assistant'] %}{{ raise_exception('role') }}"
    "{% endif %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SUMMARY = "Summarize:\n{text}\nSummary:"
LONG = " ".join(GOOD + BAD) * 3
CHAT = {"columns": {"messages": "messages"}, "name": "talk.jsonl", "local": True, "splits": {"test": 9}}
TALK = {"messages": [{"role": "user", "content": "is it fun"}], "label": "lovely work"}


@pytest.fixture(scope="session")
def writer_tokenizer():
    """A byte-level tokenizer as small models have it, without a chat template."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = [*map(chr, range(33, 127)), "Ġ", "Ċ"]  # every model of this vocabulary writes readable text
    words.train_from_iterator(
        GOOD + BAD, trainers.BpeTrainer(vocab_size=160, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", additional_special_tokens=special[2:]
    )


def writer(folder, tokenizer, kind="llama", *, template=None, seed=0, room=128, **generation):
    """A tiny model that writes something."""
    torch.manual_seed(seed)
    size = {"vocab_size": len(tokenizer), "initializer_range": 0.6, "pad_token_id": 0, "eos_token_id": 1}
    if kind == "t5":
        config = T5Config(**size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
        config.initializer_factor = 5.0
        model = T5ForConditionalGeneration(config)
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                **size,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=room,
            )
        )
    for name, value in {"max_new_tokens": 12, **generation}.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if template or room:
        saved = AutoTokenizer.from_pretrained(folder)
        saved.chat_template = template
        saved.model_max_length = room
        saved.save_pretrained(folder)
    return str(folder)


def directly(folder, ids, *, new=12, seq2seq=False, ends=(1,), **changes):
    """What transformers writes."""
    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    out = auto.from_pretrained(folder).generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=new, eos_token_id=list(ends), **changes
    )[0]
    return AutoTokenizer.from_pretrained(folder).decode(out if seq2seq else out[len(ids) :], skip_special_tokens=True)


def prompted(task, **options):
    return text_record(task, options={"prompt": SUMMARY, **options}, examples=[{"text": "a b", "label": "a"}])


# Summaries and translations


@pytest.mark.parametrize("kind", ["llama", "chat", "t5"])
@pytest.mark.parametrize("task", ["summarization", "translation"])
def test_answer_is_what_the_model_writes_after_the_prompt(space, tmp_path, writer_tokenizer, task, kind):  # noqa: F811
    template = TEMPLATE if kind == "chat" else None
    folder = writer(tmp_path / "model", writer_tokenizer, "t5" if kind == "t5" else "llama", template=template)
    loaded, answer = answer_of(space, tmp_path, folder, prompted(task))
    prompt = "Summarize:\na fine warm film\nSummary:"
    if kind == "chat":
        ids = writer_tokenizer(f"<|user|>{prompt}<|end|><|assistant|>", add_special_tokens=False).input_ids
    else:
        ids = writer_tokenizer(prompt + ("" if kind == "t5" else "\n")).input_ids
    expected = directly(folder, ids, seq2seq=kind == "t5", ends=(1, 2) if kind == "chat" else (1,))
    steps = list(answer("a fine warm film"))
    assert steps[-1] == expected.strip() != ""
    assert len(steps) > 1
    assert type(loaded.model).__name__ == ("T5ForConditionalGeneration" if kind == "t5" else "LlamaForCausalLM")
    assert list(answer("a fine warm film"))[-1] == steps[-1]


def test_braces_of_a_text_stay_as_they_are(space, tmp_path, writer_tokenizer):  # noqa: F811
    folder = writer(tmp_path / "model", writer_tokenizer)
    loaded, _ = answer_of(space, tmp_path, folder, prompted("summarization"))
    ids = space.writing.prompt(loaded, "{0} {text} {x}")
    assert writer_tokenizer.decode(ids) == "Summarize:\n{0} {text} {x}\nSummary:\n"


def test_document_is_cut_and_the_prompt_around_it_is_not(space, tmp_path, writer_tokenizer, told):  # noqa: F811
    folder = writer(tmp_path / "model", writer_tokenizer)
    loaded, answer = answer_of(space, tmp_path, folder, prompted("summarization"))
    asked, said = space.writing.read_prompted(loaded, [LONG])
    assert 100 < len(asked.ids) <= 128 - 12
    text = writer_tokenizer.decode(asked.ids)
    assert text.startswith("Summarize:\na fine warm film")
    assert text.endswith("\nSummary:\n")
    assert said.startswith("Only the first ")
    assert 0 < int(said.split("%")[0].rpartition(" ")[2]) < 100
    assert list(answer(LONG))[-1]
    assert told == [said]


def test_no_more_is_read_than_in_training(space, tmp_path, writer_tokenizer):  # noqa: F811
    folder = writer(tmp_path / "model", writer_tokenizer)
    loaded, _ = answer_of(space, tmp_path, folder, prompted("summarization", max_length=64))
    assert loaded.max_tokens == 64
    assert len(space.writing.read_prompted(loaded, [LONG])[0].ids) <= 64 - 12
    row = text_record("text-generation", options={"max_length": 64})
    assert answer_of(space, tmp_path, folder, row)[0].max_tokens == 128


def test_token_that_ends_each_text_does_not_end_the_prompt(space):  # noqa: F811
    loaded = SimpleNamespace(processor=SimpleNamespace(eos_token_id=1))
    assert [space.writing._open(loaded, ids) for ids in ([5, 1], [5, 6], [1])] == [[5], [5, 6], [1]]


def test_prompt_without_room_for_a_text_is_refused(space, tmp_path, writer_tokenizer):  # noqa: F811
    folder = writer(tmp_path / "model", writer_tokenizer, room=32)
    row = text_record("summarization", options={"prompt": LONG + "{text}"})
    _, answer = answer_of(space, tmp_path, folder, row)
    with pytest.raises(space.limits.InputError, match="leaves no room for a text"):
        list(answer("a film"))


def test_beams_of_the_model_are_used_and_give_one_update(space, tmp_path, writer_tokenizer):  # noqa: F811
    folder = writer(tmp_path / "model", writer_tokenizer, "t5", num_beams=3)
    _, answer = answer_of(space, tmp_path, folder, prompted("translation"))
    ids = writer_tokenizer("Summarize:\na film\nSummary:").input_ids
    assert list(answer("a film")) == [directly(folder, ids, seq2seq=True, num_beams=3).strip()]


@pytest.mark.parametrize(
    ("of_the_model", "options", "wanted", "expected"),
    [
        ({"max_new_tokens": 9}, {"max_target_length": 5}, None, 9),
        ({}, {"max_target_length": 5}, None, 5),
        ({}, {}, None, 128),
        ({"max_length": 40}, {}, None, 40),
        ({}, {}, 256, 256),
        ({}, {"max_new_tokens": 7}, 256, 7),
    ],
)
def test_length_of_answers(space, of_the_model, options, wanted, expected):  # noqa: F811
    config = SimpleNamespace(max_new_tokens=None, max_length=None, **{})
    config.__dict__.update(of_the_model)
    model = SimpleNamespace(generation_config=config, config=SimpleNamespace(is_encoder_decoder=False))
    loaded = SimpleNamespace(model=model, options=options, max_tokens=1000)
    assert space.writing.shares(loaded, wanted) == (expected, 1000 - expected)
    loaded.max_tokens = 6
    assert space.writing.shares(loaded, wanted) == (3, 3)


def test_empty_answer_is_said(space, tmp_path, writer_tokenizer, monkeypatch):  # noqa: F811
    folder = writer(tmp_path / "model", writer_tokenizer)
    loaded, answer = answer_of(space, tmp_path, folder, prompted("summarization"))
    infos = []
    monkeypatch.setattr(space.writing.gr, "Info", infos.append)
    list(answer("a film"))
    assert infos == []
    monkeypatch.setattr(loaded.processor, "decode", lambda *args, **kwargs: " ")
    assert list(answer("a film"))[-1] == ""
    assert infos == ["The model's answer is empty."]


def test_visitor_who_leaves_stops_the_model(space, tmp_path, writer_tokenizer):  # noqa: F811
    folder = writer(tmp_path / "model", writer_tokenizer, room=4096, max_new_tokens=2000)
    loaded, answer = answer_of(space, tmp_path, folder, prompted("summarization"))
    before = threading.active_count()
    steps = answer("a film")
    for _ in range(3):
        next(steps)
    assert threading.active_count() > before
    steps.close()
    assert threading.active_count() == before


def test_fault_of_the_model_reaches_the_page(space, tmp_path, writer_tokenizer):  # noqa: F811
    folder = writer(tmp_path / "model", writer_tokenizer)
    loaded, answer = answer_of(space, tmp_path, folder, prompted("summarization"))

    def broken(**kwargs):
        raise RuntimeError("out of memory")

    loaded.model.generate = broken
    with pytest.raises(RuntimeError, match="out of memory"):
        list(answer("a film"))


# Continuations


def test_text_goes_on_and_keeps_its_space(space, tmp_path, writer_tokenizer):  # noqa: F811
    folder = writer(tmp_path / "model", writer_tokenizer)
    _, answer = answer_of(space, tmp_path, folder, text_record("text-generation"))
    steps = list(answer("a fine warm"))
    assert steps[-1] == directly(folder, writer_tokenizer("a fine warm").input_ids)
    assert len(steps) > 2


def test_long_text_goes_on_from_its_end(space, tmp_path, writer_tokenizer, told):  # noqa: F811
    folder = writer(tmp_path / "model", writer_tokenizer)
    loaded, answer = answer_of(space, tmp_path, folder, text_record("text-generation"))
    ids = writer_tokenizer(LONG).input_ids
    assert list(answer(LONG))[-1] == directly(folder, ids[-116:])
    assert told == ["Only the last 116 tokens were read."]


def test_base_writes_beside_the_model(space, tmp_path, writer_tokenizer):  # noqa: F811
    base = writer(tmp_path / "base", writer_tokenizer, seed=1)
    folder = writer(tmp_path / "model", writer_tokenizer)
    _, plain = answer_of(space, tmp_path, folder, text_record("text-generation"))
    settings = settings_of(space, tmp_path / "space")
    object.__setattr__(settings, "base_model", base)
    row = space.app.TASKS["text-generation", ""]
    loaded = space.loading.load(settings, folder, row.auto_class)
    steps = list(space.page.answering(settings, row, loaded)("a fine", True))
    assert steps[0][1] is None
    assert steps[-1] == (list(plain("a fine"))[-1], directly(base, writer_tokenizer("a fine").input_ids))
    assert list(space.page.answering(settings, row, loaded)("a fine", False))[-1] == (steps[-1][0], None)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_base_with_its_own_output_layer_is_known_by_its_name(space, tmp_path, writer_tokenizer, kind):  # noqa: F811
    base = writer(tmp_path / "base", writer_tokenizer, kind)
    settings = space.loading.Settings("m", "t", "summarization", "", ["text"], [], base, [], {}, 1)
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    assert space.loading._load_base(settings, auto) is not None


# The chat


def chat_of(space, tmp_path, tokenizer, *, template=TEMPLATE, **changes):  # noqa: F811
    folder = writer(tmp_path / "model", tokenizer, template=template, **changes)
    row = text_record("text-generation", dataset=CHAT, examples=[TALK])
    loaded, _ = answer_of(space, tmp_path, folder, row)
    settings = settings_of(space, tmp_path / "space")
    demo = space.app.TASKS["text-generation", "messages"]
    return folder, loaded, space.chat.talking(settings, demo, loaded)


def said(*contents):
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


def test_chat_answers_by_the_template_and_streams(space, tmp_path, writer_tokenizer):  # noqa: F811
    folder, _, talk = chat_of(space, tmp_path, writer_tokenizer)
    steps = list(talk("lovely work", said("is it fun", "warm")))
    text = "<|user|>is it fun<|end|><|assistant|>warm<|end|><|user|>lovely work<|end|><|assistant|>"
    ids = writer_tokenizer(text, add_special_tokens=False).input_ids
    assert steps[-1] == (said("is it fun", "warm", "lovely work"), directly(folder, ids, ends=(1, 2)).strip())
    assert len(steps) > 2
    assert list(talk("hello", None))[-1] == list(talk("hello", []))[-1]


def test_answer_ends_where_the_template_ends_it(space, tmp_path, writer_tokenizer):  # noqa: F811
    _, loaded, _ = chat_of(space, tmp_path, writer_tokenizer)
    assert space.writing.end_of_answer(loaded) == [1, 2]
    loaded.processor.chat_template = None
    assert space.writing.end_of_answer(loaded) == [1]


def test_oldest_turns_are_left_out_and_this_is_said(space, tmp_path, writer_tokenizer, told):  # noqa: F811
    _, loaded, talk = chat_of(space, tmp_path, writer_tokenizer)
    history = [{"role": "system", "content": "be warm"}, *said(*["a fine warm film"] * 40)]
    asked, sentence = space.chat.read(loaded, [[*history, *said("and now")]])
    text = writer_tokenizer.decode(asked.ids)
    assert len(asked.ids) <= 116
    assert text.startswith("<|system|>be warm<|end|><|user|>a fine")
    assert text.endswith("<|user|>and now<|end|><|assistant|>")
    kept = text.count("a fine warm film")
    assert 0 < kept < 40
    assert sentence == f"The oldest {40 - kept} messages were left out; the model does not read so much."
    steps = list(talk("and now", history))
    assert len(steps[-1][0]) == 42  # the page shows what was said, also where it is not read
    assert told == [sentence]


@pytest.mark.parametrize(
    ("message", "history", "error"),
    [
        ("", [], "Message is empty"),
        (7, [], "got int"),
        ("a", "b", "must be a list of messages"),
        ("a", [1], "must be a list of messages"),
        ("a", said("b"), "in turn, the user's first"),
        ("a", [{"role": "assistant", "content": "b"}], "in turn, the user's first"),
        ("a", [{"role": "tool", "content": "b"}, {"role": "assistant", "content": "b"}], "in turn"),
        ("a", said("b", 3), "must be a string, but got int"),
        ("a", [{"role": "user", "content": [{"type": "file"}]}, *said("b", "c")[1:]], "but got list"),
        ("a", [{"role": "user"}, *said("b", "c")[1:]], "A message of the history is empty"),
        ("a", said(*["b"] * 1000), "at most 1,000"),
        (LONG, [], "message is too long: the model reads 116 tokens"),
    ],
)
def test_wrong_conversations_are_refused(space, tmp_path, writer_tokenizer, message, history, error):  # noqa: F811
    _, _, talk = chat_of(space, tmp_path, writer_tokenizer)
    with pytest.raises(space.limits.InputError, match=error):
        list(talk(message, history))


def test_page_shows_text_as_it_is_and_gives_it_back(space):  # noqa: F811
    messages = said("a <b> & &lt;", "", "  c\n d")
    shown = space.chat.shown(messages)
    assert [part["text"] for message in shown for part in message["content"]] == [
        "a &lt;b&gt; &amp; &amp;lt;",
        "(no answer)",
        "  c\n d",
    ]
    assert space.chat.heard([{**message, "metadata": None} for message in shown]) == messages
    assert space.chat.check(None, [messages]) == [messages]
    assert space.chat.heard(None) == []


@pytest.mark.parametrize(
    "history", [3, [3], [{"role": "user"}], [{"role": "user", "content": [{"type": "file", "file": {}}]}]]
)
def test_page_that_sends_something_else_is_refused(space, history):  # noqa: F811
    with pytest.raises(space.limits.InputError, match="must hold texts alone"):
        space.chat.heard(history)


def test_template_that_refuses_is_said(space, tmp_path, writer_tokenizer):  # noqa: F811
    only_users = TEMPLATE.replace("'system', 'user', 'assistant'", "'user', 'assistant'")
    _, _, talk = chat_of(space, tmp_path, writer_tokenizer, template=only_users)
    with pytest.raises(space.limits.InputError, match="chat template does not take these messages: role"):
        list(talk("a", [{"role": "system", "content": "b"}]))


def test_model_without_a_template_is_refused(space, tmp_path, writer_tokenizer):  # noqa: F811
    with pytest.raises(space.loading.DemoError, match="has no chat template"):
        chat_of(space, tmp_path, writer_tokenizer, template=None)


def test_language_of_the_text_is_told_to_a_tokenizer_with_codes(space, tmp_path, monkeypatch):  # noqa: F811
    processor = SimpleNamespace(src_lang="fra_Latn", is_fast=True)
    model = SimpleNamespace(config=SimpleNamespace(num_labels=2, problem_type=None))
    monkeypatch.setattr(
        space.loading, "_load_whole", lambda *_: space.loading.Loaded(model, processor, [], None, None)
    )
    options = {"source_language": "deu_Latn"}
    settings = space.loading.Settings("m", "t", "translation", "", ["text"], [], None, [], {}, 1, options)
    (tmp_path / "config.json").write_text("{}")
    assert space.loading.load(settings, str(tmp_path), "AutoModelForSeq2SeqLM").processor.src_lang == "deu_Latn"
