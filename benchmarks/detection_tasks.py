"""
A real run for object detection: a small RT-DETR that knows five kinds of clothes learns five others from 300 scenes.

    python -m benchmarks.detection_tasks --data DATA --output RUNS             # makes data, both models, runs and card
    python -m benchmarks.detection_tasks --data DATA --output RUNS --rehearse  # two steps each, nothing is kept

No detector's weights are to be had offline. So a detector with random weights (benchmarks/detection_models.py) first
learns five classes from 3,000 scenes (benchmarks/scenes.py): seven minutes of one processor core. That is the base
model. Then the base learns the five other classes from 300 scenes, whose things it has never seen, and the same
network learns them from random weights, with the same settings: some two minutes each. All three are
`hf-transfer-plugin train` in processes of their own. The record of the transfer, with the figures of the network from
random weights among its baselines, and its card go to model_cards/detection. Needs `pip install ".[detection]"` and
`apt-get install dataset-fashion-mnist`.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.detection_models import write_untrained
from benchmarks.scenes import write_scenes
from hf_transfer_plugin.record import TransferRecord

ROOT = Path(__file__).parents[1]
CARD = ROOT / "model_cards" / "detection"
SIDE = 96
KNOWN = ("t-shirt", "pullover", "coat", "sandal", "bag")
NEW = ("trousers", "dress", "shirt", "sneaker", "ankle boot")
ROWS = {
    "scenes-of-known-clothes": {"train": 3000, "validation": 150, "test": 200},
    "scenes-of-new-clothes": {"train": 300, "validation": 50, "test": 300},
}
BASE, UNTRAINED = "rt-detr-1m-scenes", "rt-detr-1m-untrained"
FLAGS = {
    "task": "object-detection",
    "learning_rate": "5e-4",
    "per_device_train_batch_size": "16",
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "use_cpu": "true",
    "seed": "0",
    "report_to": "none",
    "disable_tqdm": "true",
    "dataset_license": "mit",
}
EPOCHS = {"base": "8", "transfer": "20", "scratch": "20"}


def train(model: Path, data: Path, run: Path, epochs: str, *, rehearse: bool) -> TransferRecord:
    """
    Args:
        model (`Path`):
            The model to start from.
        data (`Path`):
            A folder of scenes.
        run (`Path`):
            The run folder.
        epochs (`str`):
            Passes over the training scenes.
        rehearse (`bool`):
            Two steps only.

    Returns:
        `TransferRecord`: The record of the run; that of an earlier one, where the folder holds it.
    """
    if not (run / "transfer_record.json").is_file():
        flags = FLAGS | {"num_train_epochs": epochs}
        flags |= {"max_steps": "2", "max_train_samples": "40"} if rehearse else {}
        where = ["--model", model, "--dataset", data, "--output_dir", run]
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        command = [sys.executable, "-m", "hf_transfer_plugin", "train", *map(str, where), *words]
        subprocess.run(command, check=True, env=environment())
    return TransferRecord.load(run)


def environment() -> dict[str, str]:
    """
    Returns:
        `dict[str, str]`: The variables of a process that finds the package here, and nothing on the network.
    """
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of models and data")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--rehearse", action="store_true", help="two steps each; nothing is kept")
    options = parser.parse_args()
    for seed, (name, classes) in enumerate(zip(ROWS, (KNOWN, NEW), strict=True), 1):
        if not (options.data / name).is_dir():
            rows = {split: 40 for split in ROWS[name]} if options.rehearse else ROWS[name]
            write_scenes(options.data / name, rows, size=SIDE, seed=seed, classes=classes)
    known, new = (options.data / name for name in ROWS)
    write_untrained(options.data / UNTRAINED, KNOWN, SIDE)
    runs, rehearse = options.output, options.rehearse
    train(options.data / UNTRAINED, known, runs / BASE, EPOCHS["base"], rehearse=rehearse)
    scratch = train(options.data / UNTRAINED, new, runs / "scratch", EPOCHS["scratch"], rehearse=rehearse)
    record = train(runs / BASE, new, runs / "transfer", EPOCHS["transfer"], rehearse=rehearse)
    for name, value in scratch.metrics.items():
        print(f"{name}: {value:.3f} from random weights, {record.metrics[name]:.3f} from {BASE}")
    if rehearse:
        return
    record.baselines["from_scratch"] = {**scratch.metrics, "seconds": scratch.seconds["train"]}
    record.save(CARD)
    model = ["--model", "hf-transfer-plugin/rt-detr-1m-clothes"]
    command = [sys.executable, "-m", "hf_transfer_plugin", "card", str(CARD), *model]
    subprocess.run(command, check=True, env=environment())


if __name__ == "__main__":
    main()
