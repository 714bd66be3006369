"""What PEFT leaves out of a checkpoint and a run cannot go on without, in a file beside the weights."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from hf_transfer_plugin.callbacks.resuming import FILES_KEY, STATE_KEY


class BesideCheckpoint(TrainerCallback, ABC):
    """
    Writes tensors beside the weights of every checkpoint and reads them on resume. The checkpoint's state names the
    file, so that a checkpoint without it is not taken for a whole one.

    Args:
        file (`str`):
            Name of the file.
        why (`str`):
            What the run goes on from, for a message.
    """

    def __init__(self, file: str, why: str) -> None:
        self.file, self.why = file, why
        self.resumed_from: Path | None = None

    @abstractmethod
    def tensors(self, model: Any) -> dict[str, torch.Tensor]:
        """
        Args:
            model (`PeftModel`):
                The model.

        Returns:
            `dict[str, torch.Tensor]`: What to write.
        """

    def begin(self, args: Any, state: Any) -> dict[str, torch.Tensor]:
        """
        Args:
            args (`TrainingArguments`):
                The arguments.
            state (`TrainerState`):
                Trainer's state, new or of the checkpoint.

        Returns:
            `dict[str, torch.Tensor]`: What the checkpoint has; nothing at the beginning of a run.

        Raises:
            ValueError: If the checkpoint has no such file.
        """
        kept = state.stateful_callbacks.setdefault(STATE_KEY, {})
        kept[FILES_KEY] = sorted({*kept.get(FILES_KEY, ()), self.file})
        if not state.global_step:
            return {}
        return self.read(self.resumed_from or Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def read(self, folder: Path) -> dict[str, torch.Tensor]:
        """
        Args:
            folder (`Path`):
                A checkpoint.

        Returns:
            `dict[str, torch.Tensor]`: What it has.

        Raises:
            ValueError: If it has no such file.
        """
        if not (folder / self.file).is_file():
            raise ValueError(
                f"The run goes on from {self.why}, but {str(folder)!r} has no {self.file}. Resume from another "
                "checkpoint, or start anew."
            )
        return load_file(folder / self.file)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the file, on the first process."""
        if state.is_world_process_zero:
            tensors = {name: value.detach().contiguous() for name, value in self.tensors(kwargs["model"]).items()}
            save_file(tensors, _written(args, state) / self.file)


def _written(args: Any, state: Any) -> Path:
    """The checkpoint of this step, the latest of a search's trials."""
    name = f"checkpoint-{state.global_step}"
    if not state.is_hyper_param_search:
        return Path(args.output_dir) / name
    return max(Path(args.output_dir).glob(f"*/{name}"), key=lambda path: path.stat().st_mtime)
