"""Raw text as rows of tokens: line by line, or block after block."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, Features, List, Value

# One token alone predicts nothing, and a batch of such rows has no mean loss.
SHORTEST = 2


def tokenize_lines(
    rows: Dataset, processor: Any, max_length: int, *, end: int | None = None, marked: bool = False, title: str = ""
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
            Token to put behind each text that is whole; without it, the tokenizer's special tokens stay around a text
            that is cut.
        marked (`bool`, *optional*, defaults to `False`):
            Whether to tell special tokens apart, in the column `special_tokens_mask`.
        title (`str`, *optional*):
            Of the progress bar.

    Returns:
        `tuple[Dataset, int]`: The rows with their `length`, without those of a single token, and how many were cut.
    """
    cut = 0
    special = _special(processor) if marked else None

    def run(batch: Mapping[str, Sequence[str]]) -> pa.Table:
        nonlocal cut
        found = _tokenize(processor, batch["text"], end)
        long = [number for number, ids in enumerate(found) if len(ids) > max_length]
        cut += len(long)
        for number in long:
            if end is None:
                found[number] = processor(batch["text"][number], truncation=True, max_length=max_length)["input_ids"]
            else:
                found[number] = found[number][:max_length]
        found = [ids for ids in found if len(ids) >= SHORTEST]
        return _table(list(chain.from_iterable(found)), np.cumsum([0, *map(len, found)]), special)

    return _mapped(rows, run, marked, title), cut


def tokenize_blocks(
    rows: Dataset, processor: Any, max_length: int, *, end: int | None = None, marked: bool = False, title: str = ""
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
        marked (`bool`, *optional*, defaults to `False`):
            Whether to tell special tokens apart, in the column `special_tokens_mask`.
        title (`str`, *optional*):
            Of the progress bar.

    Returns:
        `Dataset`: The blocks with their `length`.
    """
    waiting: list[int] = []
    special = _special(processor) if marked else None

    def run(batch: Mapping[str, Sequence[str]], numbers: Sequence[int]) -> pa.Table:
        nonlocal waiting
        flat = [*waiting, *chain.from_iterable(_tokenize(processor, batch["text"], end))]
        whole = len(flat) - len(flat) % max_length
        waiting = flat[whole:]
        ends = list(range(0, whole + 1, max_length))
        if numbers[-1] == len(rows) - 1 and len(waiting) >= SHORTEST:
            ends.append(len(flat))
        return _table(flat[: ends[-1]], np.array(ends), special)

    return _mapped(rows, run, marked, title, with_indices=True)


def _special(processor: Any) -> list[int]:
    return sorted(set(processor.all_special_ids))


def _tokenize(processor: Any, texts: Sequence[str], end: int | None) -> list[list[int]]:
    found = processor(list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False)
    if end is not None:
        for ids in found["input_ids"]:
            if not ids or ids[-1] != end:
                ids.append(end)
    return found["input_ids"]


def _table(tokens: Sequence[int], ends: np.ndarray, special: Sequence[int] | None) -> pa.Table:
    """Rows from one long column of tokens, without a Python list for each."""
    columns = {"input_ids": np.asarray(tokens, dtype=np.int32)}
    if special is not None:
        columns["special_tokens_mask"] = np.isin(columns["input_ids"], special).astype(np.int8)
    offsets = pa.array(ends, pa.int32())
    lists = {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in columns.items()}
    return pa.table({**lists, "length": pa.array(np.diff(ends), pa.int32())})


def _mapped(rows: Dataset, run: Any, marked: bool, title: str, **options: Any) -> Dataset:
    columns = {"input_ids": "int32", **({"special_tokens_mask": "int8"} if marked else {})}
    return rows.map(
        run,
        batched=True,
        remove_columns=rows.column_names,
        features=Features({**{name: List(Value(kind)) for name, kind in columns.items()}, "length": Value("int32")}),
        load_from_cache_file=False,
        desc=title or None,
        **options,
    )
