"""Image classification: one class, several, or a number, for images."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset, DatasetDict
from PIL import Image as Pillow
from transformers import default_data_collator

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks import classes
from hf_transfer_plugin.tasks.base import Task, TaskData
from hf_transfer_plugin.tasks.columns import LABEL_COLUMNS, choose_columns
from hf_transfer_plugin.tasks.labels import SINGLE, LabelScheme, known_labels, read_labels
from hf_transfer_plugin.tasks.media import (
    check_media,
    image_uri,
    look_at_image,
    media_columns,
    read_image,
    with_media,
)
from hf_transfer_plugin.tasks.splitting import hold_out

logger = logging.getLogger(__name__)

THUMBNAIL = 96  # pixels of the longer side, in a table
SHAPES = ((40, 60), (60, 40))  # of two images that a batch must hold side by side


def read(splits: DatasetDict, config: TransferConfig, seed: int) -> TaskData:
    """
    Checks the rows and brings them into the columns `image` and `label`.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        seed (`int`):
            Seed of held-out and drawn rows.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or images or labels are unusable.
    """
    label = choose_columns(splits, config, {"label": LABEL_COLUMNS})["label"]
    if classes.is_unlabelled(splits.get("test"), label):
        logger.warning("The test split has no labels (all are -1) and is left out.")
        splits = DatasetDict({split: rows for split, rows in splits.items() if split != "test"})
    found, column, facts = read_images(splits, config)
    scheme = read_labels(found, label, config)
    plain = DatasetDict({split: _plain(rows, column, label, scheme) for split, rows in found.items()})
    strata = "label" if scheme.problem_type == SINGLE else None
    plain, held_out = hold_out(plain, config, seed, strata=strata, class_names=scheme.class_names)
    columns = {"image": column, "label": label}
    return TaskData(plain, columns, scheme.problem_type, scheme.class_names, held_out, facts=facts)


def read_again(splits: DatasetDict, config: TransferConfig, labelled: bool) -> TaskData:
    """
    As [`read`], for a trained model: the classes are those that the configuration names, and nothing is held out.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        labelled (`bool`):
            Whether the labels are wanted.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or images or labels are unusable.
    """
    label = choose_columns(splits, config, {"label": LABEL_COLUMNS})["label"] if labelled else None
    found, column, facts = read_images(splits, config)
    names, problem = tuple(config.class_names or ()), config.problem_type or SINGLE
    scheme = LabelScheme(problem, names, {}) if label is None else known_labels(found, label, config)
    plain = DatasetDict({split: _plain(rows, column, label, scheme) for split, rows in found.items()})
    columns = {"image": column, **({"label": label} if label else {})}
    return TaskData(plain, columns, scheme.problem_type, scheme.class_names, facts=facts)


def read_images(splits: DatasetDict, config: TransferConfig) -> tuple[DatasetDict, str, dict[str, Any]]:
    """
    Opens every image once, and tells what is there.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            May name the column, and let unreadable files be skipped.

    Returns:
        `tuple[DatasetDict, str, dict]`: The splits, with `{"bytes", "path"}` in the column of images; its name; and
        facts for the record: `skipped` (split -> how many), and `image_modes` (what is there -> how often) where not
        all are in colours.

    Raises:
        ValueError: If there is no such column, or images cannot be opened.
    """
    found, column = media_columns(splits, config, "image")
    kept, told = check_media(found, column, look_at_image, role="image", skip=config.skip_unreadable)
    facts: dict[str, Any] = {"image_modes": told["kinds"]} if set(told["kinds"]) != {"RGB"} else {}
    if told["skipped"]:
        facts["skipped"] = {split: len(names) for split, names in told["skipped"].items()}
        logger.warning("Left out, since they cannot be opened: %s.", "; ".join(sum(told["skipped"].values(), [])[:10]))
    return kept, column, facts


def _plain(rows: Dataset, column: str, label: str | None, scheme: LabelScheme) -> Dataset:
    labels = None if label is None else [scheme.encode(value) for value in rows[label]]
    rows = rows.select_columns([column])
    rows = rows if column == "image" else rows.rename_column(column, "image")
    return rows if labels is None else rows.add_column("label", labels)


@dataclass(frozen=True)
class Preparing:
    """
    Makes a model's inputs of rows when they are read, as Transformers' pipeline makes them of a file.

    Args:
        processor (`BaseImageProcessor`):
            The image processor.
    """

    processor: Any

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """
        Args:
            batch (`Mapping[str, Sequence]`):
                The columns `image` and, where they are known, `labels`.

        Returns:
            `dict[str, Any]`: What the model reads.
        """
        # One by one: some processors make the images of a batch alike.
        made = [self.processor(images=read_image(value), return_tensors="pt") for value in batch["image"]]
        inputs = {name: [one[name][0] for one in made] for name in made[0]}
        return {**inputs, **{name: list(values) for name, values in batch.items() if name != "image"}}


def encode(data: TaskData, processor: Any, max_length: int, model_config: Any) -> tuple[DatasetDict, int]:
    """
    Lets images be opened and prepared when they are read.

    Args:
        data (`TaskData`):
            The rows.
        processor (`BaseImageProcessor`):
            The image processor; it decides on the size.
        max_length (`int`):
            Not needed here.
        model_config (`PretrainedConfig`):
            The model's config; not needed here.

    Returns:
        `tuple[DatasetDict, int]`: Rows that are prepared when they are read, and 0: nothing is too long.
    """
    preparing = Preparing(processor)
    found = {}
    for split, rows in data.splits.items():
        columns = ["image"]
        if "label" in rows.column_names:
            rows, columns = rows.rename_column("label", "labels"), ["image", "labels"]
        found[split] = with_media(rows, columns, preparing)
    return DatasetDict(found), 0


def set_up(model: Any, processor: Any, data: TaskData) -> None:
    """
    Refuses an image processor that leaves images in sizes of their own, of which no batch can be made.

    Args:
        model (`PreTrainedModel`):
            The model.
        processor (`BaseImageProcessor`):
            Its image processor.
        data (`TaskData`):
            The rows.

    Raises:
        ValueError: If two images of other shapes do not become alike.
    """
    made = [processor(images=Pillow.new("RGB", shape), return_tensors="pt") for shape in SHAPES]
    first, second = ({name: tuple(value.shape) for name, value in one.items()} for one in made)
    if first != second:
        raise ValueError(
            f"Images must come out of the processor in one size, but {type(processor).__name__} makes "
            f"{first} of an image of {SHAPES[0]} pixels and {second} of one of {SHAPES[1]}. Give a `size` with "
            "`height` and `width`, or `do_center_crop` with a `crop_size`, in preprocessor_config.json."
        )


def shown(row: Mapping[str, Any], longest: int = 384) -> dict[str, str]:
    """
    Args:
        row (`Mapping`):
            A checked row.
        longest (`int`, *optional*, defaults to 384):
            Pixels of the longer side at most.

    Returns:
        `dict[str, str]`: Its image for the record.
    """
    return {"image": image_uri(row["image"], longest)}


IMAGE_CLASSIFICATION = Task(
    name="image-classification",
    auto_classes=("AutoModelForImageClassification",),
    roles=("image", "label"),
    read=read,
    read_again=read_again,
    encode=encode,
    collator=lambda processor, data: default_data_collator,
    metrics=classes.metrics,
    report=partial(classes.report, show=partial(shown, longest=THUMBNAIL)),
    answers=classes.answers,
    baseline=classes.baseline,
    examples=partial(classes.examples, show=shown),
    best_metric=classes.best_metric,
    options=("class_names", "problem_type", "skip_unreadable"),
    processor="AutoImageProcessor",
    # Some heads also return the states of every place.
    reduce=lambda logits, labels: logits[0] if isinstance(logits, (tuple, list)) else logits,
    set_up=set_up,
    probe=True,
    strategy={"name": "lp-ft", "frozen": 1},
    arguments={"remove_unused_columns": False, "train_sampling_strategy": "random"},
)
