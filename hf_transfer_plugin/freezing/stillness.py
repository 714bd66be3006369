"""Frozen modules hold still: no dropout, no moving statistics."""

from functools import partial
from typing import Any

import torch
from torch import nn

from hf_transfer_plugin.layers import parameters_by_name
from hf_transfer_plugin.layers.hands import OwnHook, OwnMethod


class FrozenModules:
    """
    Keeps frozen modules still: in eval mode, so that BatchNorm statistics do not move and dropout does not fire.
    `model.train()`, which Trainer calls at every step, would undo an `eval()`; here it does not reach them. A forward
    pre-hook sees to it that no other hand does.

    Args:
        model (`nn.Module`):
            The model.
        keep_dropout (`bool`, *optional*, defaults to `False`):
            Hold only running statistics still, and let frozen modules drop out as they did in pre-training.
    """

    def __init__(self, model: nn.Module, *, keep_dropout: bool = False) -> None:
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._held: list[nn.Module] = []
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
            self._handles.append(module.register_forward_pre_hook(OwnHook(_be_still), prepend=True))
            if "train" not in module.__dict__:
                module.eval()
                module.__dict__["train"] = OwnMethod(module, "train", partial(_stay, module))
                self._held.append(module)

    def release(self) -> None:
        """Takes the hands off; the modules are in the mode of the model again."""
        for handle in self._handles:
            handle.remove()
        for module in self._held:
            del module.__dict__["train"]
            module.train(self._model.training)
        self._handles, self._held = [], []


def _be_still(module: nn.Module, args: Any) -> None:
    if module.training:
        # Past `train`, which is held.
        type(module).train(module, False)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """What `module.train(mode)` does as long as the module is held."""
    return module


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
            # The dropout of an adapter follows the layer that it adapts, and is the adapter's own.
            adapted = child is getattr(module, "base_layer", None)
            frozen_before = visit(child, frozen_before) and not adapted
        return bool(names) and names[-1] not in learning

    visit(model, False)
    return chosen
