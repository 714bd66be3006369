"""Maps of classes: made of a model's logits, drawn over pictures, and written as files."""

import base64
import colorsys
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image as Pillow
from torch.nn.functional import interpolate

from hf_transfer_plugin.metrics import IGNORED
from hf_transfer_plugin.tasks.masks import read_mask

# Told apart by most eyes (Okabe and Ito 2008, Color Universal Design), and a few more. The first is mostly the ground.
COLOURS = {
    "gray": (128, 128, 128),
    "orange": (230, 159, 0),
    "sky blue": (86, 180, 233),
    "green": (0, 158, 115),
    "yellow": (240, 228, 66),
    "blue": (0, 114, 178),
    "red": (213, 50, 0),
    "pink": (204, 121, 167),
    "purple": (106, 27, 154),
    "lime": (150, 220, 60),
    "brown": (121, 70, 20),
    "turquoise": (0, 210, 210),
}
GOLDEN = 0.618034  # of a circle of hues: neighbours lie far apart
COVER = 0.6
LEAST = 0.005  # share of a picture that is told
PREFIX = "data:image/png;base64,"


def most_likely(logits: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """
    The likeliest class of each pixel, as Transformers' `post_process_semantic_segmentation` gives it: logits are made
    as large as the picture by bilinear interpolation first. One class after the other, since all would take too much
    memory.

    Args:
        logits (`torch.Tensor` of shape `(classes, height, width)`):
            The model's answer.
        size (`tuple[int, int]`):
            Height and width of the picture.

    Returns:
        `np.ndarray` of `uint8` of shape `size`: Class numbers.
    """
    best = torch.full(size, -torch.inf, device=logits.device)
    found = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for number, one in enumerate(logits.float()):
        large = interpolate(one[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        better = large > best
        best = torch.where(better, large, best)
        found[better] = number
    return found.cpu().numpy()


def colours(count: int) -> np.ndarray:
    """
    Args:
        count (`int`):
            How many classes there are.

    Returns:
        `np.ndarray` of `uint8` of shape `(count, 3)`: Their colours.
    """
    listed = list(COLOURS.values())[:count]
    for number in range(len(listed), count):
        made = colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.65, 0.9 if number % 2 else 0.6)
        red, green, blue = (round(255 * part) for part in made)
        listed.append((red, green, blue))
    return np.array(listed, dtype=np.uint8)


def drawn(picture: Pillow.Image, classes: np.ndarray) -> Pillow.Image:
    """
    Args:
        picture (`PIL.Image.Image`):
            The picture, in red, green and blue.
        classes (`np.ndarray` of `uint8` of shape `(height, width)`):
            Class numbers; 255, which is not labelled, is left as it is.

    Returns:
        `PIL.Image.Image`: The picture under the classes' colours.
    """
    pixels = np.asarray(picture, dtype=np.float32)
    cover = colours(IGNORED + 1)[classes]
    mixed = COVER * cover + (1 - COVER) * pixels
    return Pillow.fromarray(np.where((classes == IGNORED)[..., None], pixels, mixed).astype(np.uint8))


def told_shares(pixels: np.ndarray, names: Sequence[str]) -> list[str]:
    """
    Args:
        pixels (`np.ndarray` of shape `(classes,)`):
            Pixels of each class.
        names (`Sequence[str]`):
            Names of the classes.

    Returns:
        `list[str]`: `"bag 12%"` for each class with a part worth telling, the largest first.
    """
    shares = pixels / max(pixels.sum(), 1)
    order = [int(number) for number in np.argsort(-shares, kind="stable") if shares[number] >= LEAST]
    return [f"{names[number]} {shares[number]:.0%}" for number in order]


def mask_uri(mask: np.ndarray) -> str:
    """
    Args:
        mask (`np.ndarray` of `uint8` of shape `(height, width)`):
            What the pixels hold.

    Returns:
        `str`: A data URI of a PNG with one channel; its palette shows the classes' colours.
    """
    image = Pillow.fromarray(mask)
    image.putpalette(colours(int(mask.max()) + 1).ravel().tolist())
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return PREFIX + base64.b64encode(content.getvalue()).decode()


def mask_in(uri: str) -> np.ndarray:
    """
    Args:
        uri (`str`):
            As [`mask_uri`] gives it.

    Returns:
        `np.ndarray` of `uint8` of shape `(height, width)`: What the pixels hold.
    """
    return read_mask({"bytes": base64.b64decode(uri.removeprefix(PREFIX)), "path": None})
