"""What is stored before training: as much as there is room for, in one pass."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hf_transfer_plugin.prefix_cache.cuts import CannotCacheError
from hf_transfer_plugin.prefix_cache.filling import fill, forecast, row_lengths
from hf_transfer_plugin.prefix_cache.folders import RESERVE
from hf_transfer_plugin.prefix_cache.sizes import size_words
from hf_transfer_plugin.prefix_cache.stages import Keeping, Stage


def that_fit(
    phases: Sequence[tuple[Stage | None, int]], dataset: Any, views: int, keeping: Keeping
) -> tuple[list[tuple[Stage, int]], dict[str, str]]:
    """
    Chooses what to store, first what saves most for a byte.

    Args:
        phases (`Sequence[tuple[Stage | None, int]]`):
            The stage of each phase of a run, where it has one, and its steps.
        dataset (`Dataset`):
            The rows.
        views (`int`):
            Views of each row.
        keeping (`Keeping`):
            How and where activations are kept.

    Returns:
        `tuple[list[tuple[Stage, int]], dict[str, str]]`: The stages that the budget and the disk hold, with the bytes
        that they take; and a reason for each of the others, by the module that is fed.
    """
    stages = {stage.cut.fed: stage for stage, _ in phases if stage is not None}
    steps = {name: sum(count for stage, count in phases if stage and stage.cut.fed == name) for name in stages}
    lengths, rows = row_lengths(dataset), len(dataset) * views
    needs = {
        name: forecast(stage.shelf.parts, stage.tokens, keeping.storage, rows, lengths)
        for name, stage in stages.items()
    }
    held = sum(stage.nbytes for stage in stages.values())
    room = room_in(keeping.directory, None if keeping.budget is None else max(0, keeping.budget - held))
    chosen, reasons = [], {}
    for name in sorted(stages, key=lambda name: -steps[name] * stages[name].share / max(needs[name], 1)):
        more = max(0, needs[name] - stages[name].nbytes)
        if more <= room:
            room -= more
            chosen.append((stages[name], needs[name]))
            continue
        reasons[name] = (
            f"what {rows:,} rows make below {name!r} takes {size_words(needs[name])}, but there is room for "
            f"{size_words(room)} in '{keeping.directory}'"
        )
    return chosen, reasons


def room_in(directory: Path, budget: int | None) -> int:
    """
    Args:
        directory (`Path`):
            Where caches are kept; it need not exist yet.
        budget (`int`, *optional*):
            Bytes that one may take.

    Returns:
        `int`: Bytes that may be written there.
    """
    there = next(parent for parent in (directory, *directory.absolute().parents) if parent.exists())
    free = max(0, shutil.disk_usage(there).free - RESERVE)
    return free if budget is None else min(free, budget)


def store_ahead(
    model: nn.Module,
    stages: Sequence[tuple[Stage, int]],
    dataset: Any,
    collate: Any,
    *,
    batch_size: int,
    views: int,
    share: tuple[int, int],
    workers: int,
) -> int:
    """
    Stores every row for some stages, in one pass for each view of the rows.

    Args:
        model (`nn.Module`):
            The model, as training runs it; left as it was.
        stages (`Sequence[tuple[Stage, int]]`):
            The stages, with the bytes that each will take.
        dataset (`Dataset`):
            The rows.
        collate (`Callable`):
            Makes a batch of rows.
        batch_size (`int`):
            Rows of a training batch.
        views (`int`):
            Views of each row.
        share (`tuple[int, int]`):
            This process and the number of processes, which share the rows.
        workers (`int`):
            Worker processes that read rows.

    Returns:
        `int`: Rows that were run.

    Raises:
        CannotCacheError: If a row cannot be stored.
    """
    done = 0
    # One place as a rule; a cut where bfloat16 proved too coarse has a pass of its own.
    for place in dict.fromkeys(stage.place for stage, _ in stages):
        here = [(stage.shelf, nbytes) for stage, nbytes in stages if stage.place == place]
        exact = any(store.storage == "float32" for shelf, _ in here for store in shelf.stores)
        for view in range(views):
            if views > 1:
                dataset.set_epoch(view)
            try:
                done += fill(
                    model,
                    [shelf for shelf, _ in here],
                    dataset,
                    collate,
                    place=place,
                    batch_size=batch_size,
                    exact=exact,
                    share=share,
                    workers=workers,
                    expected=None if view else (views, sum(nbytes for _, nbytes in here)),
                )
            except ValueError as error:
                raise CannotCacheError(str(error).rstrip(".")) from error
    return done
