"""Which parameters learn: policies that decide, and the one hand that writes `requires_grad`."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_transfer_plugin.layers import LayerGroups, check_patterns, parameters_by_name, unwrapped_name


@dataclass(frozen=True)
class FreezingPolicy:
    """
    A choice of parameters that stays the same for the whole run. Made by the functions below.

    Args:
        name (`str`):
            Name of the policy.
        fields (`dict[str, Any]`):
            Its settings as JSON values.
        choose (`Callable`):
            `(model, groups)` -> names of the parameters that learn.
    """

    name: str
    fields: dict[str, Any]
    choose: Callable[[nn.Module, LayerGroups], Iterable[str]] = field(repr=False, compare=False)

    def __call__(self, model: nn.Module, groups: LayerGroups) -> frozenset[str]:
        """
        Args:
            model (`nn.Module`):
                The model.
            groups (`LayerGroups`):
                Its layer groups.

        Returns:
            `frozenset[str]`: Names of the parameters that learn.

        Raises:
            ValueError: If nothing would be left to train.
        """
        names = frozenset(self.choose(model, groups))
        if not names:
            raise ValueError(
                f"`{self.name}` must leave something to train, but with {self.fields or 'these settings'} every "
                f"parameter of {groups.model_name!r} is frozen. Its groups are {groups.summary()}."
            )
        return names

    def to_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict[str, Any]`: `{"name": ..., **fields}`.
        """
        return {"name": self.name, **self.fields}


def full() -> FreezingPolicy:
    """
    Freezes nothing.

    Returns:
        `FreezingPolicy`: Every parameter learns.
    """
    return FreezingPolicy("full", {}, lambda model, groups: [n for group in groups for n in group.parameters])


def feature_extraction() -> FreezingPolicy:
    """
    Freezes everything but the head.

    Returns:
        `FreezingPolicy`: Only the head learns; a model without a head group is refused.
    """

    def choose(model: nn.Module, groups: LayerGroups) -> Sequence[str]:
        groups.require_head("feature-extraction")
        return groups[-1].parameters

    return FreezingPolicy("feature-extraction", {}, choose)


def freeze_first(k: int) -> FreezingPolicy:
    """
    Freezes the `k` layer groups nearest to the input.

    Args:
        k (`int`):
            Number of groups to freeze, counted from the embeddings.

    Returns:
        `FreezingPolicy`: Every group above the `k`-th learns.

    Example:
    ```python
    >>> set_trainable(model, freeze_first(4)(model, discover_layer_groups(model)))
    ```
    """

    def choose(model: nn.Module, groups: LayerGroups) -> list[str]:
        if not isinstance(k, int) or isinstance(k, bool) or not 0 <= k < len(groups):
            raise ValueError(
                f"`k` must lie between 0 and {len(groups) - 1} for {groups.model_name!r} with its {len(groups)} layer "
                f"groups ({groups.summary()}), but got {k!r}. Run `hf-transfer-plugin inspect` to list them."
            )
        return [name for group in groups[k:] for name in group.parameters]

    return FreezingPolicy("freeze-first", {"k": k}, choose)


def freeze_pattern(patterns: str | Sequence[str]) -> FreezingPolicy:
    """
    Freezes the parameters whose names match.

    Args:
        patterns (`str` or `Sequence[str]`):
            Regular expressions for `re.search` over the names of `model.named_parameters()`.

    Returns:
        `FreezingPolicy`: Everything that no pattern matches learns. A pattern that matches nothing is an error.

    Raises:
        ValueError: If a pattern is no regular expression.
    """
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    check_patterns(listed)

    def choose(model: nn.Module, groups: LayerGroups) -> list[str]:
        names = list(parameters_by_name(model))
        idle = [pattern for pattern in listed if not any(re.search(pattern, name) for name in names)]
        if idle:
            raise ValueError(
                f"Every pattern must match a parameter, but {idle} match none; names begin with {names[:2]}."
            )
        return [name for name in names if not any(re.search(pattern, name) for pattern in listed)]

    return FreezingPolicy("freeze-pattern", {"patterns": listed}, choose)


def bitfit() -> FreezingPolicy:
    """
    Trains the bias terms and the head, as in BitFit (https://huggingface.co/papers/2106.10199).

    Returns:
        `FreezingPolicy`: Every parameter named `bias`, and the head group where there is one.
    """

    def choose(model: nn.Module, groups: LayerGroups) -> list[str]:
        head = groups[-1].parameters if groups.has_head else ()
        return [n for group in groups for n in group.parameters if n.endswith("bias") or n in head]

    return FreezingPolicy("bitfit", {}, choose)


def norm_only() -> FreezingPolicy:
    """
    Trains the normalisation layers and the head.

    Returns:
        `FreezingPolicy`: The parameters of modules whose class name speaks of a norm, and the head group.
    """

    def choose(model: nn.Module, groups: LayerGroups) -> list[str]:
        head = groups[-1].parameters if groups.has_head else ()
        norms = {
            unwrapped_name(f"{path}.{name}" if path else name)
            for path, module in model.named_modules()
            if "norm" in type(module).__name__.lower()
            for name, _ in module.named_parameters(recurse=False)
        }
        return [n for group in groups for n in group.parameters if n in norms or n in head]

    return FreezingPolicy("norm-only", {}, choose)


def learning_names(strategy: Any, progress: Any, model: nn.Module, groups: LayerGroups) -> frozenset[str]:
    """
    Names of the parameters that learn at a moment, of a policy or a schedule alike.

    Args:
        strategy (`FreezingPolicy` or `UnfreezingSchedule`):
            What decides.
        progress (`Progress`):
            The moment.
        model (`nn.Module`):
            The model.
        groups (`LayerGroups`):
            Its layer groups.

    Returns:
        `frozenset[str]`: Names as in `model.named_parameters()`.
    """
    if isinstance(strategy, FreezingPolicy):
        return strategy(model, groups)
    return frozenset(name for i in strategy(progress, len(groups)) for name in groups[i].parameters)


def ever_learning_names(strategy: Any, model: nn.Module, groups: LayerGroups) -> frozenset[str]:
    """
    Names of the parameters that the optimizer must hold from the start.

    Args:
        strategy (`FreezingPolicy` or `UnfreezingSchedule`):
            What decides.
        model (`nn.Module`):
            The model.
        groups (`LayerGroups`):
            Its layer groups.

    Returns:
        `frozenset[str]`: A policy's own choice; for a schedule every parameter above its `frozen` groups.

    Raises:
        ValueError: If nothing would be left to train.
    """
    if isinstance(strategy, FreezingPolicy):
        return strategy(model, groups)
    if getattr(strategy, "needs_head", False):
        groups.require_head(strategy.name)
    frozen = getattr(strategy, "frozen", 0)
    if frozen >= len(groups):
        raise ValueError(
            f"`frozen` must lie between 0 and {len(groups) - 1} for {groups.model_name!r} with its {len(groups)} "
            f"layer groups ({groups.summary()}), but got {frozen}."
        )
    return frozenset(name for group in groups[frozen:] for name in group.parameters)


def set_trainable(model: nn.Module, names: Iterable[str]) -> int:
    """
    Lets exactly the named parameters learn. The only place of this package that writes `requires_grad`.

    Args:
        model (`nn.Module`):
            The model.
        names (`Iterable[str]`):
            Names as in `model.named_parameters()`; all others are frozen.

    Returns:
        `int`: Number of trainable parameters.

    Raises:
        ValueError: If a name does not exist, or a named parameter is not of floating point (quantised weights).
    """
    wanted = set(names)
    parameters = parameters_by_name(model)
    unknown = sorted(wanted - parameters.keys())
    if unknown:
        raise ValueError(
            f"`names` must be parameters of {type(model).__name__}, but it has no {unknown[0]!r}"
            f"{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}. Names are those of `named_parameters()`."
        )
    fixed = sorted(n for n in wanted if not parameters[n].is_floating_point() and not parameters[n].is_complex())
    if fixed:
        raise ValueError(
            f"Only floating-point parameters can learn, but {fixed[0]!r} holds {parameters[fixed[0]].dtype}. "
            "Freeze quantised weights and train adapters over them."
        )
    for name, parameter in parameters.items():
        if parameter.requires_grad != (name in wanted):
            parameter.requires_grad_(name in wanted)
    return sum(parameter.numel() for name, parameter in parameters.items() if name in wanted)


class FrozenModules:
    """
    Keeps frozen modules still: a forward pre-hook puts them into eval mode, so that BatchNorm statistics do not move
    and dropout does not fire. `model.train()` alone would undo an `eval()`, and Trainer calls it at every step.

    Args:
        model (`nn.Module`):
            The model.
        keep_dropout (`bool`, *optional*, defaults to `False`):
            Hold only running statistics still, and let frozen modules drop out as they did in pre-training.
    """

    def __init__(self, model: nn.Module, *, keep_dropout: bool = False) -> None:
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._model, self._keep_dropout = model, keep_dropout

    def update(self, learning: frozenset[str]) -> None:
        """
        Args:
            learning (`frozenset[str]`):
                Names of the parameters that learn from now on.
        """
        self.release()
        modules = still_modules(self._model, learning)
        if self._keep_dropout:
            modules = [m for module in modules for m in module.modules() if hasattr(m, "running_mean")]
        for module in modules:
            self._handles.append(module.register_forward_pre_hook(_be_still, prepend=True))

    def release(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _be_still(module: nn.Module, args: Any) -> None:
    if module.training:
        module.eval()


def still_modules(model: nn.Module, learning: frozenset[str]) -> list[nn.Module]:
    """
    The outermost modules whose parameters are all frozen, and the parameterless ones (dropout) that follow them.

    Args:
        model (`nn.Module`):
            The model.
        learning (`frozenset[str]`):
            Names of the parameters that learn.

    Returns:
        `list[nn.Module]`: No module in the list lies inside another.
    """
    owners = {id(p): name for name, p in parameters_by_name(model).items()}
    chosen: list[nn.Module] = []

    def visit(module: nn.Module, frozen_before: bool) -> bool:
        names = [owners[id(p)] for p in module.parameters()]
        # A dropout between two groups belongs to the one registered before it, e.g. GPT-2's after its embeddings.
        if frozen_before if not names else not any(name in learning for name in names):
            chosen.append(module)
            return True
        for child in module.children() if names else ():
            frozen_before = visit(child, frozen_before)
        return bool(names) and names[-1] not in learning

    visit(model, False)
    return chosen


POLICIES: dict[str, Callable[..., FreezingPolicy]] = {
    "full": full,
    "feature-extraction": feature_extraction,
    "freeze-first": freeze_first,
    "freeze-pattern": freeze_pattern,
    "bitfit": bitfit,
    "norm-only": norm_only,
}
