"""From a model to its layer groups: the user's patterns, a layout confirmed by a forward pass, or a coarse cut."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hf_transfer_plugin.layers.groups import LayerGroup, LayerGroups, check_patterns
from hf_transfer_plugin.layers.probe import CallOrder, record_calls
from hf_transfer_plugin.layers.stacks import Layout, candidate_layouts

_HEAD = re.compile(r"pool|head|classif|score|(^|\.)cls(\.|$)|logit_scale|logit_bias|temperature|_projection")
_POOLER = re.compile(r"pool|(^|\.)head\.")
_TASK = re.compile(rf"{_HEAD.pattern}|(^|\.)fc(\.|$)|projector")


def discover_layer_groups(
    model: nn.Module, patterns: Sequence[str] | None = None, *, inputs: Mapping[str, Any] | None = None
) -> LayerGroups:
    """
    Divides the parameters of a model into ordered layer groups: embeddings, one group a block, head.

    Tried in this order: the user's patterns; family rules (encoder-decoder, two towers, stages, shared weights); the
    largest list of same-class modules; `embeddings`, `body`, `head`. A forward pass on dummy inputs checks that the
    blocks run in the order found. It leaves mode, buffers and random state of the model untouched.

    Args:
        model (`nn.Module`):
            A Transformers model, or any module.
        patterns (`Sequence[str]`, *optional*):
            Regular expressions, input first; each makes one group of the parameters that it matches
            (`re.search`, the first match counts). Together they must match every parameter.
        inputs (`Mapping[str, Any]`, *optional*):
            A real batch for the check, where dummy inputs do not fit the model.

    Returns:
        `LayerGroups`: The groups, input first, head last.

    Raises:
        ValueError: If a pattern matches nothing, or the patterns leave a parameter out.

    Example:
    ```python
    >>> print(discover_layer_groups(model).summary())
    embeddings, layer.0 ... layer.5, head
    ```
    """
    if patterns is not None:
        return _from_patterns(model, patterns)
    layouts = candidate_layouts(model)
    watched = {block for layout in layouts for chain in layout.chains for block in chain}
    order = record_calls(model, {name: module for name, module in model.named_modules() if name in watched}, inputs)
    tied = _has_tied_head(model)
    if order is None:
        layout, verified = (layouts[0] if layouts else None), False
    else:
        layout, verified = _confirmed(layouts, order), True
    if layout is None:
        return _coarse(model, tied)
    names = _assign(model, layout, order, tied)
    ordered = ("embeddings", *layout.names, "head")
    groups = [LayerGroup(group, tuple(p for p, g in names.items() if g == group)) for group in ordered]
    return LayerGroups(groups, model, rule=layout.rule, verified=verified, tied_head=tied)


def _confirmed(layouts: Sequence[Layout], order: CallOrder) -> Layout | None:
    """First layout whose blocks hand their output on; failing that, the first whose blocks run in order."""
    for agrees in (order.chained, order.in_order):
        for layout in layouts:
            if all(agrees(list(chain)) for chain in layout.chains):
                return layout
    return None


def _from_patterns(model: nn.Module, patterns: Sequence[str]) -> LayerGroups:
    check_patterns(patterns)
    members: dict[str, list[str]] = {pattern: [] for pattern in patterns}
    for name, _ in model.named_parameters():
        pattern = next((p for p in patterns if re.search(p, name)), None)
        if pattern is not None:
            members[pattern].append(name)
    empty = [pattern for pattern, names in members.items() if not names]
    if empty:
        raise ValueError(
            f"Every pattern must match a parameter that no earlier one matches, but {empty} match none in "
            f"{type(model).__name__}. Its parameters begin with "
            f"{', '.join(name for name, _ in list(model.named_parameters())[:3])}."
        )
    groups = [LayerGroup(pattern, tuple(names)) for pattern, names in members.items()]
    return LayerGroups(
        groups, model, rule="patterns given by the user", verified=True, tied_head=_has_tied_head(model)
    )


def _coarse(model: nn.Module, tied: bool) -> LayerGroups:
    embedding = _input_embeddings(model)
    held = {id(p) for p in embedding.parameters()} if embedding is not None else set()
    members: dict[str, list[str]] = {"embeddings": [], "body": [], "head": []}
    for name, parameter in model.named_parameters():
        outside = _outside_base(model, name)
        members["embeddings" if id(parameter) in held else "head" if outside and not tied else "body"].append(name)
    groups = [LayerGroup(name, tuple(names)) for name, names in members.items()]
    return LayerGroups(groups, model, rule="coarse: embeddings, body, head", verified=False, tied_head=tied)


def _input_embeddings(model: nn.Module) -> nn.Module | None:
    try:
        found = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


def _has_tied_head(model: nn.Module) -> bool:
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(output, nn.Module):
        return False
    inside = {id(p) for m in [_input_embeddings(model)] if m is not None for p in m.parameters()}
    return any(id(parameter) in inside for parameter in output.parameters())


def _outside_base(model: nn.Module, name: str) -> bool:
    """Whether a parameter stands outside the base model, that is, in the task's head."""
    prefix = getattr(model, "base_model_prefix", "")
    has_base = bool(prefix) and isinstance(getattr(model, prefix, None), nn.Module)
    return has_base and not name.startswith(f"{prefix}.")


def _assign(model: nn.Module, layout: Layout, order: CallOrder | None, tied: bool) -> dict[str, str]:
    """Group of every parameter: its block's, or by the moment at which its module runs."""
    owners = {block: group for group, blocks in zip(layout.names, layout.members, strict=True) for block in blocks}
    roots = {block.split(".")[0] for block in owners}
    moments = _moments(model, order)
    spans = _spans(moments, layout)
    embedding = _input_embeddings(model)
    looked_up = {id(p) for p in embedding.parameters()} if embedding is not None else set()
    result = {}
    for name, parameter in model.named_parameters():
        group = _block_group(name, owners)
        if group is None and id(parameter) in looked_up:
            # A tied matrix may go by the name of the output layer.
            group = "embeddings"
        if group is None and _outside_base(model, name):
            group = "head"
        if group is None:
            group = _by_moment(name, moments, spans, layout, owners)
        if group == layout.names[-1] and name.split(".")[0] not in roots and _TASK.search(name):
            group = "head"
        if group == "head" and _is_passed_over(model, name):
            group = layout.names[-1]
        result[name] = layout.names[-1] if group == "head" and tied else group
    return result


def _is_passed_over(model: nn.Module, name: str) -> bool:
    """A pooler in the first module of a Sentence Transformer, whose own pooling takes the hidden states instead."""
    last = next(reversed(model._modules), "") if isinstance(model, nn.Sequential) else ""
    return bool(last) and not name.startswith(f"{last}.") and bool(_POOLER.search(name))


def _spans(moments: Mapping[str, float], layout: Layout) -> list[dict[str, tuple[float, float]]]:
    """First and last moment of each block, for each chain."""
    spans = []
    for chain in layout.chains:
        times = {block: [m for p, m in moments.items() if p.startswith(f"{block}.")] or [0.0] for block in chain}
        spans.append({block: (min(found), max(found)) for block, found in times.items()})
    return spans


def _block_group(name: str, owners: Mapping[str, str]) -> str | None:
    parts = name.split(".")
    return next((owners[".".join(parts[:i])] for i in range(len(parts), 0, -1) if ".".join(parts[:i]) in owners), None)


def _moments(model: nn.Module, order: CallOrder | None) -> dict[str, float]:
    """When each parameter's module (or the nearest ancestor that ran) was entered; else its place in the listing."""
    names = [name for name, _ in model.named_parameters()]
    if order is None:
        return {name: float(i) for i, name in enumerate(names)}
    moments = {}
    for name in names:
        parts = name.split(".")[:-1]
        paths = (".".join(parts[:i]) for i in range(len(parts), -1, -1))
        moments[name] = float(next((order.entered[path] for path in paths if path in order.entered), 0))
    return moments


def _by_moment(
    name: str,
    moments: Mapping[str, float],
    spans: list[dict[str, tuple[float, float]]],
    layout: Layout,
    owners: Mapping[str, str],
) -> str:
    if layout.rule.startswith("two towers") and _HEAD.search(name) and not re.search(r"embed", name):
        return "head"
    now = moments[name]
    earlier = [chain for chain in spans if now > max(last for _, last in chain.values())]
    if len(earlier) == len(spans):
        # After the last block: a pooler is the task's, a final norm or projection closes the body.
        is_head = _POOLER.search(name) or (len(layout.chains) > 1 and _HEAD.search(name))
        return "head" if is_head else layout.names[-1]
    near = [_shared_depth(name, chain[0]) for chain in layout.chains]
    if len(near) == 1 or (max(near) > 0 and near.count(max(near)) == 1):
        return _within(now, spans[near.index(max(near))], owners)
    return "embeddings"


def _shared_depth(name: str, other: str) -> int:
    """How many leading parts two dotted names have in common."""
    same = [a == b for a, b in zip(name.split("."), other.split("."), strict=False)]
    return same.index(False) if False in same else len(same)


def _within(now: float, chain: Mapping[str, tuple[float, float]], owners: Mapping[str, str]) -> str:
    """Before the first block: embeddings; between two (a stage's downsampling): the earlier; after: the last."""
    before = [block for block, (first, _) in chain.items() if first < now]
    return owners[before[-1]] if before else "embeddings"
