"""What must hold of arguments, folder and processes before anything is loaded."""

import copy
import itertools
import json
import os
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.record import RECORD_NAME
from hf_transfer_plugin.tasks import Task

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


def check_companions(args: TrainingArguments, task: Task) -> None:
    """
    Args:
        args (`TrainingArguments`):
            The arguments.
        task (`Task`):
            The task.

    Raises:
        ValueError: If rows shall learn from the others of their batch, but each has one of its own.
    """
    if task.loss == "contrastive" and args.train_batch_size < 2:
        raise ValueError(
            f"{task.name} tells each picture from the captions of its batch, so it learns nothing from batches of "
            f"{args.train_batch_size}, with any `gradient_accumulation_steps`. Use at least "
            "`--per_device_train_batch_size 2`, better as many as fit."
        )


def check_lone_row(model: nn.Module, args: TrainingArguments, rows: Dataset, collate: Callable | None) -> None:
    """
    Refuses batches of one row where batch normalisation would see one value of each channel, as in heads that pool the
    whole picture: PyTorch would end the training at such a batch, which is mostly the last of the first epoch.

    Args:
        model (`nn.Module`):
            The model; left as it is.
        args (`TrainingArguments`):
            Tell the size of a batch.
        rows (`Dataset`):
            The encoded training rows.
        collate (`Callable`, *optional*):
            Makes a batch.

    Raises:
        ValueError: If there would be such a batch.
    """
    size = args.train_batch_size
    # Several processes share out the rows so that their batches are alike.
    lone = size == 1 or (args.world_size == 1 and len(rows) % size == 1 and not args.dataloader_drop_last)
    if (
        not lone
        or collate is None
        or not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    ):
        return
    # Targets of detectors are lists of objects.
    batch = send_to_device(dict(collate([rows[0]])), next(model.parameters()).device)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            copy.deepcopy(model).train()(**batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        other = next(number for number in itertools.count(size + 1) if len(rows) % number != 1)
        raise ValueError(
            f"Each batch must hold at least two rows, since {type(model).__name__} normalises over a batch, but "
            f"{len(rows)} training rows in batches of {size} leave one alone. Use another "
            f"size, such as `--per_device_train_batch_size {other}`."
        ) from error
