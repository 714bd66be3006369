"""What stored activations depend on besides the row: a store under another description is never used."""

import json
from typing import Any

import torch
import transformers
import xxhash
from torch import nn

from hf_transfer_plugin.freezing import still_modules
from hf_transfer_plugin.layers import parameters_by_name, unwrapped_name
from hf_transfer_plugin.prefix_cache.cuts import Cut
from hf_transfer_plugin.prefix_cache.entries import Part
from hf_transfer_plugin.prefix_cache.proving import Place

# What a config says of the user's files and labels, not of the activations.
_ASIDE = {
    "_name_or_path",
    "transformers_version",
    "architectures",
    "id2label",
    "label2id",
    "problem_type",
    "torch_dtype",
}


def weights_digest(model: nn.Module, learning: frozenset[str]) -> str:
    """
    Args:
        model (`nn.Module`):
            The model.
        learning (`frozenset[str]`):
            Names of the parameters that learn, or do not matter.

    Returns:
        `str`: xxh3_128 of everything else: weights, and the buffers of modules that have such weights alone.
    """
    digest = xxhash.xxh3_128()
    tensors: dict[str, torch.Tensor] = {n: p for n, p in parameters_by_name(model).items() if n not in learning}
    # Their own names: the place among the others would tell of what lies above.
    names = {id(module): unwrapped_name(name) for name, module in model.named_modules()}
    for module in still_modules(model, learning):
        tensors |= {f"{names[id(module)]}.{name}": buffer for name, buffer in module.named_buffers()}
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(values.view(torch.uint8).numpy().data if values.numel() else b"")
    return digest.hexdigest()


def describe(
    model: nn.Module, cut: Cut, part: Part, *, weights: str, storage: str, place: Place, batch_size: int | None
) -> dict[str, Any]:
    """
    Args:
        model (`nn.Module`):
            The model.
        cut (`Cut`):
            The cut.
        part (`Part`):
            The part of its tensors.
        weights (`str`):
            Digest of the frozen weights.
        storage (`str`):
            How floats are kept.
        place (`Place`):
            Where and in which precision the model runs.
        batch_size (`int`, *optional*):
            Rows at a time, where the last bit matters.

    Returns:
        `dict[str, Any]`: For [`ActivationStore`].
    """
    return {
        "cut": cut.fed,
        "tensors": [[a.module, a.output, a.leaf] for a in part.addresses],
        "storage": storage,
        "batch_size": batch_size,
        "fill_precision": place.fill,
        **describe_model(model, weights=weights, place=place),
    }


def describe_model(model: nn.Module, *, weights: str, place: Place) -> dict[str, Any]:
    """
    Args:
        model (`nn.Module`):
            The model.
        weights (`str`):
            Digest of the frozen weights.
        place (`Place`):
            Where and in which precision the model runs.

    Returns:
        `dict[str, Any]`: What all activations of the model depend on.
    """
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    known = {name: value for name, value in settings.items() if name not in _ASIDE}
    known["attention"] = getattr(config, "_attn_implementation", None)
    return {
        "model": getattr(config, "name_or_path", "") or type(model).__name__,
        "weights": weights,
        "config": xxhash.xxh3_128_hexdigest(json.dumps(known, sort_keys=True, default=str).encode()),
        "precision": place.precision,
        "device": place.device.type,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
