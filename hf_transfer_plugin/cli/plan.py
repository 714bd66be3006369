"""`hf-transfer-plugin plan`."""

from collections.abc import Sequence

from hf_transfer_plugin.cli.parsing import parser_for


def run(argv: Sequence[str]) -> int:
    """
    Prints the phases of a strategy and their cost.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.

    Returns:
        `int`: The exit code.
    """
    parser = parser_for(
        "plan",
        "Shows from which step which layer groups learn, and what a step costs; nothing is trained.",
        "hf-transfer-plugin plan google-bert/bert-base-uncased --strategy gradual-unfreezing --rows 2000",
    )
    parser.add_argument("model", help="Hub id or folder; only its config is read")
    parser.add_argument("--strategy", help="a name or JSON; the measured default without it")
    parser.add_argument("--adapter", help="a name or JSON, e.g. lora")
    parser.add_argument(
        "--task", default="text-classification", help="task of the head (default: text-classification)"
    )
    parser.add_argument("--rows", type=int, default=2000, help="training rows (default: 2000)")
    parser.add_argument("--epochs", type=float, default=3.0, help="epochs (default: 3)")
    parser.add_argument("--batch_size", type=int, default=16, help="rows of a batch (default: 16)")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row (default: 128)")
    parser.add_argument("--checkpointing", action="store_true", help="with activation checkpointing")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    options = parser.parse_args(argv)
    for name in ("rows", "epochs", "batch_size", "length"):
        if getattr(options, name) <= 0:
            parser.error(f"`--{name}` must be positive, but got {getattr(options, name)}")
    from hf_transfer_plugin.adapters import attach_adapter
    from hf_transfer_plugin.config import TransferConfig
    from hf_transfer_plugin.planning import plan
    from hf_transfer_plugin.recipes import build_strategy, sketch_model

    config = TransferConfig(
        model=options.model, dataset="-", task=options.task, strategy=options.strategy, adapter=options.adapter
    )
    strategy, _ = build_strategy(config)
    model = sketch_model(options.model, options.task, trust_remote_code=options.trust_remote_code)
    if config.adapter_spec is not None:
        model = attach_adapter(model, config.adapter_spec)
    steps = max(int(-(-options.rows // options.batch_size) * options.epochs), 1)
    print(
        plan(
            model,
            strategy,
            max_steps=steps,
            epochs=options.epochs,
            batch_size=options.batch_size,
            length=options.length,
            checkpointing=options.checkpointing,
        )
    )
    return 0
