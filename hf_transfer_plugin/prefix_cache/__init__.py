"""Pay for the frozen layers once: their activations are stored, proved, and read again in later epochs."""

from hf_transfer_plugin.prefix_cache.cache import FrozenPrefixCache
from hf_transfer_plugin.prefix_cache.feature_store import FeatureStore

__all__ = ["FeatureStore", "FrozenPrefixCache"]
