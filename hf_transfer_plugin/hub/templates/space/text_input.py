"""Demos that read text: one box or two, and what a classifier answers."""

from typing import Any

import gradio as gr
import torch
from limits import InputError, check_text
from loading import Loaded, Settings

LABELS = {"text": "Text", "text_pair": "Second text"}


def inputs(settings: Settings) -> list[Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.

    Returns:
        `list[Component]`: One box for each text.
    """
    return [
        gr.Textbox(label=LABELS[name], lines=4 if len(settings.inputs) == 1 else 3, max_lines=12, elem_id=name)
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
    logits = model(**batch.to(model.device)).logits[0].float()
    if not torch.isfinite(logits).all():
        raise InputError("The model has no answer to this text.")
    return logits.tolist()


def cut(loaded: Loaded, texts: list[str]) -> bool:
    """
    Args:
        loaded (`Loaded`):
            The model's tokenizer and limits.
        texts (`list[str]`):
            One text, or a pair.

    Returns:
        `bool`: Whether the model does not read the end of it.
    """
    return loaded.max_tokens is not None and len(loaded.processor(*texts).input_ids) > loaded.max_tokens


def one_label(whose: str) -> gr.Label:
    """
    Args:
        whose (`str`):
            End of the label.

    Returns:
        `gr.Label`: Classes that exclude each other.
    """
    return gr.Label(label=f"Probability of each class{whose}", num_top_classes=10, elem_classes="answer")


def many_labels(whose: str) -> gr.Label:
    """
    Args:
        whose (`str`):
            End of the label.

    Returns:
        `gr.Label`: Classes of which several may hold.
    """
    return gr.Label(
        label=f"Probability that each class holds{whose}",
        num_top_classes=20,
        show_heading=False,
        elem_classes="answer",
    )


def number(whose: str) -> gr.Number:
    """
    Args:
        whose (`str`):
            End of the label.

    Returns:
        `gr.Number`: A value.
    """
    return gr.Number(label=f"Value{whose}", interactive=False, precision=4, elem_classes="answer")


def softmax(loaded: Loaded, logits: list[float]) -> dict[str, float]:
    """
    Args:
        loaded (`Loaded`):
            Names the classes.
        logits (`list[float]`):
            Of each class.

    Returns:
        `dict[str, float]`: Class -> probability; they add up to one.
    """
    return dict(zip(loaded.class_names, torch.tensor(logits).softmax(0).tolist(), strict=True))


def sigmoid(loaded: Loaded, logits: list[float]) -> dict[str, float]:
    """
    Args:
        loaded (`Loaded`):
            Names the classes.
        logits (`list[float]`):
            Of each class.

    Returns:
        `dict[str, float]`: Class -> probability, each on its own.
    """
    return dict(zip(loaded.class_names, torch.tensor(logits).sigmoid().tolist(), strict=True))


def value(loaded: Loaded, logits: list[float]) -> float:
    """
    Args:
        loaded (`Loaded`):
            The model.
        logits (`list[float]`):
            One number.

    Returns:
        `float`: That number.
    """
    return logits[0]
