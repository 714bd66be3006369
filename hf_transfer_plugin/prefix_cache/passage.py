"""The hands on a model's modules: to run it above a cut from tensors, or below it to catch them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from hf_transfer_plugin.layers.hands import OwnForward, OwnHook
from hf_transfer_plugin.prefix_cache.shapes import OutputShapes, computed_without_values

# On a placeholder: the tensor that was fed in its place. A backward pass may follow several forward passes.
_INSTEAD = "_frozen_prefix"


@dataclass(frozen=True, order=True)
class Address:
    """
    Where a tensor passes the cut.

    Args:
        module (`str`):
            Name of a module.
        output (`bool`):
            Whether it is part of what the module returns, not of what it is given.
        leaf (`int`):
            Its place among the flattened arguments or outputs.
    """

    module: str
    output: bool
    leaf: int


class Passage:
    """
    Skips modules of a model, which then return placeholders, and feeds tensors where they are told to pass.

    Args:
        model (`nn.Module`):
            The model.
        fed (`str`):
            The module whose inputs are fed; the first that is not skipped.
        skipped (`Sequence[str]`):
            The modules that are not run.
        repeated (`bool`, *optional*, defaults to `False`):
            Whether a forward pass calls the fed module several times; the first call alone is fed.
        shapes (`Mapping[str, OutputShapes]`, *optional*):
            What another passage has learned of the skipped modules' outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        fed: str,
        skipped: Sequence[str],
        *,
        repeated: bool = False,
        shapes: Mapping[str, OutputShapes] | None = None,
    ) -> None:
        self.model, self.fed, self.skipped, self._repeated = model, fed, tuple(skipped), repeated
        self.modules = {name: model.get_submodule(name) for name in (*skipped, fed)}
        self.shapes = {name: OutputShapes() for name in skipped} if shapes is None else shapes
        self._handles: list[Any] = []
        self._own: dict[str, Any] = {}
        self._values: Mapping[Address, torch.Tensor] | None = None
        self._caught: dict[str, list[Any]] | None = None
        self._noise = self.running = False
        self._calls = 0
        self.was_fed = False

    def install(self) -> None:
        """Puts the hands on; nothing changes until `feeding` or `catching`."""
        for name in self.skipped:
            module = self.modules[name]
            self._own[name] = module.__dict__.get("forward")
            module.forward = OwnForward(module, self._skipping(name, module.forward))
        fed = self.modules[self.fed]
        self._handles.append(fed.register_forward_pre_hook(OwnHook(self._feed), with_kwargs=True))

    def remove(self) -> None:
        """Takes the hands off: the model is as it was."""
        for handle in self._handles:
            handle.remove()
        for name, own in self._own.items():
            module = self.modules[name]
            module.__dict__.pop("forward")
            if own is not None:
                module.forward = own
        self._handles, self._own = [], {}
        self.release()

    @contextmanager
    def installed(self) -> Iterator["Passage"]:
        """
        Yields:
            `Passage`: This one, with its hands on the model.
        """
        self.install()
        try:
            yield self
        finally:
            self.remove()

    def feed(self, values: Mapping[Address, torch.Tensor], *, noise: bool = False) -> None:
        """
        From now on the skipped modules are not run.

        Args:
            values (`Mapping[Address, torch.Tensor]`):
                What passes the cut.
            noise (`bool`, *optional*, defaults to `False`):
                Let what is not fed be noise instead of zeros.
        """
        self._values, self._noise, self.running, self._calls, self.was_fed = values, noise, True, 0, False

    def rest(self) -> None:
        """The forward pass is over; what of it runs again in the backward pass is still fed."""
        self.running = False

    def release(self) -> None:
        """Forgets what was fed: all modules run."""
        self._values, self.running, self._caught = None, False, None

    def run(self, inputs: Mapping[str, Any], values: Mapping[Address, torch.Tensor], *, noise: bool = False) -> Any:
        """
        Args:
            inputs (`Mapping[str, Any]`):
                A batch.
            values (`Mapping[Address, torch.Tensor]`):
                What passes the cut.
            noise (`bool`, *optional*, defaults to `False`):
                Let what is not fed be noise instead of zeros.

        Returns:
            `ModelOutput`: What the model returns.
        """
        self.feed(values, noise=noise)
        try:
            return self.model(**inputs)
        finally:
            self.rest()

    def watch(self, inputs: Mapping[str, Any]) -> tuple[dict[str, list[Any]], Any]:
        """
        Runs every module, keeps what passes, and learns the shapes of what the skipped modules return.

        Args:
            inputs (`Mapping[str, Any]`):
                A batch.

        Returns:
            `tuple`: For the fed module the flattened inputs, for every skipped one the flattened outputs; and what the
            model returned.
        """
        self.release()
        caught: dict[str, list[Any]] = {}
        self._caught = caught
        try:
            return caught, self.model(**inputs)
        finally:
            self._caught = None

    def _skipping(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        shapes = self.shapes[name]

        def skipping(*args: Any, **kwargs: Any) -> Any:
            if self._values is None or not self.running:
                output = forward(*args, **kwargs)
                if self._caught is not None:
                    shapes.observe((args, kwargs), output)
                    self._caught[name] = tree_flatten(output)[0]
                return output
            found = shapes.placeholder((args, kwargs), noise=self._noise)
            if found is None:
                shapes.observe(*_computed(forward, (args, kwargs)))
                found = shapes.placeholder((args, kwargs), noise=self._noise)
            return self._with_values(name, found)

        return skipping

    def _with_values(self, name: str, output: Any) -> Any:
        assert self._values is not None
        wanted = {a.leaf: value for a, value in self._values.items() if a.output and a.module == name}
        if not wanted:
            return output
        leaves, spec = tree_flatten(output)
        return tree_unflatten(
            [fitted(wanted[i], leaf) if i in wanted else leaf for i, leaf in enumerate(leaves)], spec
        )

    def _feed(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self._caught is not None and self.fed not in self._caught:
            self._caught[self.fed] = tree_flatten((args, kwargs))[0]
        leaves, spec = tree_flatten((args, kwargs))
        if self._values is None or not self.running or (self._repeated and self._calls):
            return self._fed_again(leaves, spec)
        self._calls, self.was_fed = self._calls + 1, True
        for address, value in self._values.items():
            if not address.output:
                given = leaves[address.leaf]
                leaves[address.leaf] = fitted(value, given)
                if isinstance(given, torch.Tensor):
                    setattr(given, _INSTEAD, leaves[address.leaf])
        return tree_unflatten(leaves, spec)

    def _fed_again(self, leaves: list[Any], spec: Any) -> Any:
        """What is checkpointed runs again in the backward pass: each call is given what it was given then, if any."""
        if torch._C._current_graph_task_id() == -1 or not any(hasattr(leaf, _INSTEAD) for leaf in leaves):
            return None
        return tree_unflatten([getattr(leaf, _INSTEAD, leaf) for leaf in leaves], spec)


class Catcher:
    """
    Keeps what passes the cuts of a model while it runs.

    Args:
        model (`nn.Module`):
            The model.
        addresses (`Sequence[Address]`):
            Where the tensors pass.
    """

    def __init__(self, model: nn.Module, addresses: Sequence[Address]) -> None:
        self.caught: dict[Address, torch.Tensor] = {}
        self._wanted: dict[tuple[str, bool], list[Address]] = {}
        for address in addresses:
            self._wanted.setdefault((address.module, address.output), []).append(address)
        self._stops = self._open = False
        self._handles = []
        for name, output in self._wanted:
            module, key = model.get_submodule(name), (name, output)
            if output:
                self._handles.append(module.register_forward_hook(OwnHook(self._left(key))))
            else:
                hook = OwnHook(self._entered(key))
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()

    def open(self, *, stop: bool = False) -> None:
        """
        Keeps what passes from now on.

        Args:
            stop (`bool`, *optional*, defaults to `False`):
                End the forward pass by [`PassedError`] when everything has passed.
        """
        self.caught, self._open, self._stops = {}, True, stop

    def close(self) -> dict[Address, torch.Tensor]:
        """
        Returns:
            `dict[Address, torch.Tensor]`: What has passed since `open`.
        """
        self._open = False
        return self.caught

    def run(self, inputs: Mapping[str, Any], model: Callable[..., Any]) -> dict[Address, torch.Tensor]:
        """
        Runs a model up to the last of the addresses.

        Args:
            inputs (`Mapping[str, Any]`):
                A batch.
            model (`Callable`):
                The model, or what it is wrapped in.

        Returns:
            `dict[Address, torch.Tensor]`: What passed.
        """
        self.open(stop=True)
        try:
            model(**inputs)
        except PassedError:
            return self.caught
        finally:
            self._open = False
        return self.caught

    def _entered(self, key: tuple[str, bool]) -> Any:
        return lambda module, args, kwargs: self._keep(key, (args, kwargs))

    def _left(self, key: tuple[str, bool]) -> Any:
        return lambda module, args, output: self._keep(key, output)

    def _keep(self, key: tuple[str, bool], tree: Any) -> None:
        if not self._open or self._wanted[key][0] in self.caught:
            return
        leaves = tree_flatten(tree)[0]
        self.caught |= {address: leaves[address.leaf].detach() for address in self._wanted[key]}
        if self._stops and len(self.caught) == sum(map(len, self._wanted.values())):
            raise PassedError


class PassedError(Exception):
    """Ends a forward pass: everything that was wanted has passed."""


def _computed(forward: Callable[..., Any], inputs: Any) -> tuple[Any, Any]:
    """What a skipped module returns for shapes that are new: without values; with values where it looks at them."""
    try:
        return computed_without_values(forward, inputs)
    except Exception:  # noqa: BLE001  what a module does with its values is its own affair
        with torch.no_grad():
            return inputs, forward(*inputs[0], **inputs[1])


def fitted(value: torch.Tensor, placeholder: Any) -> torch.Tensor:
    """
    Args:
        value (`torch.Tensor`):
            What was stored.
        placeholder (`torch.Tensor` or `None`):
            What stands where it goes.

    Returns:
        `torch.Tensor`: The value, with zeros behind it up to the size of the placeholder, where that is longer.
    """
    if not isinstance(placeholder, torch.Tensor) or value.shape == placeholder.shape:
        return value
    whole = value.new_zeros(placeholder.shape)
    whole[tuple(slice(size) for size in value.shape)] = value
    return whole
