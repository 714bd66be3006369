"""Words and the tokens that a tokenizer makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict

from hf_transfer_plugin.tasks.base import Outcome, TaskData

IGNORED = -100


def require_fast(processor: Any, task: str, what: str) -> None:
    """
    Args:
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.
        task (`str`):
            Who asks.
        what (`str`):
            What only a fast tokenizer tells.

    Raises:
        ValueError: If the tokenizer is slow.
    """
    if not getattr(processor, "is_fast", False):
        raise ValueError(
            f"{task} needs a fast tokenizer (of the tokenizers library), which tells {what}, but got "
            f"{type(processor).__name__}. Choose a `model` whose folder has a tokenizer.json."
        )


def encode(data: TaskData, processor: Any, max_length: int, model_config: Any) -> tuple[DatasetDict, int]:
    """
    Tokenizes words. The tag of a word stands at its first token and -100 at the others; `word_ids` holds the word's
    number at its first token and -1 elsewhere. Longer rows are truncated and counted; the words cut off, and words of
    which the tokenizer makes no token, are neither learnt nor measured.

    Args:
        data (`TaskData`):
            The rows.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer, a fast one.
        max_length (`int`):
            Tokens of a row at most.
        model_config (`PretrainedConfig`):
            The model's config; not needed here.

    Returns:
        `tuple[DatasetDict, int]`: Encoded splits, and the number of truncated rows.

    Raises:
        ValueError: If the tokenizer is not fast.
    """
    require_fast(processor, "token-classification", "which word a token belongs to")
    spaced, truncated = _joins_words(processor), 0

    def run(batch: dict[str, list[Any]]) -> dict[str, Any]:
        nonlocal truncated
        rows = batch["text"]
        words = [[row[0], *(f" {word}" for word in row[1:])] for row in rows] if spaced else rows
        encoded = processor(words, is_split_into_words=True, truncation=True, max_length=max_length)
        truncated += sum(bool(item.overflowing) for item in encoded.encodings)
        ends = np.cumsum([len(ids) for ids in encoded["input_ids"]])[:-1]
        first = _first_tokens([item.word_ids for item in encoded.encodings], [len(row) for row in rows])
        aligned = {"word_ids": np.split(first[0], ends)}
        if "label" in batch:
            tags = np.fromiter(chain.from_iterable(batch["label"]), dtype=np.int64)
            aligned["labels"] = np.split(np.where(first[1] >= 0, tags[first[1]], IGNORED), ends)
        return {**encoded, **aligned}

    splits = DatasetDict()
    for split, rows in data.splits.items():
        splits[split] = rows.map(
            run, batched=True, remove_columns=rows.column_names, load_from_cache_file=False, desc=f"Tokenizing {split}"
        )
    return splits, truncated


def _first_tokens(word_ids: Sequence[Sequence[int | None]], counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of many rows in one: at first tokens the word's number in its row, and in all rows; -1 elsewhere."""
    local = np.array(list(chain.from_iterable(word_ids)), dtype=float)
    lengths = [len(ids) for ids in word_ids]
    offsets = np.repeat(np.cumsum([0, *counts[:-1]]), lengths)
    inside = ~np.isnan(local)
    local = np.where(inside, local, -1).astype(np.int64)
    overall = np.where(inside, local + offsets, -1)
    first = inside & (overall != np.concatenate([[-1], overall[:-1]]))
    return np.where(first, local, -1), np.where(first, overall, -1)


def _joins_words(processor: Any) -> bool:
    """Whether words given one by one lose the space before them, which is a part of them to byte-level tokenizers."""

    def tokens(given: Any, **changes: Any) -> list[int]:
        return processor(given, add_special_tokens=False, **changes)["input_ids"]

    plain = tokens("the cat")
    return (
        tokens(["the", "cat"], is_split_into_words=True) != plain == tokens(["the", " cat"], is_split_into_words=True)
    )


def reduce(logits: Any, labels: Any) -> torch.Tensor:
    """
    Keeps the likeliest tag of each token and its probability, two numbers instead of one for each tag.

    Args:
        logits (`torch.Tensor` of shape `(rows, tokens, tags)`):
            The model's outputs, or a tuple that they are first in.
        labels (`torch.Tensor`):
            Not needed here.

    Returns:
        `torch.Tensor` of shape `(rows, tokens, 2)`: Number of the tag, and its probability.
    """
    found = logits[0] if isinstance(logits, (tuple, list)) else logits
    probability, tag = found.float().softmax(-1).max(-1)
    return torch.stack([tag.float(), probability], -1)


@dataclass(frozen=True)
class Tagged:
    """
    The words that the model read, of all rows in one.

    Args:
        row (`np.ndarray` of shape `(words,)`):
            Number of the row.
        word (`np.ndarray` of shape `(words,)`):
            Number of the word in its row.
        answer (`np.ndarray` of shape `(words,)`):
            Number of the tag given.
        score (`np.ndarray` of shape `(words,)`):
            Its probability.
    """

    row: np.ndarray
    word: np.ndarray
    answer: np.ndarray
    score: np.ndarray

    def by_row(self, values: np.ndarray, rows: int) -> list[list[int]]:
        """
        Args:
            values (`np.ndarray` of shape `(words,)`):
                A number for each word.
            rows (`int`):
                How many rows there are.

        Returns:
            `list[list[int]]`: The numbers of each row.
        """
        ends = np.cumsum(np.bincount(self.row, minlength=rows))
        return [values[start:end].tolist() for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def tagged_words(outcome: Outcome) -> Tagged:
    """
    Args:
        outcome (`Outcome`):
            What [`reduce`] kept.

    Returns:
        `Tagged`: The words that the model read.
    """
    found = outcome.predictions[0] if isinstance(outcome.predictions, tuple) else outcome.predictions
    ids = outcome.features["word_ids"]
    lengths = np.array([len(row) for row in ids])
    word = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=int(lengths.sum()))
    row = np.repeat(np.arange(len(lengths)), lengths)
    token = np.arange(len(word)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    read = word >= 0
    given = np.asarray(found)[row[read], token[read]].astype(float)
    return Tagged(row[read], word[read], given[:, 0].astype(np.int64), np.clip(given[:, 1], 0, 1))
