"""The side wing: renders what a record says; knows nothing of training."""

from hf_transfer_plugin.hub.card import render_card
from hf_transfer_plugin.hub.plots import render_schedule

__all__ = ["render_card", "render_schedule"]
