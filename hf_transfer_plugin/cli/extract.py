"""`hf-transfer-plugin extract`."""

from collections import Counter
from collections.abc import Iterable, Sequence

from hf_transfer_plugin.cli.combine import print_measured
from hf_transfer_plugin.cli.parsing import add_columns, given_columns, parser_for, quieten, table

SHOWN = 12


def run(argv: Sequence[str]) -> int:
    """
    Makes a LoRA of a run that was trained in full, and prints what it keeps and loses.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.

    Returns:
        `int`: The exit code.
    """
    parser = parser_for(
        "extract",
        "Makes a small LoRA run of one that was trained in full, by singular values of what training changed, and "
        "tells what it loses.",
        "hf-transfer-plugin extract full-run lora-run --energy 0.9 --dataset reviews.csv",
    )
    parser.add_argument("run", help="run folder with a whole model; it stays as it is")
    parser.add_argument("output", help="new run folder")
    parser.add_argument("--energy", type=float, help="share of each layer's change to keep (default: 0.9)")
    parser.add_argument("--rank", type=int, help="the same rank for all layers instead")
    parser.add_argument("--base", help="Hub id or folder that the run started from (default: the one that it names)")
    parser.add_argument("--dataset", help="measure both runs on this: Hub id, file or folder")
    add_columns(parser)
    options = parser.parse_args(argv)
    from hf_transfer_plugin.prefix_cache.sizes import size_words
    from hf_transfer_plugin.recipes.derived_runs import extract_run

    quieten()
    told = extract_run(
        options.run,
        options.output,
        energy=options.energy,
        rank=options.rank,
        base=options.base,
        dataset=options.dataset,
        **given_columns(options),
    )
    layers = sorted(told["modules"].items(), key=lambda item: -item[1]["change"])
    rows = [(name, one["change"], one["rank"], f"{one['energy']:.1%}") for name, one in layers[:SHOWN]]
    print(f"\n{table([('layer', 'change', 'rank', 'kept'), *rows])}")
    if len(layers) > SHOWN:
        ranks = [one["rank"] for _, one in layers]
        print(f"and {len(layers) - SHOWN} more layers; ranks from {min(ranks)} to {max(ranks)}.")
    print(f"\nMissing of all changes: {told['relative_error']:.1%} of their norm.")
    gone = sum(change**2 for change in told["lost"].values())
    all_changes = gone + sum(one["change"] ** 2 for one in told["modules"].values())
    print(f"Taken over whole: {_kinds(told['whole'])}.")
    print(f"Lost: {_kinds(told['lost'])}, {(gone / all_changes) ** 0.5:.1%} of the change.")
    before, after = map(size_words, told["bytes"])
    print(
        f"{told['trainable_parameters']:,} of {told['parameters']:,} parameters ({told['share']:.1%}); {after} in "
        f"{options.output} instead of {before}."
    )
    if told["share"] >= 1:
        print("That is no smaller than the model. Keep less with `--energy`, or name a `--rank`.")
    print_measured(told["measured"])
    return 0


def _kinds(names: Iterable[str]) -> str:
    """The last parts of the names, each once, with how many there are."""
    ends = Counter(name.rpartition(".")[2] if not name.endswith("weight") else name for name in names)
    return ", ".join(f"{count} {end}" if count > 1 else end for end, count in ends.items()) or "nothing"
