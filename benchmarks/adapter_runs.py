"""One run of benchmarks/adapters.py, in a process of its own: training, what it took, what it learned and forgot."""

import resource
import statistics
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from benchmarks.adapter_forgetting import held_metric, perplexity
from benchmarks.adapter_settings import (
    METHODS,
    SETTINGS,
    adapter_of,
    article_blocks,
    model_folder,
    reviews,
    tokenizer_of,
)
from hf_transfer_plugin import TransferTrainer, discover_layer_groups
from hf_transfer_plugin.adapters import attach_adapter

MIB = 2**20
TRAINED_BLOCKS, JUDGED_BLOCKS, SWEEP_BLOCKS = 120, 12, 6
WARM_STEPS = 3  # the first ones allocate


class Steps(TrainerCallback):
    """Notes wall-clock and processor seconds of every step, without the making of its batch."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._started = (0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes the time."""
        self._started = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes the step."""
        wall, cpu = self._started
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    def medians(self) -> dict[str, float]:
        """
        Returns:
            `dict[str, float]`: Medians of the steps after the first ones, and the processor seconds of all.
        """
        start = min(WARM_STEPS, len(self.wall) - 1)
        return {
            "wall_a_step": statistics.median(self.wall[start:]),
            "cpu_a_step": statistics.median(self.cpu[start:]),
            "cpu_all_steps": sum(self.cpu),
        }


class Memory:
    """Resident memory of this process in MiB: before training, and the highest since."""

    def __init__(self) -> None:
        self.highest_before = _highest()
        with suppress(OSError):
            # From now on the highest is training's own, not that of reading the weights; where the kernel refuses,
            # `highest_before` tells whose it was.
            Path("/proc/self/clear_refs").write_text("5")
        self.before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB

    def taken(self) -> dict[str, float]:
        """
        Returns:
            `dict[str, float]`: The figures.
        """
        peak = _highest()
        found = {
            "before": self.before,
            "highest_before": self.highest_before,
            "peak": peak,
            "grown": peak - self.before,
        }
        return {name: round(value, 1) for name, value in found.items()}


def _highest() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def load_model(setting: str, folder: str, seed: int) -> Any:
    """
    Args:
        setting (`str`):
            Name of the setting.
        folder (`str`):
            Folder of the base model.
        seed (`int`):
            Seed of what is new.

    Returns:
        `PreTrainedModel`: The model, in 32 bits.
    """
    transformers.set_seed(seed)
    if setting == "minilm":
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def arguments(folder: str, **changes: Any) -> TrainingArguments:
    """
    Args:
        folder (`str`):
            Where Trainer may write.
        **changes:
            Arguments of the run.

    Returns:
        `TrainingArguments`: What all runs have in common, and those.
    """
    usual: dict[str, Any] = {
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "bf16": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 0.1,
        "per_device_eval_batch_size": 64,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return TrainingArguments(folder, **{**usual, **changes})


def training_rows(setting: str, tokenizer: Any, seed: int, *, sweep: bool) -> tuple[Any, Any, Any]:
    """
    Args:
        setting (`str`):
            Name of the setting.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.
        seed (`int`):
            Seed of the drawn rows.
        sweep (`bool`):
            Whether test stays untouched.

    Returns:
        `tuple`: Rows to learn from, rows to judge by, and the collator.
    """
    if setting == "minilm":
        return (*reviews(tokenizer, seed, sweep=sweep), DataCollatorWithPadding(tokenizer))
    train = article_blocks(tokenizer, "train", TRAINED_BLOCKS)
    rows = Dataset.from_dict({"input_ids": train, "labels": train})
    split, count = ("validation", SWEEP_BLOCKS) if sweep else ("test", JUDGED_BLOCKS)
    return rows, article_blocks(tokenizer, split, count), default_data_collator


def judge(setting: str, trainer: Any, rows: Any) -> float:
    """
    Args:
        setting (`str`):
            Name of the setting.
        trainer (`Trainer`):
            The Trainer, after training.
        rows (`Dataset` or `list`):
            Rows to judge by.

    Returns:
        `float`: Accuracy, or perplexity.
    """
    if setting == "smollm2":
        return perplexity(trainer.model, rows)
    found = trainer.predict(rows)
    return float((found.predictions.argmax(-1) == found.label_ids).mean())


def megabytes(model: Any) -> float:
    """
    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model.

    Returns:
        `float`: Size of what it saves, in MB.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e6


def before(setting: str, data: Path) -> dict[str, Any]:
    """
    Args:
        setting (`str`):
            Name of the setting.
        data (`Path`):
            Folder of smollm2.

    Returns:
        `dict[str, Any]`: What the model knows before it is trained; the head of MiniLM is random then.
    """
    folder = model_folder(setting, data)
    model, tokenizer, chosen = load_model(setting, folder, 0), tokenizer_of(folder), SETTINGS[setting]
    found = {chosen.held: held_metric(setting, model, tokenizer)}
    if setting == "smollm2":
        found[chosen.metric] = perplexity(model, article_blocks(tokenizer, "test", JUDGED_BLOCKS))
    return {"metrics": found, "megabytes": megabytes(model)}


def run(job: dict[str, Any], data: Path, **changes: Any) -> dict[str, Any]:
    """
    Args:
        job (`dict[str, Any]`):
            `kind`, `setting`, `method`, `seed` and `learning_rate`.
        data (`Path`):
            Folder of smollm2.
        **changes:
            Other training arguments, for a rehearsal.

    Returns:
        `dict[str, Any]`: What the results keep of it.
    """
    if job["kind"] == "before":
        return before(job["setting"], data) | surroundings()
    setting, method, sweep = SETTINGS[job["setting"]], METHODS[job["method"]], job["kind"] == "sweep"
    folder = model_folder(job["setting"], data)
    tokenizer = tokenizer_of(folder)
    train, judged, collator = training_rows(job["setting"], tokenizer, job["seed"], sweep=sweep)
    model = load_model(job["setting"], folder, job["seed"])
    base_size = sum(parameter.numel() for parameter in model.parameters())
    adapter = adapter_of(job["setting"], job["method"])
    if adapter is not None:
        model = attach_adapter(model, adapter)
    steps = Steps()
    with tempfile.TemporaryDirectory() as place:
        own = setting.arguments | (setting.sweep if sweep else {}) | changes
        trainer = TransferTrainer(
            model=model,
            args=arguments(place, learning_rate=job["learning_rate"], seed=job["seed"], **own),
            train_dataset=train,
            data_collator=collator,
            callbacks=[steps],
            schedule=method.schedule,
            groups=discover_layer_groups(model),
        )
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        memory = Memory()
        trainer.train()
        found: dict[str, Any] = {"memory_mib": memory.taken(), "seconds": steps.medians(), "steps": len(steps.wall)}
        metrics = {setting.metric: judge(job["setting"], trainer, judged)}
    if not sweep:
        metrics[setting.held] = held_metric(job["setting"], model, tokenizer)
        found["megabytes"] = megabytes(model)
    share = {"trainable_parameters": trainable, "trainable_share": trainable / base_size}
    return {"adapter": adapter, "metrics": metrics, **share, **found, **surroundings()}


def surroundings() -> dict[str, Any]:
    """
    Returns:
        `dict[str, Any]`: Versions, precision, threads, the processor seconds of this process, and the date.
    """
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    return {
        "versions": versions,
        "precision": "bfloat16 autocast over 32-bit weights",
        "threads": torch.get_num_threads(),
        "process_cpu": time.process_time(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
