"""The strategies of benchmarks/prefix_cache.py as this package names them, and the ratio that FLOPs alone predict."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_transfer_plugin import (
    GradualUnfreezing,
    LinearProbeThenFineTune,
    Progress,
    discover_layer_groups,
    feature_extraction,
    freeze_first,
    plan,
)

BLOCKS = 6


@dataclass(frozen=True)
class HeadFirst(GradualUnfreezing):
    """Two epochs for the head, then one more group in every epoch, the embeddings last."""

    name: ClassVar[str] = "head-first"

    def __call__(self, progress: Progress, groups: int) -> tuple[int, ...]:
        """
        Args:
            progress (`Progress`):
                The moment.
            groups (`int`):
                Number of layer groups.

        Returns:
            `tuple[int, ...]`: The groups that learn.
        """
        epoch = int(progress.step / progress.steps_per_epoch + 1e-6)
        return tuple(range(max(groups - max(epoch, 1), 0), groups))


def schedule_of(name: str, steps_per_epoch: int) -> Any:
    """
    Args:
        name (`str`):
            `"head"`, `"gradual-a"`, `"gradual-b"`, or `"top 2"`, `"lp-ft top 3"`, `"gradual top 3"` and the like.
        steps_per_epoch (`int`):
            Optimizer steps of an epoch.

    Returns:
        `FreezingPolicy` or `UnfreezingSchedule`: The strategy.
    """
    if name == "head":
        return feature_extraction()
    if name == "gradual-a":
        return GradualUnfreezing(every=2 * steps_per_epoch, frozen=1 + BLOCKS - 4)
    if name == "gradual-b":
        return HeadFirst()
    kind, top = name.rsplit("top ", 1)
    frozen = 1 + BLOCKS - int(top)
    if kind.startswith("lp-ft"):
        return LinearProbeThenFineTune(frozen=frozen)
    return GradualUnfreezing(frozen=frozen) if kind.startswith("gradual") else freeze_first(frozen)


def padded_length(lengths: Sequence[int], batch: int) -> int:
    """
    Args:
        lengths (`Sequence[int]`):
            Tokens of each row.
        batch (`int`):
            Rows of a batch.

    Returns:
        `int`: The mean width of random batches that are padded to their longest row.
    """
    generator, rows, widths = random.Random(0), list(lengths), []
    for _ in range(20):
        generator.shuffle(rows)
        widths += [max(rows[i : i + batch]) for i in range(0, len(rows), batch)]
    return round(sum(widths) / len(widths))


def forward_flops(model: nn.Module, length: int) -> list[int]:
    """
    Args:
        model (`BertForSequenceClassification`):
            The model.
        length (`int`):
            Tokens of a row.

    Returns:
        `list[int]`: FLOPs of a forward pass of one row below each layer group: 0 below the embeddings, and so on.
    """
    with torch.device("meta"):
        copy = type(model)(model.config)  # type: ignore[operator]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            copy(input_ids=torch.zeros(1, length, dtype=torch.long))
    counts = {name.partition(".")[2]: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    below, groups = [0], ["bert.embeddings", *(f"bert.encoder.layer.{i}" for i in range(BLOCKS))]
    for name in groups:
        below.append(below[-1] + counts.get(name, 0))
    return below


def predicted_ratio(model: nn.Module, schedule: Any, *, epochs: int, steps: int, batch: int, length: int) -> float:
    """
    What planning.py's FLOPs say of a schedule: its live run, as a share of the same run without the forward passes of
    the frozen groups at the bottom, but with one such pass over the data, which fills the cache.

    Args:
        model (`PreTrainedModel`):
            The model.
        schedule (`FreezingPolicy` or `UnfreezingSchedule`):
            The strategy.
        epochs (`int`):
            Epochs of the run.
        steps (`int`):
            Optimizer steps of an epoch.
        batch (`int`):
            Rows of a batch.
        length (`int`):
            Tokens of a row.

    Returns:
        `float`: FLOPs of the live run divided by those of the cached run.
    """
    groups = discover_layer_groups(model)
    found = plan(
        model, schedule, max_steps=epochs * steps, epochs=epochs, groups=groups, batch_size=batch, length=length
    )
    below = [batch * flops for flops in forward_flops(model, length)]
    prefixes = [below[groups.names.index(phase.groups[0])] for phase in found.phases]
    live = sum(phase.flops * phase.steps for phase in found.phases)
    saved = sum(prefix * phase.steps for prefix, phase in zip(prefixes, found.phases, strict=True))
    return live / (live - saved + max(prefixes) * steps)
