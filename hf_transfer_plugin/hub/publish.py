"""Pushes a run to the Hub: one commit, read back afterwards; repeating it changes nothing."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.hf_api import RepoFile

from hf_transfer_plugin.hub.client import HubError, call, check_rights, checked_repo
from hf_transfer_plugin.hub.demo import render_space
from hf_transfer_plugin.hub.folder import build_folder, search
from hf_transfer_plugin.record import TransferRecord

MODEL_TITLE = "Add the model, its record and its card"
SPACE_TITLE = "Add the demo"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Pushed:
    """
    What is on the Hub now.

    Args:
        repo (`str`): The repository.
        url (`str`): Its page.
        commit (`str`): The commit that was read back.
        files (`tuple[str, ...]`): Its files.
        left_out (`tuple[str, ...]`): Names in the run folder that were not pushed.
        pull_request (`str` or `None`): Page of the pull request.
    """

    repo: str
    url: str
    commit: str
    files: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    pull_request: str | None = None


def push_model(
    run: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> Pushed:
    """
    Pushes weights, config, tokenizer, card, record and plots of a run in one commit, and nothing else of its folder.

    Args:
        run (`str` or `Path`):
            The run folder; it is only read.
        repo (`str`):
            `USER/NAME`; made if it does not exist.
        private (`bool`, *optional*):
            Whether a new repository is private; without it the account's default.
        revision (`str`, *optional*):
            Branch to push to; made if it does not exist.
        create_pr (`bool`, *optional*, defaults to `False`):
            Open a pull request instead; a repeated push goes to the same one.

    Returns:
        `Pushed`: What is on the Hub now.

    Raises:
        ValueError: If it is no run folder, the name is wrong, or the folder holds what must not be public.
        HubError: If the Hub refuses, or does not hold what was sent; one sentence with the way out.

    Example:
    ```python
    >>> push_model("my-run", "jane/movie-reviews").url
    'https://huggingface.co/jane/movie-reviews'
    ```
    """
    record = TransferRecord.load(run)
    checked_repo(repo)
    with tempfile.TemporaryDirectory(prefix="push-") as temporary:
        folder = Path(temporary)
        left_out = build_folder(record, folder, repo)
        api = check_rights(repo)
        call(f"make the repository {repo}", api.create_repo, repo, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            call(f"make the branch {revision}", api.create_branch, repo, branch=revision, exist_ok=True)
        return push_folder(
            api, folder, repo, MODEL_TITLE, revision=revision, create_pr=create_pr, left_out=tuple(left_out)
        )


def check_space(run: str | Path) -> None:
    """
    Args:
        run (`str` or `Path`):
            The run folder.

    Raises:
        ValueError: If it is no run folder, or its task has no demo.
    """
    with tempfile.TemporaryDirectory(prefix="space-") as folder:
        render_space(TransferRecord.load(run), folder, "user/name")


def push_space(
    run: str | Path, repo: str, model: str, *, private: bool | None = None, hardware: str | None = None
) -> Pushed:
    """
    Pushes a Gradio demo of a model that is on the Hub.

    Args:
        run (`str` or `Path`):
            The run folder.
        repo (`str`):
            `USER/NAME` of the Space; made if it does not exist.
        model (`str`):
            The model's repository.
        private (`bool`, *optional*):
            Whether a new Space is private.
        hardware (`str`, *optional*):
            Hardware of a new Space, e.g. `"zero-a10g"`.

    Returns:
        `Pushed`: What is on the Hub now.

    Raises:
        ValueError: If it is no run folder, a name is wrong, or the task has no demo.
        HubError: If the Hub refuses.
    """
    record = TransferRecord.load(run)
    checked_repo(repo)
    with tempfile.TemporaryDirectory(prefix="space-") as temporary:
        folder = render_space(record, Path(temporary) / "space", model)
        search(folder)
        api = check_rights(repo)
        make: dict[str, Any] = {"repo_type": "space", "space_sdk": "gradio", "private": private, "exist_ok": True}
        try:
            call(f"make the Space {repo}", api.create_repo, repo, space_hardware=hardware, **make)
        except HubError as error:
            if error.status != 402:
                raise
            raise HubError(
                f"Could not make the Space {repo}: Gradio Spaces need a paid plan here. Try "
                "`--space_hardware zero-a10g` (free accounts may have two), make a static Space, which is free, on "
                f"the website for the card alone, or only write the folder with `hf-transfer-plugin demo {run} "
                "--output_dir FOLDER` and run it elsewhere.",
                402,
            ) from error
        return push_folder(api, folder, repo, SPACE_TITLE, repo_type="space")


def push_folder(
    api: HfApi,
    folder: Path,
    repo: str,
    title: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    create_pr: bool = False,
    left_out: tuple[str, ...] = (),
) -> Pushed:
    """
    Commits all files of a folder at once and reads their checksums back.

    Args:
        api (`HfApi`):
            The client.
        folder (`Path`):
            The folder.
        repo (`str`):
            The repository.
        title (`str`):
            Title of the commit.
        repo_type (`str`, *optional*, defaults to `"model"`):
            Kind of the repository.
        revision (`str`, *optional*):
            Branch.
        create_pr (`bool`, *optional*, defaults to `False`):
            Open a pull request, or go on with the one that an earlier push opened.
        left_out (`tuple[str, ...]`, *optional*):
            Handed on.

    Returns:
        `Pushed`: What is on the Hub now.

    Raises:
        HubError: If the Hub refuses, or does not hold what was sent.
    """
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def commit() -> tuple[str, str | None]:
        # Anew for every try: the answer may be lost of a try that opened the request, and the client notes in its
        # operations what it has done.
        opened = _open_request(api, repo, repo_type, title) if create_pr else None
        done = api.create_commit(
            repo,
            [CommitOperationAdd(name, folder / name) for name in files],
            commit_message=title,
            repo_type=repo_type,
            revision=opened[0] if opened else revision,
            create_pr=True if create_pr and opened is None else None,
        )
        return done.oid, done.pr_url or (opened[1] if opened else None)

    oid, pull_request = call(f"push to {repo}", commit)
    _read_back(api, folder, files, repo, repo_type, oid)
    page = f"{api.endpoint}/{'spaces/' if repo_type == 'space' else ''}{repo}"
    return Pushed(repo, page, oid, tuple(files), left_out, pull_request)


def _open_request(api: HfApi, repo: str, repo_type: str, title: str) -> tuple[str | None, str] | None:
    """Branch and page of the pull request that an earlier push opened, so that a repeated one opens no second."""
    asked: dict[str, Any] = {"repo_type": repo_type, "discussion_type": "pull_request", "discussion_status": "open"}
    me = call("log in to the Hub", api.whoami)["name"]
    found = call(f"list the pull requests of {repo}", lambda: list(api.get_repo_discussions(repo, **asked)))
    mine = [one for one in found if one.title == title and one.author == me]
    return (mine[0].git_reference, mine[0].url) if mine else None


def _read_back(api: HfApi, folder: Path, files: list[str], repo: str, repo_type: str, commit: str) -> None:
    there = call(f"read {repo} back", api.get_paths_info, repo, files, revision=commit, repo_type=repo_type)
    found = {entry.path: entry for entry in there if isinstance(entry, RepoFile)}
    for name in files:
        entry = found.get(name)
        if entry is None or not _same(folder / name, entry):
            raise HubError(
                f"Could not push to {repo}: {name} is not there as it was sent. Run the command again; it sends what "
                "is missing."
            )


def _same(path: Path, entry: RepoFile) -> bool:
    if entry.lfs is not None:
        digest = hashlib.sha256()
    else:
        # As git names a file's content.
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest() == (entry.lfs.sha256 if entry.lfs is not None else entry.blob_id)
