"""What a collator brought, kept from the model and from user code until the model is called with that very batch."""

from collections.abc import Mapping
from typing import Any

import torch


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

    def of_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """
        Args:
            args (`tuple`):
                Arguments of a call of the model.
            kwargs (`Mapping[str, Any]`):
                Its keyword arguments.

        Returns:
            `Mapping[str, Any]` or `None`: What belongs to them. Another text, or this one changed in place, has other
            activations.
        """
        if self._held is None or args:
            return None
        brought, batch, _ = self._held
        given = _identities(kwargs)
        # Labels are taken out of the batch on the way to some models.
        same = all(given.get(name, facts if name == "labels" else None) == facts for name, facts in batch.items())
        return brought if same else None


def _identities(batch: Mapping[str, Any]) -> dict[str, Any]:
    tensors = {name: v for name, v in batch.items() if isinstance(v, torch.Tensor)}
    return {name: (v.data_ptr(), v._version, v.shape, v.stride()) for name, v in tensors.items()}
