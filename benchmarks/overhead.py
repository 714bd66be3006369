"""
What this package costs when it has nothing to do: a training step with `attach` and nothing frozen, against a plain
Trainer; and the comparison of weights between processes, on a model of BERT-base's size.

    python benchmarks/overhead.py            # about six minutes on one core; writes results/overhead.json

One Trainer takes every second step as a plain one would, with the same weights in the same memory: where the memory
lies makes two equal Trainers differ by more than what is measured. Given is the median of the neighbouring steps'
ratios. Time is processor time with one thread; a control compares plain steps with plain steps.
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
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from hf_transfer_plugin import FreezingCallback, LayerwiseDecay, attach, discover_layer_groups
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


class Toggle(TrainerCallback):
    """
    Takes every second step as a plain Trainer would: the same parameters, moments and memory, but two groups in the
    optimizer, as many rates in its scheduler, and no callback of ours. Notes the processor seconds of every step.
    """

    def __init__(self, trainer: Trainer, ours_first: bool, control: bool) -> None:
        self.trainer, self.ours_first, self.control = trainer, ours_first, control
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.arms: dict[bool, tuple[Any, ...]] = {}
        self.started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepares the plain arm beside ours."""
        optimizer, scheduler = kwargs["optimizer"].optimizer, kwargs["lr_scheduler"]
        self.optimizer, self.scheduler, self.handler = optimizer, scheduler, self.trainer.callback_handler
        plain = []
        for decay in sorted({group["weight_decay"] for group in optimizer.param_groups}, reverse=True):
            same = [group for group in optimizer.param_groups if group["weight_decay"] == decay]
            plain.append({**same[0], "params": [p for group in same for p in group["params"]]})
        theirs = [c for c in self.handler.callbacks if not isinstance(c, FreezingCallback)]
        self.arms[True] = optimizer.param_groups, scheduler.lr_lambdas, scheduler.base_lrs, self.handler.callbacks
        count = len(plain)
        self.arms[False] = plain, scheduler.lr_lambdas[:count], scheduler.base_lrs[:count], theirs
        self.switch(state)

    def switch(self, state: Any) -> None:
        """Sets the arm of the next step."""
        self.ours = (state.global_step % 2 == 0) == self.ours_first
        arm = self.arms[self.ours and not self.control]
        self.optimizer.param_groups, self.scheduler.lr_lambdas, self.scheduler.base_lrs, callbacks = arm
        self.scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        # Trainer goes through this very list while it is exchanged.
        self.handler.callbacks = callbacks
        self.started = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes the step."""
        self.seconds[self.ours].append(time.process_time() - self.started)
        self.switch(state)


def attach_ratio(size: tuple[int, int, int, int], rounds: int, count: int) -> dict[str, Any]:
    """Medians over rounds of the ratio of neighbouring steps; the control compares plain steps with plain steps."""
    found: dict[str, Any] = {"rounds": rounds, "pairs_a_round": count // 2 - 2}
    for name in ("control", "attached"):
        medians, groups = [], []
        for number in range(rounds):
            torch.manual_seed(number)
            rows = [
                {"input_ids": torch.randint(5, 30000, (64,)), "labels": torch.tensor(i % 2)} for i in range(8 * count)
            ]
            with tempfile.TemporaryDirectory() as folder:
                args = TrainingArguments(
                    folder, max_steps=count, per_device_train_batch_size=8, use_cpu=True, report_to="none",
                    disable_tqdm=True, save_strategy="no", logging_steps=10_000, dataloader_pin_memory=False,
                )  # fmt: skip
                trainer = Trainer(model=make_model(size), args=args, train_dataset=rows)
                attach(trainer, schedule=full(), learning_rates=LayerwiseDecay(0.95, warmup_steps=10))
                toggle = Toggle(trainer, number % 2 == 1, name == "control")
                trainer.add_callback(toggle)
                trainer.train()
            groups = [len(toggle.arms[ours][0]) for ours in (True, False)]
            # The first steps allocate.
            pairs = zip(toggle.seconds[True][2:], toggle.seconds[False][2:], strict=True)
            medians.append(statistics.median(ours / plain for ours, plain in pairs))
            print(f"  {name}, round {number}: {medians[-1]:.4f}", flush=True)
        found["optimizer_groups"] = groups
        found[name] = {
            "ratio_median": statistics.median(medians), "lowest": min(medians), "highest": max(medians)
        }  # fmt: skip
    return found


def callback_milliseconds() -> float:
    """The callback's own work at a step in which nothing is thawed, timed by itself."""
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
    parser.add_argument("--rounds", type=int, default=10, help="Trainers of each kind (default: 10)")
    parser.add_argument("--steps", type=int, default=40, help="steps of each Trainer (default: 40)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": platform.machine(),
        "agreement": agreement_milliseconds(),
        "callback_milliseconds_a_step": callback_milliseconds(),
    }
    print(json.dumps(result, indent=2))
    size = "384 wide, 6 layers"
    result["attach"] = {size: attach_ratio(SIZES[size], options.rounds, options.steps)}
    print(json.dumps(result["attach"], indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
