"""
Do the layer groups hold for every architecture? Builds a tiny model of every class that the auto mappings of thirteen
tasks list, runs it on dummy inputs, and puts its groups through the checks of `benchmarks/architecture_checks.py`.

Resumable: one line a class in results/architecture_survey.jsonl; classes that are there are not run again. Each class
runs in a process of its own, with limits of time and memory.
    python -m benchmarks.architecture_survey --minutes 19        # again, until it says that nothing is left
    python -m benchmarks.architecture_survey --only BertForMaskedLM CvtForImageClassification
    python -m benchmarks.architecture_survey --table             # writes results/architecture_survey.md

Needs Linux (it forks) and no network: the models have random weights.
"""

import argparse
import contextlib
import importlib
import json
import os
import re
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

from benchmarks.architecture_checks import check_head, check_order, check_partition, check_thaw
from benchmarks.tiny_inputs import Inputs, candidates, on_text_alone
from benchmarks.tiny_models import tiny_model
from hf_transfer_plugin import LayerGroups, discover_layer_groups

Survey = Callable[[str, str], dict[str, Any]]
RESULTS = Path(__file__).parent / "results" / "architecture_survey.jsonl"
TASKS = {
    "sequence classification": "SEQUENCE_CLASSIFICATION",
    "token classification": "TOKEN_CLASSIFICATION",
    "question answering": "QUESTION_ANSWERING",
    "causal LM": "CAUSAL_LM",
    "masked LM": "MASKED_LM",
    "seq2seq LM": "SEQ_TO_SEQ_CAUSAL_LM",
    "image classification": "IMAGE_CLASSIFICATION",
    "semantic segmentation": "SEMANTIC_SEGMENTATION",
    "object detection": "OBJECT_DETECTION",
    "audio classification": "AUDIO_CLASSIFICATION",
    "CTC": "CTC",
    "speech seq2seq": "SPEECH_SEQ_2_SEQ",
    "image-text-to-text": "IMAGE_TEXT_TO_TEXT",
}
# What lies behind the exceptions, found by hand.
EXPLAINED = {
    "canine": "the pooler is the head's by the family rule, but runs before the final character encoder",
    "reformer": "its reversible layers are differentiated only if what enters them is: with frozen embeddings no "
    "block gets a gradient, whatever froze them",
}
SECONDS, GIBIBYTES = 150, 10
# Imported before the first fork, so that not every class pays for it.
SHARED = ("bert", "bart", "clip", "detr", "llama", "mamba", "qwen2_vl", "wav2vec2")


def listed_classes() -> dict[str, tuple[str, list[str]]]:
    """
    Returns:
        `dict[str, tuple[str, list[str]]]`: For each class name the model type that lists it first, and its tasks.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for task, suffix in TASKS.items():
        for model_type, names in getattr(modeling_auto, f"MODEL_FOR_{suffix}_MAPPING_NAMES").items():
            for name in names if isinstance(names, (list, tuple)) else [names]:
                tasks = found.setdefault(name, (model_type, []))[1]
                tasks.extend([task] if task not in tasks else [])
    return found


def reason(error: BaseException) -> str:
    """An exception in one line, with the place where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]} ({Path(place.filename).name}:{place.lineno})"


def running_model(class_name: str, model_type: str) -> tuple[nn.Module | None, Inputs, str, list[str]]:
    """
    Builds a model and finds inputs that it runs on; where the narrow one does neither, one of default width.

    Args:
        class_name (`str`):
            A class of `transformers`.
        model_type (`str`):
            The key under which the auto mapping lists it.

    Returns:
        `tuple`: The model, its inputs, how far it came (`"absent"`, `"built"`, `"runs"`), and why not further.
    """
    stage, reasons = "absent", []
    for narrow in (True, False):
        try:
            model = tiny_model(class_name, model_type, narrow=narrow)
        except Exception as error:  # noqa: BLE001  whatever a config does not stand is the survey's finding
            reasons.append(reason(error))
            continue
        stage = "built"
        for inputs in candidates(model):
            try:
                torch.manual_seed(0)
                with torch.no_grad():
                    model(**inputs)
            except Exception as error:  # noqa: BLE001  a guess at inputs may fail in any way
                reasons.append(reason(error))
                continue
            settle_norms(model, inputs)
            return model, inputs, "runs", []
    return None, {}, stage, reasons


def settle_norms(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Gives BatchNorm the statistics of the inputs: with those of the start, signals of deep networks vanish."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad(), contextlib.suppress(ValueError):  # a channel of one value has no variance
        model(**inputs)
    model.eval()


def find_groups(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[LayerGroups, str]:
    """As `attach` does: first with the dummy inputs of the package, then on a batch."""
    groups = discover_layer_groups(model)
    if groups.verified:
        return groups, "dummy inputs"
    groups = discover_layer_groups(model, inputs=inputs)
    return groups, "a batch" if groups.verified else "nothing"


def survey_class(class_name: str, model_type: str) -> dict[str, Any]:
    """
    Surveys one class.

    Args:
        class_name (`str`):
            A class of `transformers`.
        model_type (`str`):
            The key under which the auto mapping lists it.

    Returns:
        `dict[str, Any]`: A row of the results.
    """
    begin = time.perf_counter()
    model, inputs, stage, reasons = running_model(class_name, model_type)
    row = {"class": class_name, "model_type": model_type, "stage": stage, "reasons": reasons[:1]}
    if model is None:
        return row
    groups, verified_by = find_groups(model, inputs)
    faults = check_partition(model, groups) + check_order(model, groups, inputs)
    faults += check_head(model, groups) + check_thaw(model, groups, inputs)
    if verified_by == "nothing":
        faults.append(f"unverified: {groups.rule}")
    return row | {
        "stage": "fails" if faults else "passes",
        "reasons": faults,
        "rule": re.sub(r"[a-z_0-9]+\.[\w.]+$", "", groups.rule).strip(" ,"),
        "verified_by": verified_by,
        "groups": list(groups.names),
        "inputs": sorted(inputs),
        "text_alone": on_text_alone(model, inputs),
        "seconds": round(time.perf_counter() - begin, 2),
    }


def survey_apart(class_name: str, model_type: str, survey: Survey = survey_class) -> dict[str, Any]:
    """`survey_class` in a process of its own, so that a crash, a loop or a giant ends only that class."""
    failed = {"class": class_name, "model_type": model_type, "stage": "fails"}
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (GIBIBYTES << 30, GIBIBYTES << 30))
        try:
            row = survey(class_name, model_type)
        except BaseException as error:  # noqa: BLE001  nothing may return into the parent's loop
            row = {**failed, "reasons": [f"crash: {reason(error)}"]}
        with os.fdopen(write, "w") as pipe:
            json.dump(row, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        written = pipe.read()
    _, status = os.waitpid(child, 0)
    died = {**failed, "reasons": [f"crash: process ended with status {status}, or after {SECONDS} s"]}
    return json.loads(written) if written else died


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: counts for each task, and every class that fails, does not run or cannot be built, with its reason."""
    classes = listed_classes()
    stages = {name: rows[name]["stage"] if name in rows else "not run" for name in classes}
    lines = [
        "# Architecture survey",
        "",
        f"Layer groups of every class in the auto mappings of transformers {transformers.__version__}, on tiny",
        "models. Written by `python -m benchmarks.architecture_survey --table`; the checks are described in",
        "`benchmarks/architecture_checks.py`.",
        "",
        "| task | in mapping | instantiate | run forward | pass | of those that run | passed with an idle tower |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in (*TASKS, "all classes"):
        named = [name for name, (_, tasks) in classes.items() if task in tasks or task == "all classes"]
        mine = [stages[name] for name in named]
        built = [stage for stage in mine if stage in {"built", "fails", "passes"}]
        ran = [stage for stage in mine if stage in {"fails", "passes"}]
        passed = ran.count("passes")
        share = f"{passed / max(len(ran), 1):.1%}"
        idle = sum(stages[name] == "passes" and bool(rows[name].get("text_alone")) for name in named)
        lines.append(f"| {task} | {len(mine)} | {len(built)} | {len(ran)} | {passed} | {share} | {idle} |")
    for title, stage in (
        ("Exceptions: they run, but a check fails", "fails"),
        ("Instantiated, but no dummy inputs found that they run on", "built"),
        ("Not instantiated", "absent"),
        ("Not surveyed", "not run"),
    ):
        named = [name for name in classes if stages[name] == stage]
        if not named:
            continue
        lines += ["", f"## {title} ({len(named)})", "", "| class | reason |", "|---|---|"]
        lines += [f"| {name} | {_cell(rows.get(name, {}))} |" for name in named]
    deaf = [name for name in classes if rows.get(name, {}).get("text_alone")]
    lines += ["", f"## Run on text alone, for want of images or audio that fit; the tower was idle ({len(deaf)})", ""]
    return "\n".join([*lines, ", ".join(deaf)]) + "\n"


def _cell(row: Mapping[str, Any]) -> str:
    found = "; ".join(row.get("reasons", [])[:2]).replace("|", "/")
    why = EXPLAINED.get(row.get("model_type", ""), "") if row.get("stage") == "fails" else ""
    return f"{why}: {found}" if why else found


def run(survey: Survey, results: Path, table: Callable[[Mapping[str, Mapping[str, Any]]], str], about: str) -> None:
    """
    The command line of a survey.

    Args:
        survey (`Callable`):
            Surveys one class: its name and model type to a row.
        results (`Path`):
            The file of rows; the table stands beside it.
        table (`Callable`):
            Makes the table of all rows.
        about (`str`):
            What `--help` says.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=19, help="stop after that long")
    parser.add_argument("--only", nargs="*", help="run these classes again and print their rows")
    parser.add_argument("--table", action="store_true", help="write the table and stop")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    lines = results.read_text().splitlines() if results.exists() else []
    rows = {row["class"]: row for row in map(json.loads, lines)}
    if options.table:
        results.with_suffix(".md").write_text(table(rows))
        return
    for name in SHARED:
        importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    end = time.monotonic() + options.minutes * 60
    for name, (model_type, _) in listed_classes().items():
        if (name not in options.only) if options.only else (name in rows):
            continue
        if time.monotonic() > end:
            print("Time is up; call again for the rest.")
            break
        rows[name] = survey_apart(name, model_type, survey)
        if options.only:
            print(json.dumps(rows[name], indent=1))
        results.parent.mkdir(exist_ok=True)
        half = results.with_suffix(".half")
        half.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
        half.replace(results)
    else:
        print("Nothing is left.")
    results.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    run(survey_class, RESULTS, table, __doc__ or "")
