"""`hf-transfer-plugin evaluate`."""

import json
from collections.abc import Sequence
from typing import Any

from hf_transfer_plugin.cli.parsing import add_columns, given_columns, parser_for, quieten, table

SHORT = 100
SAID = {"iou": "IoU", "f1": "F1", "average_precision": "AP"}


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
    parser.add_argument("--batch_size", type=int, help="rows at a time")
    parser.add_argument("--base", help="Hub id or folder of the adapter's base (default: the one that the run names)")
    add_columns(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    from hf_transfer_plugin.hub.media_facts import COUNTED
    from hf_transfer_plugin.recipes import evaluate_run
    from hf_transfer_plugin.record import TransferRecord

    quieten()
    found = evaluate_run(
        options.run,
        options.dataset,
        split=options.split,
        batch_size=options.batch_size,
        base=options.base,
        **given_columns(options),
    )
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    _print(found, COUNTED.get(TransferRecord.load(options.run).task, "rows"))
    return 0


def _print(found: dict[str, Any], counted: str) -> None:
    intervals = {name: f"{low:.3f} to {high:.3f}" for name, (low, high) in found.get("intervals", {}).items()}
    rows = [(name, value, intervals.get(name, "")) for name, value in found["metrics"].items()]
    print(f"\n{table([('metric', 'value', '95% interval' if intervals else ''), *rows])}")
    print(f"\non {found['rows']:,} rows ({found['split']}).")
    if found.get("per_class"):
        # A class that does not occur lacks figures that others have.
        names = [name for name in max(found["per_class"].values(), key=len) if name != "support"]
        head = ("class", *(SAID.get(name, name) for name in names), counted)
        lines = [(n, *(v.get(name, "") for name in names), v["support"]) for n, v in found["per_class"].items()]
        print(f"\n{table([head, *lines])}")
    if found.get("calibration"):
        print(f"\nExpected calibration error: {found['calibration']['ece']:.3f}.")
    for title, name in (("Most confident errors", "errors"), ("Samples", "samples")):
        if found.get(name):
            print(f"\n{title}:")
            for row in found[name]:
                told = {name: value for name, value in row.items() if not str(value).startswith("data:")}
                print("  " + ", ".join(f"{k}: {_short(v)}" for k, v in told.items()))


def _short(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"
