"""The scale of the loss under gradient accumulation and several processes, and the heads that get it wrong."""

import logging
import math
from typing import Any

import torch
from transformers import Trainer

from hf_transfer_plugin.callbacks.ranks import anywhere
from hf_transfer_plugin.layers import beneath_adapters
from hf_transfer_plugin.layers.probe import untouched

logger = logging.getLogger(__name__)


def count_targets(trainer: Trainer, inputs: dict[str, Any]) -> torch.Tensor:
    """
    Counts as Trainer does for `num_items_in_batch`, but of one micro-batch.

    Args:
        trainer (`Trainer`):
            The Trainer.
        inputs (`dict[str, Any]`):
            A micro-batch with `labels` of shape `(rows, ...)`, and perhaps `shift_labels`; -100 marks what is no
            target.

    Returns:
        `torch.Tensor`: The number of targets.
    """
    return _targets(trainer, inputs).ne(-100).sum()


def share_of_targets(trainer: Trainer, inputs: dict[str, Any], num_items_in_batch: Any) -> torch.Tensor:
    """
    What turns a mean over the targets of a micro-batch into its part of the mean over all of them.

    Args:
        trainer (`Trainer`):
            The Trainer.
        inputs (`dict[str, Any]`):
            A micro-batch with `labels`.
        num_items_in_batch (`int` or `torch.Tensor`):
            Trainer's count; DataParallel gets it once for each device.

    Returns:
        `torch.Tensor`: The share, of shape `()`; under DataParallel one for the rows of each device, `(devices,)`.
    """
    whole = torch.as_tensor(num_items_in_batch).flatten()[0]
    if trainer.args.n_gpu <= 1:
        return count_targets(trainer, inputs) / whole
    parts = _targets(trainer, inputs).chunk(trainer.args.n_gpu)
    return torch.stack([part.ne(-100).sum() for part in parts]) / whole


def share_of_mean(trainer: Trainer) -> float:
    """
    What turns a term that does not depend on the rows into its part of a micro-batch's loss, where that loss is
    divided by the targets of the whole batch: Trainer adds up micro-batches, and takes each process times all.

    Args:
        trainer (`Trainer`):
            The Trainer, in a step.

    Returns:
        `float`: The share; 1 where [`TransferMixin`] rescales the loss as a whole.
    """
    if getattr(trainer, "rescales_loss", False):
        return 1.0
    args = trainer.args
    batches = 1 if trainer.loss_is_scaled_for_ga is False else trainer.current_gradient_accumulation_steps
    processes = args.n_gpu if args.n_gpu > 1 else args.world_size
    return 1.0 / (batches * (processes if args.average_tokens_across_devices else 1))


def _targets(trainer: Trainer, inputs: dict[str, Any]) -> torch.Tensor:
    if "shift_labels" in inputs:
        return inputs["shift_labels"]
    return inputs["labels"][..., 1:] if trainer._loss_shifts_labels else inputs["labels"]


def averages_over_tokens(labels: Any) -> bool:
    """
    Args:
        labels (`torch.Tensor`):
            Labels of a batch.

    Returns:
        `bool`: Whether each row has many whole-numbered targets, as words and pixels have, so that rows weigh
        differently in the mean.
    """
    return isinstance(labels, torch.Tensor) and labels.ndim > 1 and not labels.is_floating_point()


def mend_loss_scale(trainer: Trainer, batch: dict[str, Any] | None, *, rescales: bool) -> bool:
    """
    Detects the heads that take `num_items_in_batch` and drop it (transformers #47688): Trainer trusts them to have
    divided by it, so their gradients grow with accumulation and with the number of processes. Where rows have one
    target, Trainer is told that the loss is a mean, and divides; where they have many, a mean of means would weigh
    short rows too much, so [`TransferMixin`] rescales each micro-batch by its share of the targets.

    Args:
        trainer (`Trainer`):
            The Trainer.
        batch (`dict[str, Any]`, *optional*):
            A batch of its training data.
        rescales (`bool`):
            Whether the Trainer's `compute_loss` can rescale, as that of [`TransferMixin`] can.

    Returns:
        `bool`: Whether `compute_loss` shall rescale.
    """
    drops = _drops_count(trainer, batch)
    labels = None if batch is None else batch.get("labels")
    # A batch may tell nothing, as one without targets; yet all processes must do the same.
    anyone = anywhere(drops is True, trainer.args.device)
    many = anywhere(drops is True and averages_over_tokens(labels), trainer.args.device)
    if not anyone:
        return False
    if many and rescales:
        return True
    trainer.model_accepts_loss_kwargs = False
    if many:
        logger.warning(
            "%s drops `num_items_in_batch`, so its loss would grow with accumulation. It is now averaged over each "
            "micro-batch, which weighs micro-batches with few targets too much; `TransferTrainer` (or `TransferMixin` "
            "in front of your Trainer) weighs every target alike.",
            type(beneath_adapters(trainer.model)[0]).__name__,
        )
    return False


def scale_matters(trainer: Trainer) -> bool:
    """
    Args:
        trainer (`Trainer`):
            The Trainer.

    Returns:
        `bool`: Whether a head that drops the count would go wrong in this run: with one batch a step, on one device
        of one process, it does not. With several devices in one process Trainer multiplies what it counts by them.
    """
    args = trainer.args
    several = args.gradient_accumulation_steps > 1 or args.world_size > 1 or args.n_gpu > 1
    own = trainer.compute_loss_func is not None or trainer.label_smoother is not None
    return several and trainer.model_accepts_loss_kwargs and trainer.loss_is_scaled_for_ga is None and not own


def _drops_count(trainer: Trainer, batch: dict[str, Any] | None) -> bool | None:
    """Whether the loss is the same for a count and for four times that count; `None` and a warning if that is open."""
    model = trainer.model
    parameter = next(model.parameters())
    if batch is None or not isinstance(batch.get("labels"), torch.Tensor) or parameter.device.type == "meta":
        return False
    inputs = {k: v.to(parameter.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    if not count_targets(trainer, inputs):
        inputs |= {name: torch.zeros_like(inputs[name]) for name in ("labels", "shift_labels") if name in inputs}
    counts = [count_targets(trainer, inputs) * factor for factor in (1, 4)]
    try:
        with untouched(model), trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            losses = [trainer.compute_loss(model, dict(inputs), num_items_in_batch=count) for count in counts]
        first, second = (float(loss.mean()) for loss in losses)
        if math.isfinite(first) and first:
            return first == second
        why = f"the loss is {first}"
    except Exception as error:  # A loss may need what only training has; it is then left as it is.
        why = f"{type(error).__name__}: {error}"
    logger.warning(
        "Whether the loss of %s is divided by `num_items_in_batch` could not be found out (%s), so it is left as it "
        "is. If it is a mean over the micro-batch, set `loss_is_scaled_for_ga = False` on the Trainer, or it grows "
        "with accumulation.",
        type(trainer).__name__,
        why,
    )
    return None
