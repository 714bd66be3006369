"""What runs when in a forward pass, and what of it is the first that learns."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from hf_transfer_plugin.layers import parameters_by_name
from hf_transfer_plugin.layers.probe import untouched
from hf_transfer_plugin.prefix_cache.cuts import CannotCacheError


@dataclass
class Trace:
    """
    One forward pass, module by module.

    Args:
        order (`list[str]`):
            Names of the modules in the order in which they were entered, again at each call.
        elements (`dict[str, int]`):
            Elements of the first floating-point tensor that each was given.
        reads (`dict[str, int]`):
            Parameter that the model itself holds -> how many modules had been entered when it was first read.
    """

    order: list[str] = field(default_factory=list)
    elements: dict[str, int] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)

    def first(self, name: str) -> int:
        """
        Args:
            name (`str`):
                A module that was entered.

        Returns:
            `int`: When it was entered first.
        """
        return self.order.index(name)


def trace(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    """
    Args:
        model (`nn.Module`):
            The model; left as it was.
        inputs (`Mapping[str, Any]`):
            A batch.

    Returns:
        `Trace`: What ran when.
    """
    found = Trace()

    def entering(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            found.order.append(name)
            tensors = (v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor) and v.is_floating_point())
            found.elements.setdefault(name, next((v.numel() for v in tensors), 0))

        return hook

    modules = model.named_modules()
    handles = [m.register_forward_pre_hook(entering(name), with_kwargs=True) for name, m in modules]
    reading = _Reading(lambda: len(found.order))
    held = dict(model.named_parameters(recurse=False))
    try:
        with untouched(model), reading if held else nullcontext():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    moments = {name: reading.moment(parameter) for name, parameter in held.items()}
    found.reads = {name: moment for name, moment in moments.items() if moment is not None}
    return found


def used_above_only(model: nn.Module, fed: str, probes: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """
    What changes nothing below a cut. In doubt a parameter is left out: if a module that holds it is called before, or
    in no pass that is seen (an adapter of another language, an expert), or if any operation before reads it, as where
    a weight is tied or a module takes that of another.

    Args:
        model (`nn.Module`):
            The model; left as it was.
        fed (`str`):
            Name of the first module above the cut.
        probes (`Sequence[Mapping[str, Any]]`):
            Batches on the model's device.

    Returns:
        `frozenset[str]`: Names of the parameters that only modules above read.
    """
    holders: dict[str, list[str]] = {}
    names = {id(p): name for name, p in parameters_by_name(model).items()}
    for holder, module in model.named_modules():
        for p in module.parameters(recurse=False):
            holders.setdefault(names[id(p)], []).append(holder)
    found = set(holders)
    for probe in probes:
        reading = _Reading()
        handle = model.get_submodule(fed).register_forward_pre_hook(reading.end)
        try:
            with reading:
                order = trace(model, probe).order
        finally:
            handle.remove()
        above = set(order[order.index(fed) :]) - set(order[: order.index(fed)])
        found = {name for name in found if above.issuperset(holders[name])}
        found -= {name for name, p in parameters_by_name(model).items() if reading.moment(p) is not None}
    return frozenset(found)


class _Reading(TorchDispatchMode):
    """Which tensors operations read until `end` is called, and when by a clock."""

    def __init__(self, clock: Callable[[], int] = lambda: 0) -> None:
        super().__init__()
        self._seen: dict[int | None, int] = {}
        self._clock, self._ended = clock, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._ended:
            tensors = (leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor))
            for tensor in tensors:
                self._seen.setdefault(_memory(tensor), self._clock())
        return func(*args, **(kwargs or {}))

    def end(self, module: nn.Module, args: Any) -> None:
        self._ended = True

    def moment(self, tensor: torch.Tensor) -> int | None:
        """When one was first read that shares its memory; what does not tell where it lies may always have been."""
        memory = _memory(tensor)
        return 0 if memory is None else self._seen.get(memory)


def _memory(tensor: torch.Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr() or None
    except RuntimeError:  # A tensor without memory of its own, as some quantized ones.
        return None


def first_live(model: nn.Module, learning: frozenset[str], still: Sequence[nn.Module], seen: Trace) -> str:
    """
    Args:
        model (`nn.Module`):
            The model.
        learning (`frozenset[str]`):
            Names of the parameters that learn.
        still (`Sequence[nn.Module]`):
            Modules that stay in eval mode.
        seen (`Trace`):
            A forward pass.

    Returns:
        `str`: Name of the first module that learns, or of the dropout before it.

    Raises:
        CannotCacheError: If none of the modules that are called learns, or the model reads before them what it holds
            itself and learns.
    """
    names = {id(p): name for name, p in parameters_by_name(model).items()}
    quiet = {id(inner) for module in still for inner in module.modules()}
    modules = dict(model.named_modules())
    dropping: str | None = None
    for number, name in enumerate(seen.order):
        module = modules[name]
        own = [names[id(p)] for p in module.parameters(recurse=False)]
        # What the model itself holds, as the temperature of two towers, is not used where the model is entered.
        if name and any(n in learning for n in own):
            early = [n for n, moment in seen.reads.items() if n in learning and moment <= number]
            if early:
                raise CannotCacheError(f"{early[0]!r} learns, but is read before {name!r}, the first module that does")
            return dropping or name
        if own:
            # Dropout before a frozen layer is part of the prefix, and as still as that.
            dropping = None
        elif isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 and id(module) not in quiet:
            dropping = dropping or name
    raise CannotCacheError("no module with a learning parameter is called by itself")
