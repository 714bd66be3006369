"""Real images that ordinary packages carry, written as a folder with one folder for each class."""

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILES = {"train": "train", "test": "t10k"}
NAMES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SIDE, IMAGES_HEAD, LABELS_HEAD = 28, 16, 8  # pixels; bytes before the values


def read_fashion(split: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Reads Fashion-MNIST (MIT) from Debian's package.

    Args:
        split (`str`):
            `"train"`, 60,000 rows, or `"test"`, 10,000.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Images of shape `(rows, 28, 28)`, and class numbers.

    Raises:
        ImportError: If the package is not installed.
    """
    if not FOLDER.is_dir():
        raise ImportError(f"Fashion-MNIST is expected in {FOLDER}. Run `apt-get install dataset-fashion-mnist`.")
    images = gzip.decompress((FOLDER / f"{FILES[split]}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((FOLDER / f"{FILES[split]}-labels-idx1-ubyte.gz").read_bytes())
    return (
        np.frombuffer(images, np.uint8, offset=IMAGES_HEAD).reshape(-1, SIDE, SIDE),
        np.frombuffer(labels, np.uint8, offset=LABELS_HEAD),
    )


def write_fashion(folder: Path, rows: dict[str, int], seed: int = 0) -> None:
    """
    Writes rows drawn by seed, the same number of each class, as `SPLIT/CLASS/NUMBER.png`.

    Args:
        folder (`Path`):
            Where they go.
        rows (`dict[str, int]`):
            Split -> how many; of a validation split they are other rows of the training file than those of train.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draw.
    """
    taken: Counter[tuple[str, int]] = Counter()
    for split, count in rows.items():
        source = "test" if split == "test" else "train"
        images, labels = read_fashion(source)
        for number, name in enumerate(NAMES):
            order = np.random.default_rng(seed).permutation(np.flatnonzero(labels == number))
            start = taken[source, number]
            chosen = order[start : start + count // len(NAMES)]
            taken[source, number] += len(chosen)
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for row in chosen:
                Image.fromarray(images[row]).save(place / f"{row}.png")
