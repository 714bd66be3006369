"""The hook by which the embeddings' output needs a gradient: as the run wants it, and afterwards as it was found."""

from typing import Any

from hf_transfer_plugin.callbacks.agreement import uses_reentrant


class InputGradients:
    """
    Turns Transformers' hook on or off for one run. With it, frozen blocks at the bottom are differentiated and
    recomputed for nothing under activation checkpointing; without it, the backward pass of reversible layers, which is
    their own, is not called over frozen embeddings.

    Args:
        model (`nn.Module`):
            The model.
        args (`TrainingArguments`):
            The arguments.
    """

    def __init__(self, model: Any, args: Any) -> None:
        self._model = model
        self._ours: list[Any] = []
        self._taken = False
        found = bool(getattr(model, "_require_grads_hooks", None))
        if getattr(getattr(model, "config", None), "model_type", None) == "reformer":
            if not found:
                self._put_on()
        elif found and args.activation_checkpointing and not uses_reentrant(args):
            self._model.disable_input_require_grads()
            self._taken = True

    def _put_on(self) -> None:
        self._model.enable_input_require_grads()
        self._ours = list(self._model._require_grads_hooks)

    def release(self) -> None:
        """Leaves the model as it was found."""
        if self._taken:
            self._put_on()
        else:
            self.forget()

    def forget(self) -> None:
        """Takes away what is still ours: before the next run, for which Trainer puts on hooks of its own."""
        for handle in self._ours:
            handle.remove()
        self._ours = []
