"""
What the prefix cache saves: whole runs of MiniLM on 1,000 Rotten Tomatoes sentences with the cache, against a plain
Trainer that freezes the same layers by `requires_grad=False`, against `attach` without the cache (the prefix in eval
mode), and against full fine-tuning.

    python -m benchmarks.prefix_cache                  # again until nothing is left: 20 minutes a call,
                                                       # about 50 a round on two idle cores
    python -m benchmarks.prefix_cache --only head      # bars, head, top, gradual, memory, fill or target
    python -m benchmarks.prefix_cache --only target    # time to full fine-tuning's accuracy: 40 a round
    python -m benchmarks.prefix_cache --smoke          # 48 rows, every run once; nothing is kept
    python -m benchmarks.prefix_cache --table

Resumable: a run whose line is in results/prefix_cache.jsonl is not made again. Default settings of Trainer but for
logs and checkpoints: 32 bits, batches of 16 padded to their longest row, AdamW. Every run is a process of its own with
two threads (the committed ones with one); the ways take turns, another one is first in every round, and the round's
number is the seed. Time is that of `attach` and `trainer.train()` together, with an empty cache folder: proofs and
fill are counted in. Given are medians of the rounds' ratios with the lowest and highest, by the clock and by the
processor, where threads that wait count as busy. Bars are judged by the clock, on a machine that must be idle, as two
threads on a busy core wait for each other; with `--threads 1` by the processor's time, as others may share the machine
(of the fill the clock alone is known). Steps are medians after the first epoch, from the end of one to the end of the
next. Memory is the highest resident in training, what the package's own libraries take counted in; the pages of the
cache's files may come on top.
Needs the quickstart extra.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.prefix_cache_cases import BARS, CASES, PARTS, TARGET
from benchmarks.prefix_cache_tables import Key, bars_table, milliseconds_table, target_table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "prefix_cache.jsonl"
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
STEP = 0.4  # seconds, to tell whether a run that was never made still fits


def jobs(cases: tuple[str, ...], rounds: int) -> list[Key]:
    """
    Args:
        cases (`tuple[str, ...]`):
            Names of cases.
        rounds (`int`):
            Runs of each way.

    Returns:
        `list[Key]`: Case, way and round, in the order in which they are run; another way is first in every round.
    """
    found = []
    for number in range(rounds):
        for case in cases:
            ways = CASES[case].ways
            first = number % len(ways)
            found += [(case, way, number) for way in ways[first:] + ways[:first]]
    return found


def write_rows(file: Path, train: int, test: int) -> None:
    """
    Writes token ids of Rotten Tomatoes, so that no run has to make them.

    Args:
        file (`Path`):
            Where.
        train (`int`):
            Rows to learn from; always the same.
        test (`int`):
            Rows to judge by, at most.
    """
    from transformers import AutoTokenizer

    from benchmarks.prefix_cache_runs import model_folder
    from hf_transfer_plugin.recipes.quickstart import rotten_tomatoes

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    splits = rotten_tomatoes(max(train, 20), seed=0)
    splits["test"] = splits["test"].select(range(min(test, len(splits["test"]))))
    columns = {}
    for name, split in splits.items():
        encoded = tokenizer(list(split["text"]), truncation=True, max_length=128)
        columns[name] = {**encoded, "label": list(split["label"])}
    file.write_text(json.dumps(columns), encoding="utf-8")


def in_child(key: Key, rows: Path, options: argparse.Namespace) -> dict[str, Any]:
    """
    Args:
        key (`Key`):
            Case, way and round.
        rows (`Path`):
            File with the rows.
        options (`Namespace`):
            The command line.

    Returns:
        `dict[str, Any]`: The line of the run.

    Raises:
        CalledProcessError: If the run failed.
    """
    name, way, number = key
    case = CASES[name]
    job = {"strategy": case.strategy, "way": way, "epochs": case.epochs, "learning_rate": case.learning_rate}
    job |= {"round": number, "judged": case.target}
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    surroundings = os.environ | QUIET | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory() as folder:
        write = Path(folder) / "line.json"
        words = [json.dumps(job), str(rows), str(write), "--threads", str(options.threads)]
        command = [sys.executable, "-m", "benchmarks.prefix_cache_runs", *words, "--storage", options.storage]
        subprocess.run(command, check=True, cwd=ROOT, env=surroundings)
        return {"case": name, "way": way, "round": number, **json.loads(write.read_text(encoding="utf-8"))}


def read_results(file: Path) -> dict[Key, dict[str, Any]]:
    """
    Args:
        file (`Path`):
            Lines of runs.

    Returns:
        `dict[Key, dict]`: Case, way and round -> line.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {(line["case"], line["way"], line["round"]): line for line in map(json.loads, lines)}


def expected_seconds(key: Key, found: dict[Key, dict[str, Any]], rows: int) -> float:
    """
    Args:
        key (`Key`):
            A run to come.
        found (`dict`):
            Lines of others.
        rows (`int`):
            Its rows.

    Returns:
        `float`: The longest that such a run took, else a guess; and the start of a process.
    """
    known = [sum(line["seconds"].values()) for (name, way, _), line in found.items() if (name, way) == key[:2]]
    return 20 + (max(known) if known else STEP * CASES[key[0]].epochs * rows / 16)


def measure(options: argparse.Namespace, found: dict[Key, dict[str, Any]]) -> list[Key]:
    """
    Runs what is left, as far as the minutes go.

    Args:
        options (`Namespace`):
            The command line.
        found (`dict`):
            Lines that are there; new ones are added.

    Returns:
        `list[Key]`: What is still left.
    """
    started = time.monotonic()
    cases = tuple(dict.fromkeys(name for part in options.only or ["bars"] for name in PARTS[part]))
    if options.smoke:
        cases = cases if options.only else BARS + TARGET
    left = [key for key in jobs(cases, 1 if options.smoke else options.rounds) if key not in found]
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        while left:
            key = left[0]
            rows, judged = (
                (48, 64) if options.smoke else (options.rows, 1) if not CASES[key[0]].target else (6824, 1706)
            )
            if time.monotonic() - started + expected_seconds(key, found, rows) > 60 * options.minutes:
                break
            if rows not in files:
                files[rows] = Path(folder) / f"{rows}.json"
                write_rows(files[rows], rows, judged)
            found[key] = in_child(key, files[rows], options)
            left.pop(0)
            if not options.smoke:
                with options.results.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(found[key]) + "\n")
            shown = {
                k: found[key][k] for k in ("seconds", "cpu", "ms_a_step", "report", "accuracy") if k in found[key]
            }
            print(f"{' '.join(map(str, key))}: {shown}", flush=True)
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", choices=PARTS, help="parts to run (default: bars, which is all but target)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way (default: 3)")
    parser.add_argument("--minutes", type=float, default=19, help="start nothing that ends later (default: 19)")
    parser.add_argument("--rows", type=int, default=1000, help="training rows, but of target (default: 1000)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--storage", default="float16", help="how the cache keeps its numbers (default: float16)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the lines are (default: results)")
    parser.add_argument("--smoke", action="store_true", help="48 rows, every run once; nothing is kept")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    options = parser.parse_args()
    os.environ.update(QUIET)
    found: dict[Key, dict[str, Any]] = {} if options.smoke else read_results(options.results)
    left = [] if options.table else measure(options, found)
    if left:
        print(f"{len(left)} runs left; call again.")
    tables = [bars_table(found), milliseconds_table(found), target_table(found)] if found else ["No run yet."]
    print("\n\n".join(["", *filter(None, tables)]))


if __name__ == "__main__":
    main()
