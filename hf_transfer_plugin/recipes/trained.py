"""Loads the model that a run ended with: whole, or its base with the adapter on."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from torch import nn

from hf_transfer_plugin.adapters.loading import base_of, is_adapter, load_adapter, revision_of
from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.recipes.base_precision import QUANTISED
from hf_transfer_plugin.recipes.checks import CONFIG_NAME
from hf_transfer_plugin.recipes.pretrained import load_model, load_processor
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.tasks import TASKS, TaskData


def load_run_model(
    folder: str | Path,
    record: TransferRecord,
    *,
    processor: Any = None,
    base: str | None = None,
    precision: str | None = None,
) -> nn.Module:
    """
    Loads the model of a run, with the labels of its record.

    Args:
        folder (`str` or `Path`):
            The run folder.
        record (`TransferRecord`):
            Its record.
        processor (`PreTrainedTokenizerBase`, *optional*):
            Its tokenizer; loaded from the folder without it.
        base (`str`, *optional*):
            Hub id or folder of the base of an adapter, instead of the one that [`base_of_run`] finds.
        precision (`str`, *optional*):
            `base_precision` of an adapter's base, instead of that of the training where that was quantised; `""` loads
            it as it was saved. A base that was rounded to 16 bits is loaded as it was saved, too, and one that was
            saved in 16 bits is turned to 32 where a head beside the adapter learned in 32 bits: PEFT would round it
            with the base.

    Returns:
        `nn.Module`: The model, or a `PeftModel`.

    Raises:
        ValueError: If model, base or adapter cannot be loaded, or do not fit together.
    """
    folder = Path(folder)
    if not is_adapter(folder):
        if base is not None:
            raise ValueError(
                f"`base` names what an adapter stands on, but {str(folder)!r} holds a whole model. Leave `--base` out."
            )
        return load_bare_model(str(folder), folder, record, processor=processor)[0]
    trained = (record.adapter or {}).get("base_precision")
    found, _ = load_bare_model(
        base or base_of_run(folder, record),
        folder,
        record,
        processor=processor,
        precision=precision if precision is not None else trained if trained in QUANTISED else "",
    )
    return load_adapter(found, folder, exact=True)


def load_bare_model(
    name: str, folder: Path, record: TransferRecord, *, processor: Any = None, precision: str | None = None
) -> tuple[nn.Module, frozenset[str]]:
    """
    Loads a model with the head and the labels of a run.

    Args:
        name (`str`):
            Hub id or folder of the model. Of the base that the run started from, the revision is the one that it
            started from.
        folder (`Path`):
            The run folder, with the tokenizer.
        record (`TransferRecord`):
            Names task and labels.
        processor (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer; loaded from the folder without it.
        precision (`str`, *optional*):
            As `base_precision` in [`TransferConfig`].

    Returns:
        `tuple[nn.Module, frozenset[str]]`: The model, and the names of its weights that are new, and so random.

    Raises:
        ValueError: If it cannot be loaded.
    """
    chosen = {
        "model": name,
        "model_revision": revision_of_run(folder, name),
        "dataset": "-",
        "task": record.task,
        "base_precision": precision or None,
    }
    known = {f.name for f in fields(TransferConfig)}
    config = TransferConfig.from_dict({key: value for key, value in chosen.items() if key in known})
    if processor is None:
        processor = load_processor(TransferConfig(model=str(folder), dataset="-", task=record.task))
    data = TaskData(DatasetDict(), {}, problem_type=record.problem_type, class_names=tuple(record.class_names))
    return load_model(config, TASKS[record.task], data, processor)


def base_of_run(folder: str | Path, record: TransferRecord) -> str:
    """
    Args:
        folder (`str` or `Path`):
            The run folder.
        record (`TransferRecord`):
            Its record.

    Returns:
        `str`: Folder or Hub id of the model that the run started from: as training named it where that is a folder of
        this machine, else `base_model_id` of the record.

    Raises:
        ValueError: If neither is known here.
    """
    folder = Path(folder)
    named, _ = _named(folder)
    if named and Path(named).expanduser().is_dir():
        return named
    if record.base_model_id:
        return record.base_model_id
    if not named or named.startswith(("/", "./", "../", "~")):
        raise ValueError(
            f"The run in {str(folder)!r} started from {named or record.base_model!r}, which is not here, and its "
            "record names no `base_model_id`. Name the folder or Hub id of the base with `--base`."
        )
    return named


def revision_of_run(folder: str | Path, base: str) -> str | None:
    """
    Args:
        folder (`str` or `Path`):
            The run folder.
        base (`str`):
            Hub id or folder of a model.

    Returns:
        `str` or `None`: The revision of the model on the Hub that training loaded; `None` where it named none or
        another model, and for folders, which have none.
    """
    named, revision = _named(Path(folder))
    return revision if base == named and not Path(base).expanduser().is_dir() else None


def _named(folder: Path) -> tuple[str, str | None]:
    """Base and revision as training named them."""
    if is_adapter(folder):
        return base_of(folder), revision_of(folder)
    file = folder / CONFIG_NAME
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return str(config.get("model") or ""), config.get("model_revision")
