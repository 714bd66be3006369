"""The hand on a Trainer: `attach` sets its optimizer and callbacks, and refuses what would go wrong in silence."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Trainer

from hf_transfer_plugin.callbacks import FreezingCallback
from hf_transfer_plugin.callbacks.freezing import fitting_groups
from hf_transfer_plugin.freezing import FreezingPolicy, ever_learning_names, set_trainable
from hf_transfer_plugin.layers import LayerGroups, discover_layer_groups
from hf_transfer_plugin.learning_rates import build_optimizer, tensors_of
from hf_transfer_plugin.losses import LossTerm

_NO_CLOSED_FORM = ("reduce_lr_on_plateau", "greedy")


class _Attachment(FreezingCallback):
    """The freezing callback of an attached Trainer, which may also reset the Trainer for a second run."""

    _why_missing = (
        "`attach` did not make it. Call `super().create_optimizer()` in your own `create_optimizer`, hand it every "
        "parameter of the model, or freeze for good what it leaves out."
    )
    made_optimizer = False

    def __init__(self, trainer: Trainer, schedule: Any, learning_rates: Any, groups: LayerGroups) -> None:
        super().__init__(schedule, groups=groups, learning_rates=learning_rates)
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuses what came after `attach`: a second freezing callback, rates without the optimizer they stand in."""
        callbacks = self._trainer.callback_handler.callbacks
        if any(isinstance(other, FreezingCallback) and other is not self for other in callbacks):
            raise ValueError(
                "Two freezing callbacks would undo each other at every step, but a `FreezingCallback` was added to a "
                "Trainer that `attach` had given a schedule. Keep one of them."
            )
        if self.learning_rates is not None and not self.made_optimizer:
            raise ValueError(
                "`learning_rates` stand in the optimizer that `attach` makes, with a group for each layer, but "
                f"{type(self._trainer).__name__} trains with another. Call `super().create_optimizer()` in your own "
                "`create_optimizer`, or choose the class and its settings in `get_optimizer_cls_and_kwargs` instead; "
                "or leave out `learning_rates`."
            )
        super().on_train_begin(args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves model and Trainer ready for a second `train()`, with optimizer, scheduler and wrapper made anew."""
        super().on_train_end(args, state, control, **kwargs)
        trainer = self._trainer
        trainer.optimizer = trainer.lr_scheduler = None
        self.made_optimizer = False
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            trainer.model_wrapped = trainer.model


def attach(
    trainer: Trainer,
    *,
    schedule: Any = None,
    learning_rates: Any = None,
    terms: Sequence[LossTerm] = (),
    groups: LayerGroups | None = None,
) -> LayerGroups:
    """
    Gives any Trainer freezing, an unfreezing schedule and layer-wise learning rates.

    Every parameter that will ever learn is in the optimizer from the start, in groups of layer × weight decay; only
    `requires_grad` changes, as a function of the step. Call it after the Trainer is made and before `train()`.

    Args:
        trainer (`Trainer`):
            A Trainer or a subclass of it.
        schedule (`FreezingPolicy` or `UnfreezingSchedule`, *optional*):
            Which parameters learn when; those that are trainable now without it.
        learning_rates (`LayerwiseDecay` or `SlantedTriangular`, *optional*):
            Factors on `learning_rate` for each layer group.
        terms (`Sequence[LossTerm]`, *optional*):
            Terms added to the loss; the Trainer must then be a [`TransferTrainer`] or use [`TransferMixin`].
        groups (`LayerGroups`, *optional*):
            Layer groups; discovered where they are not given.

    Returns:
        `LayerGroups`: The layer groups in use.

    Raises:
        ValueError: If the Trainer, its arguments and the strategy do not go together.

    Example:
    ```python
    >>> trainer = Trainer(model=model, args=args, train_dataset=data)
    >>> groups = attach(trainer, schedule=GradualUnfreezing(), learning_rates=LayerwiseDecay(0.9))
    >>> trainer.train()
    ```
    """
    if schedule is None and learning_rates is None and not terms:
        raise ValueError("Nothing to attach: pass `schedule=`, `learning_rates=` or `terms=`.")
    changing = schedule is not None and not hasattr(schedule, "choose")
    _refuse(trainer, changing, learning_rates, terms)
    model = trainer.model
    if schedule is not None and (hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False)):
        raise ValueError(
            "A schedule over layers would thaw the base weights beneath this model's adapters. Leave out `schedule`: "
            "the adapters are trained as PEFT made them, and `learning_rates` may be given."
        )
    chosen = schedule if schedule is not None else _as_found(model)
    if groups is None:
        groups = discover_layer_groups(model)
        if not groups.verified:
            groups = discover_layer_groups(model, inputs=_first_batch(trainer))
    if getattr(chosen, "needs_head", False):
        groups.require_head(chosen.name)
    # At wrap time every parameter that will ever learn must be trainable, or DDP never synchronises it.
    set_trainable(model, ever_learning_names(chosen, model, groups))
    attachment = _Attachment(trainer, chosen, learning_rates, groups)
    trainer.optimizer_cls_and_kwargs = _optimizer_factory(trainer, attachment)
    # First in line, so that the loggers behind it see what it adds to the logs.
    trainer.callback_handler.callbacks.insert(0, attachment)
    if terms:
        trainer.terms = tuple(terms)
        for term in terms:
            term.prepare(model)
    return groups


def _as_found(model: nn.Module) -> FreezingPolicy:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return FreezingPolicy("as-found", {}, lambda model, groups: names)


def _first_batch(trainer: Trainer) -> dict[str, Any] | None:
    if trainer.train_dataset is None:
        return None
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(trainer.get_train_dataloader()))
    return {name: value for name, value in batch.items() if name != "labels"}


def _optimizer_factory(trainer: Trainer, attachment: _Attachment) -> tuple[Any, dict]:
    """What Trainer calls with the live model: after `model_init` too, and before the model is wrapped."""
    typed = trainer.optimizer_cls_and_kwargs

    def make(model: nn.Module, **unused: Any) -> torch.optim.Optimizer:
        groups = attachment.groups = fitting_groups(attachment.groups, model)
        learning = ever_learning_names(attachment.schedule, model, groups)
        set_trainable(model, learning)
        # Again and not at attach alone: a trial of a search may have chosen another `optim` or rate.
        optimizer_class, arguments, given = _refuse_optimizer(trainer, model, attachment.learning_rates, typed)
        attachment.made_optimizer = True
        return build_optimizer(
            optimizer_class,
            arguments,
            model,
            groups,
            learning=learning,
            decayed=set(trainer.get_decay_parameter_names(model)),
            weight_decay=trainer.args.weight_decay,
            learning_rates=attachment.learning_rates,
            given=given,
        )

    return (lambda: make), {}


def _refuse(trainer: Trainer, changing: bool, learning_rates: Any, terms: Sequence[LossTerm]) -> None:
    args = trainer.args
    if any(isinstance(callback, FreezingCallback) for callback in trainer.callback_handler.callbacks):
        raise ValueError("This Trainer already has a freezing schedule; make a new Trainer for another one.")
    if trainer.optimizer is not None:
        raise ValueError(
            "`attach` builds the optimizer itself, with a group for each layer, but this Trainer already has one. "
            "Leave out `optimizers=(...)` and name the optimizer with `optim=` in the arguments."
        )
    if terms and not isinstance(trainer, TransferMixin):
        raise ValueError(
            f"`terms` are added in `compute_loss`, which {type(trainer).__name__} does not do. "
            "Use `TransferTrainer`, or put `TransferMixin` in front of your own Trainer."
        )
    _refuse_optimizer(trainer, trainer.model, learning_rates, trainer.optimizer_cls_and_kwargs)
    kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if learning_rates is not None and learning_rates.changes_with_step and kind in _NO_CLOSED_FORM:
        raise ValueError(
            f"Rates that change after a thaw would compound under `lr_scheduler_type={kind!r}`, which has no closed "
            "form. Use `warmup_steps=0`, or a linear, cosine or constant schedule."
        )
    if getattr(learning_rates, "name", "") == "slanted-triangular" and kind != "constant":
        raise ValueError(
            f'`SlantedTriangular` is a schedule of its own: set `lr_scheduler_type="constant"`, but got {kind!r}.'
        )
    if changing:
        _refuse_changing(trainer)


def _refuse_optimizer(
    trainer: Trainer, model: nn.Module, learning_rates: Any, typed: tuple[Any, dict[str, Any]] | None
) -> tuple[type[torch.optim.Optimizer], dict[str, Any], list[dict[str, Any]] | None]:
    """Class, arguments and, where a Trainer makes them itself, parameter groups; refuses what has no layers."""
    optimizer_class, arguments = typed or Trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    wholes = {"params", "model", "optimizer_dict"}
    is_class = isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)
    if wholes & set(arguments) or not is_class or "bitsandbytes" in optimizer_class.__module__:
        what = "`optimizer_cls_and_kwargs`" if typed else f"`optim={str(trainer.args.optim)!r}`"
        raise ValueError(
            f"{what} brings parameter groups of its own, which `attach` cannot divide by "
            "layer. Use `adamw_torch_fused`, `adamw_torch`, `adafactor` or `sgd`."
        )
    if typed is None:
        optimizer_class, arguments = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    arguments = dict(arguments)
    given = arguments.pop("optimizer_dict", arguments.pop("params", None))
    source = f"`{type(trainer).__name__}.get_optimizer_cls_and_kwargs`"
    if "lr" not in arguments or "model" in arguments or not isinstance(given, list | None):
        raise ValueError(
            f"`attach` divides an optimizer by layer, which takes a class, an `lr` and at most a list of parameter "
            f"groups, but {source if typed is None else '`optimizer_cls_and_kwargs`'} gave {sorted(arguments)}."
        )
    inside = {id(parameter) for parameter in model.parameters()}
    rated = [g["lr"] for g in given or () if "lr" in g and any(id(p) in inside for p in tensors_of(g))]
    if learning_rates is not None and any(rate != arguments["lr"] for rate in rated):
        raise ValueError(
            f"Two sources give the rates of the model's layers: `learning_rates`, and {source} (in Sentence "
            "Transformers: `learning_rate_mapping`). Leave out one of them."
        )
    return optimizer_class, arguments, given


def _refuse_changing(trainer: Trainer) -> None:
    """Combinations under which a changing set of trainable parameters goes wrong."""
    args = trainer.args
    if trainer.is_deepspeed_enabled:
        raise ValueError(
            "DeepSpeed fixes the trainable parameters when it starts, so a changing schedule trains wrongly under it. "
            "Use a fixed policy such as `freeze_first(k)`, or one run for each stage."
        )
    if trainer.is_fsdp_enabled and not getattr(trainer.accelerator.state.fsdp_plugin, "use_orig_params", True):
        raise ValueError(
            "FSDP without `use_orig_params` loses the names of the parameters, so a changing schedule freezes the "
            "wrong ones. Set `use_orig_params: true`, or use FSDP 2."
        )
    if args.ddp_static_graph:
        raise ValueError("`ddp_static_graph=True` forbids a changing schedule. Leave it out.")
    if args.parallel_mode.value == "distributed" and not trainer.is_fsdp_enabled:
        checkpointing = bool(args.activation_checkpointing)
        if args.ddp_find_unused_parameters is False or (checkpointing and args.ddp_find_unused_parameters is None):
            raise ValueError(
                "A changing schedule under DDP needs `ddp_find_unused_parameters=True`"
                + (": with activation checkpointing Trainer turns it off." if checkpointing else ", but it is off.")
                + " Set it in the training arguments."
            )
        if checkpointing and (args.activation_checkpointing_kwargs or {}).get("use_reentrant", False):
            raise ValueError("A changing schedule under DDP needs non-reentrant checkpointing: drop `use_reentrant`.")


class TransferMixin:
    """
    Adds loss terms to any Trainer, by its one override: `compute_loss`.

    Args:
        schedule (`FreezingPolicy` or `UnfreezingSchedule`, *optional*):
            See [`attach`].
        learning_rates (`LayerwiseDecay` or `SlantedTriangular`, *optional*):
            See [`attach`].
        terms (`Sequence[LossTerm]`, *optional*):
            See [`attach`].
        groups (`LayerGroups`, *optional*):
            See [`attach`].
    """

    terms: tuple[LossTerm, ...] = ()

    def __init__(
        self,
        *args: Any,
        schedule: Any = None,
        learning_rates: Any = None,
        terms: Sequence[LossTerm] = (),
        groups: LayerGroups | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if schedule is not None or learning_rates is not None or terms:
            attach(
                self,
                schedule=schedule,
                learning_rates=learning_rates,
                terms=terms,
                groups=groups,
            )

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """
        Adds the terms to the loss while training.

        Args:
            model (`nn.Module`):
                The model.
            inputs (`dict`):
                The batch.
            return_outputs (`bool`, *optional*, defaults to `False`):
                Return the model's outputs too.
            num_items_in_batch (`int`, *optional*):
                Items that Trainer divides the loss by.

        Returns:
            `torch.Tensor` or `tuple`: The loss, and the outputs if asked for.
        """
        loss, outputs = super().compute_loss(  # type: ignore[misc]
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if model.training:
            # Where Trainer takes the loss for a share of the whole batch it does not divide it, so the terms are.
            scaled = self.loss_is_scaled_for_ga  # type: ignore[attr-defined]
            if scaled is None:
                scaled = (
                    self.model_accepts_loss_kwargs and num_items_in_batch is not None  # type: ignore[attr-defined]
                ) or self.compute_loss_func is not None  # type: ignore[attr-defined]
            share = self.current_gradient_accumulation_steps if scaled else 1  # type: ignore[attr-defined]
            for term in self.terms:
                loss = loss + term(model, inputs, outputs) / share
        return (loss, outputs) if return_outputs else loss


class TransferTrainer(TransferMixin, Trainer):
    """`transformers.Trainer` that takes `schedule`, `learning_rates` and `terms`; see [`attach`]."""


class TransferSeq2SeqTrainer(TransferMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` that takes `schedule`, `learning_rates` and `terms`; see [`attach`]."""
