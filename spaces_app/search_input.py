"""Demos that search: a query, the texts among which it searches, and those that fit it best."""

import csv
import io
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from limits import InputError, check_text, finite
from loading import Loaded, Settings

MAX_TEXTS, MAX_CORPUS, MAX_FILE = 500, 200_000, 1_000_000
SHOWN = 10
SUFFIXES = (".txt", ".csv")
COLUMNS = ("text", "document", "passage", "answer", "body", "content", "title")
HINT = f"One text a line, at most {MAX_TEXTS:,} texts and {MAX_CORPUS:,} characters."
LIMIT = (
    "It reads {tokens:,} tokens of each text; the end of a longer one is left out. A search always finds something: "
    "look at the similarity, not only at the order."
)


def inputs(settings: Settings) -> list[Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.

    Returns:
        `list[Component]`: Boxes for the query and for the texts, which a file may fill.
    """
    query = gr.Textbox(
        label="Query", info="A question, or a text to find others like it.", lines=2, max_lines=6, elem_id="text"
    )
    corpus = gr.Textbox(label="Texts to search", info=HINT, lines=8, max_lines=14, elem_id="corpus")
    file = gr.UploadButton(
        f"Fill from a file ({' or '.join(SUFFIXES)}, at most {MAX_FILE // 1_000_000} MB)", file_types=list(SUFFIXES)
    )
    file.upload(fill, file, corpus, preprocess=False, api_visibility="private")
    return [query, corpus]


def fill(sent: Any) -> str:
    """
    Reads an uploaded file.

    Args:
        sent (`Any`):
            What the page sent: where the server has put the file, and its name.

    Returns:
        `str`: Its texts, one a line. Of a CSV those of the first column that is named like a text, else of its first.

    Raises:
        InputError: If it is no such file, too large, or without text.
    """
    path = Path(sent["path"]) if isinstance(sent, dict) and isinstance(sent.get("path"), str) else None
    # Only what was uploaded to this server may be read, whatever a request names.
    uploads = Path(tempfile.gettempdir()).resolve() / "gradio"
    if path is None or not path.resolve().is_relative_to(uploads) or not path.is_file():
        raise InputError("Upload a file of texts.")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"The file must end in {' or '.join(SUFFIXES)}, but got {path.suffix or 'no suffix'}.")
    if path.stat().st_size > MAX_FILE:
        raise InputError(f"The file is larger than {MAX_FILE // 1_000_000} MB. Upload a part of it.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("The file is not UTF-8 text. Save it as UTF-8 and upload it again.") from None
    return "\n".join(texts_of(_cells(text) if path.suffix.lower() == ".csv" else text))


def _cells(text: str) -> str:
    try:
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
    except csv.Error as error:
        raise InputError(f"The CSV cannot be read: {error}.") from error
    head = [name.strip().casefold() for name in rows[0]] if rows else []
    place = next((head.index(name) for name in COLUMNS if name in head), None)
    cells = [row[place or 0] for row in rows[place is not None :] if len(row) > (place or 0)]
    return "\n".join(" ".join(cell.split()) for cell in cells)


def texts_of(corpus: Any) -> list[str]:
    """
    Args:
        corpus (`Any`):
            What was sent.

    Returns:
        `list[str]`: Its different lines that hold something.

    Raises:
        InputError: If there are none, or too many.
    """
    if corpus is not None and not isinstance(corpus, str):
        raise InputError(f"The texts must be a string with one a line, but got {type(corpus).__name__}.")
    lines = (line.strip() for line in (corpus or "").splitlines())
    found = list(dict.fromkeys(line for line in lines if any(c.isprintable() and not c.isspace() for c in line)))
    if not found:
        raise InputError("There are no texts to search. Paste some, one a line, upload a file, or choose an example.")
    if len(found) > MAX_TEXTS or sum(map(len, found)) > MAX_CORPUS:
        raise InputError(
            f"There are {len(found):,} texts of {sum(map(len, found)):,} characters; at most {MAX_TEXTS:,} of "
            f"{MAX_CORPUS:,} are searched. Give fewer."
        )
    return found


def check(settings: Settings, values: list[Any]) -> list[Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.
        values (`list`):
            What the boxes sent.

    Returns:
        `list`: The query, and the texts among which it is searched for; not the query itself.

    Raises:
        InputError: If one is no text, empty or too long.
    """
    query, corpus = check_text(values[0], "Query"), texts_of(values[1])
    others = [text for text in corpus if text != " ".join(query.split()) and text != query.strip()]
    if not others:
        raise InputError("The only text to search is the query itself. Add others.")
    return [query, others]


def read(loaded: Loaded, values: list[Any]) -> tuple[tuple[str, list[str]], str]:
    """
    Args:
        loaded (`Loaded`):
            The model's tokenizer and limits.
        values (`list`):
            Query and texts.

    Returns:
        `tuple`: Both, and a sentence where the model does not read all of them.
    """
    query, corpus = values
    if loaded.max_tokens is None:
        return (query, corpus), ""
    tokens = loaded.processor([query, *corpus], truncation=False, verbose=False)["input_ids"]
    long = sum(len(ids) > loaded.max_tokens for ids in tokens)
    said = f"Of {long:,} texts only the first {loaded.max_tokens:,} tokens were read." if long else ""
    return (query, corpus), said


@torch.inference_mode()
def ask(loaded: Loaded, model: Any, asked: tuple[str, list[str]]) -> list[list[Any]]:
    """
    Args:
        loaded (`Loaded`):
            The model.
        model (`SentenceTransformer`):
            The model, or its base.
        asked (`tuple`):
            What [`read`] gave.

    Returns:
        `list[list]`: The best texts: rank, cosine with the query, and text.

    Raises:
        InputError: If the model's answer is no number.
    """
    query, corpus = asked
    first = model.encode_query([query], convert_to_tensor=True, show_progress_bar=False)
    others = model.encode_document(corpus, convert_to_tensor=True, show_progress_bar=False)
    scores = finite(torch.nn.functional.cosine_similarity(first.float(), others.float())).cpu()
    best = scores.argsort(descending=True, stable=True)[:SHOWN].tolist()
    return [[rank, round(float(scores[place]), 4), corpus[place]] for rank, place in enumerate(best, 1)]


def found(whose: str) -> list[Any]:
    """
    Args:
        whose (`str`):
            End of the label.

    Returns:
        `list[Component]`: The texts that fit best.
    """
    return [
        gr.Dataframe(
            headers=["rank", "similarity", "text"],
            datatype=["number", "number", "str"],
            column_widths=["14%", "26%", "60%"],
            label=f"Best texts{whose}",
            interactive=False,
            wrap=True,
            elem_classes=["answer", "rows"],
        )
    ]


def show(loaded: Loaded, answer: list[list[Any]]) -> list[Any]:
    """
    Args:
        loaded (`Loaded`):
            The model.
        answer (`list[list]`):
            What [`ask`] gave.

    Returns:
        `list`: The same.
    """
    return [answer]
