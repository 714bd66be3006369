"""Terms that are added to a model's loss, and losses in its place."""

from hf_transfer_plugin.losses.base import LossTerm
from hf_transfer_plugin.losses.contrastive import LOSSES, ContrastiveLoss, sigmoid_losses, softmax_losses

__all__ = ["LOSSES", "ContrastiveLoss", "LossTerm", "sigmoid_losses", "softmax_losses"]
