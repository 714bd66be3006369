"""Transfer learning for the Hugging Face Trainer: freezing, gradual unfreezing, layer-wise learning rates."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_transfer_plugin.adapters import attach_adapter, combine_adapters, extract_lora, load_adapter, merge_adapter
    from hf_transfer_plugin.callbacks import FreezingCallback
    from hf_transfer_plugin.config import ConfigError, TransferConfig
    from hf_transfer_plugin.features import extract_features
    from hf_transfer_plugin.freezing import (
        FreezingPolicy,
        bitfit,
        feature_extraction,
        freeze_first,
        freeze_pattern,
        full,
        norm_only,
        set_trainable,
    )
    from hf_transfer_plugin.layers import LayerGroup, LayerGroups, discover_layer_groups
    from hf_transfer_plugin.learning_rates import LayerwiseDecay, SlantedTriangular
    from hf_transfer_plugin.planning import Plan, plan
    from hf_transfer_plugin.prefix_cache import FeatureStore, FrozenPrefixCache
    from hf_transfer_plugin.recipes import evaluate_run, finetune
    from hf_transfer_plugin.record import TransferRecord
    from hf_transfer_plugin.schedules import (
        ChainThaw,
        GradualUnfreezing,
        LayerSampling,
        LinearProbeThenFineTune,
        PlateauUnfreezing,
        Progress,
    )
    from hf_transfer_plugin.trainer import TransferMixin, TransferSeq2SeqTrainer, TransferTrainer, attach

_ROOMS = {
    "adapters": ("attach_adapter", "combine_adapters", "extract_lora", "load_adapter", "merge_adapter"),
    "callbacks": ("FreezingCallback",),
    "config": ("ConfigError", "TransferConfig"),
    "features": ("extract_features",),
    "freezing": (
        "FreezingPolicy",
        "bitfit",
        "feature_extraction",
        "freeze_first",
        "freeze_pattern",
        "full",
        "norm_only",
        "set_trainable",
    ),
    "layers": ("LayerGroup", "LayerGroups", "discover_layer_groups"),
    "learning_rates": ("LayerwiseDecay", "SlantedTriangular"),
    "planning": ("Plan", "plan"),
    "prefix_cache": ("FeatureStore", "FrozenPrefixCache"),
    "recipes": ("evaluate_run", "finetune"),
    "record": ("TransferRecord",),
    "schedules": (
        "ChainThaw",
        "GradualUnfreezing",
        "LayerSampling",
        "LinearProbeThenFineTune",
        "PlateauUnfreezing",
        "Progress",
    ),
    "trainer": ("TransferMixin", "TransferSeq2SeqTrainer", "TransferTrainer", "attach"),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "ChainThaw",
    "ConfigError",
    "FeatureStore",
    "FreezingCallback",
    "FreezingPolicy",
    "FrozenPrefixCache",
    "GradualUnfreezing",
    "LayerGroup",
    "LayerGroups",
    "LayerSampling",
    "LayerwiseDecay",
    "LinearProbeThenFineTune",
    "Plan",
    "PlateauUnfreezing",
    "Progress",
    "SlantedTriangular",
    "TransferConfig",
    "TransferMixin",
    "TransferRecord",
    "TransferSeq2SeqTrainer",
    "TransferTrainer",
    "attach",
    "attach_adapter",
    "bitfit",
    "combine_adapters",
    "discover_layer_groups",
    "evaluate_run",
    "extract_features",
    "extract_lora",
    "feature_extraction",
    "finetune",
    "freeze_first",
    "freeze_pattern",
    "full",
    "load_adapter",
    "merge_adapter",
    "norm_only",
    "plan",
    "set_trainable",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
