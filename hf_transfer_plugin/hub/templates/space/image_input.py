"""Demos that look: at a file, a photo or the clipboard, opened as in training."""

from pathlib import Path
from typing import Any

import gradio as gr
import torch
from limits import MAX_UPLOAD, InputError, finite, uploaded
from loading import Loaded, Settings
from PIL import Image, ImageOps

FORMATS = "PNG, JPEG, WebP, GIF, BMP or TIFF"
READ = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # an image of other formats may be a program
MAX_PIXELS = 50_000_000
MAX_RATIO = 50  # of the sides: made wide enough for a model, a thread of pixels would fill the memory
TOO_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
LIMIT = "It looks at the whole image, made as small as in training: details of a few pixels are lost."


def inputs(settings: Settings) -> list[Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.

    Returns:
        `list[Component]`: A box for a file, a photo, or what the clipboard holds.
    """
    size = MAX_UPLOAD.replace("mb", " MB")
    label = f"Image: {FORMATS}, at most {size}"
    return [
        gr.Image(label=label, sources=["upload", "webcam", "clipboard"], type="filepath", height=320, elem_id="image")
    ]


def check(settings: Settings, values: list[Any]) -> list[Path]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.
        values (`list`):
            What the box sent.

    Returns:
        `list[Path]`: The uploaded file.

    Raises:
        InputError: If there is none.
    """
    return [uploaded(values[0], "image", "take a photo")]


def read(loaded: Loaded, files: list[Path]) -> tuple[Image.Image, str]:
    """
    Args:
        loaded (`Loaded`):
            The model.
        files (`list[Path]`):
            One file.

    Returns:
        `tuple[Image, str]`: The image, turned as its camera says, in red, green and blue; nothing is left out.

    Raises:
        InputError: If it cannot be read, or is too large or too long.
    """
    try:
        with Image.open(files[0], formats=READ) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"The image has {image.width * image.height:,} pixels; at most {MAX_PIXELS:,} are read. Make it "
                    "smaller."
                )
            if max(image.size) > MAX_RATIO * min(image.size):
                raise InputError(
                    f"The image has {image.width:,} x {image.height:,} pixels; at most {MAX_RATIO} times as long as "
                    "wide are read. Cut a part out."
                )
            if image.mode in TOO_DEEP:
                raise InputError("The image has more than 8 bits for each colour. Save it with 8 bits.")
            return ImageOps.exif_transpose(image).convert("RGB"), ""
    except InputError:
        # Gradio's errors are `ValueError`s.
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        raise InputError(f"This file cannot be read as an image. Send {FORMATS}.") from None


@torch.inference_mode()
def ask(loaded: Loaded, model: Any, image: Image.Image) -> list[float]:
    """
    Args:
        loaded (`Loaded`):
            The model's image processor.
        model (`torch.nn.Module`):
            The model, or its base.
        image (`Image`):
            The image.

    Returns:
        `list[float]`: Logits.

    Raises:
        InputError: If the model's answer is no number.
    """
    batch = loaded.processor(images=image, return_tensors="pt")
    return finite(model(**batch.to(model.device)).logits[0]).tolist()
