"""Demos that find things in a picture: boxes drawn on it, and the same as a table for those who cannot see them."""

from pathlib import Path
from typing import Any

import gradio as gr
import image_input
import numpy as np
import torch
from limits import InputError, finite
from loading import Loaded, Settings
from PIL import Image

LEAST, MOST, DRAWN = 480, 768, 20  # pixels of the longer side of what is drawn, and boxes on it
EDGE, INSIDE = 3, 0.08  # of a box: pixels of its line, and how much of what is inside is covered
SURE = 0.5
COLUMNS = ["what", "score", "x0", "y0", "x1", "y1"]
LIMIT = (
    "It looks at the whole image, made as small as in training, so things of a few pixels are lost. It finds only "
    "what it was trained to find. Boxes are told in pixels of the image, from its upper left corner; the "
    f"{DRAWN} surest are drawn."
)


def inputs(settings: Settings) -> list[Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.

    Returns:
        `list[Component]`: A box for an image, and how sure the model must be.
    """
    image = image_input.inputs(settings)
    sure = gr.Slider(
        0,
        0.95,
        value=float(settings.options.get("score_threshold", SURE)),
        step=0.05,
        label="How sure the model must be",
        info="Lower finds more, and invents more.",
    )
    return [*image, sure]


def check(settings: Settings, values: list[Any]) -> list[Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.
        values (`list`):
            What the boxes sent.

    Returns:
        `list`: The uploaded file, and how sure the model must be.

    Raises:
        InputError: If there is no image, or the other is no number from 0 to below 1.
    """
    files = image_input.check(settings, values[:1])
    sure = values[1] if len(values) > 1 and values[1] is not None else settings.options.get("score_threshold", SURE)
    if isinstance(sure, bool) or not isinstance(sure, (int, float)) or not 0 <= sure < 1:
        raise InputError("How sure the model must be is a number from 0 to below 1, such as 0.5.")
    return [*files, float(sure)]


def read(loaded: Loaded, values: list[Any]) -> tuple[tuple[Image.Image, float], str]:
    """
    Args:
        loaded (`Loaded`):
            The model.
        values (`list`):
            A file, and how sure the model must be.

    Returns:
        `tuple`: The image with the latter; nothing is left out.

    Raises:
        InputError: If the file cannot be read, or is too large.
    """
    file: Path = values[0]
    image, left_out = image_input.read(loaded, [file])
    return (image, values[1]), left_out


@torch.inference_mode()
def ask(loaded: Loaded, model: Any, asked: tuple[Image.Image, float]) -> tuple[Image.Image, list[list[Any]]]:
    """
    Args:
        loaded (`Loaded`):
            The model's image processor.
        model (`torch.nn.Module`):
            The model, or its base.
        asked (`tuple`):
            The image, and how sure the model must be.

    Returns:
        `tuple`: The image, and a row for each box, surest first: class, score, and corners in pixels.

    Raises:
        InputError: If the model's answer is no number.
    """
    image, sure = asked
    batch = loaded.processor(images=image, return_tensors="pt")
    outputs = model(**batch.to(model.device))
    finite(outputs.logits)
    size = [(image.height, image.width)]
    found = loaded.processor.post_process_object_detection(outputs, threshold=sure, target_sizes=size)[0]
    names = loaded.class_names or list(model.config.id2label.values())
    rows = [
        [names[label], round(score, 3), *(round(value) for value in _inside(box, image))]
        for label, score, box in zip(
            found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True
        )
    ]
    return image, sorted(rows, key=lambda row: -row[1])


def _inside(box: list[float], image: Image.Image) -> list[float]:
    return [min(max(value, 0), end) for value, end in zip(box, (*image.size, *image.size), strict=True)]


def outputs(whose: str) -> list[Any]:
    """
    Args:
        whose (`str`):
            Whose answer it is.

    Returns:
        `list[Component]`: The image with boxes, and a table of them.
    """
    return [
        gr.AnnotatedImage(label=f"What it finds{whose}", height=360, elem_classes="answer"),
        gr.Dataframe(
            headers=COLUMNS,
            datatype=["str", "number", "number", "number", "number", "number"],
            label=f"Boxes: corners from upper left to lower right, in pixels{whose}",
            interactive=False,
            wrap=True,
            elem_classes="rows",
        ),
    ]


def show(loaded: Loaded, raw: tuple[Image.Image, list[list[Any]]]) -> list[Any]:
    """
    Args:
        loaded (`Loaded`):
            Names the classes.
        raw (`tuple`):
            The image and its boxes.

    Returns:
        `list`: The image in a size that a page shows well, with its boxes; and the table.
    """
    image, rows = raw
    longest = max(image.size)
    scale = min(max(longest, LEAST), MOST) / longest
    shown = image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)))
    drawn = [(_outline([v * scale for v in corners], shown), f"{name} {s:.2f}") for name, s, *corners in rows[:DRAWN]]
    return [(shown, drawn), rows]


def _outline(corners: list[float], image: Image.Image) -> np.ndarray:
    """What a box covers of each pixel: gradio's own boxes would hide half of what they are around."""
    left, top, right, bottom = (round(value) for value in corners)
    mask = np.zeros((image.height, image.width))
    mask[top:bottom, left:right] = 1
    mask[top + EDGE : max(bottom - EDGE, 0), left + EDGE : max(right - EDGE, 0)] = INSIDE
    return mask
