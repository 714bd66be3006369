"""The card of every text task: what it tells, only where the record has it, and nothing of the data can change it."""

import re
from html.parser import HTMLParser

import pytest
from huggingface_hub import ModelCard

from hf_transfer_plugin.hub import render_card
from hf_transfer_plugin.hub.card import HUB_METRICS, MEASURES
from hf_transfer_plugin.hub.facts import BASELINES, LIMITS, answer_table, calibration_words, limits, shown
from hf_transfer_plugin.hub.folder import search
from hf_transfer_plugin.hub.snippets import SNIPPETS
from hf_transfer_plugin.metrics import METRICS
from hf_transfer_plugin.record import TransferRecord
from tests.test_hub import cells, headings
from tests.test_metrics import INPUTS

EVIL = "<script>alert(1)</script>|*x*\n\n# taken over\n---\nlicense: mit"
BINS = [
    {"low": 0.5, "high": 0.75, "count": 40, "confidence": 0.7, "accuracy": 0.6},
    {"low": 0.75, "high": 1.0, "count": 60, "confidence": 0.9, "accuracy": 0.8},
]
FIGURES = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 8}


def record(task="text-classification", **changes):
    values = {
        "task": task,
        "base_model": "tiny",
        "dataset": {"name": "rows.csv", "local": True, "splits": {"train": 900, "test": 400}},
        "metrics": {"accuracy": 0.826},
        "metrics_split": "test",
        "license": "apache-2.0",
    }
    return TransferRecord(**{**values, **changes})


# Figures


def test_every_metric_of_the_package_has_a_name_on_the_card():
    names = {"perplexity", "token_accuracy"}
    for name, metric in METRICS.items():
        answers, true = INPUTS.get(name, ([0, 1, 1], [0, 1, 0]))
        found = metric().compute(predictions=answers, references=true)
        names |= {key for key, value in found.items() if isinstance(value, float)}
    assert names <= MEASURES.keys()
    assert HUB_METRICS.keys() <= MEASURES.keys()


@pytest.mark.parametrize(
    ("metrics", "ids"),
    [
        ({"accuracy": 0.5, "f1_macro": 0.5, "precision_macro": 0.5}, ["accuracy", "f1", "precision"]),
        ({"accuracy": 0.5, "entity_f1": 0.5, "entity_recall": 0.5}, ["accuracy", "seqeval"]),
        ({"exact_match": 0.5, "f1": 0.5, "has_answer_f1": 0.5}, ["exact_match", "f1"]),
        ({"rouge1": 0.5, "rougeL": 0.5, "perplexity": 9.0}, ["perplexity", "rouge"]),
        ({"bleu": 20.0, "chrf": 40.0}, ["bleu", "chrf"]),
        ({"perplexity": 12.0, "token_accuracy": 0.4}, ["accuracy", "perplexity"]),
        ({"mse": 0.5, "pearson": 0.5, "r2": 0.2}, ["mse", "pearsonr", "r_squared"]),
    ],
)
def test_metadata_names_metrics_as_the_hub_does(metrics, ids):
    data = ModelCard(render_card(record(metrics=metrics))).data
    assert data.metrics == ids
    assert {result.metric_type: result.metric_value for result in data.eval_results} == metrics


def test_the_interval_stands_beside_its_figure():
    text = render_card(record(metrics={"accuracy": 0.8264, "f1_macro": 0.8}, intervals={"accuracy": [0.8071, 0.8442]}))
    assert "| **this model** | **0.826** (95% interval 0.807 to 0.844) | **0.800** |" in text
    assert "how far the figure depends on which rows were drawn" in text
    assert "interval" not in render_card(record())


@pytest.mark.parametrize(
    ("metrics", "interval", "expected"),
    [
        ({"perplexity": 23.456}, {"perplexity": [21.0, 26.04]}, "**23.46** (95% interval 21.00 to 26.04)"),
        ({"perplexity": 12345.6}, {}, "**12,346**"),
        ({"bleu": 7.1234}, {}, "**7.123**"),
        ({"mse": 250.0}, {}, "**250.00**"),
    ],
)
def test_large_figures_are_shown_with_fewer_digits(metrics, interval, expected):
    text = render_card(record(metrics=metrics, intervals=interval))
    assert expected in text
    assert f"| {MEASURES[next(iter(metrics))]} |" in text


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_told_in_words(name):
    text = render_card(record(baselines={name: {"accuracy": 0.5}}))
    assert f"| {BASELINES[name]} | 0.500 |  |" in text  # the seconds are not known


# Calibration, errors, samples


def test_calibration_is_told_in_words_with_its_lean():
    made = record(calibration={"ece": 0.1, "bins": BINS})
    told = calibration_words(made)
    assert "lie 10.0 percentage points apart (expected calibration error 0.100)." in told
    assert told.endswith("It is mostly surer than it is right.")
    assert told in render_card(made)
    shy = [{**one, "accuracy": one["confidence"] + 0.05} for one in BINS]
    assert calibration_words(record(calibration={"ece": 0.05, "bins": shy})).endswith("right more often than it says.")
    both = [{**BINS[0], "count": 60}, {**BINS[1], "accuracy": 1.0}]
    assert calibration_words(record(calibration={"ece": 0.1, "bins": both})).endswith(
        "(expected calibration error 0.100)."
    )
    assert calibration_words(record()) == ""


def test_plots_are_shown_only_where_they_are(tmp_path):
    made = record(calibration={"ece": 0.1, "bins": BINS}, confusion_matrix=[[1, 2], [3, 4]], class_names=["a", "b"])
    for name in ("reliability.png", "confusion.png"):
        assert name not in render_card(made, tmp_path / "README.md")
        (tmp_path / name).write_bytes(b"x")
        assert f"]({name})" in render_card(made, tmp_path / "README.md")


def test_a_confusion_of_many_classes_is_a_picture_alone(tmp_path):
    (tmp_path / "confusion.png").write_bytes(b"x")
    names = [f"c{i}" for i in range(13)]
    made = record(class_names=names, confusion_matrix=[[1] * 13] * 13)
    text = render_card(made, tmp_path / "README.md")
    assert "by answer (top)" not in text
    assert "](confusion.png)" in text


def test_errors_are_a_table_with_short_texts():
    long = "word " * 200
    text = render_card(
        record(
            errors=[
                {"text": long, "label": "bad", "prediction": "good", "score": 0.98765},
                {"text": "short", "label": [], "prediction": ["a", "b"], "score": 0.5},
            ]
        )
    )
    assert "## Most confident errors\n\n| text | given label | answer | confidence | \n" in text
    assert re.search(r"^\| (word ){60,64}word?…? ?\S* ?\| bad \| good \| 0.9877 \| $", text, flags=re.MULTILINE)
    assert "| short | (none) | a, b | 0.5 |" in text
    assert "Most confident errors" not in render_card(record())


def test_errors_of_a_number_are_the_largest():
    made = record(
        metrics={"mse": 1.0},
        problem_type="regression",
        errors=[{"text": "x", "label": 1.0, "prediction": 3.25, "score": 2.25}],
    )
    text = render_card(made)
    assert "## Largest errors\n\n| text | given label | answer | off by |" in text
    assert "| x | 1 | 3.25 | 2.25 |" in text
    assert "- It answers with a number to every text, also where none would be right." in text


def test_samples_show_input_wanted_and_answer():
    made = record("summarization", samples=[{"text": "A long text.", "label": "Short.", "prediction": ""}])
    text = render_card(made)
    assert "## Samples\n\nRows of the test split: what was wanted and what the model wrote.\n" in text
    assert "| text | wanted | answer | \n|---|---|---|\n| A long text. | Short. | (none) | " in text


def test_values_become_one_line():
    assert shown("a\n b") == "a b"
    assert shown(0.123456) == "0.1235"
    assert shown(["a", "b"]) == "a b"
    assert shown(["a", "b"], ", ") == "a, b"
    assert (
        shown([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}])
        == "user: hi / assistant: yes"
    )
    assert len(shown("x" * 900)) == 320
    assert answer_table([], {"label": "wanted"}) == []


def test_rows_with_other_columns_leave_cells_empty():
    table = answer_table([{"text": "a", "label": "x"}, {"text_pair": "b", "label": "y"}], {"label": "wanted"})
    assert table == [["text", "text pair", "wanted"], ["a", "", "x"], ["", "b", "y"]]


# Classes, tags and entities


def test_tags_and_entities_have_tables_of_their_own():
    made = record(
        "token-classification",
        class_names=["O", "B-PER"],
        per_class={"O": FIGURES, "B-PER": FIGURES, "PER": {**FIGURES, "recall": 0.125}},
        confusion_matrix=[[1, 2], [3, 4]],
    )
    text = render_card(made)
    assert (
        "| entity | precision | recall | F1 | entities |\n|---|---:|---:|---:|---:|\n| PER | 0.500 | 0.125 |" in text
    )
    assert "| tag | precision | recall | F1 | words |\n|---|---:|---:|---:|---:|\n| O | 0.500 |" in text
    assert "Words of the true tag (left) by answer (top):" in text
    assert "- It misses most often in entity PER: it finds 12% of those entities." in text
    assert "- It gives every word one of its 2 tags and nothing else" in text


def test_a_class_without_rows_is_not_the_worst():
    made = record(class_names=["a", "b"], per_class={"a": FIGURES, "b": {**FIGURES, "recall": 0.0, "support": 0}})
    assert "It misses most often in class a: it finds 25% of those rows." in limits(made)
    nothing = record(class_names=["b"], per_class={"b": {**FIGURES, "support": 0}})
    assert not any("misses" in limit for limit in limits(nothing))


def test_multi_label_reads_right():
    made = record(
        problem_type="multi_label_classification",
        class_names=["fun", "warm"],
        metrics={"accuracy": 0.25, "f1_macro": 0.5},
        intervals={"f1_macro": [0.4, 0.6]},
        per_class={"fun": FIGURES, "warm": FIGURES},
        errors=[{"text": "x", "label": ["fun"], "prediction": ["fun", "warm"], "score": 0.9}],
    )
    text = render_card(made)
    assert "**0.500** (95% interval 0.400 to 0.600)" in text
    assert "any of its 2 classes" in text
    assert "| x | fun | fun, warm | 0.9 |" in text
    assert "by answer (top)" not in text


# Words of each task


@pytest.mark.parametrize("task", LIMITS)
def test_every_task_has_its_limits(task):
    assert f"- {LIMITS[task]}" in render_card(record(task)).replace("\\", "")


def test_tasks_without_classes_have_limits_of_their_own():
    assert LIMITS.keys() == SNIPPETS.keys() - {"text-classification", "token-classification"}


def test_perplexity_is_compared_only_with_care():
    text = render_card(record("text-generation", metrics={"perplexity": 20.0}))
    assert "| Perplexity (lower is better) |" in text
    assert "it compares only models with the same one" in text
    assert "it compares only models with the same one" not in render_card(record())


@pytest.mark.parametrize(
    ("task", "options", "words", "unread"),
    [
        ("text-classification", {}, "were truncated", True),
        ("question-answering", {"stride": 9}, "were read in overlapping windows", False),
        ("text-generation", {"packing": True}, "were divided into blocks", False),
        ("text-generation", {"packing": False}, "were truncated", True),
    ],
)
def test_what_became_of_long_rows_is_told(task, options, words, unread):
    made = record(task, options=options)
    made.dataset["truncated"] = 1234
    text = render_card(made)
    assert f"1,234 rows were longer than the model reads and {words}." in text
    assert ("It does not read the end of long texts." in text) is unread


def test_options_are_part_of_the_procedure():
    made = record("translation", options={"prompt": "Say {text}", "stride": None}, arguments={"seed": 0})
    assert "| options of the task | prompt: Say {text} |" in render_card(made)


# Text of the data


@pytest.mark.parametrize("place", ["errors", "samples", "option", "class"])
def test_text_of_data_cannot_change_the_page(place):
    row = {"text": EVIL, "label": EVIL, "prediction": EVIL}
    changed = {
        "errors": {"errors": [{**row, "score": 0.5}]},
        "samples": {"samples": [row]},
        "option": {"options": {"prompt": EVIL}, "arguments": {"seed": 0}},
        "class": {"class_names": [EVIL], "per_class": {EVIL: FIGURES, "PER" + EVIL: FIGURES}},
    }[place]
    text = render_card(record("token-classification", **changed))
    found = []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attributes: found.append(tag)
    reader.feed(ModelCard(text).text)
    assert found == []
    assert "alert(1)" in text
    assert "taken over" not in "".join(headings(text))
    assert not re.search(r"^(# taken over|license: mit)", text, flags=re.MULTILINE)
    assert ModelCard(text).data.license == "apache-2.0"


def test_every_row_of_every_table_has_as_many_cells_as_its_head():
    rows = [{"question": "a|b", "context": "c", "label": "", "prediction": "d", "score": 0.5}]
    text = render_card(record("question-answering", errors=rows, samples=rows, per_class={"a|b": FIGURES}))
    width, counted = None, 0
    for line in text.splitlines():
        if not line.startswith("|"):
            width = None
            continue
        width = width or len(cells(line.strip()))
        assert len(cells(line.strip())) == width, line
        counted += 1
    assert counted >= 8


def test_the_card_is_the_same_each_time():
    made = record(calibration={"ece": 0.1, "bins": BINS}, intervals={"accuracy": [0.8, 0.9]}, samples=[{"text": "a"}])
    assert render_card(made) == render_card(made)


@pytest.mark.parametrize("place", ["errors", "samples", "examples"])
def test_a_path_that_the_data_mentions_does_not_stop_a_push(place, tmp_path):
    record(**{place: [{"text": "/etc/passwd", "label": "a"}]}).save(tmp_path)
    search(tmp_path)
    record(options={"prompt": "/etc/passwd"}).save(tmp_path)
    with pytest.raises(ValueError, match="options.prompt"):
        search(tmp_path)
