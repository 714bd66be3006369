"""Frozen modules hold still: no dropout, no moving statistics."""

from typing import Any

import torch
from torch import nn

from hf_transfer_plugin.layers import parameters_by_name


class FrozenModules:
    """
    Keeps frozen modules still: a forward pre-hook puts them into eval mode, so that BatchNorm statistics do not move
    and dropout does not fire. `model.train()` alone would undo an `eval()`, and Trainer calls it at every step.

    Args:
        model (`nn.Module`):
            The model.
        keep_dropout (`bool`, *optional*, defaults to `False`):
            Hold only running statistics still, and let frozen modules drop out as they did in pre-training.
    """

    def __init__(self, model: nn.Module, *, keep_dropout: bool = False) -> None:
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._model, self._keep_dropout = model, keep_dropout

    def update(self, learning: frozenset[str]) -> None:
        """
        Args:
            learning (`frozenset[str]`):
                Names of the parameters that learn from now on.
        """
        self.release()
        modules = still_modules(self._model, learning)
        if self._keep_dropout:
            modules = [m for module in modules for m in module.modules() if hasattr(m, "running_mean")]
        for module in modules:
            self._handles.append(module.register_forward_pre_hook(_stilled(module), prepend=True))

    def release(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _stilled(module: nn.Module) -> Any:
    """
    A hook that does what `module.eval()` does. That call goes through every module inside by way of attributes, at
    every step, which takes longer than all else that the hooks of a step do.
    """
    inside = list(module.modules())
    usual = all(type(m).train is nn.Module.train and type(m).eval is nn.Module.eval for m in inside)
    flags = [m.__dict__ for m in inside]

    def be_still(module: nn.Module, args: Any) -> None:
        if not module.training:
            return
        if not usual:
            module.eval()
            return
        for flag in flags:
            flag["training"] = False

    return be_still


def still_modules(model: nn.Module, learning: frozenset[str]) -> list[nn.Module]:
    """
    The outermost modules whose parameters are all frozen, and the parameterless ones (dropout) that follow them.

    Args:
        model (`nn.Module`):
            The model.
        learning (`frozenset[str]`):
            Names of the parameters that learn.

    Returns:
        `list[nn.Module]`: No module in the list lies inside another.
    """
    owners = {id(p): name for name, p in parameters_by_name(model).items()}
    chosen: list[nn.Module] = []

    def visit(module: nn.Module, frozen_before: bool) -> bool:
        names = [owners[id(p)] for p in module.parameters()]
        # A dropout between two groups belongs to the one registered before it, e.g. GPT-2's after its embeddings.
        if frozen_before if not names else not any(name in learning for name in names):
            chosen.append(module)
            return True
        for child in module.children() if names else ():
            frozen_before = visit(child, frozen_before)
        return bool(names) and names[-1] not in learning

    visit(model, False)
    return chosen
