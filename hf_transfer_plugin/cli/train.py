"""`hf-transfer-plugin train`."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from hf_transfer_plugin.cli.parsing import OneLineParser, quieten, table, typed_names
from hf_transfer_plugin.config import ConfigError, TransferConfig, read_config_file

EXAMPLE = """Example:
  hf-transfer-plugin train --model sentence-transformers/all-MiniLM-L6-v2 --dataset reviews.csv --output_dir my-run

Defaults shown here that differ from Trainer's were measured (benchmarks/strategies.py); tasks that write or guess
words take smaller batches. A typed flag wins.
`--config run.yaml` gives flags as a file, which typed flags override."""


def run(argv: Sequence[str]) -> int:
    """
    Fine-tunes a model and prints the result.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.

    Returns:
        `int`: The exit code.
    """
    config, args, explicit = parse(argv)
    from hf_transfer_plugin.recipes import finetune

    quieten()
    record = finetune(config, args, explicit=explicit, announce=lambda text: print(f"\n{text}\n"))
    rows = [("metric", record.metrics_split), *((k, v) for k, v in record.metrics.items())]
    print(f"\n{table(rows)}\n\nThe run folder is {args.output_dir}; its card is README.md.")
    print(f"Next: hf-transfer-plugin evaluate {args.output_dir} --dataset OTHER_DATA")
    print(f"      hf-transfer-plugin demo {args.output_dir}")
    return 0


def parse(argv: Sequence[str]) -> tuple[TransferConfig, Any, set[str]]:
    """
    Parses flags and the config file.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.

    Returns:
        `tuple`: Configuration, training arguments, and the names of fields that the user gave.

    Raises:
        ConfigError: If a key is unknown, a required flag is missing, or a value is wrong.
    """
    from transformers import HfArgumentParser, Seq2SeqTrainingArguments

    from hf_transfer_plugin.recipes import DEFAULT_ARGUMENTS, default_arguments
    from hf_transfer_plugin.tasks import TASKS

    class Parser(HfArgumentParser, OneLineParser):
        """Transformers' parser with one-sentence errors."""

        def __init__(self, types: Any, **kwargs: Any) -> None:
            super().__init__(types, formatter_class=_Formatter, **kwargs)

    parser = Parser(
        [TransferConfig, Seq2SeqTrainingArguments],
        prog="hf-transfer-plugin train",
        description="Fine-tunes a model on your data. The second half of the flags are Trainer's.",
        epilog=EXAMPLE,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="YAML file of flags")
    parser.set_defaults(**DEFAULT_ARGUMENTS)
    given = _file_values(argv, parser)
    explicit = typed_names(argv) | set(given)
    missing = [
        f"`--{name}` is required but missing." for name in ("model", "dataset", "output_dir") if name not in explicit
    ]
    if missing and not {"-h", "--help"} & set(argv):
        raise ConfigError([*missing, "See `hf-transfer-plugin train --help`."])
    options, unknown = parser.parse_known_args(list(argv))
    if unknown:
        raise ConfigError([f"Unknown flag {unknown[0]!r}. See `hf-transfer-plugin train --help`."])
    values = vars(options)
    if values["load_best_model_at_end"] and values["eval_strategy"] != "no" and "save_strategy" not in explicit:
        values["save_strategy"] = values["eval_strategy"]
    config = TransferConfig(**{f.name: values[f.name] for f in dataclasses.fields(TransferConfig)})
    sort = config.sort_micro_batches
    defaults = default_arguments(TASKS[config.task], config.adapter_spec, sort_micro_batches=sort)
    own = {name: value for name, value in defaults.items() if DEFAULT_ARGUMENTS.get(name) != value}
    values |= {name: value for name, value in own.items() if name not in explicit}
    names = [f.name for f in dataclasses.fields(Seq2SeqTrainingArguments) if f.init]
    try:
        args = Seq2SeqTrainingArguments(**{name: values[name] for name in names if name in values})
    except (ValueError, TypeError) as error:
        raise ConfigError([f"The training arguments do not go together: {str(error).splitlines()[0]}"]) from error
    return config, args, explicit


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the example as it is."""


def _file_values(argv: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Values of `--config`, put into the parser as defaults."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    path = first.parse_known_args(list(argv))[0].config
    values = read_config_file(path) if path else {}
    known = {action.dest for action in parser._actions} - {"help", "config"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError([
            f"Unknown key {key!r} in {path!r}. See `hf-transfer-plugin train --help`." for key in unknown
        ])
    for action in parser._actions:
        if action.dest in values:
            action.required = False
    parser.set_defaults(**values)
    return values
