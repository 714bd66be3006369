"""Languages of a translation: columns that are named after them, and tokenizers that have codes for them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict

from hf_transfer_plugin.config import TransferConfig

CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}")
NAMES = {
    "ar": "Arabic", "cs": "Czech", "de": "German", "en": "English", "es": "Spanish", "fi": "Finnish", "fr": "French",
    "hi": "Hindi", "hu": "Hungarian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "tr": "Turkish",
    "uk": "Ukrainian", "zh": "Chinese",
}  # fmt: skip
PAIRS = "translation"


def language_name(code: str) -> str:
    """
    Args:
        code (`str`):
            An ISO code, or any word for a language.

    Returns:
        `str`: Its English name, where it is known.
    """
    return NAMES.get(code.split("_")[0].lower(), code)


def unfold_pairs(
    splits: DatasetDict, config: TransferConfig, *, labelled: bool = True
) -> tuple[DatasetDict, dict[str, str]]:
    """
    Takes source and target out of a column `translation`, which holds `{"en": ..., "es": ...}` as on the Hub.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            Names the languages, or the keys as `text_column` and `target_column`.
        labelled (`bool`, *optional*, defaults to `True`):
            Whether the target is wanted.

    Returns:
        `tuple[DatasetDict, dict[str, str]]`: Splits with a column for each language, and role -> column.

    Raises:
        ValueError: If it is not said which languages are meant, or a row lacks one.
    """
    first = next(iter(splits.values()))[0][PAIRS]
    if not isinstance(first, Mapping):
        raise ValueError(
            f"{PAIRS!r} must hold a text for each language, such as {{'en': ..., 'es': ...}}, but row 0 holds "
            f"{first!r:.60}. Name other columns with `--text_column` and `--target_column`."
        )
    roles = {"text": (config.text_column, config.source_language)}
    roles |= {"target": (config.target_column, config.target_language)} if labelled else {}
    columns = {role: _key(given, sorted(first), role) for role, given in roles.items()}
    if len(set(columns.values())) < len(columns):
        raise ValueError(f"Source and target must be two languages, but both are {columns['text']!r}.")
    return DatasetDict({split: _unfolded(split, rows, columns) for split, rows in splits.items()}), columns


def _key(given: Sequence[str | None], keys: Sequence[str], role: str) -> str:
    for name in given:
        for key in () if name is None else (name, name.split("_")[0]):
            if key in keys:
                return key
    flag = {"text": "source_language", "target": "target_language"}[role]
    got = next((name for name in given if name is not None), None)
    raise ValueError(
        f"{PAIRS!r} holds the languages {', '.join(keys)}: one of them must be named, but got {got!r}. Choose it with "
        f"`--{flag}`, or with `--{role}_column` where the tokenizer codes it otherwise."
    )


def _unfolded(split: str, rows: Dataset, columns: Mapping[str, str]) -> Dataset:
    found: dict[str, list[Any]] = {key: [] for key in columns.values()}
    for number, pair in enumerate(rows[PAIRS]):
        for key, values in found.items():
            if not isinstance(pair, Mapping) or key not in pair:
                raise ValueError(f"Row {number} of the {split} split has no {key!r} in {PAIRS!r}. Remove such rows.")
            values.append(pair[key])
    return Dataset.from_dict(found)


def language_codes(processor: Any) -> dict[str, int] | None:
    """
    Args:
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.

    Returns:
        `dict[str, int]` or `None`: Code -> token, for tokenizers that put a language's token into texts (mBART, NLLB,
        M2M100).
    """
    if not hasattr(processor, "src_lang") or not hasattr(processor, "tgt_lang"):
        return None
    if hasattr(processor, "lang_code_to_token"):
        tokens = processor.lang_code_to_token
        return {code: processor.convert_tokens_to_ids(token) for code, token in tokens.items()}
    return {
        token: processor.convert_tokens_to_ids(token)
        for token in processor.all_special_tokens
        if CODE.fullmatch(token)
    }


def set_languages(processor: Any, source: str | None, target: str | None, *, needed: bool) -> int | None:
    """
    Tells a tokenizer with codes for languages which they are.

    Args:
        processor (`PreTrainedTokenizerBase`):
            The tokenizer; changed.
        source (`str`, *optional*):
            Language of the text.
        target (`str`, *optional*):
            Language of the answer.
        needed (`bool`):
            Whether both must be given.

    Returns:
        `int` or `None`: The token that answers begin with.

    Raises:
        ValueError: If one is missing or unknown.
    """
    codes = language_codes(processor)
    if not codes:
        return None
    for flag, attribute, code in (("source", "src_lang", source), ("target", "tgt_lang", target)):
        if code is None and not needed:
            continue
        if code not in codes:
            some = ", ".join(sorted(codes)[:12])
            raise ValueError(
                f"`{flag}_language` must be one of the {len(codes)} codes of {type(processor).__name__} ({some}"
                f"{', …' if len(codes) > 12 else ''}), but got {code!r}."
            )
        setattr(processor, attribute, code)
    return None if target is None else codes[target]
