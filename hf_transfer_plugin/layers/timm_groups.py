"""Layer groups of timm's models, which state them themselves: `group_matcher` tells how deep a parameter lies."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from hf_transfer_plugin.layers.groups import LayerGroup, LayerGroups
from hf_transfer_plugin.layers.naming import locked_parameters, parameters_by_name, unwrapped_name
from hf_transfer_plugin.layers.probe import record_calls

WRAPPED = "timm_model"  # what Transformers' TimmWrapper calls the model inside


def timm_model_of(model: nn.Module) -> tuple[nn.Module | None, str]:
    """
    Args:
        model (`nn.Module`):
            A model.

    Returns:
        `tuple[nn.Module or None, str]`: The model of timm that states its groups, itself or inside Transformers'
        wrapper, and the prefix of its names; `None` where there is none.
    """
    inner = getattr(model, WRAPPED, None)
    found, prefix = (inner, f"{WRAPPED}.") if isinstance(inner, nn.Module) else (model, "")
    stated = type(found).__module__.startswith("timm.") and hasattr(found, "group_matcher")
    return (found, prefix) if stated else (None, "")


def timm_layer_groups(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> LayerGroups | None:
    """
    Groups as timm's own layer-wise learning rates have them, input first: the stem, one group a block, and what
    comes after the last block with the classifier.

    Args:
        model (`nn.Module`):
            A model of timm, or Transformers' wrapper of one.
        inputs (`Mapping[str, Any]`, *optional*):
            A real batch for the check that the groups run in this order.

    Returns:
        `LayerGroups` or `None`: The groups; `None` for models that are not timm's.
    """
    inner, prefix = timm_model_of(model)
    if inner is None:
        return None
    matcher = inner.group_matcher(coarse=False)  # type: ignore[operator]
    numbered = import_module("timm.models").group_parameters(inner, matcher)
    members = [tuple(unwrapped_name(name) for name in names) for _, names in sorted(numbered.items())]
    head = _classifier(inner)
    if head:
        # Some matchers leave the classifier to the last block.
        members = [tuple(name for name in names if name not in head) for names in members[:-1]] + [members[-1]]
        if not head & set(members[-1]):
            members.append(tuple(sorted(head)))
    members = [names for names in members if names]
    named = _names(members, has_head=bool(head))
    groups = [
        LayerGroup(name, tuple(f"{prefix}{one}" for one in names)) for name, names in zip(named, members, strict=True)
    ]
    return LayerGroups(
        groups,
        model,
        rule=f"timm's group_matcher of {type(inner).__name__}",
        verified=_runs_in_order(model, inner, members, prefix, inputs),
        locked=locked_parameters(model),
    )


def _classifier(inner: nn.Module) -> set[str]:
    """Names of the classifier's parameters; some models have two, as DeiT has for its teacher."""
    ask: Any = getattr(inner, "get_classifier", None)
    found = ask() if ask is not None else None
    heads = found if isinstance(found, (tuple, list)) else [found]
    held = {id(p) for head in heads if isinstance(head, nn.Module) for p in head.parameters()}
    return {name for name, p in parameters_by_name(inner).items() if id(p) in held}


def _names(members: list[tuple[str, ...]], *, has_head: bool) -> list[str]:
    """Each group by the path that its parameters share, those beside them apart: `layer1.0`, `blocks.3`."""
    names: list[str] = []
    for place, parameters in enumerate(members):
        paths = [name.split(".")[:-1] for name in parameters]
        shared = paths[0]
        for path in paths:
            same = [a == b for a, b in zip(shared, path, strict=False)]
            kept = same.index(False) if False in same else len(same)
            # A norm after the last block stands on a path of its own.
            shared = shared[:kept] if kept else shared
        name = ".".join(shared) or f"group.{place}"
        names.append(f"{name}.{place}" if name in names else name)
    names[0] = "embeddings"
    if has_head and len(names) > 1:
        names[-1] = "head"
    return names


def _runs_in_order(
    model: nn.Module, inner: nn.Module, members: list[tuple[str, ...]], prefix: str, inputs: Mapping[str, Any] | None
) -> bool:
    if inputs is None:
        channels, *size = (getattr(inner, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
        # A transformer may have been made for other images than it was pretrained on.
        size = getattr(getattr(inner, "patch_embed", None), "img_size", None) or size
        parameter = next(model.parameters())
        zeros = torch.zeros(1, channels, *size, device=parameter.device, dtype=parameter.dtype)
        inputs = {"pixel_values" if prefix else "x": zeros}
    order = record_calls(model, {}, inputs)
    if order is None:
        return False
    moments = [
        [order.entered[path] for name in names if (path := f"{prefix}{name.rpartition('.')[0]}") in order.entered]
        for names in members
    ]
    firsts = [min(found) for found in moments if found]
    return firsts == sorted(firsts)
