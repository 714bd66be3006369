"""Where a model keeps its blocks: lists of same-class modules, and the family rules that order several of them."""

import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

_SCALE = re.compile(r"(^|\.)(logit_scale|temperature|text_projection)")


@dataclass(frozen=True)
class Stack:
    """
    Blocks in the order in which data passes them.

    Args:
        path (`str`):
            Name of the list in `model.named_modules()`.
        blocks (`tuple[str, ...]`):
            Names of the blocks.
        size (`int`):
            Parameters in them.
    """

    path: str
    blocks: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Layout:
    """
    Blocks of a whole model as groups: `names[i]` holds the modules `members[i]`.

    Args:
        rule (`str`):
            The family rule that applied.
        names (`tuple[str, ...]`):
            Names of the groups, input first.
        members (`tuple[tuple[str, ...], ...]`):
            Module names of each group; several where towers run side by side.
        chains (`tuple[tuple[str, ...], ...]`):
            Sequences of modules that must run in this order.
    """

    rule: str
    names: tuple[str, ...]
    members: tuple[tuple[str, ...], ...]
    chains: tuple[tuple[str, ...], ...] = field(default=())


def _size(module: nn.Module) -> int:
    return sum({id(p): p.numel() for p in module.parameters()}.values())


def find_stacks(model: nn.Module, *, smallest: int = 2) -> list[Stack]:
    """
    Finds the outermost lists of blocks of the base model.

    Args:
        model (`nn.Module`):
            The model.
        smallest (`int`, *optional*, defaults to 2):
            A list must have that many modules.

    Returns:
        `list[Stack]`: The one as long as the text model first, then by size; the stages of staged vision models are
        flattened to their blocks.
    """
    stacks: list[Stack] = []
    config = getattr(model, "config", None)
    staged = any(hasattr(part, "depths") for part in (config, *vars(config).values())) if config is not None else False
    prefix = getattr(model, "base_model_prefix", "")
    base = f"{prefix}." if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{stack.path}.") for stack in stacks)
        # A list outside the base model is part of the task's head.
        is_list = isinstance(module, nn.ModuleList) and len(module) >= smallest
        if inside or not is_list or not path.startswith(base):
            continue
        assert isinstance(module, nn.ModuleList)
        if not _size(module) or not _alike(module):
            continue
        blocks = tuple(block for i, child in enumerate(module) for block in _flatten(child, f"{path}.{i}", staged))
        stacks.append(Stack(path, blocks, _size(module)))
    depth = _text_depth(config)
    return sorted(stacks, key=lambda stack: (len(stack.blocks) != depth, -stack.size))


def _alike(module: nn.ModuleList) -> bool:
    """Blocks of one class, or of several where each is a Transformers layer, as in hybrid models."""
    return len({type(child) for child in module}) == 1 or any(
        isinstance(c, GradientCheckpointingLayer) for c in module
    )


def _text_depth(config: Any) -> int | None:
    """Layers of the text model, which decides where another tower is larger."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "num_hidden_layers", None)


def _flatten(stage: nn.Module, path: str, staged: bool) -> tuple[str, ...]:
    """The blocks inside a stage; the stage itself where it has no inner list that holds most of its weights."""
    if isinstance(stage, nn.ModuleList):
        return tuple(f"{path}.{i}" for i in range(len(stage)))
    for name, inner in stage.named_modules() if staged else ():
        is_list = isinstance(inner, (nn.ModuleList, nn.Sequential)) and len(inner) > 0
        if is_list and _size(inner) > _size(stage) / 2 and len({type(child) for child in inner}) == 1:
            return tuple(f"{path}.{name}.{i}" for i in range(len(inner)))
    return (path,)


def candidate_layouts(model: nn.Module) -> list[Layout]:
    """
    Lists the layouts that a model may have, the likeliest first; a forward pass then decides.

    Args:
        model (`nn.Module`):
            The model.

    Returns:
        `list[Layout]`: The family rules that apply, then each stack alone, the largest first.
    """
    stacks = find_stacks(model)
    layouts = []
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        encoder, decoder = _side(stacks, "encoder"), _side(stacks, "decoder")
        if encoder and decoder:
            layouts.append(_in_sequence({"encoder": encoder, "decoder": decoder}))
    if len(stacks) > 1 and any(_SCALE.search(name) for name, _ in model.named_parameters()):
        layouts.append(_side_by_side(stacks))
    largest = max((stack.size for stack in stacks), default=0)
    depth = _text_depth(getattr(model, "config", None))
    layouts += [_single(stack) for stack in stacks if stack.size > largest / 20 or len(stack.blocks) == depth]
    if not layouts:
        shared = [stack for stack in find_stacks(model, smallest=1) if len(stack.blocks) == 1]
        layouts += [Layout("one block for all layers", ("shared",), (s.blocks,), (s.blocks,)) for s in shared[:1]]
    return layouts


def _side(stacks: list[Stack], side: str) -> Stack | None:
    """Largest stack whose path first speaks of this side."""
    for stack in stacks:
        found = re.search(r"encoder|decoder", stack.path)
        if found and found.group() == side:
            return stack
    return None


def _in_sequence(sides: dict[str, Stack]) -> Layout:
    named = [(f"{side}.{i}", block) for side, stack in sides.items() for i, block in enumerate(stack.blocks)]
    return Layout(
        "encoder before decoder",
        tuple(name for name, _ in named),
        tuple((block,) for _, block in named),
        tuple(stack.blocks for stack in sides.values()),
    )


def _side_by_side(stacks: list[Stack]) -> Layout:
    largest = max(stack.size for stack in stacks)
    towers = [stack.blocks for stack in stacks if stack.size > largest / 50][:2]
    depth = max(len(blocks) for blocks in towers)
    # Aligned at the output: blocks equally far from it share a group.
    members = tuple(
        tuple(blocks[len(blocks) - far] for blocks in towers if far <= len(blocks)) for far in range(depth, 0, -1)
    )
    return Layout("two towers side by side", tuple(f"towers.{i}" for i in range(depth)), members, tuple(towers))


def _single(stack: Stack) -> Layout:
    root = stack.path.rsplit(".", 1)[0] + "." if "." in stack.path else ""
    staged = any(block.count(".") > stack.path.count(".") + 1 for block in stack.blocks)
    names = tuple(block.removeprefix(root) for block in stack.blocks)
    return Layout(
        f"stages of {stack.path}" if staged else f"largest list of blocks, {stack.path}",
        names,
        tuple((block,) for block in stack.blocks),
        (stack.blocks,),
    )
