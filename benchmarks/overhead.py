"""
What this package costs when it has nothing to do: a training step with `attach` and nothing frozen, against a plain
Trainer; and the comparison of weights between processes, on a model of BERT-base's size.

    python benchmarks/overhead.py            # about six minutes on one core; writes results/overhead.json

Two Trainers take a step each in turn, and the median of the neighbouring steps' ratios is given, so that a slow spell
of the machine falls on both; several rounds, since where the memory lies alone makes two equal Trainers differ. Time
is processor time with one thread; a control pairs two plain Trainers.
"""

import argparse
import json
import platform
import statistics
import tempfile
import threading
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


class Turns(TrainerCallback):
    """Two Trainers in two threads, one step each in turn; notes the processor seconds of every step."""

    def __init__(self, mine: threading.Semaphore, other: threading.Semaphore) -> None:
        self.mine, self.other, self.seconds, self.started = mine, other, [], 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Waits for its turn."""
        self.mine.acquire()
        self.started = time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Notes the step and lets the other go on."""
        self.seconds.append(time.process_time() - self.started)
        self.other.release()
        self.mine.acquire()
        self.started = time.process_time()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Lets the other finish."""
        self.other.release()


def make_trainer(ours: bool, size: tuple[int, int, int, int], count: int, folder: str, turns: Turns) -> Trainer:
    torch.manual_seed(0)
    rows = [{"input_ids": torch.randint(5, 30000, (64,)), "labels": torch.tensor(i % 2)} for i in range(8 * count)]
    args = TrainingArguments(
        folder, max_steps=count, per_device_train_batch_size=8, use_cpu=True, report_to="none", disable_tqdm=True,
        save_strategy="no", logging_steps=10_000, dataloader_pin_memory=False, warmup_steps=2,
    )  # fmt: skip
    trainer = Trainer(model=make_model(size), args=args, train_dataset=rows, callbacks=[turns])
    if ours:
        attach(trainer, schedule=full(), learning_rates=LayerwiseDecay(0.95, warmup_steps=10))
    return trainer


def paired_steps(second: bool, swapped: bool, size: tuple[int, int, int, int], count: int) -> list[float]:
    """Ratios of neighbouring steps, of a Trainer of the second kind to a plain one."""
    locks = threading.Semaphore(1), threading.Semaphore(0)
    turns = Turns(*locks), Turns(*reversed(locks))
    plain, other = reversed(turns) if swapped else turns
    with tempfile.TemporaryDirectory() as folder:
        trainers = make_trainer(False, size, count, folder, plain), make_trainer(second, size, count, folder, other)
        threads = [threading.Thread(target=trainer.train) for trainer in trainers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # The first steps allocate.
    return [b / a for a, b in zip(plain.seconds[3:], other.seconds[3:], strict=True)]


def attach_ratio(size: tuple[int, int, int, int], rounds: int, count: int) -> dict[str, Any]:
    """Medians over rounds; the control pairs two plain Trainers. Each round allocates anew and swaps who begins."""
    found: dict[str, Any] = {"rounds": rounds, "pairs_a_round": count - 3}
    for name, second in (("control", False), ("attached", True)):
        medians = []
        for number in range(rounds):
            medians.append(statistics.median(paired_steps(second, number % 2 == 1, size, count)))
            print(f"  {name}, round {number}: {medians[-1]:.4f}", flush=True)
        found[name] = {
            "ratio_median": statistics.median(medians), "lowest": min(medians), "highest": max(medians)
        }  # fmt: skip
    return found


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
    parser.add_argument("--rounds", type=int, default=10, help="pairs of Trainers (default: 10)")
    parser.add_argument("--steps", type=int, default=16, help="steps of each Trainer (default: 16)")
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
