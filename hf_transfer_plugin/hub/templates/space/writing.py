"""Demos that read a text and write one: summaries, translations, continuations."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import gradio as gr
import torch
from limits import InputError, longest
from loading import Loaded
from transformers import StoppingCriteriaList, TextIteratorStreamer

NEW_TOKENS = 128
LIMIT = "It reads and writes {tokens:,} tokens at most. What it writes can be wrong, also where it reads well."
END = "\ue000"


@dataclass(frozen=True)
class Asked:
    """
    What a model is asked to go on with.

    Args:
        ids (`list[int]`):
            Tokens of the prompt.
        new_tokens (`int`):
            Tokens that it may write.
        strip (`bool`):
            Whether space around the answer is left out.
    """

    ids: list[int]
    new_tokens: int
    strip: bool = True


class Streamer(TextIteratorStreamer):
    """Stays itself where PEFT copies what `generate` is given, as it does for learned prompts of an encoder."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Streamer":
        return self


def shares(loaded: Loaded, wanted: int | None) -> tuple[int, int | None]:
    """
    Shares the model's tokens between what it reads and what it writes.

    Args:
        loaded (`Loaded`):
            The model.
        wanted (`int`, *optional*):
            Tokens to write, where neither the model nor the options say it.

    Returns:
        `tuple[int, int or None]`: Tokens to write, and to read.
    """
    config = loaded.model.generation_config
    options = loaded.options
    new = config.max_new_tokens or options.get("max_new_tokens") or options.get("max_target_length") or wanted
    new = new or config.max_length or NEW_TOKENS
    if loaded.max_tokens is None or loaded.model.config.is_encoder_decoder:
        return new, loaded.max_tokens
    new = min(new, loaded.max_tokens // 2)
    return new, loaded.max_tokens - new


def templated(loaded: Loaded, messages: list[dict[str, str]]) -> list[int]:
    """
    Args:
        loaded (`Loaded`):
            The model's tokenizer, with a chat template.
        messages (`list[dict]`):
            `role` and `content` of each; the last one is the user's.

    Returns:
        `list[int]`: Tokens up to where the answer begins.
    """
    text = loaded.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return loaded.processor(text, add_special_tokens=False).input_ids


def prompt(loaded: Loaded, text: str) -> list[int]:
    """
    Args:
        loaded (`Loaded`):
            The model's tokenizer and prompt.
        text (`str`):
            The text.

    Returns:
        `list[int]`: Tokens of the prompt around the text, as in training.
    """
    wrapped = (loaded.options.get("prompt") or "{text}").replace("{text}", text)
    if loaded.model.config.is_encoder_decoder:
        return loaded.processor(wrapped).input_ids
    if loaded.processor.chat_template:
        return templated(loaded, [{"role": "user", "content": wrapped}])
    return _open(loaded, loaded.processor(wrapped + "\n").input_ids)


def _open(loaded: Loaded, ids: list[int]) -> list[int]:
    """Without the token that some tokenizers put at the end of each text: after it nothing would follow."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == loaded.processor.eos_token_id else ids


def read_prompted(loaded: Loaded, values: list[str]) -> tuple[Asked, str]:
    """
    Args:
        loaded (`Loaded`):
            The model's tokenizer, limits and prompt.
        values (`list[str]`):
            One text.

    Returns:
        `tuple[Asked, str]`: The prompt around as much of the text as fits, and a sentence where some was left out.

    Raises:
        InputError: If the prompt leaves no room for the text.
    """
    text = values[0]
    new, room = shares(loaded, None)
    ids = prompt(loaded, text)
    if room is None or len(ids) <= room:
        return Asked(ids, new), ""
    size = longest(len(text), lambda size: len(prompt(loaded, text[:size])) <= room)
    if not size:
        raise InputError(f"The model reads {room:,} tokens, and its prompt leaves no room for a text.")
    part = f"{size / len(text):.0%}"
    return Asked(
        prompt(loaded, text[:size]), new
    ), f"Only the first {part} of the text was read; the rest was left out."


def read_beginning(loaded: Loaded, values: list[str]) -> tuple[Asked, str]:
    """
    Args:
        loaded (`Loaded`):
            The model's tokenizer and limits.
        values (`list[str]`):
            The beginning of a text.

    Returns:
        `tuple[Asked, str]`: As much of its end as fits, and a sentence where some was left out.
    """
    new, room = shares(loaded, None)
    loaded.processor.truncation_side = "left"
    whole = loaded.processor(values[0]).input_ids
    cut = room is not None and len(whole) > room
    ids = loaded.processor(values[0], truncation=True, max_length=room).input_ids if cut else whole
    return Asked(_open(loaded, ids), new, strip=False), f"Only the last {room:,} tokens were read." if cut else ""


def end_of_answer(loaded: Loaded) -> list[int]:
    """
    Args:
        loaded (`Loaded`):
            The model and its tokenizer.

    Returns:
        `list[int]`: Tokens that end an answer: the model's, the tokenizer's, and the chat template's.
    """
    own, processor = loaded.model.generation_config.eos_token_id, loaded.processor
    ends = {*(own if isinstance(own, list) else [own]), processor.eos_token_id}
    if processor.chat_template and not loaded.model.config.is_encoder_decoder:
        said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": END}]
        after = processor.apply_chat_template(said, tokenize=False).rpartition(END)[2]
        first = processor(after, add_special_tokens=False).input_ids[:1]
        ends |= set(first) & set(processor.all_special_ids)
    return sorted(ends - {None})


def ask(loaded: Loaded, model: Any, asked: Asked) -> Iterator[str]:
    """
    Writes the likeliest text, so that the same question gets the same answer.

    Args:
        loaded (`Loaded`):
            The model's tokenizer and settings.
        model (`torch.nn.Module`):
            The model, or its base.
        asked (`Asked`):
            The prompt.

    Yields:
        `str`: All that is written so far; with more than one beam only the whole.
    """
    processor, stop = loaded.processor, threading.Event()
    beams = loaded.model.generation_config.num_beams or 1
    streamer = Streamer(processor, skip_prompt=True, skip_special_tokens=True) if beams == 1 else None
    ids = torch.tensor([asked.ids], device=model.device)

    def stopped(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(ids),), stop.is_set(), device=ids.device)

    def generate() -> str:
        try:
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_length=0,
                num_beams=beams,
                max_new_tokens=asked.new_tokens,
                eos_token_id=end_of_answer(loaded) or None,
                pad_token_id=processor.pad_token_id if processor.pad_token_id is not None else processor.eos_token_id,
                stopping_criteria=StoppingCriteriaList([stopped]),
                streamer=streamer,
            )[0]
        finally:
            if streamer is not None:
                streamer.end()
        new = out if loaded.model.config.is_encoder_decoder else out[len(asked.ids) :]
        return processor.decode(new, skip_special_tokens=True)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(generate)
        try:
            written = ""
            for part in streamer or ():
                written += part
                if part:
                    yield written.strip() if asked.strip else written
            answer = future.result()
        finally:
            stop.set()
    if not answer.strip():
        gr.Info("The model's answer is empty.")
    yield answer.strip() if asked.strip else answer


def box(what: str, whose: str) -> list[Any]:
    """
    Args:
        what (`str`):
            What is written.
        whose (`str`):
            End of the label.

    Returns:
        `list[Component]`: A box for it.
    """
    return [
        gr.Textbox(
            label=f"{what}{whose}", lines=6, max_lines=20, interactive=False, elem_classes="answer", buttons=["copy"]
        )
    ]


def show(loaded: Loaded, answer: str) -> list[Any]:
    """
    Args:
        loaded (`Loaded`):
            The model.
        answer (`str`):
            What is written so far.

    Returns:
        `list`: The same.
    """
    return [answer]
