"""The measured defaults (benchmarks/strategies.py), and how a run falls back on them."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from transformers import TrainingArguments

from hf_transfer_plugin.adapters import learning_rate_of, method_of, ratio_of
from hf_transfer_plugin.config import LEARNING_RATE_NAMES, STRATEGY_NAMES, TransferConfig, gather, parse_spec
from hf_transfer_plugin.freezing import POLICIES
from hf_transfer_plugin.learning_rates import LEARNING_RATES
from hf_transfer_plugin.schedules import SCHEDULES
from hf_transfer_plugin.tasks import TASKS, Task

TEXT_CLASSIFICATION = TASKS["text-classification"]
DEFAULT_STRATEGY = TEXT_CLASSIFICATION.strategy
DEFAULT_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 1e-4,
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "train_sampling_strategy": "group_by_length",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 0.05,
    "dataloader_pin_memory": False,
}


def default_arguments(
    task: Task, adapter: Mapping[str, Any] | None = None, *, sort_micro_batches: bool = False
) -> dict[str, Any]:
    """
    Args:
        task (`Task`):
            May have defaults of its own.
        adapter (`dict`, *optional*):
            An adapter learns at a rate of its own.
        sort_micro_batches (`bool`, *optional*, defaults to `False`):
            Rows are drawn at random, where what is drawn is sorted.

    Returns:
        `dict[str, Any]`: The arguments that differ from Trainer's.
    """
    rate = {} if adapter is None else {"learning_rate": learning_rate_of(dict(adapter))}
    drawn = {"train_sampling_strategy": "random"} if sort_micro_batches else {}
    return {**DEFAULT_ARGUMENTS, **task.arguments, **rate, **drawn}


def with_defaults(
    args: TrainingArguments,
    explicit: Collection[str] = (),
    task: Task = TEXT_CLASSIFICATION,
    adapter: Mapping[str, Any] | None = None,
    *,
    sort_micro_batches: bool = False,
) -> TrainingArguments:
    """
    Puts the measured defaults in the place of Trainer's own.

    Args:
        args (`TrainingArguments`):
            The arguments; fields that differ from Trainer's defaults are kept.
        explicit (`Collection[str]`, *optional*):
            Fields to keep although they equal Trainer's default, because somebody typed them.
        task (`Task`, *optional*):
            May have defaults of its own.
        adapter (`dict`, *optional*):
            An adapter learns at a rate of its own.
        sort_micro_batches (`bool`, *optional*, defaults to `False`):
            Rows are drawn at random, where what is drawn is sorted.

    Returns:
        `TrainingArguments`: A copy.
    """
    own = {f.name: f.default for f in dataclasses.fields(args) if f.init}
    changes = {
        name: value
        for name, value in default_arguments(task, adapter, sort_micro_batches=sort_micro_batches).items()
        if name not in explicit and getattr(args, name) == own.get(name)
    }
    if args.load_best_model_at_end and args.save_strategy != "best":
        # Trainer wants the two alike, and keeps only what it has evaluated.
        changes["save_strategy"] = changes.get("eval_strategy", args.eval_strategy)
    return dataclasses.replace(args, **changes)


def build_strategy(config: TransferConfig, task: Task = TEXT_CLASSIFICATION) -> tuple[Any, Any]:
    """
    Builds what a configuration only names.

    Args:
        config (`TransferConfig`):
            The configuration.
        task (`Task`, *optional*):
            Its strategy is taken where none is named.

    Returns:
        `tuple`: The policy or schedule, and the learning rates (`None`, the same for all groups, where none are
        named).

    Raises:
        ValueError: If a field is unknown or out of range.
    """
    adapter = config.adapter_spec
    name = "full" if adapter is not None and (config.adapter is None or config.strategy is None) else config.strategy
    spec = parse_spec(name or task.strategy, STRATEGY_NAMES, "strategy")
    makers = {**POLICIES, **SCHEDULES}
    given = config.learning_rates
    rates = None if given is None else parse_spec(given, LEARNING_RATE_NAMES, "learning_rates")
    if adapter is not None and ratio_of(adapter) != 1:
        rates = {**(rates or {"name": "layerwise-decay", "decay": 1.0}), "lora_b_multiplier": ratio_of(adapter)}
    gather(
        lambda: _build(spec, makers, "strategy"),
        lambda: rates is None or _build(rates, LEARNING_RATES, "learning_rates"),
        lambda: adapter is None or method_of(adapter),
    )
    return _build(spec, makers, "strategy"), None if rates is None else _build(rates, LEARNING_RATES, "learning_rates")


def _build(spec: dict[str, Any], makers: dict[str, Any], flag: str) -> Any:
    fields = {key: value for key, value in spec.items() if key != "name"}
    try:
        return makers[spec["name"]](**fields)
    except TypeError as error:
        wrong = str(error).split(") ")[-1]
        raise ValueError(
            f"`{flag}` {spec['name']!r} does not take the fields {fields or '{}'}: {wrong}. Give them as JSON, e.g. "
            '`\'{"name": "freeze-first", "k": 3}\'`.'
        ) from error
