"""What a run over PEFT's adapters needs beside the freezing: flags that PEFT does not undo, and AdaLoRA's own step."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hf_transfer_plugin.callbacks.beside import BesideCheckpoint
from hf_transfer_plugin.freezing import set_trainable
from hf_transfer_plugin.layers import parameters_by_name

ALLOCATION = "rank_allocation.safetensors"
_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_WARM, _FINAL = 0.1, 0.3
_COMPUTED = "computed_phases"  # beside the configuration's fields, which are saved


class HeldFlags:
    """
    PEFT's `set_adapter`, and the end of its `disable_adapter`, let every weight of an adapter learn, also those that a
    schedule keeps frozen. Before each forward pass in training the flags are set back, so that no gradient is made;
    and before each backward pass, which under activation checkpointing must find them as the forward pass did.

    Args:
        model (`nn.Module`):
            A model with adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._learning: frozenset[str] = frozenset()
        self._flags: list[tuple[nn.Parameter, bool]] = []
        self._handles = [
            model.register_forward_pre_hook(self._before, prepend=True),
            model.register_forward_hook(self._after),
        ]

    def hold(self, learning: Iterable[str]) -> None:
        """
        Args:
            learning (`Iterable[str]`):
                Names of the parameters that learn from now on.
        """
        self._learning = frozenset(learning)
        self._flags = [(p, name in self._learning) for name, p in parameters_by_name(self._model).items()]

    def release(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()

    @torch.compiler.disable
    def _before(self, module: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():
            self._set_back()

    @torch.compiler.disable
    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        for tensor in _outermost_tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(self._set_back)

    def _set_back(self, gradient: torch.Tensor | None = None) -> None:
        if any(p.requires_grad is not flag for p, flag in self._flags):
            set_trainable(self._model, self._learning)


def _outermost_tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        output = [output]
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return (value for value in values if isinstance(value, torch.Tensor))


def allocates_ranks(model: Any) -> bool:
    """
    Args:
        model (`nn.Module`):
            A model.

    Returns:
        `bool`: Whether it has AdaLoRA's adapters, whose ranks are allocated step by step.
    """
    return hasattr(getattr(model, "base_model", None), "rankallocator")


class RankAllocationCallback(BesideCheckpoint):
    """
    AdaLoRA's call after each step (https://huggingface.co/papers/2303.10512), which nothing in Trainer makes. Where
    the adapter does not say otherwise, ranks stay whole for a tenth of the run, shrink, and are fixed for the last
    three tenths. Checkpoints hold whole ranks and the importance scores, so that a resumed run goes on as it was.

    Args:
        share (`Callable[[], float]`, *optional*):
            What AdaLoRA's penalty is multiplied by where the loss of a micro-batch is its share of the whole batch's:
            PEFT adds it to each. [`attach`] passes it.
    """

    def __init__(self, share: Callable[[], float] = lambda: 1.0) -> None:
        super().__init__(ALLOCATION, "the importance of AdaLoRA's ranks")
        self._share = share
        self._pattern: dict[str, list[bool]] | None = None
        self._handles: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tells AdaLoRA how many steps there are, and gives it back its scores on resume."""
        model = kwargs["model"]
        allocator, config = _allocator(model)
        allocator.reset_ipt()
        config.total_step = state.max_steps
        # An earlier run with the same model may have set them, for another number of steps.
        if (config.tinit, config.tfinal) in ((0, 0), getattr(config, _COMPUTED, None)):
            config.tinit, config.tfinal = round(_WARM * state.max_steps), round(_FINAL * state.max_steps)
            setattr(config, _COMPUTED, (config.tinit, config.tfinal))
        if config.tinit >= config.total_step - config.tfinal:
            raise ValueError(
                f"AdaLoRA must have steps between `tinit` ({config.tinit}) and `tfinal` ({config.tfinal}) in which "
                f"ranks shrink, but the run has {state.max_steps}. Train longer or lower them."
            )
        if config.init_r <= config.target_r:
            raise ValueError(
                f"AdaLoRA must begin with more ranks (`init_r`) than it keeps (`target_r`), but got {config.init_r} "
                f"and {config.target_r}. Lower `target_r`, or use `lora`."
            )
        self._pattern = config.rank_pattern = None
        parameters = dict(model.base_model.model.named_parameters())
        for key, value in self.begin(args, state).items():
            kind, name = key.split("/", 1)
            if kind == "pattern":
                self._pattern = {**(self._pattern or {}), name: value.tolist()}
            else:
                getattr(allocator, kind)[name] = value.to(parameters[name].device)
        self._share_penalty(model.base_model, config)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Scores the ranks by their gradients and masks the least important."""
        config = _allocator(kwargs["model"])[1]
        config.rank_pattern = self._pattern
        kwargs["model"].base_model.update_and_allocate(state.global_step)
        # PEFT saves cut matrices where it finds a pattern, from which no run could go on.
        self._pattern, config.rank_pattern = config.rank_pattern, None

    def tensors(self, model: Any) -> dict[str, torch.Tensor]:
        """
        Args:
            model (`PeftModel`):
                The model.

        Returns:
            `dict[str, torch.Tensor]`: Scores and pattern.
        """
        allocator, _ = _allocator(model)
        tensors = {f"{kind}/{name}": value for kind in _SCORES for name, value in getattr(allocator, kind).items()}
        return tensors | {f"pattern/{name}": torch.tensor(kept) for name, kept in (self._pattern or {}).items()}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves the ranks that are left, also of the best checkpoint, for PEFT to save."""
        self._release()
        kept = {
            name: values.detach().flatten().ne(0).tolist()
            for name, values in kwargs["model"].base_model.model.named_parameters()
            if ".lora_E." in name
        }
        if self._pattern is not None and any(any(ranks) for ranks in kept.values()):
            _allocator(kwargs["model"])[1].rank_pattern = kept

    def _share_penalty(self, model: nn.Module, config: Any) -> None:
        weight = config.orth_reg_weight

        def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if module.training and kwargs.get("num_items_in_batch") is not None:
                config.orth_reg_weight = weight * self._share()

        def after(module: nn.Module, args: Any, output: Any) -> None:
            config.orth_reg_weight = weight

        self._release()
        self._handles = [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after, always_call=True),
        ]

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _allocator(model: Any) -> tuple[Any, Any]:
    return model.base_model.rankallocator, model.peft_config[model.base_model.trainable_adapter_name]
