"""`hf-transfer-plugin card`."""

from collections.abc import Sequence
from pathlib import Path

from hf_transfer_plugin.cli.parsing import parser_for


def run(argv: Sequence[str]) -> int:
    """
    Renders the card of a run again.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.

    Returns:
        `int`: The exit code.
    """
    parser = parser_for(
        "card",
        "Renders README.md, the model card, and the plots of a run again from its transfer_record.json.",
        "hf-transfer-plugin card quickstart-run --model jane/movie-reviews",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument(
        "--model", default=".", help="repository that the code on the card loads (default: its folder)"
    )
    parser.add_argument("--print", action="store_true", help="print the card and write nothing")
    options = parser.parse_args(argv)
    from hf_transfer_plugin.hub import checked_repo, render_card, render_plots
    from hf_transfer_plugin.record import TransferRecord

    record = TransferRecord.load(options.run)
    assert record.path is not None
    if options.model != ".":
        checked_repo(options.model)
    if options.print:
        print(render_card(record, model=options.model))
        return 0
    folder = Path(record.path).parent
    render_plots(record, folder)
    render_card(record, folder / "README.md", model=options.model)
    print(f"Written: {folder / 'README.md'}")
    return 0
