"""Demos that find the answer to a question in a text, however long it is."""

from typing import Any

import gradio as gr
import torch
from limits import InputError, finite
from loading import Loaded

WINDOW, STRIDE, MAX_ANSWER = 384, 128, 30
SHOWN = 3
NO_ANSWER = "(no answer in the context)"
LIMIT = "It reads a long context in windows of at most {tokens:,} tokens, and gives the best answer of them all."


def read(loaded: Loaded, values: list[str]) -> tuple[dict[str, Any], str]:
    """
    Args:
        loaded (`Loaded`):
            The model's tokenizer and limits.
        values (`list[str]`):
            Question and context.

    Returns:
        `tuple[dict, str]`: Both, and the windows in which they are read; nothing is left out.

    Raises:
        InputError: If the question leaves no room for the context.
    """
    question, context = values
    size = min(loaded.options.get("max_length") or WINDOW, loaded.max_tokens or WINDOW)
    room = size - len(loaded.processor(question, "").input_ids)
    if room < size // 4:
        raise InputError("The question is too long: it leaves no room for the context. Shorten it.")
    windows = loaded.processor(
        question,
        context,
        truncation="only_second",
        max_length=size,
        stride=min(loaded.options.get("stride") or STRIDE, room // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    return {"context": context, "windows": windows}, ""


def spans(
    begin: torch.Tensor, end: torch.Tensor, places: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Scores the spans of one window.

    Args:
        begin (`torch.Tensor`):
            Score $s_i$ of each token to be the first.
        end (`torch.Tensor`):
            Score $e_j$ of each token to be the last.
        places (`torch.Tensor`):
            Where each token begins and ends in the context.
        most (`int`):
            Tokens of the longest span.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Begin and end of each span in the context, and its score $s_i + e_j$.

    Shape:
        - begin, end: `(tokens,)`
        - places: `(tokens, 2)`
        - output: `(spans, 2)` and `(spans,)`
    """
    first, last = torch.ones(len(begin), len(begin), dtype=torch.bool).triu().tril(most - 1).nonzero().unbind(1)
    found = torch.stack([places[first, 0], places[last, 1]], 1)
    kept = found[:, 0] < found[:, 1]
    return found[kept], (begin[first] + end[last])[kept]


@torch.inference_mode()
def ask(loaded: Loaded, model: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """
    Scores every span of every window as $s_i + e_j$, counts a span that lies in two windows once, at its better score,
    and takes the softmax over all of them and, where the data had questions without an answer, the null span. That has
    the least score of all windows, as in [SQuAD 2.0's baseline](https://huggingface.co/papers/1810.04805).

    Args:
        loaded (`Loaded`):
            The model's tokenizer and options.
        model (`torch.nn.Module`):
            The model, or its base.
        asked (`dict`):
            What [`read`] gave.

    Returns:
        `dict`: `context`, and the best `answers`: begin, end and probability of each; `None` for no answer.

    Raises:
        InputError: If the model's answer is no number.
    """
    context, windows = asked["context"], asked["windows"]
    most, null, found = loaded.options.get("max_answer_length") or MAX_ANSWER, [], []
    for number, tokens in enumerate(windows["input_ids"]):
        names = [name for name in loaded.processor.model_input_names if name in windows]
        answer = model(**{name: torch.tensor([windows[name][number]], device=model.device) for name in names})
        begin, end = finite(answer.start_logits[0]).cpu(), finite(answer.end_logits[0]).cpu()
        marker = tokens.index(loaded.processor.cls_token_id) if loaded.processor.cls_token_id in tokens else 0
        null.append(begin[marker] + end[marker])
        inside = torch.tensor([part == 1 for part in windows.sequence_ids(number)])
        places = torch.tensor(windows["offset_mapping"][number])
        found.append(spans(begin[inside], end[inside], places[inside], most))
    places, which = torch.cat([place for place, _ in found]).unique(dim=0, return_inverse=True)
    best = torch.full((len(places),), -torch.inf).scatter_reduce(0, which, torch.cat([s for _, s in found]), "amax")
    if loaded.options.get("no_answer"):
        best = torch.cat([best, torch.stack(null).min()[None]])
    if not len(best):
        raise InputError("The model finds no word in the context.")
    top = best.softmax(0).topk(min(SHOWN, len(best)))
    return {
        "context": context,
        "answers": [
            (*(places[place].tolist() if place < len(places) else (None, None)), chance)
            for chance, place in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ],
    }


def answered(whose: str) -> list[Any]:
    """
    Args:
        whose (`str`):
            End of the labels.

    Returns:
        `list[Component]`: The best answers, and the context with the first of them in colour.
    """
    return [
        gr.Label(label=f"Answer and its probability{whose}", num_top_classes=SHOWN, elem_classes="answer"),
        gr.HighlightedText(
            label=f"Where it stands{whose}",
            show_inline_category=False,
            color_map={"answer": "blue"},
            elem_classes="place",
        ),
    ]


def show(loaded: Loaded, answer: dict[str, Any]) -> list[Any]:
    """
    Args:
        loaded (`Loaded`):
            The model.
        answer (`dict`):
            What [`ask`] gave.

    Returns:
        `list`: Answer -> probability, and the context in parts.
    """
    context = answer["context"]
    chances: dict[str, float] = {}
    for start, end, chance in answer["answers"]:
        text = NO_ANSWER if start is None else context[start:end].strip()
        chances.setdefault(text, chance)
    start, end, _ = answer["answers"][0]
    entities = [] if start is None else [{"start": start, "end": end, "entity": "answer"}]
    return [chances, {"text": context, "entities": entities}]
