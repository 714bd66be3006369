"""PEFT's adapters by name: put into a model, beside the layer groups."""

from hf_transfer_plugin.adapters.attaching import attach_adapter, describe_adapter
from hf_transfer_plugin.adapters.converting import save_as_lora, start_of
from hf_transfer_plugin.adapters.methods import METHODS, learning_rate_of, method_of, ratio_of
from hf_transfer_plugin.adapters.prompts import virtual_tokens

__all__ = [
    "METHODS",
    "attach_adapter",
    "describe_adapter",
    "learning_rate_of",
    "method_of",
    "ratio_of",
    "save_as_lora",
    "start_of",
    "virtual_tokens",
]
