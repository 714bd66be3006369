"""Guards of a run: a loss that is no number stops it, Ctrl-C leaves a checkpoint."""

import signal
import threading
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from hf_transfer_plugin.callbacks.ranks import anywhere


class NonFiniteLossCallback(TrainerCallback):
    """Stops the run at the step whose loss is NaN or infinite, before the weights are spoilt; Trainer would go on."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._losses: list[torch.Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Watches what the model returns."""
        self._stop_watching()  # A run before may have broken off.
        self._losses = []

        def keep(module: nn.Module, inputs: Any, outputs: Any) -> None:
            loss = outputs.get("loss") if hasattr(outputs, "get") else None
            if module.training and loss is not None:
                self._losses.append(loss.detach())

        self._handle = kwargs["model"].register_forward_hook(keep)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises before the step is taken, on all processes."""
        means, self._losses = [loss.mean() for loss in self._losses], []
        wrong = bool(means) and not torch.isfinite(torch.stack(means)).all()
        if anywhere(wrong, args.device):
            nan = anywhere(wrong and bool(torch.stack(means).isnan().any()), args.device)
            raise RuntimeError(
                f"The loss became {'nan' if nan else 'inf'} at step {state.global_step + 1}, so the run was "
                "stopped. Lower `learning_rate`, add `warmup_steps`, or look for bad rows in the data."
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops watching."""
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self._handle is not None:
            self._handle.remove()


class InterruptCallback(TrainerCallback):
    """
    Lets the first Ctrl-C finish the step and save a checkpoint; a second one stops at once. Of several processes all
    stop after the same step, whichever hears of it first. Call `release` when training is over, also after an error.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the signal over, in the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.interrupted = True
        self.release()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves and stops."""
        self.interrupted = anywhere(self.interrupted, args.device)
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

    def release(self) -> None:
        """Gives the signal back."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
