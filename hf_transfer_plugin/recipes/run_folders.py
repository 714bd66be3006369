"""Run folders that are made of others: what is read of them, and a new one that is whole or not there."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_transfer_plugin.adapters.loading import is_adapter
from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.recipes.pretrained import load_processor
from hf_transfer_plugin.record import TransferRecord


def read_run(run: str | Path) -> tuple[Path, TransferRecord]:
    """
    Args:
        run (`str` or `Path`):
            A run folder, or its record.

    Returns:
        `tuple[Path, TransferRecord]`: The folder and the record.

    Raises:
        ValueError: If there is no record.
    """
    record = TransferRecord.load(run)
    return (Path(run) if Path(run).is_dir() else Path(run).parent), record


def require_adapter(folder: Path) -> None:
    """
    Args:
        folder (`Path`):
            A run folder.

    Raises:
        ValueError: If it holds no adapter.
    """
    if not is_adapter(folder):
        raise ValueError(
            f"A run with an adapter is needed, but {str(folder)!r} holds a whole model. Train one with `--adapter "
            "lora`, or make a LoRA of it with `hf-transfer-plugin extract`."
        )


def processor_of(folder: Path, record: TransferRecord) -> Any:
    """
    Args:
        folder (`Path`):
            A run folder.
        record (`TransferRecord`):
            Its record.

    Returns:
        `PreTrainedTokenizerBase`: Its tokenizer.
    """
    return load_processor(TransferConfig(model=str(folder), dataset="-", task=record.task))


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """
    A folder beside `output` that takes its name when all is well, and goes when not.

    Args:
        output (`str` or `Path`):
            The new folder.

    Yields:
        `Path`: The folder to write into.

    Raises:
        ValueError: If `output` exists.
    """
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


def unmeasured(record: TransferRecord) -> TransferRecord:
    """
    Args:
        record (`TransferRecord`):
            A record.

    Returns:
        `TransferRecord`: The record without what was measured with other weights.
    """
    measured = ("metrics", "metrics_split", "per_class", "confusion_matrix", "intervals", "calibration", "errors")
    emptied = {name: type(getattr(record, name))() for name in (*measured, "samples", "per_subset", "baselines")}
    seconds = {name: value for name, value in record.seconds.items() if name != "evaluate"}
    return replace(record, **emptied, seconds=seconds, created=datetime.now(UTC).strftime("%Y-%m-%d"))


def weights_size(folder: Path) -> int:
    """
    Args:
        folder (`Path`):
            A run folder.

    Returns:
        `int`: Bytes of its weights.
    """
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
