"""The scale of the loss under gradient accumulation and several processes, and the heads that get it wrong."""

import logging
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from hf_transfer_plugin.callbacks.ranks import anywhere

logger = logging.getLogger(__name__)


def count_targets(trainer: Trainer, inputs: dict[str, Any]) -> torch.Tensor:
    """
    Counts as Trainer does for `num_items_in_batch`, but of one micro-batch.

    Args:
        trainer (`Trainer`):
            The Trainer.
        inputs (`dict[str, Any]`):
            A micro-batch with `labels` of shape `(rows, ...)`; -100 marks what is no target.

    Returns:
        `torch.Tensor`: The number of targets.
    """
    labels = inputs["labels"]
    if trainer._loss_shifts_labels:
        labels = labels[..., 1:]
    return labels.ne(-100).sum()


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
    # A batch may tell nothing, as one without targets; yet all processes must count, or none.
    if not anywhere(batch is not None and _drops_count(trainer, batch), trainer.args.device) or batch is None:
        return False
    many = averages_over_tokens(batch["labels"])
    if many and rescales:
        return True
    trainer.model_accepts_loss_kwargs = False
    if many:
        logger.warning(
            "%s drops `num_items_in_batch`, so its loss would grow with accumulation. It is now averaged over each "
            "micro-batch, which weighs micro-batches with few targets too much; `TransferTrainer` (or `TransferMixin` "
            "in front of your Trainer) weighs every target alike.",
            type(trainer.model).__name__,
        )
    return False


def scale_matters(trainer: Trainer) -> bool:
    """
    Args:
        trainer (`Trainer`):
            The Trainer.

    Returns:
        `bool`: Whether a head that drops the count would go wrong in this run: with one batch a step it does not.
    """
    args = trainer.args
    several = args.gradient_accumulation_steps > 1 or args.world_size > 1
    own = trainer.compute_loss_func is not None or trainer.label_smoother is not None
    return several and trainer.model_accepts_loss_kwargs and trainer.loss_is_scaled_for_ga is None and not own


def _drops_count(trainer: Trainer, batch: dict[str, Any]) -> bool:
    model = trainer.model
    parameter = next(model.parameters())
    if not isinstance(batch.get("labels"), torch.Tensor) or parameter.device.type == "meta":
        return False
    inputs = {k: v.to(parameter.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    devices = [parameter.device] if parameter.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad(), trainer.compute_loss_context_manager():
            return _same_loss(trainer, model, inputs)
    finally:
        for module, training in modes:
            module.training = training


def _same_loss(trainer: Trainer, model: nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether the loss is the same for a count and for four times that count."""
    counts = [count_targets(trainer, inputs) * factor for factor in (1, 4)]
    losses = [model(**inputs, num_items_in_batch=count)["loss"] for count in counts]
    if not torch.equal(*losses) or not losses[0].any():
        return False
    if type(trainer).compute_loss is Trainer.compute_loss:
        return True
    # A Trainer with a loss of its own may count although the model does not.
    own = [trainer.compute_loss(model, dict(inputs), num_items_in_batch=count) for count in counts]
    return bool(torch.equal(*own))
