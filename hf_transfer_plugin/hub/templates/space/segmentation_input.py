"""Demos that give every pixel of an image a class: drawn over the image, and told as shares."""

from typing import Any

import gradio as gr
import numpy as np
import torch
from limits import finite
from loading import Loaded
from PIL import Image
from torch.nn.functional import interpolate

SHOWN = 1024  # pixels of the longer side of what is drawn
COVER, THIN = 0.6, 0.25  # how much of the image a class hides; the largest, mostly the ground, hides less
LIMIT = "It sees the whole image squeezed into one size, as in training: what is small or thin is drawn badly."


@torch.inference_mode()
def ask(loaded: Loaded, model: Any, image: Image.Image) -> tuple[Image.Image, np.ndarray]:
    """
    Args:
        loaded (`Loaded`):
            The model's image processor.
        model (`torch.nn.Module`):
            The model, or its base.
        image (`Image`):
            The image.

    Returns:
        `tuple[Image, np.ndarray]`: The image, at most 1,024 pixels large, and the class number of each of its pixels.

    Raises:
        InputError: If the model's answer is no number.
    """
    batch = loaded.processor(images=image, return_tensors="pt")
    logits = finite(model(**batch.to(model.device)).logits[0])
    shown = image.copy()
    shown.thumbnail((SHOWN, SHOWN))
    best = torch.full((shown.height, shown.width), -torch.inf, device=logits.device)
    found = torch.zeros_like(best, dtype=torch.int64)
    # One class after the other: those of a large image, all at once, would take gigabytes.
    for number, one in enumerate(logits):
        large = interpolate(one[None, None], size=best.shape, mode="bilinear", align_corners=False)[0, 0]
        found[large > best] = number
        best = torch.maximum(best, large)
    return shown, found.cpu().numpy()


def outputs(whose: str) -> list[Any]:
    """
    Args:
        whose (`str`):
            End of the label.

    Returns:
        `list[Component]`: The image under its classes, and how much of it each has.
    """
    drawn = gr.AnnotatedImage(label=f"Classes over the image{whose}", elem_classes="drawn", height=360)
    shares = gr.Label(
        label=f"Share of the image that each class has{whose}",
        num_top_classes=20,
        show_heading=False,
        elem_classes="answer",
    )
    return [drawn, shares]


def show(loaded: Loaded, answer: tuple[Image.Image, np.ndarray]) -> list[Any]:
    """
    Args:
        loaded (`Loaded`):
            Names the classes.
        answer (`tuple[Image, np.ndarray]`):
            What [`ask`] gave.

    Returns:
        `list`: The image with a mask for each class that is in it, and class -> share.
    """
    image, classes = answer
    counts = np.bincount(classes.ravel(), minlength=len(loaded.class_names))
    there = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
    cover = {number: THIN if number == there[0] else COVER for number in there}
    masks = [(cover[number] * (classes == number), loaded.class_names[number]) for number in there]
    return [(image, masks), {loaded.class_names[number]: counts[number] / counts.sum() for number in there}]
