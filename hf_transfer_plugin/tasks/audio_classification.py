"""Audio classification: one class, several, or a number, for sounds."""

import logging
from functools import partial
from typing import Any

from datasets import Dataset, DatasetDict

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks import classes
from hf_transfer_plugin.tasks.base import Task, TaskData
from hf_transfer_plugin.tasks.columns import LABEL_COLUMNS, choose_columns
from hf_transfer_plugin.tasks.labels import SINGLE, LabelScheme, known_labels, read_labels
from hf_transfer_plugin.tasks.sound_rows import (
    Preparing,
    SoundBatches,
    is_short,
    least_samples,
    plain_sounds,
    prepared_sounds,
    read_sounds,
    readable_seconds,
    shown,
    tell_cropped,
)
from hf_transfer_plugin.tasks.splitting import hold_out

logger = logging.getLogger(__name__)


def read(splits: DatasetDict, config: TransferConfig, seed: int) -> TaskData:
    """
    Checks the rows and brings them into the columns `audio`, `seconds` and `label`.

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
        ValueError: If a column is missing, or sounds or labels are unusable.
        ImportError: If soundfile, or what it needs of the system, is not installed.
    """
    label = choose_columns(splits, config, {"label": LABEL_COLUMNS})["label"]
    if classes.is_unlabelled(splits.get("test"), label):
        logger.warning("The test split has no labels (all are -1) and is left out.")
        splits = DatasetDict({split: rows for split, rows in splits.items() if split != "test"})
    found, column, facts = read_sounds(splits, config)
    scheme = read_labels(found, label, config)
    plain = DatasetDict({split: _plain(rows, column, label, scheme) for split, rows in found.items()})
    strata = "label" if scheme.problem_type == SINGLE else None
    plain, held_out = hold_out(plain, config, seed, strata=strata, class_names=scheme.class_names)
    columns = {"audio": column, "label": label}
    options = {"max_seconds": config.max_seconds}
    return TaskData(plain, columns, scheme.problem_type, scheme.class_names, held_out, options, facts)


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
        ValueError: If a column is missing, or sounds or labels are unusable.
        ImportError: If soundfile, or what it needs of the system, is not installed.
    """
    label = choose_columns(splits, config, {"label": LABEL_COLUMNS})["label"] if labelled else None
    found, column, facts = read_sounds(splits, config)
    names, problem = tuple(config.class_names or ()), config.problem_type or SINGLE
    scheme = LabelScheme(problem, names, {}) if label is None else known_labels(found, label, config)
    plain = DatasetDict({split: _plain(rows, column, label, scheme) for split, rows in found.items()})
    columns = {"audio": column, **({"label": label} if label else {})}
    options = {"max_seconds": config.max_seconds}
    return TaskData(plain, columns, scheme.problem_type, scheme.class_names, options=options, facts=facts)


def _plain(rows: Dataset, column: str, label: str | None, scheme: LabelScheme) -> Dataset:
    if label is None:
        return plain_sounds(rows, column)
    return plain_sounds(rows, column, label=[scheme.encode(value) for value in rows[label]])


def encode(data: TaskData, processor: Any, max_length: int, model_config: Any) -> tuple[DatasetDict, int]:
    """
    Lets sounds be resampled and prepared when they are read. Of those that are too long the beginning is read; they
    are counted in the facts.

    Args:
        data (`TaskData`):
            The rows; its options and facts are completed.
        processor (`SequenceFeatureExtractor`):
            The feature extractor.
        max_length (`int`):
            Not needed here.
        model_config (`PretrainedConfig`):
            The model's config.

    Returns:
        `tuple[DatasetDict, int]`: Rows that are prepared when they are read, and 0: no tokens are cut.
    """
    seconds, least = readable_seconds(processor, data.options["max_seconds"]), least_samples(model_config)
    data.options["max_seconds"] = seconds
    if least:
        data.options["min_samples"] = least
    tell_cropped(data, seconds)
    preparing = Preparing(processor, seconds, least)
    return DatasetDict({
        split: prepared_sounds(rows, preparing, rows["label"] if "label" in rows.column_names else None)
        for split, rows in data.splits.items()
    }), 0


AUDIO_CLASSIFICATION = Task(
    name="audio-classification",
    auto_classes=("AutoModelForAudioClassification",),
    roles=("audio", "label"),
    read=read,
    read_again=read_again,
    encode=encode,
    collator=lambda processor, data: SoundBatches(processor),
    metrics=classes.metrics,
    report=partial(classes.report, show=shown),
    answers=classes.answers,
    baseline=classes.baseline,
    examples=partial(classes.examples, show=shown, fits=is_short),
    best_metric=classes.best_metric,
    options=("class_names", "problem_type", "skip_unreadable", "max_seconds"),
    processor="AutoFeatureExtractor",
    reduce=lambda logits, labels: logits[0] if isinstance(logits, (tuple, list)) else logits,
    arguments={
        "remove_unused_columns": False,
        "train_sampling_strategy": "random",
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
    },
)
