"""A stage of a run: one cut with the place where its entries are kept."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from hf_transfer_plugin.layers.probe import untouched
from hf_transfer_plugin.prefix_cache.collating import Shelf
from hf_transfer_plugin.prefix_cache.cuts import CannotCacheError, Cut
from hf_transfer_plugin.prefix_cache.describing import describe, weights_digest
from hf_transfer_plugin.prefix_cache.fill_precision import FillPrecision
from hf_transfer_plugin.prefix_cache.finding import find_cut
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
from hf_transfer_plugin.prefix_cache.store import ActivationStore, store_folder
from hf_transfer_plugin.prefix_cache.traces import used_above_only

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
            Relative error of what is stored.
        lazily (`bool`):
            Whether training itself shows what would be stored.
        shapes (`Mapping[str, OutputShapes]`):
            What was learned of the outputs of skipped modules.
        place (`Place`):
            Where the model runs, and in which precision its rows are stored.
    """

    cut: Cut
    shelf: Shelf
    share: float
    tokens: tuple[float, ...]
    error: float
    lazily: bool
    shapes: Mapping[str, OutputShapes]
    place: Place

    @property
    def padded(self) -> bool:
        """`bool`: Whether rows can be taken out of a padded batch."""
        return all(part.axis != "own" for part in self.shelf.parts)

    def beside(self, others: Iterable["Stage | None"]) -> "Stage":
        """
        Args:
            others (`Iterable[Stage | None]`):
                Stages that are in use.

        Returns:
            `Stage`: The same, on the shelf of one of these that has its rows in the same folders.
        """
        folders = [store.folder for store in self.shelf.stores]
        shelves = (other.shelf for other in others if other is not None)
        return next((replace(self, shelf=s) for s in shelves if [one.folder for one in s.stores] == folders), self)

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
            "fill_precision": self.place.fill,
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
        precision (`FillPrecision`, *optional*):
            In which precision rows are stored before training.
    """

    directory: Path
    storage: str
    budget: int | None
    precision: FillPrecision = field(default_factory=lambda: FillPrecision("same"))


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
    place, error = keeping.precision.settle(
        model, cut, proof, rows, collate, place=place, batch_size=batch_size, storage=keeping.storage
    )
    # What lies above does not matter: phases that differ there alone have one store.
    weights = weights_digest(model, learning | used_above_only(model, cut.fed, probes))
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
    return Stage(replace(cut, addresses=addresses), shelf, share, proof.tokens, error, lazily, proof.shapes, place)


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
