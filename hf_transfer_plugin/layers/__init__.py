"""What a model is, seen by transfer learning: an ordered list of layer groups, input first, head last."""

from hf_transfer_plugin.layers.discovery import discover_layer_groups
from hf_transfer_plugin.layers.groups import LayerGroup, LayerGroups, check_patterns
from hf_transfer_plugin.layers.naming import (
    beneath_adapters,
    input_embeddings,
    is_flattened,
    locked_parameters,
    parameters_by_name,
    unwrapped_name,
)
from hf_transfer_plugin.layers.towers import KINDS, find_towers, lock_tower

__all__ = [
    "KINDS",
    "LayerGroup",
    "LayerGroups",
    "beneath_adapters",
    "check_patterns",
    "discover_layer_groups",
    "find_towers",
    "input_embeddings",
    "is_flattened",
    "lock_tower",
    "locked_parameters",
    "parameters_by_name",
    "unwrapped_name",
]
