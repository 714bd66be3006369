"""Lists that stand as text in the cells of a table, as CSV has no others: `["a", "b"]`."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

from datasets import DatasetDict

QUOTED = re.compile(r"\s*\[\s*['\"].*\]\s*", re.DOTALL)


def list_of(cell: str) -> list[Any] | None:
    """
    Args:
        cell (`str`):
            The text of a cell.

    Returns:
        `list`: What it holds, if it is a list of words, numbers or nothing written as JSON; `None` otherwise.

    Example:
    ```python
    >>> list_of('["a", "b"]')
    ['a', 'b']
    >>> list_of("a, b") is None
    True
    ```
    """
    if not cell.lstrip().startswith("["):
        return None
    try:
        found = json.loads(cell)
    except ValueError:
        return None
    nested = any(isinstance(value, (list, dict)) for value in found)
    return None if nested else found


def read_lists(cells: Mapping[str, Sequence[Any]], column: str) -> dict[str, list[Any]]:
    """
    Reads the lists of a column whose cells are all lists written as JSON. Other columns are left as they are.

    Args:
        cells (`Mapping[str, Sequence]`):
            Split -> values of the column.
        column (`str`):
            Its name.

    Returns:
        `dict[str, list]`: Split -> values, lists where the column holds lists.

    Raises:
        ValueError: If some cells are lists and some are other text, or one is a list that is no JSON.
    """
    found = {
        split: [list_of(cell) if isinstance(cell, str) else cell for cell in values] for split, values in cells.items()
    }
    texts = (cell for values in cells.values() for cell in values if isinstance(cell, str))
    if not any(list_of(text) is not None or QUOTED.fullmatch(text) for text in texts):
        return {split: list(values) for split, values in cells.items()}
    for split, values in cells.items():
        for row, (cell, read) in enumerate(zip(values, found[split], strict=True)):
            if isinstance(cell, str) and read is None:
                raise ValueError(
                    f"Cells of {column!r} must all be lists written as JSON, or none may be, but row {row} of the "
                    f'{split} split, counted from 0, is {_short(cell)}. Write every row as `["a", "b"]`, also with '
                    "one entry or none."
                )
    return found


def with_lists(splits: DatasetDict, columns: Collection[str]) -> DatasetDict:
    """
    As [`read_lists`], for whole splits.

    Args:
        splits (`DatasetDict`):
            The splits.
        columns (`Collection[str]`):
            Columns that may hold lists as text.

    Returns:
        `DatasetDict`: The splits, with lists in those columns.

    Raises:
        ValueError: If a column holds lists in some cells only, or entries of several types.
    """
    found = DatasetDict(splits)
    for column in columns:
        cells = {split: list(rows[column]) for split, rows in splits.items()}
        if not any(isinstance(cell, str) for values in cells.values() for cell in values):
            continue
        read = read_lists(cells, column)
        for split, values in read.items():
            lists = [value for value in values if isinstance(value, list)]
            kinds = sorted({type(value).__name__ for value in chain.from_iterable(lists) if value is not None})
            if len(kinds) > 1:
                raise ValueError(
                    f"Entries of the lists in {column!r} must be all words or all whole numbers, but are of type "
                    f"{', '.join(kinds)} in the {split} split. Write all as words."
                )
            if values != cells[split]:
                found[split] = found[split].remove_columns(column).add_column(column, values)
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
