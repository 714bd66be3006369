"""What does not go together, refused before the first step."""

from collections.abc import Sequence
from typing import Any

from transformers import Trainer

from hf_transfer_plugin.callbacks import FreezingCallback
from hf_transfer_plugin.callbacks.agreement import FLATTENED, check_ddp
from hf_transfer_plugin.freezing import FreezingPolicy
from hf_transfer_plugin.losses import LossTerm
from hf_transfer_plugin.trainer.optimizer import choose_optimizer

_NO_CLOSED_FORM = ("reduce_lr_on_plateau", "greedy")


def refuse_combinations(trainer: Trainer, schedule: Any, learning_rates: Any, terms: Sequence[LossTerm]) -> None:
    """
    Args:
        trainer (`Trainer`):
            The Trainer.
        schedule (`FreezingPolicy` or `UnfreezingSchedule`, *optional*):
            What decides which parameters learn.
        learning_rates (`LayerwiseDecay` or `SlantedTriangular`, *optional*):
            Factors for each layer group.
        terms (`Sequence[LossTerm]`):
            Terms of the loss.

    Raises:
        ValueError: For every combination that would go wrong, most of them in silence; with the way out.
    """
    args = trainer.args
    if any(isinstance(callback, FreezingCallback) for callback in trainer.callback_handler.callbacks):
        raise ValueError("This Trainer already has a freezing schedule; make a new Trainer for another one.")
    _refuse_given(trainer)
    if terms and not hasattr(trainer, "terms"):
        raise ValueError(
            f"`terms` are added in `compute_loss`, which {type(trainer).__name__} does not do. "
            "Use `TransferTrainer`, or put `TransferMixin` in front of your own Trainer."
        )
    model = trainer.model
    choose_optimizer(trainer, model, learning_rates, trainer.optimizer_cls_and_kwargs)
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
    if schedule is not None and not isinstance(schedule, FreezingPolicy) and trainer.is_deepspeed_enabled:
        raise ValueError(
            "DeepSpeed fixes the trainable parameters when it starts, so a changing schedule trains wrongly under it. "
            "Use a fixed policy such as `freeze_first(k)`, or one run for each stage."
        )


def _refuse_given(trainer: Trainer) -> None:
    """What a user made already, and the optimizer of `attach` would leave idle."""
    if trainer.optimizer is not None:
        raise ValueError(
            "`attach` builds the optimizer itself, with a group for each layer, but this Trainer already has one. "
            "Leave out `optimizers=(...)` and name the optimizer with `optim=` in the arguments."
        )
    if trainer.lr_scheduler is not None:
        raise ValueError(
            "This Trainer already has a learning-rate scheduler, which drives another optimizer than the one that "
            "`attach` builds. Leave out `optimizers=(...)` and name the scheduler with `lr_scheduler_type=` in the "
            "arguments."
        )


def refuse_flattened(trainer: Trainer, *, alike: bool) -> None:
    """
    Args:
        trainer (`Trainer`):
            The Trainer.
        alike (`bool`):
            Whether all parameters learn throughout, at one rate.

    Raises:
        ValueError: If they do not, and FSDP will not keep them apart.
    """
    plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    # FSDP 2 always keeps the original parameters, and its plugin says None.
    if not alike and plugin is not None and plugin.fsdp_version == 1 and not plugin.use_orig_params:
        raise ValueError(FLATTENED)


def prepare_ddp(trainer: Trainer) -> None:
    """
    Lets DDP look for unused parameters, unless somebody chose otherwise: a changing schedule needs it.

    Args:
        trainer (`Trainer`):
            The Trainer; its arguments and its accelerator are changed.

    Raises:
        ValueError: If the schedule cannot live with what was chosen.
    """
    args = trainer.args
    if args.ddp_find_unused_parameters is None and not trainer.is_fsdp_enabled:
        # Trainer's own choice is no with activation checkpointing; the accelerator took it over when Trainer was made.
        args.ddp_find_unused_parameters = True
        if trainer.accelerator.ddp_handler is not None:
            trainer.accelerator.ddp_handler.find_unused_parameters = True
    check_ddp(args, sharded=trainer.is_fsdp_enabled)
