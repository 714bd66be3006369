"""What the demo accepts: how much at once, and what it says to the rest."""

from bisect import bisect_left
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

MAX_CHARACTERS = 20_000
MAX_BODY = 1_000_000
MAX_WAITING = 32
MAX_UPLOAD = "5mb"


class InputError(gr.Error):
    """A sentence for the visitor; other faults stay in the log."""

    def __init__(self, message: str) -> None:
        super().__init__(message, print_exception=False)


def check_text(value: Any, what: str) -> str:
    """
    Lets one text in.

    Args:
        value (`Any`):
            What was sent.
        what (`str`):
            Name of the box, as the visitor knows it.

    Returns:
        `str`: The text.

    Raises:
        InputError: If it is no text, empty or too long.
    """
    if value is not None and not isinstance(value, str):
        raise InputError(f"{what} must be a string, but got {type(value).__name__}.")
    if not value or not any(character.isprintable() and not character.isspace() for character in value):
        raise InputError(f"{what} is empty. Type something, or choose an example.")
    if len(value) > MAX_CHARACTERS:
        raise InputError(f"{what} has {len(value):,} characters; at most {MAX_CHARACTERS:,} are read. Shorten it.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{what} holds broken characters. Type it again as plain text.") from None
    return value


def uploaded(value: Any, kind: str, recorded: str) -> Path:
    """
    Finds the file that a visitor sent.

    Args:
        value (`Any`):
            What a box for files sent.
        kind (`str`):
            What the file holds, such as `"image"`.
        recorded (`str`):
            How one is made on the spot, such as `"take a photo"`.

    Returns:
        `Path`: The uploaded file.

    Raises:
        InputError: If there is none, or it is another file of this machine.
    """
    if value is None:
        raise InputError(f"There is no {kind}. Upload a file, {recorded}, or choose an example.")
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str):
        raise InputError(f"{kind.capitalize()} must be an uploaded file: with gradio_client, `handle_file(PATH)`.")
    file = Path(path).resolve()
    # Nobody may ask for other files of this machine.
    if not file.is_relative_to(Path(get_upload_folder()).resolve()) or not file.is_file():
        raise InputError(f"The {kind} is no uploaded file. Upload it again.")
    return file


def finite(logits: Any) -> Any:
    """
    Lets a model's answer out.

    Args:
        logits (`torch.Tensor`):
            The answer.

    Returns:
        `torch.Tensor`: The same, as 32-bit numbers.

    Raises:
        InputError: If some are no numbers.
    """
    logits = logits.float()
    if not logits.isfinite().all():
        raise InputError("The model has no answer to this.")
    return logits


def longest(top: int, fits: Callable[[int], bool]) -> int:
    """
    Finds by halving how much of something fits.

    Args:
        top (`int`):
            All of it.
        fits (`Callable`):
            Whether so much fits; more fits less well.

    Returns:
        `int`: The largest number up to `top` that fits; 0 where none does.
    """
    return bisect_left(range(1, top + 1), True, key=lambda size: not fits(size))


class BodyLimit:
    """
    Answers 413 to a request larger than any honest one, before it fills the memory; uploads have their own limit.

    Args:
        app (`Callable`):
            The ASGI application behind it.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """
        Args:
            scope (`dict`):
                The connection.
            receive (`Callable`):
                Gives the request's parts.
            send (`Callable`):
                Takes the answer's parts.
        """
        if scope["type"] != "http" or scope["path"].rstrip("/").endswith("/upload"):
            await self.app(scope, receive, send)
            return
        body, more = b"", scope["method"] in {"POST", "PUT", "PATCH"}
        while more and len(body) <= MAX_BODY:
            part = await receive()
            body, more = body + part.get("body", b""), part.get("more_body", False)
        if len(body) > MAX_BODY:
            headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 413, "headers": headers})
            await send({"type": "http.response.body", "body": b"The request is too large."})
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, send)
