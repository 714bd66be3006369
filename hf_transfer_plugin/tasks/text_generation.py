"""Text generation: raw text to go on with, or conversations to answer."""

import re
from typing import Any

from datasets import Dataset, DatasetDict

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks.base import Outcome, Task, TaskData
from hf_transfer_plugin.tasks.class_report import SHORT, shortened
from hf_transfer_plugin.tasks.conversations import (
    render,
    require_offsets,
    require_template,
)
from hf_transfer_plugin.tasks.decoding import write_texts
from hf_transfer_plugin.tasks.dialogues import encode_chat, plain_rows, text_columns
from hf_transfer_plugin.tasks.likelihood import commonest_token, perplexity_interval, shifted_sums, token_figures
from hf_transfer_plugin.tasks.packing import tokenize_blocks, tokenize_lines
from hf_transfer_plugin.tasks.padding import RightPadding
from hf_transfer_plugin.tasks.splitting import hold_out
from hf_transfer_plugin.tasks.writers import require_writer

BEGINNING = 32
LONGEST = 1000


def read(splits: DatasetDict, config: TransferConfig, seed: int) -> TaskData:
    """
    Checks the rows and brings them into the column `messages`, for conversations and pairs of prompt and answer, or
    `text`.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        seed (`int`):
            Seed of held-out and drawn rows.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or texts or conversations are unusable.
    """
    columns = text_columns(splits, config)
    chat = set(columns) != {"text"}
    plain, held_out = hold_out(plain_rows(splits, columns, chat=chat), config, seed)
    return TaskData(plain, columns, held_out=held_out, options=_options(config, chat=chat))


def read_again(splits: DatasetDict, config: TransferConfig, labelled: bool) -> TaskData:
    """
    As [`read`], for a trained model: nothing is held out.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        labelled (`bool`):
            Whether answers are wanted: without them conversations may end with a question, and texts are gone on with
            where they end.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or texts or conversations are unusable.
    """
    # A run on raw text has said whether it packs.
    chat = config.packing is None
    columns = text_columns(splits, config, labelled=labelled, chat=chat)
    plain = plain_rows(splits, columns, labelled=labelled, chat=chat)
    return TaskData(plain, columns, options={**_options(config, chat=chat), "whole_texts": not labelled})


def _options(config: TransferConfig, *, chat: bool) -> dict[str, Any]:
    packing = None if chat else config.packing is not False
    return {"chat": chat, "max_target_length": config.max_target_length, "packing": packing}


def encode(data: TaskData, processor: Any, max_length: int, model_config: Any) -> tuple[DatasetDict, int]:
    """
    Tokenizes. Raw text is packed into blocks with the end token between texts, or stands line by line; of
    conversations only the answers have labels. Rows without labels learn each of their tokens (see [`RightPadding`]).

    Args:
        data (`TaskData`):
            The rows.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.
        max_length (`int`):
            Tokens of a row at most.
        model_config (`PretrainedConfig`):
            The model's config; not needed here.

    Returns:
        `tuple[DatasetDict, int]`: Encoded splits, and the number of truncated rows.

    Raises:
        ValueError: If there is no chat template where one is needed, or no answer within `max_length`.
    """
    data.options["max_length"] = max_length
    splits, cut = {}, 0
    for split, rows in data.splits.items():
        title, more = f"Tokenizing {split}", 0
        if data.options["chat"]:
            splits[split], more = encode_chat(rows, processor, max_length, split)
        elif data.options["packing"]:
            splits[split] = tokenize_blocks(rows, processor, max_length, end=processor.eos_token_id, title=title)
        else:
            splits[split], more = tokenize_lines(rows, processor, max_length, end=processor.eos_token_id, title=title)
        cut += more
    return DatasetDict(splits), cut


def generate(model: Any, processor: Any, data: TaskData, rows: Dataset, batch_size: int) -> list[str]:
    """
    Answers conversations before their last answer, and goes on with the beginning of raw texts ([`beginning`]).

    Args:
        model (`PreTrainedModel`):
            The model.
        processor (`PreTrainedTokenizerBase`):
            Its tokenizer.
        data (`TaskData`):
            Tells what the rows are, and how much to write.
        rows (`Dataset`):
            Some of its rows.
        batch_size (`int`):
            Prompts at a time.

    Returns:
        `list[str]`: The answers.
    """
    new = data.options["max_target_length"]
    if data.options["chat"]:
        asked = [render(processor, _question(talk), ask=True) for talk in rows["messages"]]
        prompts = processor(asked, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        whole = data.options.get("whole_texts")
        texts = [text if whole else beginning(text)[0] for text in rows["text"]]
        prompts = processor(texts, verbose=False)["input_ids"]
        prompts = [ids[:-1] if len(ids) > 1 and ids[-1] == processor.eos_token_id else ids for ids in prompts]
    limit = data.options.get("max_length")
    if limit is not None:
        new = min(new, max(limit // 2, 1))
        prompts = [ids[-(limit - new) :] for ids in prompts]
    return write_texts(model, processor, prompts, batch_size, new, title="Writing")


def _question(talk: list[dict[str, str]]) -> list[dict[str, str]]:
    return talk[:-1] if talk[-1]["role"] == "assistant" else talk


def beginning(text: str) -> tuple[str, str]:
    """
    Args:
        text (`str`):
            A text.

    Returns:
        `tuple[str, str]`: The first half of its words, 32 at most, and what follows.
    """
    words = list(re.finditer(r"\S+", text))
    end = words[min(BEGINNING, max(len(words) // 2, 1)) - 1].end()
    return text[:end], text[end:].lstrip()


def set_up(model: Any, processor: Any, data: TaskData) -> None:
    """
    Args:
        model (`PreTrainedModel`):
            The model.
        processor (`PreTrainedTokenizerBase`):
            Its tokenizer.
        data (`TaskData`):
            Tells what the rows are.

    Raises:
        ValueError: If the model does not write from left to right, or there is no chat template where one is needed.
    """
    require_writer(model)
    if data.options["chat"]:
        require_template(processor)
        require_offsets(processor)


def metrics(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Not needed here.
        outcome (`Outcome`):
            Sums of each row.

    Returns:
        `dict[str, float]`: `perplexity` and `token_accuracy`, of answers only for conversations.
    """
    return token_figures(outcome)


def report(data: TaskData, outcome: Outcome, count: int) -> dict[str, Any]:
    """
    Args:
        data (`TaskData`):
            Tells what the rows are.
        outcome (`Outcome`):
            Sums of each row, and texts of the first rows if there are some.
        count (`int`):
            Samples at most.

    Returns:
        `dict[str, Any]`: `intervals` and `samples`.
    """
    told = [_told(row, data) for row in outcome.rows.select(range(min(count, len(outcome.rows))))]
    samples = [
        {"text": shortened(text), "label": shortened(label), "prediction": written}
        for (text, label), written in zip(told, outcome.texts or (), strict=False)
    ]
    return {"intervals": perplexity_interval(outcome), **({"samples": samples} if samples else {})}


def _told(row: dict[str, Any], data: TaskData) -> tuple[str, str]:
    """What is asked last, and what is answered."""
    if not data.options["chat"]:
        return beginning(row["text"])
    answer = row["messages"][-1]["content"] if row["messages"][-1]["role"] == "assistant" else ""
    return _question(row["messages"])[-1]["content"], answer


def answers(data: TaskData, outcome: Outcome) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            Not needed here.
        outcome (`Outcome`):
            Has the texts.

    Returns:
        `list[dict[str, Any]]`: `prediction` of each row.
    """
    return [{"prediction": text} for text in outcome.texts or ()]


def baseline(data: TaskData, split: str, encoded: DatasetDict) -> tuple[str, dict[str, float]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to measure on.
        encoded (`DatasetDict`):
            The encoded rows.

    Returns:
        `tuple`: `"commonest_token"`, and its perplexity and token accuracy ([`commonest_token`]).
    """
    return "commonest_token", commonest_token(encoded["train"], encoded[split], shifted=True)


def examples(data: TaskData, split: str, count: int) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to take them from.
        count (`int`):
            How many.

    Returns:
        `list[dict[str, Any]]`: Short `messages` before the last answer, or beginnings of texts as `text`; `label` is
        what followed.
    """
    found: list[dict[str, Any]] = []
    for row in data.splits[split]:
        if len(found) == count:
            break
        asked = _question(row["messages"]) if data.options["chat"] else []
        text, label = _told(row, data)
        if sum(len(message["content"]) for message in asked) <= LONGEST and len(text) <= SHORT:
            found.append({**({"messages": asked} if asked else {"text": text}), "label": shortened(label)})
    return found


TEXT_GENERATION = Task(
    name="text-generation",
    auto_classes=("AutoModelForCausalLM",),
    roles=("text", "text_pair", "target", "messages"),
    read=read,
    read_again=read_again,
    encode=encode,
    collator=lambda processor, data: RightPadding(processor.pad_token_id, learn_all=True),
    metrics=metrics,
    report=report,
    answers=answers,
    baseline=baseline,
    examples=examples,
    best_metric=lambda data: ("perplexity", False),
    options=("packing", "max_target_length"),
    reduce=shifted_sums,
    generate=generate,
    set_up=set_up,
    pretrained_head=True,
    arguments={"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8},
)
