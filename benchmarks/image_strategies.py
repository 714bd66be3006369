"""
Which strategy wins on few pictures? MobileNetV2 from ImageNet's pictures to Fashion-MNIST's, at equal epochs.

    python -m benchmarks.mobilenet DATA/mobilenet_v2-128 --size 128
    python -m benchmarks.image_strategies --data DATA --minutes 20   # several calls, until nothing is left
    python -m benchmarks.image_strategies --table

Resumable: one line a run in results/image_strategies.jsonl; lines that are there are not run again. Every strategy
runs at the same two rates, and its better mean counts, which flatters each alike. One thread, float32, batches of 16,
linear schedule with a tenth of warm-up; time is processor time of training. The 600 test rows are the same for all; a
seed draws other training rows. Needs what benchmarks/image_plain.py needs.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset

from benchmarks.image_plain import MODEL, arguments
from benchmarks.image_sources import write_fashion
from hf_transfer_plugin import TransferConfig, finetune

RESULTS = Path(__file__).parent / "results" / "image_strategies.jsonl"
SETTINGS = {"100 rows": (100, 8), "400 rows": (400, 4)}  # training rows and epochs
STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "lp-ft": {"name": "lp-ft"},
    "gradual-unfreezing": {"name": "gradual-unfreezing", "until": 0.5},
    "feature-extraction": {"name": "feature-extraction"},
}
RATES, SEEDS, TEST_ROWS = (5e-4, 2e-4), (0, 1, 2), 600


def one_run(setting: str, strategy: str, rate: float, seed: int, data: Path) -> dict[str, Any]:
    """A run's figures on the test rows."""
    rows, epochs = SETTINGS[setting]
    pictures = data / f"fashion-{rows}-{seed}"
    if not pictures.is_dir():
        write_fashion(pictures, {"train": rows}, seed)
        write_fashion(pictures, {"test": TEST_ROWS})
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(folder, epochs)
        args.learning_rate, args.seed = rate, seed
        config = TransferConfig(
            model=str(data / MODEL),
            dataset="fashion",
            task="image-classification",
            strategy=STRATEGIES[strategy],
            validation_fraction=0.0,
        )
        record = finetune(
            config,
            args,
            splits=load_dataset("imagefolder", data_dir=str(pictures)),
            explicit=tuple(vars(args).keys() - {"eval_strategy"}),
        )
    kept = {name: record.metrics[name] for name in ("accuracy", "f1_macro", "loss")}
    return {**kept, "cpu_seconds": record.seconds["train_cpu"], "versions": record.versions}


def read_results() -> dict[tuple[str, str, float, int], dict[str, Any]]:
    """Lines of results/image_strategies.jsonl by setting, strategy, rate and seed."""
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    return {(r["setting"], r["strategy"], r["rate"], r["seed"]): r for r in map(json.loads, lines)}


def table(found: dict) -> str:
    """Mean accuracy of the better rate, its range over the seeds, and time as a share of full fine-tuning's."""
    lines = ["| strategy | " + " | ".join(SETTINGS) + " |", "|---|" + "---:|" * len(SETTINGS)]
    for strategy in STRATEGIES:
        cells = []
        for setting in SETTINGS:
            whole = {
                rate: [found[setting, strategy, rate, seed] for seed in SEEDS]
                for rate in RATES
                if all((setting, s, rate, seed) in found for s in ("full", strategy) for seed in SEEDS)
            }
            means = {rate: statistics.mean(r["accuracy"] for r in runs) for rate, runs in whole.items()}
            if not means:
                cells.append("")
                continue
            rate = max(means, key=lambda one: means[one])
            values = [run["accuracy"] for run in whole[rate]]
            times = [
                run["cpu_seconds"] / found[setting, "full", rate, seed]["cpu_seconds"]
                for run, seed in zip(whole[rate], SEEDS, strict=True)
            ]
            spread = f"{min(values):.3f}-{max(values):.3f}"
            cells.append(f"{means[rate]:.3f} ({spread}), {statistics.median(times):.2f}x, {rate:g}")
        lines.append(f"| {strategy} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("DATA"), help="folder with the model (default: DATA)")
    parser.add_argument("--minutes", type=float, default=20, help="stop after that many minutes (default: 20)")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    started = time.monotonic()
    for seed, setting, rate, strategy in product(SEEDS, SETTINGS, RATES, STRATEGIES):
        if options.table or time.monotonic() - started > 60 * options.minutes:
            break
        if (setting, strategy, rate, seed) in read_results():
            continue
        result = one_run(setting, strategy, rate, seed, options.data)
        line = {"setting": setting, "strategy": strategy, "rate": rate, "seed": seed, **result}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        told = f"{result['accuracy']:.3f}, {result['cpu_seconds']:.0f} s"
        print(f"{setting}, {strategy}, rate {rate:g}, seed {seed}: {told}", flush=True)
    print(f"\n{table(read_results())}")


if __name__ == "__main__":
    main()
