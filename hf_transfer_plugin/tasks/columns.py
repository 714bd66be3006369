"""Which column plays which role, and whether it holds what that role needs."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict

from hf_transfer_plugin.config import TransferConfig

TEXT_COLUMNS = (
    "text",
    "sentence",
    "review",
    "content",
    "message",
    "body",
    "sentence1",
    "premise",
    "question1",
    "title",
)
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "sentiment", "score", "rating", "stars")


def choose_columns(
    splits: DatasetDict,
    config: TransferConfig,
    guesses: Mapping[str, Sequence[str]],
    *,
    optional: Sequence[str] = (),
    hint: str = "",
) -> dict[str, str]:
    """
    Finds the column of each role in the first split, and asks the others to have it too.

    Args:
        splits (`DatasetDict`):
            The splits.
        config (`TransferConfig`):
            May name columns: `text_column` for the role `"text"`.
        guesses (`Mapping[str, Sequence[str]]`):
            Role -> names of columns, the likeliest first.
        optional (`Sequence[str]`, *optional*):
            Roles that the data need not have.
        hint (`str`, *optional*):
            What else to do where a column is missing: the end of the error.

    Returns:
        `dict[str, str]`: Role -> column.

    Raises:
        ValueError: If a column is missing.
    """
    names = next(iter(splits.values())).column_names
    columns: dict[str, str] = {}
    for role, names_of_role in guesses.items():
        given = getattr(config, f"{role}_column")
        found = given if given is not None else next((guess for guess in names_of_role if guess in names), None)
        if found is not None and found in names:
            columns[role] = found
        elif given is not None or role not in optional:
            asked = f"{given!r}" if given is not None else f"one of {', '.join(names_of_role)}"
            raise ValueError(
                f"The {role} column must be in the data: expected {asked}, but the columns are "
                f"{', '.join(sorted(names))}. Name it with `--{role}_column`.{hint}"
            )
    for split, rows in splits.items():
        require_columns(split, rows, columns)
    return columns


def require_columns(split: str, rows: Dataset, columns: Mapping[str, str]) -> None:
    """
    Args:
        split (`str`):
            Name of the split.
        rows (`Dataset`):
            Its rows.
        columns (`Mapping[str, str]`):
            Role -> column.

    Raises:
        ValueError: If one is missing, or there are no rows.
    """
    missing = sorted(set(columns.values()) - set(rows.column_names))
    if missing:
        raise ValueError(
            f"The {split} split must have the same columns as train, but lacks {missing[0]!r}; it has "
            f"{', '.join(sorted(rows.column_names))}."
        )
    if not len(rows):
        raise ValueError(f"The {split} split must hold rows, but is empty.")


def check_texts(split: str, texts: Sequence[Any], column: str, role: str = "text") -> None:
    """
    Args:
        split (`str`):
            Name of the split.
        texts (`Sequence`):
            Values of the column.
        column (`str`):
            Its name.
        role (`str`, *optional*, defaults to `"text"`):
            Its role.

    Raises:
        ValueError: If one is no text, or empty.
    """
    bad = [row for row, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if bad:
        what = "empty or missing" if texts[bad[0]] is None or isinstance(texts[bad[0]], str) else _kind(texts[bad[0]])
        raise ValueError(
            f"Every row of {column!r} must hold text, but {len(bad)} of {len(texts)} in the {split} split do not "
            f"(row {bad[0]}, counted from 0, is {what}). Remove such rows, or name another `--{role}_column`."
        )


def _kind(value: Any) -> str:
    return "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}"
