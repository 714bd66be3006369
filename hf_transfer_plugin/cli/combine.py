"""`hf-transfer-plugin combine`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_transfer_plugin.cli.parsing import add_columns, given_columns, parser_for, quieten, table


def run(argv: Sequence[str]) -> int:
    """
    Combines the adapters of runs and prints what came of it.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.

    Returns:
        `int`: The exit code.
    """
    parser = parser_for(
        "combine",
        "Makes one LoRA of those of several runs on one base, with the same labels: their changes are weighed, their "
        "heads averaged.",
        "hf-transfer-plugin combine run-a run-b --weights 0.7 0.3 --output_dir both --dataset reviews.csv",
    )
    parser.add_argument("runs", nargs="+", help="run folders with LoRA adapters; they stay as they are")
    parser.add_argument("--weights", type=float, nargs="+", required=True, help="a weight for each run")
    parser.add_argument(
        "--combination_type",
        default="cat",
        help="cat (exact, ranks add up; the default), svd (cut to --rank), linear (same ranks; factors are added), "
        "ties, dare_linear, dare_ties, magnitude_prune (same ranks), or one of these four with _svd after it",
    )
    parser.add_argument("--rank", type=int, help="rank of the types with svd (default: the largest of the runs)")
    parser.add_argument(
        "--density", type=float, default=0.5, help="share of values that ties, dare and magnitude_prune keep"
    )
    parser.add_argument("--output_dir", required=True, help="new run folder")
    parser.add_argument("--base", help="Hub id or folder of the base (default: the one that all runs name)")
    parser.add_argument("--dataset", help="measure the runs and the new one on this: Hub id, file or folder")
    add_columns(parser)
    options = parser.parse_args(argv)
    from hf_transfer_plugin.prefix_cache.sizes import size_words
    from hf_transfer_plugin.recipes.derived_runs import combine_runs

    quieten()
    told = combine_runs(
        options.runs,
        options.weights,
        options.output_dir,
        options.combination_type,
        rank=options.rank,
        density=options.density,
        base=options.base,
        dataset=options.dataset,
        **given_columns(options),
    )
    shares = ", ".join(
        f"{weight:g} of {Path(name).name}" for weight, name in zip(options.weights, options.runs, strict=True)
    )
    print(f"Combined by {options.combination_type}: {shares}.")
    print(f"The adapter in {options.output_dir} has rank {told['rank']} and {size_words(told['bytes'])}.")
    print_measured(told["measured"])
    return 0


def print_measured(measured: Mapping[str, Mapping[str, float]]) -> None:
    """
    Prints metrics of runs side by side, or how to get them.

    Args:
        measured (`Mapping[str, Mapping[str, float]]`):
            Run -> metrics; the new run last.
    """
    if not measured:
        print("Its metrics are not known: add `--dataset` here, or run `hf-transfer-plugin evaluate`.")
        return
    names = list(next(iter(measured.values())))
    rows = [(name, *(values.get(name, "") for values in measured.values())) for name in names]
    print(f"\n{table([('metric', *(Path(run).name for run in measured)), *rows])}")
