"""The door: parse, call one function, print. Commands are imported only when they are called."""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

COMMANDS = {
    "quickstart": "Fine-tune a real model on real data, offline, in minutes.",
    "inspect": "List the layer groups of a model.",
    "plan": "Show what a strategy trains when, and what it costs, before training.",
    "train": "Fine-tune a model on your data.",
    "evaluate": "Measure a trained run on other data.",
}
USAGE = "usage: hf-transfer-plugin COMMAND [options]"
EXAMPLE = """
Example:
  hf-transfer-plugin train --model sentence-transformers/all-MiniLM-L6-v2 --dataset reviews.csv --output_dir my-run

`hf-transfer-plugin COMMAND --help` explains a command."""
PACKAGE = str(Path(__file__).parents[1])


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a command.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments; those of the process without it.

    Returns:
        `int`: 0, or 2 for a fault that the user can mend, or 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{USAGE}\n\nTransfer learning for Hugging Face models.\n\nCommands:")
        print("\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items()) + f"\n{EXAMPLE}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return _fail(f"There is no command {name!r}; the commands are {', '.join(COMMANDS)}.")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return import_module(f"{__name__}.{name}").run(rest)
    except KeyboardInterrupt as stop:
        return _interrupted(stop)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        # What this package raises is a sentence for the user; anything else is a bug and shows its traceback.
        frames = traceback.extract_tb(error.__traceback__)
        if not frames or not frames[-1].filename.startswith(PACKAGE):
            raise
        return _fail(str(error))


def _fail(message: str) -> int:
    if int(os.environ.get("RANK", "0")) == 0:
        print("\n".join(f"error: {line}" for line in message.splitlines()), file=sys.stderr)
    return 2


def _interrupted(stop: KeyboardInterrupt) -> int:
    if stop.args:
        print(
            f"\nStopped after step {stop.args[0]}; the checkpoint is saved. Continue with the same command and "
            "`--resume_from_checkpoint true`.",
            file=sys.stderr,
        )
    return 130
