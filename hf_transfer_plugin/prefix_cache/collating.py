"""The collator that brings stored activations along: in a data loader's workers, reading overlaps with computing."""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from datasets import Dataset

from hf_transfer_plugin.prefix_cache.entries import Part, join_rows
from hf_transfer_plugin.prefix_cache.passage import Address
from hf_transfer_plugin.prefix_cache.rows import Span, row_digests, row_spans
from hf_transfer_plugin.prefix_cache.store import ActivationStore

logger = logging.getLogger(__name__)
# What a batch carries for the model's hook; the model itself never sees it.
KEY = "frozen_prefix"


@dataclass(frozen=True)
class Shelf:
    """
    Where the entries of one cut are kept.

    Args:
        addresses (`tuple[Address, ...]`):
            Where the tensors pass.
        parts (`tuple[Part, ...]`):
            What one row holds.
        stores (`tuple[ActivationStore, ...]`):
            A store for each part.
        widths (`tuple[tuple[str, int], ...]`, *optional*, defaults to `()`):
            How wide a batch must be in tokens or targets, where it was proved for that padding alone.
    """

    addresses: tuple[Address, ...]
    parts: tuple[Part, ...]
    stores: tuple[ActivationStore, ...]
    widths: tuple[tuple[str, int], ...] = ()

    def takes(self, spans: Mapping[str, Span]) -> bool:
        """
        Args:
            spans (`Mapping[str, Span]`):
                Where the rows of a batch lie in it.

        Returns:
            `bool`: Whether it is padded as that was proved. Rows without labels may be read where none has targets.
        """
        used = {"tokens", *(part.axis for part in self.parts)}
        return all(axis in spans and spans[axis].width == width for axis, width in self.widths if axis in used)

    def missing(self, digests: Sequence[bytes]) -> list[int]:
        """
        Args:
            digests (`Sequence[bytes]`):
                Digests of rows.

        Returns:
            `list[int]`: Places of those that are not there.
        """
        return sorted({place for store in self.stores for place in store.missing(digests)})

    def read(self, digests: Sequence[bytes], spans: Mapping[str, Span]) -> list[torch.Tensor] | None:
        """
        Args:
            digests (`Sequence[bytes]`):
                Digests of the rows of a batch.
            spans (`Mapping[str, Span]`):
                Where the rows lie in it.

        Returns:
            `list[torch.Tensor]` or `None`: What passes, in the order of the addresses, as it is stored; `None` where a
            row is missing.
        """
        if not self.takes(spans):
            return None
        values: dict[Address, torch.Tensor] = {}
        for part, store in zip(self.parts, self.stores, strict=True):
            found = store.read(digests)
            if found is None:
                return None
            values |= join_rows(part, *found, spans)
        return [values[address] for address in self.addresses]


class Shelves:
    """The shelves of a run, as the collators in all processes of a data loader see them."""

    def __init__(self) -> None:
        self.shelves: list[Shelf] = []
        # In shared memory, so that workers that prefetch learn of a thaw.
        self._current = torch.full((1,), -1, dtype=torch.int64).share_memory_()

    @property
    def current(self) -> int:
        """`int`: Number of the shelf that is in use; -1 where none is."""
        return int(self._current[0])

    @current.setter
    def current(self, value: int) -> None:
        self._current[0] = value


class CachingCollator:
    """
    A collator that adds to each batch the digests of its rows and, where all are stored, what passes the cut.

    Args:
        collate (`Callable`):
            The collator proper. Its method `has_entry_for_each`, where it has one, tells of rows whether the batch
            will have one entry for each of them; it is left alone where it has not.
        shelves (`Shelves`):
            Where the entries are.
    """

    def __init__(self, collate: Any, shelves: Shelves) -> None:
        self.collate, self.shelves, self._warned = collate, shelves, False

    def __call__(self, rows: list[Any]) -> Any:
        """
        Args:
            rows (`list`):
                Rows of the dataset.

        Returns:
            `Mapping[str, Any]`: The batch.
        """
        batch = self.collate(rows)
        told = getattr(self.collate, "has_entry_for_each", None)
        current = self.shelves.current if told is None or told(rows) else -1
        if 0 <= current < len(self.shelves.shelves) and isinstance(batch, Mapping):
            try:
                batch[KEY] = self._brought(batch, current)  # type: ignore[index]
            except Exception as error:  # noqa: BLE001  other rows than those of the proof may fail in any way
                if not self._warned:
                    logger.warning("The prefix cache leaves out batches that it cannot tell (%s).", error)
                self._warned = True
        return batch

    def _brought(self, batch: Mapping[str, Any], current: int) -> dict[str, Any]:
        spans = row_spans(batch)
        digests = row_digests(batch, with_labels=True, spans=spans)
        values = self.shelves.shelves[current].read(digests, spans)
        found: dict[str, Any] = {"cut": current, "digests": digests, "spans": spans}
        return found | {str(i): value for i, value in enumerate(values or ())}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "collate":
            raise AttributeError(name)
        return getattr(self.collate, name)


class SeededViews:
    """
    A dataset whose random augmentation gives each row one of a fixed number of views, by turns: what is drawn depends
    on seed, row and view alone.

    Args:
        dataset (`Dataset`):
            The dataset; its rows are made at random.
        views (`int`):
            Views of each row.
        seed (`int`):
            Seed of the draws.
    """

    def __init__(self, dataset: Any, views: int, seed: int) -> None:
        self.dataset, self.views, self.seed = dataset, views, seed
        self._view = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """
        Args:
            epoch (`int`):
                Number of the epoch; the view is its remainder.
        """
        self._view[0] = epoch % self.views

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):  # A column of a `datasets.Dataset`.
            return self.dataset[index]
        with kept_random():
            return self._drawn(int(index))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        if isinstance(self.dataset, Dataset) and self.dataset.format["type"] != "custom":
            return list(self.dataset.__getitems__(list(indices)))
        # One by one: what is drawn for a row must not depend on those before it.
        with kept_random():
            return [self._drawn(int(index)) for index in indices]

    def _drawn(self, index: int) -> Any:
        drawn = xxhash.xxh3_64_intdigest(f"{self.seed}|{index}|{int(self._view[0])}".encode())
        random.seed(drawn)
        np.random.seed(drawn % 2**32)
        torch.random.default_generator.manual_seed(drawn % 2**63)
        return self.dataset[index]


@contextmanager
def kept_random() -> Iterator[None]:
    """
    Whatever the body draws, afterwards random numbers go on as if it had not.

    Yields:
        `None`
    """
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])
