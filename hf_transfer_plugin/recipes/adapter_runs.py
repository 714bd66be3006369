"""Merges the adapter of a finished run into its base: a run that needs no PEFT."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_transfer_plugin.adapters.loading import CONFIG, WEIGHTS
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
from hf_transfer_plugin.record import TransferRecord

MERGED = "merged"


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
    Merges the adapter of a run that has just ended, in the folder `merged` of the run.

    Args:
        run (`str` or `Path`):
            The run folder.
        alone (`bool`):
            Whether the merged model takes the adapter's place.

    Returns:
        `TransferRecord`: The record of what the run folder holds now.

    Raises:
        ValueError: If it cannot be merged; the adapter is kept.
        RuntimeError: If the merged model answers differently; the adapter is kept.
    """
    run, merged = Path(run), Path(run) / MERGED
    merge_run(run, merged)
    if alone:
        for file in merged.iterdir():
            file.replace(run / file.name)
        for path in (run / CONFIG, run / WEIGHTS):
            path.unlink()
        merged.rmdir()
    return TransferRecord.load(run)
