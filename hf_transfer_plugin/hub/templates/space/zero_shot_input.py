"""Demos that look for what the visitor names: an image, and class names that need no training."""

from typing import Any

import gradio as gr
import image_input
import torch
from limits import InputError, finite
from loading import Loaded, Settings

MAX_NAMES, MAX_NAME = 50, 200
TEMPLATE = "a photo of a {label}."
HINT = f"One a line: 2 to {MAX_NAMES} names that exclude each other, in any words."
LIMIT = (
    "It chooses among the names that it is given, also where none fits, and reads {tokens:,} tokens of each. "
    + image_input.LIMIT
)


def inputs(settings: Settings) -> list[Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.

    Returns:
        `list[Component]`: A box for the image, and one for class names, in which those of training stand.
    """
    # Components stand on the page in the order in which they are made.
    image = image_input.inputs(settings)
    names = gr.Textbox(
        label="Class names",
        info=HINT,
        lines=6,
        max_lines=12,
        value="\n".join(settings.class_names[:MAX_NAMES]),
        elem_id="candidates",
    )
    return [*image, names]


def names_of(value: Any) -> list[str]:
    """
    Args:
        value (`Any`):
            What was sent.

    Returns:
        `list[str]`: Its different lines that hold something.

    Raises:
        InputError: If there are fewer than two, too many, or one is too long.
    """
    if value is not None and not isinstance(value, str):
        raise InputError(f"Class names must be a string with one a line, but got {type(value).__name__}.")
    lines = (" ".join(line.split()) for line in (value or "").splitlines())
    shown = [line for line in lines if any(c.isprintable() and not c.isspace() for c in line)]
    found = list({name.casefold(): name for name in reversed(shown)}.values())[::-1]
    if len(found) < 2:
        raise InputError("Give at least two different class names to choose from, one a line.")
    if len(found) > MAX_NAMES or max(map(len, found)) > MAX_NAME:
        raise InputError(
            f"There are {len(found):,} class names of up to {max(map(len, found)):,} characters; at most {MAX_NAMES} "
            f"of {MAX_NAME} are read. Give fewer or shorter ones."
        )
    try:
        "".join(found).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("The class names hold broken characters. Type them again as plain text.") from None
    return found


def check(settings: Settings, values: list[Any]) -> list[Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.
        values (`list`):
            What the boxes sent.

    Returns:
        `list`: The uploaded file, and the class names.

    Raises:
        InputError: If there is no image, or the names cannot be used.
    """
    return [*image_input.check(settings, values[:1]), names_of(values[1])]


def read(loaded: Loaded, values: list[Any]) -> tuple[tuple[Any, list[str], list[str]], str]:
    """
    Args:
        loaded (`Loaded`):
            The model's processor, and the template of captions.
        values (`list`):
            The file and the class names.

    Returns:
        `tuple`: The image, the names and their captions; and a sentence where the model does not read all of them.

    Raises:
        InputError: If the image cannot be read.
    """
    file, names = values
    image, _ = image_input.read(loaded, [file])
    # A model of captions gets them as they are.
    template = loaded.options.get("caption_template") or (TEMPLATE if loaded.class_names else "{label}")
    captions = [template.replace("{label}", name) for name in names]
    tokens = loaded.processor.tokenizer(captions, truncation=False, verbose=False)["input_ids"]
    long = sum(len(ids) > loaded.max_tokens for ids in tokens) if loaded.max_tokens else 0
    said = f"Of {long:,} class names only the first {loaded.max_tokens:,} tokens were read." if long else ""
    return (image, names, captions), said


@torch.inference_mode()
def ask(loaded: Loaded, model: Any, asked: tuple[Any, list[str], list[str]]) -> dict[str, float]:
    """
    Args:
        loaded (`Loaded`):
            The model's processor.
        model (`torch.nn.Module`):
            The model, or its base.
        asked (`tuple`):
            What [`read`] gave.

    Returns:
        `dict[str, float]`: Name -> probability. SigLIP judges each name by itself, all others choose one.

    Raises:
        InputError: If the model's answer is no number.
    """
    image, names, captions = asked
    siglip = "siglip" in model.config.model_type
    length = {"max_length": loaded.max_tokens} if loaded.max_tokens else {}
    padding = "max_length" if siglip else "longest"
    texts = loaded.processor.tokenizer(captions, padding=padding, truncation=True, return_tensors="pt", **length)
    pixels = loaded.processor.image_processor(images=image, return_tensors="pt")
    logits = finite(model(**pixels.to(model.device), **texts.to(model.device)).logits_per_image[0])
    chances = logits.sigmoid() if siglip else logits.softmax(0)
    return dict(zip(names, chances.tolist(), strict=True))


def outputs(whose: str) -> list[Any]:
    """
    Args:
        whose (`str`):
            End of the label.

    Returns:
        `list[Component]`: The names, the likeliest first.
    """
    return [gr.Label(label=f"Probability of each name{whose}", num_top_classes=10, elem_classes="answer")]


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
