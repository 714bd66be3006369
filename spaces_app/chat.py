"""Demos that talk: a conversation on the page, and one call of it for clients."""

import html
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from answering import Demo, answering
from jinja2 import TemplateError
from limits import InputError, check_text, longest
from loading import Loaded, Settings
from writing import Asked, shares, templated

NEW_TOKENS = 256
MAX_MESSAGES = 1_000
SILENT = "(no answer)"
LIMIT = "It reads and writes {tokens:,} tokens at most; the oldest messages of a longer conversation are left out."


def inputs(settings: Settings) -> list[Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.

    Returns:
        `list[Component]`: The box for the next message.
    """
    return [gr.Textbox(label="Message", lines=1, max_lines=8, elem_id="message", placeholder="Write a message")]


def check(settings: Settings, values: list[Any]) -> list[Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.
        values (`list`):
            The conversation.

    Returns:
        `list`: The conversation, `role` and `content` of each message: perhaps one from the system, then the user's
        and the assistant's in turn, the user's last.

    Raises:
        InputError: If it is something else.
    """
    messages = values[0]
    if not all(isinstance(message, dict) for message in messages):
        raise InputError("The history must be a list of messages, each with `role` and `content`.")
    if len(messages) > MAX_MESSAGES:
        raise InputError(f"The history has {len(messages):,} messages; at most {MAX_MESSAGES:,} are read. Clear it.")
    roles = [message.get("role") for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise InputError("The history must hold messages of `user` and `assistant` in turn, the user's first.")
    said = [{"role": message["role"], "content": message.get("content")} for message in messages]
    check_text(said[-1]["content"], "Message")
    for message in said[:-1]:  # an answer may be empty
        if message["content"] != "":
            check_text(message["content"], "A message of the history")
    return [said]


def read(loaded: Loaded, values: list[Any]) -> tuple[Asked, str]:
    """
    Args:
        loaded (`Loaded`):
            The model's tokenizer and limits.
        values (`list`):
            The conversation.

    Returns:
        `tuple[Asked, str]`: As many of the last messages as fit, and a sentence where some were left out.

    Raises:
        InputError: If the last message alone does not fit, or the chat template takes no such messages.
    """
    messages = values[0]
    new, room = shares(loaded, NEW_TOKENS)
    first = int(messages[0]["role"] == "system")
    turns = len(messages[first:]) // 2

    def kept(count: int) -> list[int]:
        return templated(loaded, messages[:first] + messages[len(messages) - 2 * count - 1 :])

    def fits(count: int) -> bool:
        return room is None or len(kept(count)) <= room

    try:
        if fits(turns):
            return Asked(kept(turns), new), ""
        if not fits(0):
            raise InputError(
                f"The message is too long: the model reads {room:,} tokens of a conversation. Shorten it."
            )
        count = longest(turns, fits)
        left_out = f"The oldest {2 * (turns - count)} messages were left out; the model does not read so much."
        return Asked(kept(count), new), left_out
    except TemplateError as error:
        raise InputError(f"The model's chat template does not take these messages: {error}") from error


def outputs(whose: str) -> list[Any]:
    """
    Args:
        whose (`str`):
            End of the label; the base model's answer stands apart from the conversation.

    Returns:
        `list[Component]`: Where answers stand.
    """
    if "base" in whose:
        label = "The base model's answer to the last message"
        return [
            gr.Textbox(label=label, lines=3, max_lines=12, interactive=False, visible=False, elem_classes="answer")
        ]
    return [
        gr.Chatbot(
            label=f"Conversation{whose}",
            height=420,
            render_markdown=False,  # a picture in an answer would be fetched from elsewhere
            latex_delimiters=[],
            allow_tags=False,
            buttons=[],
            placeholder="Write a message, or choose an example.",
            layout="bubble",
            elem_id="conversation",
        )
    ]


def _parts(message: dict[str, str]) -> dict[str, Any]:
    """As plain text: the component would trim it."""
    return {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}


def body(settings: Settings, demo: Demo, loaded: Loaded) -> None:
    """
    Lays out the conversation.

    Args:
        settings (`Settings`):
            What demo.json says.
        demo (`Demo`):
            Row of the table.
        loaded (`Loaded`):
            The model.
    """
    both = loaded.as_base is not None
    answers = [demo.outputs(whose)[0] for whose in (["", " (base model)"] if both else [""])]
    (box,) = demo.inputs(settings)
    switch = gr.Checkbox(label="Compare with the base model", value=False, visible=both)
    with gr.Row():
        clear = gr.Button("Clear", min_width=90)
        stop = gr.Button("Stop", min_width=90)
        button = gr.Button(demo.button, variant="primary", min_width=90)
    talk = talking(settings, demo, loaded)

    def page(message: Any, history: Any, compare: Any) -> Iterator[tuple[Any, ...]]:
        for said, ours, *base in talk(message, heard(history), compare):
            yield "", shown([*said, {"role": "assistant", "content": ours}]), *base

    def chat(message: str, history: list | None = None) -> Iterator[str]:
        for _, answer in talk(message, history):
            yield answer

    def compared(message: str, history: list | None = None, compare_with_base: bool | None = None) -> Iterator[list]:
        for _, *both_answers in talk(message, history, compare_with_base):
            yield both_answers

    asked = gr.on(
        [button.click, box.submit],
        page,
        [box, answers[0], switch],
        [box, *answers],
        api_visibility="private",
        preprocess=False,
        concurrency_limit=1,
        concurrency_id="model",
        show_progress="minimal",
    )
    gr.api(compared if both else chat, api_name=demo.api_name, concurrency_limit=1, concurrency_id="model")
    everything = [box, *answers]
    stop.click(None, cancels=[asked], api_visibility="private", queue=False)
    clear.click(
        lambda: ["", [], *[None] * both], None, everything, cancels=[asked], api_visibility="private", queue=False
    )
    if both:
        switch.change(lambda on: gr.update(visible=on), switch, answers[1], api_visibility="private", queue=False)
    _examples(settings, box, answers[0])


def talking(settings: Settings, demo: Demo, loaded: Loaded) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.
        demo (`Demo`):
            Row of the table.
        loaded (`Loaded`):
            The model.

    Returns:
        `Callable`: `(message, history, compare)` -> the conversation with the message, the answer so far and, where it
        can be asked, the base model's; again and again while they grow.
    """
    answer = answering(settings, demo, loaded)

    def talk(message: Any, history: Any, compare: Any = None) -> Iterator[tuple[Any, ...]]:
        check_text(message, "Message")
        if history is not None and not isinstance(history, list):
            raise InputError("The history must be a list of messages, each with `role` and `content`.")
        said = check(settings, [[*(history or []), {"role": "user", "content": message}]])
        for found in answer(*said, compare):
            yield (said[0], *found) if loaded.as_base is not None else (said[0], found)

    return talk


def shown(messages: list[dict[str, str]]) -> list[dict[str, Any]]:
    """
    Args:
        messages (`list[dict]`):
            `role` and `content` of each.

    Returns:
        `list[dict]`: The same for the page, which takes text for HTML and trims what is not in parts.
    """
    texts = [html.escape(message["content"], quote=False) or SILENT for message in messages]
    return [
        {"role": message["role"], "content": [{"type": "text", "text": text}]}
        for message, text in zip(messages, texts, strict=True)
    ]


def heard(history: Any) -> Any:
    """
    Args:
        history (`Any`):
            What the page sent.

    Returns:
        `list[dict]`: `role` and `content` of each message.

    Raises:
        InputError: If it holds something else than texts.
    """
    try:
        texts = ["".join(part["text"] for part in message["content"]) for message in history or []]
        roles = [message["role"] for message in history or []]
    except (TypeError, KeyError) as error:
        raise InputError("The conversation must hold texts alone. Clear it.") from error
    return [
        {"role": role, "content": "" if text == SILENT else html.unescape(text)}
        for role, text in zip(roles, texts, strict=True)
    ]


def _examples(settings: Settings, box: Any, conversation: Any) -> None:
    said = [row["messages"] for row in settings.examples if row.get("messages")]
    if not said:
        return
    given = [str(row.get("label", "")) for row in settings.examples if row.get("messages")]
    rows = gr.Dataset(
        components=[gr.Textbox(visible=False), gr.Textbox(visible=False)],
        headers=["Message", "Given answer"],
        samples=[[messages[-1]["content"], answer] for messages, answer in zip(said, given, strict=True)],
        label="Examples from the evaluation data",
        type="index",
    )
    rows.click(
        lambda number: (said[number][-1]["content"], shown(said[number][:-1])),
        rows,
        [box, conversation],
        api_visibility="private",
        queue=False,
    )
