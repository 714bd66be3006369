"""Where a model keeps its blocks: lists of same-class modules, and the family rules that order several of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_transfer_plugin.layers.naming import unwrapped_name
from hf_transfer_plugin.layers.probe import CallOrder

# Where no forward pass shows the order of towers: the first pattern that a path matches ranks it.
_SIDES = (r"vision|visual|image|audio|speech", r"q_?former|perceiver|resampler|connector", r"encoder", r"")
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
        chains (`tuple[tuple[tuple[str, ...], ...], ...]`):
            Sequences whose links must run in this order; the modules of one link run in any.
        ran (`bool`, *optional*, defaults to `True`):
            Whether the forward pass ran all of it; a text alone runs no vision tower.
        parallel (`bool`, *optional*, defaults to `False`):
            Whether the chains run side by side, so that none comes before another.
    """

    rule: str
    names: tuple[str, ...]
    members: tuple[tuple[str, ...], ...]
    chains: tuple[tuple[tuple[str, ...], ...], ...]
    ran: bool = True
    parallel: bool = False


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
    staged = config is not None and any(_has_stages(part) for part in (config, *vars(config).values()))
    prefix = getattr(model, "base_model_prefix", "")
    base = f"{prefix}." if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{stack.path}.") for stack in stacks)
        # A list outside the base model is part of the task's head.
        is_list = isinstance(module, nn.ModuleList) and len(module) >= smallest
        if inside or not is_list or not unwrapped_name(path).startswith(base):
            continue
        assert isinstance(module, nn.ModuleList)
        if not _size(module) or not _alike(module):
            continue
        blocks = tuple(block for i, child in enumerate(module) for block in _flatten(child, f"{path}.{i}", staged))
        stacks.append(Stack(path, blocks, _size(module)))
    depth = _text_depth(config)
    return sorted(stacks, key=lambda stack: (len(stack.blocks) != depth, -stack.size))


def _has_stages(config: Any) -> bool:
    return hasattr(config, "depths") or isinstance(getattr(config, "depth", None), (list, tuple))


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


def candidate_layouts(model: nn.Module, stacks: Sequence[Stack], order: CallOrder | None = None) -> list[Layout]:
    """
    Lists the layouts that a model may have, the likeliest first; a forward pass then decides.

    Args:
        model (`nn.Module`):
            The model.
        stacks (`Sequence[Stack]`):
            What `find_stacks` found in it.
        order (`CallOrder`, *optional*):
            What a forward pass showed; towers are put into the order in which they ran.

    Returns:
        `list[Layout]`: The family rules that apply, then each stack alone, the largest first.
    """
    layouts = []
    towers = _towers(model, stacks)
    if len(stacks) > 1 and any(_SCALE.search(name) for name, _ in model.named_parameters()):
        layouts.append(_side_by_side(stacks))
    if len(towers) > 1:
        layouts.append(_in_sequence(towers, order))
    layouts += [_interleaved(lists) for lists in _siblings(stacks)]
    largest = max((stack.size for stack in stacks), default=0)
    depth = _text_depth(getattr(model, "config", None))
    layouts += [_single(stack) for stack in stacks if stack.size > largest / 20 or len(stack.blocks) == depth]
    if not layouts:
        shared = [stack for stack in find_stacks(model, smallest=1) if len(stack.blocks) == 1]
        layouts += [Layout("one block for all layers", ("shared",), (s.blocks,), (_links(s),)) for s in shared[:1]]
    return layouts


def _links(stack: Stack) -> tuple[tuple[str, ...], ...]:
    return tuple((block,) for block in stack.blocks)


def _towers(model: nn.Module, stacks: Sequence[Stack]) -> list[Stack]:
    """The main stack of each model inside the model: encoder and decoder, vision tower and language model."""
    inner = {name: m for name, m in model.named_modules() if isinstance(m, PreTrainedModel)}
    paired = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    towers: dict[str, list[Stack]] = {}
    for stack in stacks:
        owner = max((n for n in inner if not n or stack.path.startswith(f"{n}.")), key=len, default="")
        side = re.search(r"encoder|decoder", stack.path)
        if paired and side and not re.search(r"encoder|decoder", owner):
            owner = f"{owner}.{side.group()}"
        towers.setdefault(owner, []).append(stack)
    mains = {owner: _main(found, inner.get(owner)) for owner, found in towers.items()}
    depth = _text_depth(getattr(model, "config", None))

    def stands_around(owner: str, stack: Stack) -> bool:
        """What lies around a larger model, such as the convolutions before it, is no tower; the text model is one."""
        inside = [mains[o] for o in mains if o != owner and o.startswith(f"{owner}." if owner else "")]
        return len(stack.blocks) != depth and any(stack.size < other.size for other in inside)

    return [stack for owner, stack in mains.items() if not stands_around(owner, stack)]


def _main(stacks: list[Stack], owner: nn.Module | None) -> Stack:
    depth = getattr(getattr(owner, "config", None), "num_hidden_layers", None)
    return max(stacks, key=lambda stack: (len(stack.blocks) == depth, stack.size))


def _siblings(stacks: Sequence[Stack]) -> list[list[Stack]]:
    """Lists that one module keeps side by side and that are equally long: the parts of its layers."""
    found: dict[tuple[str, int], list[Stack]] = {}
    for stack in stacks:
        found.setdefault((stack.path.rpartition(".")[0], len(stack.blocks)), []).append(stack)
    return [lists for lists in found.values() if len(lists) > 1]


def _interleaved(lists: list[Stack]) -> Layout:
    parts = tuple(zip(*(stack.blocks for stack in lists), strict=True))
    names = tuple(f"layers.{i}" for i in range(len(parts)))
    return Layout("parts of a layer in lists of their own", names, parts, (parts,))


def _in_sequence(towers: list[Stack], order: CallOrder | None) -> Layout:
    def place(stack: Stack) -> tuple[int, float]:
        moment = order.moment(stack.blocks[0]) if order is not None else -1
        # A tower that did not run feeds those that did, as images feed a language model.
        guess = next(i for i, side in enumerate(_SIDES) if re.search(side, stack.path))
        return (1, moment) if moment >= 0 else (0, guess)

    ran = order is not None and all(order.moment(stack.blocks[0]) >= 0 for stack in towers)
    towers = sorted(towers, key=place)
    sides = [found.group() if (found := re.search(r"encoder|decoder", s.path)) else "" for s in towers]
    if sides == ["encoder", "decoder"]:
        rule, roots = "encoder before decoder", sides
    else:
        rule, roots = "towers in the order in which they run", _tails([stack.path for stack in towers])
    named = [(_name(r, stack, block), block) for r, stack in zip(roots, towers, strict=True) for block in stack.blocks]
    return Layout(
        rule,
        tuple(name for name, _ in named),
        tuple((block,) for _, block in named),
        tuple(_links(stack) for stack in towers),
        ran=ran,
    )


def _name(root: str, stack: Stack, block: str) -> str:
    inside = block.removeprefix(f"{stack.path}.") if root not in ("encoder", "decoder") else ""
    return f"{root}.{inside}" if inside else f"{root}.{stack.blocks.index(block)}"


def _tails(paths: list[str]) -> list[str]:
    """The paths without the parts that all of them begin with."""
    parts = [path.split(".") for path in paths]
    same = next(i for i, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1)
    return [".".join(part[same:]) for part in parts]


def _side_by_side(stacks: Sequence[Stack]) -> Layout:
    largest = max(stack.size for stack in stacks)
    towers = [stack.blocks for stack in stacks if stack.size > largest / 50][:2]
    depth = max(len(blocks) for blocks in towers)
    # Aligned at the output: blocks equally far from it share a group.
    members = tuple(
        tuple(blocks[len(blocks) - far] for blocks in towers if far <= len(blocks)) for far in range(depth, 0, -1)
    )
    chains = tuple(tuple((block,) for block in blocks) for blocks in towers)
    return Layout(
        "two towers side by side", tuple(f"towers.{i}" for i in range(depth)), members, chains, parallel=True
    )


def _single(stack: Stack) -> Layout:
    root = stack.path.rsplit(".", 1)[0] + "." if "." in stack.path else ""
    staged = any(block.count(".") > stack.path.count(".") + 1 for block in stack.blocks)
    return Layout(
        f"stages of {stack.path}" if staged else f"largest list of blocks, {stack.path}",
        tuple(block.removeprefix(root) for block in stack.blocks),
        _links(stack),
        (_links(stack),),
    )
