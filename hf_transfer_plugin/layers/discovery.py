"""From a model to its layer groups: the user's patterns, a layout confirmed by a forward pass, or a coarse cut."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_transfer_plugin.layers.detectors import detector_layer_groups
from hf_transfer_plugin.layers.groups import LayerGroup, LayerGroups, check_patterns
from hf_transfer_plugin.layers.naming import (
    beneath_adapters,
    input_embeddings,
    is_flattened,
    locked_parameters,
    parameters_by_name,
    unwrapped_model,
    unwrapped_name,
)
from hf_transfer_plugin.layers.probe import CallOrder, record_calls
from hf_transfer_plugin.layers.stacks import Layout, candidate_layouts, find_stacks
from hf_transfer_plugin.layers.timm_groups import timm_layer_groups

_HEAD = re.compile(r"pool|head|classif|score|(^|\.)cls(\.|$)|logit_scale|logit_bias|temperature|_projection")
_POOLER = re.compile(r"pool|(^|\.)head\.")
_TASK = re.compile(rf"{_HEAD.pattern}|(^|\.)fc(\.|$)|projector")


def discover_layer_groups(
    model: nn.Module, patterns: Sequence[str] | None = None, *, inputs: Mapping[str, Any] | None = None
) -> LayerGroups:
    """
    Divides the parameters of a model into ordered layer groups: embeddings, one group a block, head.

    Tried in this order: the user's patterns; what a model of timm states itself (`group_matcher`); the parts of a
    detector (backbone, encoder, decoder, head); family rules
    (encoder-decoder, towers, stages, shared weights); the largest list of same-class modules; `embeddings`, `body`,
    `head`. The towers of a multimodal model follow one another, the language model last; the groups are unverified
    until a batch has run them all. A forward pass on dummy inputs checks that the blocks run in the order found. It
    leaves mode, buffers and random state of the model untouched.

    In a model with PEFT's adapters, each adapter belongs to the group of the layer that it sits in (prompts to the
    embeddings), and what is frozen now, the base weights, is locked: no strategy lets it learn.

    Args:
        model (`nn.Module`):
            A Transformers model, perhaps with adapters, or any module.
        patterns (`Sequence[str]`, *optional*):
            Regular expressions, input first; each makes one group of the parameters that it matches
            (`re.search`, the first match counts). Together they must match every parameter.
        inputs (`Mapping[str, Any]`, *optional*):
            A real batch for the check, where dummy inputs do not fit the model. A tower that it leaves idle, as a
            text does a vision tower, goes with the embeddings.

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
    if is_flattened(model):
        whole = LayerGroup("model", tuple(parameters_by_name(model)))
        return LayerGroups([whole], model, rule="flattened by FSDP", verified=True)
    inner, prefix = beneath_adapters(model)
    if prefix:
        return _over_adapters(discover_layer_groups(inner, inputs=inputs), model, prefix)
    stated = timm_layer_groups(model, inputs) or detector_layer_groups(model, inputs)
    if stated is not None:
        return stated
    stacks = find_stacks(model)
    watched = {block for stack in stacks for block in stack.blocks}
    order = record_calls(model, {name: module for name, module in model.named_modules() if name in watched}, inputs)
    if inputs is not None and order is not None:
        # A tower that a real batch does not run, as a text runs no vision tower, is none.
        stacks = [stack for stack in stacks if order.moment(stack.blocks[0]) >= 0]
    layouts = candidate_layouts(model, stacks, order)
    tied = _has_tied_head(model)
    if order is None:
        layout, verified = (layouts[0] if layouts else None), False
    else:
        layout = _confirmed(layouts, order)
        verified = layout is not None and layout.ran
    if layout is None:
        return _coarse(model, tied)
    names = _assign(model, layout, order, tied)
    ordered = ("embeddings", *layout.names, "head")
    groups = [LayerGroup(group, tuple(p for p, g in names.items() if g == group)) for group in ordered]
    return LayerGroups(
        groups,
        model,
        rule=unwrapped_name(layout.rule),
        verified=verified,
        tied_head=tied,
        locked=locked_parameters(model),
    )


def _over_adapters(found: LayerGroups, model: nn.Module, prefix: str) -> LayerGroups:
    """The groups of the model inside, under the names that they have in PEFT's, which may add prompts."""
    groups = [LayerGroup(group.name, tuple(f"{prefix}{name}" for name in group.parameters)) for group in found]
    known = {name for group in groups for name in group.parameters}
    prompts = tuple(name for name in parameters_by_name(model) if name not in known)
    if prompts and groups[0].name == "embeddings":
        groups[0] = LayerGroup("embeddings", prompts + groups[0].parameters)
    elif prompts:
        groups.insert(0, LayerGroup("embeddings", prompts))
    return LayerGroups(
        groups,
        model,
        rule=found.rule,
        verified=found.verified,
        tied_head=found.tied_head,
        locked=locked_parameters(model),
    )


def _confirmed(layouts: Sequence[Layout], order: CallOrder) -> Layout | None:
    """
    First layout of several towers whose blocks run in order, or of one whose blocks hand their output on; failing
    that, the first of any whose blocks run in order.
    """
    for strict in (True, False):
        for layout in layouts:
            agrees = order.chained if strict and len(layout.chains) == 1 else order.in_order
            running = [chain for chain in layout.chains if layout.ran or order.moment(chain[0][0]) >= 0]
            after_another = [link for chain in running for link in chain]
            if all(agrees(chain) for chain in running) and (layout.parallel or order.in_order(after_another)):
                return layout
    return None


def _from_patterns(model: nn.Module, patterns: Sequence[str]) -> LayerGroups:
    check_patterns(patterns)
    members: dict[str, list[str]] = {pattern: [] for pattern in patterns}
    for name in parameters_by_name(model):
        pattern = next((p for p in patterns if re.search(p, name)), None)
        if pattern is not None:
            members[pattern].append(name)
    empty = [pattern for pattern, names in members.items() if not names]
    if empty:
        raise ValueError(
            f"Every pattern must match a parameter that no earlier one matches, but {empty} match none in "
            f"{type(model).__name__}. Its parameters begin with "
            f"{', '.join(list(parameters_by_name(model))[:3])}."
        )
    groups = [LayerGroup(pattern, tuple(names)) for pattern, names in members.items()]
    return LayerGroups(
        groups,
        model,
        rule="patterns given by the user",
        verified=True,
        tied_head=_has_tied_head(model),
        locked=locked_parameters(model),
    )


def _coarse(model: nn.Module, tied: bool) -> LayerGroups:
    embedding = input_embeddings(model)
    held = {id(p) for p in embedding.parameters()} if embedding is not None else set()
    members: dict[str, list[str]] = {"embeddings": [], "body": [], "head": []}
    for name, parameter in parameters_by_name(model).items():
        outside = _outside_base(model, name)
        members["embeddings" if id(parameter) in held else "head" if outside and not tied else "body"].append(name)
    groups = [LayerGroup(name, tuple(names)) for name, names in members.items()]
    return LayerGroups(
        groups,
        model,
        rule="coarse: embeddings, body, head",
        verified=False,
        tied_head=tied,
        locked=locked_parameters(model),
    )


def _looked_up(model: nn.Module) -> set[int]:
    """Parameters of every embedding: a decoder's may be another than the one that the model calls its input."""
    tables = [input_embeddings(model), *(m for m in model.modules() if isinstance(m, nn.Embedding))]
    return {id(parameter) for table in tables if table is not None for parameter in table.parameters()}


def _output_parameters(model: nn.Module) -> set[int]:
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return {id(p) for p in output.parameters()} if isinstance(output, nn.Module) else set()


def _has_tied_head(model: nn.Module) -> bool:
    return bool(_output_parameters(model) & _looked_up(model))


def _outside_base(model: nn.Module, name: str) -> bool:
    """Whether a parameter stands outside the base model, that is, in the task's head."""
    return _has_base(model) and not unwrapped_name(name).startswith(f"{model.base_model_prefix}.")


def _has_base(model: nn.Module) -> bool:
    prefix = getattr(model, "base_model_prefix", "")
    return bool(prefix) and isinstance(getattr(model, prefix, None), nn.Module)


def _assign(model: nn.Module, layout: Layout, order: CallOrder | None, tied: bool) -> dict[str, str]:
    """Group of every parameter: its block's, or by the moment at which its module runs."""
    owners = {block: group for group, blocks in zip(layout.names, layout.members, strict=True) for block in blocks}
    roots = {block.split(".")[0] for block in owners}
    clock = _Clock(model, layout, order, owners)
    embedding = input_embeddings(model)
    written = _output_parameters(model)
    shared = written & _looked_up(model)
    looked_up = shared | ({id(p) for p in embedding.parameters()} if embedding is not None else set())
    result: dict[str, str] = {}
    before = "embeddings"
    for name, parameter in model.named_parameters():
        group = _block_group(name, owners)
        if group is None and id(parameter) in looked_up:
            # A tied matrix may go by the name of the output layer.
            group = "embeddings"
        if group is None and (_outside_base(model, name) or id(parameter) in written - shared):
            group = "head"
        if group is None:
            group = clock.group(name, before)
        if group == layout.names[-1] and name.split(".")[0] not in roots and _TASK.search(name):
            group = "head"
        if group == "head" and _is_passed_over(model, name):
            group = layout.names[-1]
        result[unwrapped_name(name)] = layout.names[-1] if group == "head" and tied else group
        before = group
    return result


def _is_passed_over(model: nn.Module, name: str) -> bool:
    """Sentence Transformers pools the tokens itself: the pooler of the model inside runs, but feeds nothing."""
    wraps = not isinstance(unwrapped_model(model), PreTrainedModel) and any(
        isinstance(m, PreTrainedModel) for m in model.modules()
    )
    return wraps and re.search(r"(^|\.)pooler\.", name) is not None


def _block_group(name: str, owners: Mapping[str, str]) -> str | None:
    parts = name.split(".")
    return next((owners[".".join(parts[:i])] for i in range(len(parts), 0, -1) if ".".join(parts[:i]) in owners), None)


Spans = dict[str, tuple[float, float]]


class _Clock:
    """Finds the group of a parameter outside the blocks by the moment at which its module ran."""

    def __init__(self, model: nn.Module, layout: Layout, order: CallOrder | None, owners: Mapping[str, str]) -> None:
        self.layout, self.owners = layout, owners
        # Where no part of the model is called its base, a head may lie inside one of the towers.
        self.nested = len(layout.chains) > 1 and not _has_base(model)
        self.tables = {f"{path}.weight" for path, m in model.named_modules() if isinstance(m, nn.Embedding)}
        self.listed = {name: float(i) for i, (name, _) in enumerate(model.named_parameters())}
        chains = [[block for link in chain for block in link] for chain in layout.chains]
        blocks = [block for chain in chains for block in chain]
        self.moments = {name: m for name in self.listed if (m := _moment(name, order, blocks)) is not None}
        self.spans = [_spans(self.moments, chain) for chain in chains]
        self.places = [_spans(self.listed, chain) for chain in chains]

    def group(self, name: str, before: str) -> str:
        """`before` is the group of the parameter listed before."""
        if self.layout.parallel and _HEAD.search(name) and "embed" not in name:
            return "head"
        near = [_shared_depth(name, next(iter(chain))) for chain in self.places]
        own = near.index(max(near)) if len(near) == 1 or (max(near) and near.count(max(near)) == 1) else None
        now = self.moments.get(name)
        ran = [chain for chain in self.spans if chain]
        if now is None and ran and (len(self.spans) == 1 or name in self.tables):
            # Read without a call, as the queries of DETR are.
            return "embeddings"
        if now is None or not ran:
            return before if own is None else self._after(self.listed[name], self.places[own], name)
        if now > max(last for chain in ran for _, last in chain.values()):
            return self._closing(name)
        if own is not None and self.spans[own]:
            return _within(now, self.spans[own], self.owners)
        if own is not None:
            return _within(self.listed[name], self.places[own], self.owners)
        if self.layout.parallel:
            return "embeddings"
        return _within(now, {block: span for chain in ran for block, span in chain.items()}, self.owners)

    def _after(self, place: float, chain: Spans, name: str) -> str:
        if place > max(last for _, last in chain.values()) and chain is self.places[-1]:
            return self._closing(name)
        return _within(place, chain, self.owners)

    def _closing(self, name: str) -> str:
        """After the last block: a pooler is the task's, a final norm or projection closes the body."""
        is_head = _POOLER.search(name) or (self.nested and _HEAD.search(name))
        return "head" if is_head else self.layout.names[-1]


def _moment(name: str, order: CallOrder | None, blocks: Sequence[str]) -> float | None:
    """When a parameter's module (or the nearest ancestor that ran and holds no blocks) was entered."""
    if order is None:
        return None
    parts = name.split(".")[:-1]
    own = ".".join(parts)
    for path in (".".join(parts[:i]) for i in range(len(parts), -1, -1)):
        if path in order.entered:
            holds_blocks = path != own and any(block.startswith(f"{path}." if path else "") for block in blocks)
            return None if holds_blocks else float(order.entered[path])
    return None


def _spans(times: Mapping[str, float], chain: Sequence[str]) -> Spans:
    """First and last moment of each block that ran."""
    spans = {}
    for block in chain:
        found = [moment for name, moment in times.items() if name.startswith(f"{block}.")]
        if found:
            spans[block] = (min(found), max(found))
    return spans


def _shared_depth(name: str, other: str) -> int:
    """How many leading parts two dotted names have in common."""
    same = [a == b for a, b in zip(name.split("."), other.split("."), strict=False)]
    return same.index(False) if False in same else len(same)


def _within(now: float, chain: Mapping[str, tuple[float, float]], owners: Mapping[str, str]) -> str:
    """Before the first block: embeddings; between two (a stage's downsampling): the earlier; after: the last."""
    before = [block for block, (first, _) in chain.items() if first < now]
    return owners[before[-1]] if before else "embeddings"
