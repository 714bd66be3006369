"""Demos that label the words of a text: each word, or the spans that B- and I- classes make of them."""

import re
from typing import Any

import gradio as gr
import torch
from limits import finite
from loading import Loaded

# A tokenizer may split these words (U.S., don't, ...); they were labelled as one.
INNER = re.compile(r"(?:\w\.){2,}|\w+(?:['’./&-]\w+)+|([^\w\s])\1+")
OUTSIDE = "O"


def words(text: str, word_ids: list[int | None], offsets: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """
    Finds the words of an encoded text.

    Args:
        text (`str`):
            The text.
        word_ids (`list[int or None]`):
            Number of the word of each token; `None` for special tokens.
        offsets (`list[tuple[int, int]]`):
            Where each token begins and ends in the text.

    Returns:
        `list[tuple[int, int, int]]`: Begin, end and first token of each word.
    """
    joined = {place: number for number, m in enumerate(INNER.finditer(text)) for place in range(*m.span())}
    found: dict[Any, tuple[int, int, int]] = {}
    for token, (word, (start, end)) in enumerate(zip(word_ids, offsets, strict=True)):
        while start < end and text[start].isspace():  # some tokenizers count the space before a word to it
            start += 1
        if word is None or start >= end:
            continue
        key = ("joined", joined[start]) if start in joined else word
        first = found.get(key, (start, end, token))
        found[key] = (first[0], max(first[1], end), first[2])
    return list(found.values())


def spans(tagged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Merges words into the spans that their B- and I- names make.

    Args:
        tagged (`list[dict]`):
            `start`, `end`, `entity` and `score` of each word.

    Returns:
        `list[dict]`: The same of each span; its score is the mean of its words' scores.
    """
    merged: list[dict[str, Any]] = []
    scores: list[list[float]] = []
    before = OUTSIDE
    for word in tagged:
        prefix, _, name = word["entity"].partition("-")
        if word["entity"] != OUTSIDE:
            if prefix == "I" and before.partition("-")[2] == name:
                merged[-1]["end"] = word["end"]
                scores[-1].append(word["score"])
            else:
                merged.append({**word, "entity": name})
                scores.append([word["score"]])
        before = word["entity"]
    return [{**span, "score": sum(own) / len(own)} for span, own in zip(merged, scores, strict=True)]


def in_spans(class_names: list[str]) -> bool:
    """
    Args:
        class_names (`list[str]`):
            Names of the classes.

    Returns:
        `bool`: Whether they say where a span begins (`B-`) and goes on (`I-`).
    """
    named = [name for name in class_names if name != OUTSIDE]
    return bool(named) and all(name.startswith(("B-", "I-")) for name in named)


@torch.inference_mode()
def ask(loaded: Loaded, model: Any, texts: list[str]) -> dict[str, Any]:
    """
    Args:
        loaded (`Loaded`):
            The model's tokenizer, limits and classes.
        model (`torch.nn.Module`):
            The model, or its base.
        texts (`list[str]`):
            One text.

    Returns:
        `dict`: `text` and its `entities`: `start`, `end`, `entity` and `score` of each labelled word or span.

    Raises:
        InputError: If the model's answer is no number.
    """
    text = texts[0]
    encoded = loaded.processor(text, truncation=True, max_length=loaded.max_tokens, return_offsets_mapping=True)
    ids = {k: torch.tensor([v], device=model.device) for k, v in encoded.items() if k != "offset_mapping"}
    probabilities = finite(model(**ids).logits[0]).softmax(-1)
    tagged = []
    for start, end, token in words(text, encoded.word_ids(), encoded["offset_mapping"]):
        score, label = probabilities[token].max(-1)
        tagged.append({"start": start, "end": end, "entity": loaded.class_names[label], "score": score.item()})
    if in_spans(loaded.class_names):
        return {"text": text, "entities": spans(tagged)}
    return {"text": text, "entities": [word for word in tagged if word["entity"] != OUTSIDE]}


def highlighted(whose: str) -> list[Any]:
    """
    Args:
        whose (`str`):
            End of the labels.

    Returns:
        `list[Component]`: The text with its labels, and a table of them.
    """
    return [
        gr.HighlightedText(label=f"Labels{whose}", elem_classes="answer", combine_adjacent=False),
        gr.Dataframe(
            headers=["Words", "Label", "Probability"],
            datatype=["str", "str", "number"],
            type="array",
            label=f"Labels in a table{whose}",
            interactive=False,
            wrap=True,
            max_height=300,
            elem_classes="rows",
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
        `list`: Values of the text with its labels and of the table.
    """
    text = answer["text"]
    rows = [[text[e["start"] : e["end"]], e["entity"], round(e["score"], 4)] for e in answer["entities"]]
    return [answer, rows]
