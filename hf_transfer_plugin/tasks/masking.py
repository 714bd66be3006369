"""Words hidden from a model that learns to guess them: others in each epoch, the same ones at every evaluation."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from transformers import DataCollatorForLanguageModeling

from hf_transfer_plugin.tasks.padding import IGNORED, RightPadding


class Masking:
    """
    Makes a batch in which a share of the tokens is hidden, as in BERT (https://huggingface.co/papers/1810.04805): of
    those, 80% become the mask, 10% another token and 10% stay. At least one token of a row is hidden. Rows that have
    labels are taken as they are.

    The draw is seeded with the batch itself and the epoch. Batches are shuffled anew in each epoch, so other tokens
    are hidden each time, and a resumed run hides what it would have hidden: by the random state it would not, since
    batches are made ahead of the step that reads them. The epoch lies in shared memory, so that workers of a data
    loader that outlive an epoch see the next one.

    Args:
        processor (`PreTrainedTokenizerBase`):
            A tokenizer with a mask token.
        probability (`float`):
            Share of the tokens that are hidden.

    Attributes:
        shared_epoch (`torch.Tensor`):
            Number of the epoch, a part of the seed; [`Masking.set_epoch`] sets it.
    """

    def __init__(self, processor: Any, probability: float) -> None:
        self.draw = DataCollatorForLanguageModeling(processor, mlm_probability=probability)
        self.pad = RightPadding(processor.pad_token_id)
        self.special = torch.tensor(sorted(set(processor.all_special_ids)))
        self.mask, self.shared_epoch = processor.mask_token_id, torch.tensor(0).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy has its epoch in shared memory too; that of a worker is the parent's."""
        self.__dict__.update(state)
        self.shared_epoch.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """
        Args:
            epoch (`int`):
                Number of the epoch that begins.
        """
        self.shared_epoch.fill_(epoch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows (`Sequence[Mapping]`):
                Encoded rows.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids`, `attention_mask` and `labels`.
        """
        batch = self.pad(rows)
        if "labels" not in batch:
            whole = batch["input_ids"].clone()
            random = torch.Generator().manual_seed(zlib.crc32(whole.numpy().tobytes(), int(self.shared_epoch)))
            fixed = torch.isin(whole, self.special) | (batch["attention_mask"] == 0)
            self.draw.generator = random
            batch["input_ids"], batch["labels"] = self.draw.torch_mask_tokens(batch["input_ids"], fixed)
            for row in ((batch["labels"] == IGNORED).all(1) & ~fixed.all(1)).nonzero()[:, 0]:
                places = (~fixed[row]).nonzero()[:, 0]
                place = places[torch.randint(len(places), (), generator=random)]
                batch["labels"][row, place], batch["input_ids"][row, place] = whole[row, place], self.mask
        return batch


def hide_once(rows: Dataset, masking: Masking) -> Dataset:
    """
    Args:
        rows (`Dataset`):
            Encoded rows with their `length`.
        masking (`Masking`):
            How tokens are hidden.

    Returns:
        `Dataset`: The rows with the same tokens hidden at every evaluation, whatever batch they are in.
    """

    def run(batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        made = masking([{"input_ids": ids} for ids in batch["input_ids"]])
        found = {
            name: [values[:length] for values, length in zip(made[name].numpy(), batch["length"], strict=True)]
            for name in ("input_ids", "labels")
        }
        return {**found, "length": batch["length"]}

    return rows.map(
        run,
        batched=True,
        remove_columns=rows.column_names,
        features=Features(
            {name: List(Value("int32")) for name in ("input_ids", "labels")} | {"length": Value("int32")}
        ),
        load_from_cache_file=False,
    )
