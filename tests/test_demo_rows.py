"""The demo that asks about a row of a table: the same text as in training, by itself, by a client and in a browser."""

import ast
import json
import sys

import pytest
from transformers import pipeline

from hf_transfer_plugin.hub import render_space
from hf_transfer_plugin.hub.snippets import getting_started
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.tasks import cells
from tests.test_demo import MULTI, NAMES, REGRESSION, SINGLE, classifier, settings_of, space  # noqa: F401
from tests.test_demo_browser import browser, client, faults, open_page, page, served  # noqa: F401

KINDS = {
    "amount_owed": "number",
    "member": "boolean",
    "self": "category",
    "home town": "category",
    "since": "date",
    "complaint": "text",
}
ROW = {
    "amount_owed": 1234.5,
    "member": False,
    "self": "warm",
    "home town": None,
    "since": "2024-03-01",
    "complaint": 'a dull "film"',
}
TEXT = 'amount owed: 1234.5; member: no; self: warm; home town: unknown; since: 2024-03-01; complaint: a dull "film"'
SENT = [1234.5, "no", "warm", None, "2024-03-01", 'a dull "film"']


def row_record(problem_type=SINGLE, **changes):
    facts = {"choices": {"self": ["cold", "warm"]}, "left_out": {}, "constant": [], "leaks": []}
    values = {
        "task": "text-classification",
        "base_model": "tiny-bert",
        "problem_type": problem_type,
        "class_names": NAMES[problem_type],
        "dataset": {"name": "customers.csv", "local": True, "columns": {"label": "late"}, "table": facts},
        "options": {"feature_columns": KINDS},
        "metrics": {"accuracy": 0.9} if problem_type != REGRESSION else {"mae": 0.5},
        "metrics_split": "test",
        "examples": [{"row": ROW, "label": "good"}],
        "versions": {"transformers": "5.23.0"},
    }
    return TransferRecord(**{**values, **changes})


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    return classifier(tmp_path_factory.mktemp("rows") / "model", tokenizer, initializer_range=0.5)


def asked(space, folder, model, problem_type=SINGLE):  # noqa: F811
    """Settings, and the function behind the button."""
    settings = settings_of(space, render_space(row_record(problem_type), folder, "me/model"))
    demo = space.app.TASKS[settings.task, settings.form]
    loaded = space.loading.load(settings, model, demo.auto_class)
    space.page.build(settings, demo, loaded, model)
    return settings, space.page.answering(settings, demo, loaded)


@pytest.fixture(scope="module")
def form(space, tmp_path_factory, model):  # noqa: F811
    """Settings and answering function of the single classes, for several tests."""
    return asked(space, tmp_path_factory.mktemp("form") / "space", model)


def answer_of(model, text):
    found = pipeline("text-classification", model=model)(text, top_k=None, truncation=True)
    return {one["label"]: one["score"] for one in found}


def test_the_space_has_a_field_for_each_column(tmp_path):
    folder = render_space(row_record(), tmp_path, "me/model")
    written = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    assert written["inputs"] == ["amount_owed", "member", "self_", "home_town", "since", "complaint"]
    assert written["options"]["feature_choices"] == {"self": ["cold", "warm"]}
    assert list(written["examples"][0].values()) == [1234.5, "no", "warm", "unknown", "2024-03-01", SENT[-1], "good"]
    text = (folder / "README.md").read_text()
    assert "A fine-tuned model gives a row of a table one of its classes" in text
    assert 'predict(1234.5, "no", "warm", "unknown", "2024-03-01", "a dull \\"film\\"", api_name="/classify")' in text


@pytest.mark.parametrize(
    "value",
    [0.1 + 0.2, 3.90000009536743, 12.0, 7, 10**20, 1234567.891, -0.0, 1.2345678e-5, 1e-12, 2.5e20, True, False, None]
    + ["", "word", -3.14159265],
)
def test_values_are_written_as_in_training(value, space, tmp_path):  # noqa: F811
    assert space.row_input.written(value) == cells.written(value)
    row = {"an_odd  name": value, "b": 1}
    assert space.row_input.row_text(row) == cells.row_text(row)
    code = getting_started(row_record(examples=[{"row": dict.fromkeys(KINDS)}]), "x", adapter=False)
    found = {"math": __import__("math")}
    exec(code[code.index("def written") : code.index("row = {")], found)  # noqa: S102
    assert found["written"](value) == cells.written(value) or value == ""  # a missing value is None there


@pytest.mark.parametrize(
    "sent",
    [
        SENT,
        [1234.5, False, "warm", "unknown", "2024-03-01", SENT[-1]],
        [" 1234.50 ", "no", " warm ", "", "2024-03-01", 'a  dull\n"film"'],
    ],
)
def test_every_way_to_send_a_row_is_the_text_of_training(sent, space, form, model):  # noqa: F811
    assert cells.row_text(ROW) == TEXT
    settings, ask = form
    assert space.row_input.check(settings, sent) == [TEXT]
    assert ask(*sent) == pytest.approx(answer_of(model, TEXT), abs=1e-6)


def test_whole_numbers_keep_their_digits(space, form):  # noqa: F811
    for sent in ("12345678901234567", 12345678901234567):
        assert space.row_input.check(form[0], [sent, *SENT[1:]])[0].startswith("amount owed: 12345678901234567;")


@pytest.mark.parametrize(
    ("place", "kind", "value"),
    [
        (0, "number", "18446744073709551615"),
        (0, "number", 2**63),
        (4, "date", "2024-03-01T00:00:00"),
        (4, "date", "20240301"),
        (4, "date", "2024-03-01 14:30"),
        (4, "date", "2024-03-01T14:30:00Z"),
    ],
)
def test_large_numbers_and_dates_are_read_as_in_training(place, kind, value, space, form):  # noqa: F811
    sent = [*SENT[:place], value, *SENT[place + 1 :]]
    trained = cells.read_value(int(value) if kind == "number" else value, kind)
    assert space.row_input.check(form[0], sent) == [cells.row_text({**ROW, list(ROW)[place]: trained})]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, "much", "amount owed must be a number, but got 'much'"),
        (0, "nan", "amount owed must be a number"),
        (0, float("inf"), "amount owed must be a number"),
        (0, True, "amount owed must be a number"),
        (0, [1], "amount owed must be a number"),
        (1, "maybe", "member must be one of yes, no or unknown, but got 'maybe'"),
        (2, "tepid", "self must be one of cold, warm or unknown, but got 'tepid'"),
        (2, 7, "self must be a string, but got int"),
        pytest.param(0, "9" * 400, "amount owed must be a number", id="long"),
        pytest.param(0, 10**400, "amount owed must be a number", id="huge"),
        (4, "1.3.24", "since must be a date such as 2024-03-01, but got '1.3.24'"),
        (5, "x" * 20_001, "complaint has 20,001 characters"),
        (5, ["a"], "complaint must be a string"),
    ],
)
def test_what_does_not_fit_its_column_is_refused(place, value, message, space, form):  # noqa: F811
    sent = [*SENT[:place], value, *SENT[place + 1 :]]
    with pytest.raises(space.limits.InputError, match=message):
        form[1](*sent)


def test_an_empty_form_is_refused(space, form):  # noqa: F811
    with pytest.raises(space.limits.InputError, match="Every field is empty. Fill in what is known"):
        form[1](None, "", "unknown", None, " ", "")


@pytest.mark.parametrize("problem_type", [MULTI, REGRESSION])
def test_rows_have_every_kind_of_answer(problem_type, space, tmp_path, tokenizer):  # noqa: F811
    made = classifier(tmp_path / "model", tokenizer, problem_type)
    _, ask = asked(space, tmp_path / "space", made, problem_type)
    found = ask(*SENT)
    assert isinstance(found, float) if problem_type == REGRESSION else found.keys() == set(NAMES[MULTI])


def test_the_code_on_the_card_asks_as_training_did(model, capsys):
    code = getting_started(row_record(), model, adapter=False)
    found = {}
    exec(compile(code, "card", "exec"), found)  # noqa: S102
    assert found["text"] == TEXT
    told = ast.literal_eval(capsys.readouterr().out)
    assert {one["label"]: one["score"] for one in told} == pytest.approx(answer_of(model, TEXT), abs=1e-6)


@pytest.fixture(scope="module")
def url(served, model, tmp_path_factory):  # noqa: F811
    folder = render_space(row_record(), tmp_path_factory.mktemp("work") / "space", "me/model")
    return served([sys.executable, "app.py", "--model", model], cwd=folder)[0]


@pytest.mark.hub
def test_a_client_sends_a_row(url, client, model):  # noqa: F811
    asking = client(url)
    found = asking.predict(*SENT, api_name="/classify")
    assert {a["label"]: a["confidence"] for a in found["confidences"]} == pytest.approx(
        answer_of(model, TEXT), abs=1e-6
    )
    named = dict(zip(["amount_owed", "member", "self_", "home_town", "since", "complaint"], SENT, strict=True))
    assert asking.predict(**named, api_name="/classify") == found
    with pytest.raises(Exception, match="self must be one of cold, warm or unknown"):
        asking.predict(*SENT[:2], "tepid", *SENT[3:], api_name="/classify")


@pytest.mark.hub
def test_the_form_answers_without_accessibility_faults(url, page):  # noqa: F811
    from playwright.sync_api import expect

    open_page(page, url)
    assert faults(page) in {"", "[]"}
    page.locator("button.primary").click()
    expect(page.get_by_text("Every field is empty.")).to_be_visible()
    for field in ("amount owed", "home town", "since", "complaint"):
        expect(page.get_by_label(field, exact=True)).to_have_value("")
    page.get_by_label("amount owed", exact=True).fill("12")
    page.get_by_label("self", exact=True).click()
    page.get_by_role("option", name="cold").click()
    page.locator("button.primary").click()
    expect(page.locator(".answer")).to_contain_text("%")
    page.get_by_text("2024-03-01").first.click()
    expect(page.get_by_label("amount owed", exact=True)).to_have_value("1234.5")
    expect(page.get_by_label("self", exact=True)).to_have_value("warm")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_label("amount owed", exact=True)).to_have_value("")
