"""The collator that brings stored activations along: in a data loader's workers, reading overlaps with computing."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash

from hf_transfer_plugin.prefix_cache.entries import Part, join_rows
from hf_transfer_plugin.prefix_cache.passage import Address
from hf_transfer_plugin.prefix_cache.rows import Span, row_digests, row_spans
from hf_transfer_plugin.prefix_cache.store import ActivationStore

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
            `bool`: Whether it is padded as that was proved.
        """
        return all(axis in spans and spans[axis].width == width for axis, width in self.widths)

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
            The collator proper.
        shelves (`Shelves`):
            Where the entries are.
    """

    def __init__(self, collate: Any, shelves: Shelves) -> None:
        self.collate, self.shelves = collate, shelves

    def __call__(self, rows: list[Any]) -> Any:
        """
        Args:
            rows (`list`):
                Rows of the dataset.

        Returns:
            `Mapping[str, Any]`: The batch.
        """
        batch = self.collate(rows)
        current = self.shelves.current
        if not 0 <= current < len(self.shelves.shelves) or not isinstance(batch, Mapping):
            return batch
        spans = row_spans(batch)
        digests = row_digests(batch, with_labels=True, spans=spans)
        values = self.shelves.shelves[current].read(digests, spans)
        found: dict[str, Any] = {"cut": current, "digests": digests, "spans": spans}
        found |= {str(i): value for i, value in enumerate(values or ())}
        batch[KEY] = found  # type: ignore[index]
        return batch

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

    def __getitem__(self, index: int) -> Any:
        drawn = xxhash.xxh3_64_intdigest(f"{self.seed}|{int(index)}|{int(self._view[0])}".encode())
        with kept_random():
            random.seed(drawn)
            np.random.seed(drawn % 2**32)
            torch.random.default_generator.manual_seed(drawn % 2**63)
            return self.dataset[int(index)]


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
