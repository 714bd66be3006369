"""What is kept in a folder of stores, for the user to look at and to remove; nothing is loaded for it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from hf_transfer_plugin.prefix_cache.folders import FORMAT, META_NAME, bytes_in, locks_of, read_meta, refusal, remove
from hf_transfer_plugin.prefix_cache.segments import Segment, segment_files
from hf_transfer_plugin.prefix_cache.storage import Slot, sizes


@dataclass(frozen=True)
class StoreFacts:
    """
    What the user wants to know about a store.

    Args:
        name (`str`):
            Name of its folder.
        model (`str`):
            The model whose activations it has.
        cut (`str`):
            Where the frozen part of the model ends.
        storage (`str`):
            How they are kept.
        rows (`int`):
            Rows that it has; 0 where it is of another version or damaged.
        nbytes (`int`):
            Its bytes on the disk.
        last_used (`float`):
            When it was last opened, in seconds since 1970.
    """

    name: str
    model: str
    cut: str
    storage: str
    rows: int
    nbytes: int
    last_used: float


def list_stores(root: str | Path) -> list[StoreFacts]:
    """
    Args:
        root (`str` or `Path`):
            Where stores are kept; it need not be there.

    Returns:
        `list[StoreFacts]`: The stores in it, the one that was used last first.
    """
    return sorted(_stores(Path(root).expanduser()), key=lambda one: -one.last_used)


def _stores(root: Path) -> Iterator[StoreFacts]:
    for folder in root.iterdir() if root.is_dir() else ():
        meta = read_meta(folder)
        if meta is not None:
            with suppress(FileNotFoundError):  # Another process clears it.
                yield _facts(folder, meta)


def _facts(folder: Path, meta: dict[str, Any]) -> StoreFacts:
    description = meta.get("description") or {}
    return StoreFacts(
        name=folder.name,
        model=str(description.get("model", "?")),
        cut=str(description.get("cut", "?")),
        storage=str(meta.get("storage", "?")),
        rows=_rows(folder, meta) if meta.get("format") == FORMAT else 0,
        nbytes=bytes_in(folder),
        last_used=(folder / META_NAME).stat().st_mtime,
    )


def _rows(folder: Path, meta: dict[str, Any]) -> int:
    """Rows of all segments, each once."""
    try:
        count = sizes(tuple(Slot.from_dict(slot) for slot in meta["slots"]), meta["storage"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return 0
    keys: set[bytes] = set()
    for entry in segment_files(folder):
        if entry.name.endswith(".index"):
            keys.update(Segment(folder / entry.name.removesuffix(".index")).new_records(*count)["key"].tolist())
    return len(keys)


def clear_stores(root: str | Path, names: Sequence[str] | None = None) -> list[StoreFacts]:
    """
    Removes stores; folders without a `meta.json` of this package are never touched.

    Args:
        root (`str` or `Path`):
            Where stores are kept.
        names (`Sequence[str]`, *optional*):
            Names of those to remove; all without it.

    Returns:
        `list[StoreFacts]`: What was removed.

    Raises:
        ValueError: If there is no store of a name, or one is being filled; nothing is removed then.
    """
    found = chosen(root, names)
    folders = [Path(root).expanduser() / one.name for one in found]
    with ExitStack() as held:
        for folder in folders:
            try:
                for lock in locks_of(folder):
                    held.enter_context(lock.acquire(timeout=0))
            except Timeout:
                raise ValueError(
                    f"The prefix cache in '{folder}' is being filled by another process. Wait for it or stop it first."
                ) from None
            except OSError as error:
                raise refusal(error, folder) from error
        for folder in folders:
            remove(folder)
    return found


def chosen(root: str | Path, names: Sequence[str] | None) -> list[StoreFacts]:
    """
    Args:
        root (`str` or `Path`):
            Where stores are kept.
        names (`Sequence[str]` or `None`):
            Names of stores; all without it.

    Returns:
        `list[StoreFacts]`: These stores.

    Raises:
        ValueError: If there is no store of a name.
    """
    found = list_stores(root)
    known = {one.name for one in found}
    unknown = sorted(set(names or ()) - known)
    if unknown:
        raise ValueError(
            f"There is no prefix cache {', '.join(map(repr, unknown))} in '{root}'; there are "
            f"{', '.join(sorted(known)) or 'none'}. Run `hf-transfer-plugin cache ls` to list them."
        )
    return [one for one in found if not names or one.name in names]
