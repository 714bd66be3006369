"""The hand on a Trainer: `attach` sets its optimizer and callbacks, and refuses what would go wrong in silence."""

from hf_transfer_plugin.trainer.attaching import attach
from hf_transfer_plugin.trainer.mixin import TransferMixin, TransferSeq2SeqTrainer, TransferTrainer

__all__ = ["TransferMixin", "TransferSeq2SeqTrainer", "TransferTrainer", "attach"]
