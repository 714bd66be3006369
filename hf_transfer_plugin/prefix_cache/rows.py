"""Which row is which: rows are known by what the model is given of them, so nothing stale can be mistaken for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
import xxhash

# Neither tells what the frozen layers see. Labels do where a decoder is given them.
_UNSEEN = {"labels", "label", "label_ids", "return_loss", "num_items_in_batch"}


@dataclass(frozen=True)
class Span:
    """
    Where the rows of a padded batch lie.

    Args:
        starts (`tuple[int, ...]`):
            First position of each row.
        lengths (`tuple[int, ...]`):
            Positions of each row.
        width (`int`):
            Positions of the batch.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    width: int


def row_spans(batch: Mapping[str, Any]) -> dict[str, Span]:
    """
    Args:
        batch (`Mapping[str, Any]`):
            What a collator made.

    Returns:
        `dict[str, Span]`: For `"tokens"` by the attention mask; for `"targets"` of an encoder-decoder by its mask or
        by the labels that are not -100, also where labels stand beside each token. Without either, none. Targets come
        first where they are as wide as the tokens, but cannot be labels of these.
    """
    found = {}
    mask = batch.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        found["tokens"] = _span(mask.cpu().numpy() != 0)
    targets, labels = batch.get("decoder_attention_mask"), batch.get("labels")
    if isinstance(targets, torch.Tensor) and targets.ndim == 2:
        found["targets"] = _span(targets.cpu().numpy() != 0)
    elif _one_a_token(labels):
        starts, ends = _ends(labels.cpu().numpy() != -100)
        # Left out at the start of a text, or a word's later pieces: not the end of the row.
        found["targets"] = Span((0,) * len(starts), tuple(ends.tolist()), labels.shape[1])
        tokens = found.get("tokens")
        if tokens is not None and tokens.width == labels.shape[1] and not _within(starts, ends, tokens):
            found = {"targets": found["targets"], "tokens": tokens}
    return found


def _within(starts: np.ndarray, ends: np.ndarray, tokens: Span) -> bool:
    """Whether all that is kept stands beside tokens."""
    first = np.asarray(tokens.starts)
    return bool(((starts == ends) | ((starts >= first) & (ends <= first + tokens.lengths))).all())


def span_along(axis: str | None, spans: Mapping[str, Span]) -> Span | None:
    """
    Args:
        axis (`str`, *optional*):
            `"tokens"`, `"targets"`, or `"both"` for what either holds where they are equally wide.
        spans (`Mapping[str, Span]`):
            Where the rows of a batch lie.

    Returns:
        `Span` or `None`: Where they lie along that axis, if that is known.
    """
    if axis != "both":
        return spans.get(axis or "")
    one, other = spans.get("tokens"), spans.get("targets")
    if one is None or other is None or one.width != other.width:
        return None
    pairs = zip(one.starts, one.lengths, other.starts, other.lengths, strict=True)
    # An empty row begins nowhere.
    held = [[(a, a + n) for a, n in ((a, n), (b, m)) if n] or [(a, a)] for a, n, b, m in pairs]
    starts = tuple(min(a for a, _ in spans) for spans in held)
    ends = (max(b for _, b in spans) for spans in held)
    return Span(starts, tuple(end - start for start, end in zip(starts, ends, strict=True)), one.width)


def _one_a_token(labels: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(labels, torch.Tensor) and labels.ndim == 2 and not labels.is_floating_point()


def _span(kept: np.ndarray) -> Span:
    starts, ends = _ends(kept)
    # A row of which nothing is kept attends to all alike, padding too.
    ends = np.where(kept.any(1), ends, kept.shape[1])
    return Span(tuple(starts.tolist()), tuple((ends - starts).tolist()), kept.shape[1])


def _ends(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the first position that is kept, and the one behind the last; 0 and 0 where none is."""
    return kept.argmax(1), np.where(kept.any(1), kept.shape[1] - kept[:, ::-1].argmax(1), 0)


def row_digests(
    batch: Mapping[str, Any], *, with_labels: bool = False, spans: Mapping[str, Span] | None = None
) -> list[bytes]:
    """
    A digest of each row's own inputs, the same however the row is padded and whatever stands beside it.

    Args:
        batch (`Mapping[str, Any]`):
            What a collator made.
        with_labels (`bool`, *optional*, defaults to `False`):
            Whether the labels are inputs too, as an encoder-decoder shifts them into its decoder.
        spans (`Mapping[str, Span]`, *optional*):
            Where the rows lie, if that is known.

    Returns:
        `list[bytes]`: 16 bytes (xxh3_128) a row.

    Raises:
        ValueError: If the batch holds no tensor with an entry for each row, or what cannot be told apart.
    """
    spans = row_spans(batch) if spans is None else spans
    tensors = {
        name: value.detach().cpu()
        for name, value in sorted(batch.items())
        if isinstance(value, torch.Tensor) and value.ndim and (with_labels or name not in _UNSEEN)
    }
    packed = _packed(tensors)
    sizes = {len(value) for name, value in tensors.items() if name not in packed}
    if len(sizes) != 1:
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        raise ValueError(f"every tensor of a batch must hold one entry a row, but got the shapes {shapes}")
    hashers = [xxhash.xxh3_128() for _ in range(sizes.pop())]
    for name, value in tensors.items():
        array = value.view(torch.int16).numpy() if value.dtype == torch.bfloat16 else value.numpy()
        if name == "labels" and _one_a_token(value):
            _add_labels(hashers, array, spans.get("tokens"))
            continue
        span = packed.get(name) or _fitting(name, array.shape, spans)
        head = f"{name}|{array.dtype}|".encode()
        for i, hasher in enumerate(hashers):
            at = slice(None) if span is None else slice(span.starts[i], span.starts[i] + span.lengths[i])
            row = array[at] if name in packed else array[i][at] if span is not None else array[i]
            hasher.update(head + str(row.shape).encode())
            hasher.update(np.ascontiguousarray(row).view(np.uint8).data if row.size else b"")
    for name, value in sorted(batch.items()):
        if name in tensors or (name in _UNSEEN and not with_labels) or value is None:
            continue
        each = isinstance(value, (list, tuple)) and len(value) == len(hashers)
        for i, hasher in enumerate(hashers):
            hasher.update(name.encode() + _written(name, value[i] if each else value))
    return [hasher.digest() for hasher in hashers]


def _add_labels(hashers: Sequence[Any], labels: np.ndarray, tokens: Span | None) -> None:
    """Without what is left out before and behind: texts and answers may be equally wide in some batches alone."""
    for i, (hasher, start, end) in enumerate(zip(hashers, *_ends(labels != -100), strict=True)):
        first = tokens.starts[i] if tokens is not None and tokens.width == labels.shape[1] else 0
        inside = first <= start and tokens is not None and end <= first + tokens.lengths[i]
        hasher.update(f"labels|{labels.dtype}|{start - first if inside else start}|{end - start}|".encode())
        hasher.update(labels[i, start:end].tobytes())


def _written(name: str, value: Any) -> bytes:
    """Values that are no tensor with an entry a row, such as words, or boxes of images."""
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous()
        return f"{array.dtype}|{tuple(array.shape)}".encode() + array.flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return f"{value.dtype}|{value.shape}".encode() + value.tobytes()
    if isinstance(value, Mapping):
        return b"".join(str(key).encode() + _written(name, one) for key, one in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return b"[" + b"|".join(_written(name, one) for one in value) + b"]"
    if isinstance(value, (str, int, float, np.generic, type(None))):
        return repr(value).encode()
    raise ValueError(f"`{name}` holds {type(value).__name__}, of which nothing tells whether it is the same")


def _packed(tensors: Mapping[str, torch.Tensor]) -> dict[str, Span]:
    """Pixels of one image a row, one image behind another, with a grid that tells how many patches each has."""
    found = {}
    for grid in (value for name, value in tensors.items() if name.endswith(("_grid_thw", "_grid_hw"))):
        counts = grid.prod(1) if grid.ndim == 2 else grid
        ends = counts.cumsum(0)
        for name, value in tensors.items():
            if len(value) == int(ends[-1]) != len(grid) == len(tensors.get("input_ids", grid)):
                found[name] = Span(tuple((ends - counts).tolist()), tuple(counts.tolist()), len(value))
    return found


def _fitting(name: str, shape: tuple[int, ...], spans: Mapping[str, Span]) -> Span | None:
    if len(shape) < 2:
        return None
    order: Sequence[str] = ("targets", "tokens") if name == "labels" or "decoder" in name else ("tokens", "targets")
    return next((spans[axis] for axis in order if axis in spans and spans[axis].width == shape[1]), None)
