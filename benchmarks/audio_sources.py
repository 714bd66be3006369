"""
Real sounds that an ordinary package carries: the letters and syllables of KLettres, in twenty languages.

    apt install klettres-data
    python -m benchmarks.audio_sources DATA         # writes DATA/spoken-languages and DATA/spoken-syllables

The recordings (GPL-2+, KLettres) stay where the package put them; what is written are lists of their paths. Every
language was recorded by one person, in one room: who tells the languages apart may do so by voice and microphone, and
who learns to spell has heard one voice. What is measured on them is that, and no more.
"""

import argparse
import csv
import random
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

SOUNDS = Path("/usr/share/klettres")
SPLITS = {"test": 0.2, "validation": 0.1}
SYLLABLES = "ml"  # Malayalam: more sounds than any other language has there


class Sound(NamedTuple):
    """One recording: its language, what is said in it, and its file."""

    language: str
    text: str
    file: Path


def read_sounds(folder: Path = SOUNDS) -> list[Sound]:
    """
    Args:
        folder (`Path`, *optional*):
            Where the package lies.

    Returns:
        `list[Sound]`: The letters and syllables that have a recording.

    Raises:
        ImportError: If the package is not installed.
    """
    found = []
    for listed in sorted(folder.glob("*/sounds.xml")):
        for sound in ElementTree.parse(listed).getroot().iter("sound"):
            file = folder / sound.get("file", "")
            if file.is_file() and sound.get("name"):
                found.append(Sound(listed.parent.name, str(sound.get("name")), file))
    if not found:
        raise ImportError(
            f"The sounds of KLettres are needed, but {str(folder)!r} has none: `apt install klettres-data`."
        )
    return list({sound.file: sound for sound in found}.values())


def write_lists(rows: list[Sound], folder: Path, column: str, *, seed: int = 0) -> dict[str, int]:
    """
    Writes a CSV file for each split, drawn apart within each language.

    Args:
        rows (`list[Sound]`):
            The recordings.
        folder (`Path`):
            Where to write.
        column (`str`):
            `"label"` for their languages, `"text"` for what is said.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draw.

    Returns:
        `dict[str, int]`: Rows of each split.
    """
    by_language = defaultdict(list)
    for row in rows:
        by_language[row.language].append(row)
    splits: dict[str, list[Sound]] = defaultdict(list)
    for language in sorted(by_language):
        drawn = random.Random(seed).sample(by_language[language], len(by_language[language]))
        for split, share in SPLITS.items():
            taken = round(share * len(by_language[language]))
            splits[split] += drawn[:taken]
            drawn = drawn[taken:]
        splits["train"] += drawn
    folder.mkdir(parents=True, exist_ok=True)
    for split, kept in splits.items():
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["audio", column])
            writer.writerows((row.file, row.language if column == "label" else row.text) for row in kept)
    return {split: len(kept) for split, kept in splits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the lists")
    options = parser.parse_args()
    rows = read_sounds()
    spoken = [row for row in rows if row.language == SYLLABLES]
    for name, kept, column in (("spoken-languages", rows, "label"), ("spoken-syllables", spoken, "text")):
        print(name, write_lists(kept, options.folder / name, column))


if __name__ == "__main__":
    main()
