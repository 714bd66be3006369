"""Adapters that began as a part of the base's weights (PiSSA, OLoRA), told as plain LoRA over the untouched base."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

WEIGHTS = "adapter_model.safetensors"
_FROM_WEIGHTS = ("pissa", "olora", "corda")


def start_of(model: PeftModel) -> dict[str, torch.Tensor] | None:
    """
    Args:
        model (`PeftModel`):
            A model whose adapter was just made.

    Returns:
        `dict[str, torch.Tensor]` or `None`: A copy of LoRA's matrices, where they were taken out of the weights.
    """
    config = model.peft_config[model.active_adapter]
    start = getattr(config, "init_lora_weights", None)
    if not isinstance(start, str) or not start.lower().startswith(_FROM_WEIGHTS):
        return None
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: value.detach().clone() for name, value in state.items() if ".lora_" in name}


def save_as_lora(model: PeftModel, start: dict[str, torch.Tensor], folder: str | Path) -> None:
    """
    Writes the adapter as plain LoRA of twice the rank.

    PiSSA (https://huggingface.co/papers/2404.02948) and OLoRA (https://huggingface.co/papers/2406.01775) take s·B₀A₀
    out of a weight W and train B and A over the rest, so with s = alpha / r the weight becomes

        W - s·B₀A₀ + s·BA = W + s·[B, -B₀][A; A₀]

    and whoever loads the adapter needs no decomposition, and has the true base with the adapter off.

    Args:
        model (`PeftModel`):
            The trained model.
        start (`dict[str, torch.Tensor]`):
            What [`start_of`] gave when the adapter was made.
        folder (`str` or `Path`):
            Where PEFT has saved the adapter; weights and configuration are replaced.
    """
    folder = Path(folder)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    written = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    for name, first in start.items():
        last, first = written[name], first.cpu()
        rows = ".lora_A." in name or "lora_embedding_A" in name
        written[name] = torch.cat([last, first] if rows else [last, -first], dim=0 if rows else 1).contiguous()
    values = {**model.peft_config[model.active_adapter].to_dict(), "init_lora_weights": True, "inference_mode": True}
    scale = 2**0.5 if values["use_rslora"] else 2  # so that the factor stays s, also where it is alpha / √r
    values |= {"r": 2 * values["r"], "lora_alpha": scale * values["lora_alpha"]}
    values["rank_pattern"] = {name: 2 * rank for name, rank in values["rank_pattern"].items()}
    values["alpha_pattern"] = {name: scale * alpha for name, alpha in values["alpha_pattern"].items()}
    config = LoraConfig(**{name: value for name, value in values.items() if name in LoraConfig.__dataclass_fields__})
    partial = folder / f"{WEIGHTS}.partial"
    save_file(written, partial, metadata={"format": "pt"})
    partial.replace(folder / WEIGHTS)
    config.save_pretrained(folder)
