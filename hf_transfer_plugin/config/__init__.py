"""What a run is asked to do, as plain values; imports no strategy, no torch, and reads only YAML and JSON."""

from hf_transfer_plugin.config.faults import ConfigError, gather
from hf_transfer_plugin.config.names import (
    ADAPTER_NAMES,
    BASE_PRECISIONS,
    LEARNING_RATE_NAMES,
    PROBLEM_TYPES,
    STRATEGY_NAMES,
    TASK_NAMES,
)
from hf_transfer_plugin.config.reading import parse_adapter, parse_spec, read_config_file
from hf_transfer_plugin.config.transfer import TransferConfig

__all__ = [
    "ADAPTER_NAMES",
    "BASE_PRECISIONS",
    "LEARNING_RATE_NAMES",
    "PROBLEM_TYPES",
    "STRATEGY_NAMES",
    "TASK_NAMES",
    "ConfigError",
    "TransferConfig",
    "gather",
    "parse_adapter",
    "parse_spec",
    "read_config_file",
]
