"""Images and sounds in rows: found, opened and refused alike for every task that sees or hears."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, DatasetDict, Image
from PIL import Image as Pillow
from PIL import ImageOps
from tqdm.auto import tqdm

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks.columns import choose_columns

COLUMNS = {
    "image": ("image", "img", "picture", "photo", "pixel_values", "file", "path", "file_name", "image_path"),
    "audio": ("audio", "sound", "speech", "file", "path", "file_name", "audio_path"),
}
SILENT = 500  # rows that are opened without a progress bar
SMALL = 64  # pixels up to which JPEG would blur an image
# What PIL would cut to 8 bits without a word: X-rays, depth maps, measured values.
TOO_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def media_columns(splits: DatasetDict, config: TransferConfig, role: str) -> tuple[DatasetDict, str]:
    """
    Finds the column of images or sounds, and leaves its values as they lie in the files.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            May name the column; paths that it holds are taken from the folder of its `dataset`.
        role (`str`):
            `"image"` or `"audio"`.

    Returns:
        `tuple[DatasetDict, str]`: The splits, with `{"bytes", "path"}` in that column, and its name.

    Raises:
        ValueError: If there is no such column, or it holds something else.
    """
    column = choose_columns(splits, config, {role: COLUMNS[role]})[role]
    return as_files(splits, column, config, role), column


def as_files(splits: DatasetDict, column: str, config: TransferConfig, role: str, *, flag: str = "") -> DatasetDict:
    """
    Leaves the values of a column of images or sounds as they lie in the files.

    Args:
        splits (`DatasetDict`):
            As loaded.
        column (`str`):
            The column.
        config (`TransferConfig`):
            Paths that the column holds are taken from the folder of its `dataset`.
        role (`str`):
            `"image"`, `"mask"` or `"audio"`.
        flag (`str`, *optional*):
            What names the column, where it is not the role.

    Returns:
        `DatasetDict`: The splits, with `{"bytes", "path"}` in that column.

    Raises:
        ValueError: If it holds something else.
    """
    kind = (Audio if role == "audio" else Image)(decode=False)
    dataset = Path(config.dataset).expanduser()
    folder = dataset if dataset.is_dir() else dataset.parent if dataset.is_file() else None
    found = {}
    for split, rows in splits.items():
        if str(getattr(rows.features[column], "dtype", "")) in ("string", "large_string") and folder is not None:
            paths = [_placed(path, folder) for path in rows[column]]
            # Added first: without any column there would be no rows.
            rows = rows.add_column(f"placed {column}", paths).remove_columns(column)
            rows = rows.rename_column(f"placed {column}", column)
        try:
            found[split] = rows.cast_column(column, kind)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(
                f"The column {column!r} must hold {role} files, their paths or their bytes, but holds "
                f"{rows.features[column]}. Name another with `--{flag or role}_column`."
            ) from error
    return DatasetDict(found)


def _placed(path: str | None, folder: Path) -> str | None:
    """A path as the data names it, from where the data lies."""
    if path is None or "://" in path or Path(path).is_absolute():
        return path
    placed = folder / path
    # Beside the data first: where the command runs, other files may have the same names.
    return path if Path(path).is_file() and not placed.is_file() else str(placed)


def check_media(
    splits: DatasetDict, column: str, look: Callable[[Mapping[str, Any]], Any], *, role: str, skip: bool
) -> tuple[DatasetDict, dict[str, Any]]:
    """
    Opens every file once, before training instead of amid it.

    Args:
        splits (`DatasetDict`):
            As [`media_columns`] gives them.
        column (`str`):
            The column.
        look (`Callable`):
            Opens one value and returns what the record shall count, such as its sampling rate; raises where it cannot.
        role (`str`):
            `"image"` or `"audio"`.
        skip (`bool`):
            Go on without files that cannot be opened.

    Returns:
        `tuple[DatasetDict, dict]`: The splits, and `skipped` (split -> names) and `kinds` (what `look` gave -> how
        often).

    Raises:
        ValueError: If files cannot be opened and are not to be skipped, or none can.
    """
    kept: dict[str, Dataset] = {}
    skipped: dict[str, list[str]] = {}
    kinds: dict[str, int] = {}
    for split, rows in splits.items():
        bad: dict[int, str] = {}
        for number, value in enumerate(
            tqdm(rows[column], desc=f"Opening {split}", unit=role, disable=len(rows) < 500)
        ):
            try:
                kind = look(value)
            except ImportError:
                raise
            except Exception as error:  # noqa: BLE001  a broken file may fail its library in any way
                bad[number] = f"{name_of(value, number)}: {_reason(error)}"
            else:
                kinds[kind] = kinds.get(kind, 0) + 1
        if bad and (not skip or len(bad) == len(rows)):
            hint = "" if len(bad) == len(rows) else ", or leave them out with `--skip_unreadable`"
            raise ValueError(
                f"Every row of {column!r} must hold a readable {role}, but {len(bad)} of {len(rows)} in the {split} "
                f"split do not ({'; '.join(list(bad.values())[:3])}). Mend or remove them{hint}."
            )
        if bad:
            skipped[split] = list(bad.values())
            rows = rows.select([number for number in range(len(rows)) if number not in bad])
        kept[split] = rows
    return DatasetDict(kept), {"skipped": skipped, "kinds": kinds}


def name_of(value: Mapping[str, Any] | None, number: int) -> str:
    """
    Args:
        value (`Mapping`, *optional*):
            `{"bytes", "path"}`.
        number (`int`):
            Number of the row.

    Returns:
        `str`: The file's name, or the row's number where it has none.
    """
    path = (value or {}).get("path")
    return Path(path).name if path else f"row {number}, counted from 0"


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def source_of(value: Mapping[str, Any] | None) -> Any:
    """
    Args:
        value (`Mapping`, *optional*):
            `{"bytes", "path"}`.

    Returns:
        `BytesIO` or `str`: What a library can open.

    Raises:
        ValueError: If it is missing.
    """
    if value is None or (value.get("bytes") is None and not value.get("path")):
        raise ValueError("it is missing")
    return io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]


def read_image(value: Mapping[str, Any] | None) -> Pillow.Image:
    """
    Opens an image as Transformers' pipelines do: turned as its camera says, in 8 bits of red, green and blue.

    Args:
        value (`Mapping`):
            `{"bytes", "path"}`.

    Returns:
        `PIL.Image.Image`: The image.

    Raises:
        ValueError: If it is missing, or its values do not fit 8 bits.
        OSError: If it cannot be read.
    """
    with Pillow.open(source_of(value)) as image:
        if image.mode in TOO_DEEP:
            raise ValueError(
                f"8 bits for each colour are expected, but its mode is {image.mode}; scale its values to 0-255"
            )
        return ImageOps.exif_transpose(image).convert("RGB")


def look_at_image(value: Mapping[str, Any] | None) -> str:
    """
    Opens an image to the end, as small as its format allows.

    Args:
        value (`Mapping`):
            `{"bytes", "path"}`.

    Returns:
        `str`: Its mode, such as `"RGB"` or `"L"`.

    Raises:
        ValueError: If it is missing, or its values do not fit 8 bits.
        OSError: If it cannot be read.
    """
    with Pillow.open(source_of(value)) as image:
        mode = image.mode
        image.draft("RGB", (32, 32))
        image.load()
    if mode in TOO_DEEP:
        raise ValueError(f"8 bits for each colour are expected, but its mode is {mode}; scale its values to 0-255")
    return mode


def with_names(rows: Dataset) -> Iterator[dict[str, Any]]:
    """
    Args:
        rows (`Dataset`):
            Rows as loaded.

    Yields:
        `dict[str, Any]`: Each row, with the path in the place of an image or a sound.
    """
    files = [name for name, kind in rows.features.items() if isinstance(kind, (Image, Audio))]
    for name in files:
        rows = rows.cast_column(name, type(rows.features[name])(decode=False))
    for row in rows:
        yield {**row, **{name: row[name] and row[name]["path"] for name in files}}


def with_media(
    rows: Dataset, columns: Sequence[str], make: Callable[[dict[str, list[Any]]], dict[str, Any]]
) -> Dataset:
    """
    Rows that are opened and prepared when they are read, since prepared images of all rows would not fit on a disk.

    Args:
        rows (`Dataset`):
            Checked rows.
        columns (`Sequence[str]`):
            Columns that are read.
        make (`Callable`):
            Makes model inputs from a batch of columns.

    Returns:
        `Dataset`: The rows; reading one gives the model's inputs.
    """
    return rows.select_columns(list(columns)).with_transform(make)


def image_uri(value: Mapping[str, Any] | None, longest: int = 384) -> str:
    """
    An image for the record, small enough for a page.

    Args:
        value (`Mapping`):
            `{"bytes", "path"}`.
        longest (`int`, *optional*, defaults to 384):
            Pixels of its longer side at most.

    Returns:
        `str`: A data URI: PNG where the image is small, else JPEG.
    """
    return picture_uri(read_image(value), longest)


def picture_uri(picture: Pillow.Image, longest: int = 384) -> str:
    """
    A picture for the record, small enough for a page.

    Args:
        picture (`PIL.Image.Image`):
            The picture, in red, green and blue.
        longest (`int`, *optional*, defaults to 384):
            Pixels of its longer side at most.

    Returns:
        `str`: A data URI: PNG where the picture is small, else JPEG.
    """
    image = picture.copy()
    small = max(image.size) <= SMALL
    image.thumbnail((longest, longest))
    content = io.BytesIO()
    image.save(content, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 85}))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(content.getvalue()).decode()}"
