"""`hf-transfer-plugin predict`."""

from collections.abc import Sequence

from hf_transfer_plugin.cli.parsing import add_columns, given_columns, parser_for, quieten


def run(argv: Sequence[str]) -> int:
    """
    Writes what the model of a run answers to the rows of a file.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.

    Returns:
        `int`: The exit code.
    """
    parser = parser_for(
        "predict",
        "Writes what the model of a run answers to every row of a file, with probabilities where there are.",
        "hf-transfer-plugin predict quickstart-run new_reviews.csv --output predictions.jsonl",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("file", help="rows without labels: Hub id, file or folder")
    parser.add_argument("--output", default="predictions.jsonl", help="new .jsonl or .csv file (%(default)s)")
    parser.add_argument("--split", help="split to answer (default: test, or the only one)")
    parser.add_argument("--batch_size", type=int, help="rows at a time")
    parser.add_argument("--base", help="Hub id or folder of the adapter's base (default: the one that the run names)")
    add_columns(parser)
    options = parser.parse_args(argv)
    from hf_transfer_plugin.recipes import predict_run

    quieten()
    rows = predict_run(
        options.run,
        options.file,
        options.output,
        split=options.split,
        batch_size=options.batch_size,
        base=options.base,
        **given_columns(options),
    )
    print(f"\n{rows:,} answers are in {options.output}.")
    return 0
