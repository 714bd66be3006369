"""Rows of two towers: pictures with captions, or with classes whose names become captions."""

import logging
from collections import Counter
from typing import Any

from datasets import Dataset, DatasetDict

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks.base import TaskData
from hf_transfer_plugin.tasks.classes import is_unlabelled
from hf_transfer_plugin.tasks.columns import LABEL_COLUMNS, check_texts, choose_columns
from hf_transfer_plugin.tasks.image_classification import read_images
from hf_transfer_plugin.tasks.labels import SINGLE, LabelScheme, known_labels, read_labels
from hf_transfer_plugin.tasks.splitting import hold_out

logger = logging.getLogger(__name__)

CAPTION_COLUMNS = ("caption", "captions", "text", "description", "alt_text", "title", "sentence", "prompt")
TEMPLATE = "a photo of a {label}."


def read(splits: DatasetDict, config: TransferConfig, seed: int) -> TaskData:
    """
    Checks the rows and brings them into the columns `image`, `text` (the caption) and, for classes, `label`.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        seed (`int`):
            Seed of held-out and drawn rows.

    Returns:
        `TaskData`: The rows. Where a class is known, only those of train have a caption: the others are measured
        against the captions of all classes.

    Raises:
        ValueError: If a column is missing, or pictures, captions or classes are unusable.
    """
    role, column = _told_by(splits, config)
    if role == "text":
        return _pairs(splits, config, column, seed)
    if is_unlabelled(splits.get("test"), column):
        logger.warning("The test split has no labels (all are -1) and is left out.")
        splits = DatasetDict({split: rows for split, rows in splits.items() if split != "test"})
    found, image, facts = read_images(splits, config)
    scheme = _one_class(read_labels(found, column, config), column)
    options = _options(config) | {"caption_template": config.caption_template or TEMPLATE}
    captions = _captions(scheme.class_names, options["caption_template"])
    plain = DatasetDict({split: _labelled(rows, image, column, scheme) for split, rows in found.items()})
    plain, held_out = hold_out(plain, config, seed, strata="label", class_names=scheme.class_names)
    plain["train"] = plain["train"].add_column("text", [captions[label] for label in plain["train"]["label"]])
    columns = {"image": image, "label": column}
    return TaskData(plain, columns, SINGLE, scheme.class_names, held_out, options=options, facts=facts)


def read_again(splits: DatasetDict, config: TransferConfig, labelled: bool) -> TaskData:
    """
    As [`read`], for a trained model. Classes that it did not learn are candidates like those that it did: where the
    data has others, it is measured among the data's own.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration; names the classes of training, where there were some.
        labelled (`bool`):
            Whether the classes of the rows are wanted. Captions always are, where the model learned from captions.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or pictures, captions or classes are unusable.
    """
    names, options = tuple(config.class_names or ()), _options(config)
    if not labelled and names:
        found, image, facts = read_images(splits, config)
        plain = DatasetDict({split: _named(rows, {image: "image"}) for split, rows in found.items()})
        return TaskData(plain, {"image": image}, SINGLE, names, options=options, facts=facts)
    role, column = _told_by(splits, config)
    if role == "text":
        return _pairs(splits, config, column, None)
    found, image, facts = read_images(splits, config)
    scheme = _classes_of(found, column, config)
    _captions(scheme.class_names, config.caption_template or TEMPLATE)
    plain = DatasetDict({split: _labelled(rows, image, column, scheme) for split, rows in found.items()})
    columns = {"image": image, "label": column}
    return TaskData(plain, columns, SINGLE, scheme.class_names, options=options, facts=facts)


def captions_of(data: TaskData) -> list[str]:
    """
    Args:
        data (`TaskData`):
            Names the classes, and holds the template.

    Returns:
        `list[str]`: A caption for each class.
    """
    return _captions(data.class_names, data.options.get("caption_template") or TEMPLATE)


def _options(config: TransferConfig) -> dict[str, Any]:
    chosen = {"freeze_tower": config.freeze_tower, "caption_template": config.caption_template}
    return {name: value for name, value in chosen.items() if value is not None}


def _told_by(splits: DatasetDict, config: TransferConfig) -> tuple[str, str]:
    """Whether captions or classes tell what a picture shows, and the column."""
    if config.text_column is not None and config.label_column is not None:
        raise ValueError(
            "Either captions or classes tell what a picture shows, but `text_column` and `label_column` are both "
            "given. Leave one of them out."
        )
    guesses = {"text": CAPTION_COLUMNS, "label": LABEL_COLUMNS}
    if config.label_column is not None:
        del guesses["text"]
    elif config.text_column is not None:
        del guesses["label"]
    columns = choose_columns(splits, config, guesses, optional=("text", "label") if len(guesses) > 1 else ())
    if not columns:
        there = ", ".join(sorted(next(iter(splits.values())).column_names))
        raise ValueError(
            "The data must hold captions or classes of the pictures (a folder for each class), but its columns are "
            f"{there}. Name one with `--text_column` or `--label_column`."
        )
    role = "text" if "text" in columns else "label"
    return role, columns[role]


def _pairs(splits: DatasetDict, config: TransferConfig, column: str, seed: int | None) -> TaskData:
    if config.caption_template is not None and seed is not None:
        raise ValueError(
            "`caption_template` makes captions of class names, but the data has captions. Leave it out, or name the "
            "classes with `--label_column`."
        )
    for split, rows in splits.items():
        check_texts(split, rows[column], column)
    found, image, facts = read_images(splits, config)
    plain = DatasetDict({split: _named(rows, {image: "image", column: "text"}) for split, rows in found.items()})
    held_out = False
    if seed is not None:
        plain, held_out = hold_out(plain, config, seed)
        if len(set(plain["train"]["text"])) < 2:
            raise ValueError("The captions of train must tell pictures apart, but all are the same.")
    columns = {"image": image, "text": column}
    return TaskData(plain, columns, held_out=held_out, options=_options(config), facts=facts)


def _named(rows: Dataset, names: dict[str, str]) -> Dataset:
    """Columns under their roles' names, whatever else goes by these."""
    return rows.select_columns(list(names)).rename_columns({old: new for old, new in names.items() if old != new})


def _labelled(rows: Dataset, image: str, label: str, scheme: LabelScheme) -> Dataset:
    return _named(rows, {image: "image"}).add_column("label", [scheme.encode(value) for value in rows[label]])


def _one_class(scheme: LabelScheme, column: str) -> LabelScheme:
    if scheme.problem_type != SINGLE:
        raise ValueError(
            f"Each picture must have one class in {column!r}, but the labels are a {scheme.problem_type}. Give "
            "captions in `text_column` instead."
        )
    if all(name.isdecimal() for name in scheme.class_names):
        logger.warning("The classes have numbers for names, which say nothing as captions. Give `class_names`.")
    return scheme


def _classes_of(splits: DatasetDict, column: str, config: TransferConfig) -> LabelScheme:
    """The classes of training where the data has no others; else its own."""
    try:
        if config.class_names:
            return known_labels(splits, column, config)
    except ValueError as error:
        logger.warning("Measured among the data's own classes, not those of training: %s", error)
    (rows,) = splits.values()
    own = TransferConfig(model=config.model, dataset=config.dataset)
    return _one_class(read_labels(DatasetDict(train=rows), column, own), column)


def _captions(names: tuple[str, ...], template: str) -> list[str]:
    bare = [name for name in names if not name.strip()]
    if bare:
        raise ValueError("Every class must have a name that can be a caption, but one is empty. Give `class_names`.")
    same = [name for name, times in Counter(" ".join(n.split()).casefold() for n in names).items() if times > 1]
    if same:
        raise ValueError(
            f"Class names must differ by more than case and spaces, but {same[0]!r} stands for several classes. Join "
            "these, or give `class_names`."
        )
    return [template.replace("{label}", name) for name in names]
