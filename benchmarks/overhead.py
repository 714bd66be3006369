"""
What this package costs when it has nothing to do: a training step with `attach` and nothing frozen, against a plain
Trainer; and the comparison of weights between processes, on a model of BERT-base's size.

    python benchmarks/overhead.py            # about six minutes on two cores; writes results/overhead.json

Steps are taken in turns, a block of one Trainer and a block of the other, and the median of the blocks' ratios is
given, so that a slow spell of the machine falls on both. Time is processor time of one thread.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from hf_transfer_plugin import LayerwiseDecay, attach, discover_layer_groups
from hf_transfer_plugin.callbacks.agreement import RankAgreement
from hf_transfer_plugin.freezing import full

RESULTS = Path(__file__).parent / "results" / "overhead.json"
SIZES = {"384 wide, 6 layers": (384, 6, 12, 1536), "768 wide, 12 layers (BERT-base)": (768, 12, 12, 3072)}


def make_model(size: tuple[int, int, int, int]) -> BertForSequenceClassification:
    width, layers, heads, inner = size
    config = BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner
    )
    return BertForSequenceClassification(config)


class Clock(TrainerCallback):
    """Processor seconds of every step, from the end of one to the end of the next."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.marks.append(time.process_time())

    def steps(self) -> list[float]:
        # The first two steps allocate.
        return [b - a for a, b in zip(self.marks[2:], self.marks[3:], strict=False)]


def steps_of(ours: bool, size: tuple[int, int, int, int], count: int, folder: str) -> list[float]:
    torch.manual_seed(0)
    rows = [
        {"input_ids": torch.randint(5, 30000, (64,)), "labels": torch.tensor(i % 2)} for i in range(8 * (count + 3))
    ]
    args = TrainingArguments(
        folder, max_steps=count + 3, per_device_train_batch_size=8, use_cpu=True, report_to="none", disable_tqdm=True,
        save_strategy="no", logging_steps=10_000, dataloader_pin_memory=False, warmup_steps=2,
    )  # fmt: skip
    clock = Clock()
    trainer = Trainer(model=make_model(size), args=args, train_dataset=rows, callbacks=[clock])
    if ours:
        attach(trainer, schedule=full(), learning_rates=LayerwiseDecay(0.95, warmup_steps=10))
    trainer.train()
    return clock.steps()


def attach_ratio(size: tuple[int, int, int, int], blocks: int, count: int) -> dict[str, Any]:
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for block in range(blocks):
            order = (False, True) if block % 2 else (True, False)
            seconds = {ours: statistics.median(steps_of(ours, size, count, folder)) for ours in order}
            pairs.append((seconds[False], seconds[True]))
            print(f"  block {block}: plain {seconds[False]:.4f} s, attached {seconds[True]:.4f} s a step", flush=True)
    ratios = sorted(ours / plain for plain, ours in pairs)
    return {
        "plain_step_seconds": statistics.median(plain for plain, _ in pairs),
        "ratio_median": statistics.median(ratios),
        "ratio_lowest": ratios[0],
        "ratio_highest": ratios[-1],
        "blocks": blocks,
    }


def callback_milliseconds() -> float:
    """The callback's own work at a step in which nothing is thawed, timed by itself."""
    from transformers import TrainerState

    from hf_transfer_plugin import FreezingCallback

    model = make_model(SIZES["768 wide, 12 layers (BERT-base)"])
    groups = discover_layer_groups(model)
    callback = FreezingCallback(full(), groups=groups, learning_rates=LayerwiseDecay(0.95, warmup_steps=10))
    optimizer = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    args, state = TrainingArguments("unused", use_cpu=True, report_to="none"), TrainerState(max_steps=100)
    around = {"model": model, "optimizer": optimizer, "lr_scheduler": scheduler, "train_dataloader": None}
    callback.on_train_begin(args, state, None, **around)
    times = []
    for _ in range(200):
        started = time.perf_counter()
        callback.on_step_begin(args, state, None, **around)
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def agreement_milliseconds() -> dict[str, float]:
    """The comparison of the processes without its collective: the sample of every thaw, and every entry."""
    model = make_model(SIZES["768 wide, 12 layers (BERT-base)"])
    agreement = RankAgreement(model, discover_layer_groups(model))
    found = {}
    for name, sums, repeats in (("sample", agreement.sample_sums, 200), ("all", agreement.all_sums, 20)):
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            sums()
            times.append(time.perf_counter() - started)
        found[f"{name}_milliseconds_median"] = 1e3 * statistics.median(times)
        found[f"{name}_milliseconds_highest"] = 1e3 * max(times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=9, help="pairs of runs (default: 9)")
    parser.add_argument("--steps", type=int, default=12, help="timed steps in each (default: 12)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": platform.machine(),
        "agreement": agreement_milliseconds(),
        "callback_milliseconds": callback_milliseconds(),
    }
    print(json.dumps(result, indent=2))
    size = "384 wide, 6 layers"
    result["attach"] = {size: attach_ratio(SIZES[size], options.blocks, options.steps)}
    print(json.dumps(result["attach"], indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
