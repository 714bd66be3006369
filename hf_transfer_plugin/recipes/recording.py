"""Fills the record of a run and writes the run folder from it."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hf_transfer_plugin.adapters import describe_adapter, save_as_lora
from hf_transfer_plugin.callbacks import FreezingCallback
from hf_transfer_plugin.callbacks.ranks import together
from hf_transfer_plugin.freezing import ever_learning_names
from hf_transfer_plugin.hub import render_card, render_plots
from hf_transfer_plugin.layers import beneath_adapters, parameters_by_name
from hf_transfer_plugin.recipes.boosting import compare_with_boosting
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.tasks import Outcome
from hf_transfer_plugin.trainer.precision import unify_precision

PACKAGES = (
    "hf-transfer-plugin",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "evaluate",
    "scikit-learn",
    "sentence-transformers",
)
ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_grad_norm",
    "optim",
    "seed",
    "bf16",
    "fp16",
    "train_sampling_strategy",
    "load_best_model_at_end",
)


def start_record(prepared: Any) -> TransferRecord:
    """
    What is known before training.

    Args:
        prepared (`Prepared`):
            The parts.

    Returns:
        `TransferRecord`: The record so far.
    """
    config, args, data, groups = prepared.config, prepared.args, prepared.data, prepared.groups
    local = Path(config.model).expanduser().is_dir()
    dataset_local = not prepared.loaded or Path(config.dataset).expanduser().exists()
    values = {name: getattr(args, name) for name in ARGUMENTS}
    if config.sort_micro_batches:
        values["sort_micro_batches"] = True
    # A path of this machine must not reach a card.
    name = Path(config.model).expanduser().resolve().name if local else config.model
    return TransferRecord(
        task=config.task,
        base_model=config.base_model_id or name,
        base_model_id=config.base_model_id or (None if local else config.model),
        model_class=type(beneath_adapters(prepared.model)[0]).__name__,
        problem_type=data.problem_type,
        class_names=list(data.class_names),
        options=data.options,
        dataset={
            "name": Path(config.dataset).expanduser().resolve().name if dataset_local else config.dataset,
            "local": dataset_local,
            "fingerprint": prepared.encoded["train"]._fingerprint,
            "splits": {split: len(rows) for split, rows in data.splits.items()},
            "validation_held_out": data.held_out,
            "columns": data.columns,
            "truncated": prepared.overlong,
            **({"license": config.dataset_license} if config.dataset_license else {}),
            **data.facts,
        },
        license=config.license,
        language=list(config.language or ()),
        strategy=prepared.strategy.to_dict(),
        learning_rates=prepared.rates.to_dict() if prepared.rates is not None else None,
        adapter=_adapter(prepared),
        groups=[{"name": g.name, "parameters": n} for g, n in zip(groups, groups.sizes, strict=True)],
        arguments={name: getattr(value, "value", value) for name, value in values.items()},
        hardware=_hardware() | ({"processes": args.world_size} if args.world_size > 1 else {}),
        versions=_versions(),
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def finish_record(record: TransferRecord, prepared: Any, trainer: Any, outcome: Outcome, split: str) -> None:
    """
    Adds what was measured, and writes model, record, card and plot.

    Args:
        record (`TransferRecord`):
            The record so far.
        prepared (`Prepared`):
            The parts.
        trainer (`Trainer`):
            The Trainer after training.
        outcome (`Outcome`):
            What the model gave for the split.
        split (`str`):
            Its name.
    """
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, FreezingCallback))
    record.phases = callback.phases
    record.rates = [
        {
            "step": entry["step"],
            **{k.removeprefix("learning_rate/"): v for k, v in entry.items() if "learning_rate/" in k},
        }
        for entry in trainer.state.log_history
        if any(key.startswith("learning_rate/") for key in entry)
    ]
    record.arguments["steps"] = trainer.state.global_step
    record.metrics_split = split
    task, data, count = prepared.task, prepared.data, prepared.config.demo_examples
    record.options = data.options
    record.examples = task.examples(data, split, count)
    for name, value in task.report(data, outcome, count).items():
        setattr(record, name, value)
    together(lambda: compare_with_boosting(record, prepared, outcome, split))
    if record.adapter is None:
        unify_precision(prepared.model)
    trainer.save_model()
    if trainer.is_world_process_zero():
        if record.adapter is not None:
            record.adapter |= _complete_adapter(prepared, Path(trainer.args.output_dir))
        # A pickle that may hold a token in clear; the record has what matters of it.
        (Path(trainer.args.output_dir) / "training_args.bin").unlink(missing_ok=True)
        write_run(record, Path(trainer.args.output_dir))


def _adapter(prepared: Any) -> dict[str, Any] | None:
    spec = prepared.config.adapter_spec
    if spec is None:
        return None
    precision = prepared.config.base_precision
    learning = ever_learning_names(prepared.strategy, prepared.model, prepared.groups)
    sizes = parameters_by_name(prepared.model)
    return {
        **describe_adapter(prepared.model, spec),
        "trainable_parameters": sum(sizes[name].numel() for name in learning),
        **({"base_precision": precision} if precision else {}),
    }


def _complete_adapter(prepared: Any, folder: Path) -> dict[str, Any]:
    """Writes what PEFT does not: plain LoRA in the place of what only its method loads, and how the model writes."""
    rank = save_as_lora(prepared.model, folder, prepared.start)
    generation = getattr(beneath_adapters(prepared.model)[0], "generation_config", None)
    if prepared.task.generate is not None and generation is not None:
        generation.save_pretrained(folder)
    return {"saved_as": "LORA", "saved_rank": rank} if rank else {}


def write_run(record: TransferRecord, folder: Path) -> None:
    """
    Writes record, plots and card.

    Args:
        record (`TransferRecord`):
            The record.
        folder (`Path`):
            The run folder.
    """
    record.save(folder)
    render_plots(record, folder)
    render_card(record, folder / "README.md")


def _hardware() -> dict[str, Any]:
    if torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name(), "count": torch.cuda.device_count()}
    return {
        "device": "cpu",
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
