"""How fast each layer group learns: factors per group, and the optimizer whose groups are named after them."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from hf_transfer_plugin.layers import LayerGroups, parameters_by_name


@dataclass(frozen=True)
class LayerwiseDecay:
    """
    Discriminative learning rates (ULMFiT, https://huggingface.co/papers/1801.06146): with n groups, group i learns at
    `learning_rate * decay ** (n - 1 - i)`; the head's rate is multiplied by `head_multiplier`.

    Args:
        decay (`float`, *optional*, defaults to 0.9):
            Ratio of the rates of two neighbouring groups; 1 gives all the same. ULMFiT's is 1 / 2.6.
        head_multiplier (`float`, *optional*, defaults to 1.0):
            Further factor on the head's rate.
        warmup_steps (`int`, *optional*, defaults to 0):
            After a thaw the group's rate rises linearly over that many steps: the factor of its k-th step is
            `min(1, k / warmup_steps)`. Adam's first step on new weights would otherwise be full-sized.
        lora_b_multiplier (`float`, *optional*, defaults to 1.0):
            Further factor on the rate of LoRA's matrices B, as in LoRA+ (https://huggingface.co/papers/2402.12354).

    Raises:
        ValueError: If a field is out of range.
    """

    name: ClassVar[str] = "layerwise-decay"
    decay: float = 0.9
    head_multiplier: float = 1.0
    warmup_steps: int = 0
    lora_b_multiplier: float = 1.0

    def __post_init__(self) -> None:
        _check_decay(self.decay, self.head_multiplier, self.lora_b_multiplier)
        if not isinstance(self.warmup_steps, int) or self.warmup_steps < 0:
            raise ValueError(f"`warmup_steps` must be a whole number of at least 0, but got {self.warmup_steps!r}.")

    @property
    def changes_with_step(self) -> bool:
        """
        Returns:
            `bool`: Whether factors depend on the step.
        """
        return self.warmup_steps > 0

    def base(self, index: int, groups: LayerGroups) -> float:
        """
        Args:
            index (`int`):
                The group.
            groups (`LayerGroups`):
                All groups.

        Returns:
            `float`: Factor on the learning rate that holds for the whole run.
        """
        return _depth_factor(self.decay, self.head_multiplier, index, groups)

    def factor(self, step: int, thawed_at: int, max_steps: int) -> float:
        """
        Args:
            step (`int`):
                Optimizer steps done.
            thawed_at (`int`):
                Step at which the group began to learn; 0 if it learned from the start.
            max_steps (`int`):
                Optimizer steps of the run.

        Returns:
            `float`: Further factor at this step. Groups that learn from step 0 on have the scheduler's warm-up only.
        """
        if self.warmup_steps == 0 or thawed_at == 0:
            return 1.0
        return min(1.0, (step - thawed_at + 1) / self.warmup_steps)

    def to_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict[str, Any]`: `{"name": ..., **fields}`.
        """
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class SlantedTriangular:
    """
    Slanted triangular learning rates (ULMFiT, https://huggingface.co/papers/1801.06146).

    They begin anew for each group at its thaw. With T the steps left at the thaw, t those since, and
    cut = ⌊T · cut_fraction⌋:

        p = t / cut if t < cut else 1 - (t - cut) / (cut · (1 / cut_fraction - 1))
        factor = (1 + p · (ratio - 1)) / ratio

    It is a schedule of its own: use `lr_scheduler_type="constant"` with it.

    Args:
        cut_fraction (`float`, *optional*, defaults to 0.1):
            Share of the steps in which the rate rises.
        ratio (`float`, *optional*, defaults to 32.0):
            Ratio of the highest rate to the lowest.
        decay (`float`, *optional*, defaults to 1 / 2.6):
            Ratio of the rates of two neighbouring groups.
        head_multiplier (`float`, *optional*, defaults to 1.0):
            Further factor on the head's rate.
        lora_b_multiplier (`float`, *optional*, defaults to 1.0):
            Further factor on the rate of LoRA's matrices B.

    Raises:
        ValueError: If a field is out of range.
    """

    name: ClassVar[str] = "slanted-triangular"
    cut_fraction: float = 0.1
    ratio: float = 32.0
    decay: float = 1 / 2.6
    head_multiplier: float = 1.0
    lora_b_multiplier: float = 1.0

    def __post_init__(self) -> None:
        _check_decay(self.decay, self.head_multiplier, self.lora_b_multiplier)
        if not 0 < self.cut_fraction < 1:
            raise ValueError(f"`cut_fraction` must lie between 0 and 1, but got {self.cut_fraction!r}.")
        if not self.ratio >= 1:
            raise ValueError(f"`ratio` must be at least 1, but got {self.ratio!r}.")

    @property
    def changes_with_step(self) -> bool:
        """
        Returns:
            `bool`: Whether factors depend on the step.
        """
        return True

    def base(self, index: int, groups: LayerGroups) -> float:
        """
        Args:
            index (`int`):
                The group.
            groups (`LayerGroups`):
                All groups.

        Returns:
            `float`: Factor on the learning rate that holds for the whole run.
        """
        return _depth_factor(self.decay, self.head_multiplier, index, groups)

    def factor(self, step: int, thawed_at: int, max_steps: int) -> float:
        """
        Args:
            step (`int`):
                Optimizer steps done.
            thawed_at (`int`):
                Step at which the group began to learn.
            max_steps (`int`):
                Optimizer steps of the run.

        Returns:
            `float`: The formula above.
        """
        t, steps = step - thawed_at, max(max_steps - thawed_at, 1)
        cut = max(int(steps * self.cut_fraction), 1)
        p = t / cut if t < cut else max(1 - (t - cut) / (cut * (1 / self.cut_fraction - 1)), 0.0)
        return (1 + p * (self.ratio - 1)) / self.ratio

    def to_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict[str, Any]`: `{"name": ..., **fields}`.
        """
        return {"name": self.name, **asdict(self)}


def _check_decay(decay: float, head_multiplier: float, lora_b_multiplier: float) -> None:
    if not isinstance(decay, (int, float)) or not 0 < decay <= 1:
        raise ValueError(f"`decay` must lie above 0 and at most at 1, but got {decay!r}.")
    for name, value in (("head_multiplier", head_multiplier), ("lora_b_multiplier", lora_b_multiplier)):
        if not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"`{name}` must be positive, but got {value!r}.")


def _depth_factor(decay: float, head_multiplier: float, index: int, groups: LayerGroups) -> float:
    last = len(groups) - 1
    return decay ** (last - index) * (head_multiplier if index == last and groups.has_head else 1.0)


def build_optimizer(
    optimizer_class: type[torch.optim.Optimizer],
    optimizer_arguments: Mapping[str, Any],
    model: nn.Module,
    groups: LayerGroups,
    *,
    learning: AbstractSet[str],
    decayed: AbstractSet[str],
    weight_decay: float,
    learning_rates: LayerwiseDecay | SlantedTriangular | None = None,
    given: Sequence[Mapping[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """
    Makes the optimizer with named parameters, in groups of layer × weight decay, head first.

    Head first, because Trainer logs the rate of the first group as `learning_rate`. Parameters outside the model, such
    as those of a loss, learn at the head's rate.

    Args:
        optimizer_class (`type[torch.optim.Optimizer]`):
            The class.
        optimizer_arguments (`Mapping[str, Any]`):
            Its arguments, with `lr`.
        model (`nn.Module`):
            The model.
        groups (`LayerGroups`):
            Its layer groups.
        learning (`Set[str]`):
            Names of the parameters that will ever learn.
        decayed (`Set[str]`):
            Names of the parameters that weight decay applies to.
        weight_decay (`float`):
            The weight decay.
        learning_rates (`LayerwiseDecay` or `SlantedTriangular`, *optional*):
            Factors for each group.
        given (`Sequence[Mapping]`, *optional*):
            Parameter groups that a Trainer made itself; they are divided by layer and keep their settings. Then
            `decayed` and `weight_decay` are not used, and a rate other than `lr` is kept as it is.

    Returns:
        `torch.optim.Optimizer`: The optimizer; its state keeps the names of the parameters.
    """
    parameters = parameters_by_name(model)
    place = {id(parameters[n]): (i, n) for i, group in enumerate(groups) for n in group.parameters}
    if given is None:
        given = [
            {
                "params": [p for n, p in parameters.items() if n in learning and (n in decayed) == decays],
                "weight_decay": weight_decay if decays else 0.0,
            }
            for decays in (True, False)
        ]
    rate = optimizer_arguments["lr"]
    top = len(groups) - 1 if groups.has_head else len(groups)
    made: dict[tuple[int, float, int], dict[str, Any]] = {}
    outside = 0
    for number, group in enumerate(given):
        for parameter in tensors_of(group):
            index, name = place.get(id(parameter), (top, ""))
            if not name:
                name, outside = f"outside.{outside}", outside + 1
            elif name not in learning:
                continue
            settings = {"lr": rate, **group}
            own = _lora_factor(learning_rates, name)
            if settings["lr"] == rate:
                settings["lr"] = rate * _base_factor(learning_rates, index, groups) * own
            made.setdefault((-index, own, number), {**settings, "params": []})["params"].append((name, parameter))
    return optimizer_class([made[key] for key in sorted(made)], **optimizer_arguments)


def _base_factor(learning_rates: Any, index: int, groups: LayerGroups) -> float:
    """Beyond the last group stands the head of a model that has none of its own."""
    if learning_rates is None:
        return 1.0
    return learning_rates.base(index, groups) if index < len(groups) else learning_rates.head_multiplier


def _lora_factor(learning_rates: Any, name: str) -> float:
    is_b = ".lora_B." in name or ".lora_embedding_B." in name
    return learning_rates.lora_b_multiplier if learning_rates is not None and is_b else 1.0


def tensors_of(group: Mapping[str, Any]) -> list[torch.Tensor]:
    """
    Args:
        group (`Mapping[str, Any]`):
            A parameter group of an optimizer, its parameters named or not.

    Returns:
        `list[torch.Tensor]`: Its parameters.
    """
    held: Any = group["params"]
    listed: Iterable[Any] = [held] if isinstance(held, torch.Tensor) else held
    return [item[1] if isinstance(item, tuple) else item for item in listed]


def groups_of(optimizer: Any, model: nn.Module, groups: LayerGroups) -> list[str | None]:
    """
    The layer group of each parameter group of an optimizer.

    Args:
        optimizer (`torch.optim.Optimizer`):
            Any optimizer over the model's parameters.
        model (`nn.Module`):
            The model.
        groups (`LayerGroups`):
            Its layer groups.

    Returns:
        `list[str | None]`: Names in the optimizer's order; `None` where parameters of several groups share one. What
        stands outside the model, such as a loss's own parameters, counts as `"head"`.
    """
    owner = {name: group.name for group in groups for name in group.parameters}
    by_id = {id(parameter): owner[name] for name, parameter in parameters_by_name(model).items()}
    found = [{by_id.get(id(p), "head") for p in group["params"]} for group in optimizer.param_groups]
    return [next(iter(names)) if len(names) == 1 else None for names in found]


LEARNING_RATES: dict[str, Any] = {c.name: c for c in (LayerwiseDecay, SlantedTriangular)}
