"""The runs of gpu_prefix_cache.py: models from small configs, a Trainer that is timed, and the prefix by itself."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from hf_transfer_plugin import FrozenPrefixCache, attach, freeze_first

GIGA = 1e9


class Setting(NamedTuple):
    """A model and its batches."""

    blocks: str
    width: int
    layers: int
    batch: int
    tokens: int
    make: Callable[["Setting"], nn.Module]

    def prefixes(self) -> tuple[int, ...]:
        """
        Returns:
            `tuple[int, ...]`: How many blocks are frozen: half, three quarters, all.
        """
        return self.layers // 2, self.layers * 3 // 4, self.layers


def bert(setting: Setting) -> nn.Module:
    config = BertConfig(
        hidden_size=setting.width, num_hidden_layers=setting.layers, num_attention_heads=max(setting.width // 64, 1),
        intermediate_size=4 * setting.width,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def decoder(setting: Setting) -> nn.Module:
    """Llama's layers: 12 h^2 parameters each, as BERT's."""
    config = LlamaConfig(
        hidden_size=setting.width, num_hidden_layers=setting.layers, num_attention_heads=max(setting.width // 128, 1),
        intermediate_size=8 * setting.width // 3, vocab_size=32_000, pad_token_id=0, num_labels=2, use_cache=False,
    )  # fmt: skip
    return LlamaForSequenceClassification(config)


SETTINGS = {
    "bert-base": Setting("bert.encoder.layer", 768, 12, 32, 128, bert),
    "decoder of 0.7B": Setting("model.layers", 1536, 24, 16, 256, decoder),
}
TINY = {
    "bert-base": Setting("bert.encoder.layer", 64, 4, 4, 16, bert),
    "decoder of 0.7B": Setting("model.layers", 192, 4, 2, 16, decoder),
}


class Clock(TrainerCallback):
    """Notes when steps end, the device waited for."""

    def __init__(self, device: str) -> None:
        self.device, self.moments = device, [0.0]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes the step."""
        synchronize(self.device)
        self.moments.append(time.perf_counter())

    def milliseconds(self, steps: int) -> float:
        """
        Args:
            steps (`int`):
                Steps of an epoch.

        Returns:
            `float`: Median after the first epoch.
        """
        later = self.moments[1 + steps :]
        return 1e3 * statistics.median(b - a for a, b in zip(later, later[1:], strict=False))


class _Stop(Exception):  # noqa: N818
    """The prefix has run."""


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Median seconds of some work on the device, the first two times left out."""
    times = []
    for _ in range(repeats + 2):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def matrix_flops(device: str, size: int) -> float:
    """FLOP/s of products of square bfloat16 matrices."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: one @ other, device, 10)


def rows_of(setting: Setting, steps: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30_000, (setting.batch * steps, setting.tokens), generator=generator)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": torch.tensor(i % 2)}
        for i, row in enumerate(ids)
    ]


@contextmanager
def stopped_before(module: nn.Module) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _Stop

    handle = module.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def prefix_seconds(setting: Setting, frozen: int, device: str, repeats: int) -> float:
    """Seconds in which the device runs the frozen blocks for a batch."""
    model = setting.make(setting).to(device).eval()
    rows = rows_of(setting, 1)
    batch = {name: torch.stack([row[name] for row in rows]).to(device) for name in ("input_ids", "attention_mask")}
    blocks = model.get_submodule(setting.blocks)
    # Behind the last block comes the norm or the pooler, and then the head.
    above = (
        blocks[frozen] if frozen < setting.layers else model.score if hasattr(model, "score") else model.bert.pooler
    )

    def run() -> None:
        try:
            model(**batch)
        except _Stop:
            return

    with stopped_before(above), torch.no_grad(), torch.autocast(device, torch.bfloat16):
        return seconds_of(run, device, repeats)


def train(setting: Setting, frozen: int, way: str, folder: Path | None, options: Any) -> dict[str, Any]:
    """
    Trains three epochs.

    Args:
        setting (`Setting`):
            The model.
        frozen (`int`):
            Blocks that are frozen, with the embeddings.
        way (`str`):
            `"plain"`, `"eval"` or `"cached"`.
        folder (`Path`, *optional*):
            Where the cache is.
        options (`Namespace`):
            The command line.

    Returns:
        `dict[str, Any]`: Milliseconds a step, and for the cache its report.
    """
    set_seed(0)
    model, clock = setting.make(setting), Clock(options.device)
    with tempfile.TemporaryDirectory() as place:
        args = TrainingArguments(
            place, num_train_epochs=3, per_device_train_batch_size=setting.batch, bf16=True, report_to="none",
            disable_tqdm=True, save_strategy="no", logging_strategy="no", use_cpu=options.device == "cpu",
            dataloader_num_workers=options.workers, dataloader_pin_memory=options.device != "cpu",
        )  # fmt: skip
        trainer = Trainer(model=model, args=args, train_dataset=rows_of(setting, options.steps), callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        cache = FrozenPrefixCache(folder, storage=options.storage) if way == "cached" else None
        if way == "plain":
            below = tuple(f"{setting.blocks}.{i}." for i in range(frozen))
            # The norm behind the last block is part of that layer group.
            below += ("model.norm.",) if frozen == setting.layers else ()
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(not (name.startswith(below) or "embed" in name))
        else:
            attach(trainer, schedule=freeze_first(1 + frozen), **({} if cache is None else {"cache": cache}))
        trainer.train()
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found: dict[str, Any] = {"ms": clock.milliseconds(options.steps), "learning": learning}
    if cache is not None:
        found["report"] = dict(cache.report)
        if cache.report["used"]:
            found["bytes_a_batch"] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / options.steps
            found["gigabytes_a_second"] = read_rate(folder, options.device)
    return found


def read_rate(folder: Path, device: str) -> float:
    """Gigabytes a second at which a cache's files come from their place to the device."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    synchronize(device)
    started, total = time.perf_counter(), 0
    for file in files:
        content = bytearray(file.read_bytes())
        if content:
            torch.frombuffer(content, dtype=torch.uint8).to(device)
            total += len(content)
    synchronize(device)
    return total / GIGA / (time.perf_counter() - started)
