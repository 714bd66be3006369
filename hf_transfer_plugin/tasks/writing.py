"""Summaries and translations: texts that a model writes for a text, and how near they come to those wanted."""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from hf_transfer_plugin._optional import require
from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.metrics import Rouge, Translation, bootstrap_interval, rouge_rows
from hf_transfer_plugin.metrics.texts import bleu_tokenizer
from hf_transfer_plugin.tasks.answering import collate, encode, generate, set_up
from hf_transfer_plugin.tasks.base import Outcome, Task, TaskData
from hf_transfer_plugin.tasks.class_report import shortened
from hf_transfer_plugin.tasks.columns import check_texts, choose_columns
from hf_transfer_plugin.tasks.languages import PAIRS, unfold_pairs
from hf_transfer_plugin.tasks.likelihood import answer_sums, perplexity_interval, token_figures
from hf_transfer_plugin.tasks.splitting import hold_out

logger = logging.getLogger(__name__)

SUMMARY_COLUMNS = {
    "text": ("text", "document", "article", "dialogue", "source", "content", "report", "body"),
    "target": ("summary", "highlights", "abstract", "target", "headline", "title"),
}
TRANSLATION_COLUMNS = {
    "text": ("source", "text", "src", "sentence", "en", "english"),
    "target": ("target", "translation", "tgt", "es", "de", "fr"),
}
MODULES = {"summarization": "rouge_score.rouge_scorer", "translation": "sacrebleu"}
SENTENCE = re.compile(r"(?<=[.!?])\s+")
EXAMPLE = 1500


def read(splits: DatasetDict, config: TransferConfig, seed: int) -> TaskData:
    """
    Checks the rows and brings them into the columns `text` and `target`.

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
        ValueError: If a column is missing, or texts are unusable.
        ImportError: If the package of the metrics is not installed.
    """
    require(MODULES[config.task], extra="text")
    plain, columns = _plain(splits, config, labelled=True)
    train = plain["train"]
    if all(text == target for text, target in zip(train["text"], train["target"], strict=True)):
        raise ValueError(
            f"The target must differ from the text, but {columns['target']!r} is the same as {columns['text']!r} in "
            "every row of train. Name the right column with `--target_column`."
        )
    plain, held_out = hold_out(plain, config, seed)
    return TaskData(plain, columns, held_out=held_out, options=_options(config, columns))


def read_again(splits: DatasetDict, config: TransferConfig, labelled: bool) -> TaskData:
    """
    As [`read`], for a trained model: nothing is held out.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        labelled (`bool`):
            Whether the targets are wanted.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or texts are unusable.
        ImportError: If the package of the metrics is not installed and they are wanted.
    """
    if labelled:
        require(MODULES[config.task], extra="text")
    plain, columns = _plain(splits, config, labelled=labelled)
    return TaskData(plain, columns, options=_options(config, columns))


def _plain(splits: DatasetDict, config: TransferConfig, *, labelled: bool) -> tuple[DatasetDict, dict[str, str]]:
    names = next(iter(splits.values())).column_names
    named = {config.text_column, config.target_column} & set(names)
    if config.task == "translation" and PAIRS in names and not named and _holds_pairs(splits):
        splits, columns = unfold_pairs(splits, config, labelled=labelled)
    else:
        columns = _columns(splits, config, labelled=labelled)
    for split, rows in splits.items():
        for role, column in columns.items():
            check_texts(split, rows[column], column, role)
    plain = {
        split: Dataset.from_dict({role: list(rows[name]) for role, name in columns.items()})
        for split, rows in splits.items()
    }
    return DatasetDict(plain), columns


def _holds_pairs(splits: Mapping[str, Dataset]) -> bool:
    return not isinstance(next(iter(splits.values()))[0][PAIRS], str)


def _columns(splits: DatasetDict, config: TransferConfig, *, labelled: bool) -> dict[str, str]:
    if config.task == "summarization":
        guesses: dict[str, tuple[str, ...]] = dict(SUMMARY_COLUMNS)
    else:
        named = {"text": config.source_language, "target": config.target_language}
        guesses = {
            role: (*((code, code.split("_")[0]) if (code := named[role]) else ()), *columns)
            for role, columns in TRANSLATION_COLUMNS.items()
        }
    columns = choose_columns(splits, config, guesses if labelled else {"text": guesses["text"]})
    if labelled and columns["text"] == columns["target"]:
        raise ValueError(
            f"Text and target must be two columns, but both are {columns['text']!r}. Name them with `--text_column` "
            "and `--target_column`."
        )
    return columns


def _options(config: TransferConfig, columns: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"prompt": config.prompt, "max_target_length": config.max_target_length}
    if config.task == "translation":
        found["source_language"] = config.source_language
        found["target_language"] = config.target_language
    return found


def summary_metrics(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Not needed here.
        outcome (`Outcome`):
            Sums of each row, and the summaries if they were written.

    Returns:
        `dict[str, float]`: `perplexity` and `token_accuracy` of the targets, and ROUGE of the summaries.
    """
    return _figures(outcome, lambda texts, wanted: Rouge().compute(predictions=texts, references=wanted))


def translation_metrics(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Not needed here.
        outcome (`Outcome`):
            Sums of each row, and the translations if they were written.

    Returns:
        `dict[str, float]`: `perplexity` and `token_accuracy` of the targets, and BLEU and chrF of the translations.
    """
    return _figures(outcome, lambda texts, wanted: _translated(data, texts, wanted))


def _translated(data: TaskData, texts: list[str], wanted: list[str]) -> dict[str, float]:
    """A column that is named after the language will do where the language is not named."""
    language = data.options.get("target_language") or data.columns.get("target")
    return Translation().compute(predictions=texts, references=wanted, tokenize=bleu_tokenizer(language))


def _figures(outcome: Outcome, compare: Callable[[list[str], list[str]], dict[str, float]]) -> dict[str, float]:
    if "target" not in outcome.rows.column_names:
        return {}
    written = {} if outcome.texts is None else compare(outcome.texts, list(outcome.rows["target"]))
    return {**token_figures(outcome), **written}


def report(data: TaskData, outcome: Outcome, count: int) -> dict[str, Any]:
    """
    Args:
        data (`TaskData`):
            Not needed here.
        outcome (`Outcome`):
            What was written.
        count (`int`):
            Samples at most.

    Returns:
        `dict[str, Any]`: `intervals`, and the first rows as `samples`.
    """
    found: dict[str, Any] = {"intervals": perplexity_interval(outcome)}
    if outcome.texts is not None:
        rows = outcome.rows.select(range(min(count, len(outcome.rows))))
        found["samples"] = [
            {"text": shortened(row["text"]), "label": shortened(row["target"]), "prediction": shortened(text, EXAMPLE)}
            for row, text in zip(rows, outcome.texts, strict=False)
        ]
    return found


def summary_report(data: TaskData, outcome: Outcome, count: int) -> dict[str, Any]:
    """
    Args:
        data (`TaskData`):
            Not needed here.
        outcome (`Outcome`):
            What was written.
        count (`int`):
            Samples at most.

    Returns:
        `dict[str, Any]`: As [`report`]; the interval is that of ROUGE-L where summaries were written.
    """
    found = report(data, outcome, count)
    if outcome.texts is not None:
        scores = rouge_rows(outcome.texts, list(outcome.rows["target"]))["rougeL"]
        found["intervals"] = {"rougeL": bootstrap_interval(lambda rows: float(scores[rows].mean()), len(scores))}
    return found


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


def lead(data: TaskData, split: str, encoded: DatasetDict) -> tuple[str, dict[str, float]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to measure on.
        encoded (`DatasetDict`):
            Not needed here.

    Returns:
        `tuple`: `"lead"`, and ROUGE of the first sentences of the texts, as many as the targets of train have.
    """
    counts = [len(SENTENCE.split(text.strip())) for text in data.splits["train"]["target"]]
    first = max(round(float(np.mean(counts))), 1)
    texts = [" ".join(SENTENCE.split(text.strip())[:first]) for text in data.splits[split]["text"]]
    return "lead", Rouge().compute(predictions=texts, references=list(data.splits[split]["target"]))


def copied(data: TaskData, split: str, encoded: DatasetDict) -> tuple[str, dict[str, float]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to measure on.
        encoded (`DatasetDict`):
            Not needed here.

    Returns:
        `tuple`: `"copy"`, and BLEU and chrF of the text left as it is.
    """
    rows = data.splits[split]
    return "copy", _translated(data, list(rows["text"]), list(rows["target"]))


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
        `list[dict[str, Any]]`: The first rows, with long texts shortened; `label` is what was wanted.
    """
    rows = data.splits[split]
    return [
        {"text": shortened(row["text"], EXAMPLE), "label": shortened(row["target"], EXAMPLE)}
        for row in rows.select(range(min(count, len(rows))))
    ]


def _task(name: str, **functions: Any) -> Task:
    languages = ("source_language", "target_language") if name == "translation" else ()
    return Task(
        name=name,
        auto_classes=("AutoModelForSeq2SeqLM", "AutoModelForCausalLM"),
        roles=("text", "target"),
        read=read,
        read_again=read_again,
        encode=lambda data, processor, max_length, config: encode(name, data, processor, max_length, config),
        collator=collate,
        answers=answers,
        examples=examples,
        options=("prompt", "max_target_length", *languages),
        reduce=answer_sums,
        generate=generate,
        set_up=lambda model, processor, data: set_up(name, model, processor, data),
        measures_texts=True,
        pretrained_head=True,
        arguments={"per_device_train_batch_size": 8, "per_device_eval_batch_size": 16},
        **functions,
    )


SUMMARIZATION = _task(
    "summarization",
    metrics=summary_metrics,
    report=summary_report,
    baseline=lead,
    best_metric=lambda data: ("rougeL", True),
)
TRANSLATION = _task(
    "translation",
    metrics=translation_metrics,
    report=report,
    baseline=copied,
    best_metric=lambda data: ("chrf", True),
)
