"""The Spaces of all text tasks as visitors meet them: asked by a client and in a browser."""

import re
import sys

import pytest
from transformers import AutoTokenizer, pipeline

from hf_transfer_plugin.hub import render_space
from tests.test_demo_browser import browser, client, faults, open_page, page, served  # noqa: F401
from tests.test_demo_texts import CONTEXT, IOB, TAGS, best_span, encoder, text_record
from tests.test_demo_writing import CHAT, TALK, TEMPLATE, directly, prompted, said, writer, writer_tokenizer  # noqa: F401

pytestmark = pytest.mark.hub
KINDS = ["tags", "spans", "question", "summary", "translation", "text", "chat", "mask"]


@pytest.fixture(scope="module")
def app(served, tmp_path_factory, tokenizer, writer_tokenizer):  # noqa: F811
    """Starts the app of a kind when it is first asked for: its address, and the folder of its model."""
    work, started = tmp_path_factory.mktemp("pages"), {}
    long = {"max_new_tokens": 60}
    made = {
        "tags": lambda f: (
            encoder(f, tokenizer, "token-classification", TAGS),
            text_record("token-classification", class_names=TAGS),
        ),
        "spans": lambda f: (
            encoder(f, tokenizer, "token-classification", IOB),
            text_record("token-classification", class_names=IOB),
        ),
        "question": lambda f: (encoder(f, tokenizer, "question-answering"), text_record("question-answering")),
        "summary": lambda f: (writer(f, writer_tokenizer), prompted("summarization")),
        "translation": lambda f: (writer(f, writer_tokenizer, "t5"), prompted("translation")),
        "text": lambda f: (
            writer(f, writer_tokenizer, **long),
            text_record("text-generation", examples=[{"text": "a fine"}]),
        ),
        "chat": lambda f: (
            writer(f, writer_tokenizer, template=TEMPLATE, room=400, **long),
            text_record(
                "text-generation",
                dataset=CHAT,
                examples=[TALK],
                base_model_id=writer(work / "base", writer_tokenizer, template=TEMPLATE, seed=1, room=400, **long),
            ),
        ),
        "endless": lambda f: (
            writer(
                f, writer_tokenizer, template=TEMPLATE, room=100_000, max_new_tokens=40_000, suppress_tokens=[1, 2]
            ),
            text_record("text-generation", dataset=CHAT, examples=[TALK]),
        ),
        "mask": lambda f: (encoder(f, tokenizer, "fill-mask"), text_record("fill-mask")),
    }

    def start(kind):
        if kind not in started:
            model, row = made[kind](work / f"model-{kind}")
            folder = render_space(row, work / kind, "me/model")
            started[kind] = (served([sys.executable, "app.py", "--model", model], cwd=folder)[0], model)
        return started[kind]

    return start


def confidences(answer):
    return {entry["label"]: entry["confidence"] for entry in answer["confidences"]}


def test_client_gets_the_labels_of_words(app, client):  # noqa: F811
    url, folder = app("tags")
    shown, table = client(url).predict(text="a fine warm film", api_name="/tag")
    expected = pipeline("token-classification", model=folder)("a fine warm film")
    found = [(part["token"], part["class_or_confidence"]) for part in shown if part["class_or_confidence"]]
    assert found == [(word["word"], word["entity"]) for word in expected]
    assert [line[2] for line in table["data"]] == pytest.approx([word["score"] for word in expected], abs=1e-4)


def test_client_gets_an_answer(app, client):  # noqa: F811
    url, folder = app("question")
    chances, shown = client(url).predict(question="great fun ?", context=CONTEXT, api_name="/answer_question")
    text, chance = best_span(folder, AutoTokenizer.from_pretrained(folder), "great fun ?", CONTEXT)
    assert (chances["label"], chances["confidences"][0]["confidence"]) == (text, pytest.approx(chance, abs=1e-5))
    assert "".join(part["token"] for part in shown) == CONTEXT
    assert [part["token"] for part in shown if part["class_or_confidence"] == "answer"] == [text]


def test_client_gets_guesses(app, client):  # noqa: F811
    url, folder = app("mask")
    found = confidences(client(url).predict("a fine <mask> film", api_name="/fill"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = pipeline("fill-mask", model=folder, targets=list(tokenizer.vocab), top_k=3)("a fine [MASK] film")
    assert list(found.items())[0] == (expected[0]["token_str"], pytest.approx(expected[0]["score"], abs=1e-4))
    assert list(found.values())[:3] == pytest.approx([guess["score"] for guess in expected], abs=1e-4)


@pytest.mark.parametrize(("kind", "api_name"), [("summary", "/summarize"), ("translation", "/translate")])
def test_client_gets_what_the_model_writes(app, client, kind, api_name):  # noqa: F811
    url, folder = app(kind)
    ids = AutoTokenizer.from_pretrained(folder)(
        "Summarize:\na fine film\nSummary:" + "\n" * (kind == "summary")
    ).input_ids
    expected = directly(folder, ids, seq2seq=kind == "translation").strip()
    asked = client(url)
    assert asked.predict("a fine film", api_name=api_name) == asked.predict("a fine film", api_name=api_name)
    assert asked.predict("a fine film", api_name=api_name) == expected


def test_client_streams_a_continuation(app, client):  # noqa: F811
    url, folder = app("text")
    job = client(url).submit("a fine warm", api_name="/complete")
    ids = AutoTokenizer.from_pretrained(folder)("a fine warm").input_ids
    assert job.result() == directly(folder, ids, new=60)
    assert len(job.outputs()) > 1


def test_client_talks_and_streams(app, client):  # noqa: F811
    url, folder = app("chat")
    asked = client(url)
    (name,) = asked.view_api(return_format="dict")["named_endpoints"]
    assert name == "/chat"
    job = asked.submit("lovely work", said("is it fun", "warm"), True, api_name="/chat")
    text = "<|user|>is it fun<|end|><|assistant|>warm<|end|><|user|>lovely work<|end|><|assistant|>"
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False).input_ids
    ours, base = job.result()
    assert ours == directly(folder, ids, new=60, ends=(1, 2)).strip()
    assert base not in {ours, None}
    assert len(job.outputs()) > 2
    first = asked.predict("hello", api_name="/chat")
    assert first[1] is None
    assert asked.predict(message="hello", history=[], api_name="/chat") == first


@pytest.mark.parametrize(
    ("kind", "sent", "api_name", "message"),
    [
        ("tags", [""], "/tag", "Text is empty"),
        ("tags", [{"a": 1}], "/tag", "got dict"),
        ("question", ["", CONTEXT], "/answer_question", "Question is empty"),
        ("question", ["fun ?", "x" * 20_001], "/answer_question", "Context has 20,001"),
        ("mask", ["a fine film"], "/fill", "has none"),
        ("summary", [7], "/summarize", "got int"),
        ("text", [" "], "/complete", "Text is empty"),
        ("chat", ["hello", said("a")], "/chat", "in turn"),
        ("chat", [["hello"], []], "/chat", "Message must be a string"),
    ],
)
def test_client_is_told_what_is_wrong(app, client, kind, sent, api_name, message):  # noqa: F811
    with pytest.raises(Exception, match=message):
        client(app(kind)[0]).predict(*sent, api_name=api_name)


# The browser


HOSTILE = "a fine film <img src=http://example.org/x.png onerror=alert(1)>"
FILLED = {"question": ["great fun ?", CONTEXT + HOSTILE], "mask": [f"a [MASK] {HOSTILE}"]}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "chat"])
def test_page_answers_without_accessibility_faults(app, page, kind):  # noqa: F811
    from playwright.sync_api import expect

    open_page(page, app(kind)[0])
    assert faults(page) in {"", "[]"}
    boxes = page.locator("textarea:visible:not([disabled])").all()
    for box, text in zip(boxes, FILLED.get(kind, [HOSTILE]), strict=True):
        box.fill(text)
    page.locator("button.primary").click()
    answer = page.locator(".answer").first
    if kind in {"summary", "translation", "text"}:
        expect(answer.locator("textarea")).not_to_have_value("")
    else:
        expect(answer).to_contain_text({"tags": "film", "spans": "film"}.get(kind, "%"))
    expect(answer).to_have_attribute("aria-live", "polite")
    assert faults(page) in {"", "[]"}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("textarea:visible").first).to_have_value("")
    assert faults(page) in {"", "[]"}


def test_chat_page_talks_and_forgets(app, page):  # noqa: F811
    from playwright.sync_api import expect

    open_page(page, app("chat")[0])
    assert faults(page) in {"", "[]"}
    page.get_by_text("is it fun").first.click()
    box = page.get_by_label("Message", exact=True)
    expect(box).to_have_value("is it fun")
    box.press("Enter")
    log = page.get_by_role("log")
    expect(log.locator(".user")).to_have_count(1)
    expect(log.locator(".bot")).to_have_count(1)
    expect(box).to_have_value("")
    base = page.get_by_label("The base model's answer")
    expect(base).to_have_count(0)
    page.get_by_label("Compare with the base model").check()
    box.fill(HOSTILE + " ![x](http://example.org/x.png)")
    page.get_by_role("button", name="Send").click()
    expect(base).not_to_have_value("")
    expect(log.locator(".user").last).to_have_text(HOSTILE + " ![x](http://example.org/x.png)")
    expect(log.locator(".bot")).to_have_count(2)
    assert faults(page) in {"", "[]"}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("button.lg", has_text="Clear").click()
    expect(log.locator(".user")).to_have_count(0)
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("Message is empty. Type something, or choose an example.")).to_be_visible()


def test_stop_ends_an_answer_that_would_not_end(app, browser):  # noqa: F811
    from playwright.sync_api import expect

    page = browser.new_page()  # noqa: F811
    open_page(page, app("endless")[0])
    page.get_by_label("Message", exact=True).fill("is it fun")
    page.get_by_role("button", name="Send").click()
    bot = page.get_by_role("log").locator(".bot").last
    expect(bot).to_contain_text(re.compile(r"\S.{60}"))
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(1000)
    answer = bot.inner_text()
    page.wait_for_timeout(1000)
    assert bot.inner_text() == answer
    page.get_by_label("Message", exact=True).fill("and now")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("log").locator(".bot")).to_have_count(2)  # the model is free for the next question
    page.get_by_role("button", name="Stop").click()
    page.close()
