"""A store: the activations of one cut, by the digests of their rows, for all processes at once."""

import logging
import os
import threading
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from xxhash import xxh3_64_intdigest

from hf_transfer_plugin.prefix_cache.folders import (
    META_NAME,
    PrefixCacheBudget,
    bytes_in,
    default_root,
    filling,
    matches,
    meta_of,
    prepare,
    refusal,
    remove,
    require_room,
    store_folder,
)
from hf_transfer_plugin.prefix_cache.listing import StoreFacts, clear_stores, list_stores
from hf_transfer_plugin.prefix_cache.segments import KEY_BYTES, RECORD, Segment, SegmentWriter, segment_files
from hf_transfer_plugin.prefix_cache.storage import Slot, check_storage, decode, encode, sizes, tokens_in

__all__ = [
    "ActivationStore",
    "PrefixCacheBudget",
    "StoreFacts",
    "clear_stores",
    "default_root",
    "filling",
    "list_stores",
    "store_folder",
]

logger = logging.getLogger(__name__)


class ActivationStore:
    """
    Activations of rows, in a folder that any number of processes read and write.

    Nothing is opened before it is used. Sent to another process it opens the files there; all share their memory. What
    was damaged on the disk counts as missing, so that it is made again.

    Args:
        folder (`str` or `Path`):
            The folder; see [`store_folder`].
        description (`Mapping[str, Any]`):
            Everything that the activations depend on, as JSON values; `model` and `cut` are shown to the user.
        slots (`Sequence[Slot]`):
            The tensors of a row.
        storage (`str`):
            One of `STORAGE`.
        budget (`int`, *optional*):
            Bytes that the folder may take.

    Raises:
        ValueError: If the folder holds other activations, or there is no such storage.
    """

    def __init__(
        self,
        folder: str | Path,
        description: Mapping[str, Any],
        slots: Sequence[Slot],
        storage: str,
        budget: int | None = None,
    ) -> None:
        check_storage(storage)
        self.folder = Path(folder).expanduser()
        self.description, self.slots, self.storage, self.budget = dict(description), tuple(slots), storage, budget
        self._meta = meta_of(description, slots, storage)
        matches(self.folder, self._meta)
        self._forget()

    def __reduce__(self) -> tuple[Any, ...]:
        return ActivationStore, (self.folder, self.description, self.slots, self.storage, self.budget)

    def _forget(self) -> None:
        self._segments: list[Segment] = []
        self._known: dict[str, int] = {}
        # Of each record: its segment, where it begins, its bytes, its checksum; and the record of each key.
        self._columns = [array("Q") for _ in range(4)]
        self._where: dict[bytes, int] = {}
        self._older: dict[bytes, list[int]] = {}
        self._warned: set[Path] = set()
        self._writer: SegmentWriter | None = None
        self._used = self._loaded = False
        self._process, self._lock = os.getpid(), threading.RLock()

    def _open(self) -> None:
        """Reads the index at first; a forked process takes a lock of its own, for that of its parent may be held."""
        if self._process != os.getpid():
            self._process, self._lock = os.getpid(), threading.RLock()
        if not self._loaded:
            self.refresh()

    def refresh(self) -> None:
        """
        Reads what any process added to the index.

        Raises:
            ValueError: If the folder holds other activations by now.
        """
        with self._lock:
            self._loaded = True
            if not self._segments and not matches(self.folder, self._meta):
                return
            for entry in segment_files(self.folder):
                if entry.name.endswith(".index"):
                    with suppress(FileNotFoundError):  # Another process clears it.
                        self._take(entry.name.removesuffix(".index"))

    def _take(self, name: str) -> None:
        """Takes over the new records of a segment; of two records of one key the later one counts."""
        number = self._known.get(name)
        if number is None:
            number = self._known[name] = len(self._segments)
            self._segments.append(Segment(self.folder / name))
        if not self._segments[number].grew:
            return
        records = self._segments[number].new_records(*sizes(self.slots, self.storage))
        first = len(self._columns[0])
        self._columns[0].extend([number] * len(records))
        for column, field in zip(self._columns[1:], ("offset", "nbytes", "checksum"), strict=True):
            column.frombytes(records[field].astype("=u8").tobytes())
        for position, key in enumerate(records["key"].tolist(), first):
            if key in self._where:
                self._older.setdefault(key, []).append(self._where[key])
            self._where[key] = position

    def __len__(self) -> int:
        self._open()
        return len(self._where)

    @property
    def nbytes(self) -> int:
        """`int`: Bytes of the data and its index on the disk, of all processes."""
        return bytes_in(self.folder)

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """
        Args:
            keys (`Sequence[bytes]`):
                Digests of rows.

        Returns:
            `list[int]`: Positions of the keys that are not there. If some are not, what other processes wrote is read
            first.
        """
        self._open()
        if any(key not in self._where for key in keys):
            self.refresh()
        return [position for position, key in enumerate(keys) if key not in self._where]

    def read(self, keys: Sequence[bytes]) -> tuple[list[torch.Tensor], list[int]] | None:
        """
        Args:
            keys (`Sequence[bytes]`):
                Digests of rows.

        Returns:
            `tuple[list[torch.Tensor], list[int]]` or `None`: The rows as [`decode`] gives them; `None` if any of them
            is missing or damaged.
        """
        if self.missing(keys):
            return None
        buffers = [self._buffer(key) for key in keys]
        if any(buffer is None for buffer in buffers):
            return None
        self._note_use()
        return decode(buffers, self.slots, self.storage)

    def _buffer(self, key: bytes) -> Any:
        """The bytes of a row, if they are what was written; else its key is dropped."""
        position = self._where.get(key)
        while position is not None:
            number, offset, count, checksum = (column[position] for column in self._columns)
            segment = self._segments[number]
            try:
                buffer = segment.read(offset, count)
            except (OSError, ValueError):
                buffer = None
            if buffer is not None and xxh3_64_intdigest(buffer) == checksum:
                return buffer
            position = self._drop(key, segment)
        return None

    def _drop(self, key: bytes, segment: Segment) -> int | None:
        if segment.data not in self._warned:
            self._warned.add(segment.data)
            logger.warning(
                "'%s' is damaged or gone: the row %s is not what was written. This row, and others of the file that "
                "prove damaged, are made again.",
                segment.data,
                key.hex(),
            )
        with self._lock:
            older = self._older.get(key)
            if older:
                self._where[key] = older.pop()
            else:
                self._where.pop(key, None)
            return self._where.get(key)

    def write(self, keys: Sequence[bytes], entries: Sequence[Sequence[torch.Tensor]]) -> int:
        """
        Stores rows; those that are there are skipped.

        Args:
            keys (`Sequence[bytes]`):
                Digests of rows.
            entries (`Sequence[Sequence[torch.Tensor]]`):
                For each row its tensors, one for each slot, without padding.

        Returns:
            `int`: How many rows were stored.

        Raises:
            PrefixCacheBudget: If the budget or the disk has no room for them; nothing is written then.
            ValueError: If a row is not what the slots say, its values do not fit, or the folder cannot be written.
        """
        self._open()
        fresh = {key: entry for key, entry in zip(keys, entries, strict=True) if key not in self._where}
        if odd := next((key for key in fresh if len(key) != KEY_BYTES), None):
            raise ValueError(f"A key must be a digest of {KEY_BYTES} bytes, but got {len(odd)} bytes.")
        if not fresh:
            return 0
        blobs = [encode(entry, self.slots, self.storage) for entry in fresh.values()]
        tokens = [tokens_in(len(blob), self.slots, self.storage) for blob in blobs]
        with self._lock:
            try:
                writer = self._ready(sum(map(len, blobs)) + len(blobs) * RECORD.itemsize)
                writer.append(list(fresh), blobs, tokens)
                self._take(writer.path.name)
            except OSError as error:
                raise refusal(error, self.folder) from error
        self._note_use()
        return len(fresh)

    def _ready(self, needed: int) -> SegmentWriter:
        """The writer of this process, in a folder that is a store: either may be new, or gone since the last time."""
        lives = self._writer is not None and self._writer.lives
        if not lives:
            self.folder.mkdir(parents=True, exist_ok=True)
            prepare(self.folder, self._meta)
        require_room(self.folder, self.nbytes, needed, self.budget)
        if self._writer is None or not lives:
            if self._writer is not None:
                self._writer.close()
            self._writer = SegmentWriter(self.folder)
        return self._writer

    def _note_use(self) -> None:
        if not self._used:
            self._used = True
            with suppress(OSError):  # A store that may only be read is used all the same.
                os.utime(self.folder / META_NAME)

    def make(self) -> None:
        """
        Makes the folder a store, before there is anything to write.

        Raises:
            ValueError: If it cannot be written, or holds other activations.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            prepare(self.folder, self._meta)
        except OSError as error:
            raise refusal(error, self.folder) from error

    def flush(self) -> None:
        """
        Has the disk take what was written; without this it survives the end of the process, but no power cut.

        Raises:
            ValueError: If the disk fails.
        """
        if self._writer is not None and self._writer.lives:
            try:
                self._writer.flush()
            except OSError as error:
                raise refusal(error, self.folder) from error

    def close(self) -> None:
        """Flushes and closes all files; the next call opens them again."""
        self.flush()
        if self._writer is not None:
            self._writer.close()
        self._forget()

    def clear(self) -> None:
        """Removes the store from the disk, but for files of others in its folder."""
        if self._writer is not None:
            self._writer.close()
        self._forget()
        remove(self.folder)
