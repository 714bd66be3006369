"""Transcripts, as models learn and write them: token by token (Whisper), or a character for each moment (CTC)."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from hf_transfer_plugin.tasks.base import TaskData
from hf_transfer_plugin.tasks.decoding import set_decoding, write_rows
from hf_transfer_plugin.tasks.likelihood import aligned_sums
from hf_transfer_plugin.tasks.sound_rows import (
    Preparing,
    SoundBatches,
    least_samples,
    prepared_sounds,
    readable_seconds,
    tell_cropped,
)
from hf_transfer_plugin.tasks.speech_vocabulary import is_spelling, spelled, spelling

logger = logging.getLogger(__name__)

MULTILINGUAL = 51_865  # tokens of Whisper's vocabulary, unless it knows English alone


def set_up(model: Any, processor: Any, data: TaskData) -> None:
    """
    Sets language and spelling, and how the model writes.

    Args:
        model (`PreTrainedModel`):
            The model; its config and generation config are changed.
        processor (`ProcessorMixin`):
            Its feature extractor and tokenizer.
        data (`TaskData`):
            The rows; its options are completed.

    Raises:
        ValueError: If the processor has no tokenizer, the vocabulary lacks letters of the texts, or the language is
            missing or unknown.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not hasattr(processor, "feature_extractor"):
        raise ValueError(
            f"The processor must have a feature extractor and a tokenizer, but {type(processor).__name__} has not "
            "both. Save the model with a processor such as Wav2Vec2Processor or WhisperProcessor."
        )
    if is_spelling(model.config):
        # As everywhere in fine-tuning: the mean of the rows, and nothing of texts too long for their sound.
        model.config.ctc_loss_reduction, model.config.ctc_zero_infinity = "mean", True
        if "case" not in data.options and "train" in data.splits:
            data.options.update(spelling(tokenizer, data.splits["train"]["text"]))
            _check_spelled(data)
        return
    places = getattr(model.config, "max_target_positions", None)
    # Language, task and the like come before the text.
    room = places - 4 if places else data.options["max_target_length"]
    data.options["max_target_length"] = max(min(data.options["max_target_length"], room), 1)
    set_decoding(model, tokenizer, data.options["max_target_length"])
    if hasattr(tokenizer, "set_prefix_tokens"):
        _set_language(model, tokenizer, data)
        _allow(model, tokenizer, data)


def _check_spelled(data: TaskData) -> None:
    for split, rows in data.splits.items():
        empty = sum(not spelled(text, data.options) for text in rows["text"])
        if empty:
            raise ValueError(
                f"Every text must hold letters that the model knows, but {empty} of {len(rows)} in the {split} split "
                "hold only signs that it lacks. Remove such rows."
            )


def _set_language(model: Any, tokenizer: Any, data: TaskData) -> None:
    """Whisper's texts begin with tokens for language and task, unless it knows English alone."""
    settings, language = model.generation_config, data.options.get("source_language")
    several = getattr(settings, "is_multilingual", None)
    several = model.config.vocab_size >= MULTILINGUAL if several is None else several
    settings.forced_decoder_ids = model.config.forced_decoder_ids = None
    if not several:
        return
    code = TO_LANGUAGE_CODE.get(str(language).lower(), str(language).lower())
    if code not in LANGUAGES:
        raise ValueError(
            f"`source_language` must name the language that is spoken, since the model knows {len(LANGUAGES)} "
            f"({', '.join(sorted(LANGUAGES)[:12])}, …), but got {language!r}."
        )
    data.options["source_language"] = code
    tokenizer.set_prefix_tokens(language=code, task="transcribe", predict_timestamps=False)
    settings.language, settings.task = code, "transcribe"


def _allow(model: Any, tokenizer: Any, data: TaskData) -> None:
    """Tokens that the texts hold may be written, also those that Whisper was told never to write."""
    settings = model.generation_config
    if not getattr(settings, "suppress_tokens", None) or "train" not in data.splits:
        return
    used = {token for text in data.splits["train"]["text"] for token in tokenizer(text).input_ids}
    settings.suppress_tokens = [token for token in settings.suppress_tokens if token not in used]


def encode(data: TaskData, processor: Any, max_length: int, model_config: Any) -> tuple[DatasetDict, int]:
    """
    Tokenizes the texts, and lets sounds be resampled and prepared when they are read.

    Args:
        data (`TaskData`):
            The rows; its options and facts are completed.
        processor (`ProcessorMixin`):
            Feature extractor and tokenizer.
        max_length (`int`):
            Not needed here.
        model_config (`PretrainedConfig`):
            The model's config.

    Returns:
        `tuple[DatasetDict, int]`: Rows that are prepared when they are read, and 0: no text is cut that is read.

    Raises:
        ValueError: If a training row is longer than the model's window.
    """
    extractor, options = processor.feature_extractor, data.options
    options["ctc"] = is_spelling(model_config)
    seconds, least = readable_seconds(extractor, options["max_seconds"]), least_samples(model_config)
    long = sum(length > seconds for length in data.splits["train"]["seconds"]) if "train" in data.splits else 0
    if long:
        raise ValueError(
            f"The model hears {seconds:g} seconds, but {long} of {len(data.splits['train'])} training sounds are "
            f"longer, and their texts tell what it does not hear. Leave them out with `--max_seconds {seconds:g}`."
        )
    options["max_seconds"] = seconds
    if least:
        options["min_samples"] = least
    tell_cropped(data, seconds)
    preparing = Preparing(extractor, seconds, least)
    return DatasetDict({
        split: prepared_sounds(rows, preparing, _labels(split, rows, processor.tokenizer, data))
        for split, rows in data.splits.items()
    }), 0


def _labels(split: str, rows: Dataset, tokenizer: Any, data: TaskData) -> list[list[int]] | None:
    if "text" not in rows.column_names:
        return None
    texts = wanted_texts(rows, data)
    if data.options["ctc"]:
        return [tokenizer(text).input_ids for text in texts]
    limit, cut, found = data.options["max_target_length"], 0, []
    for text in texts:
        ids = tokenizer(text, verbose=False).input_ids
        if len(ids) > limit:
            cut, ids = cut + 1, tokenizer(text, truncation=True, max_length=limit).input_ids
        found.append(_without_start(ids, tokenizer))
    if cut:
        logger.warning(
            "%d of %d texts of the %s split are longer than %d tokens and were cut. Raise `--max_target_length` to "
            "learn them whole.",
            cut,
            len(rows),
            split,
            limit,
        )
    return found


def _without_start(ids: list[int], tokenizer: Any) -> list[int]:
    """The model itself puts the token that texts start with before the labels."""
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    starts = {start if hasattr(tokenizer, "set_prefix_tokens") else None, tokenizer.bos_token_id}
    return ids[1:] if len(ids) > 1 and ids[0] in starts - {None, tokenizer.unk_token_id} else ids


def wanted_texts(rows: Dataset, data: TaskData) -> list[str]:
    """
    Args:
        rows (`Dataset`):
            Checked rows.
        data (`TaskData`):
            Tells how the model spells.

    Returns:
        `list[str]`: What shall be written for each row.
    """
    return [spelled(text, data.options) if data.options.get("ctc") else text for text in rows["text"]]


def reduce(logits: Any, labels: torch.Tensor | None) -> torch.Tensor:
    """
    Args:
        logits (`torch.Tensor` or `tuple`):
            The model's outputs: of a model that writes token by token a tuple, since they hold the encoder's states.
        labels (`torch.Tensor`, *optional*):
            Token numbers.

    Returns:
        `torch.Tensor` of shape `(rows, 3)`: As [`aligned_sums`]; zeros where characters have no places of their own.
    """
    if isinstance(logits, (tuple, list)):
        return aligned_sums(logits, labels)
    return aligned_sums(logits, None)


def collate(processor: Any, data: TaskData) -> SoundBatches:
    """
    Args:
        processor (`ProcessorMixin`):
            Has the feature extractor.
        data (`TaskData`):
            Not needed here.

    Returns:
        `SoundBatches`: What makes batches.
    """
    return SoundBatches(processor.feature_extractor)


def generate(model: Any, processor: Any, data: TaskData, rows: Dataset, batch_size: int) -> list[str]:
    """
    Args:
        model (`PreTrainedModel`):
            The model.
        processor (`ProcessorMixin`):
            Feature extractor and tokenizer.
        data (`TaskData`):
            Its options, as [`encode`] completed them.
        rows (`Dataset`):
            Sounds.
        batch_size (`int`):
            Sounds at a time.

    Returns:
        `list[str]`: What the model writes for each.
    """
    options, tokenizer = data.options, processor.tokenizer
    preparing = Preparing(processor.feature_extractor, options["max_seconds"], options.get("min_samples", 0))
    batches = SoundBatches(processor.feature_extractor)

    def write(numbers: Sequence[int]) -> list[str]:
        inputs = preparing.inputs(rows[list(numbers)]["audio"])
        name, values = next(iter(inputs.items()))
        batch = {key: value.to(model.device) for key, value in batches([{name: one} for one in values]).items()}
        batch[name] = batch[name].to(model.dtype)
        if not options["ctc"]:
            return [text.strip() for text in tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True)]
        return spelled_out(tokenizer, model(**batch).logits, [len(value) for value in values])

    limit = None if options["ctc"] else options["max_target_length"]
    return write_rows(model, tokenizer, rows["seconds"], batch_size, limit, write, title="Transcribing")


def spelled_out(tokenizer: Any, logits: torch.Tensor, lengths: Sequence[int]) -> list[str]:
    """
    The likeliest character of each moment, without repetitions and blanks. What is said of padding is left out.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.
        logits (`torch.Tensor` of shape `(rows, moments, characters)`):
            The model's outputs.
        lengths (`Sequence[int]`):
            Length of each sound before it was padded.

    Returns:
        `list[str]`: The texts.
    """
    moments = np.ceil(logits.shape[1] * np.asarray(lengths) / max(lengths)).astype(int)
    best = logits.argmax(-1).tolist()
    return [tokenizer.decode(row[:end]).strip() for row, end in zip(best, moments, strict=True)]
