"""The demo Space: what is written, what it accepts, and how it answers; the browser's part is in test_demo_browser."""

import json
import subprocess
import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from hf_transfer_plugin.cli import main as cli
from hf_transfer_plugin.hub import SPACE_TASKS, demo, model_name, render_space, run_demo
from hf_transfer_plugin.record import TransferRecord
from tests.conftest import TINY

pytest.importorskip("gradio", reason='needs gradio: pip install "hf-transfer-plugin[demo]"')

ROOT = Path(__file__).parents[1]
MODEL = "hf-transfer-plugin/all-MiniLM-L6-v2-rotten_tomatoes"
MODULES = tuple(sorted(path.stem for path in demo.SPACE.glob("*.py")))
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
NAMES = {SINGLE: ["bad", "good"], MULTI: ["fun", "warm", "dull"], REGRESSION: []}
HOSTILE = "<img src=x onerror=alert(1)> [x](javascript:alert(1)) *b* | $$x$$ `c`\n\n# taken over\n---\nlicense: mit"


@pytest.fixture(scope="module")
def space():
    """The app's modules, imported from the folder that is copied."""
    sys.path.insert(0, str(demo.SPACE))
    found = {name: import_module(name) for name in MODULES}
    yield type("Space", (), found)
    sys.path.remove(str(demo.SPACE))
    for name in MODULES:
        del sys.modules[name]


def record(problem_type=SINGLE, *, pair=False, **changes):
    inputs = {"text": "review"} | ({"text_pair": "answer"} if pair else {})
    values = {
        "task": "text-classification",
        "base_model": "tiny-bert",
        "problem_type": problem_type,
        "class_names": NAMES[problem_type],
        "dataset": {"name": "reviews.csv", "local": True, "columns": {**inputs, "label": "y"}, "splits": {"test": 40}},
        "metrics": {"accuracy": 0.9, "loss": 0.2} if problem_type != REGRESSION else {"mae": 0.5},
        "metrics_split": "test",
        "examples": [{**dict.fromkeys(inputs, "a fine warm film"), "label": "good"}],
        "versions": {"transformers": "5.23.0"},
    }
    return TransferRecord(**{**values, **changes})


def settings_of(space, folder):
    return space.loading.Settings.read(folder / "demo.json")


def classifier(folder, tokenizer, problem_type=SINGLE, names=None, **changes):
    names = NAMES[problem_type] if names is None else names
    labels = {"num_labels": 1} if not names else {"id2label": dict(enumerate(names))}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**TINY, problem_type=problem_type, **labels, **changes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def page_of(space, tmp_path, model, **kwargs):
    """Loaded model and the function behind the button."""
    settings = settings_of(space, render_space(record(**kwargs), tmp_path / "space", "me/model"))
    row = space.app.TASKS[settings.task, settings.form]
    with quiet_peft():
        loaded = space.loading.load(settings, model, row.auto_class)
    space.page.build(settings, row, loaded, model)
    return loaded, space.page.answering(settings, row, loaded)


# The folder


def test_committed_space_is_the_rendering_of_the_quickstart(tmp_path):
    render_space(TransferRecord.load(ROOT / "model_cards" / "quickstart"), tmp_path, MODEL)
    committed = ROOT / "spaces_app"
    names = {p.name for p in committed.iterdir() if p.is_file()}
    assert {p.name for p in tmp_path.iterdir()} == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (committed / name).read_bytes(), name
    assert model_name(TransferRecord.load(ROOT / "model_cards" / "quickstart")) == MODEL.split("/")[1]


def test_same_record_gives_the_same_bytes_and_modules_are_copies(tmp_path):
    first, second = (render_space(record(), tmp_path / name, "me/model") for name in "ab")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()
    for module in demo.SPACE.glob("*.py"):
        assert (first / module.name).read_bytes() == module.read_bytes()


def test_rendering_again_replaces_what_was_there(tmp_path):
    render_space(record(), tmp_path, "me/model")
    (tmp_path / "app.py").write_text("half")
    render_space(record(class_names=["x", "y"]), tmp_path, "me/model", title="My page")
    assert (tmp_path / "app.py").read_bytes() == (demo.SPACE / "app.py").read_bytes()
    written = json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))
    assert (written["title"], written["class_names"]) == ("My page", ["x", "y"])
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def front_matter(folder):
    _, matter, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(matter), body


def test_front_matter_says_what_the_hub_needs(tmp_path):
    data = {**record().dataset, "name": "stanfordnlp/imdb", "local": False}
    found, body = front_matter(render_space(record(dataset=data, license="mit"), tmp_path, "me/model"))
    assert found["sdk"] == "gradio"
    assert found["sdk_version"] == demo.GRADIO_VERSION
    assert version("gradio").split(".")[0] == demo.GRADIO_VERSION.split(".")[0]
    assert found["python_version"] == "3.12.12"
    assert found["app_file"] == "app.py"
    assert found["models"] == ["me/model"]
    assert found["datasets"] == ["stanfordnlp/imdb"]
    assert found["license"] == "mit"
    assert "text-classification" in found["tags"]
    assert len(found["short_description"]) <= 60
    assert 'predict("a text", api_name="/classify")' in body


def test_requirements_pin_no_torch_and_no_gradio(tmp_path):
    folder = render_space(record(versions={"transformers": "5.22.1", "peft": "0.9.0.dev0"}), tmp_path, "me/model")
    assert (folder / "requirements.txt").read_text() == f"transformers==5.22.1\npeft=={demo.PINS['peft']}\n"


def test_text_of_data_cannot_change_readme_or_page(tmp_path, space):
    data = {**record().dataset, "name": HOSTILE}
    evil = record(class_names=[HOSTILE, "ok"], dataset=data, base_model=HOSTILE)
    folder = render_space(evil, tmp_path, "me/model", title=HOSTILE)
    found, body = front_matter(folder)
    settings = settings_of(space, folder)
    loaded = space.loading.Loaded(None, None, settings.class_names, 32, None)
    row = space.app.TASKS[settings.task, settings.form]
    for text in (body, space.page.about(settings, row, loaded, "me/model"), space.page.escape(settings.title)):
        assert "<img" not in text
        assert "[x](" not in text
        assert "\n# taken over" not in text
        assert "$$" not in text.replace("\\$", "")
    assert found["title"].startswith("<img src=x")
    assert "license" not in found


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        ({"task": "depth-estimation"}, "me/model", "There are demos for .*fill-mask, .*, but .*depth-est"),
        ({"problem_type": ""}, "me/model", "no problem type"),
        ({}, "not a model", "must be a Hub id"),
        ({}, "/tmp/run", "must be a Hub id"),
    ],
)
def test_refusals(tmp_path, changes, model, message):
    with pytest.raises(ValueError, match=message):
        render_space(replace(record(), **changes), tmp_path / "space", model)
    assert not (tmp_path / "space").exists()


def test_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "space").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        render_space(record(), tmp_path / "space", "me/model")


def test_every_task_of_the_space_has_a_row_in_the_app(space):
    assert set(space.app.TASKS) == set(SPACE_TASKS)
    for key, (_, api_name) in SPACE_TASKS.items():
        assert space.app.TASKS[key].api_name == api_name


@pytest.mark.parametrize(
    ("task", "columns", "options", "inputs", "call"),
    [
        ("token-classification", {"tokens": "w"}, {}, ["text"], 'predict("a text", api_name="/tag")'),
        (
            "question-answering",
            {"question": "q", "context": "c", "answers": "a"},
            {"stride": 9},
            ["question", "context"],
            'predict("a question", "a text", api_name="/answer_question")',
        ),
        ("summarization", {"text": "t", "target": "s"}, {"prompt": "{text}"}, ["text"], 'api_name="/summarize"'),
        ("translation", {"text": "t", "target": "s"}, {}, ["text"], 'api_name="/translate"'),
        ("text-generation", {"text": "t"}, {}, ["text"], 'api_name="/complete"'),
        ("text-generation", {"messages": "m"}, {}, ["messages"], 'predict("hello", api_name="/chat")'),
        ("text-generation", {"text": "t", "target": "a"}, {"chat": True}, ["messages"], 'api_name="/chat"'),
        ("fill-mask", {"text": "t"}, {}, ["text"], 'predict("a text with one [MASK]", api_name="/fill")'),
    ],
)
def test_every_text_task_has_its_settings(tmp_path, space, task, columns, options, inputs, call):
    data = {**record().dataset, "columns": columns}
    row = replace(record(), task=task, problem_type="", class_names=[], dataset=data, options=options)
    folder = render_space(row, tmp_path, "me/model")
    settings, (found, body) = settings_of(space, folder), front_matter(folder)
    assert (settings.inputs, settings.options) == (inputs, options)
    assert (settings.task, settings.form) in space.app.TASKS
    assert call in body
    assert len(found["short_description"]) <= 60


def test_settings_of_an_older_folder_are_read(tmp_path, space):
    folder = render_space(record(), tmp_path, "me/model")
    values = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    del values["options"]
    (folder / "demo.json").write_text(json.dumps(values), encoding="utf-8")
    assert settings_of(space, folder).options == {}


@pytest.mark.parametrize(
    ("base", "data", "name"),
    [
        ("org/bert", "org/imdb", "bert-imdb"),
        ("bert", "my data.csv", "bert-my-data"),
        ("a--b..c", "ünï", "a-b-c-n"),
        ("é", "é", "model"),
        ("b" * 200, "d", "b" * 90),
    ],
)
def test_names_are_names_of_the_hub(base, data, name):
    assert model_name(record(base_model=base, dataset={"name": data})) == name


# The command


def test_command_writes_the_folder(tmp_path, capsys):
    record().save(tmp_path / "run")
    out = tmp_path / "space"
    assert cli(["demo", str(tmp_path / "run"), "--output_dir", str(out), "--model", "me/model"]) == 0
    assert json.loads((out / "demo.json").read_text())["model"] == "me/model"
    assert "app.py --model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "Expected a run folder"),
        (["."], "Expected a run folder"),
        (["run", "--port", "99999"], "between 1 and 65535"),
        (["run", "--model", "me/model"], "give `--output_dir`"),
        ([], "required: run"),
    ],
)
def test_command_refuses_in_a_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli(["demo", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_command_refuses_a_task_without_a_demo(tmp_path, capsys):
    record(task="depth-estimation").save(tmp_path)
    assert cli(["demo", str(tmp_path)]) == 2
    assert "There are demos for audio-classification" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(tmp_path, monkeypatch):
    record().save(tmp_path)
    monkeypatch.setattr("hf_transfer_plugin._optional.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"hf-transfer-plugin\[demo\]"):
        run_demo(tmp_path)


# The app


@pytest.mark.parametrize("value", [None, "", "  \n\t", "\u200b\u200b", "\x00\x01"])
def test_empty_text_is_refused(space, value):
    with pytest.raises(space.limits.InputError, match="Text is empty"):
        space.limits.check_text(value, "Text")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "must be a string, but got int"),
        (["a"], "but got list"),
        ({"a": 1}, "but got dict"),
        ("x" * 20_001, "20,001 characters; at most 20,000"),
        ("a\ud800", "broken characters"),
    ],
)
def test_wrong_text_is_refused(space, value, message):
    with pytest.raises(space.limits.InputError, match=message):
        space.limits.check_text(value, "Text")


@pytest.mark.parametrize("value", ["a", "é 漢 🎬", "x" * 20_000, "?", "a\x00b"])
def test_text_passes_as_it_is(space, value):
    assert space.limits.check_text(value, "Text") == value


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
@pytest.mark.parametrize("pair", [False, True])
def test_answers_are_those_of_the_model(space, tmp_path, tokenizer, problem_type, pair):
    folder = classifier(tmp_path / "model", tokenizer, problem_type)
    loaded, answer = page_of(space, tmp_path, folder, problem_type=problem_type, pair=pair)
    texts = ["a fine warm film", "a dull cold film"][: 1 + pair]
    found = answer(*texts)
    batch = tokenizer(*texts, return_tensors="pt")
    logits = AutoModelForSequenceClassification.from_pretrained(folder)(**batch).logits[0]
    if problem_type == REGRESSION:
        assert found == pytest.approx(logits.item())
    else:
        expected = logits.softmax(0) if problem_type == SINGLE else logits.sigmoid()
        assert list(found) == NAMES[problem_type]
        assert list(found.values()) == pytest.approx(expected.tolist())
    assert loaded.as_base is None


def test_long_text_is_read_to_the_limit_and_said(space, tmp_path, tokenizer, monkeypatch):
    loaded, answer = page_of(space, tmp_path, classifier(tmp_path / "model", tokenizer))
    warned = []
    monkeypatch.setattr(space.page.gr, "Warning", warned.append)
    assert loaded.max_tokens == 32
    first = answer("warm " * 30)
    assert warned == []
    assert answer("warm " * 2_000) == first
    assert warned == ["Only the first 32 tokens were read; the rest was left out."]


def test_answer_that_is_no_number_is_said(space, tmp_path, tokenizer):
    loaded, answer = page_of(space, tmp_path, classifier(tmp_path / "model", tokenizer))
    with torch.no_grad():
        loaded.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(space.limits.InputError, match="no answer"):
        answer("a film")


@contextmanager
def quiet_peft():
    """Peft 0.21 asks transformers for a property by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def adapter(folder, base, tokenizer, names=("bad", "good")):
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(base, **labels, ignore_mismatched_sizes=True)
    with quiet_peft():
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_()
    model.save_pretrained(folder)
    return str(folder), model.eval()


def test_adapter_answers_and_its_new_head_is_not_compared(space, tmp_path, tokenizer, model_folder):
    folder, model = adapter(tmp_path / "adapter", model_folder, tokenizer, NAMES[MULTI])
    loaded, answer = page_of(space, tmp_path, folder, problem_type=MULTI)
    expected = model(**tokenizer("a fine film", return_tensors="pt")).logits[0].sigmoid().tolist()
    assert list(answer("a fine film").values()) == pytest.approx(expected, abs=1e-5)
    assert loaded.as_base is None


def test_base_with_the_same_classes_is_compared(space, tmp_path, tokenizer):
    base = classifier(tmp_path / "base", tokenizer)
    folder, model = adapter(tmp_path / "adapter", base, tokenizer)
    loaded, answer = page_of(space, tmp_path, folder)
    batch = tokenizer("a fine film", return_tensors="pt")
    plain = AutoModelForSequenceClassification.from_pretrained(base)(**batch).logits[0].softmax(0).tolist()
    tuned, other = answer("a fine film", True)
    assert list(other.values()) == pytest.approx(plain, abs=1e-5)
    assert list(tuned.values()) == pytest.approx(model(**batch).logits[0].softmax(0).tolist(), abs=1e-5)
    assert answer("a fine film", False) == (tuned, None)


def test_base_of_a_whole_model_is_compared_only_with_the_same_classes(space, tmp_path, tokenizer):
    base = classifier(tmp_path / "base", tokenizer, names=["Bad", "Good"])
    other = classifier(tmp_path / "other", tokenizer, names=["cat", "dog"])
    auto = AutoModelForSequenceClassification
    settings = settings_of(space, render_space(record(), tmp_path / "space", "me/model"))
    for named, expected in ((base, True), (other, False), (None, False), (str(tmp_path / "gone"), False)):
        found = space.loading._load_base(replace(settings, base_model=named), auto)
        assert (found is not None) is expected, named


@pytest.mark.parametrize(
    ("problem_type", "names", "message"),
    [
        (SINGLE, ["a", "b", "c"], "has 3 outputs for single_label_classification"),
        (MULTI, ["bad", "good"], "2 outputs for multi_label"),
        (REGRESSION, [], "1 outputs for regression"),
    ],
)
def test_model_for_other_classes_is_refused(space, tmp_path, tokenizer, problem_type, names, message):
    folder = classifier(tmp_path / "model", tokenizer, problem_type, names)
    with pytest.raises(space.loading.DemoError, match=message):
        page_of(space, tmp_path, folder)


def test_names_of_the_loaded_model_win(space, tmp_path, tokenizer):
    _, answer = page_of(space, tmp_path, classifier(tmp_path / "model", tokenizer, names=["no", "yes"]))
    assert list(answer("a film")) == ["no", "yes"]


@pytest.mark.parametrize("model", ["gone/away", "/nowhere", "EMPTY", "not a name"])
def test_model_that_cannot_be_loaded_is_said(space, tmp_path, model):
    (tmp_path / "empty").mkdir()
    with pytest.raises(space.loading.DemoError, match=r"cannot be loaded: (?s:.)*quickstart --output_dir RUN"):
        page_of(space, tmp_path, str(tmp_path / "empty") if model == "EMPTY" else model)


def test_a_folder_that_is_not_there_is_called_so(tmp_path, space):
    with pytest.raises(space.loading.DemoError, match=r"cannot be loaded: there is no such folder\."):
        page_of(space, tmp_path, str(tmp_path / "nowhere"))


@pytest.mark.hub
def test_without_a_model_the_app_says_how_to_make_one(tmp_path):
    folder = render_space(record(), tmp_path / "space", "gone/away")
    done = subprocess.run([sys.executable, "app.py"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "error: The model 'gone/away' cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_damaged_settings_are_said(tmp_path, space):
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(space.loading.DemoError, match=r"demo.json is missing or damaged"):
        settings_of(space, tmp_path)
