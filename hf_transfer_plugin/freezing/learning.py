"""What learns at a moment, and the one hand that writes `requires_grad`."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from hf_transfer_plugin.freezing.policies import FreezingPolicy, check_count
from hf_transfer_plugin.layers import LayerGroup, LayerGroups, parameters_by_name


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
    learning: Sequence[LayerGroup] = groups.open
    if groups.locked and getattr(strategy, "keeps_first", False) and learning[0].name != "embeddings":
        # The first is meant to be the embeddings; beneath adapters they are often locked, and nothing learns there.
        learning = (LayerGroup("embeddings", ()), *learning)
    return frozenset(name for i in strategy(progress, len(learning)) for name in learning[i].parameters)


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
    if not groups.open:
        raise ValueError(
            f"An adapter must learn, but those of {groups.model_name!r} are all frozen. Load them with "
            "`is_trainable=True`, and make one active with `set_adapter`."
        )
    if isinstance(strategy, FreezingPolicy):
        return strategy(model, groups)
    if getattr(strategy, "needs_head", False):
        groups.require_head(strategy.name)
    frozen = getattr(strategy, "frozen", 0)
    check_count("frozen", frozen, groups)
    return frozenset(name for group in groups.open[frozen:] for name in group.parameters)


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
