"""Automatic speech recognition: the text that is spoken in a sound."""

import logging
from collections import Counter
from typing import Any

from datasets import Dataset, DatasetDict

from hf_transfer_plugin._optional import require
from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.metrics import (
    CharacterErrorRate,
    WordErrorRate,
    bootstrap_interval,
    error_counts,
    error_rate,
)
from hf_transfer_plugin.tasks.base import Outcome, Task, TaskData
from hf_transfer_plugin.tasks.class_report import shortened
from hf_transfer_plugin.tasks.columns import check_texts, choose_columns
from hf_transfer_plugin.tasks.likelihood import token_figures
from hf_transfer_plugin.tasks.sound_rows import is_short, plain_sounds, read_sounds, shown
from hf_transfer_plugin.tasks.speech_vocabulary import complete, sizes
from hf_transfer_plugin.tasks.speech_writing import collate, encode, generate, reduce, set_up, wanted_texts
from hf_transfer_plugin.tasks.splitting import hold_out

logger = logging.getLogger(__name__)

TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript", "transcripts", "normalized_text", "label")


def read(splits: DatasetDict, config: TransferConfig, seed: int) -> TaskData:
    """
    Checks the rows and brings them into the columns `audio`, `seconds` and `text`. Training sounds of more than
    `max_seconds` are left out: their texts tell what is not heard.

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
        ValueError: If a column is missing, or sounds or texts are unusable.
        ImportError: If soundfile or jiwer, or what they need of the system, is not installed.
    """
    require("jiwer", extra="audio")
    plain, columns, facts = _plain(splits, config, labelled=True)
    train = plain["train"]
    kept = [number for number, seconds in enumerate(train["seconds"]) if seconds <= config.max_seconds]
    if len(kept) < len(train):
        out = len(train) - len(kept)
        if not kept:
            raise ValueError(
                f"Training sounds must be at most {config.max_seconds:g} seconds long, but all {out} are longer. Cut "
                "sounds and texts into sentences, or raise `--max_seconds`."
            )
        logger.warning("%d training sounds are longer than %g seconds and are left out.", out, config.max_seconds)
        plain["train"], facts["too_long"] = train.select(kept), {"train": out}
    plain, held_out = hold_out(plain, config, seed)
    return TaskData(plain, columns, held_out=held_out, options=_options(config), facts=facts)


def read_again(splits: DatasetDict, config: TransferConfig, labelled: bool) -> TaskData:
    """
    As [`read`], for a trained model: nothing is held out or left out.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        labelled (`bool`):
            Whether the texts are wanted.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or sounds or texts are unusable.
        ImportError: If soundfile or jiwer, or what they need of the system, is not installed.
    """
    if labelled:
        require("jiwer", extra="audio")
    plain, columns, facts = _plain(splits, config, labelled=labelled)
    return TaskData(plain, columns, options=_options(config), facts=facts)


def _plain(
    splits: DatasetDict, config: TransferConfig, *, labelled: bool
) -> tuple[DatasetDict, dict[str, str], dict[str, Any]]:
    columns = choose_columns(splits, config, {"text": TEXT_COLUMNS}) if labelled else {}
    for split, rows in splits.items() if labelled else ():
        check_texts(split, rows[columns["text"]], columns["text"])
    found, column, facts = read_sounds(splits, config)
    plain = {
        split: plain_sounds(rows, column, **({"text": rows[columns["text"]]} if labelled else {}))
        for split, rows in found.items()
    }
    return DatasetDict(plain), {"audio": column, **columns}, facts


def _options(config: TransferConfig) -> dict[str, Any]:
    spoken = config.language[0] if config.language and len(config.language) == 1 else None
    return {
        "max_seconds": config.max_seconds,
        "max_target_length": config.max_target_length,
        "source_language": config.source_language or spoken,
    }


def metrics(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Tells how the model spells.
        outcome (`Outcome`):
            Sums of each row, and the transcripts if they were written.

    Returns:
        `dict[str, float]`: `wer` and `cer` of the transcripts as they are, `wer_normalized` without case and
        punctuation; and `perplexity` and `token_accuracy` of models that write token by token.
    """
    if "text" not in outcome.rows.column_names:
        return {}
    written = {} if outcome.texts is None else _measured(outcome.texts, wanted_texts(outcome.rows, data))
    return {**written, **token_figures(outcome)}


def _measured(texts: list[str], wanted: list[str]) -> dict[str, float]:
    given = {"predictions": texts, "references": wanted}
    words = WordErrorRate()
    return {
        **words.compute(**given),
        **CharacterErrorRate().compute(**given),
        "wer_normalized": words.compute(**given, normalize=True)["wer"],
    }


def report(data: TaskData, outcome: Outcome, count: int) -> dict[str, Any]:
    """
    Args:
        data (`TaskData`):
            Tells how the model spells.
        outcome (`Outcome`):
            What was written.
        count (`int`):
            Samples at most.

    Returns:
        `dict[str, Any]`: `intervals` of the word error rate, and the first rows that are short as `samples`.
    """
    if outcome.texts is None:
        return {}
    wanted = wanted_texts(outcome.rows, data)
    errors, lengths = error_counts(outcome.texts, wanted)
    interval = bootstrap_interval(lambda rows: error_rate(errors[rows], lengths[rows]), len(errors))
    samples = [
        {**shown(outcome.rows[row]), "label": shortened(wanted[row]), "prediction": shortened(outcome.texts[row])}
        for row in _short(outcome.rows, count)
    ]
    return {"intervals": {"wer": interval}, "samples": samples}


def _short(rows: Dataset, count: int) -> list[int]:
    """Rows for the record."""
    found = (number for number, seconds in enumerate(rows["seconds"]) if is_short({"seconds": seconds}))
    return [number for number, _ in zip(found, range(count), strict=False)]


def answers(data: TaskData, outcome: Outcome) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            Not needed here.
        outcome (`Outcome`):
            What was written.

    Returns:
        `list[dict[str, Any]]`: `prediction` of each row.
    """
    return [{"prediction": text} for text in outcome.texts or ()]


def commonest(data: TaskData, split: str, encoded: DatasetDict) -> tuple[str, dict[str, float]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to measure on.
        encoded (`DatasetDict`):
            Not needed here.

    Returns:
        `tuple`: `"majority"`, and the error rates of always answering the commonest text of train. An empty answer has
        a rate of 1.
    """
    most = Counter(wanted_texts(data.splits["train"], data)).most_common(1)[0][0]
    rows = data.splits[split]
    return "majority", _measured([most] * len(rows), wanted_texts(rows, data))


def examples(data: TaskData, split: str, count: int) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to take them from.
        count (`int`):
            How many.

    Returns:
        `list[dict[str, Any]]`: The first rows that are short; `label` is what is said.
    """
    rows = data.splits[split]
    return [{**shown(rows[row]), "label": shortened(rows[row]["text"])} for row in _short(rows, count)]


SPEECH_RECOGNITION = Task(
    name="automatic-speech-recognition",
    auto_classes=("AutoModelForSpeechSeq2Seq", "AutoModelForCTC"),
    roles=("audio", "text"),
    read=read,
    read_again=read_again,
    encode=encode,
    collator=collate,
    metrics=metrics,
    report=report,
    answers=answers,
    baseline=commonest,
    examples=examples,
    best_metric=lambda data: ("wer", False),
    options=("skip_unreadable", "max_seconds", "max_target_length", "source_language"),
    processor="AutoProcessor",
    complete=complete,
    sizes=sizes,
    reduce=reduce,
    generate=generate,
    set_up=set_up,
    measures_texts=True,
    pretrained_head=True,
    arguments={
        "remove_unused_columns": False,
        "train_sampling_strategy": "random",
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
    },
)
