"""`hf-transfer-plugin inspect`."""

from collections.abc import Sequence

from hf_transfer_plugin.cli.parsing import parser_for


def run(argv: Sequence[str]) -> int:
    """
    Prints the layer groups of a model.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.

    Returns:
        `int`: The exit code.
    """
    parser = parser_for(
        "inspect",
        "Lists the layer groups of a model, input first, with their parameters and the rule that found them.",
        "hf-transfer-plugin inspect google-bert/bert-base-uncased --task text-classification",
    )
    parser.add_argument("model", help="Hub id or folder; only its config is read")
    parser.add_argument("--adapter", help="with an adapter, a name or JSON, e.g. lora")
    parser.add_argument("--task", help="with the head of this task, instead of the head that the model was saved with")
    parser.add_argument("--pattern", action="append", help="a regular expression for a group; repeat, input first")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    options = parser.parse_args(argv)
    from hf_transfer_plugin.adapters import attach_adapter
    from hf_transfer_plugin.layers import discover_layer_groups
    from hf_transfer_plugin.recipes import sketch_model

    model = sketch_model(options.model, options.task, trust_remote_code=options.trust_remote_code)
    name = type(model).__name__
    if options.adapter:
        model = attach_adapter(model, options.adapter)
    print(f"{name} of {options.model}\n{discover_layer_groups(model, options.pattern)}")
    return 0
