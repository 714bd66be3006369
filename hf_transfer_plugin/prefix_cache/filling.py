"""
One pass over the data that stores what passes the cuts.

Nothing is compiled for it: with MiniLM `torch.compile` saved at most 3% of the pass in float32 (6% in bfloat16), and
took 14 s (8 s), which 50,000 rows (25,000) would barely win back; `benchmarks/prefix_fill.py` measures it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_transfer_plugin.layers.probe import untouched
from hf_transfer_plugin.prefix_cache.collating import Shelf
from hf_transfer_plugin.prefix_cache.entries import Part, split_rows
from hf_transfer_plugin.prefix_cache.passage import Address, Catcher
from hf_transfer_plugin.prefix_cache.proving import Place, on_device
from hf_transfer_plugin.prefix_cache.rows import Span, row_digests, row_spans
from hf_transfer_plugin.prefix_cache.sizes import size_words, time_words
from hf_transfer_plugin.prefix_cache.storage import bytes_per_row
from hf_transfer_plugin.prefix_cache.store import filling

logger = logging.getLogger(__name__)

_LONG = ("input_ids", "input_values")
# Times the rows of a training batch. More takes more memory than training does, and was no faster.
TRIED = (1, 2)


def row_lengths(dataset: Any) -> list[int] | None:
    """
    Args:
        dataset (`Dataset`):
            Encoded rows.

    Returns:
        `list[int]` or `None`: How long each row's text or sound is; `None` where that would mean to make every row.
    """
    if isinstance(dataset, Dataset):
        name = next((name for name in _LONG if name in dataset.column_names), None)
        if name is None or dataset.format["type"] == "custom":
            return None
        # Piece by piece: of a shuffled dataset a whole column would be copied.
        tables = dataset.select_columns([name]).with_format("arrow").iter(batch_size=10_000)
        columns = (chunk for table in tables for chunk in table.column(name).chunks)
        return [length for column in columns for length in column.value_lengths().to_pylist()]
    if isinstance(dataset, (list, tuple)) and dataset and isinstance(dataset[0], Mapping):
        name = next((name for name in _LONG if name in dataset[0]), None)
        return None if name is None else [len(row[name]) for row in dataset]
    return None


def forecast(
    parts: Sequence[Part], tokens: Sequence[float], storage: str, rows: int, lengths: Sequence[int] | None
) -> int:
    """
    Args:
        parts (`Sequence[Part]`):
            The parts of an entry.
        tokens (`Sequence[float]`):
            Mean length of a few rows in each part.
        storage (`str`):
            How floats are kept.
        rows (`int`):
            Rows of the data.
        lengths (`Sequence[int]`, *optional*):
            Their lengths in tokens, where they are known.

    Returns:
        `int`: Bytes that the rows will take.
    """
    total = 0.0
    for part, mean in zip(parts, tokens, strict=True):
        fixed = bytes_per_row(part.slots, storage, 0)
        if lengths and part.axis == "tokens":
            mean = sum(lengths) / len(lengths)
        total += rows * (fixed + mean * (bytes_per_row(part.slots, storage, 1) - fixed))
    return round(total)


def fill(
    model: nn.Module,
    shelves: Sequence[Shelf],
    dataset: Any,
    collate: Callable[[list[Any]], Any],
    *,
    place: Place,
    batch_size: int,
    exact: bool = False,
    share: tuple[int, int] = (0, 1),
    workers: int = 0,
    expected: tuple[int, int] | None = None,
) -> int:
    """
    Runs the frozen part once over every row that is not stored yet.

    Args:
        model (`nn.Module`):
            The model, as training runs it; left as it was.
        shelves (`Sequence[Shelf]`):
            What to fill; one pass serves all.
        dataset (`Dataset`):
            The rows.
        collate (`Callable`):
            Makes a batch of rows.
        place (`Place`):
            Where the model is, and in which precision it runs for this.
        batch_size (`int`):
            Rows of a training batch. The pass takes as many or twice as many, whichever its first batches show to be
            faster.
        exact (`bool`, *optional*, defaults to `False`):
            Take just that many rows at a time, so that shapes are those of training.
        share (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
            This process and the number of processes, which share the rows.
        workers (`int`, *optional*, defaults to 0):
            Worker processes that read rows.
        expected (`tuple[int, int]`, *optional*):
            Passes like this one, and the bytes that all will store. With it the log says, once that can be told, what
            they will take.

    Returns:
        `int`: Rows that were run.
    """
    lengths = row_lengths(dataset)
    order = list(range(len(dataset)))
    own = any(part.axis == "own" for shelf in shelves for part in shelf.parts)
    if lengths is not None and not exact:
        order.sort(key=lambda i: -lengths[i])
    order = order[share[0] :: share[1]]
    sizes = _Sizes(batch_size, exact=exact, tried=not exact and not workers, lengths=lengths, alike=own)
    addresses = list(dict.fromkeys(address for shelf in shelves for address in shelf.addresses))
    catcher, done = Catcher(model, addresses), 0
    with ExitStack() as stack:
        stack.callback(catcher.remove)
        for folder in sorted({str(store.folder) for shelf in shelves for store in shelf.stores}):
            stack.enter_context(filling(folder, share))
        stack.enter_context(untouched(model))
        bar = stack.enter_context(tqdm(total=len(order), desc="Storing the frozen layers' work", unit="row"))
        loader = DataLoader(
            dataset,
            batch_sampler=sizes.batches(order),
            collate_fn=collate,
            num_workers=workers,
        )
        started = moment = time.perf_counter()
        for batch in loader:
            rows = _store(catcher, model, batch, shelves, place)
            done, before, moment = done + rows, moment, time.perf_counter()
            if rows and sizes.took(moment - before) and expected is not None:
                passes, nbytes = expected
                seconds = passes * (moment - started + sizes.seconds_for(order[bar.n + sizes.last :]))
                taking = f"{size_words(nbytes)} and {time_words(seconds)}"
                logger.info("Storing %s rows: about %s.", f"{passes * len(dataset):,}", taking)
            bar.update(min(sizes.last, len(order) - bar.n))
        for store in (store for shelf in shelves for store in shelf.stores):
            store.flush()
    return done


def _store(
    catcher: Catcher,
    model: nn.Module,
    batch: Mapping[str, Any],
    shelves: Sequence[Shelf],
    place: Place,
) -> int:
    """Rows that were run, and are stored now."""
    digests = row_digests(batch, with_labels=True)
    missing = {place for shelf in shelves for place in shelf.missing(digests)}
    if not missing:
        return 0
    with place.filling():
        values = catcher.run(on_device(batch, place.device), model)
    put(shelves, values, row_spans(batch), digests)
    return len(missing)


def put(
    shelves: Sequence[Shelf],
    values: Mapping[Address, torch.Tensor],
    spans: Mapping[str, Span],
    digests: Sequence[bytes],
) -> None:
    """
    Args:
        shelves (`Sequence[Shelf]`):
            Where to put the rows of a batch.
        values (`Mapping[Address, torch.Tensor]`):
            What passed.
        spans (`Mapping[str, Span]`):
            Where the rows lie in it.
        digests (`Sequence[bytes]`):
            Their digests.
    """
    here = {address: value.cpu() for address, value in values.items()}
    for shelf in (shelf for shelf in shelves if shelf.takes(spans)):
        for part, store in zip(shelf.parts, shelf.stores, strict=True):
            store.write(digests, split_rows(part, here, spans))


class _Sizes:
    """
    How many rows to run at a time: a few sizes are timed on the first batches, and the fastest goes on. Where rows are
    of one length alone, nothing is padded.
    """

    def __init__(
        self, batch_size: int, *, exact: bool, tried: bool, lengths: Sequence[int] | None, alike: bool
    ) -> None:
        self._exact, self._size, self._lengths, self._alike = exact, batch_size, lengths, alike
        # The first call of a kind is slow, so the first size is taken twice.
        self._trials = [batch_size, *(batch_size * times for times in (TRIED if tried else TRIED[:1]))]
        self._seconds: dict[int, float] = {}
        self._rows: list[int] = []

    @property
    def last(self) -> int:
        """Rows of the batch that was given last."""
        return len(self._rows)

    def took(self, seconds: float) -> bool:
        """Notes the time of the batch that was given last, its loading included; whether that settles the size."""
        if not self._trials:
            return False
        self._seconds[self._trials.pop(0)] = seconds / self._work(self._rows)
        if not self._trials:
            self._size = min(self._seconds, key=lambda size: self._seconds[size])
        return not self._trials

    def seconds_for(self, rows: Sequence[int]) -> float:
        """What rows will take at the size that is settled."""
        return self._seconds[self._size] * self._work(rows) if rows else 0.0

    def _work(self, rows: Sequence[int]) -> int:
        return max(1, sum(self._lengths[i] for i in rows)) if self._lengths else len(rows)

    def batches(self, order: Sequence[int]) -> Iterator[list[int]]:
        """Row numbers, batch by batch."""
        place = 0
        while place < len(order):
            rows = list(order[place : place + (self._trials[0] if self._trials else self._size)])
            if self._alike:
                first = self._lengths[rows[0]] if self._lengths else None
                rows = [i for i in rows if self._lengths and self._lengths[i] == first] or rows[:1]
            place, self._rows = place + len(rows), rows
            # The same rows again, for the shape alone.
            topped = [order[i % len(order)] for i in range(self._size - len(rows))] if self._exact else []
            yield rows + topped
