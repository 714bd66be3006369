"""The demo Space, rendered from a record alone, and the same app on this machine."""

import json
import re
import signal
import subprocess  # noqa: S404  the app runs as a process of its own
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_transfer_plugin._optional import require
from hf_transfer_plugin.hub.adapter_facts import ADAPTER
from hf_transfer_plugin.hub.card import MEASURES, TEMPLATES, escape
from hf_transfer_plugin.hub.facts import baseline_rows
from hf_transfer_plugin.hub.media_snippets import candidates
from hf_transfer_plugin.hub.samples import with_files
from hf_transfer_plugin.hub.table_rows import choices_of, examples_of, inputs_of, is_table, literal
from hf_transfer_plugin.record import TransferRecord, write_atomically

SPACE = TEMPLATES / "space"
DEMO_VERSION = 1
GRADIO_VERSION = "6.31.0"
PYTHON_VERSION = "3.12.12"
PINS = {"transformers": "5.23.0", "peft": "0.21.2"}
SOUND_PINS = {"soundfile": "0.14.0", "soxr": "1.1.0"}
OWN_PINS = {
    "sentence-similarity": {"sentence-transformers": "6.2.0"},
    "audio-classification": SOUND_PINS,
    "automatic-speech-recognition": SOUND_PINS,
}
CLASSES, NUMBER = ("a text one of its classes", "classify"), ("a text a number", "predict_value")
ROW_CLASSES = ("a row of a table one of its classes", "classify")
NAMED = ("an image one of the names you type", "classify")
SPACE_TASKS = {  # (task, problem type or "messages") -> what the demo gives, and its call; the app has the same keys
    ("text-classification", "single_label_classification"): CLASSES,
    ("text-classification", "multi_label_classification"): CLASSES,
    ("text-classification", "regression"): NUMBER,
    ("text-classification", "row: single_label_classification"): ROW_CLASSES,
    ("text-classification", "row: multi_label_classification"): ROW_CLASSES,
    ("text-classification", "row: regression"): ("a row of a table a number", "predict_value"),
    ("token-classification", ""): ("the words of a text labels", "tag"),
    ("question-answering", ""): ("a question its answer", "answer_question"),
    ("summarization", ""): ("a text its summary", "summarize"),
    ("translation", ""): ("a text its translation", "translate"),
    ("text-generation", ""): ("a text its continuation", "complete"),
    ("text-generation", "messages"): ("a message an answer", "chat"),
    ("sentence-similarity", ""): ("a query the texts that fit it best", "search"),
    ("fill-mask", ""): ("a text its missing word", "fill"),
    ("image-classification", "single_label_classification"): ("an image one of its classes", "classify"),
    ("image-classification", "multi_label_classification"): ("an image one of its classes", "classify"),
    ("image-classification", "regression"): ("an image a number", "predict_value"),
    ("image-segmentation", ""): ("each pixel of an image its class", "segment"),
    ("object-detection", ""): ("an image boxes around what it shows", "detect"),
    ("audio-classification", "single_label_classification"): ("a sound one of its classes", "classify"),
    ("audio-classification", "multi_label_classification"): ("a sound one of its classes", "classify"),
    ("audio-classification", "regression"): ("a sound a number", "predict_value"),
    ("automatic-speech-recognition", ""): ("speech its text", "transcribe"),
    ("zero-shot-image-classification", "single_label_classification"): NAMED,
    ("zero-shot-image-classification", ""): NAMED,
}
SENT = {
    "text": "a text",
    "text_pair": "another text",
    "question": "a question",
    "context": "a text",
    "messages": "hello",
    "corpus": "one text\\nanother text",
    "candidates": "one name\\nanother name",
}
SENT_FILES = {"image": "picture.jpg", "audio": "sound.wav"}
THRESHOLD = 0.5  # as in training, where the record has none
BOXES = {  # task -> boxes of its page, where it is not a text alone
    "question-answering": ("question", "context"),
    "sentence-similarity": ("text", "corpus"),
    "image-classification": ("image",),
    "image-segmentation": ("image",),
    "zero-shot-image-classification": ("image", "candidates"),
    "object-detection": ("image", "threshold"),
    "audio-classification": ("audio",),
    "automatic-speech-recognition": ("audio",),
}
EXAMPLES = 8
STOPPING = 10


def render_space(record: TransferRecord, folder: str | Path, model: str, *, title: str | None = None) -> Path:
    """
    Writes the folder of a Space: the same record and model always give the same bytes.

    Args:
        record (`TransferRecord`):
            The record.
        folder (`str` or `Path`):
            Where to write; created where it is missing.
        model (`str`):
            Hub id of the trained model, e.g. `"me/minilm-reviews"`.
        title (`str`, *optional*):
            Heading of the page; from the record without it.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: If there is no demo for the task, `model` is no Hub id, or `folder` is a file.

    Example:
    ```python
    >>> render_space(TransferRecord.load("quickstart-run"), "space", "me/minilm-reviews")
    ```
    """
    record, files = with_files(record)
    settings = _settings(record, model, title)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`folder` must be a folder to write the Space to, but {str(folder)!r} is a file.")
    for module in sorted(SPACE.glob("*.py")):
        write_atomically(folder / module.name, module.read_bytes().decode())
    for name, content in files.items():
        if name in {value for row in settings["examples"] for value in row.values() if isinstance(value, str)}:
            write_atomically(folder / name, content)
    write_atomically(folder / "README.md", _readme(record, settings))
    write_atomically(folder / "requirements.txt", _requirements(record))
    write_atomically(folder / "demo.json", json.dumps(settings, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return folder


def model_name(record: TransferRecord) -> str:
    """
    Names the trained model by its base and data.

    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `str`: The part of a Hub id after the slash, e.g. `"all-MiniLM-L6-v2-rotten_tomatoes"`.
    """
    data = str(record.dataset.get("name", "data")).split("/")[-1].split(".")[0]
    name = re.sub(r"[^\w.-]+", "-", f"{record.base_model.split('/')[-1]}-{data}", flags=re.ASCII)
    return re.sub(r"[-.]{2,}", "-", name)[:90].strip("-.") or "model"


def run_demo(run: str | Path, *, port: int | None = None, open_browser: bool = False, base: str | None = None) -> int:
    """
    Serves the demo of a run on this machine, until it is stopped.

    Args:
        run (`str` or `Path`):
            The run folder.
        port (`int`, *optional*):
            Port; the first free one from 7860 without it.
        open_browser (`bool`, *optional*, defaults to `False`):
            Whether to open the page.
        base (`str`, *optional*):
            Hub id or folder of an adapter's base; as the adapter names it without it.

    Returns:
        `int`: The exit code of the app.

    Raises:
        ValueError: If `run` is no run folder, there is no demo for its task, or `base` is named for a whole model.
        ImportError: If gradio is not installed.
    """
    record = TransferRecord.load(run)
    if base and not (Path(run) / ADAPTER).is_file():
        raise ValueError(f"`base` names the base of an adapter, but {str(run)!r} holds no {ADAPTER}. Leave it out.")
    require("gradio", extra="demo")
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        render_space(record, folder, model_name(record))
        command = [sys.executable, "app.py", "--model", str(Path(run).resolve())]
        command += ["--port", str(port)] if port is not None else []
        command += ["--open_browser"] if open_browser else []
        named = _base_of(Path(run), record, base)
        command += ["--base", named] if named else []
        with _stopping_with_us(subprocess.Popen(command, cwd=folder)) as app:  # noqa: S603
            return app.wait()


def _base_of(run: Path, record: TransferRecord, given: str | None) -> str | None:
    """The base of an adapter, where the app could not find it by what it is called here: it runs elsewhere."""
    file = run / ADAPTER
    if not file.is_file():
        return None
    named = Path(given or json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    local = named != Path() and named.expanduser().is_dir()
    return str(named.expanduser().resolve()) if local else given or record.base_model_id


@contextmanager
def _stopping_with_us(child: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """Ends the app however this process ends; without it a SIGTERM would leave the server behind."""

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOPPING)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if main:
            signal.signal(signal.SIGTERM, before)


def _settings(record: TransferRecord, model: str, title: str | None) -> dict[str, Any]:
    if _key(record) not in SPACE_TASKS:
        known = sorted({task for task, _ in SPACE_TASKS})
        got = f"{record.task!r} ({record.problem_type or 'no problem type'})"
        raise ValueError(f"There are demos for {', '.join(known)}, but the record's task is {got}.")
    try:
        validate_repo_id(model)
    except HFValidationError:
        raise ValueError(f"`model` must be a Hub id such as 'me/minilm-reviews', but got {model!r}.") from None
    inputs = _inputs(record)
    base = record.base_model.split("/")[-1]
    return {
        "version": DEMO_VERSION,
        "model": model,
        "title": " ".join((title or f"{base} fine-tuned on {record.dataset.get('name', 'your data')}").split()),
        "task": record.task,
        "problem_type": record.problem_type,
        "inputs": inputs,
        "class_names": record.class_names,
        "base_model": record.base_model_id,
        "examples": [
            {k: v for k, v in row.items() if k in {*inputs, "label"}} for row in _examples(record)[:EXAMPLES]
        ],
        "facts": _facts(record),
        "options": record.options | ({"feature_choices": choices_of(record)} if is_table(record) else {}),
        "adapter": {k: v for k, v in (record.adapter or {}).items() if k in ("name", "base_precision") and v},
    }


def _inputs(record: TransferRecord) -> list[str]:
    columns = record.dataset.get("columns", {})
    if is_table(record):
        return inputs_of(record)
    if record.task == "text-generation" and (record.options.get("chat") or "messages" in columns):
        return ["messages"]
    if record.task in BOXES:
        return list(BOXES[record.task])
    pair = record.task == "text-classification" and "text_pair" in columns
    return ["text", "text_pair"] if pair else ["text"]


def _examples(record: TransferRecord) -> list[dict[str, Any]]:
    """Rows to try the model on; of a search each query with the second texts of all rows, one a line."""
    if is_table(record):
        return examples_of(record)
    if record.task == "object-detection":
        return [{**row, "threshold": record.options.get("score_threshold", THRESHOLD)} for row in record.examples]
    if record.task == "zero-shot-image-classification":
        names = "\n".join(candidates(record))
        return [{"label": row.get("text", ""), **row, "candidates": names} for row in record.examples]
    if record.task != "sentence-similarity":
        return record.examples
    texts = (" ".join(str(row.get("text_pair") or row["text"]).split()) for row in record.examples)
    corpus = "\n".join(dict.fromkeys(texts))
    return [{"text": row["text"], "corpus": corpus} for row in record.examples]


def _key(record: TransferRecord) -> tuple[str, str]:
    if is_table(record):
        return record.task, f"row: {record.problem_type}"
    return record.task, record.problem_type or ("messages" if _inputs(record) == ["messages"] else "")


def _facts(record: TransferRecord) -> dict[str, Any]:
    shown = [name for name in MEASURES if name in record.metrics and name != "loss"]
    if not shown:
        return {}
    found = {"this model": record.metrics, **dict(baseline_rows(record))}
    split = record.metrics_split
    return {
        "dataset": str(record.dataset.get("name", "the data")),
        "split": f"{split} split",
        "rows": f"{record.dataset.get('splits', {}).get(split, 0):,}",
        "table": [
            ["measure", *found],
            *([MEASURES[n], *(f"{v[n]:.3f}" if n in v else "" for v in found.values())] for n in shown),
        ],
    }


def _requirements(record: TransferRecord) -> str:
    """Peft brings torch, in the version that the Space's hardware has; `sdk_version` brings gradio."""
    pins = PINS | OWN_PINS.get(record.task, {})
    released = {name: v for name, v in record.versions.items() if re.fullmatch(r"\d+(\.\d+)+", v)}
    return "".join(f"{name}=={released.get(name, pin)}\n" for name, pin in pins.items())


def _arguments(record: TransferRecord, settings: dict[str, Any]) -> str:
    """What the README sends, as Python writes it."""
    if is_table(record):
        row = (settings["examples"] or [{}])[0]
        return ", ".join(literal(row.get(name)) for name in settings["inputs"])
    sent = {name: f'"{value}"' for name, value in SENT.items()} | {"threshold": str(THRESHOLD)}
    sent |= {name: f'handle_file("{file}")' for name, file in SENT_FILES.items()}
    sent |= {"text": '"a text with one [MASK]"'} if record.task == "fill-mask" else {}
    return ", ".join(sent[name] for name in settings["inputs"])


def _readme(record: TransferRecord, settings: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(SPACE),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  Markdown is escaped by the filter `text`
    )
    environment.filters["text"] = escape
    gives, api_name = SPACE_TASKS[_key(record)]
    body = environment.get_template("README.md").render(
        **{key: settings[key] for key in ("title", "model", "base_model")},
        gradio=GRADIO_VERSION,
        api_name=api_name,
        arguments=_arguments(record, settings),
        files=any(name in SENT_FILES for name in settings["inputs"]),
    )
    local = record.dataset.get("local", True)
    data = SpaceCardData(
        title=settings["title"],
        emoji="🔁",
        colorFrom="blue",
        colorTo="indigo",
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        python_version=PYTHON_VERSION,
        app_file="app.py",
        short_description=f"A fine-tuned model gives {gives}",
        models=[settings["model"]],
        datasets=None if local else [record.dataset["name"]],
        license=record.license,
        tags=["hf-transfer-plugin", "transfer-learning", record.task],
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"
