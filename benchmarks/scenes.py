"""Scenes whose things are known to the pixel: real pictures of clothes, laid at random places on a textured ground."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.image_sources import NAMES, read_fashion

THINGS, TRIES = 4, 20  # most things in a scene, and places that are tried for each
SMALLEST, LARGEST = 0.22, 0.45  # side of a thing, as a share of the scene's
INK = 24  # brightness, of 255, from which a pixel of Fashion-MNIST belongs to the thing
GROUND, GRAIN = (60, 200), 8  # brightness of the ground; side of its coarse noise in cells


def write_scenes(
    folder: Path, rows: dict[str, int], *, size: int = 128, seed: int = 0, classes: tuple[str, ...] = NAMES
) -> None:
    """
    Writes a folder as `load_dataset("imagefolder", data_dir=folder)` reads it: pictures, masks and metadata.jsonl.

    A scene has one to four things of different sizes that do not overlap. Its row has `file_name`, `mask_file_name`
    (a picture with one channel: 0 is the ground, k + 1 the k-th of `classes`) and `objects`, whose `bbox` are
    `[x, y, width, height]` in pixels around the pixels of the mask, and whose `category` are names.

    Args:
        folder (`Path`):
            Where the splits go.
        rows (`dict[str, int]`):
            Split -> how many scenes. A test split takes its things from Fashion-MNIST's test file, others from train.
        size (`int`, *optional*, defaults to 128):
            Width and height in pixels.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draw.
        classes (`tuple[str, ...]`, *optional*):
            Which clothes.
    """
    for position, (split, count) in enumerate(rows.items()):
        pictures, labels = read_fashion("test" if split == "test" else "train")
        generator = np.random.default_rng([seed, position])
        things = [pictures[labels == NAMES.index(name)] for name in classes]
        place = folder / split
        (place / "masks").mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(count):
            scene, mask, objects = one_scene(generator, things, classes, size)
            name = f"{number:05d}.png"
            Image.fromarray(scene).save(place / name)
            Image.fromarray(mask).save(place / "masks" / name)
            lines.append(json.dumps({"file_name": name, "mask_file_name": f"masks/{name}", "objects": objects}))
        (place / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def one_scene(
    generator: np.random.Generator, things: list[np.ndarray], classes: tuple[str, ...], size: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """
    Args:
        generator (`np.random.Generator`):
            Draws all.
        things (`list[np.ndarray]`):
            Pictures of each class, of shape `(rows, 28, 28)`.
        classes (`tuple[str, ...]`):
            Their names.
        size (`int`):
            Width and height in pixels.

    Returns:
        `tuple`: Scene of shape `(size, size, 3)`, mask of shape `(size, size)`, and boxes with categories.
    """
    coarse = generator.integers(*GROUND, (GRAIN, GRAIN, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)).copy()
    mask = np.zeros((size, size), np.uint8)
    boxes, names = [], []
    for left, top, side in _places(generator, size):
        kind = int(generator.integers(len(things)))
        picture = things[kind][generator.integers(len(things[kind]))]
        thing = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))
        inside = thing >= INK
        if not inside.any():
            continue
        tint = generator.uniform(0.4, 1.0, 3)
        spot = np.s_[top : top + side, left : left + side]
        scene[spot] = np.where(inside[..., None], (thing[..., None] * tint).astype(np.uint8), scene[spot])
        mask[spot] = np.where(inside, kind + 1, mask[spot])
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
        boxes.append([int(left + columns[0]), int(top + rows[0]), int(width), int(height)])
        names.append(classes[kind])
    return scene, mask, {"bbox": boxes, "category": names}


def _places(generator: np.random.Generator, size: int) -> Iterator[tuple[int, int, int]]:
    """Left, top and side of squares that do not overlap."""
    taken: list[tuple[int, int, int]] = []
    for _ in range(int(generator.integers(1, THINGS + 1))):
        for _ in range(TRIES):
            side = int(generator.integers(int(SMALLEST * size), int(LARGEST * size)))
            left, top = (int(one) for one in generator.integers(0, size - side, 2))
            if all(left + side <= x or x + s <= left or top + side <= y or y + s <= top for x, y, s in taken):
                taken.append((left, top, side))
                yield left, top, side
                break
