"""What a run has to do with the Hub: checked before training, checkpoints on the way, the model at the end."""

import logging
from pathlib import Path
from typing import Any

from torch import distributed
from transformers import TrainerCallback, TrainingArguments

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.hub import HubError, check_rights, pull_checkpoints, push_checkpoint, push_model

logger = logging.getLogger(__name__)


def check_push(config: TransferConfig, args: TrainingArguments) -> None:
    """
    Everything about a push that can be known before training.

    Args:
        config (`TransferConfig`):
            The configuration.
        args (`TrainingArguments`):
            The arguments.

    Raises:
        ValueError: If Trainer's own push is asked for, or nobody could say what the base model is.
        HubError: If the token is missing, wrong or may not write there.
    """
    if args.push_to_hub or args.hub_token:
        flag = "push_to_hub" if args.push_to_hub else "hub_token"
        raise ValueError(
            f"`--{flag}` is Trainer's own push, which makes a public repository of the whole run folder, token "
            "included. Use `--push USER/NAME`, and log in with `hf auth login`."
        )
    if config.push is None:
        return
    if Path(config.model).expanduser().is_dir() and config.base_model_id is None:
        raise ValueError(
            f"`model` is a local folder ({config.model!r}), so the card could not name the base model. Add "
            "`--base_model_id USER/NAME`, the Hub id that it came from."
        )
    if args.process_index == 0:
        check_rights(config.push)


def sharing_callbacks(config: TransferConfig, args: TrainingArguments) -> list[TrainerCallback]:
    """
    Args:
        config (`TransferConfig`):
            The configuration.
        args (`TrainingArguments`):
            The arguments.

    Returns:
        `list[TrainerCallback]`: What pushes checkpoints on the way, where that is asked for.
    """
    if config.push is None or str(getattr(args.hub_strategy, "value", args.hub_strategy)) != "checkpoint":
        return []
    return [PushCheckpointsCallback(config.push, private=args.hub_private_repo is not False)]


def pull_run(config: TransferConfig, args: TrainingArguments) -> None:
    """
    Fetches the checkpoints of a run that began elsewhere, and resumes from the last.

    Args:
        config (`TransferConfig`):
            The configuration.
        args (`TrainingArguments`):
            The arguments; `resume_from_checkpoint` is set.

    Raises:
        HubError: If there are none, or they may not be read.
    """
    if config.resume_from_hub is None:
        return
    if args.local_process_index == 0:
        names = pull_checkpoints(config.resume_from_hub, args.output_dir)
        logger.warning("Resuming from the Hub: %s.", ", ".join(names))
    args.resume_from_checkpoint = True


class PushCheckpointsCallback(TrainerCallback):
    """
    Pushes every checkpoint to a private repository. A push that fails is told, and training goes on.

    Args:
        repo (`str`):
            The model's repository.
        private (`bool`):
            Whether the repository of the checkpoints must be private.
    """

    def __init__(self, repo: str, *, private: bool) -> None:
        self.repo, self.private = repo, private

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pushes what was just saved."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.barrier()  # The other processes write their random states beside it.
        if not state.is_world_process_zero:
            return
        try:
            push_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.repo, private=self.private)
        except HubError as error:
            logger.warning("The checkpoint of step %d is here, but not on the Hub. %s", state.global_step, error)


def push_run(config: TransferConfig, args: TrainingArguments) -> str | None:
    """
    Pushes the finished run.

    Args:
        config (`TransferConfig`):
            The configuration.
        args (`TrainingArguments`):
            The arguments.

    Returns:
        `str` or `None`: Page of the model, on the first process.

    Raises:
        HubError: If the push fails; the run folder is whole, and the message says how to repeat the push.
    """
    if config.push is None or args.process_index != 0:
        return None
    try:
        return push_model(args.output_dir, config.push, private=args.hub_private_repo, revision=args.hub_revision).url
    except (HubError, ValueError) as error:
        raise HubError(
            f"{error}\nThe run is whole in {args.output_dir}. Push it with `hf-transfer-plugin push {args.output_dir} "
            f"{config.push}`."
        ) from error
