"""Makes one adapter of several on the same base: PEFT weighs the low-rank parts, and the heads are averaged."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from hf_transfer_plugin.adapters.loading import base_of, load_adapters

SAME_RANK = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
BY_SVD = ("svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
COMBINATIONS = (*SAME_RANK, "cat", *BY_SVD)
COMBINED = "default"


def combine_adapters(
    base: nn.Module,
    folders: Mapping[str, str | Path],
    weights: Sequence[float],
    combination_type: str = "cat",
    *,
    rank: int | None = None,
    density: float = 0.5,
) -> PeftModel:
    r"""
    Combines saved LoRA adapters into one.

    With weights \\(w_i\\) and the change \\(\Delta W_i = s_i B_i A_i\\) of adapter \\(i\\), `"cat"` gives
    \\(\sum_i w_i \Delta W_i\\) exactly, with the sum of the ranks; `"svd"` its best approximation of the chosen rank;
    `"linear"` adds factors, \\(B = \sum_i \sqrt{w_i s_i} B_i\\) and \\(A = \sum_i \sqrt{w_i s_i} A_i\\), whose product
    also holds what the factors of different adapters make together; the others prune and elect signs first (TIES,
    https://huggingface.co/papers/2306.01708, and DARE, https://huggingface.co/papers/2311.03099). Biases of LoRA are
    weighed like the changes. Heads and whatever else was trained in full is averaged with \\(w_i / \sum_j w_j\\):
    the outputs must mean the same in all adapters.

    Args:
        base (`nn.Module`):
            The model without adapter; one in 16 bits is turned to 32 where that keeps heads from being rounded.
        folders (`Mapping[str, str | Path]`):
            Name of the adapter, for messages -> its folder.
        weights (`Sequence[float]`):
            A weight for each; they need not sum to 1.
        combination_type (`str`, *optional*, defaults to `"cat"`):
            As PEFT calls them: `"cat"`, `"linear"`, `"svd"`, `"ties"`, `"dare_linear"`, `"dare_ties"`,
            `"magnitude_prune"`, and these four with `"_svd"` after them.
        rank (`int`, *optional*):
            Rank of the result of the types by SVD; that of the largest adapter without it.
        density (`float`, *optional*, defaults to 0.5):
            Share of the values that the pruning types keep.

    Returns:
        `PeftModel`: The base with the combined adapter alone, which `save_pretrained` writes.

    Raises:
        ValueError: If the adapters cannot be combined, or not in this way.

    Example:
    ```python
    >>> combine_adapters(base, {"news": "run-1", "films": "run-2"}, [0.7, 0.3]).save_pretrained("both")
    ```
    """
    _check_request(folders, weights, combination_type, rank, density)
    for shown, folder in folders.items():
        base_of(folder)
        _check_config(PeftConfig.from_pretrained(str(folder)), shown)
    sources = {f"source-{number}": folder for number, folder in enumerate(folders.values())}
    model = load_adapters(base, sources, exact=True)
    named = dict(zip(sources, folders, strict=True))
    heads = _take_heads(model, named)
    ranks = _ranks(model, list(sources))
    if combination_type in SAME_RANK:
        _check_same_rank(ranks, named, combination_type)
    for name in sources:
        # PEFT reads one rank from here, and the new adapter's scale, which by the root of the rank would not be 1.
        config = model.peft_config[name]
        config.r, config.rank_pattern = max(per[name] for per in ranks.values() if name in per), {}
        config.use_rslora = False
    shares = dict(zip(sources, map(float, weights), strict=True))
    extra = {"svd_rank": rank, "svd_full_matrices": False} if combination_type in BY_SVD else {}
    tuner: Any = model.base_model
    tuner.add_weighted_adapter(
        list(sources), list(shares.values()), COMBINED, combination_type, density=density, **extra
    )
    _finish_layers(model, shares, ranks, cut=combination_type == "cat")
    total = sum(shares.values())
    for wrapper, held in heads:
        wrapper.modules_to_save.update(held)
        _average(wrapper.modules_to_save[COMBINED], {held[name]: share / total for name, share in shares.items()})
    model.set_adapter(COMBINED, inference_mode=True)
    for name in sources:
        model.delete_adapter(name)
    return model


def _check_request(
    folders: Mapping[str, str | Path], weights: Sequence[float], kind: str, rank: int | None, density: float
) -> None:
    if kind not in COMBINATIONS:
        raise ValueError(f"`combination_type` must be one of {', '.join(COMBINATIONS)}, but got {kind!r}.")
    if len(folders) < 2:
        raise ValueError(f"`folders` must name two adapters or more, but names {len(folders)}.")
    if len(weights) != len(folders):
        raise ValueError(
            f"`weights` must hold a number for each of {len(folders)} adapters, but holds {len(weights)}."
        )
    if not all(math.isfinite(weight) for weight in weights) or abs(sum(weights)) < 1e-6:
        raise ValueError(f"`weights` must be finite and their sum not 0, but got {list(weights)}.")
    if not 0 < density <= 1:
        raise ValueError(f"`density` must be more than 0 and at most 1, but got {density}.")
    if rank is not None and (kind not in BY_SVD or rank < 1):
        raise ValueError(
            f"`rank` must be positive, and is the rank that {', '.join(BY_SVD)} cut to, but got {rank} for {kind!r}."
        )


def _check_config(config: Any, name: str) -> None:
    """Refuses what is no sum of low-rank changes."""
    end = "Merge each into the base with `merge`, and average the models instead."
    if type(config) is not LoraConfig:
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        raise ValueError(f"Only LoRA adapters can be combined, but {name!r} is {kind}. {end}")
    if config.use_dora:
        raise ValueError(f"{name!r} is DoRA, whose magnitudes are no sum and cannot be combined. {end}")
    if config.bias != "none":
        raise ValueError(
            f"{name!r} trained the base's own biases (`bias={config.bias!r}`), of which a base has one set. {end}"
        )
    if config.target_parameters or config.trainable_token_indices:
        raise ValueError(f"{name!r} holds single parameters or tokens, which cannot be combined. {end}")


def _take_heads(model: PeftModel, names: Mapping[str, str]) -> list[tuple[ModulesToSaveWrapper, dict[str, nn.Module]]]:
    """Leaves what was trained in full to the first adapter alone; PEFT refuses to combine where several have it."""
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)]
    for path, wrapper in found:
        without = [shown for name, shown in names.items() if name not in wrapper.modules_to_save]
        if without:
            short = path.removeprefix("base_model.model.")
            raise ValueError(
                f"What was trained in full must be the same in all adapters, but {without[0]!r} has no `{short}`, and "
                "another has. Combine adapters that were trained alike."
            )
    held = [(wrapper, {name: wrapper.modules_to_save[name] for name in names}) for _, wrapper in found]
    for wrapper, modules in held:
        for name in list(modules)[1:]:
            del wrapper.modules_to_save[name]
    return held


def layer_factors(layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """
    Args:
        layer (`LoraLayer`):
            A layer with LoRA.
        name (`str`):
            The adapter.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` or `None`: Its factors A and B there; `None` where it has none.
    """
    if name in layer.lora_A:
        return layer.lora_A[name].weight, layer.lora_B[name].weight
    return (layer.lora_embedding_A[name], layer.lora_embedding_B[name]) if name in layer.lora_embedding_A else None


def lora_layers(model: PeftModel) -> dict[str, Any]:
    """
    Args:
        model (`PeftModel`):
            A model with LoRA.

    Returns:
        `dict[str, LoraLayer]`: Its layers with LoRA, by their names in the base.
    """
    inner = model.get_base_model()
    return {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}


def _ranks(model: PeftModel, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Layer -> adapter -> its rank there."""
    found: dict[str, dict[str, int]] = {}
    for path, layer in lora_layers(model).items():
        factors = {name: layer_factors(layer, name) for name in names}
        found[path] = {name: pair[0].shape[0] for name, pair in factors.items() if pair is not None}
    return found


def _check_same_rank(ranks: dict[str, dict[str, int]], names: Mapping[str, str], kind: str) -> None:
    for path, per in ranks.items():
        if len(set(per.values())) > 1:
            told = ", ".join(f"{rank} in {names[name]!r}" for name, rank in per.items())
            raise ValueError(
                f"{kind!r} adds factors, so the ranks must be the same, but `{path}` has {told}. Use 'cat' (exact, "
                f"rank {sum(per.values())} there), or one of {', '.join(BY_SVD)} (cut to `rank`)."
            )


def _finish_layers(
    model: PeftModel, shares: Mapping[str, float], ranks: dict[str, dict[str, int]], *, cut: bool
) -> None:
    """Weighs the biases, which PEFT leaves at 0, cuts what it filled up with 0, and writes the ranks down."""
    found: dict[str, int] = {}
    with torch.no_grad():
        for path, layer in lora_layers(model).items():
            factors = layer_factors(layer, COMBINED)
            if factors is None:
                continue
            down, up = factors
            size = sum(ranks[path].values()) if cut else down.shape[0]
            # PEFT leaves slices of larger matrices, which multiply by other sums than what is saved of them.
            down.data, up.data = (
                part.clone(memory_format=torch.contiguous_format) for part in (down[:size], up[:, :size])
            )
            found[path] = layer.r[COMBINED] = layer.lora_alpha[COMBINED] = down.shape[0]
            layer.scaling[COMBINED] = 1.0
            bias = layer.lora_B[COMBINED].bias if COMBINED in layer.lora_B else None
            if bias is not None:
                parts = [s * layer.scaling[n] * layer.lora_B[n].bias for n, s in shares.items() if n in layer.lora_B]
                bias.copy_(torch.stack(parts).sum(0))
    config = model.peft_config[COMBINED]
    config.r = config.lora_alpha = Counter(found.values()).most_common(1)[0][0]
    config.rank_pattern = {path: rank for path, rank in found.items() if rank != config.r}
    config.alpha_pattern = dict(config.rank_pattern)


def _average(module: nn.Module, weights: Mapping[nn.Module, float]) -> None:
    """Sets a module to the weighted mean of others of its kind."""
    states = [(other.state_dict(), share) for other, share in weights.items()]
    mean = {
        name: sum((state[name] * share for state, share in states), torch.zeros_like(value))
        if value.is_floating_point()
        else value
        for name, value in states[0][0].items()
    }
    module.load_state_dict(mean)
