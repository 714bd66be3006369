"""From a Hub id, a file or a folder to splits of rows."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, DatasetDict, Image, load_dataset, load_dataset_builder, load_from_disk
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks.squad import is_nested, read_nested

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
# What image and sound files end in, and the builder of datasets that reads folders of them.
MEDIA = {
    **dict.fromkeys((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"), "imagefolder"),
    **dict.fromkeys((".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"), "audiofolder"),
}
MIXED = ("changed from", "Failed to parse", "Could not convert", "cannot mix", "Couldn't cast")
NO_ROWS = ("corresponds to no data", "No columns to parse")
ALIASES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}
VERSION = re.compile(r"[-_]v\d+(\.\d+)*$")


def load_splits(config: TransferConfig, *, for_training: bool = True) -> DatasetDict:
    """
    Loads the splits that a configuration names.

    Args:
        config (`TransferConfig`):
            The configuration.
        for_training (`bool`, *optional*, defaults to `True`):
            Whether there must be a training split.

    Returns:
        `DatasetDict`: The splits `train`, `validation` and `test`, as far as the data has them.

    Raises:
        ValueError: If the data is missing, unreadable or has no such split.
    """
    found = _load(config)
    if isinstance(found, Dataset):
        found = DatasetDict({config.train_split: found})
    found = _undecoded(found)
    wanted = {"train": config.train_split, "validation": config.validation_split, "test": config.test_split}
    splits = DatasetDict({role: found[name] for role, name in wanted.items() if name in found})
    if not splits and len(found) == 1:
        splits["train"] = next(iter(found.values()))
    if "train" not in splits and for_training:
        raise ValueError(
            f"`train_split` must be one of the dataset's splits, {', '.join(sorted(found))}, but got "
            f"{config.train_split!r}."
        )
    return splits


def _undecoded(splits: DatasetDict) -> DatasetDict:
    """Images and sounds as they lie in their files: each task opens them itself, and names those that it cannot."""
    found = DatasetDict(splits)
    for split, rows in splits.items():
        for column, feature in rows.features.items():
            if isinstance(feature, (Image, Audio)) and feature.decode:
                rows = rows.cast_column(column, type(feature)(decode=False))
        found[split] = rows
    return found


def _load(config: TransferConfig) -> Any:
    path = Path(config.dataset).expanduser()
    if path.is_file() and path.suffix.lower() in MEDIA:
        role = MEDIA[path.suffix.lower()].removesuffix("folder")
        return DatasetDict({"train": Dataset.from_dict({role: [str(path)]})})
    if path.is_file():
        return _read_files({"train": path})
    if path.is_dir():
        return _load_folder(path)
    if path.suffix.lower() in FORMATS or config.dataset.startswith(("/", "./", "../", "~")):
        raise ValueError(f"`dataset` names a file or folder that does not exist: {str(path)!r}. Check the path.")
    try:
        return load_dataset(config.dataset, config.dataset_config)
    except (DatasetNotFoundError, ConnectionError, OSError, ValueError) as error:
        raise ValueError(
            f"`dataset` must be a Hub id, a file or a folder, but {config.dataset!r} could not be loaded: "
            f"{_first_line(error)}"
        ) from error


def _load_folder(path: Path) -> Any:
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        return load_from_disk(str(path))
    media = _media_of(path)
    if media is not None:
        return _load_media(path, media)
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in FORMATS:
            # SQuAD's files are called train-v2.0.json and dev-v2.0.json.
            stem = VERSION.sub("", file.stem) if is_nested(file) else file.stem
            split = ALIASES.get(stem.lower(), stem)
            if file.suffix.lower() == ".txt" and split not in {"train", *ALIASES.values(), "test"}:
                continue  # notes beside the data
            if split in files:
                raise ValueError(
                    f"`dataset` must have one file for each split, but {files[split].name!r} and {file.name!r} are "
                    f"both {split!r}. Remove one of them."
                )
            files[split] = file
    if not files:
        raise ValueError(
            f"`dataset` is a folder without {', '.join(sorted(FORMATS))} files, images or sounds: {str(path)!r}. Name "
            "the files after their splits, e.g. train.csv and test.csv."
        )
    return _read_files(files)


def _media_of(path: Path) -> str | None:
    """The builder for a folder of images or sounds, which at most a metadata file stands beside."""
    if any(file.suffix.lower() in FORMATS and file.stem != "metadata" for file in path.iterdir()):
        return None
    found = Counter(kind for file in path.rglob("*") if (kind := MEDIA.get(file.suffix.lower())) and file.is_file())
    return found.most_common(1)[0][0] if found else None


def _load_media(path: Path, kind: str) -> Any:
    try:
        if kind == "imagefolder":
            return load_dataset(kind, data_dir=str(path))
        builder = load_dataset_builder(kind, data_dir=str(path), cache_dir=f"{HF_DATASETS_CACHE}/sounds_as_files")
        # To note the path of a file, the feature of sounds wants torchcodec; that of images notes it as it is.
        builder.BASE_FEATURE = Image
        builder.download_and_prepare()
        splits = builder.as_dataset()
        return DatasetDict({split: rows.cast_column("audio", Audio(decode=False)) for split, rows in splits.items()})
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise ValueError(
            f"`dataset` must be a folder with one folder for each class, or a metadata file that names every file, "
            f"but {str(path)!r} could not be read: {_first_line(error.__cause__ or error)}."
        ) from error


def _read_files(files: dict[str, Path]) -> DatasetDict:
    splits = {}
    for split, file in files.items():
        if file.suffix.lower() not in FORMATS:
            raise ValueError(f"`dataset` must be one of {', '.join(sorted(FORMATS))}, but got {str(file)!r}.")
        if not file.stat().st_size:
            raise ValueError(f"`dataset` must hold rows, but {str(file)!r} is empty.")
        if is_nested(file):
            splits[split] = read_nested(file)
            continue
        suffix = FORMATS[file.suffix.lower()]
        # Words such as "None" or "NA" are text; only an empty cell is missing.
        options: dict[str, Any] = {"keep_default_na": False, "na_values": [""]} if suffix == "csv" else {}
        if file.suffix.lower() == ".tsv":
            options["sep"] = "\t"
        try:
            splits[split] = load_dataset(suffix, data_files={"rows": str(file)}, split="rows", **options)
        except (DatasetGenerationError, ValueError, OSError) as error:
            cause = error.__cause__ or error
            if any(sign in str(cause) for sign in NO_ROWS):
                raise ValueError(f"`dataset` must hold rows, but {str(file)!r} has none.") from error
            mixed = any(sign in str(cause) for sign in MIXED)
            hint = " A column must hold values of one type; mixed labels are written as text." if mixed else ""
            raise ValueError(f"{str(file)!r} could not be read as {suffix}: {_first_line(cause)}.{hint}") from error
    return DatasetDict(splits)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
