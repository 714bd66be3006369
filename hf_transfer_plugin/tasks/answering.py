"""Prompts and the answers to them, as encoder-decoders and causal models learn and write them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict

from hf_transfer_plugin.tasks.base import TaskData
from hf_transfer_plugin.tasks.conversations import Marked, encode_marked, mark_answers, require_offsets
from hf_transfer_plugin.tasks.decoding import set_decoding, write_texts
from hf_transfer_plugin.tasks.languages import set_languages
from hf_transfer_plugin.tasks.padding import RightPadding
from hf_transfer_plugin.tasks.prompts import Asking, default_prompt, first_tokens
from hf_transfer_plugin.tasks.writers import require_writer

logger = logging.getLogger(__name__)


def set_up(task: str, model: Any, processor: Any, data: TaskData) -> None:
    """
    Sets prompt, languages, and how the model writes.

    Args:
        task (`str`):
            Name of the task.
        model (`PreTrainedModel`):
            The model; its generation config is changed.
        processor (`PreTrainedTokenizerBase`):
            Its tokenizer.
        data (`TaskData`):
            Its options are completed.

    Raises:
        ValueError: If the model does not write, or does not know a language.
    """
    require_writer(model)
    options = data.options
    set_decoding(model, processor, options["max_target_length"])
    if model.config.is_encoder_decoder:
        begin = _languages(processor, data, needed=task == "translation")
        if begin is not None:
            model.generation_config.forced_bos_token_id = begin


def _languages(processor: Any, data: TaskData, *, needed: bool) -> int | None:
    source, target = data.options.get("source_language"), data.options.get("target_language")
    return set_languages(processor, source, target, needed=needed)


def encode(task: str, data: TaskData, processor: Any, max_length: int, model_config: Any) -> tuple[DatasetDict, int]:
    """
    Tokenizes. A text that is too long is cut at its end, so that prompt and answer stay whole; a target longer than
    `max_target_length` is cut too. A causal model reads prompt and answer, with labels for the answer only.

    Args:
        task (`str`):
            Name of the task.
        data (`TaskData`):
            The rows; its options are completed.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.
        max_length (`int`):
            Tokens that the model reads at most; a causal model writes within them too, in half of them at most.
        model_config (`PretrainedConfig`):
            Tells the kind of model.

    Returns:
        `tuple[DatasetDict, int]`: Encoded splits, and the number of texts that were cut.

    Raises:
        ValueError: If the prompt leaves no room for a text.
    """
    causal, options = not model_config.is_encoder_decoder, data.options
    options |= {"causal": causal, "max_length": max_length}
    options["prompt"] = options.get("prompt") or default_prompt(task, data, model_config)
    if causal:
        require_offsets(processor)
        options["max_target_length"] = min(options["max_target_length"], max(max_length // 2, 1))
    else:
        _languages(processor, data, needed=task == "translation")
    asking = Asking(processor, options["prompt"], causal=causal)
    splits, cut = {}, 0
    for split, rows in data.splits.items():
        texts, targets = _Encoding(asking, options), 0
        splits[split] = rows.map(
            texts,
            batched=True,
            remove_columns=rows.column_names,
            load_from_cache_file=False,
            desc=f"Tokenizing {split}",
        )
        cut, targets = cut + texts.cut, texts.targets
        if targets:
            logger.warning(
                "%d of %d targets of the %s split are longer than %d tokens and were cut. Raise `--max_target_length` "
                "to learn them whole.",
                targets,
                len(rows),
                split,
                options["max_target_length"],
            )
    return DatasetDict(splits), cut


class _Encoding:
    """Encodes a batch of rows, and counts what was cut."""

    def __init__(self, asking: Asking, options: Mapping[str, Any]) -> None:
        self.asking, self.processor = asking, asking.processor
        self.new, self.length = options["max_target_length"], options["max_length"]
        self.cut = self.targets = 0

    def __call__(self, batch: Mapping[str, list[str]]) -> dict[str, list[list[int]]]:
        room = self.length - self.new if self.asking.causal else self.length
        texts, asked, cut = self.asking.fitted(batch["text"], room)
        self.cut += cut
        if not self.asking.causal:
            # Without labels a decoder has nothing to read; what it makes of one token is left alone.
            targets = batch["target"] if "target" in batch else [""] * len(texts)
            return {"input_ids": asked, "labels": self._labels(targets)}
        if "target" not in batch:
            return {"input_ids": asked}
        targets = [self._fitting(target) for target in batch["target"]]
        marked = [self._marked(text, target) for text, target in zip(texts, targets, strict=True)]
        return encode_marked(self.processor, marked, self.length, special=self.asking.special)[0]

    def _labels(self, targets: Sequence[str]) -> list[list[int]]:
        whole = self.processor(text_target=list(targets), verbose=False)["input_ids"]
        long = [number for number, ids in enumerate(whole) if len(ids) > self.new]
        self.targets += len(long)
        for number in long:
            # The tokenizer cuts before the token that ends the text.
            limits = {"truncation": True, "max_length": self.new}
            whole[number] = self.processor(text_target=targets[number], **limits)["input_ids"]
        return whole

    def _fitting(self, target: str) -> str:
        """The beginning of a target that leaves room for the token that ends it."""
        kept = first_tokens(self.processor, target, max(self.new - 1, 1))
        self.targets += kept != target
        return kept

    def _marked(self, text: str, target: str) -> Marked:
        if self.asking.chat:
            asked = {"role": "user", "content": self.asking.question(text)}
            return mark_answers(self.processor, [asked, {"role": "assistant", "content": target}])
        before = self.asking.asked(text)
        whole = before + target + (self.processor.eos_token or "")
        return whole, [(len(before), len(whole))]


def collate(processor: Any, data: TaskData) -> RightPadding:
    """
    Args:
        processor (`PreTrainedTokenizerBase`):
            Has the token to pad with.
        data (`TaskData`):
            Not needed here.

    Returns:
        `RightPadding`: What makes batches.
    """
    return RightPadding(processor.pad_token_id)


def generate(model: Any, processor: Any, data: TaskData, rows: Dataset, batch_size: int) -> list[str]:
    """
    Args:
        model (`PreTrainedModel`):
            The model.
        processor (`PreTrainedTokenizerBase`):
            Its tokenizer.
        data (`TaskData`):
            Its options, as [`encode`] completed them.
        rows (`Dataset`):
            Texts.
        batch_size (`int`):
            Texts at a time.

    Returns:
        `list[str]`: What the model writes for each.
    """
    options = data.options
    room = options["max_length"] - (options["max_target_length"] if options["causal"] else 0)
    asking = Asking(processor, options["prompt"], causal=options["causal"])
    if not options["causal"]:
        _languages(processor, data, needed=False)
    _, asked, _ = asking.fitted(rows["text"], room)
    return write_texts(model, processor, asked, batch_size, options["max_target_length"], title="Writing")
