"""`hf-transfer-plugin cache`."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hf_transfer_plugin.cli.parsing import parser_for, table

if TYPE_CHECKING:
    from hf_transfer_plugin.prefix_cache.listing import StoreFacts

HEAD = ("name", "model", "cut", "storage", "rows", "size", "last used")


def run(argv: Sequence[str]) -> int:
    """
    Lists prefix caches, or removes them.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.

    Returns:
        `int`: The exit code; 1 if the user does not want them to be removed.
    """
    parser = parser_for(
        "cache",
        "Lists (`ls`) or removes (`clear`) the activations of frozen layers that training has stored. Training makes "
        "anew what it needs.",
        "hf-transfer-plugin cache ls",
    )
    parser.add_argument("action", choices=("ls", "clear"), help="list them, or remove them")
    parser.add_argument("names", nargs="*", help="names from the list (default: all)")
    parser.add_argument("--directory", help="folder that holds them (default: the cache of Hugging Face)")
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    options = parser.parse_args(argv)
    from hf_transfer_plugin.prefix_cache.folders import default_root
    from hf_transfer_plugin.prefix_cache.listing import chosen, clear_stores

    root = Path(options.directory) if options.directory else default_root()
    found = chosen(root, options.names)
    if not found:
        print(f"There are no prefix caches in '{root}'.")
        return 0
    _print_table(found)
    if options.action == "ls":
        print(f"\n{_total(found)} in '{root}'.")
        return 0
    if not options.yes and not _agreed(f"\nRemove {_total(found)} from '{root}'? [y/N] "):
        print("Nothing was removed.")
        return 1
    removed = clear_stores(root, [one.name for one in found])
    print(f"\nRemoved {_total(removed)} from '{root}'.")
    return 0


def _print_table(found: Sequence["StoreFacts"]) -> None:
    from hf_transfer_plugin.prefix_cache.sizes import size_words

    rows = [
        (
            one.name,
            one.model,
            one.cut,
            one.storage,
            f"{one.rows:,}",
            size_words(one.nbytes),
            f"{datetime.fromtimestamp(one.last_used):%Y-%m-%d %H:%M}",
        )
        for one in found
    ]
    print(table([HEAD, *rows]))


def _total(found: Sequence["StoreFacts"]) -> str:
    from hf_transfer_plugin.prefix_cache.sizes import size_words

    caches = "1 prefix cache" if len(found) == 1 else f"{len(found)} prefix caches"
    return f"{caches} with {size_words(sum(one.nbytes for one in found))}"


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in {"y", "yes"}
    except EOFError:
        raise ValueError("Nobody is there to agree to the removal. Add `--yes` to remove without asking.") from None
