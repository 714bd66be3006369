"""Resuming: only from a whole checkpoint, and only the run that wrote it."""

import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)
STATE_KEY = "hf_transfer_plugin"
FILES_KEY = "files"  # what stands beside the weights of each checkpoint
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SHARDED = ("pytorch_model_fsdp*", "*/adapter_model.safetensors", "global_step*")
_PROGRESS = ("optimizer*", "scheduler.pt", "rng_state*.pth", "global_step*")


def missing_parts(checkpoint: Path) -> list[str]:
    """
    What a checkpoint lacks of what its run writes. Trainer writes its folder in place, `trainer_state.json` last, and
    goes on in silence where the optimizer's state is missing.

    Args:
        checkpoint (`Path`):
            Folder of the checkpoint.

    Returns:
        `list[str]`: Names of missing or cut files; empty for a whole checkpoint, also for one of a run that saves
        nothing but the model.
    """
    missing = [] if _readable(checkpoint / "trainer_state.json", "global_step") else ["trainer_state.json"]
    missing += _missing_weights(checkpoint)
    if holds_only_model(checkpoint):
        return missing
    if not any(checkpoint.glob("global_step*")):
        missing += _missing_optimizer(checkpoint)
        missing += [] if _whole(checkpoint / "scheduler.pt") else ["scheduler.pt"]
    beside = [*_random_states(processes_of(checkpoint)), *_kept(checkpoint).get(FILES_KEY, ())]
    return missing + [name for name in beside if not _whole(checkpoint / name)]


def holds_only_model(checkpoint: Path) -> bool:
    """
    Args:
        checkpoint (`Path`):
            Folder of the checkpoint.

    Returns:
        `bool`: Whether it has nothing that a run could go on from, as with `save_only_model`.
    """
    return not any(any(checkpoint.glob(pattern)) for pattern in _PROGRESS)


def processes_of(checkpoint: Path) -> int:
    """
    Args:
        checkpoint (`Path`):
            Folder of the checkpoint.

    Returns:
        `int`: How many processes wrote it: as its state says, or, by another's Trainer, as many as random states.
    """
    written = _kept(checkpoint).get("processes")
    return int(written) if written else max(len(list(checkpoint.glob("rng_state_*.pth"))), 1)


def _kept(checkpoint: Path) -> dict[str, Any]:
    """What [`remember_run`] and others of ours wrote into its state; nothing where that cannot be read."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return dict(state["stateful_callbacks"][STATE_KEY])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _random_states(processes: int) -> list[str]:
    return ["rng_state.pth"] if processes == 1 else [f"rng_state_{i}.pth" for i in range(processes)]


def _missing_weights(checkpoint: Path) -> list[str]:
    for name in _INDEXES:
        if (checkpoint / name).is_file():
            if not _readable(checkpoint / name, "weight_map"):
                return [name]
            shards = sorted(set(json.loads((checkpoint / name).read_text(encoding="utf-8"))["weight_map"].values()))
            return [shard for shard in shards if not _whole(checkpoint / shard)]
    found = [checkpoint / name for name in _WEIGHTS if (checkpoint / name).is_file()]
    if found:
        return [path.name for path in found if not _whole(path)]
    parts = [path for pattern in _SHARDED for path in checkpoint.glob(pattern)]
    if parts:
        return [path.name for path in parts if not _whole(path)]
    return ["adapter_model.safetensors" if (checkpoint / "adapter_config.json").is_file() else "model.safetensors"]


def _missing_optimizer(checkpoint: Path) -> list[str]:
    """FSDP writes `optimizer.bin`, or a folder for each optimizer."""
    found = [p for p in checkpoint.glob("optimizer*") if p.is_dir() or p.name in {"optimizer.pt", "optimizer.bin"}]
    return [path.name for path in found if not _whole(path)] if found else ["optimizer.pt"]


def _readable(file: Path, key: str) -> bool:
    try:
        return key in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _whole(file: Path) -> bool:
    """
    Whether tensors have their end: torch's file is a zip archive, safetensors tells its length in front; of a folder
    that the processes write together, PyTorch writes `.metadata` last.
    """
    if file.is_dir():
        return not file.name.startswith(("pytorch_model_fsdp", "optimizer")) or (file / ".metadata").is_file()
    if not file.is_file():
        return False
    if file.suffix != ".safetensors":
        return zipfile.is_zipfile(file)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length < file.stat().st_size:
            return False
        header = stream.read(length)
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
    except ValueError:
        return False
    return file.stat().st_size == 8 + length + max(ends, default=0)


def set_aside_incomplete(args: Any) -> list[Path]:
    """
    Renames half-written checkpoints of the output folder to `incomplete-checkpoint-*`, so that
    `resume_from_checkpoint=True` finds the last whole one. The first process does it, the others wait.

    Args:
        args (`TrainingArguments`):
            The arguments of the run.

    Returns:
        `list[Path]`: The new names, on the process that renamed.
    """
    renamed = []
    for folder in sorted(_checkpoints(args)) if args.process_index == 0 else ():
        missing = missing_parts(folder)
        if missing:
            renamed.append(_set_aside(folder))
            logger.warning(
                "%s is incomplete (%s) and was renamed to %s.", folder, ", ".join(missing), renamed[-1].name
            )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
    return renamed


def _checkpoints(args: Any) -> list[Path]:
    found = Path(args.output_dir).glob("checkpoint-*") if args.output_dir else ()
    return [path for path in found if path.is_dir() and path.name.removeprefix("checkpoint-").isdigit()]


def _set_aside(folder: Path) -> Path:
    target, number = folder.with_name(f"incomplete-{folder.name}"), 1
    while target.exists():
        number += 1
        target = folder.with_name(f"incomplete-{folder.name}.{number}")
    return folder.rename(target)


def check_checkpoint(args: Any, resume_from: Any) -> Path | None:
    """
    Refuses to resume where it would go wrong. Asked for the last checkpoint, it first sets aside those that a run left
    half-written.

    Args:
        args (`TrainingArguments`):
            The arguments of the run.
        resume_from (`str`, `bool` or `None`):
            As in `Trainer.train`.

    Returns:
        `Path` or `None`: The checkpoint that the run goes on from.

    Raises:
        ValueError: If the checkpoint is incomplete or holds nothing but the model, or there is none.
    """
    if not resume_from:
        return None
    if resume_from is True:
        set_aside_incomplete(args)
        whole = _checkpoints(args)
        if not whole:
            raise ValueError(
                f"There is no whole checkpoint in {args.output_dir!r} to resume from. "
                "Leave `resume_from_checkpoint` out to start anew."
            )
        checkpoint = max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")))
    else:
        checkpoint = Path(resume_from)
        missing = missing_parts(checkpoint)
        if missing:
            raise ValueError(
                f"A run resumes from a whole checkpoint only, but {str(resume_from)!r} lacks {', '.join(missing)}. "
                "Name an earlier one, or pass `resume_from_checkpoint=True` for the last whole one."
            )
    if holds_only_model(checkpoint):
        raise ValueError(
            f"A run goes on from its optimizer, scheduler and random state, but {str(checkpoint)!r} holds nothing but "
            "the model (`save_only_model`). Start anew from that folder as the model, in another `output_dir`."
        )
    before = processes_of(checkpoint)
    if before != args.world_size and args.process_index == 0:
        logger.warning(
            "%s was written by %d process%s and goes on with %d: the rows and random numbers of each are others, so "
            "the run will not end bit for bit as if it had not stopped.",
            checkpoint, before, "" if before == 1 else "es", args.world_size,
        )  # fmt: skip
    return checkpoint


def refuse_other_parameters(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """
    Pre-hook of `optimizer.load_state_dict`: torch matches by position, so that moments of other parameters of the
    same shapes would be loaded in silence.

    Args:
        optimizer (`torch.optim.Optimizer`):
            The optimizer of this run, with named parameters.
        saved (`Mapping`):
            The state to load.

    Raises:
        ValueError: If the state is of other parameters or other groups; it names the first difference.
    """
    now = [list(group.get("param_names", ())) for group in optimizer.param_groups]
    before = [list(group.get("param_names", ())) for group in saved["param_groups"]]
    if now == before:
        return
    here, there = ({name for group in groups for name in group} for groups in (now, before))
    if not there:
        what = "the checkpoint was written by a Trainer without `attach`"
    elif there - here:
        what = f"{min(there - here)!r} learned then and does not now{_more(there - here)}"
    elif here - there:
        what = f"{min(here - there)!r} learns now and did not then{_more(here - there)}"
    else:
        moved = next(name for a, b in zip(now, before, strict=False) if a != b for name in a + b)
        what = f"{moved!r} was in another layer group or place then"
    raise ValueError(
        f"A run must be resumed with the model, schedule and layer groups that it began with, but {what}. Use the "
        "same ones, or start anew in another `output_dir`."
    )


def _more(names: set[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def remember_run(state: Any, facts: Mapping[str, Any]) -> None:
    """
    Writes into the state, and so into every checkpoint, what must not change on resume; refuses if it has changed.

    Args:
        state (`TrainerState`):
            Trainer's state, new or of the checkpoint.
        facts (`Mapping[str, Any]`):
            JSON values by name: schedule, learning rates, layer groups, and the groups of the last phase.

    Raises:
        ValueError: If the checkpoint has another value; it names the first that differs.
    """
    now = json.loads(json.dumps(facts))
    kept = state.stateful_callbacks.setdefault(STATE_KEY, {})
    for key, value in now.items():
        if state.global_step and key in kept and kept[key] != value:
            raise ValueError(
                f"A run must be resumed as it began, but the checkpoint has another {key}: {_short(kept[key])}, "
                f"against {_short(value)} now. Use the same schedule, layer groups and number of steps, or start anew "
                "in another `output_dir`."
            )
    kept.update(now)


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 200 else f"{text[:197]}..."
