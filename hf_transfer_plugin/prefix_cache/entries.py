"""From a batch to entries of its rows, without padding, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_transfer_plugin.prefix_cache.cuts import Cut
from hf_transfer_plugin.prefix_cache.passage import Address
from hf_transfer_plugin.prefix_cache.rows import Span, row_spans, span_along
from hf_transfer_plugin.prefix_cache.storage import Slot, decode, encode

Passing = Mapping[Address, torch.Tensor]


@dataclass(frozen=True)
class Part:
    """
    Tensors of a cut whose rows are equally long, which are stored together.

    Args:
        axis (`str` or `None`):
            What tells how long a row is: `"tokens"`, `"targets"`, `"both"`, or `"own"` where only the tensor itself
            does; `None` where all are alike.
        addresses (`tuple[Address, ...]`):
            Where they pass.
        slots (`tuple[Slot, ...]`):
            What one row holds of each.
    """

    axis: str | None
    addresses: tuple[Address, ...]
    slots: tuple[Slot, ...]


def make_parts(cut: Cut, passed: Sequence[Passing], batches: Sequence[Mapping[str, Any]]) -> tuple[Part, ...]:
    """
    Tells which size of which tensor is the length of a row.

    Args:
        cut (`Cut`):
            The cut.
        passed (`Sequence[Mapping[Address, torch.Tensor]]`):
            What passed it for each batch.
        batches (`Sequence[Mapping[str, Any]]`):
            The batches, if possible of different length.

    Returns:
        `tuple[Part, ...]`: The parts.
    """
    found: dict[Any, list[tuple[Address, Slot]]] = {}
    spans = [row_spans(batch) for batch in batches]
    encodes = any("encoder" in name for name in (cut.fed, *cut.skipped))
    for address in cut.addresses:
        shapes = [tuple(values[address].shape) for values in passed]
        # Where answers are always as wide as texts, the width does not tell which of them an input of a decoder holds.
        axes = ("both", "tokens", "targets") if "decoder" in address.module and encodes else ("tokens", "targets")
        axis, dim = _axis(shapes, spans, axes)
        shape: list[int | None] = list(shapes[0][1:])
        if dim is not None:
            shape[dim - 1] = None
        # Frames of a sound and words that stand behind them have lengths of their own.
        lengths = tuple(s[dim] for s in shapes) if axis == "own" and dim is not None else ()
        found.setdefault((axis, lengths), []).append((address, Slot(tuple(shape), passed[0][address].dtype)))
    return tuple(Part(axis, *map(tuple, zip(*pairs, strict=True))) for (axis, _), pairs in found.items())


def _axis(
    shapes: list[tuple[int, ...]], spans: list[dict[str, Span]], axes: tuple[str, ...]
) -> tuple[str | None, int | None]:
    dims = range(1, len(shapes[0]))
    varying = [dim for dim in dims if len({shape[dim] for shape in shapes}) > 1]
    # A vector a row may be as wide as a text is long; what has a length has more sizes than that.
    for dim in varying or (dims if len(shapes[0]) > 2 else ()):
        for axis in axes:
            along = [span_along(axis, s) for s in spans]
            if all(s is not None and s.width == shape[dim] for s, shape in zip(along, shapes, strict=True)):
                return axis, dim
    return ("own", varying[0]) if varying else (None, None)


def split_rows(part: Part, values: Passing, spans: Mapping[str, Span]) -> list[list[torch.Tensor]]:
    """
    Args:
        part (`Part`):
            The part.
        values (`Mapping[Address, torch.Tensor]`):
            What passed the cut for a batch; of an `"own"` axis no row may be padded.
        spans (`Mapping[str, Span]`):
            Where the rows lie.

    Returns:
        `list[list[torch.Tensor]]`: For each row its tensors, unpadded.
    """
    rows = len(values[part.addresses[0]])
    span = span_along(part.axis, spans)
    found: list[list[torch.Tensor]] = []
    for i in range(rows):
        entry = []
        for address, slot in zip(part.addresses, part.slots, strict=True):
            tensor = values[address][i]
            if span is not None:
                tensor = tensor.narrow(slot.shape.index(None), span.starts[i], span.lengths[i])
            entry.append(tensor)
        found.append(entry)
    return found


def join_rows(
    part: Part, tensors: Sequence[torch.Tensor], lengths: Sequence[int], spans: Mapping[str, Span]
) -> dict[Address, torch.Tensor]:
    """
    Args:
        part (`Part`):
            The part.
        tensors (`Sequence[torch.Tensor]`):
            Of each slot the rows one behind another; stacked where they are alike.
        lengths (`Sequence[int]`):
            How long each row is.
        spans (`Mapping[str, Span]`):
            Where the rows shall lie.

    Returns:
        `dict[Address, torch.Tensor]`: Padded with zeros; as long as the longest row where no span says otherwise.

    Raises:
        ValueError: If rows are not as long as the batch says.
    """
    span = span_along(part.axis, spans)
    if span is not None and tuple(lengths) != span.lengths:
        raise ValueError(f"the rows of the batch are {span.lengths} long, but those stored {tuple(lengths)}")
    found = {}
    for address, slot, tensor in zip(part.addresses, part.slots, tensors, strict=True):
        if None not in slot.shape:
            found[address] = tensor
            continue
        dim = slot.shape.index(None)
        width = span.width if span is not None else max(lengths)
        starts = span.starts if span is not None else (0,) * len(lengths)
        padded = tensor.new_zeros((len(lengths), *slot.sized(width)))
        for row, piece, start in zip(padded, tensor.split(list(lengths), dim), starts, strict=True):
            row.narrow(dim, start, piece.shape[dim]).copy_(piece)
        found[address] = padded
    return found


def cast(part: Part, values: Mapping[Address, torch.Tensor]) -> dict[Address, torch.Tensor]:
    """
    Args:
        part (`Part`):
            The part.
        values (`Mapping[Address, torch.Tensor]`):
            Tensors as they are stored.

    Returns:
        `dict[Address, torch.Tensor]`: In the type in which they passed.
    """
    return {a: values[a].to(slot.dtype) for a, slot in zip(part.addresses, part.slots, strict=True)}


def entries_of(
    part: Part, alone: Sequence[Mapping[Address, torch.Tensor]], batches: Sequence[Mapping[str, Any]]
) -> list[list[torch.Tensor]]:
    """
    Args:
        part (`Part`):
            A part of the entries.
        alone (`Sequence[Mapping[Address, torch.Tensor]]`):
            What passed for batches of one row.
        batches (`Sequence[Mapping[str, Any]]`):
            The batches.

    Returns:
        `list[list[torch.Tensor]]`: An entry for each row.
    """
    rows = [split_rows(part, v, row_spans(b))[0] for v, b in zip(alone, batches, strict=True)]
    return [[tensor.cpu() for tensor in row] for row in rows]


def joined_entries(
    part: Part, entries: Sequence[Sequence[torch.Tensor]], spans: Mapping[str, Span]
) -> tuple[dict[Address, torch.Tensor], list[int]]:
    """
    Args:
        part (`Part`):
            A part of the entries.
        entries (`Sequence[Sequence[torch.Tensor]]`):
            An entry for each row.
        spans (`Mapping[str, Span]`):
            Where the rows shall lie in one batch.

    Returns:
        `tuple[dict[Address, torch.Tensor], list[int]]`: What passes for that batch, and the length of each row.
    """
    tensors, lengths = decode([encode(entry, part.slots, "float32") for entry in entries], part.slots, "float32")
    return cast(part, join_rows(part, tensors, lengths, spans)), lengths
