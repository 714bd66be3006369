"""Rows of different length for any model class, from its dummy inputs, and a collator that pads them."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from benchmarks.tiny_inputs import PLACES, SENSES, Inputs, setting

# Of these, the second size is time, where a mask can say how much of it counts.
_AUDIO = ("input_values", "input_features")
_DECODER = ("decoder_input_ids", "labels", "decoder_attention_mask")
_WORDS = range(50, 62)  # of tiny_inputs.text; every vocabulary holds them


def padding_of(model: nn.Module) -> int:
    """
    Args:
        model (`nn.Module`):
            The model.

    Returns:
        `int`: The token that it takes for padding.
    """
    padding = setting(model.config.get_text_config(), "pad_token_id")
    return padding if isinstance(padding, int) and padding >= 0 else 1


def lengthened(model: nn.Module, inputs: Inputs, *, by: int, seed: int) -> Inputs:
    """
    One row with other values: words, pixels and sounds are drawn anew, places of images stay where they are.

    Args:
        model (`nn.Module`):
            The model, whose config tells which tokens hold places.
        inputs (`Inputs`):
            Dummy inputs that it runs on.
        by (`int`):
            By how many words a text becomes longer; a sound by a twentieth as often, a decoder's text by half of it.
        seed (`int`):
            Seed of the values.

    Returns:
        `Inputs`: The row.
    """
    draw = torch.Generator().manual_seed(seed)
    places = {setting(model.config, *names) for names in PLACES.values()}
    words = torch.tensor([word for word in _WORDS if word not in places])
    width = inputs["input_ids"].shape[1] if "input_ids" in inputs else -1
    row = {}
    for name, value in inputs.items():
        value = value[:1] if set(inputs) == {"pixel_values"} else value
        if name in SENSES or (value.is_floating_point() and name != "attention_mask"):
            value = torch.rand(value.shape, generator=draw) * 2 - 1
        elif name == "input_ids":
            plain = torch.isin(value, words)
            value = torch.where(plain, words[torch.randint(len(words), value.shape, generator=draw)], value)
        elif name in _DECODER[:2]:
            value = torch.randint(5, 17, value.shape, generator=draw)
        row[name] = _repeated(value, 1, -2, _growth(name, value, width, inputs, by))
    return row


def _growth(name: str, value: torch.Tensor, width: int, inputs: Inputs, by: int) -> int:
    """By how many positions a tensor becomes longer."""
    if value.ndim < 2:
        return 0
    if name in _DECODER:
        return by // 2
    if width > 0:
        return by if value.shape[1] == width and not name.startswith(("pixel", *SENSES)) else 0
    audio = next((inputs[n] for n in _AUDIO if n in inputs), None)
    # Channels first, as Whisper takes them, are of one length.
    if audio is None or value.shape[1] != audio.shape[1] or not _timed(audio):
        return 0
    return by * (audio.shape[1] // 20)


def _timed(audio: torch.Tensor) -> bool:
    return audio.ndim == 2 or (audio.ndim == 3 and audio.shape[1] > audio.shape[2])


def _repeated(value: torch.Tensor, dim: int, place: int, times: int) -> torch.Tensor:
    if not times:
        return value
    order = list(range(value.shape[dim]))
    order[place:place] = [order[place]] * times
    return value.index_select(dim, torch.tensor(order))


def collate(rows: Sequence[Inputs], *, padding: int = 0, whole: Sequence[Inputs] | None = None) -> Inputs:
    """
    Args:
        rows (`Sequence[Inputs]`):
            Rows, each with a first dimension of its own.
        padding (`int`, *optional*, defaults to 0):
            The token behind a text.
        whole (`Sequence[Inputs]`, *optional*, defaults to `rows`):
            Rows of which the longest tells how long the batch is.

    Returns:
        `Inputs`: A batch, padded at the end.
    """
    batch = {}
    for name in rows[0]:
        longest = max(row[name].shape[1] if row[name].ndim > 1 else 0 for row in whole or rows)
        filling = {"labels": -100, "input_ids": padding, "decoder_input_ids": padding}.get(name, 0)
        batch[name] = torch.cat([_padded(row[name], longest, filling) for row in rows])
    return batch


def _padded(value: torch.Tensor, width: int, filling: int) -> torch.Tensor:
    if value.ndim < 2 or value.shape[1] == width:
        return value
    return torch.cat([value, value.new_full((len(value), width - value.shape[1], *value.shape[2:]), filling)], 1)


def richer(model: nn.Module, inputs: Inputs) -> Iterator[Inputs]:
    """
    Lists the dummy inputs with what real collators add, the richest first: labels in place of a decoder's tokens, the
    mask of sounds.

    Args:
        model (`nn.Module`):
            The model.
        inputs (`Inputs`):
            Dummy inputs that it runs on.

    Yields:
        `Inputs`: Keyword arguments for a forward pass.
    """
    audio = next((inputs[name] for name in _AUDIO if name in inputs), None)
    masked: Inputs = {}
    if audio is not None and "input_ids" not in inputs and _timed(audio):
        masked = {"attention_mask": torch.ones(audio.shape[:2], dtype=torch.long)}
    ids = inputs.get("decoder_input_ids")
    if ids is None:
        told: list[Inputs] = [inputs]
    else:
        taught = {**{k: v for k, v in inputs.items() if k != "decoder_input_ids"}, "labels": ids}
        told = [taught, {**inputs, "decoder_attention_mask": torch.ones_like(ids)}, inputs]
    for given in told:
        yield from [{**given, **masked}, given] if masked else [given]


def row_sets(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, list[list[Inputs]]]]:
    """
    Lists rows for two batches that differ in all that the model may stand, the most different first.

    Args:
        model (`nn.Module`):
            The model.
        inputs (`Inputs`):
            Dummy inputs that it runs on.

    Yields:
        `tuple`: What differs, and the rows of each batch.
    """

    def rows(*growths: int) -> list[Inputs]:
        return [lengthened(model, inputs, by=by, seed=7 * by + i) for i, by in enumerate(growths)]

    long = lengthened(model, inputs, by=6, seed=0)
    if any(long[name].shape != value[: len(long[name])].shape for name, value in inputs.items()):
        yield "size, length and padding", [rows(2, 0), rows(6, 4, 8)]
        yield "size and length", [rows(0, 0), rows(6, 6, 6)]
    yield "size", [rows(0, 0), rows(0, 0, 0)]
    yield "values", [rows(0), [lengthened(model, inputs, by=0, seed=1)]]
