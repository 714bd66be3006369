"""A stage of a run: one cut with the place where its entries are kept."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from hf_transfer_plugin.layers.probe import untouched
from hf_transfer_plugin.prefix_cache.collating import Shelf
from hf_transfer_plugin.prefix_cache.cuts import CannotCacheError, Cut
from hf_transfer_plugin.prefix_cache.describing import describe, weights_digest
from hf_transfer_plugin.prefix_cache.filling import forecast, row_lengths
from hf_transfer_plugin.prefix_cache.finding import find_cut
from hf_transfer_plugin.prefix_cache.folders import RESERVE
from hf_transfer_plugin.prefix_cache.gains import catches_alike, skipped_share
from hf_transfer_plugin.prefix_cache.passage import Catcher
from hf_transfer_plugin.prefix_cache.proving import (
    Place,
    on_device,
    prove_storage,
    recheck_tolerance,
    worst_distance,
)
from hf_transfer_plugin.prefix_cache.rows import row_digests, row_spans
from hf_transfer_plugin.prefix_cache.shapes import OutputShapes
from hf_transfer_plugin.prefix_cache.sizes import size_words
from hf_transfer_plugin.prefix_cache.store import ActivationStore, store_folder

logger = logging.getLogger(__name__)
# Of the forward pass: less is not worth reading from a disk.
WORTH = 0.02


@dataclass(frozen=True)
class Stage:
    """
    What is in use while one set of parameters learns.

    Args:
        cut (`Cut`):
            The end of the frozen prefix.
        shelf (`Shelf`):
            Where its entries are kept.
        share (`float`):
            Share of the operations of a forward pass that lie below it.
        tokens (`tuple[float, ...]`):
            Mean length of a few rows in each part of an entry.
        error (`float`):
            Relative error of the storage.
        lazily (`bool`):
            Whether training itself shows what would be stored.
        shapes (`Mapping[str, OutputShapes]`):
            What was learned of the outputs of skipped modules.
    """

    cut: Cut
    shelf: Shelf
    share: float
    tokens: tuple[float, ...]
    error: float
    lazily: bool
    shapes: Mapping[str, OutputShapes]

    @property
    def padded(self) -> bool:
        """`bool`: Whether rows can be taken out of a padded batch."""
        return all(part.axis != "own" for part in self.shelf.parts)

    @property
    def nbytes(self) -> int:
        """`int`: Bytes that it takes by now."""
        return sum(store.nbytes for store in self.shelf.stores)

    def to_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict[str, Any]`: What a report says of it.
        """
        return {
            "fed": self.cut.fed,
            "skipped_share": round(self.share, 4),
            "storage_error": self.error,
            "folder": str(self.shelf.stores[0].folder),
        }


@dataclass(frozen=True)
class Keeping:
    """
    How and where activations are kept.

    Args:
        directory (`Path`):
            Folder of the caches.
        storage (`str`):
            How floats are kept.
        budget (`int` or `None`):
            Bytes that they may take.
    """

    directory: Path
    storage: str
    budget: int | None


def make_stage(
    model: nn.Module,
    learning: frozenset[str],
    rows: Sequence[Any],
    collate: Any,
    *,
    place: Place,
    batch_size: int,
    keeping: Keeping,
) -> Stage:
    """
    Finds the cut below what learns, and proves it.

    Args:
        model (`nn.Module`):
            The model; left as it was.
        learning (`frozenset[str]`):
            Names of the parameters that learn.
        rows (`Sequence`):
            A few rows of the data, of different length, the shortest first.
        collate (`Callable`):
            Makes a batch of rows.
        place (`Place`):
            Where and in which precision the model runs.
        batch_size (`int`):
            Rows of a training batch.
        keeping (`Keeping`):
            How and where activations are kept.

    Returns:
        `Stage`: The stage.

    Raises:
        CannotCacheError: If there is none, or if it would not pay.
    """
    half = max(1, len(rows) // 2)
    probes = [on_device(collate(list(r)), place.device) for r in (rows[:half], rows[half:] or rows)]
    cut = find_cut(model, learning, probes)
    share = skipped_share(model, cut, probes[0])
    if share < WORTH:
        raise CannotCacheError(
            f"what lies below {cut.fed!r} takes only {share:.1%} of a forward pass, so there is nothing to gain"
        )
    proof = prove_storage(model, cut, rows, collate, place, keeping.storage)
    weights = weights_digest(model, learning)
    # The last bit depends on the shape of the batch; only here does it matter.
    rows_at_once = batch_size if keeping.storage == "float32" else None
    stores = []
    for part in proof.parts:
        description = describe(
            model, cut, part, weights=weights, storage=keeping.storage, place=place, batch_size=rows_at_once
        )
        description["widths"] = dict(proof.widths)
        folder = store_folder(keeping.directory, description)
        stores.append(ActivationStore(folder, description, part.slots, keeping.storage, keeping.budget))
    addresses = tuple(address for part in proof.parts for address in part.addresses)
    lazily = all(part.axis != "own" for part in proof.parts) and catches_alike(model, cut, learning, probes[0])
    shelf = Shelf(addresses, proof.parts, tuple(stores), tuple(sorted(proof.widths.items())))
    _refuse_other(model, shelf, on_device(collate(list(rows)), place.device), place, keeping.storage)
    return Stage(replace(cut, addresses=addresses), shelf, share, proof.tokens, proof.error, lazily, proof.shapes)


def _refuse_other(model: nn.Module, shelf: Shelf, batch: Mapping[str, Any], place: Place, storage: str) -> None:
    """Weights and settings may be those of a store, and yet code that was changed may make other activations."""
    spans = row_spans(batch)
    stored = shelf.read(row_digests(batch, with_labels=True, spans=spans), spans)
    if stored is None:
        return
    catcher = Catcher(model, shelf.addresses)
    try:
        with untouched(model):
            made = catcher.run(batch, model)
    finally:
        catcher.remove()
    held = {address: value.to(place.device) for address, value in zip(shelf.addresses, stored, strict=True)}
    far = worst_distance(shelf.parts, made, held, spans)
    if not far <= recheck_tolerance(model, place, storage):
        folder = shelf.stores[0].folder
        raise CannotCacheError(
            f"what is stored in '{folder}' is not what the model makes now (off by {far:.1e}), as if its code had "
            f"changed; `hf-transfer-plugin cache clear {folder.name}` clears it"
        )


def that_fit(
    stages: Mapping[str, Stage], steps: Mapping[str, int], dataset: Any, views: int, keeping: Keeping
) -> tuple[list[str], list[str]]:
    """
    Chooses what to store, first what saves most for a byte.

    Args:
        stages (`Mapping[str, Stage]`):
            The stages of a run by name.
        steps (`Mapping[str, int]`):
            Steps of each.
        dataset (`Dataset`):
            The rows.
        views (`int`):
            Views of each row.
        keeping (`Keeping`):
            How and where activations are kept.

    Returns:
        `tuple[list[str], list[str]]`: Names of those that the budget and the disk hold, and for each of the others a
        reason.
    """
    lengths, rows = row_lengths(dataset), len(dataset) * views
    needs = {
        name: forecast(stage.shelf.parts, stage.tokens, keeping.storage, rows, lengths)
        for name, stage in stages.items()
    }
    held = sum(stage.nbytes for stage in stages.values())
    room = room_in(keeping.directory, None if keeping.budget is None else max(0, keeping.budget - held))
    chosen, reasons = [], []
    for name in sorted(stages, key=lambda name: -steps[name] * stages[name].share / max(needs[name], 1)):
        more = max(0, needs[name] - stages[name].nbytes)
        if more <= room:
            room -= more
            chosen.append(name)
            continue
        reasons.append(
            f"what {rows:,} rows make below {name!r} takes {size_words(needs[name])}, but there is room for "
            f"{size_words(room)} in '{keeping.directory}'"
        )
    total = sum(needs[name] for name in chosen)
    if chosen:
        logger.info("The frozen layers' work on %s rows takes %s.", f"{rows:,}", size_words(total))
    return chosen, reasons


def room_in(directory: Path, budget: int | None) -> int:
    """
    Args:
        directory (`Path`):
            Where caches are kept; it need not exist yet.
        budget (`int`, *optional*):
            Bytes that one may take.

    Returns:
        `int`: Bytes that may be written there.
    """
    there = next(parent for parent in (directory, *directory.absolute().parents) if parent.exists())
    free = max(0, shutil.disk_usage(there).free - RESERVE)
    return free if budget is None else min(free, budget)
