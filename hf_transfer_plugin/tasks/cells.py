"""Cells of a table: what kind a column is, what a value is worth, and how a row is written as text."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from datasets import ClassLabel, Dataset, Value

MISSING = "unknown"  # what stands for a missing value
JOINT = "; "
# Words that mark a missing value in a column of numbers; elsewhere they may be names.
MARKERS = ("na", "n/a", "nan", "null", "none", "?", "-", MISSING)
TOLD = {"date": "date (such as 2024-03-01)"}
BOOLEANS = {"yes": True, "no": False, "true": True, "false": False, "1": True, "0": False}
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*|\d*\.\d+|\d+\.\d*)([eE][+-]?\d+)?")
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d.*)?")
LONG = 8  # words of a value on average, from which a column holds texts
HUGE, TINY = 1e15, 1e-9
WHOLE = 2**63  # from which on a whole number is written as one with a point, as 64 bits cannot hold it


def kind_of(rows: Dataset, column: str) -> str | None:
    """
    Tells what a column holds.

    Args:
        rows (`Dataset`):
            The training rows.
        column (`str`):
            The column.

    Returns:
        `str` or `None`: One of `number`, `boolean`, `date`, `category` and `text`; `None` where a cell holds more than
        one value, or bytes.
    """
    feature = rows.features[column]
    if isinstance(feature, ClassLabel):
        return "category"
    if not isinstance(feature, Value) or feature.dtype in ("binary", "large_binary"):
        return None
    if feature.dtype == "bool":
        return "boolean"
    for kind, starts in {"number": ("int", "uint", "float", "decimal"), "date": ("date", "timestamp")}.items():
        if feature.dtype.startswith(starts):
            return kind
    return _kind_of_words([_line(value) for value in rows[column] if value is not None])


def _kind_of_words(values: Sequence[str]) -> str:
    found = [value for value in values if value]
    known = [value for value in found if value.lower() not in MARKERS]
    # A column of numbers is text only for the words that mark what is missing.
    if known and len(known) < len(found) and all(map(_NUMBER.fullmatch, known)):
        return "number"
    if known and all(value.lower() in ("true", "false") for value in known):
        return "boolean"
    # A file of JSON has moments where a CSV file has their words: both are dates.
    if known and all(map(_is_date, known)):
        return "date"
    words = sum(len(value.split()) for value in found)
    return "text" if words > LONG * max(len(found), 1) else "category"


def _is_date(line: str) -> bool:
    if not _DATE.fullmatch(line):
        return False
    try:
        datetime.fromisoformat(line)
    except ValueError:
        return False
    return True


def read_cells(split: str, rows: Dataset, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """
    Args:
        split (`str`):
            Name of the split, for errors.
        rows (`Dataset`):
            Its rows.
        kinds (`Mapping[str, str]`):
            Column -> kind, in the order of the training.

    Returns:
        `list[dict[str, Any]]`: Of each row the values as JSON has them; `None` for what is missing.

    Raises:
        ValueError: If a value is not of the kind of its column.
    """
    columns = {name: _read_column(split, rows, name, kind) for name, kind in kinds.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _read_column(split: str, rows: Dataset, name: str, kind: str) -> list[Any]:
    feature, values = rows.features[name], list(rows[name])
    if isinstance(feature, ClassLabel):
        values = [None if value is None or value < 0 else feature.int2str(value) for value in values]
    found = []
    for number, value in enumerate(values):
        try:
            found.append(read_value(value, kind))
        except ValueError:
            raise ValueError(
                f"The column {name!r} holds a {TOLD.get(kind, kind)} in each row, as the training rows had it, but "
                f"row {number} of the {split} split, counted from 0, has {value!r}. Correct it, or leave the cell "
                "empty."
            ) from None
    return found


def read_value(value: Any, kind: str) -> Any:
    """
    Args:
        value (`Any`):
            A cell.
        kind (`str`):
            What its column holds.

    Returns:
        `Any`: A number, a truth value, a date as `2024-03-01 14:30:00`, or text; `None` if it is empty, not a number,
        or infinite.

    Raises:
        ValueError: If it is of another kind.
    """
    if isinstance(value, (list, tuple, dict, bytes)):
        raise ValueError(f"A cell must hold one value, but holds {type(value).__name__}.")
    if isinstance(value, Decimal):
        value = float(value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if kind == "number":
        return _read_number(value)
    if kind == "boolean":
        return _read_boolean(value)
    if kind == "date":
        return _read_date(value)
    return written(value) if isinstance(value, (int, float)) else _line(value) or None


def _read_number(value: Any) -> int | float | None:
    if isinstance(value, (int, float)):
        value = int(value) if isinstance(value, bool) else value
        return float(value) if abs(value) >= WHOLE else value
    line = _line(value)
    if not line or line.lower() in MARKERS:
        return None
    found = float(line)
    return found if math.isfinite(found) else None


def _read_boolean(value: Any) -> bool | None:
    line = written(value).lower() if isinstance(value, (int, float)) else _line(value).lower()
    if not line or line in MARKERS:
        return None
    if line not in BOOLEANS:
        raise ValueError(f"A truth value must be one of {', '.join(BOOLEANS)}, but got {value!r}.")
    return BOOLEANS[line]


def _read_date(value: Any) -> str | None:
    """In one way, however a file writes it: the day, and the time behind a blank where it is not midnight."""
    line = written(value) if isinstance(value, (int, float)) else _line(value)
    return None if not line or line.lower() in MARKERS else _line(datetime.fromisoformat(line))


def _line(value: Any) -> str:
    if isinstance(value, datetime) and value.time() == datetime.min.time():
        value = value.date()
    return " ".join((value.isoformat(" ") if isinstance(value, datetime) else str(value)).split())


def written(value: Any) -> str:
    """
    A value as a word or words. Whole numbers keep all digits; others are rounded to six digits, but to no less than
    two behind the point, so that 0.30000000000000004 is 0.3.

    Args:
        value (`Any`):
            A value as [`read_value`] gives it.

    Returns:
        `str`: Its text; `"unknown"` for a missing one.
    """
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return value.isoformat() if isinstance(value, date) else str(value)
    size = abs(value)
    if size and not TINY <= size < HUGE:
        return f"{value:.6g}"
    places = max(2, 5 - math.floor(math.log10(size or 1)))
    return f"{value or 0.0:.{places}f}".rstrip("0").rstrip(".")


def tidy(value: Any) -> Any:
    """
    Args:
        value (`Any`):
            A value as [`read_value`] gives it.

    Returns:
        `Any`: A number as it is written, without noise; anything else as it is.
    """
    return float(written(value)) if isinstance(value, float) else value


def row_text(cells: Mapping[str, Any]) -> str:
    """
    A row as text, after the list template of [TabLLM](https://huggingface.co/papers/2210.10723): `name: value` for
    each column, in one line.

    Args:
        cells (`Mapping[str, Any]`):
            Column -> value, in the order in which they are read.

    Returns:
        `str`: The text; underscores in names are blanks.

    Example:
    ```python
    >>> row_text({"loan_amount": 1200.0, "self_employed": True, "job": None})
    'loan amount: 1200; self employed: yes; job: unknown'
    ```
    """
    return JOINT.join(f"{_line(name.replace('_', ' '))}: {written(value)}" for name, value in cells.items())
