"""Raw text: rows that hold nothing are left out, since files of text have empty lines."""

import logging

from datasets import Dataset, DatasetDict

from hf_transfer_plugin.tasks.columns import TEXT_COLUMNS, check_texts

logger = logging.getLogger(__name__)
RAW_COLUMNS = (*TEXT_COLUMNS, "document", "article", "page")


def read_texts(splits: DatasetDict, column: str) -> DatasetDict:
    """
    Args:
        splits (`DatasetDict`):
            The splits.
        column (`str`):
            Column of the text.

    Returns:
        `DatasetDict`: The texts that are not empty, in the column `text`.

    Raises:
        ValueError: If a row holds something else than text, or a split nothing.
    """
    found = {}
    for split, rows in splits.items():
        values = list(rows[column])
        texts = [text for text in values if not (text is None or (isinstance(text, str) and not text.strip()))]
        if not texts:
            raise ValueError(f"The {split} split must hold text in {column!r}, but all of its rows are empty.")
        check_texts(split, texts, column)
        if len(texts) < len(values):
            logger.warning(
                "%d of %d rows of the %s split hold no text and are left out.",
                len(values) - len(texts),
                len(values),
                split,
            )
        found[split] = Dataset.from_dict({"text": texts})
    return DatasetDict(found)
