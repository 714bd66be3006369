"""Rows for an embedding model: pairs, triplets, pairs with a score or with 0/1, or labelled texts."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks.columns import check_texts, choose_columns

logger = logging.getLogger(__name__)

PAIRS, TRIPLETS, SCORED, BINARY, LABELLED = "pairs", "triplets", "scored-pairs", "binary-pairs", "labelled-texts"
SEARCHED = (PAIRS, TRIPLETS, LABELLED)
LOSSES = {  # form -> losses of sentence-transformers without weights of their own, the default first
    PAIRS: ("MultipleNegativesRankingLoss", "MultipleNegativesSymmetricRankingLoss"),
    TRIPLETS: ("MultipleNegativesRankingLoss", "TripletLoss"),
    SCORED: ("CoSENTLoss", "AnglELoss", "CosineSimilarityLoss"),
    BINARY: ("ContrastiveLoss", "OnlineContrastiveLoss", "CoSENTLoss", "CosineSimilarityLoss"),
    LABELLED: (
        "BatchAllTripletLoss",
        "BatchHardTripletLoss",
        "BatchSemiHardTripletLoss",
        "BatchHardSoftMarginTripletLoss",
    ),
}
FIRST = ("query", "anchor", "question", "sentence1", "text1", "title", "premise", "question1", "sentence", "text")
SECOND = (
    "positive",
    "answer",
    "document",
    "passage",
    "sentence2",
    "text2",
    "response",
    "body",
    "abstract",
    "context",
    "question2",
    "content",
    "text",
)
NEGATIVE = ("negative", "hard_negative")
LABELS = ("score", "similarity_score", "similarity", "label", "labels", "class", "category")
TEXTS = ("text", "text_pair", "negative")


def form_of(rows: Dataset) -> str:
    """
    Args:
        rows (`Dataset`):
            Rows with one column for each role.

    Returns:
        `str`: What they are: a key of `LOSSES`. Texts alone count as labelled ones.
    """
    columns = rows.column_names
    if "text_pair" not in columns:
        return LABELLED
    if "negative" in columns:
        return TRIPLETS
    if "label" not in columns:
        return PAIRS
    return BINARY if set(rows["label"]) <= {0.0, 1.0} else SCORED


def choose_pairs(splits: DatasetDict, config: TransferConfig, *, labelled: bool = True) -> dict[str, str]:
    """
    Finds the columns. A second text is guessed only where the first one is not named.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            May name columns.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether something to learn from or to measure with is wanted; else one column of texts is enough.

    Returns:
        `dict[str, str]`: Role -> column.

    Raises:
        ValueError: If a column is missing, or there is only one.
    """
    columns = choose_columns(splits, config, {"text": FIRST})
    others = () if config.text_column else tuple(name for name in SECOND if name != columns["text"])
    columns |= choose_columns(splits, config, {"text_pair": others}, optional=("text_pair",))
    if "text_pair" in columns:
        columns |= choose_columns(splits, config, {"negative": NEGATIVE}, optional=("negative",))
    elif config.negative_column is not None:
        raise ValueError(
            "`negative_column` names what does not go with the first text, so `text_pair_column` must name what does."
        )
    if labelled and "negative" not in columns:
        columns |= choose_columns(splits, config, {"label": LABELS}, optional=("label",))
    if "negative" in columns and config.label_column is not None:
        raise ValueError("Triplets have no label, but `label_column` is given. Leave out it or `negative_column`.")
    if labelled and "text_pair" not in columns and "label" not in columns:
        names = ", ".join(sorted(next(iter(splits.values())).column_names))
        raise ValueError(
            f"An embedding model learns from pairs of texts, or from texts with labels, but only {columns['text']!r} "
            f"was found among the columns {names}. Name a second one with `--text_pair_column` or `--label_column`."
        )
    twice = [column for column in columns.values() if list(columns.values()).count(column) > 1]
    if twice:
        raise ValueError(f"Each role needs a column of its own, but {twice[0]!r} stands for two. Name another.")
    return columns


def plain_rows(splits: DatasetDict, columns: Mapping[str, str]) -> DatasetDict:
    """
    Checks the rows and brings them into one column for each role, in the order that losses expect.

    Args:
        splits (`DatasetDict`):
            As loaded.
        columns (`Mapping[str, str]`):
            Role -> column.

    Returns:
        `DatasetDict`: `text`, and where there are such `text_pair`, `negative` and `label`.

    Raises:
        ValueError: If texts or labels are unusable.
    """
    values: dict[str, dict[str, list[Any]]] = {}
    for split, rows in splits.items():
        values[split] = {role: list(rows[columns[role]]) for role in (*TEXTS, "label") if role in columns}
        for role in TEXTS:
            if role in columns:
                check_texts(split, values[split][role], columns[role], role)
        _check_triplets(split, values[split])
    if "label" in columns:
        read = _read_scores if "text_pair" in columns else _read_labels
        read(splits, columns["label"], values)
    return DatasetDict({split: Dataset.from_dict(found) for split, found in values.items()})


def _check_triplets(split: str, values: Mapping[str, Sequence[str]]) -> None:
    if "negative" not in values:
        return
    rows = list(zip(values["text"], values["text_pair"], values["negative"], strict=True))
    bad = [number for number, (text, positive, negative) in enumerate(rows) if negative in (text, positive)]
    if bad:
        raise ValueError(
            f"A negative must differ from the text and its positive, but in {len(bad)} of {len(rows)} rows of the "
            f"{split} split it is one of them (row {bad[0]}, counted from 0). Remove such rows."
        )


def _read_scores(splits: DatasetDict, column: str, values: dict[str, dict[str, list[Any]]]) -> None:
    """Numbers of pairs; classes are no numbers, though they are often written so."""
    way = (
        "Name a column of numbers with `--label_column`; or keep only the rows whose texts belong together and remove "
        "the column."
    )
    for split, rows in splits.items():
        feature = rows.features[column]
        if isinstance(feature, ClassLabel) and feature.num_classes > 2:
            names = ", ".join(feature.names[:4])
            raise ValueError(f"The score of a pair must be a number, but {column!r} holds classes ({names}). {way}")
        scores = values[split]["label"]
        bad = [
            number
            for number, score in enumerate(scores)
            if not isinstance(score, (int, float)) or not math.isfinite(score)
        ]
        if bad:
            raise ValueError(
                f"The score of a pair must be a finite number, but {len(bad)} of {len(scores)} in {column!r} of the "
                f"{split} split are not (row {bad[0]}, counted from 0, is {scores[bad[0]]!r}). {way}"
            )
        whole = set(scores) <= {0, 1}
        values[split]["label"] = [int(score) if whole else float(score) for score in scores]
    seen = {score for found in values.values() for score in found["label"]}
    if len(seen) < 2:
        raise ValueError(
            f"The scores of pairs must differ, but all in {column!r} are {next(iter(seen))}. Name another "
            "`--label_column`, or remove it to learn from pairs that belong together."
        )


def _read_labels(splits: DatasetDict, column: str, values: dict[str, dict[str, list[Any]]]) -> None:
    """Labels of texts, numbered: only which are the same counts."""
    for split, found in values.items():
        labels = found["label"]
        bad = [n for n, label in enumerate(labels) if label is None or isinstance(label, (list, dict, float))]
        if bad:
            raise ValueError(
                f"The label of a text must be a word or a whole number, but {len(bad)} of {len(labels)} in {column!r} "
                f"of the {split} split are not (row {bad[0]}, counted from 0, is {labels[bad[0]]!r}). Name another "
                "`--label_column`, or a second text with `--text_pair_column`."
            )
    numbers = {label: n for n, label in enumerate(dict.fromkeys(str(v) for f in values.values() for v in f["label"]))}
    if len(numbers) < 2:
        raise ValueError(f"Texts need at least two different labels, but {column!r} has only {next(iter(numbers))!r}.")
    for found in values.values():
        found["label"] = [numbers[str(label)] for label in found["label"]]


def choose_loss(form: str, config: TransferConfig, rows: Dataset) -> str:
    """
    Args:
        form (`str`):
            What the rows are.
        config (`TransferConfig`):
            May name a loss.
        rows (`Dataset`):
            The training rows.

    Returns:
        `str`: Name of a loss of sentence-transformers.

    Raises:
        ValueError: If such rows are not for it.
    """
    known = LOSSES[form]
    loss = config.loss or known[0]
    if loss not in known:
        raise ValueError(
            f"`loss` for {form.replace('-', ' ')} must be one of {', '.join(known)}, but got {loss!r}. Losses with "
            "weights of their own, which would not be saved with the model, are not among them."
        )
    if loss == "CosineSimilarityLoss" and not all(-1 <= score <= 1 for score in rows["label"]):
        low, high = min(rows["label"]), max(rows["label"])
        raise ValueError(
            f"CosineSimilarityLoss needs scores between -1 and 1, as cosines are, but they lie between {low:g} and "
            f"{high:g}. Scale them, or use CoSENTLoss, for which only their order counts."
        )
    return loss


def same_texts(splits: DatasetDict) -> dict[str, Any]:
    """
    Tells what could make the figures look better than they are.

    Args:
        splits (`DatasetDict`):
            The rows.

    Returns:
        `dict[str, Any]`: `shared_texts`: for validation and test the first texts, and the others, that train has too;
        `same_text_rows`: for each split the rows whose two texts are the same. Nothing where there are none.
    """
    found: dict[str, Any] = {"shared_texts": {}, "same_text_rows": {}}
    for split, rows in splits.items():
        if "text_pair" in rows.column_names:
            same = sum(one == other for one, other in zip(rows["text"], rows["text_pair"], strict=True))
            found["same_text_rows"] |= {split: same} if same else {}
        if split == "train" or "train" not in splits:
            continue
        shared = {
            column: len(set(rows[column]) & set(splits["train"][column]))
            for column in ("text", "text_pair")
            if column in rows.column_names
        }
        if any(shared.values()):
            found["shared_texts"][split] = shared
            told = " and ".join(f"{n} of the column {column!r}" for column, n in shared.items() if n)
            logger.warning("The %s split shares texts with train (%s): its figures flatter the model.", split, told)
    for split, same in found["same_text_rows"].items():
        logger.warning("In %d rows of the %s split both texts are the same: they teach nothing.", same, split)
    return {name: value for name, value in found.items() if value}
