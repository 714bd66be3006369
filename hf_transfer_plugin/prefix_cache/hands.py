"""What is put on the modules of one model alone: its copies, such as averages of its weights, are plain models."""

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn


class OwnHook:
    """
    A hook that copies of the module do not have.

    Args:
        call (`Callable`):
            The hook.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        """
        Args:
            args (`tuple`):
                What PyTorch hands to a hook.

        Returns:
            What the hook returns.
        """
        return self._call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _nothing


class OwnForward:
    """
    A `forward` that stands in for a module's, but for those of its copies.

    Args:
        module (`nn.Module`):
            The module.
        call (`Callable`):
            What stands in.
    """

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        self._module, self._call, self._before = module, call, vars(module).get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """
        Args:
            args (`tuple`):
                Arguments of a call.
            kwargs (`dict[str, Any]`):
                Its keyword arguments.

        Returns:
            What stands in returns.
        """
        return self._call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._before is not None:
            return copy.deepcopy(self._before, memo)
        return MethodType(type(self._module).forward, memo.get(id(self._module), self._module))


def _nothing(*args: Any) -> None:
    """Stands where a copied module has the hook of another."""
