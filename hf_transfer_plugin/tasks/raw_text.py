"""Raw text: rows to learn from that hold nothing are left out, since files of text have empty lines."""

import logging
from typing import Any

from datasets import Dataset, DatasetDict

from hf_transfer_plugin.tasks.columns import TEXT_COLUMNS, check_texts

logger = logging.getLogger(__name__)
RAW_COLUMNS = (*TEXT_COLUMNS, "document", "article", "page")


def read_texts(splits: DatasetDict, column: str, *, whole: bool = False) -> DatasetDict:
    """
    Args:
        splits (`DatasetDict`):
            The splits.
        column (`str`):
            Column of the text.
        whole (`bool`, *optional*, defaults to `False`):
            Whether every row is needed, since each gets an answer: empty ones are refused then.

    Returns:
        `DatasetDict`: The texts that are not empty, in the column `text`.

    Raises:
        ValueError: If a row holds something else than text, a split nothing, or a row nothing where all are needed.
    """
    found = {}
    for split, rows in splits.items():
        values = list(rows[column])
        texts = values if whole else [text for text in values if not _is_empty(text)]
        if not texts:
            raise ValueError(f"The {split} split must hold text in {column!r}, but all of its rows are empty.")
        check_texts(split, texts, column)
        if len(texts) < len(values):
            # A lone split may be called train and be measured all the same.
            where = f" of the {split} split" if len(splits) > 1 else ""
            left_out = len(values) - len(texts)
            logger.warning("%d of %d rows%s hold no text and are left out.", left_out, len(values), where)
        found[split] = Dataset.from_dict({"text": texts})
    return DatasetDict(found)


def _is_empty(text: Any) -> bool:
    return text is None or (isinstance(text, str) and not text.strip())
