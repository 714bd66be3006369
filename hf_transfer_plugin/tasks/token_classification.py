"""Token classification: a tag for every word, of parts of speech, names or other spans."""

import logging
from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import DataCollatorForTokenClassification

from hf_transfer_plugin._optional import require
from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.metrics import (
    F1,
    Accuracy,
    EntityF1,
    Precision,
    Recall,
    bootstrap_interval,
    calibration,
    entity_counts,
)
from hf_transfer_plugin.metrics.spans import entities
from hf_transfer_plugin.tasks.base import Outcome, Task, TaskData
from hf_transfer_plugin.tasks.class_report import SHORT, class_figures
from hf_transfer_plugin.tasks.columns import choose_columns
from hf_transfer_plugin.tasks.excerpts import excerpt
from hf_transfer_plugin.tasks.list_cells import list_of, with_lists
from hf_transfer_plugin.tasks.splitting import hold_out, warn_of_lost
from hf_transfer_plugin.tasks.tags import check_pairs, check_words, known_tags, marks_spans, read_tags, split_words
from hf_transfer_plugin.tasks.word_alignment import Tagged, encode, reduce, require_fast, tagged_words

logger = logging.getLogger(__name__)

WORD_COLUMNS = ("tokens", "words", "text", "sentence")
TAG_COLUMNS = ("tags", "ner_tags", "pos_tags", "labels", "label", "ner", "pos", "upos")


def read(splits: DatasetDict, config: TransferConfig, seed: int) -> TaskData:
    """
    Checks the rows and brings them into the columns `text` (lists of words) and `label` (lists of tag numbers). Both
    may be lists written as JSON, as in the cells of a CSV file.

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
        ValueError: If a column is missing, or words or tags are unusable.
    """
    splits, columns = _checked(splits, config)
    numbers, names = read_tags(splits, columns["label"], config)
    whole = _plain(splits, columns, numbers)
    plain, held_out = hold_out(whole, config, seed)
    warn_of_lost(whole["train"], plain["train"], "label", "tag", names)
    if marks_spans(names):
        _warn_of_loose_ends(plain["train"], names)
    return TaskData(plain, columns, "", names, held_out)


def read_again(splits: DatasetDict, config: TransferConfig, labelled: bool) -> TaskData:
    """
    As [`read`], for a trained model. Without labels, rows may be plain text too; it is split by [`split_words`].

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration; names the classes.
        labelled (`bool`):
            Whether the tags are wanted.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or words or tags are unusable.
    """
    names = tuple(config.class_names or ())
    if labelled:
        splits, columns = _checked(splits, config)
        return TaskData(_plain(splits, columns, known_tags(splits, columns["label"], config)), columns, "", names)
    columns = choose_columns(splits, config, {"text": WORD_COLUMNS})
    plain = DatasetDict()
    for split, rows in splits.items():
        texts = list(rows[columns["text"]])
        listed = [list_of(text) if isinstance(text, str) else text for text in texts]
        words = listed if None not in listed else [split_words(t) if isinstance(t, str) else t for t in texts]
        check_words(split, words, columns["text"])
        plain[split] = Dataset.from_dict({"text": words})
    return TaskData(plain, columns, "", names)


def _checked(splits: DatasetDict, config: TransferConfig) -> tuple[DatasetDict, dict[str, str]]:
    columns = choose_columns(splits, config, {"text": WORD_COLUMNS, "label": TAG_COLUMNS})
    splits = with_lists(splits, columns.values())
    for split, rows in splits.items():
        check_words(split, rows[columns["text"]], columns["text"])
        check_pairs(split, rows, columns)
    return splits, columns


def _plain(splits: DatasetDict, columns: dict[str, str], numbers: dict[Any, int]) -> DatasetDict:
    plain = DatasetDict()
    for split, rows in splits.items():
        tags = [[numbers[tag] for tag in row] for row in rows[columns["label"]]]
        plain[split] = Dataset.from_dict({"text": list(rows[columns["text"]]), "label": tags})
    return plain


def _warn_of_loose_ends(train: Dataset, names: tuple[str, ...]) -> None:
    """Entities that begin with `I-` are no entities to the metrics."""
    loose = 0
    for row in train["label"]:
        tags = ["O", *(names[number] for number in row)]
        loose += sum(tag[:2] == "I-" and before[2:] != tag[2:] for before, tag in zip(tags, tags[1:], strict=False))
    if loose:
        logger.warning(
            "%d spans of the training rows begin with `I-`, but IOB2 begins every span with `B-`. The entity metrics "
            "leave such spans out; write their first tag as `B-`.",
            loose,
        )


def set_up(model: Any, processor: Any, data: TaskData) -> None:
    """
    Args:
        model (`PreTrainedModel`):
            The model; any will do.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer; is made to pad on the right, where the outputs of a row are looked for.
        data (`TaskData`):
            Names the tags.

    Raises:
        ValueError: If the tokenizer does not tell which word a token is of.
        ImportError: If seqeval is needed and not installed.
    """
    require_fast(processor, "token-classification", "which word a token belongs to")
    processor.padding_side = "right"
    if marks_spans(data.class_names):
        require("seqeval", extra="text")


def metrics(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Names the tags.
        outcome (`Outcome`):
            Tags given.

    Returns:
        `dict[str, float]`: Accuracy and the macro averages over the words that the model read; for IOB2 names also
        precision, recall and F1 of whole entities.
    """
    tagged = tagged_words(outcome)
    truth = _truth(tagged, outcome.rows)
    rows = len(outcome.rows)
    return _measured(tagged.by_row(tagged.answer, rows), tagged.by_row(truth, rows), data)


def _truth(tagged: Tagged, rows: Dataset) -> np.ndarray:
    labels = rows["label"]
    offsets = np.cumsum([0, *(len(row) for row in labels)])[:-1]
    return np.fromiter(chain.from_iterable(labels), dtype=np.int64)[offsets[tagged.row] + tagged.word]


def _measured(answers: list[list[int]], labels: list[list[int]], data: TaskData) -> dict[str, float]:
    given = {"predictions": list(chain.from_iterable(answers)), "references": list(chain.from_iterable(labels))}
    found = Accuracy().compute(**given)
    for metric in (Precision(), Recall(), F1()):
        found |= metric.compute(**given, labels=list(range(data.outputs)))
    if marks_spans(data.class_names):
        found |= EntityF1().compute(predictions=_named(answers, data), references=_named(labels, data))
    return {name: value for name, value in found.items() if isinstance(value, float)}


def _named(rows: list[list[int]], data: TaskData) -> list[list[str]]:
    return [[data.class_names[number] for number in row] for row in rows]


def report(data: TaskData, outcome: Outcome, count: int) -> dict[str, Any]:
    """
    Args:
        data (`TaskData`):
            Names the tags.
        outcome (`Outcome`):
            Tags given.
        count (`int`):
            Most confident errors at most.

    Returns:
        `dict[str, Any]`: `per_class` of each tag and each type of entity, `confusion_matrix`, `calibration` over the
        words, `intervals` of the headline metric over draws of rows, and `errors`, with the word in angle quotes.
    """
    tagged, rows = tagged_words(outcome), len(outcome.rows)
    truth = _truth(tagged, outcome.rows)
    right = tagged.answer == truth
    if marks_spans(data.class_names):
        answers, labels = (_named(tagged.by_row(values, rows), data) for values in (tagged.answer, truth))
        counts = entity_counts(answers, labels)
        hits, total = 2 * counts[:, 0], counts[:, 1] + counts[:, 2]
    else:
        hits, total = (np.bincount(tagged.row, weights, rows) for weights in (right, np.ones(len(right))))
    name, _ = _best_metric(data)
    interval = bootstrap_interval(lambda chosen: float(hits[chosen].sum() / max(total[chosen].sum(), 1)), rows)
    wrong = np.flatnonzero(~right)
    worst = wrong[np.argsort(-tagged.score[wrong], kind="stable")][:count]
    errors = [
        {
            "text": _marked(outcome.rows[int(tagged.row[i])]["text"], int(tagged.word[i])),
            "label": data.class_names[truth[i]],
            "prediction": data.class_names[tagged.answer[i]],
            "score": float(tagged.score[i]),
        }
        for i in worst
    ]
    figures = class_figures(tagged.answer, truth, data.class_names)
    if marks_spans(data.class_names):
        figures["per_class"] |= EntityF1().compute(predictions=answers, references=labels)["entity_per_type"]
    return {
        **figures,
        "calibration": calibration(tagged.score, right),
        "intervals": {name: interval},
        "errors": errors,
    }


def _marked(words: list[str], number: int) -> str:
    start = sum(len(word) + 1 for word in words[:number])
    return excerpt(" ".join(words), start, start + len(words[number]), marks=("«", "»"))


def answers(data: TaskData, outcome: Outcome) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            Names the tags.
        outcome (`Outcome`):
            Tags given.

    Returns:
        `list[dict[str, Any]]`: `words` of each row, `prediction` and `score` for each word (`None` for words that the
        model did not read) and, for IOB2 names, the `entities`: `label`, `text`, `start_word` and `end_word`, the
        number of the word after the last.
    """
    tagged = tagged_words(outcome)
    found: list[dict[str, Any]] = []
    for words in outcome.rows["text"]:
        found.append({"words": words, "prediction": [None] * len(words), "score": [None] * len(words)})
    for row, word, tag, score in zip(*(v.tolist() for v in vars(tagged).values()), strict=True):
        found[row]["prediction"][word], found[row]["score"][word] = data.class_names[tag], score
    if marks_spans(data.class_names):
        spans = entities([[tag or "O" for tag in row["prediction"]] for row in found])
        for row, mine in zip(found, spans, strict=True):
            row["entities"] = [
                {"label": label, "text": " ".join(row["words"][start:end]), "start_word": start, "end_word": end}
                for start, end, label in sorted(mine)
            ]
    return found


def baseline(data: TaskData, split: str, encoded: DatasetDict) -> tuple[str, dict[str, float]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to measure on.
        encoded (`DatasetDict`):
            The encoded rows, which tell the words that the model reads.

    Returns:
        `tuple`: `"commonest_tag"`, and metrics of giving each word that the model reads the tag that it has most often
        in train, and unknown words the commonest tag of all.
    """
    train = data.splits["train"]
    tags = Counter(chain.from_iterable(train["label"]))
    pairs = Counter(zip(chain.from_iterable(train["text"]), chain.from_iterable(train["label"]), strict=True))
    commonest: dict[str, int] = {}
    for (word, tag), _ in sorted(pairs.items(), key=lambda item: (item[1], -item[0][1])):
        commonest[word] = tag
    unknown = max(sorted(tags), key=tags.__getitem__)
    rows = data.splits[split]
    read = [[number for number in ids if number >= 0] for ids in encoded[split]["word_ids"]]
    given = [[commonest.get(words[i], unknown) for i in kept] for words, kept in zip(rows["text"], read, strict=True)]
    labels = [[tags[i] for i in kept] for tags, kept in zip(rows["label"], read, strict=True)]
    return "commonest_tag", _measured(given, labels, data)


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
        `list[dict[str, Any]]`: Of the first short rows those with most different tags; `text` is the words with spaces
        between them, `label` their tags.
    """
    short: list[dict[str, Any]] = []
    for row in data.splits[split]:
        text = " ".join(row["text"])
        if len(text) <= SHORT:
            short.append({"text": text, "label": [data.class_names[number] for number in row["label"]]})
        if len(short) >= 10 * count:
            break
    return sorted(short, key=lambda row: -len(set(row["label"])))[:count]


def _best_metric(data: TaskData) -> tuple[str, bool]:
    return ("entity_f1" if marks_spans(data.class_names) else "accuracy"), True


TOKEN_CLASSIFICATION = Task(
    name="token-classification",
    auto_classes=("AutoModelForTokenClassification",),
    roles=("text", "label"),
    read=read,
    read_again=read_again,
    encode=encode,
    collator=lambda processor, data: DataCollatorForTokenClassification(processor),
    metrics=metrics,
    report=report,
    answers=answers,
    baseline=baseline,
    examples=examples,
    best_metric=_best_metric,
    options=("class_names",),
    reduce=reduce,
    set_up=set_up,
    probe=True,
)
