"""Pay for the frozen layers once: their activations are stored, proved, and read again in later epochs."""

from hf_transfer_plugin.prefix_cache.cache import FrozenPrefixCache

__all__ = ["FrozenPrefixCache"]
