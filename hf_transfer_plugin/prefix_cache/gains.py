"""What a cut saves, and whether training itself shows what it would store."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_transfer_plugin.freezing import FrozenModules
from hf_transfer_plugin.layers.probe import untouched
from hf_transfer_plugin.prefix_cache.cuts import Cut
from hf_transfer_plugin.prefix_cache.passage import Catcher


def skipped_share(model: nn.Module, cut: Cut, batch: Mapping[str, Any]) -> float:
    """
    Args:
        model (`nn.Module`):
            The model; left as it was.
        cut (`Cut`):
            The cut.
        batch (`Mapping[str, Any]`):
            A batch on its device.

    Returns:
        `float`: Share of the floating-point operations of a forward pass that need not be done.
    """
    # The counter hooks itself to inputs that have gradients, as those of checkpointed blocks are made to.
    with untouched(model), torch.enable_grad(), cut.passage(model).installed() as passage:
        with FlopCounterMode(display=False) as whole:
            caught, _ = passage.watch(batch)
        with FlopCounterMode(display=False) as rest:
            passage.run(batch, cut.pick(caught))
    return 1 - rest.get_total_flops() / max(whole.get_total_flops(), 1)


def catches_alike(model: nn.Module, cut: Cut, learning: frozenset[str], batch: Mapping[str, Any]) -> bool:
    """
    Whether the model in training hands on the same as in evaluation. Dropout that a model applies without a module of
    its own, between frozen layers, is not held still.

    Args:
        model (`nn.Module`):
            The model; left as it was.
        cut (`Cut`):
            The cut.
        learning (`frozenset[str]`):
            Names of the parameters that learn.
        batch (`Mapping[str, Any]`):
            A batch on its device.

    Returns:
        `bool`: Whether it does.
    """
    catcher, still = Catcher(model, cut.addresses), FrozenModules(model)
    try:
        with untouched(model):
            calm = dict(catcher.run(batch, model))
            model.train()
            still.update(learning)
            trained = dict(catcher.run(batch, model))
    finally:
        still.release()
        catcher.remove()
    return all(torch.equal(value, trained[address]) for address, value in calm.items())
