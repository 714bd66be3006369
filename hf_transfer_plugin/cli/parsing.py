"""Parsers whose errors are one sentence."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from hf_transfer_plugin.config import ConfigError


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports a fault without printing hundreds of flags."""

    def error(self, message: str) -> NoReturn:
        """
        Args:
            message (`str`):
                What is wrong.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError([f"{message}. Run `{self.prog} --help` for the flags."])


def parser_for(command: str, description: str, example: str) -> OneLineParser:
    """
    Args:
        command (`str`):
            The command.
        description (`str`):
            What it does.
        example (`str`):
            A command line that works.

    Returns:
        `OneLineParser`: A parser with both in its help.
    """
    return OneLineParser(
        prog=f"hf-transfer-plugin {command}",
        description=description,
        epilog=f"Example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


ROLES = {
    "text": "column of the text, or of the words",
    "text_pair": "column of the second text",
    "label": "column of the label, or of the words' tags",
    "target": "column of the summary, translation or answer",
    "question": "column of the question",
    "context": "column of the text that holds the answer",
    "answers": "column of the answers",
    "messages": "column of conversations",
    "negative": "column of a text that does not belong",
    "image": "column of the image",
    "audio": "column of the sound",
    "objects": "column of the objects in an image",
}


def add_columns(parser: argparse.ArgumentParser) -> None:
    """
    Adds the flags that name columns; without them the columns are those of the training, or guessed.

    Args:
        parser (`argparse.ArgumentParser`):
            The parser.
    """
    for role, text in ROLES.items():
        parser.add_argument(f"--{role}_column", help=text)
    parser.add_argument("--skip_unreadable", action="store_true", help="leave out images and sounds that do not open")


def given_columns(options: argparse.Namespace) -> dict[str, Any]:
    """
    Args:
        options (`argparse.Namespace`):
            Of a parser with the flags of [`add_columns`].

    Returns:
        `dict[str, Any]`: The columns, `None` where they are not given, and `skip_unreadable` where it is.
    """
    skip = {"skip_unreadable": True} if options.skip_unreadable else {}
    return {f"{role}_column": getattr(options, f"{role}_column") for role in ROLES} | skip


def quieten() -> None:
    """Keeps Transformers' notes on newly made heads and the like off the screen; errors stay."""
    from transformers.utils import logging

    logging.set_verbosity_error()


def typed_names(argv: Sequence[str]) -> set[str]:
    """
    Args:
        argv (`Sequence[str]`):
            The command line.

    Returns:
        `set[str]`: Names of the flags in it, without dashes.
    """
    return {word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}


def table(rows: Sequence[Sequence[Any]]) -> str:
    """
    Args:
        rows (`Sequence[Sequence[Any]]`):
            The first is the head.

    Returns:
        `str`: Columns side by side, the first to the left, the others to the right.
    """
    texts = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in texts
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
