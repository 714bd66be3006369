"""Card and plot, rendered from a record alone."""

import ast
import importlib.util
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard

from hf_transfer_plugin.hub import card as card_module
from hf_transfer_plugin.hub import model_name, plots, render_card, render_schedule
from hf_transfer_plugin.hub.card import escape
from hf_transfer_plugin.hub.facts import BASELINES
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.tasks import TASKS, TaskData

HOSTILE = "<script>alert(1)</script>|*x*"
SECTIONS = [
    "How to get started",
    "Results",
    "What was trained when",
    "Training data",
    "Training procedure",
    "Cost",
    "Uses and limits",
]


def record(**changes):
    values = {
        "task": "text-classification",
        "base_model": "google-bert/bert-base-uncased",
        "base_model_id": "google-bert/bert-base-uncased",
        "model_class": "BertForSequenceClassification",
        "problem_type": "single_label_classification",
        "class_names": ["bad", "good"],
        "dataset": {
            "name": "stanfordnlp/imdb",
            "local": False,
            "splits": {"train": 1800, "validation": 200, "test": 25000},
            "validation_held_out": True,
            "truncated": 12,
            "fingerprint": "0123abcd",
            "license": "odc-by",
        },
        "license": "apache-2.0",
        "language": ["en"],
        "examples": [{"text": 'It was "good"\n.', "label": "good"}],
        "strategy": {"name": "gradual-unfreezing", "every": None, "until": 0.2},
        "learning_rates": {"name": "layerwise-decay", "decay": 0.9},
        "groups": [{"name": name, "parameters": 1000} for name in ("embeddings", "layer.0", "head")],
        "phases": [
            {"step": 0, "groups": ["head"], "trainable_parameters": 1000},
            {"step": 7, "groups": ["embeddings", "layer.0", "head"], "trainable_parameters": 3000},
        ],
        "rates": [
            {"step": 5, "head": 1e-4},
            {"step": 10, "embeddings": 1e-5, "layer.0": 2e-5, "head": 3e-5},
        ],
        "arguments": {"learning_rate": 2e-4, "optim": "adamw_torch", "steps": 10},
        "metrics": {"loss": 0.31234567, "accuracy": 0.912345678, "f1_macro": 0.9},
        "metrics_split": "test",
        "per_class": {
            name: {"precision": 0.9, "recall": 0.8, "f1": 0.85, "support": 12500} for name in ("bad", "good")
        },
        "confusion_matrix": [[11000, 1500], [1000, 11500]],
        "baselines": {"majority": {"accuracy": 0.5, "f1_macro": 0.333, "seconds": 0.04}},
        "seconds": {"train": 61.25, "evaluate": 3.0},
        "hardware": {"device": "cpu", "cores": 2},
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "created": "2026-11-21",
    }
    return TransferRecord(**{**values, **changes})


def headings(text):
    return re.findall(r"^## (.+)$", text, flags=re.MULTILINE)


def cells(line):
    """Cells of a Markdown table row, as GitHub divides it."""
    return re.split(r"(?<!\\)\|", line)[1:-1]


# Metadata


def test_metadata_is_what_the_hub_reads():
    data = ModelCard(render_card(record())).data
    assert data.pipeline_tag == "text-classification"
    assert data.library_name == "transformers"
    assert data.base_model == "google-bert/bert-base-uncased"
    assert data.base_model_relation == "finetune"
    assert data.license == "apache-2.0"
    assert data.language == ["en"]
    assert data.datasets == ["stanfordnlp/imdb"]
    assert data.metrics == ["accuracy", "f1"]
    assert data.tags == ["hf-transfer-plugin", "transfer-learning", "gradual-unfreezing"]
    assert data.model_name == "bert-base-uncased-imdb"


def test_model_index_holds_the_measured_values():
    results = {result.metric_type: result for result in ModelCard(render_card(record())).data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {"accuracy": 0.91235, "f1_macro": 0.9}
    assert results["accuracy"].dataset_name == "stanfordnlp/imdb"
    assert results["accuracy"].dataset_split == "test"
    assert results["accuracy"].task_type == "text-classification"
    assert results["f1_macro"].metric_name == "F1 (macro)"


def test_unknown_base_model_is_not_named_to_the_hub():
    data = ModelCard(render_card(record(base_model="my-folder", base_model_id=None))).data
    assert data.base_model is None
    assert "base_model" not in data.to_dict()
    assert "base_model_relation" not in data.to_dict()


def test_local_data_is_no_dataset_of_the_hub():
    data = ModelCard(render_card(record(dataset={"name": "r.csv", "local": True, "splits": {"test": 4}}))).data
    assert data.datasets is None
    assert data.eval_results[0].dataset_name == "r.csv"


def test_card_without_metrics_has_no_model_index():
    data = ModelCard(render_card(record(metrics={}))).data
    assert data.eval_results is None
    assert "model-index" not in data.to_dict()


# The text


def test_same_record_gives_the_same_card(tmp_path):
    first = render_card(record())
    record().save(tmp_path)
    assert render_card(record()) == first
    assert render_card(TransferRecord.load(tmp_path)) == first
    assert render_card(replace(record(), created="2026-11-22")) != first


def test_the_committed_card_is_the_rendering_of_its_record(tmp_path):
    folder = Path(__file__).parents[1] / "model_cards" / "quickstart"
    committed = TransferRecord.load(folder)
    shutil.copy(folder / "schedule.png", tmp_path)
    text = render_card(committed, tmp_path / "README.md", model=f"hf-transfer-plugin/{model_name(committed)}")
    assert (folder / "README.md").read_text(encoding="utf-8") == text


def test_card_is_also_written(tmp_path):
    text = render_card(record(), tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text == render_card(record())


def test_card_tells_what_was_done():
    text = render_card(record())
    assert headings(text) == SECTIONS
    for told in (
        "Measured on the test split (25,000 rows).",
        "| commonest answer | 0.500 | 0.333 | 0.0 |",
        "| **this model** | **0.912** | **0.900** | 61.2 |",
        "| good | 0.900 | 0.800 | 0.850 | 12,500 |",
        "The model has 3,000 parameters in 3 layer groups.",
        "| bad | 11,000 | 1,500 |",
        "| 0 | embeddings, layer.0 | head | 1,000 | 33.3% | 0.0001 |",
        "| 7 | nothing | embeddings - head | 3,000 | 100.0% | 1e-05 (embeddings) to 3e-05 (head) |",
        'pipeline("text-classification", model=".")',
        'print(classify("It was \\"good\\"\\n.", top_k=None))',
        "Licence of the data: odc-by.",
        "Fingerprint of the encoded training rows: 0123abcd.",
        "- It answers with one of its 2 classes and nothing else, also where none fits.",
        "- The data's language: en. Nothing is known of other languages.",
        "- It does not read the end of long texts.",
        "1,800 rows train; 200 rows validation; 25,000 rows test.",
        "The validation rows were held out of the training split.",
        "12 rows were longer than the model reads and were truncated.",
        "Classes: bad, good.",
        "| strategy | name: gradual-unfreezing, until: 0.2 |",
        "| rates per layer group | name: layerwise-decay, decay: 0.9 |",
        "Hardware: cpu, 2 cores.",
        "Training took 61.2 s.",
        "Date: 2026-11-21.",
        "Versions: torch 2.13.0, transformers 5.23.0.",
    ):
        assert told in text, told
    assert "which was also looked at" not in text


def test_energy_subsets_and_processes_are_told_where_they_are_known():
    text = render_card(
        record(
            energy={"kwh": 0.0125, "kg_co2": 0.0021},
            per_subset={"short|texts": {"accuracy": 0.5}, "long": {"accuracy": 0.75}},
            hardware={"device": "NVIDIA L4", "count": 2, "processes": 2},
        )
    )
    assert "Energy by codecarbon: 0.0125 kWh, 2.1 g CO2." in text
    assert "| short\\|texts | 0.500 |" in text
    assert "Hardware: NVIDIA L4, 2 of them, 2 processes." in text
    found = ModelCard(text).data.to_dict()["co2_eq_emissions"]
    assert found == {
        "emissions": 2.1,
        "source": "codecarbon",
        "training_type": "fine-tuning",
        "hardware_used": "NVIDIA L4",
    }


def test_an_adapters_card_keeps_what_peft_says():
    kept = {"library_name": "peft", "base_model": "me/base", "tags": ["base_model:adapter:me/base", "lora"]}
    text = render_card(record(), model="me/adapter", adapter=kept)
    data = ModelCard(text).data
    assert (data.library_name, data.base_model, data.base_model_relation) == ("peft", "me/base", "adapter")
    assert data.tags[:2] == ["base_model:adapter:me/base", "lora"]
    assert "hf-transfer-plugin" in data.tags
    assert data.eval_results
    assert 'id2label={0: "bad", 1: "good"}' in text


def test_measuring_on_validation_is_said():
    assert "(200 rows), which was also looked at during training." in render_card(record(metrics_split="validation"))


def test_every_row_of_a_table_has_as_many_cells_as_its_head():
    width = None
    rows = 0
    for line in render_card(record()).splitlines():
        if not line.startswith("|"):
            width = None
            continue
        width = width or len(cells(line))
        assert len(cells(line)) == width, line
        rows += 1
    assert rows > 15


@pytest.mark.parametrize(
    ("changes", "heading", "word"),
    [
        ({"metrics": {}}, "Results", "Measured on"),
        ({"phases": []}, "What was trained when", "from step"),
        ({"dataset": {}}, "Training data", "rows train"),
        ({"arguments": {}}, "Training procedure", "learning\\_rate"),
        ({"per_class": {}}, None, "| class |"),
        ({"baselines": {}}, None, "commonest answer"),
        ({"learning_rates": None}, None, "rates per layer group"),
        ({"class_names": []}, None, "Classes:"),
        ({"confusion_matrix": []}, None, "by answer (top)"),
        ({"hardware": {}, "seconds": {}}, "Cost", "Hardware:"),
        ({"hardware": {}}, None, "Hardware:"),
        ({"versions": {}}, None, "Versions:"),
    ],
)
def test_sections_without_facts_are_left_out(changes, heading, word):
    text = render_card(record(**changes))
    assert word in render_card(record())
    assert word not in text
    assert headings(text) == [section for section in SECTIONS if section != heading]


def test_record_with_the_least_facts_has_a_card():
    text = render_card(TransferRecord(task="text-classification", base_model="tiny"))
    assert headings(text) == ["How to get started", "Uses and limits"]
    assert "# tiny fine-tuned\n" in text
    assert "None" not in text.replace("top_k=None", "")


def test_plot_is_shown_only_where_it_is(tmp_path):
    assert "schedule.png" not in render_card(record(), tmp_path / "README.md")
    (tmp_path / "schedule.png").write_bytes(b"x")
    assert "](schedule.png)" in render_card(record(), tmp_path / "README.md")


# Escaping


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("a|b", "a\\|b"),
        ("*a* _b_ `c` ~d~ $e$", "\\*a\\* \\_b\\_ \\`c\\` \\~d\\~ \\$e\\$"),
        ("[a](http://b)", "\\[a\\](http://b)"),
        ("a\n\n# b\r\nc\td", "a # b c d"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("back\\slash", "back\\\\slash"),
        (3.5, "3.5"),
    ],
)
def test_escaped_text_is_one_line_without_markup(text, expected):
    assert escape(text) == expected


@pytest.mark.parametrize(
    "place", ["class_names", "dataset", "base_model", "group", "strategy", "argument", "device", "subset"]
)
def test_text_of_data_cannot_change_the_page(place):
    evil = f"{HOSTILE}\n\n# taken over\n---\nlicense: mit"
    values = {"precision": 0.1, "recall": 0.1, "f1": 0.1, "support": 3}
    changed = {
        "class_names": {"class_names": [evil, "ok"], "per_class": {evil: values, "ok": values}},
        "dataset": {"dataset": {**record().dataset, "name": evil, "local": True}},
        "base_model": {"base_model": evil, "base_model_id": None},
        "group": {"phases": [{"step": 0, "groups": [evil], "trainable_parameters": 3}]},
        "strategy": {"strategy": {"name": "freeze-pattern", "patterns": [evil]}},
        "argument": {"arguments": {"optim": evil}},
        "device": {"hardware": {"device": evil}},
        "subset": {"per_subset": {evil: {"accuracy": 0.5}}},
    }[place]
    text = render_card(record(**changed))
    parsed = ModelCard(text)
    found = []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attributes: found.append(tag)
    reader.feed(parsed.text)
    assert found == []
    assert "alert(1)" in parsed.text
    assert "*x*" not in parsed.text.replace("\\*x\\*", "")
    assert headings(text) == SECTIONS
    assert not re.search(r"^# taken over", text, flags=re.MULTILINE)
    assert not re.search(r"^license: mit", text, flags=re.MULTILINE)
    assert parsed.data.license == "apache-2.0"
    for line in text.splitlines():
        if "alert(1)" in line and line.startswith("|"):
            assert len(cells(line)) in {2, 3, 5, 6}


def test_an_example_cannot_leave_its_line_of_code():
    evil = 'x")\n```\n# taken over <b>\n'
    text = render_card(record(examples=[{"text": evil, "label": "good"}]))
    code = re.search(r"```python\n(.*?)\n```", text, flags=re.DOTALL).group(1)
    assert evil in [n.value for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant)]
    assert headings(text) == SECTIONS
    assert text.count("```") == 3  # of them one inside the string


@pytest.mark.parametrize("name", ["a|b", "two\nlines: yes", "quote\"d 'name'", "- dash", "# hash", "100%", "né.csv"])
def test_dataset_names_survive_in_the_metadata(name):
    text = render_card(record(dataset={**record().dataset, "name": name, "local": True}))
    assert ModelCard(text).data.eval_results[0].dataset_name == name
    assert "\\|b" in text or name != "a|b"


# The plot


def test_plot_is_a_png(tmp_path):
    path = render_schedule(record(), tmp_path / "schedule.png")
    assert path == tmp_path / "schedule.png"
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(content) > 5000


def test_plot_of_the_same_record_is_the_same(tmp_path):
    first = render_schedule(record(), tmp_path / "a.png").read_bytes()
    assert render_schedule(record(), str(tmp_path / "b.png")).read_bytes() == first
    later = [record().phases[0], {**record().phases[1], "step": 9}]
    assert render_schedule(record(phases=later), tmp_path / "c.png").read_bytes() != first


@pytest.mark.parametrize("changes", [{"rates": []}, {"phases": []}, {"groups": [], "phases": [], "rates": []}])
def test_plot_of_a_record_with_few_facts(tmp_path, changes):
    assert render_schedule(record(**changes), tmp_path / "schedule.png").stat().st_size > 0


def test_bars_reach_from_thaw_to_freeze():
    from matplotlib import pyplot
    from matplotlib.colors import to_rgba

    phases = [{"step": 0, "groups": ["head"]}, {"step": 4, "groups": ["layer.0"]}, {"step": 7, "groups": ["head"]}]
    figure, axes = pyplot.subplots()
    plots._draw_phases(axes, record(phases=phases), ["layer.0", "head"], 10)
    bars = [p for p in axes.patches if p.get_facecolor() == to_rgba(plots.LEARNING)]
    spans = {(round(p.get_y() + p.get_height() / 2), p.get_x(), p.get_x() + p.get_width()) for p in bars}
    pyplot.close(figure)
    assert spans == {(0, 4, 7), (1, 0, 4), (1, 7, 10)}


def test_plot_leaves_no_figure_open(tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    render_schedule(record(), tmp_path / "schedule.png")
    assert pyplot.get_fignums() == before


def test_without_matplotlib_there_is_a_word_and_no_plot(tmp_path, monkeypatch, caplog):
    real = importlib.util.find_spec
    monkeypatch.setattr(plots, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    assert render_schedule(record(), tmp_path / "schedule.png") is None
    assert not (tmp_path / "schedule.png").exists()
    assert 'No schedule plot: run `pip install "hf-transfer-plugin[plots]"` for it.' in caplog.text


@pytest.mark.parametrize(
    ("problem_type", "names", "labels"),
    [
        ("single_label_classification", ("a", "b"), [0, 1]),
        ("multi_label_classification", ("a", "b"), [[0.0, 1.0], [1.0, 1.0]]),
        ("regression", (), [0.5, 1.5]),
    ],
)
def test_every_metric_and_baseline_of_classification_has_a_name_on_the_card(problem_type, names, labels):
    data = TaskData(DatasetDict({"train": Dataset.from_dict({"label": labels})}), {}, problem_type, names)
    name, metrics = TASKS["text-classification"].baseline(data, "train", data.splits)
    assert name in BASELINES
    assert metrics.keys() <= card_module.MEASURES.keys()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("names", [("O", "B-PER", "I-PER"), ("a", "b")])
def test_the_metric_that_decides_has_a_name_on_the_card(task, names):
    name, _ = TASKS[task].best_metric(TaskData(DatasetDict(), {}, "single_label_classification", names))
    assert name in card_module.MEASURES
