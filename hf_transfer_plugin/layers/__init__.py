"""What a model is, seen by transfer learning: an ordered list of layer groups, input first, head last."""

from hf_transfer_plugin.layers.discovery import discover_layer_groups
from hf_transfer_plugin.layers.groups import LayerGroup, LayerGroups, check_patterns
from hf_transfer_plugin.layers.naming import (
    beneath_adapters,
    input_embeddings,
    is_flattened,
    parameters_by_name,
    unwrapped_name,
)

__all__ = [
    "LayerGroup",
    "LayerGroups",
    "beneath_adapters",
    "check_patterns",
    "discover_layer_groups",
    "input_embeddings",
    "is_flattened",
    "parameters_by_name",
    "unwrapped_name",
]
