"""What a model is asked, around a text that is cut where it does not fit."""

from collections.abc import Sequence
from typing import Any

from hf_transfer_plugin.tasks.base import TaskData
from hf_transfer_plugin.tasks.conversations import render
from hf_transfer_plugin.tasks.languages import language_name

PLACE = "{text}"


def default_prompt(task: str, data: TaskData, model_config: Any) -> str:
    """
    Args:
        task (`str`):
            `"summarization"` or `"translation"`.
        data (`TaskData`):
            May name languages.
        model_config (`PretrainedConfig`):
            The model's config; may name the prefix that it was trained with.

    Returns:
        `str`: The prompt of a model that has none of its own: a sentence for a causal model, the text alone for an
        encoder-decoder.
    """
    source, target = (data.options.get(f"{side}_language") for side in ("source", "target"))
    if model_config.is_encoder_decoder:
        name = f"translation_{source}_to_{target}" if task == "translation" else task
        own = (getattr(model_config, "task_specific_params", None) or {}).get(name) or {}
        return f"{own.get('prefix') or ''}{PLACE}"
    if task == "summarization":
        return f"Summarize the following text.\n\n{PLACE}"
    said = f"{f' from {language_name(source)}' if source else ''}{f' to {language_name(target)}' if target else ''}"
    return f"Translate the following text{said}.\n\n{PLACE}"


class Asking:
    """
    Puts texts into the prompt, in the form that the model reads.

    Args:
        processor (`PreTrainedTokenizerBase`):
            The tokenizer; a causal model is asked through its chat template, where there is one.
        prompt (`str`):
            The prompt, with `{text}`.
        causal (`bool`):
            Whether the model is a causal one.
    """

    def __init__(self, processor: Any, prompt: str, *, causal: bool) -> None:
        self.processor, self.prompt = processor, prompt
        self.chat = causal and bool(processor.chat_template)
        self.causal = causal

    @property
    def special(self) -> bool:
        """
        Returns:
            `bool`: Whether the tokenizer adds its special tokens; a chat template writes them itself.
        """
        return not self.chat

    def question(self, text: str) -> str:
        """
        Args:
            text (`str`):
                A text.

        Returns:
            `str`: The prompt around it.
        """
        return self.prompt.replace(PLACE, text)

    def asked(self, text: str) -> str:
        """
        Args:
            text (`str`):
                A text.

        Returns:
            `str`: All that the model reads before it answers.
        """
        if self.chat:
            return render(self.processor, [{"role": "user", "content": self.question(text)}], ask=True)
        return self.question(text) + ("\n" if self.causal else "")

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """
        Args:
            texts (`Sequence[str]`):
                Texts.

        Returns:
            `list[list[int]]`: The tokens of what the model reads for each.
        """
        asked = [self.asked(text) for text in texts]
        found = self.processor(asked, add_special_tokens=self.special, verbose=False)["input_ids"]
        end = self.processor.eos_token_id
        if self.causal and end is not None:
            # A tokenizer that ends each text would end the answer before it begins.
            found = [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in found]
        return found

    def fitted(self, texts: Sequence[str], limit: int) -> tuple[list[str], list[list[int]], int]:
        """
        Cuts texts that are too long at their end, so that the prompt around them stays whole.

        Args:
            texts (`Sequence[str]`):
                Texts.
            limit (`int`):
                Tokens of prompt and text at most.

        Returns:
            `tuple`: The texts, their tokens as of [`Asking.tokens`], and how many were cut.

        Raises:
            ValueError: If the prompt alone is too long.
        """
        kept, tokens = list(texts), self.tokens(texts)
        long = [number for number, ids in enumerate(tokens) if len(ids) > limit]
        for number in long:
            kept[number], tokens[number] = self._cut(kept[number], tokens[number], limit)
        return kept, tokens, len(long)

    def _cut(self, text: str, ids: list[int], limit: int) -> tuple[str, list[int]]:
        while len(ids) > limit:
            text = first_tokens(self.processor, text, limit - len(ids)).rstrip()
            if not text:
                raise ValueError(
                    f"The prompt {self.prompt!r} must leave room for a text, but takes more than the {limit} tokens "
                    "that may be read. Shorten it, raise `--max_length`, or lower `--max_target_length`."
                )
            ids = self.tokens([text])[0]
        return text, ids


def first_tokens(processor: Any, text: str, keep: int) -> str:
    """
    Args:
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.
        text (`str`):
            A text.
        keep (`int`):
            How many of its tokens to keep at most; below 0, how many to leave out at the end.

    Returns:
        `str`: The beginning of the text with that many tokens; nearly so many for a tokenizer that does not tell which
        characters a token stands for.
    """
    offsets = {"return_offsets_mapping": True} if processor.is_fast else {}
    found = processor(text, add_special_tokens=False, verbose=False, **offsets)
    count = len(found["input_ids"])
    keep = max(count + keep, 0) if keep < 0 else keep
    if keep >= count:
        return text
    if offsets:
        return text[: found["offset_mapping"][keep - 1][1]] if keep else ""
    return text[: len(text) * keep // count]
