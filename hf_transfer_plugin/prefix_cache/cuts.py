"""Where the frozen part of a model ends: what is not run, and what is fed instead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_transfer_plugin.prefix_cache.passage import Address, Passage
from hf_transfer_plugin.prefix_cache.shapes import OutputShapes

_RESULTS = ("loss", "logits", "boxes", "embeds", "scores", "masks")


class CannotCacheError(ValueError):
    """Why the frozen part of this model cannot be cached, as a sentence."""


@dataclass(frozen=True)
class Cut:
    """
    The end of the frozen prefix for one set of learning parameters.

    Args:
        fed (`str`):
            Name of the first module above it.
        skipped (`tuple[str, ...]`):
            Modules that are not run.
        addresses (`tuple[Address, ...]`):
            The tensors that pass.
        repeated (`bool`, *optional*, defaults to `False`):
            Whether a forward pass calls the fed module several times.
    """

    fed: str
    skipped: tuple[str, ...]
    addresses: tuple[Address, ...]
    repeated: bool = False

    def passage(self, model: nn.Module, shapes: Mapping[str, OutputShapes] | None = None) -> Passage:
        """
        Args:
            model (`nn.Module`):
                The model.
            shapes (`Mapping[str, OutputShapes]`, *optional*):
                What another passage has learned of the skipped modules' outputs.

        Returns:
            `Passage`: Hands for it, not yet on.
        """
        return Passage(model, self.fed, self.skipped, repeated=self.repeated, shapes=shapes)

    def pick(self, caught: Mapping[str, Sequence[Any]]) -> dict[Address, torch.Tensor]:
        """
        Args:
            caught (`Mapping[str, Sequence]`):
                What [`Passage.watch`] kept.

        Returns:
            `dict[Address, torch.Tensor]`: The tensors that pass the cut.
        """
        return {address: caught[address.module][address.leaf] for address in self.addresses}


def results(output: Any) -> list[torch.Tensor]:
    """
    Args:
        output (`ModelOutput`):
            What a model returned.

    Returns:
        `list[torch.Tensor]`: Its loss and logits, boxes, embeddings; where it has none, its first tensor.
    """
    pairs = list(output.items()) if isinstance(output, Mapping) else [("", output)]
    tensors = [(k, v) for k, v in pairs if isinstance(v, torch.Tensor) and v.is_floating_point()]
    named = [v for k, v in tensors if any(k.endswith(end) or k.startswith(end) for end in _RESULTS)]
    found = named or [v for _, v in tensors][:1]
    if not found:
        raise CannotCacheError("the model returns neither loss nor logits")
    return found
