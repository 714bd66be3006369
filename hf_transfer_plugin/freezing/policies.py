"""Policies: choices of parameters that stay the same for the whole run."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

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
            `frozenset[str]`: Names of the parameters that learn; never base weights beneath adapters.

        Raises:
            ValueError: If nothing would be left to train.
        """
        names = frozenset(self.choose(model, groups)) - groups.locked
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
            Number of groups to freeze, counted from the embeddings; with adapters, from the lowest group with one.

    Returns:
        `FreezingPolicy`: Every group above the `k`-th learns.

    Example:
    ```python
    >>> set_trainable(model, freeze_first(4)(model, discover_layer_groups(model)))
    ```
    """

    def choose(model: nn.Module, groups: LayerGroups) -> list[str]:
        check_count("k", k, groups)
        return [name for group in groups.open[k:] for name in group.parameters]

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


def check_count(name: str, value: Any, groups: LayerGroups) -> None:
    """
    Args:
        name (`str`):
            Name of a field, for the message.
        value (`Any`):
            Its value: how many layer groups stay frozen.
        groups (`LayerGroups`):
            The layer groups.

    Raises:
        ValueError: If it is no whole number, or leaves no group to learn.
    """
    count = len(groups.open)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise ValueError(
            f"`{name}` must lie between 0 and {count - 1} for {groups.model_name!r} with its {count} layer groups "
            f"({groups.summary()}), but got {value!r}. Run `hf-transfer-plugin inspect` to list them."
        )


POLICIES: dict[str, Callable[..., FreezingPolicy]] = {
    "full": full,
    "feature-extraction": feature_extraction,
    "freeze-first": freeze_first,
    "freeze-pattern": freeze_pattern,
    "bitfit": bitfit,
    "norm-only": norm_only,
}
