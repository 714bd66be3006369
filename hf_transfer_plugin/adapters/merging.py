"""Merges an adapter into its base, and checks that the answers stay the same."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from hf_transfer_plugin.layers.probe import dummy_inputs, untouched

EXACT = 1e-4
# Unit roundoff: half the gap between 1 and the next number, 2^-(p + 1) with p explicit bits of the mantissa.
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
ROUNDINGS = 4.0
QUANTISED = ("Params4bit", "Int8Params")


@dataclass(frozen=True)
class Merged:
    """
    A merged model and what was checked.

    Args:
        model (`nn.Module`):
            The plain model.
        difference (`float`):
            Largest absolute difference between the outputs before and after.
        tolerance (`float`):
            Largest difference that was allowed.
        largest (`float`):
            Largest absolute output before.
        precision (`torch.dtype`):
            Of the weights that were merged into.
        layers (`int`):
            Layers that hold a share of the adapter.
    """

    model: nn.Module
    difference: float
    tolerance: float
    largest: float
    precision: torch.dtype
    layers: int


def merge_adapter(
    model: PeftModel, inputs: Mapping[str, Any] | None = None, tolerance: float | None = None
) -> nn.Module:
    r"""
    Merges the active adapter into its base, and checks that the model answers the same.

    PEFT computes \\(W' = W + \Delta W\\), here in a copy that shares with the original whatever merging does not
    touch: `model` stays as it is, adapter and all, also where the check fails. Drop it afterwards to free its memory.

    Each merged layer is rounded at most four times where it was not before, or no longer: \\(\Delta W\\), the sum
    \\(W'\\), and the layer's output before and after. Each rounding changes a value by a share of \\(u\\) at most, the
    unit roundoff: \\(u = 2^{-8}\\) for bf16, which keeps 8 bits of a number, \\(2^{-11}\\) for fp16, which keeps 11,
    and \\(2^{-24}\\) for fp32. Roundings have no common direction, so those of \\(n\\) layers add up as the steps of a
    random walk, and the bound on the difference of the outputs \\(z\\) is

    $$|z' - z| \le 4 u \sqrt{n} \max |z|$$

    and in fp32 1e-4, where that is more: only large outputs differ by more than that in their last bits.

    Args:
        model (`PeftModel`):
            The model with the adapter on.
        inputs (`Mapping[str, Any]`, *optional*):
            Keyword arguments of a forward pass to compare; dummy inputs without it.
        tolerance (`float`, *optional*):
            Another bound on the largest absolute difference of the outputs.

    Returns:
        `nn.Module`: A plain model without PEFT, its weights frozen as those of the base were.

    Raises:
        ValueError: If there is nothing to merge, the base is quantised, or PEFT cannot merge such an adapter.
        RuntimeError: If the outputs differ by more than the bound.

    Example:
    ```python
    >>> merge_adapter(load_adapter(base, "my-run")).save_pretrained("my-model")
    ```
    """
    return merge_checked(model, inputs, tolerance).model


def merge_checked(model: PeftModel, inputs: Mapping[str, Any] | None = None, tolerance: float | None = None) -> Merged:
    """
    As [`merge_adapter`], and tells what was checked.

    Args:
        model (`PeftModel`):
            The model with the adapter on.
        inputs (`Mapping[str, Any]`, *optional*):
            As in [`merge_adapter`].
        tolerance (`float`, *optional*):
            As in [`merge_adapter`].

    Returns:
        `Merged`: The plain model, and the largest difference that was seen and allowed.

    Raises:
        ValueError: As [`merge_adapter`].
        RuntimeError: As [`merge_adapter`].
    """
    check_mergeable(model)
    chosen, before = _first_answer(model, inputs)
    precision, layers = _precision(model), _layers(model)
    merged = _merged_copy(model)
    with untouched(merged):
        after = outputs_of(merged, chosen)
    largest = max(float(one.abs().max()) for one in before)
    difference = max(float((a.float() - b.float()).abs().max()) for a, b in zip(after, before, strict=True))
    allowed = tolerance if tolerance is not None else allowed_difference(precision, layers, largest)
    if not difference <= allowed:
        raise RuntimeError(
            f"The merged model must answer as the adapter does, within {allowed:.2g} ({precision}, {layers} merged "
            f"layers, outputs up to {largest:.3g}), but its outputs differ by {difference:.2g}. Nothing was changed: "
            "keep the adapter as it is, or merge into a base in fp32 whose embeddings are not tied to adapted layers."
        )
    return Merged(merged, difference, allowed, largest, precision, layers)


def allowed_difference(precision: torch.dtype, layers: int, largest: float) -> float:
    r"""
    The bound of [`merge_adapter`]: \\(4 u \sqrt{n} \max |z|\\), and for fp32 at least 1e-4.

    Args:
        precision (`torch.dtype`):
            Of the weights.
        layers (`int`):
            Merged layers, \\(n\\).
        largest (`float`):
            Largest absolute output, \\(\max |z|\\).

    Returns:
        `float`: The bound.
    """
    bound = ROUNDINGS * ROUNDOFF[precision] * max(layers, 1) ** 0.5 * largest
    return max(EXACT, bound) if precision == torch.float32 else bound


def check_mergeable(model: nn.Module) -> None:
    """
    Args:
        model (`nn.Module`):
            A model with an adapter.

    Raises:
        ValueError: If it has none, nothing of it goes into weights, or the base is quantised.
    """
    if not isinstance(model, PeftModel):
        raise ValueError(
            f"`model` must have an adapter to merge, but this {type(model).__name__} has none. Load one with "
            "`load_adapter`."
        )
    config = model.active_peft_config
    if config.is_prompt_learning:
        raise ValueError(
            f"{config.peft_type.value} learns prompts that stand before the text, and changes no weights, so there is "
            "nothing to merge. Keep the adapter, and load it with its base."
        )
    kind = quantisation(model)
    if kind:
        raise ValueError(
            f"The base of this adapter is quantised ({kind}), so what the adapter adds to the weights would be "
            "rounded as coarsely. Load the base without quantisation, put the adapter onto it, and merge there."
        )


def quantisation(model: nn.Module) -> str:
    """
    Args:
        model (`nn.Module`):
            A model, with or without adapter.

    Returns:
        `str`: What its weights are quantised with; empty where they are not.
    """
    for name, weight in model.named_parameters():
        kind = type(weight).__name__ if type(weight).__name__ in QUANTISED else type(weight.data).__name__
        home = type(weight.data).__module__.partition(".")[0]
        if kind in QUANTISED or home == "torchao":
            return kind
        if not weight.is_floating_point() and not weight.is_complex():
            return f"`{name}` as {str(weight.dtype).removeprefix('torch.')}"
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    return type(config).__name__ if config is not None else ""


def outputs_of(model: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """
    Args:
        model (`nn.Module`):
            A model.
        inputs (`Mapping[str, Any]`):
            Keyword arguments of a forward pass.

    Returns:
        `list[torch.Tensor]`: Its logits, or the first tensor of floating point where none are so called.
    """
    found = model(**inputs)
    named = found.items() if isinstance(found, Mapping) else enumerate(found if isinstance(found, tuple) else [found])
    tensors = [(str(n), v) for n, v in named if isinstance(v, torch.Tensor) and v.is_floating_point() and v.ndim]
    logits = [tensor for name, tensor in tensors if name.endswith("logits")]
    return logits or [tensor for _, tensor in tensors[:1]]


def _first_answer(model: PeftModel, inputs: Mapping[str, Any] | None) -> tuple[Mapping[str, Any], list[torch.Tensor]]:
    """Inputs that the model takes, and its outputs."""
    if inputs is not None:
        with untouched(model):
            return inputs, _some(outputs_of(model, inputs))
    for guess in dummy_inputs(model.get_base_model(), batch_size=2):
        try:
            with untouched(model):
                return guess, _some(outputs_of(model, guess))
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError, KeyError):
            continue
    raise ValueError(
        f"No inputs were found that {type(model.get_base_model()).__name__} takes, so merging could not be checked. "
        "Pass a batch as `inputs`."
    )


def _some(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    if not outputs:
        raise ValueError(
            "The model must give logits or another tensor to compare, but gave none. Pass other `inputs`."
        )
    return outputs


def _merged_copy(model: PeftModel) -> nn.Module:
    """The merged model; what merging leaves alone is shared with the original."""
    changed = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    own = {id(tensor) for module in changed for tensor in _tensors(module)}
    own |= {id(p) for name, p in model.named_parameters() if p.requires_grad or name.endswith("bias")}
    saved = [(n, m) for n, m in model.get_base_model().named_modules() if hasattr(m, "original_module")]
    precisions = {f"{n}.{key}": p.dtype for n, m in saved for key, p in m.original_module.named_parameters()}
    shared = {id(tensor): tensor for tensor in _tensors(model) if id(tensor) not in own}
    copied = copy.deepcopy(model, shared)
    kind = model.active_peft_config.peft_type.value
    _unwrap(copied.get_base_model())
    try:
        merged = copied.merge_and_unload(safe_merge=True)
    except ValueError as error:
        if "NaNs detected" not in str(error):
            raise _unmergeable(kind, _first_line(error)) from error
        raise ValueError(
            "The adapter holds values that are no numbers, so it was not merged. Go back to an earlier checkpoint of "
            "its training."
        ) from error
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        raise _unmergeable(kind, _first_line(error)) from error
    left = [name for name, m in merged.named_modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    if left:
        raise _unmergeable(kind, f"it leaves `{left[0]}` as it is.")
    for name, parameter in merged.named_parameters():
        # A head that learned in fp32 over a 16-bit base would be saved as a model of two precisions.
        if precisions.get(name, parameter.dtype) != parameter.dtype:
            parameter.data = parameter.data.to(precisions[name])
    return merged


def _unwrap(model: nn.Module) -> None:
    """
    Puts what learned in full in the place of its wrapper. PEFT itself leaves the wrapper in with layer norm tuning, so
    that no head is saved, and with IA3 fails where the head is more than one layer.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
            model.set_submodule(name, plain)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _unmergeable(kind: str, reason: str) -> ValueError:
    return ValueError(f"PEFT cannot merge this {kind} adapter: {reason} Keep the adapter, and load it with its base.")


def _tensors(module: nn.Module) -> Iterable[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _precision(model: PeftModel) -> torch.dtype:
    """The coarsest of the weights that are merged into."""
    layers = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    bases = [getattr(m, "base_layer", None) or getattr(m, "original_module", None) for m in layers]
    found = {p.dtype for base in bases if base is not None for p in base.parameters()}
    return next((kind for kind in ROUNDOFF if kind in found), torch.float32)


def _layers(model: PeftModel) -> int:
    return sum(isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for m in model.modules())
