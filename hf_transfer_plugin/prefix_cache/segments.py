"""The files of a store: one process writes a pair of them, all may read; nothing here knows what the bytes mean."""

import os
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

KEY_BYTES = 16
RECORD = np.dtype([
    ("key", f"V{KEY_BYTES}"),
    ("offset", "<u8"),
    ("nbytes", "<u8"),
    ("tokens", "<u4"),
    ("checksum", "<u8"),
])
NAME = re.compile(r"[0-9a-f]{16}-\d+-[0-9a-f]{8}\.(data|index)")


def segment_files(folder: Path) -> list[os.DirEntry[str]]:
    """
    Args:
        folder (`Path`):
            Folder of a store; it need not be there.

    Returns:
        `list[os.DirEntry]`: Its data and index files, oldest segment first.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted((one for one in entries if NAME.fullmatch(one.name)), key=lambda one: one.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


class Segment:
    """
    A pair of files, read.

    The index is a row of `RECORD`s, each written after its data: of a writer that was killed there is at most data
    that no record names, and half a record at the end.

    Args:
        path (`Path`):
            The pair without `.data` and `.index`.
    """

    def __init__(self, path: Path) -> None:
        self.data, self.index = path.with_name(f"{path.name}.data"), path.with_name(f"{path.name}.index")
        self._consumed = 0
        self._map: memoryview | None = None

    @property
    def grew(self) -> bool:
        """`bool`: Whether there are records that were not read yet, as far as the file's size tells."""
        return self.index.stat().st_size >= self._consumed + RECORD.itemsize

    def new_records(self, fixed: int, each: int) -> np.ndarray[Any, Any]:
        """
        Args:
            fixed (`int`):
                Bytes that every row takes.
            each (`int`):
                Bytes that each of its tokens adds.

        Returns:
            `np.ndarray` of `RECORD`: What was added since the last call, without what lies past the end of the data or
            has another size than its tokens tell.

        Raises:
            FileNotFoundError: If the files are gone.
        """
        with self.index.open("rb") as file:
            file.seek(self._consumed)
            added = file.read()
        records = np.frombuffer(added, RECORD, len(added) // RECORD.itemsize)
        self._consumed += records.nbytes
        offset, end = records["offset"], np.uint64(self.data.stat().st_size)
        inside = (offset <= end) & (records["nbytes"] <= end - np.minimum(offset, end))
        return records[inside & (records["nbytes"] == fixed + each * records["tokens"].astype(np.uint64))]

    def read(self, offset: int, count: int) -> memoryview:
        """
        Args:
            offset (`int`):
                Where the bytes begin.
            count (`int`):
                How many there are.

        Returns:
            `memoryview`: The bytes, in the memory that all readers of the file share; fewer where the file ends.

        Raises:
            OSError: If the file is gone or cannot be read.
        """
        if not count:
            return memoryview(b"")
        if self._map is None or len(self._map) < offset + count:
            # Slices of `np.memmap` itself are slow.
            self._map = np.memmap(self.data, np.uint8, "r").data
        return self._map[offset : offset + count]

    def close(self) -> None:
        """Lets go of the file."""
        self._map = None


class SegmentWriter:
    """
    A pair of files, written by this process alone.

    Args:
        folder (`Path`):
            Folder of the store.

    Raises:
        OSError: If no files can be made there.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{time.time_ns():016x}-{os.getpid()}-{secrets.token_hex(4)}"
        self.process, self._end = os.getpid(), 0
        self._files = [FileIO(f"{self.path}.{ending}", "x") for ending in ("data", "index")]

    def append(self, keys: Sequence[bytes], blobs: Sequence[bytes], tokens: Sequence[int]) -> None:
        """
        Args:
            keys (`Sequence[bytes]`):
                Keys of the rows.
            blobs (`Sequence[bytes]`):
                Bytes of the rows.
            tokens (`Sequence[int]`):
                Tokens of the rows.

        Raises:
            OSError: If the disk is full or fails. The writer is closed then; the rows before these are whole.
        """
        records = np.zeros(len(keys), RECORD)
        counts = [len(blob) for blob in blobs]
        records["key"] = np.frombuffer(b"".join(keys), f"V{KEY_BYTES}")
        records["nbytes"], records["tokens"] = counts, tokens
        records["offset"] = self._end + np.cumsum([0, *counts[:-1]])
        records["checksum"] = [xxh3_64_intdigest(blob) for blob in blobs]
        try:
            _write(self._files[0], b"".join(blobs))
            _write(self._files[1], records.tobytes())
        except OSError:
            with suppress(OSError):  # Half a row would only take room that is short already.
                self._files[0].truncate(self._end)
            self.close()
            raise
        self._end += sum(counts)

    def flush(self) -> None:
        """
        Has the disk take what was written, the data before the index.

        Raises:
            OSError: If the disk fails.
        """
        for file in self._files:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Closes the files, and removes them where nothing was written."""
        for file in self._files:
            file.close()
        self._files.clear()
        if not self._end and self.process == os.getpid():
            for ending in ("index", "data"):
                Path(f"{self.path}.{ending}").unlink(missing_ok=True)

    @property
    def lives(self) -> bool:
        """`bool`: Whether this process may go on writing: its files are open, and nobody removed them."""
        return bool(self._files) and self.process == os.getpid() and os.path.exists(f"{self.path}.index")


def _write(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
