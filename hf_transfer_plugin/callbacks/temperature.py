"""The temperature of two towers, held where CLIP was trained."""

import math
from typing import Any

import torch
from transformers import TrainerCallback

from hf_transfer_plugin.callbacks.freezing import trained_model
from hf_transfer_plugin.layers import parameters_by_name

LARGEST = math.log(100)


class TemperatureCallback(TrainerCallback):
    """
    Keeps logits at 100 times a cosine at most, as CLIP's training did (https://huggingface.co/papers/2103.00020,
    section 2.5); Transformers itself does not. SigLIP's scale, which was free, stays so, and a larger one that a model
    comes with is not cut.
    """

    def __init__(self) -> None:
        self.largest = LARGEST

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Looks how large the scale is."""
        scale = _scale(trained_model(kwargs))
        if scale is not None:
            self.largest = max(LARGEST, float(scale.detach()))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Cuts what the step made larger."""
        scale = _scale(trained_model(kwargs))
        if scale is not None and scale.requires_grad:
            with torch.no_grad():
                scale.clamp_(max=self.largest)


def _scale(model: Any) -> torch.nn.Parameter | None:
    if "siglip" in model.config.model_type:
        return None
    return next((p for name, p in parameters_by_name(model).items() if name.endswith("logit_scale")), None)
