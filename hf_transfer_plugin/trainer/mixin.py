"""Trainers that add terms to the loss, and keep its scale."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import Seq2SeqTrainer, Trainer

from hf_transfer_plugin.layers import LayerGroups
from hf_transfer_plugin.losses import LossTerm
from hf_transfer_plugin.trainer.attaching import attach
from hf_transfer_plugin.trainer.loss_scale import share_of_targets


class TransferMixin:
    """
    Adds loss terms to any Trainer, by its one override: `compute_loss`. Where the model's head averages over tokens
    and drops Trainer's count of them, it also weighs each micro-batch by its share of the targets.

    Args:
        schedule (`FreezingPolicy` or `UnfreezingSchedule`, *optional*):
            See [`attach`].
        learning_rates (`LayerwiseDecay` or `SlantedTriangular`, *optional*):
            See [`attach`].
        terms (`Sequence[LossTerm]`, *optional*):
            See [`attach`].
        groups (`LayerGroups`, *optional*):
            See [`attach`].
        keep_dropout (`bool`, *optional*, defaults to `False`):
            See [`attach`].
        sort_micro_batches (`bool`, *optional*, defaults to `False`):
            See [`attach`].
    """

    terms: tuple[LossTerm, ...] = ()
    rescales_loss: bool = False

    def __init__(
        self,
        *args: Any,
        schedule: Any = None,
        learning_rates: Any = None,
        terms: Sequence[LossTerm] = (),
        groups: LayerGroups | None = None,
        keep_dropout: bool = False,
        sort_micro_batches: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if schedule is not None or learning_rates is not None or terms or sort_micro_batches:
            attach(
                self,
                schedule=schedule,
                learning_rates=learning_rates,
                terms=terms,
                groups=groups,
                keep_dropout=keep_dropout,
                sort_micro_batches=sort_micro_batches,
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
        if self.rescales_loss and num_items_in_batch is not None:
            loss = loss * share_of_targets(self, inputs, num_items_in_batch)
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
