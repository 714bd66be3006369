"""Rows for text generation: conversations, pairs of prompt and answer, or raw text."""

import logging
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks.columns import check_texts, choose_columns
from hf_transfer_plugin.tasks.conversations import (
    encode_marked,
    mark_answers,
    read_conversation,
    require_offsets,
    require_template,
)
from hf_transfer_plugin.tasks.padding import IGNORED
from hf_transfer_plugin.tasks.raw_text import RAW_COLUMNS, read_texts

logger = logging.getLogger(__name__)

MESSAGE_COLUMNS = ("messages", "conversations", "conversation", "dialog", "dialogue")
PROMPT_COLUMNS = ("instruction", "prompt", "question", "query", "user")
ANSWER_COLUMNS = ("response", "completion", "output", "answer", "assistant")
FURTHER_COLUMNS = ("input", "context")


def text_columns(
    splits: DatasetDict, config: TransferConfig, *, labelled: bool = True, chat: bool | None = None
) -> dict[str, str]:
    """
    Finds the columns of conversations, of pairs of prompt and answer, or of raw text.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            May name columns.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether answers are wanted.
        chat (`bool`, *optional*):
            Whether the rows are to be conversations or pairs, or raw text; told from the columns without it.

    Returns:
        `dict[str, str]`: Role -> column.

    Raises:
        ValueError: If a column is missing, or conversations are to be packed.
    """
    names = next(iter(splits.values())).column_names
    given = {role for role in ("text", "target", "messages") if getattr(config, f"{role}_column") is not None}
    talks = "messages" in given or (not given and any(guess in names for guess in MESSAGE_COLUMNS))
    if chat is None:
        pairs = any(guess in names for guess in PROMPT_COLUMNS) and any(guess in names for guess in ANSWER_COLUMNS)
        chat = talks or "target" in given or (pairs and not given)
    if not chat:
        return choose_columns(splits, config, {"text": RAW_COLUMNS})
    if config.packing:
        raise ValueError(
            "`packing` is for raw text: conversations in one block would read each other. Leave `--packing` out."
        )
    if talks:
        return choose_columns(splits, config, {"messages": MESSAGE_COLUMNS})
    guesses = {"text": (*PROMPT_COLUMNS, *RAW_COLUMNS), "text_pair": FURTHER_COLUMNS}
    guesses |= {"target": ANSWER_COLUMNS} if labelled else {}
    return choose_columns(splits, config, guesses, optional=("text_pair",))


def plain_rows(splits: DatasetDict, columns: dict[str, str], *, labelled: bool = True, chat: bool) -> DatasetDict:
    """
    Args:
        splits (`DatasetDict`):
            As loaded.
        columns (`dict[str, str]`):
            As [`text_columns`] found them.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether answers are wanted.
        chat (`bool`):
            Whether the rows are conversations or pairs.

    Returns:
        `DatasetDict`: The checked rows, in the column `messages` or `text`.

    Raises:
        ValueError: If texts or conversations are unusable.
    """
    if "messages" in columns:
        return DatasetDict({
            split: Dataset.from_dict({
                "messages": [
                    read_conversation(row, f"row {number} of {split}", answered=labelled)
                    for number, row in enumerate(rows[columns["messages"]])
                ]
            })
            for split, rows in splits.items()
        })
    if not chat:
        return read_texts(splits, columns["text"], whole=not labelled)
    return DatasetDict({split: _pairs(split, rows, columns) for split, rows in splits.items()})


def _pairs(split: str, rows: Dataset, columns: dict[str, str]) -> Dataset:
    """Prompt, further text where there is some, and answer, as conversations."""
    for role in ("text", "target"):
        if role in columns:
            check_texts(split, rows[columns[role]], columns[role], role)
    prompts = list(rows[columns["text"]])
    if "text_pair" in columns:
        further = [str(text or "").strip() for text in rows[columns["text_pair"]]]
        prompts = [f"{text}\n\n{more}" if more else text for text, more in zip(prompts, further, strict=True)]
    talks = [[{"role": "user", "content": prompt}] for prompt in prompts]
    if "target" in columns:
        for talk, answer in zip(talks, rows[columns["target"]], strict=True):
            talk.append({"role": "assistant", "content": answer})
    return Dataset.from_dict({"messages": talks})


def encode_chat(rows: Dataset, processor: Any, max_length: int, split: str) -> tuple[Dataset, int]:
    """
    Args:
        rows (`Dataset`):
            Has the column `messages`.
        processor (`PreTrainedTokenizerBase`):
            A fast tokenizer with a chat template.
        max_length (`int`):
            Tokens of a conversation at most.
        split (`str`):
            Name of the split.

    Returns:
        `tuple[Dataset, int]`: Rows with labels for their answers, without those that were cut before an answer, and
        the number of those that were cut.

    Raises:
        ValueError: If no row is left.
    """
    require_template(processor)
    require_offsets(processor)
    cut = dropped = 0
    answered = all(talk[-1]["role"] == "assistant" for talk in rows["messages"])

    def run(batch: dict[str, Any]) -> dict[str, Any]:
        nonlocal cut, dropped
        found, more = encode_marked(
            processor, [mark_answers(processor, talk) for talk in batch["messages"]], max_length
        )
        cut += more
        kept = [n for n, labels in enumerate(found["labels"]) if not answered or set(labels[1:]) - {IGNORED}]
        dropped += len(found["labels"]) - len(kept)
        return {name: [values[n] for n in kept] for name, values in found.items()}

    encoded = rows.map(
        run,
        batched=True,
        remove_columns=rows.column_names,
        features=Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))}),
        load_from_cache_file=False,
        desc=f"Tokenizing {split}",
    )
    if dropped == len(rows):
        raise ValueError(
            f"No conversation of the {split} split has an answer within its first {max_length} tokens. Raise "
            "`--max_length`."
        )
    if dropped:
        logger.warning(
            "%d of %d conversations of the %s split are left out: no answer begins within their first %d tokens.",
            dropped,
            len(rows),
            split,
            max_length,
        )
    return encoded, cut
