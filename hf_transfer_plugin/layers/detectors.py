"""Layer groups of detectors: a backbone, an encoder of its maps, a decoder of queries, and what reads boxes off."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_transfer_plugin.layers.groups import LayerGroup, LayerGroups
from hf_transfer_plugin.layers.naming import locked_parameters, parameters_by_name, unwrapped_name
from hf_transfer_plugin.layers.probe import record_calls

# What tells class and place of an object, also what chooses the queries by these; a new set of classes makes it new.
_HEAD = re.compile(
    r"(^|\.)(class_labels_classifier|bbox_predictor|class_embed|bbox_embed|enc_score_head|enc_bbox_head"
    r"|pre_bbox_head|lqe_layers|denoising_class_embed)(\.|$)"
)
_STAGE = re.compile(r"(?P<path>.*?(?:stages|layers?|blocks?)\.\d+)\.")
_LAYER = re.compile(r"(?P<path>layers\.\d+)\.")
_QUERIES = re.compile(r"quer\w*embed|refpoint_embed|tgt_embed")
_ASKING = re.compile(r"reference_points|enc_output|decoder_|pos_trans|query")
PARTS = ("backbone", "encoder", "decoder")


def detector_layer_groups(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> LayerGroups | None:
    """
    Groups of a model such as DETR: the stem of the backbone with the embeddings of queries, one group a stage, one a
    layer of the encoder (or the encoder as one), one a layer of the decoder, and the head, wherever it is kept. What
    lies between two parts belongs to the latter, such as the projection of maps to the encoder's first layer.

    Args:
        model (`nn.Module`):
            A model.
        inputs (`Mapping[str, Any]`, *optional*):
            A real batch for the check that the parts run in this order.

    Returns:
        `LayerGroups` or `None`: The groups; `None` for models without a backbone, a decoder and a head.
    """
    base = getattr(model, getattr(model, "base_model_prefix", "") or "model", None)
    if not isinstance(base, nn.Module) or not all(isinstance(getattr(base, p, None), nn.Module) for p in PARTS[::2]):
        return None
    prefix = next(name for name, module in model.named_modules() if module is base)
    names = [unwrapped_name(name) for name in parameters_by_name(model)]
    head = [name for name in names if _HEAD.search(name)]
    if not head:
        return None
    members: dict[str, list[str]] = {}
    parts = {part: [n for n in names if n.startswith(f"{prefix}.{part}.") and n not in head] for part in PARTS}
    for name in parts["backbone"]:
        members.setdefault(_stage(name, f"{prefix}."), []).append(name)
    for part in PARTS[1:]:
        for name in parts[part]:
            members.setdefault(_layer(name, f"{prefix}.", part), []).append(name)
    _place_between(members, [n for n in names if n not in {*head, *sum(parts.values(), [])}], prefix)
    ordered = [*_closed(members), ("head", head)]
    return LayerGroups(
        [LayerGroup(name, tuple(found)) for name, found in ordered],
        model,
        rule="detector: backbone, encoder, decoder, head",
        verified=_runs_in_order(model, prefix, inputs),
        locked=locked_parameters(model),
    )


def _stage(name: str, prefix: str) -> str:
    found = _STAGE.match(name.removeprefix(prefix))
    return found["path"] if found else "embeddings"


def _layer(name: str, prefix: str, part: str) -> str:
    """`decoder.layers.1`; norms and projections beside the layers get a name of their own for now."""
    inner = name.removeprefix(f"{prefix}{part}.")
    found = _LAYER.match(inner)
    return f"{part}.{found['path']}" if found else f"{part}."


def _place_between(members: dict[str, list[str]], others: list[str], prefix: str) -> None:
    """Parameters beside the parts: what projects maps goes to the encoder, what chooses queries to the decoder."""
    for name in others:
        inner = name.removeprefix(f"{prefix}.")
        if _QUERIES.match(inner):
            members.setdefault("embeddings", []).append(name)
        else:
            members.setdefault("decoder." if _ASKING.match(inner) else "encoder.", []).append(name)


def _closed(members: Mapping[str, list[str]]) -> list[tuple[str, list[str]]]:
    """The groups in their order; what has no layer of its own goes to the first of its part, a norm to the last."""
    found = [(name, list(values)) for name, values in members.items() if not name.endswith(".")]
    groups = [one for one in found if one[0].partition(".")[0] not in PARTS[1:]]
    groups.sort(key=lambda one: one[0] != "embeddings")
    for part in PARTS[1:]:
        own = [one for one in found if one[0].startswith(f"{part}.layers.")]
        loose = members.get(f"{part}.", [])
        if loose and own:
            last = [name for name in loose if re.search(r"\.(layer)?norm\.", name)]
            own[0][1].extend(name for name in loose if name not in last)
            own[-1][1].extend(last)
        elif loose:
            own = [(part, list(loose))]
        groups += own
    return groups


def _runs_in_order(model: nn.Module, prefix: str, inputs: Mapping[str, Any] | None) -> bool:
    order = record_calls(model, {}, inputs)
    if order is None:
        return False
    moments = [order.moment(f"{prefix}.{part}") for part in PARTS]
    ran = [moment for moment in moments if moment >= 0]
    return len(ran) > 1 and ran == sorted(ran)
