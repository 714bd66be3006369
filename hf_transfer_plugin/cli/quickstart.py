"""`hf-transfer-plugin quickstart`."""

import os
from collections.abc import Sequence

from hf_transfer_plugin.cli.parsing import parser_for, quieten, table


def run(argv: Sequence[str]) -> int:
    """
    Runs the quickstart and prints its table.

    Args:
        argv (`Sequence[str]`):
            Arguments after the command.

    Returns:
        `int`: The exit code.
    """
    parser = parser_for(
        "quickstart",
        "Fine-tunes all-MiniLM-L6-v2 on Rotten Tomatoes reviews: no network, no account, minutes on two cores.",
        "hf-transfer-plugin quickstart --rows 500 --output_dir first-run",
    )
    parser.add_argument("--rows", type=int, default=2000, help="training rows (default: 2000)")
    parser.add_argument("--full", action="store_true", help="all 6,824 training rows")
    parser.add_argument("--strategy", help="another strategy than the default, e.g. full")
    parser.add_argument("--learning_rates", help="rates per layer group, a name or JSON")
    parser.add_argument("--learning_rate", type=float, help="another learning rate than the default")
    parser.add_argument("--epochs", type=float, default=3.0, help="epochs (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    parser.add_argument("--output_dir", default="quickstart-run", help="run folder (default: quickstart-run)")
    parser.add_argument("--resume_from_checkpoint", help="true, or a checkpoint, to continue a stopped run")
    options = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from hf_transfer_plugin.recipes import FULL_ROWS, run_quickstart

    quieten()

    extra = {n: v for n in ("learning_rate", "resume_from_checkpoint") if (v := getattr(options, n)) is not None}
    record = run_quickstart(
        options.output_dir,
        rows=FULL_ROWS if options.full else options.rows,
        strategy=options.strategy,
        learning_rates=options.learning_rates,
        epochs=options.epochs,
        seed=options.seed,
        announce=lambda text: print(f"\n{text}\n"),
        **extra,
    )
    rows: list[tuple[str | float, ...]] = [("", "accuracy", "macro F1", "seconds")]
    names = {"majority": "commonest class", "linear_probe": "linear probe on frozen features"}
    rows += [(names[k], v["accuracy"], v["f1_macro"], f"{v['seconds']:.1f}") for k, v in record.baselines.items()]
    rows.append((
        "fine-tuned model",
        record.metrics["accuracy"],
        record.metrics["f1_macro"],
        f"{record.seconds['train']:.1f}",
    ))
    folder = options.output_dir
    print(f"\n{table(rows)}\n\non {record.dataset['splits']['test']:,} test rows. The run folder is {folder}:")
    weights = "model.safetensors" if record.adapter is None else "adapter_model.safetensors"
    print(f"{weights}, tokenizer, transfer_record.json, README.md (the card), schedule.png.\n\nNext:")
    print(f"  hf-transfer-plugin demo {folder}")
    print(f"  hf-transfer-plugin push {folder} USER/NAME --space")
    print(f"  hf-transfer-plugin evaluate {folder} --dataset your_reviews.csv")
    if record.adapter is not None:
        print(f"  hf-transfer-plugin merge {folder} {folder}-merged")
        return 0
    print(f"  hf-transfer-plugin inspect {folder}")
    print(f"  hf-transfer-plugin train --model {folder} --dataset your_reviews.csv --output_dir my-run")
    return 0
