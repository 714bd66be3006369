"""From an adapter as JSON values to PEFT's configuration, with what is found in the model."""

from typing import Any

from peft import IA3Config, OFTConfig, PeftConfig, VeraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as _SCALED_BEFORE,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as _SCALED,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_transfer_plugin.adapters.methods import FROM_WEIGHTS, OWN_FIELDS, Method, kind_of, method_of
from hf_transfer_plugin.adapters.targets import (
    CONVOLUTIONS,
    block_modules,
    inputs_of,
    linear_targets,
    norm_targets,
    shortest_names,
    smallest_side,
    targetable,
)
from hf_transfer_plugin.layers import LayerGroups, input_embeddings


def build_config(model: nn.Module, groups: LayerGroups, spec: dict[str, Any]) -> PeftConfig:
    """
    Args:
        model (`nn.Module`):
            The model, without adapters.
        groups (`LayerGroups`):
            Its layer groups.
        spec (`dict[str, Any]`):
            The adapter as JSON values.

    Returns:
        `PeftConfig`: With its targets.

    Raises:
        ValueError: If a field is wrong.
    """
    method = method_of(spec)
    given = {key: value for key, value in spec.items() if key not in (*OWN_FIELDS, "peft_type")}
    settings = {**method.settings, **given}
    if method.targets == "prompt":
        if spec.get("layers") is not None:
            raise ValueError("`layers` says where an adapter sits, but prompts stand before the text. Leave it out.")
    elif settings.get("target_modules") is None:
        settings |= _found_targets(model, groups, spec, method)
    elif spec.get("layers") is not None:
        raise ValueError("`layers` and `target_modules` both say where the adapter sits. Leave one of them out.")
    settings |= _bias(spec, method)
    _check_start(model, settings)
    if method.config is not VeraConfig:  # whose rank is meant to be larger than the layers
        settings = _fitted(settings, given, model)
    try:
        return method.config(**settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{method.config.__name__} refuses {given or 'its settings'}: {error}") from error


def _bias(spec: dict[str, Any], method: Method) -> dict[str, Any]:
    if "biases" not in also_trained(spec):
        return {}
    if "bias" not in method.config.__dataclass_fields__:
        raise ValueError(
            f"`also_train` cannot hold 'biases' with {method.config.__name__}, which saves none. Use LoRA, or 'norms'."
        )
    return {"bias": "all" if spec.get("layers") is None else "lora_only"}


def also_trained(spec: dict[str, Any]) -> list[str]:
    """
    Args:
        spec (`dict[str, Any]`):
            The adapter as JSON values.

    Returns:
        `list[str]`: What learns in full beside it.
    """
    also = spec.get("also_train") or []
    return [also] if isinstance(also, str) else list(also)


def _check_start(model: nn.Module, settings: dict[str, Any]) -> None:
    """Refuses what PEFT would begin wrongly, or not at all."""
    start = str(settings.get("init_lora_weights", "")).lower()
    if start.startswith(FROM_WEIGHTS) and settings.get("use_dora"):
        raise ValueError(
            f"DoRA and a start out of the base's weights (`init_lora_weights` {start!r}) both change what the weights "
            "are, so the adapter could not be saved over the true base. Use one of them."
        )
    if start.startswith("olora") and any(isinstance(m, Conv1D) for m in _matched(model, settings["target_modules"])):
        raise ValueError(f"`olora` cannot read the transposed layers of {type(model).__name__}. Use `lora`.")
    if "token_indices" in settings and not settings["token_indices"]:
        raise ValueError("`token_indices` must name the tokens to train, e.g. `[128, 129]`, but is empty.")


def _found_targets(model: nn.Module, groups: LayerGroups, spec: dict[str, Any], method: Method) -> dict[str, Any]:
    modules = block_modules(model, groups, spec.get("layers"))
    if method.targets == "embedding":
        return {"target_modules": [_embedding_table(model)], "token_indices": spec.get("token_indices") or []}
    wanted = norm_targets(modules.items()) if method.targets == "norm" else linear_targets(modules)
    if not wanted:
        raise ValueError(
            f"An adapter sits in {method.targets} layers, but the blocks of {type(model).__name__} have none. Name "
            f"others in `target_modules`: {targetable(model)}."
        )
    if method.config is OFTConfig and {type(modules[name]) for name in wanted} & set(CONVOLUTIONS):
        raise ValueError(
            f"`oft` over the convolutions of {type(model).__name__} does not begin as the model itself. Use `lora`."
        )
    if method.config is not IA3Config:
        return {"target_modules": shortest_names(wanted, model)}
    kind = getattr(getattr(model, "config", None), "model_type", "")
    wanted = [name for name in wanted if name.endswith(tuple(_SCALED.get(kind, [""])))]
    inner = [name for name in wanted if name.endswith(tuple(_SCALED_BEFORE.get(kind, ())))]
    return {
        "target_modules": shortest_names(wanted, model),
        "feedforward_modules": shortest_names(inner, model) if inner else [],
    }


def _embedding_table(model: nn.Module) -> str:
    table = input_embeddings(model)
    if not isinstance(table, nn.Embedding):
        raise ValueError(
            f"Tokens can be trained where there is a table of them, which {type(model).__name__} has not. Use `lora`."
        )
    return next(name for name, module in model.named_modules() if module is table)


def _fitted(settings: dict[str, Any], given: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Sizes that were not typed, made no larger than the layers."""
    side = smallest_side(_matched(model, settings.get("target_modules")))
    for name in ("r", "init_r"):
        if name in settings and name not in given and side:
            settings[name] = min(settings[name], side)
    if "init_r" in settings and "target_r" not in given:
        # AdaLoRA's own ratio: ranks must be left over to be taken away.
        settings["target_r"] = max(2 * settings["init_r"] // 3, 1)
    for name in ("oft_block_size", "boft_block_size"):
        if settings.get(name) and name not in given and not {"r", "boft_block_num"} & set(given):
            widths = [width for m in _matched(model, settings["target_modules"]) if (width := inputs_of(m))]
            settings[name] = next(n for n in range(settings[name], 0, -1) if all(w % n == 0 for w in widths))
    return settings


def _matched(model: nn.Module, targets: Any) -> list[nn.Module]:
    if not targets or targets == "all-linear":
        return []
    probe = PeftConfig()
    probe.target_modules = targets if isinstance(targets, str) else set(targets)
    return [m for name, m in model.named_modules() if name and check_target_module_exists(probe, name)]


def check_targets(model: nn.Module, config: PeftConfig) -> None:
    """
    Args:
        model (`nn.Module`):
            The model, without adapters.
        config (`PeftConfig`):
            The adapter.

    Raises:
        ValueError: If its targets match nothing, naming what could be targeted, or its rank is larger than a layer.
    """
    targets = getattr(config, "target_modules", None)
    found = _matched(model, targets)
    if targets and targets != "all-linear" and not found:
        listed = targets if isinstance(targets, str) else ", ".join(sorted(targets))
        raise ValueError(
            f"`target_modules` must match modules of {type(model).__name__}, but {listed!r} match none. These could "
            f"be: {targetable(model)}. A list holds ends of names, a text a regular expression for whole names."
        )
    side, kind = smallest_side(found), kind_of(config)
    rank = getattr(config, "init_r" if kind == "ADALORA" else "r", None)
    if kind not in ("VERA", "OFT") and isinstance(rank, int) and side and rank > side:
        raise ValueError(
            f"`{'init_r' if kind == 'ADALORA' else 'r'}` must be at most {side}, the smallest side of the targeted "
            f"layers of {type(model).__name__}, but got {rank}: a larger rank adds numbers and no freedom."
        )
