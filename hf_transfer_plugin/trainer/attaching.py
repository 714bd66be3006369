"""The hand on a Trainer: `attach` sets its optimizer and callbacks, and refuses what would go wrong in silence."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_callback import DefaultFlowCallback

from hf_transfer_plugin.callbacks import FreezingCallback, PromptEncoderCallback, RankAllocationCallback
from hf_transfer_plugin.callbacks.adapters import allocates_ranks
from hf_transfer_plugin.callbacks.beside import BesideCheckpoint
from hf_transfer_plugin.callbacks.freezing import fitting_groups, trained_model
from hf_transfer_plugin.callbacks.prompts import encodes_prompts
from hf_transfer_plugin.callbacks.ranks import anywhere, of_first, together
from hf_transfer_plugin.callbacks.resuming import check_checkpoint
from hf_transfer_plugin.freezing import FreezingPolicy, ever_learning_names, set_trainable
from hf_transfer_plugin.layers import LayerGroups, discover_layer_groups, parameters_by_name
from hf_transfer_plugin.losses import LossTerm
from hf_transfer_plugin.prefix_cache import FrozenPrefixCache
from hf_transfer_plugin.trainer.caching import PrefixCaching
from hf_transfer_plugin.trainer.loss_scale import mend_loss_scale, scale_matters, share_of_mean
from hf_transfer_plugin.trainer.optimizer import make_ready, optimizer_factory
from hf_transfer_plugin.trainer.ordering import order_steps
from hf_transfer_plugin.trainer.precision import warn_of_half_weights
from hf_transfer_plugin.trainer.refusals import prepare_ddp, refuse_combinations, refuse_flattened
from hf_transfer_plugin.trainer.renamed import load_renamed_weights


class _Attachment(FreezingCallback):
    """The freezing callback of an attached Trainer, which also resets the Trainer for a second run."""

    _why_missing = (
        "`attach` did not make it. Call `super().create_optimizer()` in your own `create_optimizer`, hand it every "
        "parameter of the model, or freeze for good what it leaves out."
    )

    made_for: list[str | None] | None = None

    def __init__(self, trainer: Trainer, schedule: Any, *, cache: FrozenPrefixCache | None, **options: Any) -> None:
        super().__init__(schedule, **options)
        self._trainer, self._caching = trainer, None
        if cache is not None:
            self._caching = PrefixCaching(trainer, cache, schedule, keep_dropout=self.keep_dropout)

    def _check_flat(self) -> None:
        """The optimizer holds what was trainable when it was made, which `attach` saw to."""

    def _groups_of(self, optimizer: Any, model: nn.Module, groups: LayerGroups) -> list[str | None]:
        flat = self._trainer.is_deepspeed_enabled
        made_for = self.made_for or [None] * len(optimizer.param_groups)
        return made_for if flat else super()._groups_of(optimizer, model, groups)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuses what came after `attach`: a second freezing callback, rates without the optimizer they stand in."""
        callbacks = self._trainer.callback_handler.callbacks
        if any(isinstance(other, FreezingCallback) and other is not self for other in callbacks):
            raise ValueError(
                "Two freezing callbacks would undo each other at every step, but a `FreezingCallback` was added to a "
                "Trainer that `attach` had given a schedule. Keep one of them."
            )
        if self.learning_rates is not None and self.made_for is None:
            raise ValueError(
                "`learning_rates` stand in the optimizer that `attach` makes, with a group for each layer, but "
                f"{type(self._trainer).__name__} trains with another. Call `super().create_optimizer()` in your own "
                "`create_optimizer`, or choose the class and its settings in `get_optimizer_cls_and_kwargs` instead; "
                "or leave out `learning_rates`."
            )
        if self._caching is not None:
            self.groups = fitting_groups(self.groups, trained_model(kwargs))
            self._caching.begin(state, trained_model(kwargs), self.groups, kwargs["train_dataloader"])
            # What drops out is never the same twice.
            self._calm_beneath = self._caching.cache.report["used"]
        super().on_train_begin(args, state, control, **kwargs)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Chooses the view of each row."""
        if self._caching is not None:
            self._caching.begin_epoch(kwargs["train_dataloader"], state.epoch or 0)

    def _apply(self, learning: frozenset[str], state: Any, model: nn.Module) -> None:
        super()._apply(learning, state, model)
        if self._caching is not None:
            self._caching.follow(state, learning)

    def let_go(self) -> None:
        """Lets `model.train()` reach every module again, where training broke off too."""
        if self._still is not None:
            self._still.release()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves model and Trainer ready for a second `train()`, with optimizer, scheduler and wrapper made anew."""
        super().on_train_end(args, state, control, **kwargs)
        if self._caching is not None:
            self._caching.end()
        trainer = self._trainer
        trainer.optimizer = trainer.lr_scheduler = None
        self.made_for = None
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            trainer.model_wrapped = trainer.model


def attach(
    trainer: Trainer,
    *,
    schedule: Any = None,
    learning_rates: Any = None,
    terms: Sequence[LossTerm] = (),
    cache: FrozenPrefixCache | None = None,
    groups: LayerGroups | None = None,
    keep_dropout: bool = False,
    sort_micro_batches: bool = False,
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
        cache (`FrozenPrefixCache`, *optional*):
            Stores what the frozen layers make of each row, so that later epochs begin above them.
        groups (`LayerGroups`, *optional*):
            Layer groups; discovered where they are not given.
        keep_dropout (`bool`, *optional*, defaults to `False`):
            Let frozen layers drop out as in training, as those beneath adapters always do; their BatchNorm stays still
            all the same.
        sort_micro_batches (`bool`, *optional*, defaults to `False`):
            Sort the rows of each optimizer step by length before they are cut into micro-batches, so that less is
            padded. The step's rows and, dropout apart, its gradient stay the same.

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
    if schedule is None and learning_rates is None and not terms and cache is None and not sort_micro_batches:
        raise ValueError(
            "Nothing to attach: pass `schedule=`, `learning_rates=`, `terms=`, `cache=` or `sort_micro_batches=`."
        )
    model, device = trainer.model, trainer.args.device
    chosen = schedule if schedule is not None else _as_found(model)

    def check() -> LayerGroups:
        refuse_combinations(trainer, schedule, learning_rates, terms)
        return groups if groups is not None else discover_layer_groups(model)

    found = together(check)
    unsure = anywhere(groups is None and not found.verified, device)
    counts = scale_matters(trainer)
    batch = together(lambda: _first_batch(trainer)) if unsure or counts else None
    if unsure:
        # One process may have met an image and another only text.
        found = of_first(together(lambda: discover_layer_groups(model, inputs=_without_labels(batch))))
    attachment = _Attachment(
        trainer, chosen, cache=cache, groups=found, learning_rates=learning_rates, keep_dropout=keep_dropout
    )
    together(lambda: _install(trainer, attachment, found))
    if counts:
        trainer.rescales_loss = mend_loss_scale(trainer, batch, rescales=hasattr(trainer, "rescales_loss"))
    if terms:
        trainer.terms = tuple(terms)
        for term in terms:
            term.prepare(model)
    if sort_micro_batches:
        together(lambda: order_steps(trainer, ever_learning_names(chosen, model, found)))
    return found


def _install(trainer: Trainer, attachment: _Attachment, groups: LayerGroups) -> None:
    schedule, rates = attachment.schedule, attachment.learning_rates
    fixed = isinstance(schedule, FreezingPolicy)
    learning = ever_learning_names(schedule, trainer.model, groups)
    alike = fixed and rates is None and learning == set(parameters_by_name(trainer.model))
    refuse_flattened(trainer, alike=alike)
    if not fixed:
        prepare_ddp(trainer)
    trainer.optimizer_cls_and_kwargs = optimizer_factory(trainer, attachment)
    warn_of_half_weights(trainer.model, learning, trainer.args)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        # These load a checkpoint after the factory's call, and what they flatten must be of one precision.
        set_trainable(trainer.model, learning)
    else:
        make_ready(trainer, attachment, trainer.model)
        _make_every_model_ready(trainer, attachment)
        load_renamed_weights(trainer)
    # Behind Trainer's own, which says when to save; before all loggers, so that they see what is added to the logs.
    callbacks = trainer.callback_handler.callbacks
    place = next((i + 1 for i, c in enumerate(callbacks) if isinstance(c, DefaultFlowCallback)), 0)
    ours: list[Any] = [attachment]
    if allocates_ranks(trainer.model):
        ours.append(RankAllocationCallback(functools.partial(share_of_mean, trainer)))
    if encodes_prompts(trainer.model):
        ours.append(PromptEncoderCallback())
    callbacks[place:place] = ours
    _check_every_resume(trainer, attachment)


def _as_found(model: nn.Module) -> FreezingPolicy:
    parameters = parameters_by_name(model)
    names = [name for name, parameter in parameters.items() if parameter.requires_grad]
    everything = len(names) == len(parameters)
    return FreezingPolicy(
        "as-found", {}, lambda model, groups: list(parameters_by_name(model)) if everything else names
    )


def _first_batch(trainer: Trainer) -> dict[str, Any] | None:
    if trainer.train_dataset is None:
        return None
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(trainer.get_train_dataloader()))
    return dict(batch)


def _without_labels(batch: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if batch is None else {name: value for name, value in batch.items() if name != "labels"}


def _make_every_model_ready(trainer: Trainer, attachment: _Attachment) -> None:
    """`train` calls `model_init` anew and then loads a checkpoint into what it made."""
    make = trainer.call_model_init

    @functools.wraps(make)
    def ready(trial: Any = None) -> nn.Module:
        model = make(trial)
        make_ready(trainer, attachment, model)
        return model

    trainer.call_model_init = ready


def _check_every_resume(trainer: Trainer, attachment: _Attachment) -> None:
    """Checkpoints are read before any callback is called, so the check stands in front of this Trainer's `train`."""
    train = trainer.train

    @functools.wraps(train)
    def checked(resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        checkpoint = check_checkpoint(trainer.args, resume_from_checkpoint)
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, BesideCheckpoint):
                callback.resumed_from = checkpoint
        try:
            return train(resume_from_checkpoint, *args, **kwargs)
        finally:
            attachment.let_go()

    trainer.train = checked
