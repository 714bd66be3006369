"""Questions and answers as SQuAD writes them: its files, the column of answers, and what is wrong with them."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value
from datasets import List as ListFeature

logger = logging.getLogger(__name__)

HEAD = 2**16
SQUAD_FEATURES = Features({
    "id": Value("string"),
    "title": Value("string"),
    "question": Value("string"),
    "context": Value("string"),
    "answers": {"text": ListFeature(Value("string")), "answer_start": ListFeature(Value("int64"))},
})


def is_nested(file: Path) -> bool:
    """
    Args:
        file (`Path`):
            A file.

    Returns:
        `bool`: Whether it begins like SQuAD's own JSON: one object with articles in `data`, and paragraphs in them.
    """
    if file.suffix.lower() != ".json":
        return False
    with file.open(encoding="utf-8", errors="replace") as opened:
        head = opened.read(HEAD).lstrip("\ufeff \t\r\n")
    return head.startswith("{") and '"data"' in head and '"paragraphs"' in head


def read_nested(file: Path) -> Dataset:
    """
    Flattens SQuAD's own JSON to a row for each question.

    Args:
        file (`Path`):
            The file.

    Returns:
        `Dataset`: `id`, `title`, `question`, `context` and `answers`, which are empty where `is_impossible` is true.

    Raises:
        ValueError: If the file is no JSON, or a part is missing or of another kind.
    """
    try:
        articles = json.loads(file.read_text(encoding="utf-8-sig"))["data"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{str(file)!r} could not be read as SQuAD's JSON: {error}.") from error
    rows: list[dict[str, Any]] = []
    for article, at in _parts(articles, f"{str(file)!r}: data"):
        for paragraph, at_paragraph in _parts(article.get("paragraphs"), f"{at}.paragraphs"):
            context = _text(paragraph, "context", at_paragraph)
            for question, at_question in _parts(paragraph.get("qas"), f"{at_paragraph}.qas"):
                rows.append({
                    "id": str(question.get("id", len(rows))),
                    "title": str(article.get("title", "")),
                    "question": _text(question, "question", at_question),
                    "context": context,
                    "answers": _answers(question, at_question),
                })
    if not rows:
        raise ValueError(f"`dataset` must hold rows, but {str(file)!r} has no questions.")
    return Dataset.from_list(rows, features=SQUAD_FEATURES)


def _parts(value: Any, where: str) -> Iterator[tuple[dict[str, Any], str]]:
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise ValueError(f"{where} must be a list of objects, as in SQuAD's files, but is {_short(value)}.")
    for number, part in enumerate(value):
        yield part, f"{where}[{number}]"


def _text(part: dict[str, Any], name: str, where: str) -> str:
    if not isinstance(part.get(name), str):
        raise ValueError(f"{where} must have the text {name!r}, but has {_short(part.get(name))}.")
    return part[name]


def _answers(question: dict[str, Any], where: str) -> dict[str, list[Any]]:
    impossible, found = question.get("is_impossible", False), question.get("answers", [])
    if impossible and found:
        raise ValueError(f"{where} has answers though `is_impossible` is true. Remove one of the two.")
    texts, starts = [], []
    for answer, at in _parts(found, f"{where}.answers"):
        texts.append(_text(answer, "text", at))
        starts.append(answer.get("answer_start"))
        if not isinstance(starts[-1], int):
            raise ValueError(f"{at} must have the whole number 'answer_start', but has {_short(starts[-1])}.")
    return {"text": texts, "answer_start": starts}


def read_answers(split: str, contexts: Sequence[str], answers: Sequence[Any], column: str) -> list[dict[str, Any]]:
    """
    Brings answers into SQuAD's form and looks for them in the contexts.

    Args:
        split (`str`):
            Name of the split.
        contexts (`Sequence[str]`):
            The contexts.
        answers (`Sequence`):
            Of each row `{"text": [...], "answer_start": [...]}`, a list of `{"text": ..., "answer_start": ...}`, a
            text or several texts. A text without a place stands for its first occurrence in the context. Spaces around
            a text are left out. No answer is an empty list or text, or nothing.
        column (`str`):
            Their column.

    Returns:
        `list[dict[str, Any]]`: `text` and `answer_start` of each row: lists, empty where there is no answer.

    Raises:
        ValueError: If an answer is of another kind, or does not stand in the context where it should.
    """
    found = []
    for number, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
        where = f"row {number} of the {split} split, counted from 0,"
        spans = _spans(answer)
        if spans is None:
            raise ValueError(
                f"Answers in {column!r} must be `{{'text': [...], 'answer_start': [...]}}` with as many places as "
                f"texts, or the answer as text, but {where} has {_short(answer)}. Correct it, or name another "
                "`--answers_column`."
            )
        spans = [_without_spaces(text, start) for text, start in spans]
        places = [_place(context, text, start, where, column) for text, start in spans]
        found.append({"text": [text for text, _ in spans], "answer_start": places})
    return found


def with_places(answers: Sequence[Any], starts: Sequence[Any]) -> list[Any]:
    """
    Joins answers that are text alone with the places of a column beside them.

    Args:
        answers (`Sequence`):
            Answers as [`read_answers`] takes them.
        starts (`Sequence`):
            Of each row where its text begins, or where each of its texts does; nothing where that is not known.

    Returns:
        `list`: `{"text": ..., "answer_start": ...}` for texts; other answers have their places already.
    """
    found = []
    for answer, start in zip(answers, starts, strict=True):
        texts = answer if isinstance(answer, list) else [answer]
        plain = bool(texts) and all(isinstance(text, str) and text.strip() for text in texts)
        found.append({"text": answer, "answer_start": _whole(start)} if plain else answer)
    return found


def _whole(start: Any) -> Any:
    """A column of numbers with empty cells is read as fractions, and empty cells as nan."""
    if isinstance(start, float):
        return None if start != start else int(start) if start.is_integer() else start
    return start


def without_hidden_answers(splits: DatasetDict, column: str, validation_fraction: float) -> DatasetDict:
    """
    Leaves out a test split whose answers are kept secret: none of its rows has one, but every training row has.

    Args:
        splits (`DatasetDict`):
            Rows with `answers` as [`read_answers`] gives them.
        column (`str`):
            Their column in the data.
        validation_fraction (`float`):
            Share of the training rows that will be held out where there is no validation split.

    Returns:
        `DatasetDict`: The splits to use.

    Raises:
        ValueError: If nothing is left to measure on.
    """
    test = splits.get("test")
    if test is None or any(answer["text"] for answer in test["answers"]):
        return splits
    if not all(answer["text"] for answer in splits["train"]["answers"]):
        return splits
    logger.warning("The test split has no answers in %r, but every training row has one: it is left out.", column)
    if not validation_fraction and "validation" not in splits:
        raise ValueError(
            "`validation_fraction` is 0 and there is no test split, so nothing could be measured. Give a validation "
            "split, or a test split with answers."
        )
    return DatasetDict({split: rows for split, rows in splits.items() if split != "test"})


def _spans(answer: Any) -> list[tuple[str, int | None]] | None:
    """Texts and places of one row; `None` if they are of another kind."""
    if isinstance(answer, dict):
        texts, starts = answer.get("text", 0), answer.get("answer_start")
        texts = texts if isinstance(texts, list) else [texts]
        starts = starts if isinstance(starts, list) else [starts] * len(texts)
        if len(texts) != len(starts):
            return None
        parts = list(zip(texts, starts, strict=True))
    elif isinstance(answer, list):
        parts = [(a.get("text", 0), a.get("answer_start")) if isinstance(a, dict) else (a, None) for a in answer]
    else:
        parts = [(answer, None)]
    if all(text is None or (isinstance(text, str) and not text.strip()) for text, _ in parts):
        return []
    typed = all(isinstance(text, str) and text.strip() for text, _ in parts)
    placed = all(start is None or (isinstance(start, int) and not isinstance(start, bool)) for _, start in parts)
    return parts if typed and placed else None


def _without_spaces(text: str, start: int | None) -> tuple[str, int | None]:
    """Spaces around an answer would be counted to the words beside it."""
    return text.strip(), start if start is None else start + len(text) - len(text.lstrip())


def _place(context: str, text: str, start: int | None, where: str, column: str) -> int:
    """Where the answer begins, if it does."""
    first = context.find(text)
    if start is None and first < 0:
        raise ValueError(
            f"Answers must stand in their context word for word, but {where} has {_short(text)} in {column!r}, and "
            f"its context {_short(context)}. Correct or remove such rows."
        )
    if start is None or (start >= 0 and context[start : start + len(text)] == text):
        return first if start is None else start
    elsewhere = f"the context has it at {first}" if first >= 0 else "the context does not have it at all"
    raise ValueError(
        f"Answers must stand in their context at `answer_start`, counted in characters from 0, but {where} has "
        f"{_short(text)} at {start}, where {_short(context[max(start, 0) : max(start, 0) + len(text)])} stands; "
        f"{elsewhere}. Correct or remove such rows."
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
