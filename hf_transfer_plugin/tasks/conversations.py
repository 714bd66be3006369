"""Conversations: their roles, the model's chat template, and where in its text the answers stand."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError

from hf_transfer_plugin.tasks.padding import IGNORED

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
Message = dict[str, str]
# A text and the parts of it that are answers: first character, and character after the last.
Marked = tuple[str, list[tuple[int, int]]]
PROBE = "\ue000"


def read_conversation(messages: Any, where: str, *, answered: bool = True) -> list[Message]:
    """
    Checks a conversation and names its parts as chat templates do.

    Args:
        messages (`Any`):
            `role` and `content` of each message, or `from` and `value`.
        where (`str`):
            Of which row it is.
        answered (`bool`, *optional*, defaults to `True`):
            Whether it must end with an answer.

    Returns:
        `list[dict]`: `role` and `content` of each message.

    Raises:
        ValueError: If it is no conversation, a role is unknown or out of order, or a message is empty.
    """
    if not isinstance(messages, list) or not messages or not all(isinstance(m, Mapping) for m in messages):
        raise ValueError(
            f"A conversation must be a list of messages, each with `role` and `content`, but {where} holds "
            f"{_short(messages)}. Name another `--messages_column`."
        )
    found = [_message(message, f"message {number} of {where}") for number, message in enumerate(messages)]
    roles = [message["role"] for message in found]
    turns = roles[1:] if roles[0] == "system" else roles
    wanted = ["user", "assistant"] * len(turns)
    if turns != wanted[: len(turns)]:
        raise ValueError(
            "Messages must be of `user` and `assistant` in turn, with one of `system` before them or none, but "
            f"{where} has {', '.join(roles[:8])}{', …' if len(roles) > 8 else ''}. Merge or remove messages."
        )
    if not turns or (answered and turns[-1] != "assistant"):
        raise ValueError(
            f"A conversation must end with an answer of `assistant`, but {where} ends with `{roles[-1]}`. Remove what "
            "has no answer."
        )
    return found


def _message(message: Mapping[str, Any], where: str) -> Message:
    role = message["role"] if "role" in message else message.get("from")
    content = message["content"] if "content" in message else message.get("value")
    if role not in ROLES:
        raise ValueError(
            f"The role of a message must be one of {', '.join(sorted(ROLES))}, but {where} has {role!r}. Rename the "
            "role, or remove such conversations."
        )
    if not isinstance(content, str) or not content.strip():
        raise ValueError(
            f"A message must hold text in `content`, but {where} holds {_short(content)}. Remove such conversations."
        )
    return {"role": ROLES[role], "content": content}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def require_template(processor: Any) -> None:
    """
    Args:
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.

    Raises:
        ValueError: If it has no chat template.
    """
    if not processor.chat_template:
        raise ValueError(
            "Conversations need the model's chat template, but the tokenizer has none. Choose a model that was "
            "trained to chat, or set `tokenizer.chat_template` and save the tokenizer with the model."
        )


def require_offsets(processor: Any) -> None:
    """
    Args:
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.

    Raises:
        ValueError: If it does not tell which characters a token stands for.
    """
    if not processor.is_fast:
        raise ValueError(
            "To learn answers only, the tokenizer must tell which characters a token stands for, but "
            f"{type(processor).__name__} has no fast version. Choose a model with a `tokenizer.json`."
        )


def render(processor: Any, messages: Sequence[Message], *, ask: bool = False) -> str:
    """
    Args:
        processor (`PreTrainedTokenizerBase`):
            Has the template.
        messages (`Sequence[dict]`):
            The conversation.
        ask (`bool`, *optional*, defaults to `False`):
            Whether to begin an answer.

    Returns:
        `str`: The text that the model reads.

    Raises:
        ValueError: If the template does not take the messages.
    """
    try:
        return processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"The model's chat template does not take a conversation of {roles}: {error}. Bring the messages into the "
            "order that it asks for."
        ) from error


def mark_answers(processor: Any, messages: Sequence[Message]) -> Marked:
    """
    Renders a conversation, and finds its answers by rendering it up to each of them: what stands between the beginning
    of an answer and the text with it, up to the mark that ends the turn.

    Args:
        processor (`PreTrainedTokenizerBase`):
            Has the template.
        messages (`Sequence[dict]`):
            The conversation.

    Returns:
        `tuple`: The text, and where its answers are.

    Raises:
        ValueError: If the template writes a message otherwise when others follow.
    """
    whole, spans = render(processor, messages), []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render(processor, messages[:number], ask=True)
            after = render(processor, messages[: number + 1])
            if not (after.startswith(before) and whole.startswith(after)):
                raise ValueError(
                    "The model's chat template writes an answer otherwise when more messages follow, so it cannot be "
                    "told which tokens are answers. Give conversations of one answer each, or another template."
                )
            ended = after.rstrip()
            # Without a mark of its own, the space behind the answer ends it.
            marked = len(ended) > len(before) and not ended.endswith(message["content"].rstrip())
            spans.append((len(before), len(ended) if marked else len(after)))
    return whole, spans


def encode_marked(
    processor: Any, texts: Sequence[Marked], max_length: int, *, special: bool = False
) -> tuple[dict[str, list[list[int]]], int]:
    """
    Tokenizes texts, with labels for the tokens of their answers only.

    Args:
        processor (`PreTrainedTokenizerBase`):
            A fast tokenizer.
        texts (`Sequence[tuple]`):
            Texts, and where their answers are.
        max_length (`int`):
            Tokens of a row at most.
        special (`bool`, *optional*, defaults to `False`):
            Whether the tokenizer adds its special tokens; a chat template writes them itself.

    Returns:
        `tuple`: `input_ids` and `labels`, and how many rows were cut.
    """
    encoded = processor(
        [text for text, _ in texts], add_special_tokens=special, return_offsets_mapping=True, verbose=False
    )
    labels = []
    for ids, offsets, (_, spans) in zip(encoded["input_ids"], encoded["offset_mapping"], texts, strict=True):
        begin, end = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
        first, last = np.array(spans, dtype=np.int64).reshape(-1, 2).T
        inside = (begin[:, None] >= first) & (begin[:, None] < last) & (end > begin)[:, None]
        labels.append(np.where(inside.any(1), ids, IGNORED)[:max_length].tolist())
    cut = sum(len(ids) > max_length for ids in encoded["input_ids"])
    return {"input_ids": [ids[:max_length] for ids in encoded["input_ids"]], "labels": labels}, cut


def end_of_turn(processor: Any) -> int | None:
    """
    Args:
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.

    Returns:
        `int` or `None`: The special token that its chat template puts behind an answer, where it does.
    """
    if not processor.chat_template:
        return None
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    after = render(processor, said).rpartition(PROBE)[2]
    first = processor(after, add_special_tokens=False)["input_ids"][:1] if after else []
    return first[0] if first and first[0] in processor.all_special_ids else None
