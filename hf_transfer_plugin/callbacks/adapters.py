"""What a run over PEFT's adapters needs beside the freezing: flags that PEFT does not undo, and AdaLoRA's own step."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from hf_transfer_plugin.freezing import set_trainable
from hf_transfer_plugin.layers import parameters_by_name

ALLOCATION = "rank_allocation.safetensors"
_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_WARM, _FINAL = 0.1, 0.3


class HeldFlags:
    """
    PEFT's `set_adapter`, and the end of its `disable_adapter`, let every weight of an adapter learn, also those that a
    schedule keeps frozen. Before each forward pass in training the flags are set back, so that no gradient is made.

    Args:
        model (`nn.Module`):
            A model with adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._learning: frozenset[str] = frozenset()
        self._flags: list[tuple[nn.Parameter, bool]] = []
        self._handle = model.register_forward_pre_hook(self._before, prepend=True)

    def hold(self, learning: Iterable[str]) -> None:
        """
        Args:
            learning (`Iterable[str]`):
                Names of the parameters that learn from now on.
        """
        self._learning = frozenset(learning)
        self._flags = [(p, name in self._learning) for name, p in parameters_by_name(self._model).items()]

    def release(self) -> None:
        """Removes the hook."""
        self._handle.remove()

    @torch.compiler.disable
    def _before(self, module: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled() and any(p.requires_grad is not flag for p, flag in self._flags):
            set_trainable(self._model, self._learning)


def allocates_ranks(model: Any) -> bool:
    """
    Args:
        model (`nn.Module`):
            A model.

    Returns:
        `bool`: Whether it has AdaLoRA's adapters, whose ranks are allocated step by step.
    """
    return hasattr(getattr(model, "base_model", None), "rankallocator")


class RankAllocationCallback(TrainerCallback):
    """
    AdaLoRA's call after each step (https://huggingface.co/papers/2303.10512), which nothing in Trainer makes. Where
    the adapter does not say otherwise, ranks stay whole for a tenth of the run, shrink, and are fixed for the last
    three tenths. Checkpoints hold whole ranks and the importance scores, so that a resumed run goes on as it was.
    """

    def __init__(self) -> None:
        self._pattern: dict[str, list[bool]] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tells AdaLoRA how many steps there are, and gives it back its scores on resume."""
        allocator, config = _allocator(kwargs["model"])
        allocator.reset_ipt()
        config.total_step = state.max_steps
        if not config.tinit and not config.tfinal:
            config.tinit, config.tfinal = round(_WARM * state.max_steps), round(_FINAL * state.max_steps)
        if config.tinit >= config.total_step - config.tfinal:
            raise ValueError(
                f"AdaLoRA must have steps between `tinit` ({config.tinit}) and `tfinal` ({config.tfinal}) in which "
                f"ranks shrink, but the run has {state.max_steps}. Train longer or lower them."
            )
        self._pattern = config.rank_pattern = None
        if state.global_step:
            self._restore(allocator, Path(args.output_dir) / f"checkpoint-{state.global_step}" / ALLOCATION)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Scores the ranks by their gradients and masks the least important."""
        config = _allocator(kwargs["model"])[1]
        config.rank_pattern = self._pattern
        kwargs["model"].base_model.update_and_allocate(state.global_step)
        # PEFT saves cut matrices where it finds a pattern, from which no run could go on.
        self._pattern, config.rank_pattern = config.rank_pattern, None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes scores and pattern beside the checkpoint's weights."""
        if not state.is_world_process_zero:
            return
        allocator, _ = _allocator(kwargs["model"])
        tensors = {f"{kind}/{name}": value for kind in _SCORES for name, value in getattr(allocator, kind).items()}
        tensors |= {f"pattern/{name}": torch.tensor(kept) for name, kept in (self._pattern or {}).items()}
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / ALLOCATION)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves the ranks that are left, also of the best checkpoint, for PEFT to save."""
        kept = {
            name: values.detach().flatten().ne(0).tolist()
            for name, values in kwargs["model"].base_model.model.named_parameters()
            if ".lora_E." in name
        }
        if self._pattern is not None and any(any(ranks) for ranks in kept.values()):
            _allocator(kwargs["model"])[1].rank_pattern = kept

    def _restore(self, allocator: Any, file: Path) -> None:
        if not file.is_file():
            raise ValueError(
                f"AdaLoRA goes on from the importance of its ranks, but {str(file.parent)!r} has no {ALLOCATION}. "
                "Resume from a checkpoint in `output_dir`, or start anew."
            )
        for key, value in load_file(file).items():
            kind, name = key.split("/", 1)
            if kind == "pattern":
                self._pattern = {**(self._pattern or {}), name: value.tolist()}
            else:
                getattr(allocator, kind)[name] = value


def _allocator(model: Any) -> tuple[Any, Any]:
    return model.base_model.rankallocator, model.peft_config[model.base_model.trainable_adapter_name]
