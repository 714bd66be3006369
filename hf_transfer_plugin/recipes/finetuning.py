"""Fine-tunes a model as a configuration says, and keeps the record of it."""

import json
import logging
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

from hf_transfer_plugin.callbacks import InterruptCallback, NonFiniteLossCallback
from hf_transfer_plugin.callbacks.freezing import require_evaluation
from hf_transfer_plugin.callbacks.ranks import in_turn, together
from hf_transfer_plugin.config import TransferConfig, gather
from hf_transfer_plugin.freezing import ever_learning_names
from hf_transfer_plugin.layers import LayerGroups, discover_layer_groups
from hf_transfer_plugin.planning import plan
from hf_transfer_plugin.recipes.baselines import measure_baselines
from hf_transfer_plugin.recipes.checks import (
    CONFIG_NAME,
    check_folder,
    check_processes,
    check_stopping,
    checkpoint_of,
    without_validation,
)
from hf_transfer_plugin.recipes.defaults import build_strategy, with_defaults
from hf_transfer_plugin.recipes.energy import measured_energy
from hf_transfer_plugin.recipes.pretrained import load_model, load_processor, readable_length
from hf_transfer_plugin.recipes.recording import finish_record, start_record
from hf_transfer_plugin.recipes.sharing import check_push, pull_run, push_run, sharing_callbacks
from hf_transfer_plugin.record import TransferRecord, write_atomically
from hf_transfer_plugin.tasks import TASKS, Task, TaskData, load_splits
from hf_transfer_plugin.trainer import attach

logger = logging.getLogger(__name__)


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
            Takes what a user should read: the plan before training, and the page after a push. Of several processes,
            only the first announces.

    Returns:
        `TransferRecord`: What was done and measured; `record.path` is its file.

    Raises:
        ValueError: For anything wrong with data, model, strategy or run folder, before training starts.
        RuntimeError: If the loss becomes NaN or infinite, or the Hub refuses a push (then the run folder is whole).
        KeyboardInterrupt: After Ctrl-C, when the checkpoint has been saved.

    Example:
    ```python
    >>> record = finetune(TransferConfig(model="distilbert-base-uncased", dataset="imdb"), TrainingArguments("out"))
    >>> record.metrics["accuracy"]
    ```
    """
    prepared = prepare(config, args, splits=splits, explicit=explicit)
    args = prepared.args
    split = "test" if "test" in prepared.encoded else "validation"
    interrupt = InterruptCallback()

    def begin() -> tuple[TransferRecord, Trainer]:
        if announce is not None and args.process_index == 0:
            announce(f"The plan:\n{_plan(prepared)}")
        record = start_record(prepared)
        if baselines:
            record.baselines = measure_baselines(prepared, split)
        return record, make_trainer(prepared, interrupt)

    def write_config() -> None:
        if args.process_index == 0:
            write_atomically(Path(args.output_dir) / CONFIG_NAME, json.dumps(config.to_dict(), indent=2) + "\n")

    record, trainer = together(begin)
    attach(
        trainer,
        schedule=prepared.strategy,
        learning_rates=prepared.rates,
        groups=prepared.groups,
        keep_dropout=config.keep_dropout,
    )
    together(write_config)
    started, cpu_started = time.perf_counter(), time.process_time()
    try:
        with measured_energy(record.energy):
            trainer.train(resume_from_checkpoint=checkpoint_of(args))
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
    page = push_run(config, args)
    if page is not None and announce is not None:
        announce(f"Pushed to {page}.")
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
    in_turn(lambda: pull_run(config, args))
    strategy, rates = together(lambda: _check(config, args))
    found = in_turn(lambda: load_splits(config)) if splits is None else splits
    task = TASKS[config.task]
    data = together(lambda: _read(config, args, found, explicit))

    def load() -> tuple[Any, nn.Module]:
        processor = load_processor(config)
        set_seed(args.seed)
        return processor, load_model(config, task, data, processor)

    processor, model = in_turn(load)

    def encode() -> tuple[LayerGroups, DatasetDict, int]:
        groups = discover_layer_groups(model)
        ever_learning_names(strategy, model, groups)
        length = readable_length(config, processor, model)
        if config.max_length is not None:
            # Saved with the tokenizer, so that the model is measured and used as it was trained.
            processor.model_max_length = length
        encoded, truncated = task.encode(data, processor, length)
        if truncated:
            logger.warning("%d rows were truncated to %d tokens.", truncated, length)
        return groups, encoded, truncated

    groups, encoded, truncated = together(encode)
    return Prepared(config, args, task, data, encoded, truncated, processor, model, groups, strategy, rates, loaded)


def _check(config: TransferConfig, args: TrainingArguments) -> tuple[Any, Any]:
    """Strategy and learning rates, if nothing stands against them."""
    gather(
        lambda: build_strategy(config),
        lambda: check_processes(args),
        lambda: check_folder(config, args),
        lambda: check_stopping(config, args),
        lambda: check_push(config, args),
    )
    strategy, rates = build_strategy(config)
    require_evaluation(strategy, args)
    return strategy, rates


def _read(config: TransferConfig, args: TrainingArguments, splits: DatasetDict, explicit: Collection[str]) -> TaskData:
    """The checked rows; arguments that depend on them are set."""
    if "validation" not in splits and config.validation_fraction == 0:
        without_validation(args, splits, explicit)
    task = TASKS[config.task]
    data = task.read(splits, config, args.seed)
    replaceable = args.metric_for_best_model in (None, "loss") and "metric_for_best_model" not in explicit
    if args.load_best_model_at_end and replaceable:
        # Trainer puts the loss where nothing was given.
        args.metric_for_best_model, args.greater_is_better = task.best_metric(data)
    return data


def make_trainer(prepared: Prepared, *callbacks: TrainerCallback) -> Trainer:
    """
    Puts the parts into a Trainer; the strategy is not attached yet.

    Args:
        prepared (`Prepared`):
            The parts.
        *callbacks (`TrainerCallback`):
            Further callbacks.

    Returns:
        `Trainer`: Ready to attach the strategy to.
    """
    args, task, data = prepared.args, prepared.task, prepared.data
    added = [NonFiniteLossCallback(), _ResumeAlike(), *callbacks, *sharing_callbacks(prepared.config, args)]
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
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(_QuietProgress)
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
