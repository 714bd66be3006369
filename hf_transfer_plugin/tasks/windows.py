"""Questions with contexts of any length: windows of tokens, and from their scores back to a span of the context."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from hf_transfer_plugin.tasks.base import TaskData
from hf_transfer_plugin.tasks.word_alignment import require_fast

logger = logging.getLogger(__name__)

LONGEST_ANSWER = 30
CHUNK = 256
OUTSIDE = -1


def encode(data: TaskData, processor: Any, max_length: int, model_config: Any) -> tuple[DatasetDict, int]:
    """
    Tokenizes question and context. Contexts longer than the model reads become several windows, of which neighbours
    share `stride` tokens; questions longer than half of a window are cut, with a warning.

    Each window has the number of its `row`, the `offset_mapping` of its tokens (-1 outside of the context), and in
    `null` the token that stands for no answer; with answers `start_positions` and `end_positions`, the first and last
    token of the first answer, or `null` where the window does not hold it all.

    Args:
        data (`TaskData`):
            The rows; `options` may name the `stride`, a third of a window without it, and is given what was taken.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer, a fast one.
        max_length (`int`):
            Tokens of a window at most.
        model_config (`PretrainedConfig`):
            The model's config; not needed here.

    Returns:
        `tuple[DatasetDict, int]`: The windows of every split, and the number of rows with several.

    Raises:
        ValueError: If the tokenizer is not fast, or a window leaves no room for more context than `stride`.
    """
    require_fast(processor, "question-answering", "where in the text a token stands")
    stride = data.options["stride"] or max(max_length // 3, 1)
    data.options.update(stride=stride, max_length=max_length)
    splits, several = DatasetDict(), 0

    def run(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, Any]:
        encoded = processor(
            batch["question"],
            batch["context"],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
        )
        places = np.asarray(encoded.pop("overflow_to_sample_mapping"))
        return {**encoded, **_positions(encoded, places, batch, processor), "row": np.asarray(numbers)[places]}

    for split, given in data.splits.items():
        rows = _with_short_questions(split, given, processor, max_length, stride)
        splits[split] = rows.map(
            run,
            batched=True,
            with_indices=True,
            remove_columns=rows.column_names,
            load_from_cache_file=False,
            desc=f"Tokenizing {split}",
        )
        several += int((np.bincount(splits[split]["row"]) > 1).sum())
    return splits, several


def _with_short_questions(split: str, rows: Dataset, processor: Any, max_length: int, stride: int) -> Dataset:
    """Cuts questions to half of a window, and refuses a stride that leaves no room for new context in one."""
    half, special = max_length // 2, processor.num_special_tokens_to_add(pair=True)
    questions = list(rows["question"])
    # A text has no more tokens than bytes, but for a mark at its ends: most questions need no look.
    harmless = min(half, max_length - special - stride - 1) - 2
    long = [number for number, text in enumerate(questions) if len(text.encode()) > harmless]
    cut, longest = 0, 0
    for begin in range(0, len(long), 1000):
        numbers = long[begin : begin + 1000]
        found = processor([questions[number] for number in numbers], add_special_tokens=False).encodings
        for number, item in zip(numbers, found, strict=True):
            longest = max(longest, min(len(item.ids), half))
            if len(item.ids) > half:
                cut += 1
                questions[number] = questions[number][: item.offsets[half - 1][1]]
    if cut:
        logger.warning("%d questions of the %s split are longer than %d tokens and were cut.", cut, split, half)
    room = max_length - special - longest
    if stride >= room:
        raise ValueError(
            f"`stride` must be smaller than the part of a window that is left for the context, but is {stride}: of "
            f"{max_length} tokens {special} are special and {longest} the longest question of the {split} split, "
            f"which leaves {room}. Set `--stride {max(room // 2, 1)}`, or a larger `--max_length` if the model reads "
            "more."
        )
    return rows.remove_columns("question").add_column("question", questions) if cut else rows


def _positions(encoded: Any, places: np.ndarray, batch: dict[str, list[Any]], processor: Any) -> dict[str, Any]:
    """Offsets inside of the context, and the tokens of the first answer, for many windows in one."""
    items = encoded.encodings
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    begins = np.cumsum(lengths) - lengths
    offsets = np.array(list(chain.from_iterable(item.offsets for item in items)), dtype=np.int32).reshape(-1, 2)
    parts = np.array(list(chain.from_iterable(item.sequence_ids for item in items)), dtype=float)
    inside = parts == 1
    offsets[~inside] = OUTSIDE
    null = _null_tokens(encoded["input_ids"], processor)
    found = {"offset_mapping": np.split(offsets, begins[1:]), "null": null}
    if "answers" not in batch:
        return found
    answers = [batch["answers"][place] for place in places]
    start, end = (
        np.array([a["answer_start"][0] + shift * len(a["text"][0]) if a["text"] else OUTSIDE for a in answers])
        for shift in (0, 1)
    )
    tokens = np.arange(len(offsets)) - np.repeat(begins, lengths)
    far = np.iinfo(np.int64).max
    begun = np.where(inside & (offsets[:, 0] <= np.repeat(start, lengths)), tokens, OUTSIDE)
    ended = np.where(inside & (offsets[:, 1] >= np.repeat(end, lengths)), tokens, far)
    first, last = np.maximum.reduceat(begun, begins), np.minimum.reduceat(ended, begins)
    held = (start >= 0) & (first >= 0) & (last < far) & (first <= last)
    return {**found, "start_positions": np.where(held, first, null), "end_positions": np.where(held, last, null)}


def _null_tokens(input_ids: list[list[int]], processor: Any) -> np.ndarray:
    """Where [CLS] stands, or the first token where there is none."""
    cls = processor.cls_token_id
    return np.array([ids.index(cls) if cls in ids else 0 for ids in input_ids])


@dataclass(frozen=True)
class Spans:
    """
    The best span of each row.

    Args:
        start (`np.ndarray` of shape `(rows,)`):
            Its first character in the context; -1 for no answer.
        end (`np.ndarray` of shape `(rows,)`):
            The character after its last; -1 for no answer.
        score (`np.ndarray` of shape `(rows,)`):
            Its probability, if it was asked for.
    """

    start: np.ndarray
    end: np.ndarray
    score: np.ndarray


def best_spans(features: Dataset, predictions: Any, *, no_answer: bool, scored: bool = False) -> Spans:
    """
    Finds the span `i..j` of at most 30 tokens of the context with the largest `s_i + e_j`, over all windows of a row;
    with `no_answer`, there is none where even the least `s_null + e_null` of the row's windows is larger, as in "BERT:
    Pre-training of Deep Bidirectional Transformers" (Devlin et al., 2019), https://huggingface.co/papers/1810.04805.

    The probability is a softmax over all such spans of the row, those in two windows counted once with their larger
    score, and over the null span where there is one.

    Args:
        features (`Dataset`):
            The windows, those of a row one after another.
        predictions (`tuple`):
            Scores `s` and `e` of shape `(windows, tokens)`.
        no_answer (`bool`):
            Whether there may be none.
        scored (`bool`, *optional*, defaults to `False`):
            Whether the probabilities are wanted.

    Returns:
        `Spans`: One for each row.
    """
    row, null = np.asarray(features["row"]), np.asarray(features["null"])
    starts, ends = (np.asarray(values, dtype=np.float64) for values in predictions[:2])
    windows = np.arange(len(row))
    nulls = starts[windows, null] + ends[windows, null]
    best, place = np.full(len(row), -np.inf), np.zeros((len(row), 2), dtype=np.int64)
    totals = np.full(row[-1] + 1, -np.inf)
    for chosen, offsets in _chunks(features, row, starts.shape[1]):
        scores = _span_scores(starts[chosen], ends[chosen], offsets[..., 0] != OUTSIDE)
        flat = scores.reshape(len(chosen), -1).argmax(1)
        lengths, first = np.divmod(flat, scores.shape[2])
        local = np.arange(len(chosen))
        best[chosen] = scores[local, lengths, first]
        place[chosen] = np.stack([offsets[local, first, 0], offsets[local, first + lengths, 1]], 1)
        if scored:
            totals[row[chosen[0]] : row[chosen[-1]] + 1] = _totals(scores, offsets, row[chosen])
    order = np.lexsort((-best, row))
    winners = order[np.unique(row[order], return_index=True)[1]]
    least = np.minimum.reduceat(nulls, np.unique(row, return_index=True)[1])
    top = best[winners]
    if no_answer:
        totals = np.logaddexp(totals, least)
    empty = (least > top) & no_answer
    place = np.where(empty[:, None], OUTSIDE, place[winners])
    # A context without a token has no span at all: its best score is minus infinity.
    known = np.isfinite(totals)
    score = np.exp(np.where(empty, least, top) - np.where(known, totals, 0))
    return Spans(place[:, 0], place[:, 1], score if scored else np.ones(len(top)))


def _chunks(features: Dataset, row: np.ndarray, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers and offsets, padded to `width`, of some windows at a time; those of a row stay together."""
    column = features.with_format("arrow")[:]["offset_mapping"].combine_chunks()
    lengths = column.value_lengths().to_numpy()
    flat = column.flatten().flatten().to_numpy().reshape(-1, 2)
    begins = np.cumsum(lengths) - lengths
    bounds = np.unique(np.searchsorted(row, row[np.arange(0, len(row), CHUNK)])).tolist()
    for start, end in zip(bounds, [*bounds[1:], len(row)], strict=True):
        offsets = np.full((end - start, width, 2), OUTSIDE, dtype=np.int64)
        inside = np.arange(width) < lengths[start:end, None]
        offsets[inside] = flat[begins[start] : begins[end - 1] + lengths[end - 1]]
        yield np.arange(start, end), offsets


def _span_scores(starts: np.ndarray, ends: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """`(windows, lengths, tokens)`: the score of the span of that many tokens more that begins at the token."""
    starts, ends = (np.where(inside, values, -np.inf) for values in (starts, ends))
    scores = np.full((len(starts), min(LONGEST_ANSWER, starts.shape[1]), starts.shape[1]), -np.inf)
    for longer in range(scores.shape[1]):
        scores[:, longer, : starts.shape[1] - longer] = starts[:, : starts.shape[1] - longer] + ends[:, longer:]
    return scores


def _totals(scores: np.ndarray, offsets: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The logarithm of the sum of `exp(score)` over the spans of each row."""
    begins = np.unique(row, return_index=True)[1]
    counts = np.diff([*begins, len(row)])
    top = np.maximum.reduceat(scores.max((1, 2)), begins)
    top = np.where(np.isfinite(top), top, 0)
    sums = np.add.reduceat(np.exp(scores - np.repeat(top, counts)[:, None, None]).sum((1, 2)), begins)
    for number in np.flatnonzero(counts > 1):
        mine = slice(begins[number], begins[number] + counts[number])
        window, longer, first = np.nonzero(scores[mine] > -np.inf)
        span = offsets[mine][window, first, 0], offsets[mine][window, first + longer, 1]
        kept, which = np.unique(span[0] * (offsets.max() + 1) + span[1], return_inverse=True)
        best = np.full(len(kept), -np.inf)
        np.maximum.at(best, which, scores[mine][window, longer, first])
        sums[number] = np.exp(best - top[number]).sum()
    with np.errstate(divide="ignore"):
        return top + np.log(sums)
