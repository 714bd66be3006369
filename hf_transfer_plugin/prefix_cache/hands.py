"""What the cache puts on the modules of one model alone."""

from hf_transfer_plugin.layers.hands import OwnForward, OwnHook

__all__ = ["OwnForward", "OwnHook"]
