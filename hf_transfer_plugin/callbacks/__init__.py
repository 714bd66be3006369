"""Trainer callbacks: the one that freezes and thaws, and the few others that a run needs."""

from hf_transfer_plugin.callbacks.adapters import RankAllocationCallback
from hf_transfer_plugin.callbacks.freezing import FreezingCallback, progress_of
from hf_transfer_plugin.callbacks.guards import InterruptCallback, NonFiniteLossCallback
from hf_transfer_plugin.callbacks.head import solve_output_layer
from hf_transfer_plugin.callbacks.prompts import PromptEncoderCallback
from hf_transfer_plugin.callbacks.temperature import TemperatureCallback

__all__ = [
    "FreezingCallback",
    "InterruptCallback",
    "NonFiniteLossCallback",
    "PromptEncoderCallback",
    "RankAllocationCallback",
    "TemperatureCallback",
    "progress_of",
    "solve_output_layer",
]
