"""Question answering: the span of a context that answers a question, or that none does."""

import logging
import re
from collections import Counter
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import DataCollatorWithPadding

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.metrics import bootstrap_interval, squad_rows
from hf_transfer_plugin.tasks.base import Outcome, Task, TaskData
from hf_transfer_plugin.tasks.columns import check_texts, choose_columns
from hf_transfer_plugin.tasks.excerpts import excerpt
from hf_transfer_plugin.tasks.splitting import hold_out_groups
from hf_transfer_plugin.tasks.squad import read_answers, with_places, without_hidden_answers
from hf_transfer_plugin.tasks.windows import best_spans, encode
from hf_transfer_plugin.tasks.word_alignment import require_fast

logger = logging.getLogger(__name__)

QUESTION_COLUMNS = ("question", "query")
CONTEXT_COLUMNS = ("context", "passage", "paragraph", "text", "document")
ANSWER_COLUMNS = ("answers", "answer")
PLACE_COLUMN = "answer_start"
SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
SHORT_CONTEXT = 600


def read(splits: DatasetDict, config: TransferConfig, seed: int) -> TaskData:
    """
    Checks the rows and brings them into the columns `question`, `context` and `answers`, the last as
    `{"text": [...], "answer_start": [...]}`. An answer that is given as text alone stands where the column
    `answer_start` says; without one it is looked for in the context, and its first occurrence taken. A test split
    whose answers are hidden is left out. Where validation is held out of train, no context is in both, if there are
    enough.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        seed (`int`):
            Seed of held-out and drawn rows.

    Returns:
        `TaskData`: The rows; `options` has the `stride`, where one is set, and `no_answer`: whether
        training rows have no answer.

    Raises:
        ValueError: If a column is missing, questions, contexts or answers are unusable, or nothing could be measured.
    """
    columns = _checked_columns(splits, config, labelled=True)
    usable = without_hidden_answers(_plain(splits, columns), columns["answers"], config.validation_fraction)
    plain, held_out = hold_out_groups(usable, config, seed, "context")
    empty = {split: sum(not answer["text"] for answer in rows["answers"]) for split, rows in plain.items()}
    if empty["train"] == len(plain["train"]):
        raise ValueError(
            f"The train split must hold answers in {columns['answers']!r}, but none of its {empty['train']} rows has "
            "one. Name another `--answers_column`, or add rows with answers."
        )
    for split, count in empty.items():
        if count:
            logger.info("%d of %d rows of the %s split have no answer.", count, len(plain[split]), split)
        if count and not empty["train"]:
            logger.warning(
                "%d rows of the %s split have no answer, but every training row has one: the model will answer "
                "always, and those rows count as wrong.",
                count,
                split,
            )
    return TaskData(plain, columns, held_out=held_out, options=_options(config, no_answer=empty["train"] > 0))


def read_again(splits: DatasetDict, config: TransferConfig, labelled: bool) -> TaskData:
    """
    As [`read`], for a trained model; nothing is held out. Whether the model may give no answer is told here from the
    rows; the record of its training knows better.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        labelled (`bool`):
            Whether the answers are wanted.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or questions, contexts or answers are unusable.
    """
    columns = _checked_columns(splits, config, labelled=labelled)
    plain = _plain(splits, columns)
    empty = labelled and any(not answer["text"] for rows in plain.values() for answer in rows["answers"])
    return TaskData(plain, columns, options=_options(config, no_answer=empty))


def _options(config: TransferConfig, *, no_answer: bool) -> dict[str, Any]:
    return {"stride": config.stride, "no_answer": no_answer}


def _checked_columns(splits: DatasetDict, config: TransferConfig, *, labelled: bool) -> dict[str, str]:
    guesses = {"question": QUESTION_COLUMNS, "context": CONTEXT_COLUMNS}
    columns = choose_columns(splits, config, {**guesses, **({"answers": ANSWER_COLUMNS} if labelled else {})})
    for split, rows in splits.items():
        for role in guesses:
            check_texts(split, rows[columns[role]], columns[role], role)
    return columns


def _plain(splits: DatasetDict, columns: dict[str, str]) -> DatasetDict:
    plain = DatasetDict()
    for split, rows in splits.items():
        values = {role: list(rows[column]) for role, column in columns.items()}
        if "answers" in columns:
            if PLACE_COLUMN in rows.column_names:
                values["answers"] = with_places(values["answers"], rows[PLACE_COLUMN])
            values["answers"] = read_answers(split, values["context"], values["answers"], columns["answers"])
        plain[split] = Dataset.from_dict(values)
    return plain


def set_up(model: Any, processor: Any, data: TaskData) -> None:
    """
    Args:
        model (`PreTrainedModel`):
            The model; any will do.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer; is made to pad on the right, where the outputs of a window are looked for.
        data (`TaskData`):
            Not needed here.

    Raises:
        ValueError: If the tokenizer does not tell where in the text a token stands.
    """
    require_fast(processor, "question-answering", "where in the text a token stands")
    processor.padding_side = "right"


def reduce(logits: Any, labels: Any) -> Any:
    """
    Args:
        logits (`tuple`):
            The model's outputs.
        labels (`tuple`):
            Not needed here.

    Returns:
        `tuple`: The scores of starts and ends; encoder-decoders give more.
    """
    return tuple(logits[:2])


def metrics(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Tells whether there may be no answer.
        outcome (`Outcome`):
            The model's scores.

    Returns:
        `dict[str, float]`: `exact_match` and `f1` as SQuAD defines them, in 0..1; where some rows have no answer also
        `has_answer_f1`, over those that have one, and `no_answer_accuracy`, over the others.
    """
    return _measured([answer["prediction"] for answer in _answers(data, outcome)], outcome.rows)


def _measured(predictions: list[str], rows: Dataset) -> dict[str, float]:
    golds = [answer["text"] for answer in rows["answers"]]
    scores = squad_rows(predictions, golds)
    found = {name: float(values.mean()) for name, values in scores.items()}
    has = np.array([bool(gold) for gold in golds])
    if has.all() or not has.any():
        return found
    return {
        **found,
        "has_answer_f1": float(scores["f1"][has].mean()),
        "no_answer_accuracy": float(scores["exact_match"][~has].mean()),
    }


def _answers(data: TaskData, outcome: Outcome, *, scored: bool = False) -> list[dict[str, Any]]:
    spans = best_spans(
        outcome.features, outcome.predictions, no_answer=bool(data.options.get("no_answer")), scored=scored
    )
    found = []
    places = zip(outcome.rows["context"], spans.start.tolist(), spans.end.tolist(), spans.score.tolist(), strict=True)
    for context, start, end, score in places:
        if start < 0:
            found.append({"prediction": "", "score": score, "start": None, "end": None})
            continue
        # Some tokenizers count the space before a word to it.
        text = context[start:end]
        start += len(text) - len(text.lstrip())
        found.append({"prediction": text.strip(), "score": score, "start": start, "end": start + len(text.strip())})
    return found


def answers(data: TaskData, outcome: Outcome) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            Tells whether there may be no answer.
        outcome (`Outcome`):
            The model's scores.

    Returns:
        `list[dict[str, Any]]`: `prediction` of each row, its probability `score`, and where it stands in the context:
        characters `start` to `end`. No answer is an empty text without a place.
    """
    return _answers(data, outcome, scored=True)


def report(data: TaskData, outcome: Outcome, count: int) -> dict[str, Any]:
    """
    Args:
        data (`TaskData`):
            Tells whether there may be no answer.
        outcome (`Outcome`):
            The model's scores.
        count (`int`):
            Most confident errors at most.

    Returns:
        `dict[str, Any]`: `intervals` of the F1 over draws of rows, and `errors`, the most confident answers that match
        no true one, with the context around the true answer, or around the one given where there is none.
    """
    given = _answers(data, outcome, scored=True)
    golds = outcome.rows["answers"]
    scores = squad_rows([answer["prediction"] for answer in given], [gold["text"] for gold in golds])
    interval = bootstrap_interval(lambda rows: float(scores["f1"][rows].mean()), len(given))
    sure = np.array([answer["score"] for answer in given])
    wrong = np.flatnonzero(scores["exact_match"] == 0)
    errors = []
    for number in wrong[np.argsort(-sure[wrong], kind="stable")][:count].tolist():
        row, answer = outcome.rows[number], given[number]
        texts, places = row["answers"]["text"], row["answers"]["answer_start"]
        start = places[0] if places else answer["start"]
        errors.append({
            "question": row["question"],
            "context": excerpt(row["context"], start, start + len(texts[0] if texts else answer["prediction"])),
            "label": _told(texts),
            "prediction": answer["prediction"],
            "score": answer["score"],
        })
    return {"intervals": {"f1": interval}, "errors": errors}


def _told(texts: list[str]) -> str:
    """The different true answers in one text, empty where there is none."""
    return " / ".join(dict.fromkeys(texts))


def baseline(data: TaskData, split: str, encoded: DatasetDict) -> tuple[str, dict[str, float]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to measure on.
        encoded (`DatasetDict`):
            Not needed here.

    Returns:
        `tuple`: `"overlap"`, and metrics of answering with the sentence of the context that shares most words with the
        question; with none, where it shares no word and there may be none.
    """
    rows = data.splits[split]
    given = [
        _overlapping(question, context, bool(data.options.get("no_answer")))
        for question, context in zip(rows["question"], rows["context"], strict=True)
    ]
    return "overlap", _measured(given, rows)


def _overlapping(question: str, context: str, no_answer: bool) -> str:
    asked = Counter(re.findall(r"\w+", question.lower()))
    sentences = [sentence.strip() for sentence in SENTENCE.findall(context)] or [context]
    shared = [(asked & Counter(re.findall(r"\w+", sentence.lower()))).total() for sentence in sentences]
    return "" if no_answer and not max(shared) else sentences[int(np.argmax(shared))]


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
        `list[dict[str, Any]]`: The first rows with short contexts, those with different ones first; `label` is the
        answer, empty where there is none.
    """
    short, seen = [], set()
    for row in data.splits[split]:
        if len(row["context"]) <= SHORT_CONTEXT:
            again = row["context"] in seen
            seen.add(row["context"])
            label = _told(row["answers"]["text"][:1])
            short.append((again, {"question": row["question"], "context": row["context"], "label": label}))
        if len(seen) >= count:
            break
    return [row for _, row in sorted(short, key=lambda item: item[0])][:count]


QUESTION_ANSWERING = Task(
    name="question-answering",
    auto_classes=("AutoModelForQuestionAnswering",),
    roles=("question", "context", "answers"),
    read=read,
    read_again=read_again,
    encode=encode,
    collator=lambda processor, data: DataCollatorWithPadding(processor),
    metrics=metrics,
    report=report,
    answers=answers,
    baseline=baseline,
    examples=examples,
    best_metric=lambda data: ("f1", True),
    options=("stride",),
    reduce=reduce,
    set_up=set_up,
    overlong="read in windows",
)
