"""What must hold of arguments, folder and processes before anything is loaded."""

import json
import os
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.record import RECORD_NAME

CONFIG_NAME = "transfer_config.json"


def without_validation(args: TrainingArguments, splits: DatasetDict, explicit: Collection[str]) -> None:
    """
    Turns evaluation off where no rows are left for it, or refuses.

    Args:
        args (`TrainingArguments`):
            The arguments; changed.
        splits (`DatasetDict`):
            The splits.
        explicit (`Collection[str]`):
            Fields that somebody typed.

    Raises:
        ValueError: If something was asked for that needs those rows.
    """
    if "test" not in splits:
        raise ValueError("`validation_fraction` is 0 and there is no test split, so nothing could be measured.")
    typed = "eval_strategy" in explicit and args.eval_strategy != IntervalStrategy.NO
    if typed or args.load_best_model_at_end:
        raise ValueError("`validation_fraction` is 0, so there is nothing to evaluate on before the end.")
    args.eval_strategy = IntervalStrategy.NO


def checkpoint_of(args: TrainingArguments) -> Any:
    """
    Args:
        args (`TrainingArguments`):
            The arguments.

    Returns:
        `str`, `bool` or `None`: What `Trainer.train` takes; the words of a command line are no Booleans.
    """
    value = args.resume_from_checkpoint
    return {"true": True, "false": None}.get(value.lower(), value) if isinstance(value, str) else value


def check_processes(args: TrainingArguments) -> None:
    """
    Args:
        args (`TrainingArguments`):
            The arguments.

    Raises:
        ValueError: If Trainer would let each started process train a model of its own.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and args.world_size != started:
        raise ValueError(
            f"{started} processes were started, but Trainer would let each train a model of its own. On processors, "
            "add `--use_cpu true`; else start one process."
        )


def check_folder(config: TransferConfig, args: TrainingArguments) -> None:
    """
    Args:
        config (`TransferConfig`):
            The configuration.
        args (`TrainingArguments`):
            The arguments, with the run folder.

    Raises:
        ValueError: If the folder holds another run, or not the one to continue.
    """
    folder = Path(args.output_dir)
    # A configuration alone is what a run leaves that failed before its first checkpoint.
    held = [
        name for name in (RECORD_NAME, "model.safetensors", "adapter_model.safetensors") if (folder / name).exists()
    ]
    held += [path.name for path in folder.glob("checkpoint-*")]
    resume = checkpoint_of(args)
    if held and not resume and args.process_index == 0:
        raise ValueError(
            f"`output_dir` must be a new or empty folder, but {str(folder)!r} holds another run ({held[0]}). Choose "
            "another folder, delete it, or continue that run with `--resume_from_checkpoint true`."
        )
    if resume is True and not list(folder.glob("checkpoint-*")):
        raise ValueError(
            f"There is no checkpoint in {str(folder)!r} to resume from. Leave `--resume_from_checkpoint` out."
        )
    if resume and (folder / CONFIG_NAME).is_file():
        defaults = {f.name: f.default for f in fields(config)}
        before = defaults | json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        now = config.to_dict()
        # A run whose disk is full goes on without the prefix cache, or with one elsewhere.
        differing = sorted(key for key in now if now[key] != before[key] and key != "prefix_cache")
        if differing:
            raise ValueError(
                f"A resumed run must be configured as it began, but `{differing[0]}` was {before[differing[0]]!r} "
                f"and is now {now[differing[0]]!r}. Use the same value, or start anew in another `output_dir`."
            )


def check_evaluating(args: TrainingArguments) -> None:
    """
    Args:
        args (`TrainingArguments`):
            The arguments.

    Raises:
        ValueError: If evaluation would not give the outputs for every row, in one piece.
    """
    wrong = [
        name for name in ("dataloader_drop_last", "batch_eval_metrics", "prediction_loss_only") if getattr(args, name)
    ]
    wrong += ["eval_do_concat_batches"] if not args.eval_do_concat_batches else []
    if wrong:
        raise ValueError(
            f"`{wrong[0]}` keeps Trainer from giving the outputs for every row, which the metrics are made of. Leave "
            f"`--{wrong[0]}` out."
        )


def check_stopping(config: TransferConfig, args: TrainingArguments) -> None:
    """
    Args:
        config (`TransferConfig`):
            The configuration.
        args (`TrainingArguments`):
            The arguments.

    Raises:
        ValueError: If stopping early would not keep the best model.
    """
    if config.early_stopping_patience is not None and not args.load_best_model_at_end:
        raise ValueError(
            "`early_stopping_patience` stops at the best evaluation so far, so it needs "
            "`--load_best_model_at_end true`."
        )
