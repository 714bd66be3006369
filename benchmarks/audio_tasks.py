"""
One real run for every task that listens: real weights, real sounds, what it must beat, and the seconds that it takes.

    python -m benchmarks.audio_sources DATA                               # once; see there
    python -m benchmarks.whisper_tiny DATA/whisper-3s --seconds 3         # once; see there
    python -m benchmarks.audio_tasks --data DATA --output RUNS            # what is not measured yet
    python -m benchmarks.audio_tasks --data DATA --output RUNS spoken-letters
    python -m benchmarks.audio_tasks --data DATA --output RUNS --rehearse # two steps of each, nothing is kept
    python -m benchmarks.audio_tasks --table

Every run is `hf-transfer-plugin train` in a process of its own. Resumable: a run whose line is in
results/audio_tasks.jsonl is not made again. A finished run leaves its record and its card in model_cards/, without the
recordings, whose licence (GPL-2+) is not that of this project: its rows tell what was said and what was answered.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.text_runs import Run, flags_of
from benchmarks.text_tasks import CARDS, ROOT, table

RESULTS = Path(__file__).parent / "results" / "audio_tasks.jsonl"
WHISPER = "openai/whisper-tiny.en"
REHEARSAL: dict[str, Any] = {"max_steps": 2, "max_train_samples": 40}
# It hears three seconds, as long as these sounds are; see benchmarks/whisper_tiny.py.
SHORT: dict[str, Any] = {"max_seconds": 3, "eval_strategy": "no", "license": "mit"}
LANGUAGES = (
    "ar",
    "cs",
    "da",
    "de",
    "en",
    "es",
    "fr",
    "he",
    "hu",
    "it",
    "lt",
    "ml",
    "nb",
    "nds",
    "nl",
    "pt",
    "ru",
    "tn",
    "uk",
)
RUNS = (
    Run(
        "spoken-languages",
        "audio-classification",
        WHISPER,
        "spoken-languages",
        {**SHORT, "label_column": "label", "num_train_epochs": 2, "per_device_train_batch_size": 16},
        "gpl-2.0",
        LANGUAGES,
        headline=("accuracy", "f1_macro"),
    ),
    Run(
        "spoken-letters",
        "automatic-speech-recognition",
        WHISPER,
        "spoken-syllables",
        {**SHORT, "text_column": "text", "max_target_length": 16, "num_train_epochs": 5},
        "gpl-2.0",
        ("ml",),
        headline=("wer", "cer"),
    ),
)


def train(run: Run, data: Path, output: Path, *, rehearse: bool) -> dict[str, Any]:
    """
    Runs one run in a process of its own.

    Args:
        run (`Run`):
            The run.
        data (`Path`):
            Folder of the data and of the model.
        output (`Path`):
            Folder of the runs.
        rehearse (`bool`):
            Whether to take two steps on few rows only.

    Returns:
        `dict`: What results/audio_tasks.jsonl keeps.

    Raises:
        CalledProcessError: If the run failed.
    """
    folder = output / (f"{run.name}-rehearsal" if rehearse else run.name)
    flags = flags_of(run, REHEARSAL if rehearse else {})
    where = ["--model", str(data / "whisper-3s"), "--base_model_id", run.model, "--dataset", str(data / run.data)]
    command = [sys.executable, "-m", "hf_transfer_plugin", "train", *where, "--output_dir", str(folder), *flags]
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    started = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"})
    seconds = time.perf_counter() - started
    record = json.loads((folder / "transfer_record.json").read_text(encoding="utf-8"))
    shown = ["--model", "DATA/whisper-3s", "--dataset", f"DATA/{run.data}", "--output_dir", f"RUNS/{run.name}"]
    kept = ("baselines", "metrics", "metrics_split", "hardware", "versions")
    return {
        "name": run.name,
        "task": run.task,
        "model": run.model,
        "data": run.data,
        "rows": record["dataset"]["splits"],
        **{name: record[name] for name in kept},
        "seconds": {"all": round(seconds, 1), **record["seconds"]},
        "command": shlex.join(["hf-transfer-plugin", "train", *shown, *flags]),
        "date": record["created"],
    }


def keep_card(run: Run, folder: Path) -> None:
    """
    Puts the record of a run into model_cards/, without the recordings, and renders the card beside it.

    Args:
        run (`Run`):
            The run.
        folder (`Path`):
            Its run folder.
    """
    place = CARDS / run.name
    place.mkdir(parents=True, exist_ok=True)
    record = json.loads((folder / "transfer_record.json").read_text(encoding="utf-8"))
    record["examples"] = []
    for rows in (record["errors"], record["samples"]):
        for row in rows:
            row.pop("audio", None)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (place / "transfer_record.json").write_text(text, encoding="utf-8")
    command = ["card", str(place), "--model", f"hf-transfer-plugin/{run.model.split('/')[1]}-{run.data}"]
    subprocess.run([sys.executable, "-m", "hf_transfer_plugin", *command], check=True, cwd=ROOT)


def read_results() -> dict[str, dict[str, Any]]:
    """
    Returns:
        `dict[str, dict]`: Name -> line of results/audio_tasks.jsonl.
    """
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    return {line["name"]: line for line in map(json.loads, lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [run.name for run in RUNS]
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(names)} (default: all)")
    parser.add_argument("--data", type=Path, help="folder that the two scripts before filled")
    parser.add_argument("--output", type=Path, help="folder of the run folders")
    parser.add_argument("--rehearse", action="store_true", help="two steps of each run; nothing is kept")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_intermixed_args()
    unknown = sorted(set(options.names) - set(names))
    if unknown:
        parser.error(f"the runs are {', '.join(names)}, but got {unknown[0]!r}")
    if not options.table and not (options.data and options.output):
        parser.error("`--data` and `--output` are required, unless `--table` is all that is wanted")
    for run in [] if options.table else [run for run in RUNS if run.name in (options.names or names)]:
        if not options.rehearse and run.name in read_results():
            continue
        print(f"\n== {run.name}", flush=True)
        line = train(run, options.data, options.output, rehearse=options.rehearse)
        if options.rehearse:
            print(json.dumps(line, indent=1), flush=True)
            continue
        keep_card(run, options.output / run.name)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    print(f"\n{table(read_results(), RUNS)}")


if __name__ == "__main__":
    main()
