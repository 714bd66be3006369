"""From finished runs to another: an adapter merged, several combined, or one made of a full fine-tune."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_transfer_plugin.adapters.attaching import describe_adapter
from hf_transfer_plugin.adapters.combining import combine_adapters
from hf_transfer_plugin.adapters.extraction import extract_lora
from hf_transfer_plugin.adapters.loading import CONFIG, GENERATION, WEIGHTS, is_adapter
from hf_transfer_plugin.adapters.merging import merge_checked
from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.recipes.base_precision import QUANTISED
from hf_transfer_plugin.recipes.checks import CONFIG_NAME
from hf_transfer_plugin.recipes.evaluation import evaluate_run
from hf_transfer_plugin.recipes.pretrained import load_processor
from hf_transfer_plugin.recipes.recording import write_run
from hf_transfer_plugin.recipes.trained import base_of_run, load_bare_model, load_run_model
from hf_transfer_plugin.record import TransferRecord

ALIKE = ("task", "problem_type", "class_names", "base_model")
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
    folder, record = _read_run(run)
    _require_adapter(folder)
    precision = (record.adapter or {}).get("base_precision")
    if precision in QUANTISED and not unquantised:
        raise ValueError(
            f"The adapter in {str(run)!r} was trained over a base in {precision}, into which it cannot be merged "
            "without rounding it as coarsely. Add `--unquantised` to merge it into the base as it was saved; its "
            "answers then differ a little from those that were measured."
        )
    with _new_folder(output) as made:
        processor = _processor(folder, record)
        unlike = precision in QUANTISED
        model = load_run_model(folder, record, processor=processor, base=base, precision="" if unlike else None)
        merged = merge_checked(model)  # type: ignore[arg-type]
        merged.model.save_pretrained(made)  # type: ignore[operator]
        processor.save_pretrained(made)
        if (folder / CONFIG_NAME).is_file():
            shutil.copyfile(folder / CONFIG_NAME, made / CONFIG_NAME)
        write_run(_unmeasured(record) if unlike else replace(record), made)
        told = {
            "difference": merged.difference,
            "tolerance": merged.tolerance,
            "precision": str(merged.precision).removeprefix("torch."),
            "layers": merged.layers,
            "bytes": [_size(folder), _size(made)],
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


def combine_runs(
    runs: Sequence[str | Path],
    weights: Sequence[float],
    output: str | Path,
    combination_type: str = "cat",
    *,
    rank: int | None = None,
    density: float = 0.5,
    base: str | None = None,
    dataset: str | None = None,
    **columns: Any,
) -> dict[str, Any]:
    """
    Combines the LoRA adapters of runs on one base into a new run, as [`combine_adapters`] does.

    Args:
        runs (`Sequence[str | Path]`):
            Run folders, trained from one base for one task and the same classes.
        weights (`Sequence[float]`):
            A weight for each.
        output (`str` or `Path`):
            The new run folder.
        combination_type (`str`, *optional*, defaults to `"cat"`):
            As in [`combine_adapters`].
        rank (`int`, *optional*):
            As in [`combine_adapters`].
        density (`float`, *optional*, defaults to 0.5):
            As in [`combine_adapters`].
        base (`str`, *optional*):
            Hub id or folder of the base, where the first run does not find it.
        dataset (`str`, *optional*):
            Measure the new run and the old ones on it; without it the record holds no metrics.
        **columns (`Any`, *optional*):
            Further arguments of [`evaluate_run`].

    Returns:
        `dict[str, Any]`: `rank` of the result, `bytes`, and `measured`, run -> metrics.

    Raises:
        ValueError: If the runs do not fit together, cannot be combined so, or `output` exists.
    """
    found = [_read_run(run) for run in runs]
    for folder, _ in found:
        _require_adapter(folder)
    if not found:
        raise ValueError("`runs` must name two run folders or more, but names none.")
    _check_alike(found)
    (first, record), *_ = found
    with _new_folder(output) as made:
        processor = _processor(first, record)
        bare = load_bare_model(base or base_of_run(first, record), first, record, processor=processor)
        folders = {str(folder): folder for folder, _ in found}
        if len(folders) < len(found):
            raise ValueError("`runs` must be different folders, but one is named twice. Give it a larger weight.")
        model = combine_adapters(bare, folders, weights, combination_type, rank=rank, density=density)
        strategy = {
            "name": "combine",
            "combination_type": combination_type,
            "runs": [folder.resolve().name for folder, _ in found],
            "weights": [float(weight) for weight in weights],
        }
        new = replace(
            _unmeasured(record),
            strategy=strategy,
            dataset=_joint_dataset([one for _, one in found]),
            adapter=_described(model),
            **{name: type(getattr(record, name))() for name in ("phases", "rates", "arguments", "seconds", "energy")},
            learning_rates=None,
        )
        _write_adapter(model, processor, new, made, source=first)
        measured = _measure(new, made, Path(output), [folder for folder, _ in found], dataset, columns)
        told = {"rank": model.peft_config["default"].r, "bytes": _size(made), "measured": measured}
    return told


def extract_run(
    run: str | Path,
    output: str | Path,
    *,
    energy: float | None = None,
    rank: int | None = None,
    base: str | None = None,
    dataset: str | None = None,
    **columns: Any,
) -> dict[str, Any]:
    """
    Makes a run with a LoRA of one that was trained in full, as [`extract_lora`] does.

    Args:
        run (`str` or `Path`):
            A run folder with a whole model.
        output (`str` or `Path`):
            The new run folder.
        energy (`float`, *optional*):
            Share of each change to keep; 0.9 without `rank`.
        rank (`int`, *optional*):
            The same rank for all layers instead.
        base (`str`, *optional*):
            Hub id or folder of the model that the run started from, where it is not known here.
        dataset (`str`, *optional*):
            Measure the new run and the old one on it; without it the record holds no metrics.
        **columns (`Any`, *optional*):
            Further arguments of [`evaluate_run`].

    Returns:
        `dict[str, Any]`: The report of [`extract_lora`], `bytes` before and after, and `measured`, run -> metrics.

    Raises:
        ValueError: If the run has an adapter, started from another base, or `output` exists.
    """
    folder, record = _read_run(run)
    if is_adapter(folder):
        raise ValueError(
            f"`run` must hold a whole model to make a LoRA of, but {str(run)!r} holds an adapter. Nothing needs to be "
            "done."
        )
    with _new_folder(output) as made:
        processor = _processor(folder, record)
        tuned = load_bare_model(str(folder), folder, record, processor=processor)
        bare = load_bare_model(base or base_of_run(folder, record), folder, record, processor=processor)
        model, report = extract_lora(bare, tuned, energy=energy, rank=rank)
        chosen = {"rank": rank} if rank is not None else {"energy": energy if energy is not None else 0.9}
        described = {**_described(model), "trainable_parameters": report["trainable_parameters"]}
        strategy = {"name": "extract", **chosen, "from": record.strategy}
        new = replace(_unmeasured(record), strategy=strategy, adapter=described)
        _write_adapter(model, processor, new, made, source=folder)
        measured = _measure(new, made, Path(output), [folder], dataset, columns)
        told = {**report, "bytes": [_size(folder), _size(made)], "measured": measured}
    return told


def _read_run(run: str | Path) -> tuple[Path, TransferRecord]:
    record = TransferRecord.load(run)
    return (Path(run) if Path(run).is_dir() else Path(run).parent), record


def _require_adapter(folder: Path) -> None:
    if not is_adapter(folder):
        raise ValueError(
            f"A run with an adapter is needed, but {str(folder)!r} holds a whole model. Train one with `--adapter "
            "lora`, or make a LoRA of it with `hf-transfer-plugin extract`."
        )


def _processor(folder: Path, record: TransferRecord) -> Any:
    return load_processor(TransferConfig(model=str(folder), dataset="-", task=record.task))


@contextmanager
def _new_folder(output: str | Path) -> Iterator[Path]:
    """A folder beside `output` that takes its name when all is well, and goes when not."""
    output = Path(output)
    if output.exists():
        raise ValueError(f"`output` must be a new folder, but {str(output)!r} exists. Delete it or name another.")
    output.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        made.chmod(0o755)
        yield made
        made.rename(output)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _check_alike(found: Sequence[tuple[Path, TransferRecord]]) -> None:
    (folder, record), *others = found
    for other, one in others:
        for name in ALIKE:
            if getattr(one, name) != getattr(record, name):
                raise ValueError(
                    f"Runs to combine must have the same `{name}`, but {str(folder)!r} has {getattr(record, name)!r} "
                    f"and {str(other)!r} has {getattr(one, name)!r}. Combine runs of one base, task and set of labels."
                )


def _joint_dataset(records: Sequence[TransferRecord]) -> dict[str, Any]:
    """What they learned from, together."""
    names = dict.fromkeys(str(record.dataset.get("name", "")) for record in records)
    rows = [record.dataset.get("splits", {}).get("train", 0) for record in records]
    first = {k: v for k, v in records[0].dataset.items() if k not in ("fingerprint", "truncated")}
    return {**first, "name": " and ".join(filter(None, names)), "splits": {"train": sum(rows)}}


def _unmeasured(record: TransferRecord) -> TransferRecord:
    """The record without what was measured with other weights."""
    measured = ("metrics", "metrics_split", "per_class", "confusion_matrix", "intervals", "calibration", "errors")
    emptied = {name: type(getattr(record, name))() for name in (*measured, "samples", "per_subset", "baselines")}
    seconds = {name: value for name, value in record.seconds.items() if name != "evaluate"}
    return replace(record, **emptied, seconds=seconds, created=datetime.now(UTC).strftime("%Y-%m-%d"))


def _described(model: Any) -> dict[str, Any]:
    values = describe_adapter(model, {"name": "lora"})
    learned = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name or "modules_to_save" in name)
    return {**values, "trainable_parameters": learned}


def _write_adapter(model: Any, processor: Any, record: TransferRecord, folder: Path, *, source: Path) -> None:
    # PEFT would add the embeddings of the base where LoRA sits in the output layer; nothing of them has learned.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    processor.save_pretrained(folder)
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, folder / GENERATION)
    write_run(record, folder)


def _measure(
    record: TransferRecord,
    folder: Path,
    output: Path,
    sources: Sequence[Path],
    dataset: str | None,
    columns: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
    """Metrics of the new run, which go into its record, and of those that it was made of."""
    if dataset is None:
        return {}
    found = evaluate_run(folder, dataset, **columns)
    measured = {str(output): found.pop("metrics")}
    name = Path(dataset).expanduser().resolve().name if Path(dataset).expanduser().exists() else dataset
    split, rows = found.pop("split"), found.pop("rows")
    # The card speaks of the data of the training, unless it is told of other data.
    record.metrics_split = split if name == record.dataset.get("name") else f"{name} {split}"
    record.metrics = measured[str(output)]
    record.dataset = {
        **record.dataset,
        "splits": {**record.dataset.get("splits", {}), record.metrics_split: rows},
    }
    for key, value in found.items():
        setattr(record, key, value)
    write_run(record, folder)
    return {**{str(one): evaluate_run(one, dataset, **columns)["metrics"] for one in sources}, **measured}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
