"""Raw text as rows of tokens: line by line, or block after block."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, Features, List, Value

COLUMNS = {"input_ids": "int32", "special_tokens_mask": "int8"}
# One token alone predicts nothing, and a batch of such rows has no mean loss.
SHORTEST = 2


def tokenize_lines(
    rows: Dataset, processor: Any, max_length: int, *, end: int | None = None, masks: bool = False, title: str = ""
) -> tuple[Dataset, int]:
    """
    One row of tokens for each text; those that are too long are cut.

    Args:
        rows (`Dataset`):
            Has the column `text`.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.
        max_length (`int`):
            Tokens of a row at most.
        end (`int`, *optional*):
            Token to put behind each text that is whole.
        masks (`bool`, *optional*, defaults to `False`):
            Whether to tell special tokens apart, in the column `special_tokens_mask`.
        title (`str`, *optional*):
            Of the progress bar.

    Returns:
        `tuple[Dataset, int]`: The rows, without those of a single token, and how many were cut.
    """
    cut = 0

    def run(batch: Mapping[str, Sequence[str]]) -> pa.Table:
        nonlocal cut
        limits = {"truncation": True, "max_length": max_length} if masks else {}
        found = _tokenize(processor, batch["text"], end, masks, **limits)
        cut += sum(bool(item.overflowing) for item in found.encodings or ()) if masks else 0
        cut += sum(len(ids) > max_length for ids in found["input_ids"])
        kept = [number for number, ids in enumerate(found["input_ids"]) if len(ids) >= SHORTEST]
        columns = {name: [found[name][n][:max_length] for n in kept] for name in _names(masks)}
        lengths = [len(ids) for ids in columns["input_ids"]]
        flat = {name: list(chain.from_iterable(values)) for name, values in columns.items()}
        return _table(flat, np.cumsum([0, *lengths]))

    return _mapped(rows, run, masks, title), cut


def tokenize_blocks(
    rows: Dataset, processor: Any, max_length: int, *, end: int | None = None, masks: bool = False, title: str = ""
) -> Dataset:
    """
    One text after another, cut into blocks; the last block is shorter, and no token is lost, but for one that would
    stand there alone.

    Args:
        rows (`Dataset`):
            Has the column `text`.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.
        max_length (`int`):
            Tokens of a block.
        end (`int`, *optional*):
            Token to put between texts.
        masks (`bool`, *optional*, defaults to `False`):
            Whether to tell special tokens apart, in the column `special_tokens_mask`.
        title (`str`, *optional*):
            Of the progress bar.

    Returns:
        `Dataset`: The blocks.
    """
    waiting: dict[str, list[int]] = {name: [] for name in _names(masks)}

    def run(batch: Mapping[str, Sequence[str]], numbers: Sequence[int]) -> pa.Table:
        found = _tokenize(processor, batch["text"], end, masks)
        flat = {name: [*waiting[name], *chain.from_iterable(found[name])] for name in waiting}
        total = len(flat["input_ids"])
        whole = total - total % max_length
        waiting.update({name: values[whole:] for name, values in flat.items()})
        ends = list(range(0, whole + 1, max_length))
        if numbers[-1] == len(rows) - 1 and total - whole >= SHORTEST:
            ends.append(total)
        return _table({name: values[: ends[-1]] for name, values in flat.items()}, np.array(ends))

    return _mapped(rows, run, masks, title, with_indices=True)


def _names(masks: bool) -> list[str]:
    return list(COLUMNS) if masks else ["input_ids"]


def _tokenize(processor: Any, texts: Sequence[str], end: int | None, masks: bool, **limits: Any) -> Any:
    found = processor(
        list(texts),
        return_attention_mask=False,
        return_token_type_ids=False,
        return_special_tokens_mask=masks,
        verbose=False,
        **limits,
    )
    if end is not None:
        for ids in found["input_ids"]:
            if not ids or ids[-1] != end:
                ids.append(end)
    return found


def _table(columns: Mapping[str, Sequence[int]], ends: np.ndarray) -> pa.Table:
    """Rows from one long column of tokens, without a Python list for each."""
    return pa.table({
        name: pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(values, COLUMNS[name]))
        for name, values in columns.items()
    })


def _mapped(rows: Dataset, run: Any, masks: bool, title: str, **options: Any) -> Dataset:
    return rows.map(
        run,
        batched=True,
        remove_columns=rows.column_names,
        features=Features({name: List(Value(COLUMNS[name])) for name in _names(masks)}),
        load_from_cache_file=False,
        desc=title or None,
        **options,
    )
