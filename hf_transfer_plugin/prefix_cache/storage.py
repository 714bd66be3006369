"""How the activations of a row become bytes, and the bytes of several rows tensors; this room knows no files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

STORAGE = ("float16", "bfloat16", "float32", "int8")
LEVELS = 127
# NumPy has no bfloat16; its bits travel as integers.
KINDS = {"float16": np.float16, "bfloat16": np.int16, "float32": np.float32, "int8": np.int8}


@dataclass(frozen=True)
class Slot:
    """
    One of the tensors that are kept for a row.

    Args:
        shape (`tuple[int | None, ...]`):
            Shape for one row, without batch dimension. `None` stands for the row's own number of tokens, at most once.
        dtype (`torch.dtype`):
            The tensor's own type. Floats are kept as the storage says; integers and booleans as they are.

    Raises:
        ValueError: If the shape has two `None` or an empty dimension, or the type is complex.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.shape.count(None) > 1 or any(size is not None and size < 1 for size in self.shape):
            raise ValueError(
                "The `shape` of a slot must hold sizes of at least 1, and `None`, the row's tokens, at most once, but "
                f"got {self.shape}."
            )
        if self.dtype.is_complex:
            raise ValueError(
                f"The `dtype` of a slot must be a float, an integer or a boolean, but got {self.dtype}. Keep its real "
                "and imaginary part in slots of their own."
            )

    @property
    def axis(self) -> int | None:
        """`int` or `None`: The dimension of the tokens, where there is one."""
        return self.shape.index(None) if None in self.shape else None

    def sized(self, tokens: int) -> tuple[int, ...]:
        """
        Args:
            tokens (`int`):
                Tokens of the row.

        Returns:
            `tuple[int, ...]`: The shape of the row's tensor.
        """
        return tuple(tokens if size is None else size for size in self.shape)

    def to_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict`: The slot as JSON values.
        """
        return {"shape": list(self.shape), "dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Slot":
        """
        Args:
            values (`dict`):
                What [`Slot.to_dict`] gave.

        Returns:
            `Slot`: The slot.
        """
        return cls(tuple(values["shape"]), getattr(torch, values["dtype"]))


def check_storage(storage: str) -> None:
    """
    Args:
        storage (`str`):
            Name of a storage.

    Raises:
        ValueError: If there is none of this name.
    """
    if storage not in STORAGE:
        raise ValueError(f"`storage` must be one of {', '.join(STORAGE)}, but got {storage!r}.")


def bytes_per_row(slots: Sequence[Slot], storage: str, tokens: int) -> int:
    """
    Args:
        slots (`Sequence[Slot]`):
            The tensors of a row.
        storage (`str`):
            One of `STORAGE`.
        tokens (`int`):
            Tokens of the row.

    Returns:
        `int`: Bytes that [`encode`] makes of the row.

    Raises:
        ValueError: If there is no such storage.
    """
    fixed, each = sizes(tuple(slots), storage)
    return fixed + each * tokens


@lru_cache
def sizes(slots: tuple[Slot, ...], storage: str) -> tuple[int, int]:
    """
    Args:
        slots (`tuple[Slot, ...]`):
            The tensors of a row.
        storage (`str`):
            One of `STORAGE`.

    Returns:
        `tuple[int, int]`: Bytes that every row takes, and those that each of its tokens adds.

    Raises:
        ValueError: If there is no such storage.
    """
    check_storage(storage)
    empty, one = (sum(sum(_parts(slot, storage, tokens)) for slot in slots) for tokens in (0, 1))
    return empty, one - empty


def _parts(slot: Slot, storage: str, tokens: int) -> tuple[int, int]:
    """Bytes of the scales and of the values."""
    shape = slot.sized(tokens)
    scales = 4 * math.prod(shape[:-1]) if _is_scaled(slot, storage) else 0
    return scales, math.prod(shape) * _kind(slot, storage).itemsize


def _is_scaled(slot: Slot, storage: str) -> bool:
    return storage == "int8" and slot.dtype.is_floating_point


def _kind(slot: Slot, storage: str) -> np.dtype[Any]:
    return np.dtype(KINDS[storage]) if slot.dtype.is_floating_point else torch.empty(0, dtype=slot.dtype).numpy().dtype


def tokens_in(count: int, slots: Sequence[Slot], storage: str) -> int:
    """
    Args:
        count (`int`):
            Bytes of a row.
        slots (`Sequence[Slot]`):
            The tensors of the row.
        storage (`str`):
            One of `STORAGE`.

    Returns:
        `int`: Tokens of the row; 0 where no slot has tokens.

    Raises:
        ValueError: If no row has so many bytes.
    """
    fixed, each = sizes(tuple(slots), storage)
    tokens, rest = divmod(count - fixed, each) if each else (0, count - fixed)
    if rest or tokens < 0:
        wanted = f"{fixed} bytes" + (f" and {each} for each token" if each else "")
        raise ValueError(f"A row in {storage} must have {wanted}, but got {count} bytes.")
    return tokens


def encode(tensors: Sequence[torch.Tensor], slots: Sequence[Slot], storage: str) -> bytes:
    """
    Makes bytes of the tensors of one row.

    `int8` keeps each vector `x` of the last dimension as 8-bit integers `q` and one 32-bit scale `s`:
    `s = max|x| / 127`, `q = round(x / s)`, read back as `q * s`; no value is off by more than `s / 2`.

    Args:
        tensors (`Sequence[torch.Tensor]`):
            One for each slot, without padding.
        slots (`Sequence[Slot]`):
            What they are.
        storage (`str`):
            One of `STORAGE`.

    Returns:
        `bytes`: The tensors one after the other; with `int8` the scales of each before its values.

    Raises:
        ValueError: If a tensor is not what its slot says, or the storage cannot hold its values.
    """
    check_storage(storage)
    _check_tensors(tensors, slots)
    return b"".join(_encoded(tensor.detach(), slot, storage) for tensor, slot in zip(tensors, slots, strict=True))


def _check_tensors(tensors: Sequence[torch.Tensor], slots: Sequence[Slot]) -> None:
    if len(tensors) != len(slots):
        raise ValueError(f"A row must have {len(slots)} tensors, one for each slot, but got {len(tensors)}.")
    known: int | None = None
    for number, (tensor, slot) in enumerate(zip(tensors, slots, strict=True)):
        shape, dtype, axis = tuple(tensor.shape), tensor.dtype, slot.axis
        if axis is not None and len(shape) > axis:
            known = shape[axis] if known is None else known
        if shape != slot.sized(known or 0):
            tokens = f" with {known} tokens" if known is not None and axis is not None else ""
            raise ValueError(
                f"The tensor of slot {number} must have the shape {slot.shape}{tokens}, but got {shape}. Give the "
                "tensors of one row, without padding."
            )
        if dtype != slot.dtype and not (dtype.is_floating_point and slot.dtype.is_floating_point):
            raise ValueError(f"The tensor of slot {number} must be of type {slot.dtype}, but got {dtype}.")


def _encoded(tensor: torch.Tensor, slot: Slot, storage: str) -> bytes:
    if not slot.dtype.is_floating_point:
        return tensor.cpu().numpy().tobytes()
    if storage == "int8":
        return _scaled(tensor)
    kept = tensor.to("cpu", getattr(torch, storage))
    if not _fits(tensor, kept):
        raise _overflow(tensor, storage)
    return (kept.contiguous().view(torch.int16) if storage == "bfloat16" else kept).numpy().tobytes()


def _fits(tensor: torch.Tensor, kept: torch.Tensor) -> bool:
    """Whether the cast made no infinities; those of the model itself are kept like any value."""
    finite = kept.isfinite()
    return bool(finite.all()) or bool((finite == tensor.cpu().isfinite()).all())


def _scaled(tensor: torch.Tensor) -> bytes:
    values = tensor.to("cpu", torch.float32)
    if not values.isfinite().all():
        raise _overflow(tensor, "int8")
    if not values.numel():
        return bytes(4 * math.prod(values.shape[:-1]))
    scales = values.abs().amax(-1, keepdim=True) / LEVELS
    # A vector of zeros has no scale; its values stay 0.
    whole = (values / scales.masked_fill(scales == 0, 1)).round().clamp(-LEVELS, LEVELS).to(torch.int8)
    return scales.numpy().tobytes() + whole.numpy().tobytes()


def _overflow(tensor: torch.Tensor, storage: str) -> ValueError:
    wide = [name for name in ("bfloat16", "float32") if _fits(tensor, tensor.to("cpu", getattr(torch, name)))]
    largest = float(tensor.abs().max())
    advice = f'Use `storage="{wide[0]}"`.' if wide else "No storage holds it; switch the cache off."
    return ValueError(f"The activations of a row must fit into {storage}, but the largest is {largest:.4g}. {advice}")


def decode(buffers: Sequence[Any], slots: Sequence[Slot], storage: str) -> tuple[list[torch.Tensor], list[int]]:
    """
    Makes tensors of the bytes of several rows.

    Args:
        buffers (`Sequence`):
            The bytes of each row, as `bytes` or arrays of bytes; they are copied.
        slots (`Sequence[Slot]`):
            The tensors of a row.
        storage (`str`):
            The storage in which they were encoded.

    Returns:
        `tuple[list[torch.Tensor], list[int]]`: One tensor for each slot, and the tokens of each row (0 where no slot
        has tokens). A slot with tokens has its rows one after the other along the dimension of tokens, any other has
        them stacked. Floats are of the storage's type, with `int8` of type float32.

    Raises:
        ValueError: If no row has so many bytes, or there is no such storage.
    """
    check_storage(storage)
    slots = tuple(slots)
    lengths = [tokens_in(len(buffer), slots, storage) for buffer in buffers]
    starts, tensors = [0] * len(buffers), []
    for slot in slots:
        made = _decoded(buffers, starts, lengths, slot, storage)
        tensor = torch.from_numpy(made)
        is_bits = storage == "bfloat16" and slot.dtype.is_floating_point
        tensors.append(tensor.view(torch.bfloat16) if is_bits else tensor)
    return tensors, lengths


def _decoded(
    buffers: Sequence[Any], starts: list[int], lengths: Sequence[int], slot: Slot, storage: str
) -> np.ndarray[Any, Any]:
    """The rows of one slot; `starts` moves on behind what was read."""
    kind, axis, scaled = _kind(slot, storage), slot.axis, _is_scaled(slot, storage)
    shape = (len(buffers), *slot.sized(0)) if axis is None else slot.sized(sum(lengths))
    each, rows = math.prod(size or 1 for size in slot.shape), []
    for row, (buffer, tokens) in enumerate(zip(buffers, lengths, strict=True)):
        count = each if axis is None else each * tokens
        head = _parts(slot, storage, tokens)[0] if scaled else 0
        values = np.frombuffer(buffer, kind, count, starts[row] + head)
        if scaled or axis:
            values = values.reshape((1, *slot.sized(0)) if axis is None else slot.sized(tokens))
        if scaled:
            scales = np.frombuffer(buffer, np.float32, head // 4, starts[row])
            values = values * (scales.reshape(*values.shape[:-1], 1) if slot.shape else scales)
        starts[row] += head + count * kind.itemsize
        rows.append(values)
    return np.concatenate(rows, axis or 0).reshape(shape) if rows else np.empty(shape, np.float32 if scaled else kind)
