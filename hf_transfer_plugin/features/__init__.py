"""What a frozen model already knows: features of a dataset, and the linear head solved on them."""

from hf_transfer_plugin.features.extraction import RowStore, base_model_of, collect_features, extract_features
from hf_transfer_plugin.features.heads import LinearHead, find_output_layer, solve_linear_head

__all__ = [
    "LinearHead",
    "RowStore",
    "base_model_of",
    "collect_features",
    "extract_features",
    "find_output_layer",
    "solve_linear_head",
]
