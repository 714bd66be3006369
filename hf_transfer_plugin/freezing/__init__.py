"""Which parameters learn: policies that decide, and the one hand that writes `requires_grad`."""

from hf_transfer_plugin.freezing.learning import ever_learning_names, learning_names, set_trainable
from hf_transfer_plugin.freezing.policies import (
    POLICIES,
    FreezingPolicy,
    bitfit,
    feature_extraction,
    freeze_first,
    freeze_pattern,
    full,
    norm_only,
)
from hf_transfer_plugin.freezing.stillness import FrozenModules, still_modules

__all__ = [
    "POLICIES",
    "FreezingPolicy",
    "FrozenModules",
    "bitfit",
    "ever_learning_names",
    "feature_extraction",
    "freeze_first",
    "freeze_pattern",
    "full",
    "learning_names",
    "norm_only",
    "set_trainable",
    "still_modules",
]
