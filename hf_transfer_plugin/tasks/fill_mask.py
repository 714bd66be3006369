"""Masked words: what a model must guess in training, and the same at every evaluation."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, DatasetDict

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks.base import Outcome, Task, TaskData
from hf_transfer_plugin.tasks.class_report import SHORT
from hf_transfer_plugin.tasks.columns import choose_columns
from hf_transfer_plugin.tasks.likelihood import aligned_sums, commonest_token, perplexity_interval, token_figures
from hf_transfer_plugin.tasks.masking import Masking, hide_once
from hf_transfer_plugin.tasks.packing import tokenize_blocks, tokenize_lines
from hf_transfer_plugin.tasks.raw_text import RAW_COLUMNS, read_texts
from hf_transfer_plugin.tasks.splitting import hold_out

MASK = "[MASK]"
MASKS = re.compile(r"\[mask\]|<mask>", re.IGNORECASE)
LETTERS = re.compile(r"[^\W\d_]{4,}")


def read(splits: DatasetDict, config: TransferConfig, seed: int) -> TaskData:
    """
    Checks the rows and brings them into the column `text`; empty ones are left out.

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
        ValueError: If the column is missing or holds no text.
    """
    columns = choose_columns(splits, config, {"text": RAW_COLUMNS})
    plain, held_out = hold_out(read_texts(splits, columns["text"]), config, seed)
    return TaskData(plain, columns, held_out=held_out, options=_options(config))


def read_again(splits: DatasetDict, config: TransferConfig, labelled: bool) -> TaskData:
    """
    As [`read`], for a trained model: nothing is held out, and rows with masks are all kept.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        labelled (`bool`):
            Whether words are to be hidden; else the rows have masks.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If the column is missing or holds no text, or a row no mask where there must be one.
    """
    columns = choose_columns(splits, config, {"text": RAW_COLUMNS})
    plain = read_texts(splits, columns["text"], whole=not labelled)
    for split, rows in plain.items() if not labelled else ():
        bad = [number for number, text in enumerate(rows["text"]) if not MASKS.search(text)]
        if bad:
            raise ValueError(
                f"Every text must have {MASK} in place of the word to guess, but {len(bad)} of {len(rows)} in the "
                f"{split} split do not (the first is {rows['text'][bad[0]][:60]!r}). Put it in, or remove such rows."
            )
    return TaskData(plain, columns, options=_options(config))


def _options(config: TransferConfig) -> dict[str, Any]:
    return {"packing": bool(config.packing), "mlm_probability": config.mlm_probability}


def encode(data: TaskData, processor: Any, max_length: int, model_config: Any) -> tuple[DatasetDict, int]:
    """
    Tokenizes line by line, or into blocks with packing. Words of the rows to measure on are hidden here, once and for
    all; the training rows' are when a batch is made ([`Masking`]).

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
        ValueError: If the tokenizer has no mask token, or no text has a token that it knows.
    """
    require_mask(processor)
    masking, splits, cut = Masking(processor, data.options["mlm_probability"]), {}, 0
    for split, rows in data.splits.items():
        title, more = f"Tokenizing {split}", 0
        if data.options["packing"]:
            found = tokenize_blocks(rows, processor, max_length, marked=True, title=title)
        else:
            found, more = tokenize_lines(rows, processor, max_length, marked=True, title=title)
        found = found.filter(_has_words, batched=True, load_from_cache_file=False)
        if not len(found):
            raise ValueError(
                f"No text of the {split} split has a token that the tokenizer knows. Choose a model that was trained "
                "on such text."
            )
        cut += more
        splits[split] = found if split == "train" and len(data.splits) > 1 else hide_once(found, masking)
    return DatasetDict(splits), cut


def _has_words(batch: Mapping[str, Any]) -> list[bool]:
    return [not all(special) for special in batch["special_tokens_mask"]]


def require_mask(processor: Any) -> None:
    """
    Args:
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.

    Raises:
        ValueError: If it has no mask token.
    """
    if processor.mask_token_id is None:
        raise ValueError(
            f"The tokenizer must have a mask token, but {type(processor).__name__} has none: the model was not "
            "trained to guess hidden words. Choose one that was, or the task `text-generation`."
        )


def set_up(model: Any, processor: Any, data: TaskData) -> None:
    """
    Args:
        model (`PreTrainedModel`):
            The model.
        processor (`PreTrainedTokenizerBase`):
            Its tokenizer.
        data (`TaskData`):
            Not needed here.

    Raises:
        ValueError: If there is no mask token, or no head that guesses tokens.
    """
    require_mask(processor)
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"The model must have a head that guesses tokens, but {type(model).__name__} has none. Choose another one."
        )


def generate(model: Any, processor: Any, data: TaskData, rows: Dataset, batch_size: int) -> list[str]:
    """
    Puts the likeliest token in the place of each mask; masks of a text are filled independently.

    Args:
        model (`PreTrainedModel`):
            The model.
        processor (`PreTrainedTokenizerBase`):
            Its tokenizer.
        data (`TaskData`):
            Not needed here.
        rows (`Dataset`):
            Texts; those without a mask stay as they are.
        batch_size (`int`):
            Texts at a time.

    Returns:
        `list[str]`: The texts without masks; those behind what the model reads stay.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        parts = (rows.select(range(s, min(s + batch_size, len(rows)))) for s in range(0, len(rows), batch_size))
        return [text for part in parts for text in _filled(model, processor, part["text"])]
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def _filled(model: Any, processor: Any, texts: Sequence[str]) -> list[str]:
    texts = [MASKS.sub(processor.mask_token, text) for text in texts]
    batch = processor(
        texts, truncation=True, padding=True, max_length=_readable(model, processor), return_tensors="pt"
    ).to(model.device)
    best = model(**batch).logits.argmax(-1)
    found = []
    for text, ids, guessed in zip(texts, batch["input_ids"], best, strict=True):
        for token in guessed[ids == processor.mask_token_id].tolist():
            text = text.replace(processor.mask_token, processor.decode([token]).strip(), 1)
        found.append(text)
    return found


def _readable(model: Any, processor: Any) -> int:
    return min(getattr(model.config, "max_position_embeddings", None) or 512, processor.model_max_length, 512)


def metrics(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Not needed here.
        outcome (`Outcome`):
            Sums of each row.

    Returns:
        `dict[str, float]`: `perplexity` and `token_accuracy` of the hidden tokens.
    """
    return token_figures(outcome)


def answers(data: TaskData, outcome: Outcome) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            Not needed here.
        outcome (`Outcome`):
            Has the texts.

    Returns:
        `list[dict[str, Any]]`: `prediction` of each row: the text without masks.
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
    return "commonest_token", commonest_token(encoded["train"], encoded[split], shifted=False)


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
        `list[dict[str, Any]]`: Short texts with [MASK] in place of a word amid them, which is the `label`.
    """
    found: list[dict[str, Any]] = []
    for text in data.splits[split]["text"]:
        words = list(LETTERS.finditer(text)) if len(text) <= SHORT and len(found) < count else []
        if words:
            word = words[len(words) // 2]
            found.append({"text": text[: word.start()] + MASK + text[word.end() :], "label": word.group()})
    return found


FILL_MASK = Task(
    name="fill-mask",
    auto_classes=("AutoModelForMaskedLM",),
    roles=("text",),
    read=read,
    read_again=read_again,
    encode=encode,
    collator=lambda processor, data: Masking(processor, data.options["mlm_probability"]),
    metrics=metrics,
    report=lambda data, outcome, count: {"intervals": perplexity_interval(outcome)},
    answers=answers,
    baseline=baseline,
    examples=examples,
    best_metric=lambda data: ("perplexity", False),
    options=("packing", "mlm_probability"),
    reduce=aligned_sums,
    generate=generate,
    set_up=set_up,
    pretrained_head=True,
    arguments={"per_device_eval_batch_size": 16},
)
