"""Merges the adapter of a finished run into its base: a run that needs no PEFT."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_transfer_plugin.adapters.loading import CONFIG, WEIGHTS, is_adapter
from hf_transfer_plugin.adapters.merging import merge_checked
from hf_transfer_plugin.recipes.base_precision import QUANTISED
from hf_transfer_plugin.recipes.checks import CONFIG_NAME
from hf_transfer_plugin.recipes.recording import write_run
from hf_transfer_plugin.recipes.run_folders import (
    new_folder,
    processor_of,
    read_run,
    require_adapter,
    unmeasured,
    weights_size,
)
from hf_transfer_plugin.recipes.trained import load_run_model
from hf_transfer_plugin.record import RECORD_NAME, TransferRecord

MERGED = "merged"
# What resuming a run cannot change.
SAME_RUN = ("task", "base_model", "class_names", "adapter", "strategy")


def merge_run(
    run: str | Path, output: str | Path, *, base: str | None = None, unquantised: bool = False
) -> dict[str, Any]:
    """
    Merges the adapter of a run into its base, and writes a run that needs no PEFT.

    Args:
        run (`str` or `Path`):
            A run folder with an adapter.
        output (`str` or `Path`):
            The new run folder.
        base (`str`, *optional*):
            Hub id or folder of the base, where the run does not find it.
        unquantised (`bool`, *optional*, defaults to `False`):
            Merge an adapter that was trained over a quantised base into the base as it was saved. What was measured
            is then taken out of the record, since the answers are others.

    Returns:
        `dict[str, Any]`: `difference` of the outputs and `tolerance`, `precision` of the weights, merged `layers`,
        `bytes` before and after.

    Raises:
        ValueError: If there is no adapter, it cannot be merged, or `output` exists.
        RuntimeError: If the merged model answers otherwise.
    """
    folder, record = read_run(run)
    require_adapter(folder)
    precision = (record.adapter or {}).get("base_precision")
    if precision in QUANTISED and not unquantised:
        raise ValueError(
            f"The adapter in {str(run)!r} was trained over a base in {precision}, into which it cannot be merged "
            "without rounding it as coarsely. Add `--unquantised` to merge it into the base as it was saved; its "
            "answers then differ a little from those that were measured."
        )
    with new_folder(output) as made:
        processor = processor_of(folder, record)
        unlike = precision in QUANTISED
        model = load_run_model(folder, record, processor=processor, base=base, precision="" if unlike else None)
        merged = merge_checked(model)  # type: ignore[arg-type]
        merged.model.save_pretrained(made)  # type: ignore[operator]
        processor.save_pretrained(made)
        if (folder / CONFIG_NAME).is_file():
            shutil.copyfile(folder / CONFIG_NAME, made / CONFIG_NAME)
        write_run(unmeasured(record) if unlike else replace(record), made)
        told = {
            "difference": merged.difference,
            "tolerance": merged.tolerance,
            "precision": str(merged.precision).removeprefix("torch."),
            "layers": merged.layers,
            "bytes": [weights_size(folder), weights_size(made)],
        }
    return told


def keep_merged(run: str | Path, *, alone: bool) -> TransferRecord:
    """
    Merges the adapter of a run that has just ended, in the folder `merged` of the run. A merged model that is there of
    this run, as before it was resumed, is replaced.

    Args:
        run (`str` or `Path`):
            The run folder.
        alone (`bool`):
            Whether the merged model takes the adapter's place.

    Returns:
        `TransferRecord`: The record of what the run folder holds now.

    Raises:
        RuntimeError: If it cannot be merged, or the merged model answers differently. The run with the adapter is
            whole.
    """
    run, merged = Path(run), Path(run) / MERGED
    try:
        if _is_merged_of(merged, run):
            shutil.rmtree(merged)
        merge_run(run, merged)
    except (ValueError, RuntimeError, OSError) as error:
        raise RuntimeError(
            f"Training has ended and its run is whole in {str(run)!r}, but with the adapter, which was not merged: "
            f"{error} Merge it with `hf-transfer-plugin merge {shlex.quote(str(run))} OUTPUT`, or use it as it is, as "
            f"with `hf-transfer-plugin push {shlex.quote(str(run))}`."
        ) from error
    if alone:
        for file in merged.iterdir():
            file.replace(run / file.name)
        for path in (run / CONFIG, run / WEIGHTS):
            path.unlink()
        merged.rmdir()
    return TransferRecord.load(run)


def _is_merged_of(folder: Path, run: Path) -> bool:
    """Whether a folder holds what was merged of a run, now or before it was resumed."""
    if not (folder / RECORD_NAME).is_file() or is_adapter(folder):
        return False
    one, other = TransferRecord.load(folder), TransferRecord.load(run)
    return all(getattr(one, name) == getattr(other, name) for name in SAME_RUN)
