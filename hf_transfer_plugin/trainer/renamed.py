"""Loads checkpoints whose weights Transformers saved under other names than the model's own."""

import functools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, Trainer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

logger = logging.getLogger(__name__)


def load_renamed_weights(trainer: Trainer) -> None:
    """
    Lets a Trainer load the whole of a checkpoint when it resumes and when it takes the best model.

    `save_pretrained` of Transformers 5 gives the weights of ViT, BEiT, Segformer, Mixtral and others the names that
    they have on the Hub. Trainer loads those that are called as in the model, and leaves the others as they are: the
    body of a ViT would begin anew.

    Args:
        trainer (`Trainer`):
            The Trainer; sharded and flattened models (FSDP, DeepSpeed), which are saved under their own names, and
            adapters, which PEFT saves, are left to it.
    """
    resume, best = trainer._load_from_checkpoint, trainer._load_best_model

    @functools.wraps(resume)
    def load(checkpoint: str, *model: Any) -> None:
        resume(checkpoint, *model)
        _complete(model[0] if model else trainer.model, checkpoint)

    @functools.wraps(best)
    def load_best() -> None:
        best()
        _complete(trainer.model, trainer.state.best_model_checkpoint)

    trainer._load_from_checkpoint, trainer._load_best_model = load, load_best


def _complete(model: Any, checkpoint: str | None) -> None:
    """Loads the checkpoint once more, as `from_pretrained` does, where it holds names that the model has not."""
    inner = getattr(model, "module", model)
    if (
        checkpoint is None
        or not isinstance(inner, PreTrainedModel)
        or not _names_differ(checkpoint, inner.state_dict())
    ):
        return
    with torch.random.fork_rng(devices=[]):
        # In 32 bits, which hold the weights of every part exactly, be it of 16 or of 32.
        loaded, info = type(inner).from_pretrained(
            checkpoint, config=inner.config, dtype=torch.float32, output_loading_info=True
        )
    given = {name: value for name, value in loaded.state_dict().items() if name not in info["missing_keys"]}
    inner.load_state_dict(given, strict=False)
    logger.info("The weights of %s have other names than the model's, and were loaded by them.", checkpoint)


def _names_differ(checkpoint: str, known: Iterable[str]) -> bool:
    """Whether a checkpoint holds weights under names that the model has not."""
    folder = Path(checkpoint)
    files = [folder / SAFE_WEIGHTS_NAME] if (folder / SAFE_WEIGHTS_NAME).is_file() else []
    files += folder.glob("model-*.safetensors") if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file() else []
    names = set(known)
    for file in files:
        with safe_open(file, "pt") as weights:
            if not names.issuperset(weights.keys()):
                return True
    return False
