"""What a loss term is: regularisers, teachers and domain losses are one idea."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn


class LossTerm(Protocol):
    """Something that is added to the loss of every training batch."""

    def prepare(self, model: nn.Module) -> None:
        """
        Called once, before training.

        Args:
            model (`nn.Module`):
                The model with its pretrained weights.
        """

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any], outputs: Any) -> torch.Tensor:
        """
        Args:
            model (`nn.Module`):
                The model.
            inputs (`Mapping[str, Any]`):
                The batch.
            outputs (`Any`):
                What the model returned for it.

        Returns:
            `torch.Tensor`: A scalar, the mean over the batch.
        """
