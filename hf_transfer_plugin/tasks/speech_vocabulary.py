"""What a model of characters can spell: the vocabulary that it brings, or one made of the training texts."""

import json
import logging
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from hf_transfer_plugin.tasks.base import TaskData

logger = logging.getLogger(__name__)

PAD, UNKNOWN, SPACE = "[PAD]", "[UNK]", "|"
CASES = {"upper": str.upper, "lower": str.lower}


def is_spelling(model_config: Any) -> bool:
    """
    Args:
        model_config (`PretrainedConfig`):
            The model's config.

    Returns:
        `bool`: Whether such a model gives a character for each moment (CTC) instead of writing token by token.
    """
    kind = type(model_config)
    writes = kind in transformers.AutoModelForSpeechSeq2Seq._model_mapping
    return not writes and kind in transformers.AutoModelForCTC._model_mapping


def brings_letters(model_config: Any) -> bool:
    """
    Args:
        model_config (`PretrainedConfig`):
            The model's config.

    Returns:
        `bool`: Whether the pretrained model has an output for each character already.
    """
    return any(name.endswith("ForCTC") for name in getattr(model_config, "architectures", None) or ())


def complete(processor: Any, data: TaskData, model_config: Any) -> Any:
    """
    Makes the vocabulary of a model that comes without one: every character of the training texts, in lower case.

    Args:
        processor (`ProcessorMixin` or `SequenceFeatureExtractor`):
            What the pretrained model brings.
        data (`TaskData`):
            The rows.
        model_config (`PretrainedConfig`):
            The model's config.

    Returns:
        `ProcessorMixin`: The same where the model has its output layer, else one with the new vocabulary.
    """
    if not is_spelling(model_config) or brings_letters(model_config):
        return processor
    letters = sorted({letter for text in data.splits["train"]["text"] for letter in spelled(text, {"case": "lower"})})
    vocabulary = {
        token: i for i, token in enumerate([PAD, UNKNOWN, SPACE, *(one for one in letters if one not in " |")])
    }
    logger.warning(
        "The model brings no letters, so it gets an output layer for the %d characters of the training texts, in "
        "lower case: %s.",
        len(vocabulary) - 3,
        " ".join(one for one in letters if one != " ")[:200],
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        tokenizer = transformers.Wav2Vec2CTCTokenizer(
            str(file),
            unk_token=UNKNOWN,
            pad_token=PAD,
            word_delimiter_token=SPACE,
            bos_token=None,
            eos_token=None,
        )
    data.options.update(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    bert = getattr(model_config, "model_type", "") == "wav2vec2-bert"
    made = transformers.Wav2Vec2BertProcessor if bert else transformers.Wav2Vec2Processor
    return made(getattr(processor, "feature_extractor", processor), tokenizer)


def sizes(processor: Any, model_config: Any) -> dict[str, Any]:
    """
    Args:
        processor (`ProcessorMixin`):
            The processor.
        model_config (`PretrainedConfig`):
            The pretrained model's config.

    Returns:
        `dict[str, Any]`: Size of a new output layer for characters, and the one that stands for nothing.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not is_spelling(model_config) or brings_letters(model_config):
        return {}
    return {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}


def spelled(text: str, options: Mapping[str, Any]) -> str:
    """
    Args:
        text (`str`):
            A transcript of the data.
        options (`Mapping[str, Any]`):
            `case` (`"upper"`, `"lower"` or nothing) and `dropped` (characters to leave out).

    Returns:
        `str`: As the model spells it, in composed Unicode (NFC) with single spaces.
    """
    found = CASES.get(options.get("case") or "", str)(unicodedata.normalize("NFC", text))
    dropped = set(options.get("dropped") or ())
    return " ".join("".join(" " if letter in dropped else letter for letter in found).split())


def spelling(tokenizer: Any, texts: Sequence[str]) -> dict[str, str]:
    """
    How texts must be spelled for a vocabulary: in its case, and without the punctuation that it lacks.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            A tokenizer of characters.
        texts (`Sequence[str]`):
            Texts to learn.

    Returns:
        `dict[str, str]`: `case` and `dropped`.

    Raises:
        ValueError: If it lacks letters or digits of the texts.
    """
    known = set(tokenizer.get_vocab())
    case = _case(known)
    counts = Counter(letter for text in texts for letter in spelled(text, {"case": case}) if letter != " ")
    missing = {letter: count for letter, count in counts.most_common() if letter not in known}
    dropped = sorted(letter for letter in missing if unicodedata.category(letter)[0] in "PS")
    lacking = [f"{letter!r} ({count} times)" for letter, count in missing.items() if letter not in dropped]
    if lacking:
        raise ValueError(
            f"The model's vocabulary must have every letter of the texts, but lacks {len(lacking)}: "
            f"{', '.join(lacking[:10])}. Spell the texts with its letters ({''.join(_letters(known))[:80]}), or start "
            "from a model without a head for letters, such as `facebook/wav2vec2-base`: it gets those of your texts."
        )
    if dropped:
        logger.warning("The model's vocabulary lacks %s, which is left out of all texts.", " ".join(dropped))
    return {"case": case, "dropped": "".join(dropped)}


def _case(known: Iterable[str]) -> str:
    letters = _letters(known)
    upper, lower = any(one != one.lower() for one in letters), any(one != one.upper() for one in letters)
    return "" if upper == lower else "upper" if upper else "lower"


def _letters(known: Iterable[str]) -> list[str]:
    return sorted(token for token in known if len(token) == 1 and token.isalpha())
