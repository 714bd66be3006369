"""Fine-tunes a model as a configuration says, and keeps the record of it."""

import json
import logging
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import IntervalStrategy

from hf_transfer_plugin.callbacks import InterruptCallback, NonFiniteLossCallback
from hf_transfer_plugin.config import TransferConfig, gather
from hf_transfer_plugin.freezing import ever_learning_names
from hf_transfer_plugin.layers import LayerGroups, discover_layer_groups
from hf_transfer_plugin.planning import plan
from hf_transfer_plugin.recipes.baselines import measure_baselines
from hf_transfer_plugin.recipes.defaults import build_strategy, with_defaults
from hf_transfer_plugin.recipes.pretrained import load_model, load_processor, readable_length
from hf_transfer_plugin.recipes.recording import finish_record, start_record
from hf_transfer_plugin.record import RECORD_NAME, TransferRecord, write_atomically
from hf_transfer_plugin.tasks import TASKS, Task, TaskData, load_splits
from hf_transfer_plugin.trainer import attach

logger = logging.getLogger(__name__)
CONFIG_NAME = "transfer_config.json"


@dataclass
class Prepared:
    """
    Everything that was loaded and checked before training.

    Args:
        config (`TransferConfig`): The configuration.
        args (`TrainingArguments`): The arguments, with the measured defaults.
        task (`Task`): The task.
        data (`TaskData`): The checked rows.
        encoded (`DatasetDict`): The encoded rows.
        truncated (`int`): Rows that were cut.
        processor (`Any`): The tokenizer.
        model (`nn.Module`): The model.
        groups (`LayerGroups`): Its layer groups.
        strategy (`Any`): Policy or schedule.
        rates (`Any`): Learning rates.
        loaded (`bool`): Whether the rows were loaded by `config.dataset`.
    """

    config: TransferConfig
    args: TrainingArguments
    task: Task
    data: TaskData
    encoded: DatasetDict
    truncated: int
    processor: Any
    model: nn.Module
    groups: LayerGroups
    strategy: Any
    rates: Any
    loaded: bool = True


class _QuietProgress(ProgressCallback):
    """Trainer's progress bar without the rate of every layer group on each line."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Passes on what a reader follows."""
        short = {name: value for name, value in (logs or {}).items() if not name.startswith("learning_rate/")}
        super().on_log(args, state, control, logs=short, **kwargs)


class _ResumeAlike(TrainerCallback):
    """Lets a run that was stopped amid an epoch go on as if it had not been: same rows, same random numbers."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draws the order of the rows from seed and epoch; Trainer groups by length with what was random before."""
        sampler = kwargs["train_dataloader"]
        while getattr(sampler, "batch_sampler", None) is not None:
            sampler = sampler.batch_sampler
        sampler = getattr(sampler, "sampler", None)
        if isinstance(sampler, LengthGroupedSampler):
            seed = args.seed if args.data_seed is None else args.data_seed
            sampler.generator = torch.Generator().manual_seed(seed + int(state.epoch or 0))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluates and saves nothing more in the epoch that was broken off; either would move the random state."""
        if control.should_training_stop and state.global_step < state.max_steps and state.epoch % 1:
            control.should_evaluate = control.should_save = False


def finetune(
    config: TransferConfig,
    args: TrainingArguments,
    *,
    splits: DatasetDict | None = None,
    explicit: Collection[str] = (),
    baselines: bool = False,
    announce: Callable[[str], None] | None = None,
) -> TransferRecord:
    """
    Fine-tunes a model and writes the run folder: model, tokenizer, record, card and schedule plot.

    Fields of `args` that still have Trainer's default are set to this package's measured ones.

    Args:
        config (`TransferConfig`):
            What to do.
        args (`TrainingArguments`):
            How to train, and the run folder.
        splits (`DatasetDict`, *optional*):
            Rows in memory, instead of loading `config.dataset`, which then only names them.
        explicit (`Collection[str]`, *optional*):
            Fields of `args` to keep although they equal Trainer's default.
        baselines (`bool`, *optional*, defaults to `False`):
            Also measure the majority class and a linear probe solved on frozen features.
        announce (`Callable[[str], None]`, *optional*):
            Takes what a user should read before training: the layer groups' plan.

    Returns:
        `TransferRecord`: What was done and measured; `record.path` is its file.

    Raises:
        ValueError: For anything wrong with data, model, strategy or run folder, before training starts.
        RuntimeError: If the loss becomes NaN or infinite.
        KeyboardInterrupt: After Ctrl-C, when the checkpoint has been saved.

    Example:
    ```python
    >>> record = finetune(TransferConfig(model="distilbert-base-uncased", dataset="imdb"), TrainingArguments("out"))
    >>> record.metrics["accuracy"]
    ```
    """
    prepared = prepare(config, args, splits=splits, explicit=explicit)
    args = prepared.args
    if announce is not None:
        announce(str(_plan(prepared)))
    record = start_record(prepared)
    split = "test" if "test" in prepared.encoded else "validation"
    if baselines:
        record.baselines = measure_baselines(prepared, split)
    interrupt = InterruptCallback()
    trainer = make_trainer(prepared, interrupt)
    if trainer.is_world_process_zero():
        write_atomically(Path(args.output_dir) / CONFIG_NAME, json.dumps(config.to_dict(), indent=2) + "\n")
    started, cpu_started = time.perf_counter(), time.process_time()
    try:
        trainer.train(resume_from_checkpoint=_checkpoint(args))
    finally:
        interrupt.release()
    record.seconds["train"] = time.perf_counter() - started
    record.seconds["train_cpu"] = time.process_time() - cpu_started
    if interrupt.interrupted:
        raise KeyboardInterrupt(trainer.state.global_step)
    started = time.perf_counter()
    prediction = trainer.predict(prepared.encoded[split], metric_key_prefix=split)
    record.seconds["evaluate"] = time.perf_counter() - started
    finish_record(record, prepared, trainer, prediction, split)
    return record


def prepare(
    config: TransferConfig,
    args: TrainingArguments,
    *,
    splits: DatasetDict | None = None,
    explicit: Collection[str] = (),
) -> Prepared:
    """
    Loads and checks everything that training needs.

    Args:
        config (`TransferConfig`):
            What to do.
        args (`TrainingArguments`):
            How to train.
        splits (`DatasetDict`, *optional*):
            See [`finetune`].
        explicit (`Collection[str]`, *optional*):
            See [`finetune`].

    Returns:
        `Prepared`: The parts.

    Raises:
        ValueError: For anything that is wrong.
    """
    args, loaded = with_defaults(args, explicit), splits is None
    gather(
        lambda: build_strategy(config),
        lambda: _check_processes(args),
        lambda: _check_folder(config, args),
        lambda: _check_stopping(config, args),
    )
    strategy, rates = build_strategy(config)
    _check_evaluation(args, strategy)
    splits = load_splits(config) if splits is None else splits
    if "validation" not in splits and config.validation_fraction == 0:
        _without_validation(args, splits, explicit)
    task = TASKS[config.task]
    data = task.read(splits, config, args.seed)
    replaceable = args.metric_for_best_model in (None, "loss") and "metric_for_best_model" not in explicit
    if args.load_best_model_at_end and replaceable:
        # Trainer puts the loss where nothing was given.
        args.metric_for_best_model, args.greater_is_better = task.best_metric(data)
    processor = load_processor(config)
    set_seed(args.seed)
    model = load_model(config, task, data, processor)
    groups = discover_layer_groups(model)
    if getattr(strategy, "needs_head", False):
        groups.require_head(strategy.name)
    ever_learning_names(strategy, model, groups)
    length = readable_length(config, processor, model)
    if config.max_length is not None:
        # Saved with the tokenizer, so that the model is measured and used as it was trained.
        processor.model_max_length = length
    encoded, truncated = task.encode(data, processor, length)
    if truncated:
        logger.warning("%d rows were truncated to %d tokens.", truncated, length)
    return Prepared(config, args, task, data, encoded, truncated, processor, model, groups, strategy, rates, loaded)


def make_trainer(prepared: Prepared, *callbacks: TrainerCallback) -> Trainer:
    """
    Puts the parts into a Trainer and attaches the strategy.

    Args:
        prepared (`Prepared`):
            The parts.
        *callbacks (`TrainerCallback`):
            Further callbacks.

    Returns:
        `Trainer`: Ready to train.
    """
    args, task, data = prepared.args, prepared.task, prepared.data
    added = [NonFiniteLossCallback(), _ResumeAlike(), *callbacks]
    if prepared.config.early_stopping_patience is not None:
        added.append(EarlyStoppingCallback(prepared.config.early_stopping_patience))
    trainer = Trainer(
        model=prepared.model,
        args=args,
        train_dataset=prepared.encoded["train"],
        eval_dataset=prepared.encoded.get("validation"),
        processing_class=prepared.processor,
        data_collator=task.collator(prepared.processor),
        compute_metrics=task.compute_metrics(data),
        callbacks=added,
    )
    # The loss is a mean over examples. Many heads take the number of items and ignore it, and Trainer then trusts them
    # to have divided: gradients would grow with accumulation and with the number of processes.
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(_QuietProgress)
    attach(trainer, schedule=prepared.strategy, learning_rates=prepared.rates, groups=prepared.groups)
    return trainer


def _plan(prepared: Prepared) -> Any:
    args, rows = prepared.args, len(prepared.encoded["train"])
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else int(-(-rows // per_step) * args.num_train_epochs)
    lengths = [len(ids) for ids in prepared.encoded["train"]["input_ids"]]
    return plan(
        prepared.model,
        prepared.strategy,
        max_steps=max(steps, 1),
        epochs=max(steps * per_step / rows, 1e-9),
        groups=prepared.groups,
        batch_size=args.train_batch_size,
        length=max(int(sum(lengths) / max(len(lengths), 1)), 1),
        checkpointing=bool(args.activation_checkpointing),
    )


def _without_validation(args: TrainingArguments, splits: DatasetDict, explicit: Collection[str]) -> None:
    if "test" not in splits:
        raise ValueError("`validation_fraction` is 0 and there is no test split, so nothing could be measured.")
    if "eval_strategy" in explicit or args.load_best_model_at_end:
        raise ValueError("`validation_fraction` is 0, so there is nothing to evaluate on before the end.")
    args.eval_strategy = IntervalStrategy.NO


def _checkpoint(args: TrainingArguments) -> Any:
    value = args.resume_from_checkpoint
    return {"true": True, "false": None}.get(value.lower(), value) if isinstance(value, str) else value


def _check_processes(args: TrainingArguments) -> None:
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and args.world_size != started:
        raise ValueError(
            f"{started} processes were started, but Trainer would let each train a model of its own. On processors, "
            "add `--use_cpu true`; else start one process."
        )


def _check_folder(config: TransferConfig, args: TrainingArguments) -> None:
    folder = Path(args.output_dir)
    # A configuration alone is what a run leaves that failed before its first checkpoint.
    held = [name for name in (RECORD_NAME, "model.safetensors") if (folder / name).exists()]
    held += [path.name for path in folder.glob("checkpoint-*")]
    resume = _checkpoint(args)
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
        before = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        now = config.to_dict()
        differing = sorted(key for key in now if now[key] != before.get(key))
        if differing:
            raise ValueError(
                f"A resumed run must be configured as it began, but `{differing[0]}` was {before.get(differing[0])!r} "
                f"and is now {now[differing[0]]!r}. Use the same value, or start anew in another `output_dir`."
            )


def _check_stopping(config: TransferConfig, args: TrainingArguments) -> None:
    if config.early_stopping_patience is not None and not args.load_best_model_at_end:
        raise ValueError(
            "`early_stopping_patience` stops at the best evaluation so far, so it needs "
            "`--load_best_model_at_end true`."
        )


def _check_evaluation(args: TrainingArguments, strategy: Any) -> None:
    if (
        getattr(strategy, "needs_evaluation", False)
        and str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no"
    ):
        raise ValueError(
            f"`{strategy.name}` follows the evaluations, but `eval_strategy` is no. Set it to epoch or steps."
        )
