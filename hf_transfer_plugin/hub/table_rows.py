"""Rows of a table on a card and in a Space: what was read of them, which baseline won, and how to ask about one."""

import json
import keyword
from typing import Any

from hf_transfer_plugin.record import TransferRecord

FEATURES = "feature_columns"
BOOSTING, RANKING = "gradient_boosting", "roc_auc"
DECIDING = {  # problem type -> metric, its name, and whether greater is better
    "single_label_classification": ("accuracy", "accuracy", True),
    "multi_label_classification": ("f1_macro", "macro F1", True),
    "regression": ("mse", "mean squared error (lower is better)", False),
}
TAKEN = ("self", "api_name", "fn_index", "headers", "compare_with_base", "label")  # names that a client uses itself
ASKING = """\
def written(value):
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    if value and not 1e-9 <= abs(value) < 1e15:
        return f"{{value:.6g}}"
    places = max(2, 5 - math.floor(math.log10(abs(value) or 1)))
    return f"{{value or 0.0:.{{places}}f}}".rstrip("0").rstrip(".")


row = {{  # in this order; None where nothing is known
{cells}}}
text = "; ".join(f"{{' '.join(name.replace('_', ' ').split())}}: {{written(value)}}" for name, value in row.items())
print(classify(text, top_k=None, truncation=True))"""


def is_table(record: TransferRecord) -> bool:
    """
    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `bool`: Whether the model reads rows of a table.
    """
    return FEATURES in record.options


def inputs_of(record: TransferRecord) -> list[str]:
    """
    Args:
        record (`TransferRecord`):
            The record of a table.

    Returns:
        `list[str]`: For each column a name that Python takes as an argument's, each another.
    """
    found: list[str] = []
    for column in record.options[FEATURES]:
        name = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in column)
        name = f"column_{name}" if not name[:1].isalpha() else name
        while name in found or name in TAKEN or keyword.iskeyword(name):
            name += "_"
        found.append(name)
    return found


def examples_of(record: TransferRecord) -> list[dict[str, Any]]:
    """
    Args:
        record (`TransferRecord`):
            The record of a table.

    Returns:
        `list[dict[str, Any]]`: Its examples by the names of [`inputs_of`], as the fields of the form take them.
    """
    names, kinds = inputs_of(record), record.options[FEATURES]
    return [
        {n: _of_field(row["row"].get(c), kinds[c]) for n, c in zip(names, kinds, strict=True)}
        | ({"label": row["label"]} if "label" in row else {})
        for row in record.examples
    ]


def _of_field(value: Any, kind: str) -> Any:
    if value is None:
        return None if kind in ("number", "date", "text") else "unknown"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def choices_of(record: TransferRecord) -> dict[str, list[str]]:
    """
    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `dict[str, list[str]]`: Column -> the values that its training rows had, where they are few.
    """
    return dict(record.dataset.get("table", {}).get("choices", {}))


def literal(value: Any) -> str:
    """
    Args:
        value (`Any`):
            A JSON value.

    Returns:
        `str`: It as Python writes it.
    """
    return repr(value) if value is None or isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


def asking(record: TransferRecord) -> str:
    """
    Args:
        record (`TransferRecord`):
            The record of a table.

    Returns:
        `str`: Code that writes a row as in training and asks the pipeline `classify`; it needs `math`.
    """
    row = record.examples[0]["row"] if record.examples else dict.fromkeys(record.options[FEATURES])
    cells = "".join(f"    {literal(name)}: {literal(row.get(name))},\n" for name in record.options[FEATURES])
    return ASKING.format(cells=cells)


def table_words(record: TransferRecord) -> list[str]:
    """
    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `list[str]`: Sentences on what was read of each row; none where the data is no table.
    """
    if not is_table(record):
        return []
    columns, facts = record.options[FEATURES], record.dataset.get("table", {})
    kinds = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
    found = [f"Each row is read as one text, name: value for each of {len(columns)} columns in this order: {kinds}."]
    found.append('Missing values are written as "unknown".')
    if facts.get("left_out"):
        told = ", ".join(f"{name} ({why})" for name, why in facts["left_out"].items())
        found.append(f"Columns that are not read: {told}.")
    if facts.get("constant"):
        found.append(f"Columns with the same value in every training row: {', '.join(facts['constant'])}.")
    for name in facts.get("leaks", ()):
        found.append(
            f"Warning: the column {name} tells the label in every training row. If it is not known when the model is "
            "asked, the figures are too good."
        )
    return found


def table_limits(record: TransferRecord) -> list[str]:
    """
    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `list[str]`: What a model cannot do that reads numbers as words; nothing where the data is no table.
    """
    if not is_table(record):
        return []
    return [
        "It reads the columns as words: it does not reckon with numbers, and values beyond those that it learned from "
        "tell it little."
    ]


def verdict(record: TransferRecord) -> str:
    """
    Which of model and gradient boosting won, and whether the measured rows settle it.

    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `str`: Sentences, or nothing where boosting was not measured.
    """
    theirs = record.baselines.get(BOOSTING, {})
    metric, name, greater = DECIDING.get(record.problem_type, ("", "", True))
    if metric not in theirs or metric not in record.metrics:
        return ""
    mine, other = record.metrics[metric], theirs[metric]
    ours, boosted = f"{mine:.3f} of this model", f"{other:.3f} of gradient boosting on the same columns and rows"
    if mine == other:
        found = f"On {name} neither won: {ours}, {boosted}."
    elif (mine > other) == greater:
        found = f"On {name} this model won: {ours} against {boosted}."
    else:
        found = f"On {name} gradient boosting won: {boosted} against {ours}."
    ends = record.intervals.get(f"{metric}_minus_{BOOSTING}")
    if ends:
        low, high = ends
        settled = (
            "leaves zero out, so the difference is more than the luck of the rows"
            if low > 0 or high < 0
            else "holds zero, so these rows do not settle which is better"
        )
        found += (
            f" The 95% interval of the difference, {low:+.3f} to {high:+.3f} (this model minus boosting, paired "
            f"bootstrap over the rows), {settled}."
        )
    won = None if mine == other else (mine > other) == greater
    found += _other_way(record.metrics, theirs, won)
    if "seconds" in theirs and "train" in record.seconds:
        found += f" Boosting took {theirs['seconds']:,.1f} s, training this model {record.seconds['train']:,.1f} s."
    return found


def _other_way(ours: dict[str, float], theirs: dict[str, float], won: bool | None) -> str:
    """Whether the ranking of the rows says otherwise, or where neither won: accuracy hides how a rare class fares."""
    mine, other = ours.get(RANKING), theirs.get(RANKING)
    if mine is None or other is None or mine == other or (mine > other) == won:
        return ""
    ahead = "gradient boosting" if other > mine else "this model"
    return (
        f" By how well the rows are ranked, the area under the ROC curve, {ahead} is ahead: {mine:.3f} of this model, "
        f"{other:.3f} of gradient boosting."
    )
