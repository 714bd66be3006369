"""
What sorting the rows of each optimizer step by length saves: MiniLM on Rotten Tomatoes sentences, fully fine-tuned,
with `sort_micro_batches` and without.

    python benchmarks/micro_batch_order.py            # about three minutes on one busy core
    python benchmarks/micro_batch_order.py --steps 2 --rounds 1 --out /dev/stdout

Each round trains the same weights on the same steps in both ways, in turn, in one process with one thread. Given are
medians over the rounds of processor seconds a step, the first step of each run left out, and the share of the tokens
that are padding, counted over whole epochs without training. Writes results/micro_batch_order.json.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch.utils.data import BatchSampler
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from benchmarks.prefix_cache_runs import model_folder
from hf_transfer_plugin import attach
from hf_transfer_plugin.freezing import full
from hf_transfer_plugin.recipes.quickstart import rotten_tomatoes
from hf_transfer_plugin.trainer.ordering import StepOrder

RESULTS = Path(__file__).parent / "results" / "micro_batch_order.json"
SHAPES = ((4, 8), (8, 4))  # rows of a micro-batch, accumulation
COUNTED = ((1, 32), (2, 16), (4, 8), (8, 4), (16, 2), (16, 4), (32, 2), (32, 4))
WAYS = ("as_drawn", "sorted", "group_by_length")
ROWS, EPOCHS = 1000, 3


class Clock(TrainerCallback):
    """Processor seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self.started = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops the clock."""
        self.seconds.append(time.process_time() - self.started)


def encoded() -> Dataset:
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    rows = rotten_tomatoes(ROWS, seed=0)["train"]
    return rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=128), remove_columns="text")


def run(rows: Dataset, shape: tuple[int, int], *, ordered: bool, steps: int) -> tuple[list[float], float]:
    """Processor seconds of each step but the first, and the loss of the last step."""
    set_seed(0)
    clock, (micro, accumulation) = Clock(), shape
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            max_steps=steps + 1,
            learning_rate=5e-5,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(model_folder()),
            args=args,
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(model_folder())),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        attach(trainer, schedule=full(), sort_micro_batches=ordered)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return clock.seconds[1:], losses[-1]


def padded_share(lengths: list[int], shape: tuple[int, int], way: str) -> float:
    """
    Args:
        lengths (`list[int]`):
            Tokens of each row.
        shape (`tuple[int, int]`):
            Rows of a micro-batch, and accumulation.
        way (`str`):
            `"as_drawn"`, `"sorted"` within steps, or Trainer's `"group_by_length"`, which draws otherwise.

    Returns:
        `float`: Share of the tokens that the model sees that are padding, over a few epochs.
    """
    micro, accumulation = shape

    def batches() -> Iterator[list[int]]:
        for epoch in range(EPOCHS):
            generator = torch.Generator().manual_seed(epoch)
            if way == "group_by_length":
                drawn: Any = get_length_grouped_indices(lengths, micro * accumulation, generator=generator)
            else:
                drawn = torch.randperm(len(lengths), generator=generator).tolist()
            sampler = StepOrder(drawn, lengths, micro * accumulation) if way == "sorted" else drawn
            yield from BatchSampler(sampler, micro, drop_last=False)

    seen = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches())
    return 1 - EPOCHS * sum(lengths) / seen


def measured(rows: Dataset, shape: tuple[int, int], steps: int, rounds: int) -> dict[str, Any]:
    seconds: dict[bool, list[float]] = {True: [], False: []}
    losses: dict[bool, float] = {}
    for number in range(rounds):
        for ordered in (number % 2 == 0, number % 2 == 1):
            found, losses[ordered] = run(rows, shape, ordered=ordered, steps=steps)
            seconds[ordered].append(statistics.fmean(found))
    ratios = [with_ / without for with_, without in zip(seconds[True], seconds[False], strict=True)]
    return {
        "micro_batch": shape[0],
        "accumulation": shape[1],
        "seconds_a_step": {"as_drawn": _rounded(seconds[False]), "sorted": _rounded(seconds[True])},
        "median_seconds": {
            "as_drawn": round(statistics.median(seconds[False]), 3),
            "sorted": round(statistics.median(seconds[True]), 3),
        },
        "median_ratio": round(statistics.median(ratios), 3),
        "last_loss": {"as_drawn": round(losses[False], 4), "sorted": round(losses[True], 4)},
    }


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="Steps of each run, besides the first.")
    parser.add_argument("--rounds", type=int, default=3, help="Runs in each way.")
    parser.add_argument("--out", type=Path, default=RESULTS, help="File to write.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    rows = encoded()
    lengths = [len(ids) for ids in rows["input_ids"]]
    padding = [
        {
            "micro_batch": micro,
            "accumulation": accumulation,
            **{way: round(padded_share(lengths, (micro, accumulation), way), 4) for way in WAYS},
        }
        for micro, accumulation in COUNTED
    ]
    for row in padding:
        print("padded share", row, flush=True)
    steps = []
    for shape in SHAPES:
        steps.append(measured(rows, shape, options.steps, options.rounds))
        print("a step", steps[-1], flush=True)
    made = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "data": {"rows": len(lengths), "mean_length": round(statistics.fmean(lengths), 2), "longest": max(lengths)},
        "steps_of_each_run": options.steps,
        "padded_share": padding,
        "steps": steps,
    }
    options.out.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
