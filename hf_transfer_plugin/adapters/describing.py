"""What a record tells of an adapter."""

from typing import Any

from peft import PeftModel

from hf_transfer_plugin.adapters.methods import OWN_FIELDS, kind_of

TOLD = (
    "init_r",
    "target_r",
    "lora_alpha",
    "lora_dropout",
    "bias",
    "num_virtual_tokens",
    "oft_block_size",
    "boft_block_size",
    "use_dora",
    "use_rslora",
    "init_lora_weights",
)


def describe_adapter(model: PeftModel, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    Args:
        model (`PeftModel`):
            A model with an adapter.
        spec (`dict[str, Any]`, *optional*):
            How it was asked for.

    Returns:
        `dict[str, Any]`: What a record tells of it, as JSON values.
    """
    config = model.peft_config[model.active_adapter]
    spec = spec or {}
    # AdaLoRA has a field `r`, too, and does not use it.
    told = TOLD if kind_of(config) == "ADALORA" else ("r", *TOLD)
    values = {name: getattr(config, name) for name in told if getattr(config, name, None) not in (None, False, "none")}
    targets = getattr(config, "target_modules", None)
    if targets:
        values["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
    if getattr(config, "modules_to_save", None):
        values["modules_to_save"] = sorted(set(config.modules_to_save) & _saved(model))
    return {
        "name": spec.get("name", kind_of(config).lower()),
        "peft_type": kind_of(config),
        **{name: spec[name] for name in OWN_FIELDS[1:] if name in spec},
        **values,
    }


def _saved(model: PeftModel) -> set[str]:
    """Which names in `modules_to_save` are there; PEFT adds names that may be in a model of the kind."""
    held = [name for name, module in model.named_modules() if hasattr(module, "modules_to_save")]
    names = {end for name in held for end in _ends(name)}
    return {
        name for c in model.peft_config.values() for name in getattr(c, "modules_to_save", ()) or () if name in names
    }


def _ends(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[-count:]) for count in range(1, len(parts) + 1)}
