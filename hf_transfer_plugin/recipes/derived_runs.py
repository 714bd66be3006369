"""LoRA runs made of finished runs: of several with adapters, or of one that was trained in full."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_transfer_plugin.adapters.combining import combine_adapters
from hf_transfer_plugin.adapters.describing import describe_adapter
from hf_transfer_plugin.adapters.extraction import extract_lora
from hf_transfer_plugin.adapters.loading import GENERATION, is_adapter
from hf_transfer_plugin.recipes.evaluation import evaluate_run
from hf_transfer_plugin.recipes.recording import write_run
from hf_transfer_plugin.recipes.run_folders import (
    new_folder,
    processor_of,
    read_run,
    require_adapter,
    unmeasured,
    weights_size,
)
from hf_transfer_plugin.recipes.trained import base_of_run, load_bare_model, revision_of_run
from hf_transfer_plugin.record import TransferRecord

ALIKE = ("task", "problem_type", "class_names", "base_model")


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
            Hub id or folder of the base, where the first run does not find it, or the runs name others that are the
            same.
        dataset (`str`, *optional*):
            Measure the new run and the old ones on it; without it the record holds no metrics.
        **columns (`Any`, *optional*):
            Further arguments of [`evaluate_run`].

    Returns:
        `dict[str, Any]`: `rank` of the result, `bytes`, and `measured`, run -> metrics.

    Raises:
        ValueError: If the runs do not fit together, cannot be combined so, or `output` exists.
    """
    found = [read_run(run) for run in runs]
    for folder, _ in found:
        require_adapter(folder)
    if not found:
        raise ValueError("`runs` must name two run folders or more, but names none.")
    _check_alike(found)
    if base is None:
        _check_same_base(found)
    (first, record), *_ = found
    with new_folder(output) as made:
        processor = processor_of(first, record)
        name = base or base_of_run(first, record)
        bare, _ = load_bare_model(name, first, record, processor=processor)
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
            unmeasured(record),
            strategy=strategy,
            dataset=_joint_dataset([one for _, one in found]),
            adapter=_described(model),
            **{name: type(getattr(record, name))() for name in ("phases", "rates", "arguments", "seconds", "energy")},
            learning_rates=None,
        )
        _write_adapter(model, processor, new, made, source=first, base=name)
        measured = _measure(new, made, Path(output), [folder for folder, _ in found], dataset, columns, base)
        told = {"rank": model.peft_config["default"].r, "bytes": weights_size(made), "measured": measured}
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
    folder, record = read_run(run)
    if is_adapter(folder):
        raise ValueError(
            f"`run` must hold a whole model to make a LoRA of, but {str(run)!r} holds an adapter. Nothing needs to be "
            "done."
        )
    with new_folder(output) as made:
        processor = processor_of(folder, record)
        tuned, _ = load_bare_model(str(folder), folder, record, processor=processor)
        name = base or base_of_run(folder, record)
        bare, new = load_bare_model(name, folder, record, processor=processor)
        model, report = extract_lora(bare, tuned, energy=energy, rank=rank, new_weights=new)
        chosen = {"rank": rank} if rank is not None else {"energy": energy if energy is not None else 0.9}
        described = {**_described(model), "trainable_parameters": report["trainable_parameters"]}
        strategy = {"name": "extract", **chosen, "from": record.strategy}
        extracted = replace(unmeasured(record), strategy=strategy, adapter=described)
        _write_adapter(model, processor, extracted, made, source=folder, base=name)
        measured = _measure(extracted, made, Path(output), [folder], dataset, columns)
        told = {**report, "bytes": [weights_size(folder), weights_size(made)], "measured": measured}
    return told


def _check_alike(found: Sequence[tuple[Path, TransferRecord]]) -> None:
    (folder, record), *others = found
    for other, one in others:
        for name in ALIKE:
            if getattr(one, name) != getattr(record, name):
                raise ValueError(
                    f"Runs to combine must have the same `{name}`, but {str(folder)!r} has {getattr(record, name)!r} "
                    f"and {str(other)!r} has {getattr(one, name)!r}. Combine runs of one base, task and set of labels."
                )


def _check_same_base(found: Sequence[tuple[Path, TransferRecord]]) -> None:
    """Raises `ValueError` for bases of the same name in different folders, or of different revisions."""
    names = {folder: base_of_run(folder, record) for folder, record in found}
    places = {
        folder: str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name
        for folder, name in names.items()
    }
    shown = {
        folder: place + (f" at {revision}" if (revision := revision_of_run(folder, names[folder])) else "")
        for folder, place in places.items()
    }
    (folder, one), *others = shown.items()
    for other, another in others:
        if another != one:
            raise ValueError(
                f"Runs to combine must have the same base, but that of {str(folder)!r} is {one!r} and that of "
                f"{str(other)!r} is {another!r}. Combine runs of one base; if the two are the same, name it with "
                "`--base`."
            )


def _joint_dataset(records: Sequence[TransferRecord]) -> dict[str, Any]:
    """What they learned from, together."""
    names = dict.fromkeys(str(record.dataset.get("name", "")) for record in records)
    rows = [record.dataset.get("splits", {}).get("train", 0) for record in records]
    first = {k: v for k, v in records[0].dataset.items() if k not in ("fingerprint", "truncated")}
    return {**first, "name": " and ".join(filter(None, names)), "splits": {"train": sum(rows)}}


def _described(model: Any) -> dict[str, Any]:
    values = describe_adapter(model, {"name": "lora"})
    learned = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name or "modules_to_save" in name)
    return {**values, "trainable_parameters": learned}


def _write_adapter(
    model: Any, processor: Any, record: TransferRecord, folder: Path, *, source: Path, base: str
) -> None:
    config, place = model.peft_config[model.active_adapter], Path(base).expanduser()
    # Whole, since the run is used from other folders, too.
    config.base_model_name_or_path = str(place.resolve()) if place.is_dir() else base
    config.revision = revision_of_run(source, base)
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
    base: str | None = None,
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
    return {**{str(one): evaluate_run(one, dataset, base=base, **columns)["metrics"] for one in sources}, **measured}
