"""Everything that is loaded and checked before training."""

import logging
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import nn
from transformers import TrainingArguments, set_seed

from hf_transfer_plugin.adapters import attach_adapter, start_of, virtual_tokens
from hf_transfer_plugin.adapters.merging import check_mergeable
from hf_transfer_plugin.callbacks.freezing import require_evaluation
from hf_transfer_plugin.callbacks.ranks import in_turn, together
from hf_transfer_plugin.config import ConfigError, TransferConfig, gather
from hf_transfer_plugin.freezing import ever_learning_names
from hf_transfer_plugin.layers import LayerGroups, discover_layer_groups, lock_tower
from hf_transfer_plugin.recipes.base_precision import check_base_precision, check_frozen, make_ready_for_adapters
from hf_transfer_plugin.recipes.checks import (
    check_companions,
    check_evaluating,
    check_folder,
    check_lone_row,
    check_processes,
    check_stopping,
    without_validation,
)
from hf_transfer_plugin.recipes.defaults import build_strategy, with_defaults
from hf_transfer_plugin.recipes.pretrained import load_model, load_processor, readable_length
from hf_transfer_plugin.recipes.sharing import check_push, pull_run
from hf_transfer_plugin.schedules import LinearProbeThenFineTune
from hf_transfer_plugin.tasks import TASKS, Task, TaskData, load_splits

logger = logging.getLogger(__name__)
UNSMOOTHED = {"image-segmentation": "masks", "object-detection": "boxes"}  # task -> its labels, in another shape
OPTIONS = (
    "class_names",
    "problem_type",
    "feature_columns",
    "max_target_length",
    "prompt",
    "source_language",
    "target_language",
    "stride",
    "packing",
    "mlm_probability",
    "skip_unreadable",
    "box_format",
    "score_threshold",
    "mask_values",
    "loss",
    "max_seconds",
    "freeze_tower",
    "caption_template",
)


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
        overlong (`int`): Rows longer than the model reads.
        processor (`Any`): The tokenizer.
        model (`nn.Module`): The model, with the adapter where there is one.
        new_weights (`frozenset[str]`): Names of its weights that are new.
        groups (`LayerGroups`): Its layer groups.
        strategy (`Any`): Policy or schedule.
        rates (`Any`): Learning rates.
        loaded (`bool`): Whether the rows were loaded by `config.dataset`.
        start (`dict[str, torch.Tensor]`, *optional*): What an adapter took out of the base's weights.
    """

    config: TransferConfig
    args: TrainingArguments
    task: Task
    data: TaskData
    encoded: DatasetDict
    overlong: int
    processor: Any
    model: nn.Module
    new_weights: frozenset[str]
    groups: LayerGroups
    strategy: Any
    rates: Any
    loaded: bool = True
    start: dict[str, torch.Tensor] | None = None


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
    task, loaded = TASKS[config.task], splits is None
    args = with_defaults(args, explicit, task, config.adapter_spec, sort_micro_batches=config.sort_micro_batches)
    in_turn(lambda: pull_run(config, args))
    strategy, rates = together(lambda: _check(config, args, task))
    found = in_turn(lambda: load_splits(config)) if splits is None else splits
    data = together(lambda: _read(config, args, task, found, explicit))

    def load() -> tuple[Any, nn.Module, frozenset[str]]:
        processor = load_processor(config, data)
        set_seed(args.seed)
        return processor, *load_model(config, task, data, processor, args)

    processor, base, new_weights = in_turn(load)

    def encode() -> tuple[nn.Module, LayerGroups, DatasetDict, int]:
        set_up(task, base, processor, data, args)
        model = base if config.adapter_spec is None else _adapted(config, base, new_weights)
        if config.adapter_output != "adapter":
            check_mergeable(model)
        groups = lock_tower(discover_layer_groups(model), model, config.freeze_tower)
        learning = ever_learning_names(strategy, model, groups)
        check_frozen(config.base_precision, model, learning)
        if config.adapter_spec is not None:
            _check_adapter_learns(strategy, learning)
        length = readable_length(config, processor, base, kept=virtual_tokens(model))
        if config.max_length is not None:
            # Saved with the tokenizer, so that the model is measured and used as it was trained.
            processor.model_max_length = length
        encoded, overlong = encode_rows(task, data, processor, length, base)
        check_lone_row(base, args, encoded["train"], task.collator(processor, data))
        if overlong:
            logger.warning("%d rows are longer than %d tokens and were %s.", overlong, length, task.overlong)
        return model, groups, encoded, overlong

    model, groups, encoded, overlong = together(encode)
    if new_weights and task.pretrained_head:
        logger.warning(
            "The head of %s for %s is new and random: %r brings none.", type(base).__name__, task.name, config.model
        )
    start = start_of(model) if config.adapter_spec is not None else None
    return Prepared(
        config, args, task, data, encoded, overlong, processor, model, new_weights, groups, strategy, rates, loaded,
        start,
    )  # fmt: skip


def _adapted(config: TransferConfig, base: nn.Module, new_weights: frozenset[str]) -> nn.Module:
    if any(name.startswith("lm_head.") for name in new_weights) and not _has_input_embeddings(base):
        # Where the vocabulary differs from the base's, PEFT saves input embeddings, and fails without.
        raise ValueError(
            f"`adapter` needs a model that brings its output layer, but that of {type(base).__name__} is new. Start "
            "from a model with one for CTC, or leave out `adapter`."
        )
    revision = None if Path(config.model).expanduser().is_dir() else config.model_revision
    model = attach_adapter(base, config.adapter_spec, new_weights=new_weights, revision=revision)
    folder = Path(config.model).expanduser()
    if folder.is_dir():
        # Found from wherever the run is used; a push puts the Hub's id in its place.
        model.active_peft_config.base_model_name_or_path = str(folder.resolve())
    return make_ready_for_adapters(model)


def _has_input_embeddings(model: Any) -> bool:
    try:
        return model.get_input_embeddings() is not None
    except NotImplementedError:
        return False


def _check_adapter_learns(strategy: Any, learning: Collection[str]) -> None:
    if all(".modules_to_save." in name for name in learning):
        raise ValueError(
            f"The adapter must learn, but with the strategy `{strategy.name}` only what stands beside it does. Leave "
            "out `adapter`, or use a strategy over it such as `full` or `gradual-unfreezing`."
        )


def set_up(task: Task, model: Any, processor: Any, data: TaskData, args: TrainingArguments) -> None:
    """
    Asks the task whether model and tokenizer can do it, and sets how the model writes.

    Args:
        task (`Task`):
            The task.
        model (`PreTrainedModel`):
            The model.
        processor (`PreTrainedTokenizerBase`):
            Its tokenizer.
        data (`TaskData`):
            The rows and options.
        args (`TrainingArguments`):
            May name beams.

    Raises:
        ValueError: If they cannot.
    """
    if args.label_smoothing_factor and task.loss is not None:
        raise ValueError(
            f"`label_smoothing_factor` smooths labels of classes, but {task.name} learns by the loss of two towers. "
            "Leave `--label_smoothing_factor` out."
        )
    if args.label_smoothing_factor and task.name in UNSMOOTHED:
        raise ValueError(
            f"`label_smoothing_factor` smooths labels of rows and of tokens, but {task.name} learns from "
            f"{UNSMOOTHED[task.name]}. Leave `--label_smoothing_factor` out."
        )
    if args.label_smoothing_factor and model.config.is_encoder_decoder:
        raise ValueError(
            "`label_smoothing_factor` takes the labels away before the model reads them, but an encoder-decoder makes "
            "its decoder's input of them. Leave `--label_smoothing_factor` out."
        )
    beams = getattr(args, "generation_num_beams", None)
    if task.generate is not None and beams is not None and model.can_generate():
        model.generation_config.num_beams = beams
    if task.set_up is not None:
        task.set_up(model, processor, data)


def encode_rows(task: Task, data: TaskData, processor: Any, length: int, model: nn.Module) -> tuple[DatasetDict, int]:
    """
    Encodes the rows, and adds the lengths of texts, by which Trainer groups them.

    Args:
        task (`Task`):
            The task.
        data (`TaskData`):
            The rows.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.
        length (`int`):
            Tokens at most.
        model (`nn.Module`):
            The model.

    Returns:
        `tuple[DatasetDict, int]`: The encoded splits and the number of overlong rows.
    """
    encoded, overlong = task.encode(data, processor, length, model.config)
    for split, rows in encoded.items():
        if "input_ids" in rows.column_names and "length" not in rows.column_names:
            encoded[split] = rows.add_column("length", [len(ids) for ids in rows["input_ids"]])
    return encoded, overlong


def _check(config: TransferConfig, args: TrainingArguments, task: Task) -> tuple[Any, Any]:
    """Strategy and learning rates, if nothing stands against them."""
    gather(
        lambda: require_used(config, task),
        lambda: build_strategy(config, task),
        lambda: check_processes(args),
        lambda: check_folder(config, args),
        lambda: check_stopping(config, args),
        lambda: check_evaluating(args),
        lambda: check_companions(args, task),
        lambda: check_push(config, args),
        lambda: check_base_precision(
            config.base_precision, args, adapted=config.adapter_spec is not None, adapter=config.adapter_spec
        ),
    )
    strategy, rates = build_strategy(config, task)
    if isinstance(strategy, LinearProbeThenFineTune) and not task.probe:
        raise ConfigError([
            f"`strategy` 'lp-ft' solves an output layer of classes, which {task.name} has not. Use `full` or "
            "`gradual-unfreezing`."
        ])
    require_evaluation(strategy, args)
    return strategy, rates


def _read(
    config: TransferConfig, args: TrainingArguments, task: Task, splits: DatasetDict, explicit: Collection[str]
) -> TaskData:
    """The checked rows; arguments that depend on them are set."""
    data = task.read(splits, config, args.seed)
    if "validation" not in data.splits:
        without_validation(args, data.splits, explicit)
    replaceable = args.metric_for_best_model in (None, "loss") and "metric_for_best_model" not in explicit
    if args.load_best_model_at_end and replaceable:
        # Trainer puts the loss where nothing was given.
        writes = not task.measures_texts or writes_each_time(args)
        args.metric_for_best_model, args.greater_is_better = task.best_metric(data) if writes else ("loss", False)
    return data


def writes_each_time(args: TrainingArguments) -> bool:
    """
    Args:
        args (`TrainingArguments`):
            The arguments.

    Returns:
        `bool`: Whether a task that writes does so at every evaluation, not only at the end.
    """
    return bool(getattr(args, "predict_with_generate", False))


def require_used(config: TransferConfig, task: Task) -> None:
    """
    Args:
        config (`TransferConfig`):
            The configuration.
        task (`Task`):
            The task.

    Raises:
        ConfigError: If fields were given that the task does not use.
    """
    used = {f"{role}_column" for role in task.roles} | set(task.options)
    special = {f.name: f.default for f in fields(config) if f.name.endswith("_column") or f.name in OPTIONS}
    unused = [name for name, value in special.items() if name not in used and getattr(config, name) != value]
    if unused:
        raise ConfigError(
            f"`{name}` is of no use to {task.name}, which takes {', '.join(sorted(used))}. Leave it out."
            for name in unused
        )
