"""Batches of rows of tokens, padded on the right whatever side the tokenizer pads for generating."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

IGNORED = -100


@dataclass(frozen=True)
class RightPadding:
    """
    Makes a batch of rows with `input_ids` and, where they have them, `labels`.

    The attention mask comes from the lengths: a padding token that also ends texts is read where it ends one.

    Args:
        pad_token_id (`int`):
            Token to pad with.
        learn_all (`bool`, *optional*, defaults to `False`):
            Whether a row without labels learns each of its tokens.
    """

    pad_token_id: int
    learn_all: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows (`Sequence[Mapping]`):
                Encoded rows.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids`, `attention_mask`, and `labels` with -100 in place of padding.
        """
        ids = [row["input_ids"] for row in rows]
        lengths = torch.tensor([len(row) for row in ids])
        batch = {
            "input_ids": padded(ids, self.pad_token_id),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
        }
        if "labels" in rows[0]:
            batch["labels"] = padded([row["labels"] for row in rows], IGNORED)
        elif self.learn_all:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        return batch


def padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """
    Args:
        rows (`Sequence[Sequence[int]]`):
            Rows of different lengths.
        fill (`int`):
            What to put behind the shorter ones.

    Returns:
        `torch.Tensor` of shape `(rows, longest)`: The rows.
    """
    found = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for number, row in enumerate(rows):
        found[number, : len(row)] = row
    return torch.from_numpy(found)
