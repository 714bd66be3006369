"""The network that p-tuning makes its prompts with: PEFT saves the prompts alone, from which no run could go on."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_transfer_plugin.callbacks.beside import BesideCheckpoint

ENCODER = "prompt_encoder.safetensors"


def encodes_prompts(model: Any) -> bool:
    """
    Args:
        model (`nn.Module`):
            A model.

    Returns:
        `bool`: Whether it has prompts that a network of their own makes (p-tuning, prefixes with a projection).
    """
    encoders = getattr(model, "prompt_encoder", None)
    return encoders is not None and any(len(list(encoder.parameters())) > 1 for encoder in encoders.children())


class PromptEncoderCallback(BesideCheckpoint):
    """
    Keeps the whole network in every checkpoint. PEFT saves what it gives, and on loading puts that into the network's
    input, where it would be encoded once more; a resumed run and the best model would be others, without a word.
    """

    def __init__(self) -> None:
        super().__init__(ENCODER, "the network that makes its prompts")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Puts back the network on resume."""
        encoders = kwargs["model"].prompt_encoder
        if args.load_best_model_at_end and any(getattr(e, "prefix_projection", False) for e in encoders.children()):
            raise ValueError(
                "PEFT cannot read prefixes with a projection back into a model, so the best one cannot be loaded. Use "
                "`prefix_projection=False`, or leave out `load_best_model_at_end`."
            )
        self._put_back(encoders, self.begin(args, state))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Puts back the network of the best checkpoint, where Trainer has just loaded that."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._put_back(kwargs["model"].prompt_encoder, self.read(Path(state.best_model_checkpoint)))

    def tensors(self, model: Any) -> dict[str, torch.Tensor]:
        """
        Args:
            model (`PeftModel`):
                The model.

        Returns:
            `dict[str, torch.Tensor]`: The networks of all prompts.
        """
        return model.prompt_encoder.state_dict()

    def _put_back(self, encoders: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        if tensors:
            encoders.load_state_dict(tensors)
