"""Terms that are added to a model's loss."""

from hf_transfer_plugin.losses.base import LossTerm

__all__ = ["LossTerm"]
