"""Demos that read text: one box or two, checked alike for every task, and what a classifier answers."""

from typing import Any

import gradio as gr
import torch
from limits import check_text, finite
from loading import Loaded, Settings

LABELS = {"text": "Text", "text_pair": "Second text", "question": "Question", "context": "Context"}
LINES = {"question": 1, "context": 8}


def inputs(settings: Settings) -> list[Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.

    Returns:
        `list[Component]`: One box for each text.
    """
    lines = 4 if len(settings.inputs) == 1 else 3
    return [
        gr.Textbox(label=LABELS[name], lines=LINES.get(name, lines), max_lines=12, elem_id=name)
        for name in settings.inputs
    ]


def check(settings: Settings, values: list[Any]) -> list[str]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.
        values (`list`):
            What the boxes sent.

    Returns:
        `list[str]`: The texts.

    Raises:
        InputError: If one is no text, empty or too long.
    """
    return [check_text(value, LABELS[name]) for name, value in zip(settings.inputs, values, strict=True)]


def read(loaded: Loaded, texts: list[str]) -> tuple[list[str], str]:
    """
    Args:
        loaded (`Loaded`):
            The model's tokenizer and limits.
        texts (`list[str]`):
            One text, or a pair.

    Returns:
        `tuple[list[str], str]`: The same, and a sentence where the model does not read the end of it.
    """
    if loaded.max_tokens is None or len(loaded.processor(*texts).input_ids) <= loaded.max_tokens:
        return texts, ""
    return texts, f"Only the first {loaded.max_tokens:,} tokens were read; the rest was left out."


@torch.inference_mode()
def ask(loaded: Loaded, model: Any, texts: list[str]) -> list[float]:
    """
    Args:
        loaded (`Loaded`):
            The model's tokenizer and limits.
        model (`torch.nn.Module`):
            The model, or its base.
        texts (`list[str]`):
            One text, or a pair.

    Returns:
        `list[float]`: Logits.

    Raises:
        InputError: If the model's answer is no number.
    """
    batch = loaded.processor(*texts, truncation=True, max_length=loaded.max_tokens, return_tensors="pt")
    return finite(model(**batch.to(model.device)).logits[0]).tolist()


def one_label(whose: str) -> list[Any]:
    """
    Args:
        whose (`str`):
            End of the label.

    Returns:
        `list[Component]`: Classes that exclude each other.
    """
    return [gr.Label(label=f"Probability of each class{whose}", num_top_classes=10, elem_classes="answer")]


def many_labels(whose: str) -> list[Any]:
    """
    Args:
        whose (`str`):
            End of the label.

    Returns:
        `list[Component]`: Classes of which several may hold.
    """
    label = f"Probability that each class holds{whose}"
    return [gr.Label(label=label, num_top_classes=20, show_heading=False, elem_classes="answer")]


def number(whose: str) -> list[Any]:
    """
    Args:
        whose (`str`):
            End of the label.

    Returns:
        `list[Component]`: A value.
    """
    return [gr.Number(label=f"Value{whose}", interactive=False, precision=4, elem_classes="answer")]


def softmax(loaded: Loaded, logits: list[float]) -> list[dict[str, float]]:
    """
    Args:
        loaded (`Loaded`):
            Names the classes.
        logits (`list[float]`):
            Of each class.

    Returns:
        `list[dict[str, float]]`: Class -> probability; they add up to one.
    """
    return [dict(zip(loaded.class_names, torch.tensor(logits).softmax(0).tolist(), strict=True))]


def sigmoid(loaded: Loaded, logits: list[float]) -> list[dict[str, float]]:
    """
    Args:
        loaded (`Loaded`):
            Names the classes.
        logits (`list[float]`):
            Of each class.

    Returns:
        `list[dict[str, float]]`: Class -> probability, each on its own.
    """
    return [dict(zip(loaded.class_names, torch.tensor(logits).sigmoid().tolist(), strict=True))]


def value(loaded: Loaded, logits: list[float]) -> list[float]:
    """
    Args:
        loaded (`Loaded`):
            The model.
        logits (`list[float]`):
            One number.

    Returns:
        `list[float]`: That number.
    """
    return logits[:1]
