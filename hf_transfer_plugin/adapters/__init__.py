"""PEFT's adapters by name: put into a model, beside the layer groups; loaded, merged, combined, or made of a model."""

from hf_transfer_plugin.adapters.attaching import attach_adapter
from hf_transfer_plugin.adapters.combining import combine_adapters
from hf_transfer_plugin.adapters.converting import save_as_lora, start_of
from hf_transfer_plugin.adapters.describing import describe_adapter
from hf_transfer_plugin.adapters.extraction import extract_lora
from hf_transfer_plugin.adapters.loading import is_adapter, load_adapter, load_adapters
from hf_transfer_plugin.adapters.merging import check_mergeable, merge_adapter
from hf_transfer_plugin.adapters.methods import METHODS, learning_rate_of, method_of, ratio_of
from hf_transfer_plugin.adapters.prompts import virtual_tokens

__all__ = [
    "METHODS",
    "attach_adapter",
    "check_mergeable",
    "combine_adapters",
    "describe_adapter",
    "extract_lora",
    "is_adapter",
    "learning_rate_of",
    "load_adapter",
    "load_adapters",
    "merge_adapter",
    "method_of",
    "ratio_of",
    "save_as_lora",
    "start_of",
    "virtual_tokens",
]
