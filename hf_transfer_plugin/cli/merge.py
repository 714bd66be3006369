"""`hf-transfer-plugin merge`."""

from collections.abc import Sequence

from hf_transfer_plugin.cli.parsing import parser_for, quieten


def run(argv: Sequence[str]) -> int:
    """
    Merges the adapter of a run and prints what was checked.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.

    Returns:
        `int`: The exit code.
    """
    parser = parser_for(
        "merge",
        "Merges the adapter of a run into its base: a run that loads like any model, without PEFT. Its answers are "
        "compared with the adapter's.",
        "hf-transfer-plugin merge lora-run merged-run",
    )
    parser.add_argument("run", help="run folder with an adapter; it stays as it is")
    parser.add_argument("output", help="new run folder")
    parser.add_argument("--base", help="Hub id or folder of the base (default: the one that the run names)")
    parser.add_argument(
        "--unquantised", action="store_true", help="merge what was trained over a quantised base into the saved base"
    )
    options = parser.parse_args(argv)
    from hf_transfer_plugin.prefix_cache.sizes import size_words
    from hf_transfer_plugin.recipes.adapter_runs import merge_run

    quieten()
    told = merge_run(options.run, options.output, base=options.base, unquantised=options.unquantised)
    before, after = map(size_words, told["bytes"])
    print(f"Merged {told['layers']} layers in {told['precision']} into {options.output}.")
    print(f"Outputs differ by {told['difference']:.2g} at most (allowed: {told['tolerance']:.2g}).")
    print(f"Weights: {before} as an adapter, {after} merged.")
    return 0
