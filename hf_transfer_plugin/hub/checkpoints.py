"""Checkpoints on the Hub, in a private repository of their own: a run that was stopped goes on elsewhere."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download

from hf_transfer_plugin.hub.client import HubError, call, check_rights, checked_repo
from hf_transfer_plugin.record import write_atomically

STATE = "trainer_state.json"
# A pickle of all arguments, in which a token may stand.
NEVER = ("training_args.bin",)


def checkpoint_repo(repo: str) -> str:
    """
    Args:
        repo (`str`):
            The model's repository.

    Returns:
        `str`: The repository of its checkpoints, so that no optimizer state is where the model is shown.
    """
    return f"{checked_repo(repo)}-checkpoints"


def push_checkpoint(checkpoint: str | Path, repo: str, *, private: bool = True) -> str:
    """
    Replaces the checkpoints of a run on the Hub by its last one (and its best one, where that is another), in one
    commit.

    Args:
        checkpoint (`str` or `Path`):
            The last checkpoint, in the run folder.
        repo (`str`):
            The model's repository; see [`checkpoint_repo`].
        private (`bool`, *optional*, defaults to `True`):
            Whether the repository of the checkpoints must be private.

    Returns:
        `str`: The commit.

    Raises:
        HubError: If the Hub refuses, or the repository is public and must not be.
    """
    last, target = Path(checkpoint), checkpoint_repo(repo)
    api = check_rights(target)
    call(f"make the repository {target}", api.create_repo, target, private=private, exist_ok=True)
    if private and not call(f"look at {target}", api.model_info, target).private:
        raise HubError(
            f"{target} is public, and optimizer states should not be. Make it private on its page, or allow it with "
            "`--hub_private_repo false`."
        )
    state = json.loads((last / STATE).read_text(encoding="utf-8"))
    best = last.parent / Path(state.get("best_model_checkpoint") or last).name
    folders = {last.name: last} | ({best.name: best} if best.is_dir() else {})
    with tempfile.TemporaryDirectory(prefix="state-") as temporary:
        files: dict[str, Path] = {}
        for name, folder in folders.items():
            # Modules of embedding models have folders of their own.
            inside = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.name not in NEVER]
            files |= {f"{name}/{f.relative_to(folder).as_posix()}": f for f in inside}
            # Where it lies here is nobody's business, and wrong elsewhere.
            own = json.loads((folder / STATE).read_text(encoding="utf-8"))
            if own.get("best_model_checkpoint"):
                own["best_model_checkpoint"] = Path(own["best_model_checkpoint"]).name
            files[f"{name}/{STATE}"] = Path(temporary) / f"{name}.json"
            write_atomically(files[f"{name}/{STATE}"], json.dumps(own, indent=2, sort_keys=True) + "\n")
        return call(f"push a checkpoint to {target}", _replace, api, target, files, f"Save {last.name}").oid


def _replace(api: HfApi, target: str, files: dict[str, Path], title: str) -> Any:
    there = {name for name in api.list_repo_files(target) if name.startswith("checkpoint-")}
    gone = [CommitOperationDelete(name) for name in sorted(there - set(files))]
    adds = [CommitOperationAdd(name, path) for name, path in files.items()]
    return api.create_commit(target, operations=[*adds, *gone], commit_message=title)


def pull_checkpoints(repo: str, output_dir: str | Path) -> list[str]:
    """
    Brings the checkpoints of a run into a run folder, whole or not at all.

    Args:
        repo (`str`):
            The model's repository; see [`checkpoint_repo`].
        output_dir (`str` or `Path`):
            The run folder. Checkpoints that it already has stay.

    Returns:
        `list[str]`: Their names.

    Raises:
        HubError: If there is no such repository, it may not be read, or it holds no checkpoint.
    """
    target, folder = checkpoint_repo(repo), Path(output_dir)
    arriving = folder / ".from-hub"
    # What has arrived stays there if the download breaks off, and is not sent again.
    call(
        f"download the checkpoints of {target}",
        snapshot_download,
        target,
        local_dir=arriving,
        allow_patterns=["checkpoint-*/*"],
        max_workers=1,  # A thread that tries again closes the connections of the others.
    )
    found = sorted(path for path in arriving.glob("checkpoint-*") if (path / STATE).is_file())
    if not found:
        raise HubError(
            f"{target} holds no checkpoint. Leave `--resume_from_hub` out, or check the name; checkpoints are pushed "
            "with `--push` and `--hub_strategy checkpoint`."
        )
    for path in found:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if state.get("best_model_checkpoint"):
            state["best_model_checkpoint"] = str(folder / state["best_model_checkpoint"])
            write_atomically(path / STATE, json.dumps(state, indent=2, sort_keys=True) + "\n")
        if not (folder / path.name).exists():
            path.rename(folder / path.name)
    shutil.rmtree(arriving)
    return [path.name for path in found]
