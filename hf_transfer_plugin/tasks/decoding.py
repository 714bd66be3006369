"""Texts that a model writes, many at a time."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from hf_transfer_plugin.tasks.conversations import end_of_turn
from hf_transfer_plugin.tasks.padding import padded


def set_decoding(model: Any, processor: Any, new_tokens: int) -> None:
    """
    Lets a model write the likeliest text: no draws, no least length that other data asked for. Beams stay as they are.

    Args:
        model (`PreTrainedModel`):
            The model; its generation config is changed.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.
        new_tokens (`int`):
            Tokens of an answer at most.
    """
    settings = model.generation_config
    settings.update(do_sample=False, temperature=None, top_p=None, top_k=None, min_p=None, typical_p=None)
    settings.update(max_new_tokens=new_tokens, max_length=None, min_length=None, min_new_tokens=None)
    settings.pad_token_id = processor.pad_token_id
    own = settings.eos_token_id
    ends = {*(own if isinstance(own, list) else [own]), processor.eos_token_id}
    if not model.config.is_encoder_decoder:
        ends.add(end_of_turn(processor))
    found = sorted(ends - {None})
    settings.eos_token_id = found[0] if len(found) == 1 else found or None


def write_texts(
    model: Any, processor: Any, prompts: Sequence[Sequence[int]], batch_size: int, new_tokens: int, *, title: str
) -> list[str]:
    """
    Writes a text for each prompt. Prompts are sorted by length, so that batches hold little padding; several processes
    share them.

    Args:
        model (`PreTrainedModel`):
            The model; its modes are left as they were.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.
        prompts (`Sequence[Sequence[int]]`):
            Tokens that each answer follows.
        batch_size (`int`):
            Prompts at a time.
        new_tokens (`int`):
            Tokens of an answer at most.
        title (`str`):
            Of the progress bar.

    Returns:
        `list[str]`: The new text of each, without special tokens and space around it.
    """
    return write_rows(
        model,
        processor,
        [len(prompt) for prompt in prompts],
        batch_size,
        new_tokens,
        lambda batch: _write(model, processor, [prompts[number] for number in batch]),
        title=title,
    )


def write_rows(
    model: Any,
    processor: Any,
    lengths: Sequence[float],
    batch_size: int,
    new_tokens: int | None,
    write: Callable[[Sequence[int]], Sequence[str]],
    *,
    title: str,
) -> list[str]:
    """
    As [`write_texts`], whatever the texts are written for.

    Args:
        model (`PreTrainedModel`):
            The model; its modes are left as they were.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.
        lengths (`Sequence[float]`):
            How long each row is.
        batch_size (`int`):
            Rows at a time.
        new_tokens (`int`, *optional*):
            Tokens of an answer at most; without it the model does not write token by token.
        write (`Callable`):
            Numbers of rows -> their texts.
        title (`str`):
            Of the progress bar.

    Returns:
        `list[str]`: The text of each row.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    rank, processes = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = order[rank::processes]
    # As many for each process: a sharded model's forward waits for all of them.
    mine += order[:1] * (-(-len(order) // processes) - len(mine))
    batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    found: list[tuple[int, str]] = []
    with _deciding(model, processor, new_tokens):
        for batch in tqdm(batches, desc=title, unit="batch", **({"disable": True} if rank else {})):
            found += zip(batch, write(batch), strict=True)
    written = dict(gather_object(found) if processes > 1 else found)
    return [written[number] for number in range(len(lengths))]


@contextmanager
def _deciding(model: Any, processor: Any, new_tokens: int | None) -> Iterator[None]:
    """Dropout off in every module that has it on, and greedy or beam search; as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    before = getattr(model, "generation_config", None)
    if new_tokens is not None:
        model.generation_config = copy.deepcopy(before)
        set_decoding(model, processor, new_tokens)
    model.eval()
    try:
        # Not `inference_mode`: what it makes may be kept in a module, and then no gradient goes through it.
        with torch.no_grad():
            yield
    finally:
        if new_tokens is not None:
            model.generation_config = before
        for module, mode in modes:
            module.training = mode


def _write(model: Any, processor: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
    causal = not model.config.is_encoder_decoder
    # What follows a prompt must stand right behind it, so padding goes before it.
    turned = [ids[::-1] for ids in prompts] if causal else prompts
    ids = padded(turned, processor.pad_token_id)
    mask = padded([[1] * len(row) for row in prompts], 0)
    if causal:
        ids, mask = ids.flip(1), mask.flip(1)
    new = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=True)
    new = new[:, ids.shape[1] :] if causal else new
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
