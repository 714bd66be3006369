"""
What filling the prefix cache costs: MiniLM (6 layers, 384 wide) over rows of Rotten Tomatoes, all layers frozen.

    python -m benchmarks.prefix_fill                        # about five minutes; writes results/prefix_fill.json
    python -m benchmarks.prefix_fill --rows 48 --rounds 1   # a look; nothing is kept

Processor time and clock for 1,000 rows, digests and writing included: in float32 and in bfloat16, compiled (the layers
by themselves, for any length) and not, rows sorted by length and as they come, 16 rows and 32 at a time. Each round
takes every way once, in turning order, into a store of its own; given are medians. Compiling is counted apart, with
the rows after which it has paid, and so is what bfloat16 is off by above each number of layers.

One thread: this is for ratios. Compilers work in processes of their own, whose time is counted.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# A compilation that is found in a cache, or is shared by processes, says nothing of its time.
os.environ |= {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}

import torch
import transformers
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed

from benchmarks.prefix_cache_runs import BATCH, model_folder
from benchmarks.text_sources import read_reviews
from hf_transfer_plugin import discover_layer_groups, freeze_first
from hf_transfer_plugin.layers.probe import untouched
from hf_transfer_plugin.prefix_cache.collating import Shelf
from hf_transfer_plugin.prefix_cache.fill_precision import FillPrecision
from hf_transfer_plugin.prefix_cache.filling import put
from hf_transfer_plugin.prefix_cache.passage import Catcher
from hf_transfer_plugin.prefix_cache.proving import Place, on_device
from hf_transfer_plugin.prefix_cache.rows import row_digests, row_spans
from hf_transfer_plugin.prefix_cache.stages import Keeping, Stage, make_stage
from hf_transfer_plugin.prefix_cache.store import ActivationStore

RESULTS = Path(__file__).parent / "results" / "prefix_fill.json"
CPU = Place(torch.device("cpu"))
# Of a time: less is no gain.
NOISE = 0.01


@dataclass(frozen=True)
class Way:
    """
    One way to fill.

    Args:
        fill (`str`):
            `"same"` is float32 here.
        compiled (`bool`):
            Whether the layers are compiled.
        sorts (`bool`):
            Whether rows are taken by length.
        times (`int`):
            Rows at a time, in batches of training.
    """

    fill: str = "same"
    compiled: bool = False
    sorts: bool = True
    times: int = 1

    def __str__(self) -> str:
        kind = "float32" if self.fill == "same" else self.fill
        order = "sorted" if self.sorts else "as they come"
        return f"{kind}{', compiled' if self.compiled else ''}, {order}, {BATCH * self.times} rows"


WAYS = [
    Way(),
    Way("bfloat16"),
    Way(times=2),
    Way("bfloat16", times=2),
    Way(sorts=False),
    Way("bfloat16", sorts=False),
    Way(compiled=True),
    Way("bfloat16", compiled=True),
]


def spent() -> tuple[float, float]:
    """Seconds of processor, of this process and of those it waited for, and of the clock."""
    return sum(os.times()[:4]), time.perf_counter()


def encoded(count: int) -> list[dict[str, Any]]:
    """Rows as a dataset gives them."""
    texts = read_reviews()
    random.Random(0).shuffle(texts)
    rows = AutoTokenizer.from_pretrained(model_folder())([text for text, _ in texts[:count]], truncation=True)
    return [{name: values[i] for name, values in rows.items()} | {"label": texts[i][1]} for i in range(count)]


def make_model() -> nn.Module:
    set_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(model_folder(), num_labels=2)


class Fill:
    """
    Fills stores with the same rows again and again.

    Args:
        count (`int`):
            Rows.
        folder (`str`):
            Where stores are made.
    """

    def __init__(self, count: int, folder: str) -> None:
        self.rows, self.folder, self.stores = encoded(count), Path(folder), 0
        self.collate = DataCollatorWithPadding(AutoTokenizer.from_pretrained(model_folder()))
        self.models = {False: make_model(), True: make_model()}
        layers = self.models[False].bert.encoder.layer
        self.stage = self.stage_at(len(layers) + 1, "float16")

    def stage_at(self, frozen: int, storage: str, *, precision: str = "same") -> Stage:
        """The cut above a number of groups."""
        model = self.models[False]
        learning = freeze_first(frozen)(model, discover_layer_groups(model))
        rows = sorted(self.rows[:64], key=lambda row: len(row["input_ids"]))[::15]
        keeping = Keeping(self.folder / "proof", storage, None, FillPrecision(precision))
        return make_stage(model, frozenset(learning), rows, self.collate, place=CPU, batch_size=BATCH, keeping=keeping)

    def compile(self) -> None:
        """Compiles each layer when it is called next."""
        for layer in self.models[True].bert.encoder.layer:
            layer.compile(dynamic=True)

    def batches(self, way: Way, count: int) -> Iterator[list[dict[str, Any]]]:
        """The rows of each batch."""
        rows = self.rows[:count]
        if way.sorts:
            rows = sorted(rows, key=lambda row: -len(row["input_ids"]))
        size = BATCH * way.times
        return (rows[i : i + size] for i in range(0, len(rows), size))

    def take(self, way: Way, count: int) -> tuple[float, float]:
        """Processor and clock seconds of one fill."""
        self.stores += 1
        model, place = self.models[way.compiled], replace(CPU, fill=way.fill)
        shelf = self.emptied(self.stage.shelf)
        catcher, started = Catcher(model, shelf.addresses), spent()
        with untouched(model):
            for rows in self.batches(way, count):
                batch = self.collate(rows)
                digests = row_digests(batch, with_labels=True)
                if shelf.missing(digests):
                    with place.filling():
                        values = catcher.run(on_device(batch, place.device), model)
                    put([shelf], values, row_spans(batch), digests)
        for store in shelf.stores:
            store.flush()
        ended = spent()
        catcher.remove()
        for store in shelf.stores:
            store.clear()
        return ended[0] - started[0], ended[1] - started[1]

    def emptied(self, shelf: Shelf) -> Shelf:
        """The same with stores of its own."""
        stores = tuple(
            ActivationStore(self.folder / f"{self.stores}-{i}", store.description, store.slots, store.storage)
            for i, store in enumerate(shelf.stores)
        )
        return replace(shelf, stores=stores)


def errors(fill: Fill) -> dict[str, float]:
    """What bfloat16 with float16 storage is off by above each number of layers."""
    count = len(fill.models[False].bert.encoder.layer)
    found = {n: fill.stage_at(n + 1, "float16", precision="bfloat16") for n in range(1, count + 1)}
    return {str(n): stage.error for n, stage in found.items()}


def measure(fill: Fill, rounds: int) -> dict[str, Any]:
    """Medians of all ways, and what compiling costs."""
    count = len(fill.rows)
    taken: dict[Way, list[tuple[float, float]]] = {way: [] for way in WAYS}
    fill.compile()
    compiling = {}
    for way in (way for way in WAYS if way.compiled):
        # Lengths of two batches are what a compiler must see to know that they differ.
        first, second = (fill.take(way, 3 * BATCH) for _ in range(2))
        compiling[way] = tuple(one - other for one, other in zip(first, second, strict=True))
        print(f"compiling {way}: {compiling[way][0]:.1f} s of processor", flush=True)
    fill.take(WAYS[0], 3 * BATCH)
    for number in range(rounds):
        for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
            taken[way].append(fill.take(way, count))
            print(f"  round {number}, {way}: {1e3 * taken[way][-1][0] / count:.2f} s", flush=True)
    found: dict[str, Any] = {}
    plain = {way: statistics.median(cpu for cpu, _ in times) / count for way, times in taken.items()}
    for way, times in taken.items():
        ratios = [one / other for (one, _), (other, _) in zip(taken[WAYS[0]], times, strict=True)]
        found[str(way)] = {
            "processor_seconds": round(1e3 * plain[way], 3),
            "clock_seconds": round(1e3 * statistics.median(wall for _, wall in times) / count, 3),
            "times_as_fast": round(statistics.median(ratios), 3),
        }
        if way.compiled:
            saved = plain[replace(way, compiled=False)] - plain[way]
            found[str(way)] |= {
                "compiling_processor_seconds": round(compiling[way][0], 1),
                "compiling_clock_seconds": round(compiling[way][1], 1),
                "pays_after_rows": round(compiling[way][0] / saved) if saved > NOISE * plain[way] else None,
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512, help="rows of a fill (default: 512)")
    parser.add_argument("--rounds", type=int, default=3, help="fills of each way (default: 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": platform.machine(),
        "threads": 1,
        "rows": options.rows,
        "rounds": options.rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        fill = Fill(options.rows, folder)
        result["bfloat16_error_above_layers"] = errors(fill)
        print(json.dumps(result, indent=2), flush=True)
        result["for_1000_rows"] = measure(fill, options.rounds)
    print(json.dumps(result["for_1000_rows"], indent=2))
    if options.rows >= 512 and options.rounds >= 3:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
