"""The proof that stored entries may be put together anew: other companions, other padding, the same answers."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_transfer_plugin.layers.probe import untouched
from hf_transfer_plugin.prefix_cache.cuts import CannotCacheError, Cut, results
from hf_transfer_plugin.prefix_cache.entries import Part, entries_of, joined_entries, make_parts, split_rows
from hf_transfer_plugin.prefix_cache.passage import Address, Catcher
from hf_transfer_plugin.prefix_cache.rows import Span, row_spans
from hf_transfer_plugin.prefix_cache.shapes import OutputShapes
from hf_transfer_plugin.prefix_cache.storage import decode, encode

Collate = Callable[[list[Any]], Mapping[str, Any]]
# Of the outputs, relative to the largest, where weights have 32 bits; another padded length alone makes 2e-6.
AGREEMENT = 1e-5
HALF_AGREEMENT = 5e-2
# As many times as far may outputs lie as those of one row among its like and alone, where that is more.
OWN_VARIATION = 4
# Of the stored values, |stored - exact| / |exact| as Euclidean norms: a unit in the last place of each storage; for
# int8 steps of max / 127.
ROUNDING = {"float32": 0.0, "float16": 2.0**-10, "bfloat16": 2.0**-7, "int8": 2.0**-4}
# What a fill in another precision than training's may add to that; `prove_fill` says whence.
FILL_ROUNDING = {"same": 0.0, "bfloat16": 2.0**-5}


@dataclass(frozen=True)
class Place:
    """
    Where and how a model runs.

    Args:
        device (`torch.device`):
            Where it is.
        precision (`str`, *optional*, defaults to `"no"`):
            Its mixed precision, as Accelerate names it.
        fill (`str`, *optional*, defaults to `"same"`):
            Precision in which rows are stored before training: `"same"` as training's, or `"bfloat16"`.
    """

    device: torch.device
    precision: str = "no"
    fill: str = "same"

    def filling(self) -> AbstractContextManager[Any]:
        """
        Returns:
            `ContextManager`: In which the model runs as for the fill.
        """
        if self.fill == "same":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def is_half(self, model: nn.Module) -> bool:
        """
        Args:
            model (`nn.Module`):
                The model.

        Returns:
            `bool`: Whether any of it is computed in 16 bits.
        """
        halves = (torch.float16, torch.bfloat16)
        return self.precision != "no" or any(p.dtype in halves for p in model.parameters())


@dataclass(frozen=True)
class Proof:
    """
    What the proof found.

    Args:
        parts (`tuple[Part, ...]`):
            The parts of an entry.
        tokens (`tuple[float, ...]`):
            Mean length of the rows in each part; 0 where all are alike.
        error (`float`):
            Relative error of the storage.
        shapes (`Mapping[str, OutputShapes]`):
            What was learned of the outputs of skipped modules.
        widths (`Mapping[str, int]`):
            How wide every batch was, where all rows were padded alike: nothing is proved of another padding.
    """

    parts: tuple[Part, ...]
    tokens: tuple[float, ...]
    error: float
    shapes: Mapping[str, OutputShapes]
    widths: Mapping[str, int]


def prove_storage(
    model: nn.Module, cut: Cut, rows: Sequence[Any], collate: Collate, place: Place, storage: str
) -> Proof:
    """
    Catches rows one by one, and replays them together in one padded batch: its outputs must be those of the live model
    within 1e-5 of the largest (5e-2 where weights have 16 bits; four times what the number of rows alone changes,
    where that is more), and what the storage rounds within its bound.

    Args:
        model (`nn.Module`):
            The model; left as it was.
        cut (`Cut`):
            The cut.
        rows (`Sequence`):
            Rows of different length.
        collate (`Callable`):
            Makes a batch of rows.
        place (`Place`):
            Where and in which precision the model runs.
        storage (`str`):
            How floats are kept.

    Returns:
        `Proof`: The parts of an entry and what the storage costs in exactness.

    Raises:
        CannotCacheError: If the outputs are others, or the storage cannot hold the values.
    """
    device = place.device
    batches = [on_device(collate([row]), device) for row in rows]
    whole = on_device(collate(list(rows)), device)
    catcher = Catcher(model, cut.addresses)
    try:
        with untouched(model):
            alone = [dict(catcher.run(batch, model)) for batch in batches]
            together = dict(catcher.run(whole, model))
    finally:
        catcher.remove()
    parts = make_parts(cut, [*alone, together], [*batches, whole])
    spans = row_spans(whole)
    values: dict[Address, torch.Tensor] = {}
    error, counts = 0.0, []
    for part in parts:
        entries = entries_of(part, alone, batches)
        error = max(error, rounding(part, entries, entries, storage))
        joined, lengths = joined_entries(part, entries, spans)
        counts.append(sum(lengths) / len(lengths) if part.axis else 0.0)
        values |= {a: v.to(device) for a, v in joined.items()}
    if error > ROUNDING[storage]:
        raise CannotCacheError(f"{storage} rounds the activations by {error:.1e}, more than {ROUNDING[storage]:.1e}")
    with untouched(model), cut.passage(model).installed() as passage:
        # Of a padded and an unpadded call, modules below may be given other arguments: both are seen twice.
        for some in (batches[0], batches[-1], on_device(collate(list(rows[:-1] or rows)), device)):
            passage.watch(some)
        _, live = passage.watch(whole)
        try:
            replayed = passage.run(whole, values)
        except RuntimeError:  # A model writes into what a skipped module returned.
            for shapes in passage.shapes.values():
                shapes.solid = True
            replayed = passage.run(whole, values)
    far = distance(results(live), results(replayed), spans)
    allowed = HALF_AGREEMENT if place.is_half(model) else AGREEMENT
    if allowed < far <= OWN_VARIATION * allowed:
        # Deep convolutions round differently for every number of rows; a row among its like is not padded.
        allowed = max(allowed, OWN_VARIATION * _own_variation(model, rows[-1], len(rows), collate, device))
    if not far <= allowed:
        raise CannotCacheError(
            f"rows that were stored alone give other outputs in a padded batch (by {far:.1e} of the largest): the "
            "activations depend on how a row is padded or on its companions"
        )
    return Proof(parts, tuple(counts), error, passage.shapes, _only_widths(batches, spans))


def _only_widths(batches: Sequence[Mapping[str, Any]], together: Mapping[str, Span]) -> dict[str, int]:
    alone = [row_spans(batch) for batch in batches]
    return {
        axis: span.width
        for axis, span in together.items()
        if all((one[axis].starts[0], one[axis].width) == (span.starts[i], span.width) for i, one in enumerate(alone))
    }


def rounding(
    part: Part,
    entries: Sequence[Sequence[torch.Tensor]],
    exact_entries: Sequence[Sequence[torch.Tensor]],
    storage: str,
) -> float:
    """
    Args:
        part (`Part`):
            A part of the entries.
        entries (`Sequence[Sequence[torch.Tensor]]`):
            What is stored of each row.
        exact_entries (`Sequence[Sequence[torch.Tensor]]`):
            What training computes of it.
        storage (`str`):
            How floats are kept.

    Returns:
        `float`: `|stored - exact| / |exact|` as Euclidean norms over all rows, the worst of all tensors.

    Raises:
        CannotCacheError: If the storage cannot hold the values.
    """
    worst = 0.0
    for i, slot in enumerate(part.slots):
        if not slot.dtype.is_floating_point:
            continue
        exact = [entry[i].float().flatten() for entry in exact_entries]
        try:
            coded = [decode([encode(entry, part.slots, storage)], part.slots, storage)[0][i] for entry in entries]
        except ValueError as error:
            raise CannotCacheError(str(error)) from error
        kept = torch.cat([c.float().flatten() for c in coded])
        true = torch.cat(exact)
        worst = max(worst, float((kept - true).norm() / true.norm().clamp(min=1e-30)))
    return worst


def worst_distance(
    parts: Sequence[Part],
    exact: Mapping[Address, torch.Tensor],
    other: Mapping[Address, torch.Tensor],
    spans: Mapping[str, Span],
) -> float:
    """
    Args:
        parts (`Sequence[Part]`):
            The parts of an entry.
        exact (`Mapping[Address, torch.Tensor]`):
            What passes.
        other (`Mapping[Address, torch.Tensor]`):
            What was stored of it.
        spans (`Mapping[str, Span]`):
            Where the rows lie.

    Returns:
        `float`: `|other - exact| / |exact|` as Euclidean norms over all rows without padding, the worst of all.
    """
    worst = 0.0
    for part in parts:
        if part.axis == "own":  # Nothing tells where these rows end.
            continue
        rows, others = split_rows(part, exact, spans), split_rows(part, other, spans)
        for i in range(len(part.slots)):
            true = torch.cat([row[i].float().flatten() for row in rows])
            gap = torch.cat([row[i].float().flatten() for row in others]) - true
            worst = max(worst, float(gap.norm() / true.norm().clamp(min=1e-30)))
    return worst


def recheck_tolerance(model: nn.Module, place: Place, storage: str) -> float:
    """
    Args:
        model (`nn.Module`):
            The model.
        place (`Place`):
            Where and in which precision it runs.
        storage (`str`):
            How floats are kept.

    Returns:
        `float`: How far stored activations may lie from those computed in another batch.
    """
    elsewhere = HALF_AGREEMENT if place.is_half(model) else 10 * AGREEMENT
    return ROUNDING[storage] + FILL_ROUNDING[place.fill] + elsewhere


def _own_variation(model: nn.Module, row: Any, count: int, collate: Collate, device: torch.device) -> float:
    """How far the outputs of a row depend on the number of rows beside it alone."""
    with untouched(model):
        alone = results(model(**on_device(collate([row]), device)))
        among = results(model(**on_device(collate([row] * count), device)))
    return distance([a.expand_as(b) for a, b in zip(alone, among, strict=True)], among, {})


def distance(live: Sequence[torch.Tensor], other: Sequence[torch.Tensor], spans: Mapping[str, Span]) -> float:
    """
    Args:
        live (`Sequence[torch.Tensor]`):
            Outputs of the live model.
        other (`Sequence[torch.Tensor]`):
            Those to be judged.
        spans (`Mapping[str, Span]`):
            Where the rows lie.

    Returns:
        `float`: Largest difference, relative to the largest value, where rows are not padded.
    """
    worst = 0.0
    for one, two in zip(live, other, strict=True):
        if one.shape != two.shape:
            return float("inf")
        kept = _kept(one, spans)
        a, b = (one.float()[kept], two.float()[kept]) if kept is not None else (one.float(), two.float())
        scale = a[a.isfinite()].abs().max() if a.isfinite().any() else torch.ones(())
        gap = (a - b).nan_to_num(posinf=0.0, neginf=0.0).abs().max() if a.numel() else torch.zeros(())
        if not torch.equal(a.isfinite(), b.isfinite()):
            return float("inf")
        worst = max(worst, float(gap / scale.clamp(min=1e-6)))
    return worst


def _kept(tensor: torch.Tensor, spans: Mapping[str, Span]) -> torch.Tensor | None:
    """Places that hold a token; of texts and answers of one width those that hold both, as it may be either's."""
    kept = None
    for span in spans.values():
        if tensor.ndim > 1 and tensor.shape[:2] == (len(span.starts), span.width):
            places = torch.arange(span.width)[None]
            starts, lengths = torch.tensor(span.starts)[:, None], torch.tensor(span.lengths)[:, None]
            inside = ((places >= starts) & (places < starts + lengths)).to(tensor.device)
            kept = inside if kept is None else kept & inside
    return kept


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """
    Args:
        batch (`Mapping[str, Any]`):
            A batch.
        device (`torch.device`):
            Where the model is.

    Returns:
        `dict[str, Any]`: The batch there.
    """
    return {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
