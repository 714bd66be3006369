"""Adapters that only their own method can load, told as plain LoRA over the untouched base."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from hf_transfer_plugin.adapters.methods import FROM_WEIGHTS, kind_of

WEIGHTS = "adapter_model.safetensors"
Weights = dict[str, torch.Tensor]


def start_of(model: Any) -> Weights | None:
    """
    Args:
        model (`PeftModel`):
            A model whose adapter was just made.

    Returns:
        `dict[str, torch.Tensor]` or `None`: A copy of LoRA's matrices, where they were taken out of the weights.
    """
    start = getattr(model.peft_config[model.active_adapter], "init_lora_weights", None)
    if not isinstance(start, str) or not start.lower().startswith(FROM_WEIGHTS):
        return None
    return {name: value.clone() for name, value in _weights(model).items() if ".lora_" in name}


def save_as_lora(model: PeftModel, folder: str | Path, start: Weights | None = None) -> int:
    """
    Writes the adapter as plain LoRA, where it is PiSSA, OLoRA or AdaLoRA; others stay as PEFT saved them.

    PiSSA (https://huggingface.co/papers/2404.02948) and OLoRA (https://huggingface.co/papers/2406.01775) take s·B₀A₀
    out of a weight W and train B and A over the rest, so with s = alpha / r the weight becomes

        W - s·B₀A₀ + s·BA = W + s·[B, -B₀][A; A₀],

    of twice the rank. Whoever loads it needs no decomposition, and has the true base with the adapter off. AdaLoRA
    (https://huggingface.co/papers/2303.10512) adds s·B·diag(E)·A with s = alpha / r, of which the ranks with E = 0 are
    left out; as AdaLoRA, PEFT could not measure a loss with it.

    Args:
        model (`PeftModel`):
            The trained model.
        folder (`str` or `Path`):
            Where PEFT has saved the adapter; weights and configuration are replaced.
        start (`dict[str, torch.Tensor]`, *optional*):
            What [`start_of`] gave when the adapter was made.

    Returns:
        `int`: The largest rank of what was written; 0 where the adapter stayed as it was.
    """
    given = model.peft_config[model.active_adapter]
    values = {name: value for name, value in given.to_dict().items() if name in LoraConfig.__dataclass_fields__}
    values |= {"init_lora_weights": True, "inference_mode": True}
    if kind_of(given) == "ADALORA":
        weights, values = _without_scores(model, _weights(model), values)
    elif start is not None:
        weights, values = _with_start(_weights(model), start, values)
    else:
        return 0
    partial = Path(folder) / f"{WEIGHTS}.partial"
    save_file({name: value.cpu().contiguous() for name, value in weights.items()}, partial, metadata={"format": "pt"})
    partial.replace(Path(folder) / WEIGHTS)
    values.pop("peft_type", None)
    LoraConfig(**values).save_pretrained(str(folder))
    return int(values["r"])


def _weights(model: PeftModel) -> Weights:
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: value.detach() for name, value in state.items()}


def _with_start(weights: Weights, start: Weights, values: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
    for name, first in start.items():
        rows = ".lora_A." in name or "lora_embedding_A" in name
        other = first if rows else -first
        weights[name] = torch.cat([weights[name], other.to(weights[name].device)], dim=0 if rows else 1)
    scale = 2**0.5 if values["use_rslora"] else 2  # so that the factor stays s, also where it is alpha / √r
    return weights, {
        **values,
        "r": 2 * values["r"],
        "lora_alpha": scale * values["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in (values["rank_pattern"] or {}).items()},
        "alpha_pattern": {name: scale * alpha for name, alpha in (values["alpha_pattern"] or {}).items()},
    }


def _without_scores(model: PeftModel, weights: Weights, values: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
    """Each module gets the rank that it was left with, and a factor of 1; PEFT divides by r + 1e-5."""
    adapter = model.active_adapter
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_E")}
    ranks: dict[str, int] = {}
    found = {name: value for name, value in weights.items() if ".lora_" not in name}
    for name, layer in layers.items():
        scores = layer.lora_E[adapter].detach()
        kept = scores.flatten().nonzero().flatten()
        if not len(kept):
            kept = torch.zeros(1, dtype=torch.long, device=scores.device)
        factor = layer.scaling[adapter] / (layer.ranknum[adapter] + 1e-5)
        down, up = (layer.lora_A[adapter].detach() * scores)[kept] * factor, layer.lora_B[adapter].detach()[:, kept]
        window = layer.get_base_layer().weight.shape[2:]  # of a convolution
        found[f"{name}.lora_A.weight"] = down.view(len(kept), -1, *window) if window else down
        found[f"{name}.lora_B.weight"] = up.view(-1, len(kept), *[1 for _ in window])
        ranks[name.removeprefix("base_model.model.")] = len(kept)
    largest = max(ranks.values())
    return found, {
        **values,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": ranks,
        "alpha_pattern": dict(ranks),
    }
