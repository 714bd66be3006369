"""Demos that guess a word that was left out."""

import re
from typing import Any

import gradio as gr
import torch
from limits import InputError, finite, longest
from loading import Loaded, Settings

MASKS = re.compile(r"\[mask\]|<mask>", re.IGNORECASE)
HINT = "Write [MASK] in place of the word to guess."
GUESSES = 10
LIMIT = "It reads {tokens:,} tokens around the word that was left out; the rest of a longer text is left out."


def inputs(settings: Settings) -> list[Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.

    Returns:
        `list[Component]`: A box.
    """
    return [gr.Textbox(label="Text", info=HINT, lines=4, max_lines=12, elem_id="text")]


def read(loaded: Loaded, values: list[str]) -> tuple[str, str]:
    """
    Args:
        loaded (`Loaded`):
            The model's tokenizer and limits.
        values (`list[str]`):
            One text.

    Returns:
        `tuple[str, str]`: The text with the tokenizer's own mask, cut to what the model reads around it, and a
        sentence where it was cut.

    Raises:
        InputError: If not exactly one word is left out.
    """
    mask = loaded.processor.mask_token
    parts = MASKS.sub(mask, values[0]).split(mask)
    if len(parts) != 2:
        found = "none" if len(parts) == 1 else f"{len(parts) - 1}"
        raise InputError(f"{HINT} The text must hold it once, but has {found}.")
    before, after = parts

    def around(size: int) -> str:
        return before[max(len(before) - size, 0) :] + mask + after[:size]

    def fits(size: int) -> bool:
        return loaded.max_tokens is None or len(loaded.processor(around(size)).input_ids) <= loaded.max_tokens

    whole = max(len(before), len(after))
    size = whole if fits(whole) else longest(whole, fits)
    if size == whole:
        return around(size), ""
    return around(size), f"Only {loaded.max_tokens:,} tokens around {mask} were read; the rest was left out."


@torch.inference_mode()
def ask(loaded: Loaded, model: Any, text: str) -> dict[str, float]:
    """
    Args:
        loaded (`Loaded`):
            The model's tokenizer.
        model (`torch.nn.Module`):
            The model, or its base.
        text (`str`):
            What [`read`] gave.

    Returns:
        `dict[str, float]`: Token -> probability of the likeliest tokens.

    Raises:
        InputError: If the model's answer is no number.
    """
    batch = loaded.processor(text, return_tensors="pt").to(model.device)
    place = batch.input_ids[0].tolist().index(loaded.processor.mask_token_id)
    # Output layers are often padded beyond the tokenizer's words.
    chances = finite(model(**batch).logits[0, place]).softmax(-1)[: len(loaded.processor)]
    top = chances.topk(min(GUESSES, len(chances)))
    guesses: dict[str, float] = {}
    for chance, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        name = loaded.processor.decode([token]).strip()
        # A word with and without the space before it are two tokens.
        name = loaded.processor.convert_ids_to_tokens(token) if not name or name in guesses else name
        guesses[name] = chance
    return guesses


def guesses(whose: str) -> list[Any]:
    """
    Args:
        whose (`str`):
            End of the label.

    Returns:
        `list[Component]`: The likeliest words.
    """
    return [gr.Label(label=f"Likeliest words{whose}", num_top_classes=GUESSES, elem_classes="answer")]


def show(loaded: Loaded, answer: dict[str, float]) -> list[Any]:
    """
    Args:
        loaded (`Loaded`):
            The model.
        answer (`dict[str, float]`):
            What [`ask`] gave.

    Returns:
        `list`: The same.
    """
    return [answer]
