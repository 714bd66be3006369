"""`hf-transfer-plugin evaluate`."""

import json
from collections.abc import Sequence

from hf_transfer_plugin.cli.parsing import parser_for, quieten, table


def run(argv: Sequence[str]) -> int:
    """
    Measures a run on other data and prints the metrics.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.

    Returns:
        `int`: The exit code.
    """
    parser = parser_for(
        "evaluate",
        "Measures the model of a run on a labelled dataset.",
        "hf-transfer-plugin evaluate quickstart-run --dataset reviews.csv",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("--dataset", required=True, help="Hub id, file or folder")
    parser.add_argument("--split", help="split to measure on (default: test, or the only one)")
    parser.add_argument("--text_column", help="column of the text")
    parser.add_argument("--text_pair_column", help="column of the second text")
    parser.add_argument("--label_column", help="column of the label")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    from hf_transfer_plugin.recipes import evaluate_run

    quieten()

    names = ("dataset", "split", "text_column", "text_pair_column", "label_column")
    found = evaluate_run(options.run, **{name: getattr(options, name) for name in names})
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    print(
        f"\n{table([('metric', 'value'), *found['metrics'].items()])}\n\non {found['rows']:,} rows ({found['split']})."
    )
    if "per_class" in found:
        head = ("class", "precision", "recall", "F1", "rows")
        rows = [(n, v["precision"], v["recall"], v["f1"], v["support"]) for n, v in found["per_class"].items()]
        print(f"\n{table([head, *rows])}")
    return 0
