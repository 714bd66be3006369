"""What is wrong with the values of a configuration, fault by fault."""

import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from hf_transfer_plugin.config.faults import ConfigError, gather
from hf_transfer_plugin.config.names import (
    ADAPTER_NAMES,
    ADAPTER_OUTPUTS,
    BASE_PRECISIONS,
    BOX_FORMATS,
    FEATURE_KINDS,
    LEARNING_RATE_NAMES,
    MASK_VALUES,
    PROBLEM_TYPES,
    STRATEGY_NAMES,
    TASK_NAMES,
    TOWER_CHOICES,
)
from hf_transfer_plugin.config.reading import parse_adapter, parse_spec

# Meant as a switch, and no folder's name.
_NO_FOLDERS = ("auto", "off", "on", "true", "false", "yes", "no", "none")


def problems_of(config: Any) -> Iterable[str]:
    """
    Args:
        config (`TransferConfig`):
            The values.

    Yields:
        `str`: A sentence for each fault: what was expected, what was got.
    """
    yield from _name_problems(config)
    yield from _spec_problems(config)
    yield from _number_problems(config)
    yield from _table_problems(config)
    yield from _detection_problems(config)
    yield from _cache_problems(config)


def _name_problems(config: Any) -> Iterable[str]:
    for name in ("model", "dataset"):
        value = getattr(config, name)
        if not isinstance(value, str) or not value.strip():
            yield f"`{name}` must be a Hub id or a path, but got {value!r}."
    choices = {
        "task": TASK_NAMES,
        "problem_type": (*PROBLEM_TYPES, None),
        "adapter_output": ADAPTER_OUTPUTS,
        "base_precision": (*BASE_PRECISIONS, None),
        "box_format": BOX_FORMATS,
        "freeze_tower": (*TOWER_CHOICES, None),
        "mask_values": (*MASK_VALUES, None),
    }
    for name, known in choices.items():
        if getattr(config, name) not in known:
            listed = ", ".join(value for value in known if value is not None)
            yield f"`{name}` must be one of {listed}, but got {getattr(config, name)!r}."
    if config.prompt is not None and "{text}" not in config.prompt:
        yield f"`prompt` must hold {{text}}, the place of the text, but got {config.prompt!r}."
    if config.caption_template is not None and re.findall(r"\{[^{}]*\}|[{}]", config.caption_template) != ["{label}"]:
        yield (
            "`caption_template` must hold {label}, the place of the class name, once and no other braces, but got "
            f"{config.caption_template!r}."
        )
    yield from _switch_problems(config, "trust_remote_code", "sort_micro_batches", "skip_unreadable")
    names = config.class_names
    # Detectors of one kind of thing are common; a classifier of one class is none.
    fewest, told = (1, "one name") if config.task == "object-detection" else (2, "two different names")
    if names is not None and not _different_names(names, fewest):
        yield f"`class_names` must be at least {told}, as text, but got {names!r}."


def _switch_problems(config: Any, *names: str) -> Iterable[str]:
    values = {name: getattr(config, name) for name in names}
    return (f"`{k}` must be true or false, but got {v!r}." for k, v in values.items() if not isinstance(v, bool))


def _spec_problems(config: Any) -> Iterable[str]:
    known = {"strategy": (*STRATEGY_NAMES, *ADAPTER_NAMES), "learning_rates": LEARNING_RATE_NAMES}
    given = [(flag, getattr(config, flag)) for flag in known if getattr(config, flag) is not None]
    checks = [partial(parse_spec, value, known[flag], flag) for flag, value in given]
    try:
        gather(*checks, lambda: config.adapter is None or parse_adapter(config.adapter, ADAPTER_NAMES))
    except ConfigError as error:
        yield from error.problems
        return
    if config.adapter is not None and config.names_adapter():
        yield "`strategy` and `adapter` both name an adapter. Name it in `adapter`."
    if config.adapter_spec is None and config.adapter_output != "adapter":
        yield f"`adapter_output` is {config.adapter_output!r}, but there is no `adapter`. Leave it out."


def _number_problems(config: Any) -> Iterable[str]:
    if not isinstance(config.validation_fraction, (int, float)) or not 0 <= config.validation_fraction < 1:
        yield f"`validation_fraction` must be at least 0 and below 1, but got {config.validation_fraction!r}."
    if not isinstance(config.mlm_probability, (int, float)) or not 0 < config.mlm_probability < 1:
        yield f"`mlm_probability` must lie between 0 and 1, but got {config.mlm_probability!r}."
    seconds = config.max_seconds
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 < seconds < float("inf"):
        yield f"`max_seconds` must be a number above 0, but got {seconds!r}."
    if not isinstance(config.demo_examples, int) or isinstance(config.demo_examples, bool) or config.demo_examples < 0:
        yield f"`demo_examples` must be a whole number of at least 0, but got {config.demo_examples!r}."
    for name in ("max_train_samples", "max_length", "max_target_length", "stride", "early_stopping_patience"):
        value = getattr(config, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            yield f"`{name}` must be a whole number of at least 1, but got {value!r}."


def _table_problems(config: Any) -> Iterable[str]:
    given = config.feature_columns
    if given is None:
        return
    listed = list(given) if isinstance(given, (list, tuple, Mapping)) else [given]
    one_text = isinstance(given, str) and given != "all"
    if one_text or not listed or not all(isinstance(n, str) for n in listed) or len(set(listed)) < len(listed):
        yield f"`feature_columns` must be `all`, or different names of columns as a list, but got {given!r}."
    unknown = [kind for kind in given.values() if kind not in FEATURE_KINDS] if isinstance(given, Mapping) else []
    if unknown:
        yield f"`feature_columns` must name kinds among {', '.join(FEATURE_KINDS)}, but got {unknown[0]!r}."
    for name in ("text_column", "text_pair_column"):
        if getattr(config, name) is not None:
            yield f"`{name}` names a text, but `feature_columns` makes one of a table's row. Leave one of them out."


def _detection_problems(config: Any) -> Iterable[str]:
    value = config.score_threshold
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        yield f"`score_threshold` must be at least 0 and below 1, but got {value!r}."


def _cache_problems(config: Any) -> Iterable[str]:
    value = config.prefix_cache
    if value in ("auto", "off"):
        return
    if not isinstance(value, str) or not value.strip() or value.lower() in _NO_FOLDERS:
        yield f"`prefix_cache` must be auto, off or a folder, but got {value!r}. Use auto for the default folder."
        return
    there = os.path.abspath(os.path.expanduser(value))
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        yield f"`prefix_cache` must be auto, off or a folder, but {there!r} is no folder. Name another folder."


def _different_names(names: Any, fewest: int) -> bool:
    listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return listed and len(set(names)) == len(names) >= fewest
