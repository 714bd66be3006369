"""What a collator brought, kept from the model and from user code until the model is called with that very batch."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_transfer_plugin.layers import beneath_adapters

# What Trainer adds to a batch, and what changes no activation.
_HARMLESS = {"num_items_in_batch", "return_dict", "return_loss", "use_cache"}


class Aside:
    """Holds what was brought with a batch."""

    def __init__(self) -> None:
        self._held: tuple[Mapping[str, Any], dict[str, Any], Mapping[str, Any]] | None = None

    def keep(self, brought: Mapping[str, Any] | None, batch: Mapping[str, Any]) -> None:
        """
        Args:
            brought (`Mapping[str, Any]`, *optional*):
                What the collator added.
            batch (`Mapping[str, Any]`):
                The batch, where the model is.
        """
        # The batch itself too: while it is held, no other tensor comes to lie where its tensors do.
        self._held = None if brought is None else (brought, _identities(batch), dict(batch))

    def of_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """
        Args:
            model (`nn.Module`):
                The model.
            args (`tuple`):
                Arguments of a call of it.
            kwargs (`Mapping[str, Any]`):
                Its keyword arguments.

        Returns:
            `Mapping[str, Any]` or `None`: What belongs to them. Another text, this one changed in place, one input
            more or less have other activations, and hidden states that are asked for are not there.
        """
        if self._held is None or args:
            return None
        brought, batch, _ = self._held
        given = _identities({name: value for name, value in kwargs.items() if value is not None})
        if any(given[name] != batch.get(name) for name in given if name not in _HARMLESS):
            return None
        # Labels and weights of a loss are taken out of the batch on the way to some models.
        left_out = [name for name in batch if name not in given and name != "labels"]
        return None if left_out and set(left_out) & _inputs(model) else brought


def _identities(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: (v.data_ptr(), v._version, v.shape, v.stride()) if isinstance(v, torch.Tensor) else id(v)
        for name, v in batch.items()
        if v is not None
    }


def _inputs(model: nn.Module) -> set[str]:
    return set(inspect.signature(beneath_adapters(model)[0].forward).parameters)
