"""The folders of stores: where they are, what says whose they are, and who fills one."""

import errno
import glob
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from xxhash import xxh3_128_hexdigest

from hf_transfer_plugin.prefix_cache.segments import segment_files
from hf_transfer_plugin.prefix_cache.sizes import size_words
from hf_transfer_plugin.prefix_cache.storage import Slot
from hf_transfer_plugin.record import write_atomically

logger = logging.getLogger(__name__)

META_NAME, MADE_BY, FORMAT = "meta.json", "hf_transfer_plugin prefix cache", 1
ROOT_VARIABLE = "HF_TRANSFER_PLUGIN_CACHE"
# Disk that is left to others: a full disk stops more than this run.
RESERVE = 2**30
ELSEWHERE = (
    f"Name another folder with `directory` or the environment variable {ROOT_VARIABLE}, or switch the cache off."
)


class PrefixCacheBudget(ValueError):  # noqa: N818 - the public name
    """The cache would pass its budget or fill the disk; the message names the sizes."""


def default_root() -> Path:
    """
    Returns:
        `Path`: Where stores are kept: the environment variable `HF_TRANSFER_PLUGIN_CACHE`, else a folder in the cache
        of Hugging Face.
    """
    if named := os.environ.get(ROOT_VARIABLE):
        return Path(named).expanduser()
    from datasets.config import HF_CACHE_HOME  # Seconds, which a worker that only reads need not wait.

    return Path(HF_CACHE_HOME).expanduser() / "assets" / "hf_transfer_plugin" / "prefix_cache"


def store_folder(root: str | Path, description: Mapping[str, Any]) -> Path:
    """
    Args:
        root (`str` or `Path`):
            Where stores are kept.
        description (`Mapping[str, Any]`):
            Everything that the activations depend on, as JSON values.

    Returns:
        `Path`: The folder of this description; any other description has another one.
    """
    return Path(root).expanduser() / xxh3_128_hexdigest(canonical(description).encode())[:16]


def canonical(values: Any) -> str:
    """
    Args:
        values (`Any`):
            JSON values.

    Returns:
        `str`: Their one spelling.
    """
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def meta_of(description: Mapping[str, Any], slots: Sequence[Slot], storage: str) -> dict[str, Any]:
    """
    Args:
        description (`Mapping[str, Any]`):
            Everything that the activations depend on, as JSON values.
        slots (`Sequence[Slot]`):
            The tensors of a row.
        storage (`str`):
            How they are kept.

    Returns:
        `dict`: What stands in the store's `meta.json`.
    """
    meta = {
        "made_by": MADE_BY,
        "format": FORMAT,
        "description": dict(description),
        "slots": [slot.to_dict() for slot in slots],
        "storage": storage,
    }
    return dict(json.loads(canonical(meta)))


def read_meta(folder: Path) -> dict[str, Any] | None:
    """
    Args:
        folder (`Path`):
            A folder that may be a store.

    Returns:
        `dict` or `None`: Its `meta.json`; `None` where there is none, or none of ours.
    """
    try:
        meta = json.loads((folder / META_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) and meta.get("made_by") == MADE_BY else None


def matches(folder: Path, meta: Mapping[str, Any]) -> bool:
    """
    Args:
        folder (`Path`):
            The folder of a store.
        meta (`Mapping[str, Any]`):
            What must stand in it.

    Returns:
        `bool`: Whether it does. Where nothing readable of this format is there, the store can be made anew.

    Raises:
        ValueError: If the folder holds other activations.
    """
    found = read_meta(folder)
    if found is None or found.get("format") != FORMAT:
        return False
    differing = [name for name in ("description", "slots", "storage") if found.get(name) != meta[name]]
    if differing:
        name = differing[0]
        raise ValueError(
            f"The prefix cache in '{folder}' must hold the activations of this run, but its {' and '.join(differing)} "
            f"differ: expected {_short(meta[name])}, got {_short(found.get(name))}. Remove it with "
            f"`hf-transfer-plugin cache clear {folder.name} --directory {folder.parent}`, or name another folder."
        )
    return True


def _short(value: Any, limit: int = 200) -> str:
    text = canonical(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def prepare(folder: Path, meta: Mapping[str, Any]) -> None:
    """
    Makes a folder a store, without what another version or a fault left there.

    Args:
        folder (`Path`):
            The folder.
        meta (`Mapping[str, Any]`):
            What its `meta.json` must say.

    Raises:
        OSError: If nothing can be written there.
        ValueError: If the folder holds other activations.
    """
    # Listed before the meta is read: another process writes its meta first, so its files are never taken for old.
    before = segment_files(folder)
    if matches(folder, meta):
        return
    if before:
        logger.warning(
            "The prefix cache in '%s' cannot be used: its %s is missing, damaged or of another version. It is made "
            "anew.",
            folder,
            META_NAME,
        )
    for entry in before:
        Path(entry.path).unlink(missing_ok=True)
    write_atomically(folder / META_NAME, json.dumps(meta, indent=2) + "\n")


def bytes_in(folder: Path) -> int:
    """
    Args:
        folder (`Path`):
            The folder of a store.

    Returns:
        `int`: Bytes of its data and index, whoever wrote them.
    """
    total = 0
    for entry in segment_files(folder):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:  # Another process clears it.
            continue
    return total


def require_room(folder: Path, held: int, needed: int, budget: int | None) -> None:
    """
    Args:
        folder (`Path`):
            The folder of a store.
        held (`int`):
            Bytes that the store has.
        needed (`int`):
            Bytes that shall be added.
        budget (`int` or `None`):
            Bytes that the store may have.

    Raises:
        PrefixCacheBudget: If the budget, or the disk but for a reserve, has no room for them.
    """
    advice = 'keep it smaller with `storage="int8"` or fewer rows, or switch the cache off'
    if budget is not None and held + needed > budget:
        raise PrefixCacheBudget(
            f"The prefix cache in '{folder}' may take {size_words(budget)}, but it has {size_words(held)} and needs "
            f"{size_words(needed)} more. Raise its `budget`, {advice}."
        )
    free = shutil.disk_usage(folder).free
    if needed > free - RESERVE:
        raise PrefixCacheBudget(
            f"The prefix cache in '{folder}' needs {size_words(needed)} more, but its disk has {size_words(free)} "
            f"free, of which {size_words(RESERVE)} are left to others. Free some (`hf-transfer-plugin cache ls` lists "
            f"the caches), name another folder with `directory`, {advice}."
        )


def refusal(error: OSError, folder: Path) -> ValueError:
    """
    Args:
        error (`OSError`):
            What the system says.
        folder (`Path`):
            The folder of a store.

    Returns:
        `ValueError`: The same as a sentence; a [`PrefixCacheBudget`] where the disk is full.
    """
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return PrefixCacheBudget(
            f"The prefix cache in '{folder}' ran out of room ({reason}); what it holds stays usable. Free some disk "
            f"(`hf-transfer-plugin cache ls` lists the caches). {ELSEWHERE}"
        )
    return ValueError(
        f"The prefix cache needs a folder that it can write to, but got '{folder}' ({reason}). {ELSEWHERE}"
    )


@contextmanager
def filling(folder: str | Path, share: tuple[int, int] = (0, 1)) -> Iterator[bool]:
    """
    Of several processes, lets one fill a store while the others wait; the lock ends with its process.

    The processes of one run fill at the same time, each its share, so a lock is for one share: another run of as many
    processes waits share by share, and finds it stored. Runs of different numbers of processes do not wait for one
    another, since a process that waited alone would keep those of its run waiting past the time limit of their
    collectives. What that costs is room: each process writes files of its own and looks before each batch for what
    others stored meanwhile, so a row is at worst there more than once.

    Args:
        folder (`str` or `Path`):
            The folder of the store.
        share (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
            This process and the number of processes, which share the rows.

    Yields:
        `bool`: Whether another process had it first; then the store may be full by now.

    Raises:
        ValueError: If no lock can be made there.
    """
    folder = Path(folder).expanduser()
    lock, waited = lock_of(folder, share), False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waited = True
            logger.warning(
                "Another process fills the prefix cache in '%s'; this one waits until it is done, and then uses what "
                "it stored.",
                folder,
            )
            lock.acquire()
    except OSError as error:
        raise refusal(error, folder) from error
    try:
        yield waited
    finally:
        lock.release()


def lock_of(folder: Path, share: tuple[int, int] = (0, 1)) -> FileLock:
    """
    Args:
        folder (`Path`):
            The folder of a store.
        share (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
            A process and the number of processes, which share the rows.

    Returns:
        `FileLock`: Held by who fills that share of it. It lies beside the folder and outlives it.
    """
    part = "" if share[1] == 1 else f".{share[0]}of{share[1]}"
    return FileLock(folder.with_name(f".{folder.name}{part}.lock"))


def locks_of(folder: Path) -> list[FileLock]:
    """
    Args:
        folder (`Path`):
            The folder of a store.

    Returns:
        `list[FileLock]`: One for each share that is or was filled; none of them held means that nobody fills it.
    """
    shares = sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*of*.lock"))
    return [lock_of(folder), *map(FileLock, shares)]


def remove(folder: Path) -> None:
    """
    Removes a store, but not what others put into its folder.

    Args:
        folder (`Path`):
            The folder of a store.

    Raises:
        ValueError: If it may not be removed.
    """
    try:
        for entry in segment_files(folder):
            Path(entry.path).unlink(missing_ok=True)
        # Last: a removal that was cut off can be repeated as long as the folder is known as a store.
        (folder / META_NAME).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise ValueError(
            f"The prefix cache in '{folder}' could not be removed ({error.strerror}). Check the rights of the folder."
        ) from error
