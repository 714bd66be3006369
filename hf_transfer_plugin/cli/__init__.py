"""The door: parse, call one function, print. Commands are imported only when they are called."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from warnings import catch_warnings, simplefilter

from hf_transfer_plugin._optional import torchvision_fault

COMMANDS = {
    "quickstart": "Fine-tune a real model on real data, offline, in minutes.",
    "inspect": "List the layer groups of a model.",
    "plan": "Show what a strategy trains when, and what it costs, before training.",
    "train": "Fine-tune a model on your data.",
    "evaluate": "Measure a trained run on other data.",
    "predict": "Write what a trained run answers to new rows.",
    "merge": "Merge the adapter of a run into its base.",
    "combine": "Make one LoRA of those of several runs.",
    "extract": "Make a LoRA run of one that was trained in full.",
    "card": "Render the model card of a run again.",
    "push": "Push a run, and perhaps its demo, to the Hub.",
    "demo": "Try the model of a run on a page in your browser.",
    "cache": "List or remove the stored activations of frozen layers.",
}
USAGE = "usage: hf-transfer-plugin COMMAND [options]"
EXAMPLE = """
Example:
  hf-transfer-plugin train --model sentence-transformers/all-MiniLM-L6-v2 --dataset reviews.csv --output_dir my-run

`hf-transfer-plugin COMMAND --help` explains a command."""
PACKAGE = str(Path(__file__).parents[1])
PATIENCE = 5.0


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
        return _fail(f"There is no command {name!r}; the commands are {', '.join(COMMANDS)}.") if _tells() else 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with _one_voice():
        try:
            return import_module(f"{__name__}.{name}").run(rest)
        except KeyboardInterrupt as stop:
            return _interrupted(stop)
        except Exception as error:
            if not _tells():
                return 2
            fault = torchvision_fault() if isinstance(error, ImportError) else ""
            if fault:
                return _fail(fault)
            if not _is_sentence(error):
                raise
            return _fail(str(error))


@contextmanager
def _one_voice() -> Iterator[None]:
    """Of the processes of a launcher, only the first prints, warns and shows progress; any may tell a fault."""
    if int(os.environ.get("RANK", "0")) == 0:
        yield
        return
    root, level, before = logging.getLogger(), logging.getLogger().level, dict(os.environ)
    bars = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    quiet = {**dict.fromkeys(bars, "1"), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), catch_warnings():
        simplefilter("ignore")
        root.setLevel(logging.ERROR)
        os.environ |= quiet
        try:
            yield
        finally:
            root.setLevel(level)
            for name in quiet:
                os.environ.pop(name, None)
            os.environ |= {name: before[name] for name in quiet if name in before}


def _tells() -> bool:
    """Whether a fault is for this process to tell; the others leave after it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return int(os.environ.get("RANK", "0")) == 0
    from hf_transfer_plugin.callbacks.ranks import tells_faults

    if tells_faults():
        return True
    # A launcher ends all processes as soon as one of them has failed, also the one that is about to tell why.
    time.sleep(PATIENCE)
    return False


def _is_sentence(error: Exception) -> bool:
    """What this package raises is a sentence for the user; anything else is a bug and shows its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    known = isinstance(error, ValueError | TypeError | ImportError | RuntimeError)
    return known and bool(frames) and frames[-1].filename.startswith(PACKAGE)


def _fail(message: str) -> int:
    print("\n".join(f"error: {line}" for line in message.splitlines()), file=sys.stderr)
    return 2


def _interrupted(stop: KeyboardInterrupt) -> int:
    if stop.args and _tells():
        print(
            f"\nStopped after step {stop.args[0]}; the checkpoint is saved. Continue with the same command and "
            "`--resume_from_checkpoint true`.",
            file=sys.stderr,
        )
    return 130
