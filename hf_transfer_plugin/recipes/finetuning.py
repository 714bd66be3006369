"""Fine-tunes a model as a configuration says, and keeps the record of it."""

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_transfer_plugin.callbacks import InterruptCallback, NonFiniteLossCallback, TemperatureCallback
from hf_transfer_plugin.callbacks.ranks import together
from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.planning import plan
from hf_transfer_plugin.recipes.adapter_runs import keep_merged
from hf_transfer_plugin.recipes.baselines import measure_baselines
from hf_transfer_plugin.recipes.caching import cache_facts, make_cache
from hf_transfer_plugin.recipes.checks import CONFIG_NAME, checkpoint_of
from hf_transfer_plugin.recipes.embedding import build_trainer
from hf_transfer_plugin.recipes.energy import measured_energy
from hf_transfer_plugin.recipes.measuring import Measuring, measure
from hf_transfer_plugin.recipes.preparing import Prepared, prepare, writes_each_time
from hf_transfer_plugin.recipes.recording import finish_record, start_record
from hf_transfer_plugin.recipes.sharing import push_run, sharing_callbacks
from hf_transfer_plugin.record import TransferRecord, write_atomically
from hf_transfer_plugin.trainer import TransferTrainer, attach


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
        if hasattr(sampler.collate_fn, "set_epoch"):
            sampler.collate_fn.set_epoch(int(state.epoch or 0))
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
        announce (`Callable[[str], None]`, *optional*):
            Takes what a user should read: the plan before training, and the page after a push. Of several processes,
            only the first announces.

    Returns:
        `TransferRecord`: What was done and measured; `record.path` is its file.

    Raises:
        ValueError: For anything wrong with data, model, strategy or run folder, before training starts.
        RuntimeError: If the loss becomes NaN or infinite, or, with the run folder whole, the adapter cannot be merged
            or the Hub refuses a push.
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

    def begin() -> TransferRecord:
        if announce is not None and args.process_index == 0:
            announce(f"The plan:\n{_plan(prepared)}")
        return start_record(prepared)

    def write_config() -> None:
        if args.process_index == 0:
            write_atomically(Path(args.output_dir) / CONFIG_NAME, json.dumps(config.to_dict(), indent=2) + "\n")

    record = together(begin)
    record.baselines = measure_baselines(prepared, split)
    trainer, cache = together(lambda: make_trainer(prepared, interrupt)), make_cache(config)
    attach(
        trainer,
        schedule=prepared.strategy,
        learning_rates=prepared.rates,
        cache=cache,
        groups=prepared.groups,
        keep_dropout=config.keep_dropout,
        sort_micro_batches=config.sort_micro_batches,
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
    record.prefix_cache = cache_facts(cache)
    if interrupt.interrupted:
        raise KeyboardInterrupt(trainer.state.global_step)
    started = time.perf_counter()
    record.metrics, outcome = measure(trainer, measuring(prepared, trainer, split, at_end=True), split)
    record.seconds["evaluate"] = time.perf_counter() - started
    finish_record(record, prepared, trainer, outcome, split)
    if args.process_index == 0 and config.adapter_output != "adapter":
        record = keep_merged(args.output_dir, alone=config.adapter_output == "merged")
    page = push_run(config, args)
    if page is not None and announce is not None:
        announce(f"Pushed to {page}.")
    return record


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
    if task.loss == "contrastive":
        added.append(TemperatureCallback())
    if prepared.config.early_stopping_patience is not None:
        added.append(EarlyStoppingCallback(prepared.config.early_stopping_patience))
    trainer = build_trainer(
        task,
        data,
        kind=TransferTrainer,
        model=prepared.model,
        args=args,
        train_dataset=prepared.encoded["train"],
        eval_dataset=prepared.encoded.get("validation"),
        processing_class=prepared.processor,
        data_collator=task.collator(prepared.processor, data),
        preprocess_logits_for_metrics=task.reduce,
        callbacks=added,
    )
    if "validation" in prepared.encoded:
        trainer.compute_metrics = measuring(prepared, trainer, "validation")
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(_QuietProgress)
    return trainer


def measuring(prepared: Prepared, trainer: Trainer, split: str, *, at_end: bool = False) -> Measuring:
    """
    Args:
        prepared (`Prepared`):
            The parts.
        trainer (`Trainer`):
            The Trainer.
        split (`str`):
            The split to measure.
        at_end (`bool`, *optional*, defaults to `False`):
            Whether this is the last measurement, where a task that writes always does.

    Returns:
        `Measuring`: What Trainer takes as `compute_metrics`.
    """
    task, rows = prepared.task, len(prepared.data.splits[split])
    if task.measures_texts:
        writes = rows if at_end or writes_each_time(prepared.args) else 0
    else:
        writes = prepared.config.demo_examples if at_end and task.generate is not None else 0
    return Measuring(trainer, task, prepared.data, split, prepared.encoded[split], writes=writes)


def _plan(prepared: Prepared) -> Any:
    args, rows = prepared.args, len(prepared.encoded["train"])
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else int(-(-rows // per_step) * args.num_train_epochs)
    encoded = prepared.encoded["train"]
    lengths = encoded["length"] if "length" in encoded.column_names else []
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
