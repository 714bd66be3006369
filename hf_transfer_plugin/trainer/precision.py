"""Weights that learn are kept in 32 bits, those that never do stay as they were loaded."""

import logging
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)
_HALVES = (torch.float16, torch.bfloat16)


def keep_master_weights(model: nn.Module, learning: AbstractSet[str], args: Any) -> int:
    """
    Turns 16-bit weights that will ever learn into 32-bit ones, also of layers that thaw later, where autocast is on.
    An update smaller than 2⁻⁸ of a bfloat16 weight would otherwise be lost, and `fp16` cannot scale 16-bit gradients.

    Modules are turned as a whole, so that none mixes two precisions.

    Args:
        model (`nn.Module`):
            The model.
        learning (`Set[str]`):
            Names of the parameters that will ever learn.
        args (`TrainingArguments`):
            The arguments; without `bf16` or `fp16` the model stays as it is.

    Returns:
        `int`: Number of entries that were turned.
    """
    owners = [module for path, module in model.named_modules() if _learns_in_half(path, module, learning)]
    if not owners or not (args.bf16 or args.fp16):
        return 0
    turned = 0
    for module in owners:
        turned += _raise_to_32_bits(module)
    logger.info("%s weights that will learn are kept in 32 bits.", f"{turned:,}")
    return turned


def unify_precision(model: nn.Module) -> int:
    """
    Turns the 16-bit weights of a model that learned in part into 32-bit ones, so that what is saved is loaded as it
    is: a folder names one precision, that of its first weight, and the others are rounded to it. Call it before a
    whole model is saved, not on one beneath adapters.

    Args:
        model (`nn.Module`):
            The model; one of a single precision stays as it is, as do quantised weights.

    Returns:
        `int`: Number of entries that were turned.
    """
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if len(kinds) < 2 or torch.float32 not in kinds:
        return 0
    turned = sum(_raise_to_32_bits(module) for module in model.modules())
    if turned:
        logger.info("%s weights are turned to 32 bits, as those that learned are.", f"{turned:,}")
    return turned


def _raise_to_32_bits(module: nn.Module) -> int:
    """Own parameters and buffers of a module; those of a quantisation library only look like 16-bit floats."""
    turned = 0
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.dtype in _HALVES and type(tensor.data) is torch.Tensor:
            tensor.data = tensor.data.float()
            turned += tensor.numel()
    return turned


def warn_of_half_weights(model: nn.Module, learning: AbstractSet[str], args: Any) -> None:
    """
    Says what it costs to train 16-bit weights without autocast.

    Args:
        model (`nn.Module`):
            The model.
        learning (`Set[str]`):
            Names of the parameters that will ever learn.
        args (`TrainingArguments`):
            The arguments.
    """
    halves = (_learns_in_half(path, module, learning) for path, module in model.named_modules())
    if not (args.bf16 or args.fp16) and any(halves):
        logger.warning(
            "The weights are 16-bit and neither `bf16` nor `fp16` is set, so small updates are rounded away. Set "
            "`bf16=True` to train 32-bit copies of the weights that learn under autocast."
        )


def _learns_in_half(path: str, module: nn.Module, learning: AbstractSet[str]) -> bool:
    own = module.named_parameters(prefix=path, recurse=False)
    return any(name in learning and parameter.dtype in _HALVES for name, parameter in own)
