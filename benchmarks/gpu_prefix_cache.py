"""
What the prefix cache saves on a GPU: milliseconds a step with the cache in memory and on disk, against the same layers
frozen by hand, and the bandwidth from which on reading beats computing.

To be run when a GPU is at hand; it was written on a machine without one, so its first run there checks the script too:
    python -m benchmarks.gpu_prefix_cache                       # about ten minutes
    python -m benchmarks.gpu_prefix_cache --disk DIR --only bert-base --workers 4
    python -m benchmarks.gpu_prefix_cache --tiny --device cpu   # under a minute: does it run at all?
Needs torch, transformers, accelerate, datasets and this package; no network: random weights, random token ids of one
length, bfloat16 autocast over 32-bit weights, AdamW. Writes results/gpu_prefix_cache.json (not with --tiny).

Steps are medians by the clock from the end of one to the end of the next, the device waited for, without the first
epoch, in which nothing is read. *plain*: a plain Trainer with `requires_grad=False`; *eval*: `attach` without the
cache; *full*: all but the embeddings learn.

Break-even. A token of a prefix of L blocks of width h is 2 h bytes to read in 16 bits and about 24 h^2 L FLOP to
compute, so that a device of F FLOP/s is beaten by a place that gives F / (12 h L) bytes a second or more. The formula
takes F of large bfloat16 matrix products; *measured* is bytes of a batch divided by the seconds that its prefix takes
on the device, which is lower the less of F a model gets. *gives*: at what rate the cache's files came to the device
from those places, read from end to end (on disk with the system's copy in memory dropped; steps from disk find that
copy there, as long as memory has room for it).
"""

import argparse
import gc
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Before torch starts the device: one GPU, or Trainer would use DataParallel.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

from benchmarks.gpu_prefix_runs import GIGA, SETTINGS, TINY, Setting, matrix_flops, prefix_seconds, train

RESULTS = Path(__file__).parent / "results" / "gpu_prefix_cache.json"


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(name: str, setting: Setting, frozen: int, flops: float, options: argparse.Namespace) -> dict[str, Any]:
    """
    Args:
        name (`str`):
            Name of the setting.
        setting (`Setting`):
            The model.
        frozen (`int`):
            Blocks that are frozen.
        flops (`float`):
            The device's FLOP/s.
        options (`Namespace`):
            The command line.

    Returns:
        `dict[str, Any]`: Milliseconds of all ways, and the bandwidths.
    """
    line: dict[str, Any] = {"model": name, "frozen": frozen, "layers": setting.layers}
    learning = {}
    for way, depth in (("full", 0), ("plain", frozen), ("eval", frozen)):
        found = train(setting, depth, "plain" if way == "full" else way, None, options)
        line[way], learning[way] = found["ms"], found["learning"]
        free()
    if learning["plain"] != learning["eval"]:
        raise RuntimeError(f"By hand and by `attach` the same parameters must learn, but got {learning}.")
    for place, root in (("memory", options.memory), ("disk", options.disk)):
        with tempfile.TemporaryDirectory(dir=root) as folder:
            line[place] = train(setting, frozen, "cached", Path(folder), options)
        free()
    line["prefix_ms"] = 1e3 * prefix_seconds(setting, frozen, options.device, 3 if options.tiny else 20)
    free()
    line["formula"] = flops / (12 * setting.width * frozen) / GIGA
    # One position of a row is what a head needs; the formula is for whole rows.
    if "bytes_a_batch" in line["memory"]:
        line["measured"] = line["memory"]["bytes_a_batch"] / GIGA / (line["prefix_ms"] / 1e3)
    return line


def table(lines: list[dict[str, Any]]) -> str:
    """A Markdown table of the lines."""
    rows = [
        "| model | frozen blocks | full ms | plain ms | eval ms | memory ms | disk ms | plain / memory | plain / disk "
        "| prefix ms | break-even GB/s: formula | measured | memory gives | disk gives |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for line in lines:
        cached = [line[place] for place in ("memory", "disk")]
        on = [found["report"]["used"] for found in cached]
        shown = [f"{found['ms']:.2f}" if used else "off" for found, used in zip(cached, on, strict=True)]
        ratios = [f"{line['plain'] / found['ms']:.2f}" if used else "" for found, used in zip(cached, on, strict=True)]
        rates = [f"{found.get('gigabytes_a_second', float('nan')):.3g}" for found in cached]
        times = [f"{line[way]:.2f}" for way in ("full", "plain", "eval")]
        ends = [f"{line['prefix_ms']:.2f}", f"{line['formula']:.3g}", f"{line.get('measured', float('nan')):.3g}"]
        cells = [line["model"], f"{line['frozen']} of {line['layers']}", *times, *shown, *ratios, *ends, *rates]
        rows.append(f"| {' | '.join(cells)} |")
        rows += [f"Off: {found['report']['reason']}" for found, used in zip(cached, on, strict=True) if not used]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", default="", help="models whose name holds it")
    parser.add_argument("--memory", default="/dev/shm", help="folder in memory (default: /dev/shm)")
    parser.add_argument("--disk", default=None, help="folder on disk (default: the system's for temporary files)")
    parser.add_argument("--workers", type=int, help="data-loader workers (default: 2, with --tiny 0)")
    parser.add_argument("--steps", type=int, default=40, help="steps of each of the three epochs (default: 40)")
    parser.add_argument("--storage", default="bfloat16", help="how the cache keeps its numbers (default: bfloat16)")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few steps; nothing is kept")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU was found; `--tiny --device cpu` shows whether the script runs")
    if options.tiny:
        options.steps = 4
    if options.workers is None:
        options.workers = 0 if options.tiny else 2
    transformers.utils.logging.set_verbosity_error()
    flops = matrix_flops(options.device, 256 if options.tiny else 8192)
    lines = []
    for name, setting in (TINY if options.tiny else SETTINGS).items():
        for frozen in setting.prefixes() if options.only in name else ():
            lines.append(measure(name, setting, frozen, flops, options))
            print(json.dumps(lines[-1], default=str), flush=True)
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"), "device": device, "matrix_flops": flops,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__}, "lines": lines,
    }  # fmt: skip
    if not options.tiny:
        RESULTS.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")
    print(f"\n{device}, {flops / 1e12:.1f} TFLOP/s in products of bfloat16 matrices\n\n{table(lines)}")


if __name__ == "__main__":
    main()
