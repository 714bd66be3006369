"""What benchmarks/prefix_cache.py runs: the strategies, their epochs, and the ways in which each is run."""

from typing import NamedTuple


class Case(NamedTuple):
    """A strategy, its epochs, and the ways in which it is run."""

    title: str
    strategy: str
    epochs: int
    ways: tuple[str, ...]
    learning_rate: float = 5e-5
    target: bool = False


BOTH = ("cached", "eval", "plain")
CASES = {
    "head-10": Case("head only, 10 epochs", "head", 10, BOTH),
    "head-30": Case("head only, 30 epochs", "head", 30, ("cached", "plain")),
    "top": Case("top 2 of 6 layers, 10 epochs", "top 2", 10, BOTH),
    # Every epoch of these takes the same work: their whole runs are told times 10 / 2.
    "full": Case("full fine-tuning, 2 epochs", "full", 2, ("plain",)),
    "full-but-embeddings": Case("full but for the embeddings, 2 epochs", "full-but-embeddings", 2, ("plain",)),
    "gradual-a": Case("gradual unfreezing, one layer every 2 epochs", "gradual-a", 10, ("cached", "eval")),
    "gradual-b": Case("gradual unfreezing, one layer an epoch, embeddings last", "gradual-b", 10, ("cached", "eval")),
    "evaluate": Case("one evaluation pass", "evaluate", 1, ("evaluate",)),
    "target-full": Case("full fine-tuning, 3 epochs", "full", 3, ("plain",), 1e-4, target=True),
    "target-full-1": Case("full fine-tuning, 1 epoch", "full", 1, ("plain",), 1e-4, target=True),
    "target-lpft-2x2": Case("lp-ft, top 2 layers, 2 epochs", "lp-ft top 2", 2, ("cached",), 1e-4, target=True),
    "target-lpft-3x1": Case("lp-ft, top 3 layers, 1 epoch", "lp-ft top 3", 1, ("cached",), 2e-4, target=True),
    "target-lpft-3x2": Case("lp-ft, top 3 layers, 2 epochs", "lp-ft top 3", 2, ("cached",), 1e-4, target=True),
    "target-lpft-4x1": Case("lp-ft, top 4 layers, 1 epoch", "lp-ft top 4", 1, ("cached",), 2e-4, target=True),
    "target-lpft-5x1": Case("lp-ft, top 5 layers, 1 epoch", "lp-ft top 5", 1, ("cached",), 2e-4, target=True),
}
TARGET = tuple(name for name, case in CASES.items() if case.target)
BARS = tuple(name for name in CASES if name not in TARGET)
PARTS = {
    "bars": BARS,
    "head": ("head-10", "head-30"),
    "top": ("top", "full", "full-but-embeddings"),
    "gradual": ("gradual-a", "gradual-b"),
    "memory": ("head-10", "top"),
    "fill": ("head-10", "top", "evaluate"),
    "target": TARGET,
}
