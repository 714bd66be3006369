"""What is put on the modules of one model alone: its copies, saved or averaged ones too, are plain models."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from operator import itemgetter
from types import MethodType
from typing import Any

from torch import nn

# Stands where a copied module has the hook of another; of the standard library, so that a saved copy needs no more.
_NOTHING = nullcontext().__exit__


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
        return _NOTHING

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


class OwnMethod:
    """
    What stands in for a method of a module, but for that of its copies.

    Args:
        module (`nn.Module`):
            The module.
        name (`str`):
            The method.
        call (`Callable`):
            What stands in.
    """

    def __init__(self, module: nn.Module, name: str, call: Callable[..., Any]) -> None:
        self._module, self._name, self._call, self._before = module, name, call, vars(module).get(name)

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
        return MethodType(getattr(type(self._module), self._name), memo.get(id(self._module), self._module))

    def __reduce__(self) -> tuple[Any, ...]:
        if self._before is not None:
            return itemgetter(0), ((self._before,),)
        # While it is read, the module has no attributes of its own yet: this is the method of its class.
        return getattr, (self._module, self._name)


class OwnForward(OwnMethod):
    """
    A `forward` that stands in for a module's, but for those of its copies.

    Args:
        module (`nn.Module`):
            The module.
        call (`Callable`):
            What stands in.
    """

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__(module, "forward", call)
