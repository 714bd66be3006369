"""Rows of sounds: what they hold is counted and told, and they are prepared for a model when they are read."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks.base import TaskData
from hf_transfer_plugin.tasks.media import check_media, media_columns, with_media
from hf_transfer_plugin.tasks.padding import IGNORED, padded
from hf_transfer_plugin.tasks.sounds import Sound, audio_uri, look_into_audio, read_audio

logger = logging.getLogger(__name__)

SHOWN_SECONDS = 15.0  # of a sound in a record
SHOWN_RATE = 16_000


def read_sounds(splits: DatasetDict, config: TransferConfig) -> tuple[DatasetDict, str, dict[str, Any]]:
    """
    Opens every sound once, and tells what is there.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            May name the column, and let unreadable files be skipped.

    Returns:
        `tuple[DatasetDict, str, dict]`: The splits, with `{"bytes", "path"}` in the column of sounds and its length in
        the column `seconds`; the name of that column; and facts for the record: `sampling_rates` (what is there -> how
        often), `skipped` and `silent` (split -> how many).

    Raises:
        ValueError: If there is no such column, or sounds cannot be opened.
        ImportError: If soundfile, or what it needs of the system, is not installed.
    """
    found, column = media_columns(splits, config, "audio")
    seen: list[Sound] = []

    def look(value: Mapping[str, Any] | None) -> str:
        seen.append(look_into_audio(value))
        return f"{seen[-1].rate} Hz, {_channels(seen[-1].channels)}"

    kept, told = check_media(found, column, look, role="audio", skip=config.skip_unreadable)
    facts: dict[str, Any] = {"sampling_rates": told["kinds"]}
    if told["skipped"]:
        facts["skipped"] = {split: len(names) for split, names in told["skipped"].items()}
        logger.warning("Left out, since they cannot be opened: %s.", "; ".join(sum(told["skipped"].values(), [])[:10]))
    start, silent = 0, {}
    for split, rows in kept.items():
        sounds = seen[start : start + len(rows)]
        start += len(rows)
        if "seconds" in rows.column_names:
            rows = rows.remove_columns("seconds")
        kept[split] = rows.add_column("seconds", [sound.seconds for sound in sounds])
        silent[split] = sum(sound.silent for sound in sounds)
    if any(silent.values()):
        facts["silent"] = {split: count for split, count in silent.items() if count}
        logger.warning(
            "%d sounds hold nothing but silence. Look whether they are what you meant.", sum(silent.values())
        )
    _tell_kinds(seen)
    return kept, column, facts


def _channels(count: int) -> str:
    return f"{count} channel{'s' * (count > 1)}"


def _tell_kinds(seen: Sequence[Sound]) -> None:
    rates, several = Counter(sound.rate for sound in seen), sum(sound.channels > 1 for sound in seen)
    if len(rates) > 1:
        listed = ", ".join(f"{count} at {rate} Hz" for rate, count in sorted(rates.items()))
        logger.warning("The sounds have several sampling rates (%s); all are resampled to that of the model.", listed)
    if several:
        logger.warning("%d sounds have more than one channel; their channels are averaged.", several)


def plain_sounds(rows: Dataset, column: str, **others: Sequence[Any]) -> Dataset:
    """
    Args:
        rows (`Dataset`):
            As [`read_sounds`] gives them.
        column (`str`):
            The column of sounds.
        **others (`Sequence`):
            Further columns.

    Returns:
        `Dataset`: The columns `audio`, `seconds`, and the others.
    """
    found = rows.select_columns([column, "seconds"])
    found = found if column == "audio" else found.rename_column(column, "audio")
    for name, values in others.items():
        found = found.add_column(name, list(values))
    return found


def readable_seconds(extractor: Any, wanted: float) -> float:
    """
    Args:
        extractor (`SequenceFeatureExtractor`):
            Some read no more than a window, as Whisper's half a minute.
        wanted (`float`):
            Seconds to read at most.

    Returns:
        `float`: Seconds of a sound that the model reads at most.
    """
    return float(min(wanted, getattr(extractor, "chunk_length", None) or math.inf))


def least_samples(model_config: Any) -> int:
    """
    The shortest sound that a model of convolutions over samples, as wav2vec2, can take: one step after
    `(n - kernel) / stride + 1` of each layer, and as many as SpecAugment hides at a time where it is on.

    Args:
        model_config (`PretrainedConfig`):
            The model's config.

    Returns:
        `int`: Samples; 0 for other models.
    """
    kernels, strides = getattr(model_config, "conv_kernel", None), getattr(model_config, "conv_stride", None)
    if not (isinstance(kernels, (list, tuple)) and isinstance(strides, (list, tuple))):
        return 0
    hides = getattr(model_config, "apply_spec_augment", False) and getattr(model_config, "mask_time_prob", 0)
    samples = getattr(model_config, "mask_time_length", 0) + 1 if hides else 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


@dataclass(frozen=True)
class Preparing:
    """
    Makes a model's inputs of rows when they are read.

    Args:
        extractor (`SequenceFeatureExtractor`):
            The feature extractor.
        seconds (`float`):
            Seconds of each sound to read at most.
        least (`int`, *optional*, defaults to 0):
            Shorter sounds are followed by silence up to so many samples.
    """

    extractor: Any
    seconds: float
    least: int = 0

    def samples(self, value: Mapping[str, Any]) -> np.ndarray:
        """
        Args:
            value (`Mapping`):
                `{"bytes", "path"}`.

        Returns:
            `np.ndarray` of shape `(samples,)`: The sound at the extractor's rate.
        """
        found = read_audio(value, self.extractor.sampling_rate, self.seconds)
        return np.pad(found, (0, max(self.least - len(found), 0)))

    def inputs(self, values: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """
        Args:
            values (`Sequence[Mapping]`):
                `{"bytes", "path"}` of each.

        Returns:
            `dict[str, list]`: What the model reads, not padded to one length.
        """
        rate = self.extractor.sampling_rate
        # Some extractors compute with torch, and an autocast around the model would round what they make.
        with torch.autocast("cpu", enabled=False):
            made = [self.extractor(self.samples(value), sampling_rate=rate) for value in values]
        # What marks padding comes with the batch.
        name = self.extractor.model_input_names[0]
        return {name: [np.asarray(one[name])[0] for one in made]}

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """
        Args:
            batch (`Mapping[str, Sequence]`):
                The columns `audio` and, where they are known, `labels`.

        Returns:
            `dict[str, list]`: What the model reads.
        """
        others = {name: list(values) for name, values in batch.items() if name != "audio"}
        return {**self.inputs(batch["audio"]), **others}


def prepared_sounds(rows: Dataset, preparing: Preparing, labels: Sequence[Any] | None) -> Dataset:
    """
    Args:
        rows (`Dataset`):
            Checked rows with the column `audio`.
        preparing (`Preparing`):
            What makes inputs of them.
        labels (`Sequence`, *optional*):
            Labels of the rows.

    Returns:
        `Dataset`: Rows that are opened and prepared when they are read.
    """
    if labels is None:
        return with_media(rows, ["audio"], preparing)
    return with_media(
        rows.select_columns(["audio"]).add_column("labels", list(labels)), ["audio", "labels"], preparing
    )


@dataclass(frozen=True)
class SoundBatches:
    """
    Makes a batch: sounds are padded by the feature extractor, tokens with -100.

    Args:
        extractor (`SequenceFeatureExtractor`):
            The feature extractor.
    """

    extractor: Any

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows (`Sequence[Mapping]`):
                Prepared rows.

        Returns:
            `dict[str, torch.Tensor]`: The batch.
        """
        name = self.extractor.model_input_names[0]
        batch = dict(self.extractor.pad([{name: row[name]} for row in rows], padding=True, return_tensors="pt"))
        if "labels" not in rows[0]:
            return batch
        labels = [row["labels"] for row in rows]
        first = np.asarray(labels[0])
        if first.ndim and first.dtype.kind != "f":
            batch["labels"] = padded(labels, IGNORED)
        else:
            kind = torch.float32 if first.dtype.kind == "f" else torch.long
            batch["labels"] = torch.as_tensor(np.asarray(labels), dtype=kind)
        return batch


def tell_cropped(data: TaskData, seconds: float) -> None:
    """
    Counts the sounds that the model reads only the beginning of, into the facts of the record.

    Args:
        data (`TaskData`):
            The rows; its facts are completed.
        seconds (`float`):
            Seconds that it reads.
    """
    cut = {split: int((np.asarray(rows["seconds"]) > seconds).sum()) for split, rows in data.splits.items()}
    for split, count in cut.items():
        if count:
            logger.warning(
                "%d of %d sounds of the %s split are longer than %g seconds, and only their beginning is read. See "
                "`--max_seconds`.",
                count,
                len(data.splits[split]),
                split,
                seconds,
            )
    if any(cut.values()):
        data.facts["cropped"] = {split: count for split, count in cut.items() if count}


def is_short(row: Mapping[str, Any]) -> bool:
    """
    Args:
        row (`Mapping`):
            A checked row.

    Returns:
        `bool`: Whether its sound is short enough for a record.
    """
    return row["seconds"] <= SHOWN_SECONDS


def shown(row: Mapping[str, Any]) -> dict[str, str]:
    """
    Args:
        row (`Mapping`):
            A checked row.

    Returns:
        `dict[str, str]`: Its sound, or the beginning of it, for the record.
    """
    return {"audio": audio_uri(read_audio(row["audio"], SHOWN_RATE, SHOWN_SECONDS), SHOWN_RATE)}
