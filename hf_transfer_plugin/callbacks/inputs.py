"""The hook by which the embeddings' output needs a gradient: as the run wants it, and afterwards as it was found."""

from typing import Any

from torch import nn

from hf_transfer_plugin.callbacks.agreement import uses_reentrant

_NAMES = ("make_inputs_require_grads", "make_inputs_require_grad")  # Transformers' and PEFT's


class InputGradients:
    """
    Turns Transformers' hook, or PEFT's, on or off for one run. With it, frozen blocks at the bottom are differentiated
    and recomputed for nothing under activation checkpointing; without it, the backward pass of reversible layers,
    which is their own, is not called over frozen embeddings.

    Args:
        model (`nn.Module`):
            The model.
        args (`TrainingArguments`):
            The arguments.
    """

    def __init__(self, model: Any, args: Any) -> None:
        self._model = model
        self._ours: list[Any] = []
        self._taken: list[tuple[nn.Module, Any]] = []
        if getattr(getattr(model, "config", None), "model_type", None) == "reformer":
            if not _hooks(model):
                self._put_on()
        elif _checkpoints_without_hook(model, args):
            self._take_off()

    def _take_off(self) -> None:
        """Every one: who puts on a second hook loses the handle of the first."""
        if getattr(self._model, "_require_grads_hooks", None):
            self._taken = [(module, hook) for module, _, hook in _hooks(self._model)]
            self._model.disable_input_require_grads()
        for module, key, hook in _hooks(self._model):
            self._taken.append((module, hook))
            del module._forward_hooks[key]

    def _put_on(self) -> None:
        if hasattr(self._model, "enable_input_require_grads"):
            self._model.enable_input_require_grads()
            self._ours = list(self._model._require_grads_hooks)
        else:
            self._ours = [module.register_forward_hook(hook) for module, hook in dict(self._taken).items()]

    def release(self) -> None:
        """Leaves the model as it was found."""
        if self._taken:
            self._put_on()
            self._taken = []
        else:
            self.forget()

    def forget(self) -> None:
        """Takes away what is still ours: before the next run, for which Trainer puts on hooks of its own."""
        for handle in self._ours:
            handle.remove()
        self._ours = []


def _hooks(model: nn.Module) -> list[tuple[nn.Module, int, Any]]:
    found = ((module, key, hook) for module in model.modules() for key, hook in module._forward_hooks.items())
    return [(module, key, hook) for module, key, hook in found if getattr(hook, "__name__", "") in _NAMES]


def _checkpoints_without_hook(model: nn.Module, args: Any) -> bool:
    """Whether activation checkpointing, by the arguments or by the model itself, is of the kind that needs no hook."""
    on = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    functions = [f for module in on if (f := getattr(module, "_gradient_checkpointing_func", None)) is not None]
    if args.activation_checkpointing:
        return not uses_reentrant(args)
    return bool(functions) and all(getattr(f, "keywords", {}).get("use_reentrant") is False for f in functions)
