"""Demos that read a row of a table: a field for each column, written into the text that the model was trained on."""

import math
from contextlib import suppress
from datetime import datetime, time
from typing import Any

import gradio as gr
from limits import InputError, check_text
from loading import Settings

MISSING = "unknown"
BOOLEANS = ["yes", "no"]
JOINT = "; "
HUGE, TINY = 1e15, 1e-9
WHOLE = 2**63  # from which on a whole number is written as one with a point, as in training
BESIDE = 150  # pixels that a short field needs at least
LIMIT = "It reads the columns as one text. Leave a field empty where nothing is known: it is read as *unknown*."


def fields(settings: Settings) -> list[tuple[str, str, list[str]]]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.

    Returns:
        `list[tuple[str, str, list[str]]]`: Column, kind, and the values to choose from, if they are few.
    """
    choices = {name: list(words) for name, words in settings.options.get("feature_choices", {}).items()}
    kinds: dict[str, str] = settings.options["feature_columns"]
    known = {name: BOOLEANS if kind == "boolean" else choices.get(name, []) for name, kind in kinds.items()}
    return [(name, kind, known[name]) for name, kind in kinds.items()]


def inputs(settings: Settings) -> list[Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.

    Returns:
        `list[Component]`: A field for each column, two short ones side by side.
    """
    found: list[Any] = []
    waiting: list[tuple[str, tuple[str, str, list[str]]]] = []

    def lay_out() -> None:
        if waiting:
            with gr.Row():
                found.extend(_component(name, *field) for name, field in waiting)
        waiting.clear()

    for name, field in zip(settings.inputs, fields(settings), strict=True):
        if field[1] == "text":
            lay_out()
            found.append(_component(name, *field))
            continue
        waiting.append((name, field))
        if len(waiting) == 2:
            lay_out()
    lay_out()
    return found


def _component(name: str, column: str, kind: str, choices: list[str]) -> Any:
    shown: dict[str, Any] = {"label": label_of(column), "elem_id": name, "min_width": BESIDE}
    if choices:
        return gr.Dropdown([*choices, *([MISSING] if MISSING not in choices else [])], value=None, **shown)
    # An empty field for numbers alone would send 0 until somebody has cleared it.
    told = {"number": "a number", "date": "YYYY-MM-DD"}.get(kind)
    return gr.Textbox(lines=3 if kind == "text" else 1, max_lines=12, placeholder=told, **shown)


def check(settings: Settings, values: list[Any]) -> list[str]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.
        values (`list`):
            What the fields sent.

    Returns:
        `list[str]`: One text, written as in training.

    Raises:
        InputError: If a value is not of its column's kind, or every field is empty.
    """
    row = {
        column: _checked(value, label_of(column), kind, choices)
        for value, (column, kind, choices) in zip(values, fields(settings), strict=True)
    }
    if all(value is None for value in row.values()):
        raise InputError("Every field is empty. Fill in what is known, or choose an example.")
    return [row_text(row)]


def _checked(value: Any, what: str, kind: str, choices: list[str]) -> Any:
    if isinstance(value, str) and value.strip() in ("", MISSING):
        return None
    if value is None:
        return None
    if kind == "number":
        return _number(value, what)
    if kind == "boolean" and isinstance(value, bool):
        return value
    line = " ".join(check_text(value, what).split())
    if kind == "date":
        return _date(line, what)
    if choices and line not in choices:
        raise InputError(f"{what} must be one of {', '.join(choices)} or {MISSING}, but got {line[:50]!r}.")
    return line


def _number(value: Any, what: str) -> int | float:
    found = value
    if isinstance(value, str):
        for reading in (float, int):  # a whole number keeps all its digits
            with suppress(ValueError):
                found = reading(value)
    if isinstance(found, int) and abs(found) >= WHOLE:
        found = float(str(found))  # infinite, where a number itself would fail
    finite = isinstance(found, int) or (isinstance(found, float) and math.isfinite(found))
    if isinstance(found, bool) or not finite:
        raise InputError(f"{what} must be a number, but got {str(value)[:50]!r}.")
    return found


def _date(line: str, what: str) -> str:
    try:
        found = datetime.fromisoformat(line)
    except ValueError:
        raise InputError(f"{what} must be a date such as 2024-03-01, but got {line[:50]!r}.") from None
    return str(found.date()) if found.time() == time() else found.isoformat(" ")


def label_of(column: str) -> str:
    """
    Args:
        column (`str`):
            Name of a column.

    Returns:
        `str`: The name with blanks for underscores.
    """
    return " ".join(column.replace("_", " ").split())


def written(value: Any) -> str:
    """
    Args:
        value (`Any`):
            A value of a row.

    Returns:
        `str`: Its text, as in training: numbers rounded to six digits, but to no less than two behind the point.
    """
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    size = abs(value)
    if size and not TINY <= size < HUGE:
        return f"{value:.6g}"
    places = max(2, 5 - math.floor(math.log10(size or 1)))
    return f"{value or 0.0:.{places}f}".rstrip("0").rstrip(".")


def row_text(row: dict[str, Any]) -> str:
    """
    Args:
        row (`dict[str, Any]`):
            Column -> value, in the order of the training.

    Returns:
        `str`: `name: value` for each column, in one line.
    """
    return JOINT.join(f"{label_of(name)}: {written(value)}" for name, value in row.items())
