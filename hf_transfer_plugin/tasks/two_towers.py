"""Two towers: pictures and captions in one space, so that class names alone make a classifier."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import DatasetDict

from hf_transfer_plugin.layers import KINDS, find_towers
from hf_transfer_plugin.tasks import caption_search, classes, image_classification
from hf_transfer_plugin.tasks.base import Outcome, Task, TaskData
from hf_transfer_plugin.tasks.captions import captions_of, read, read_again
from hf_transfer_plugin.tasks.image_classification import THUMBNAIL, Preparing, shown
from hf_transfer_plugin.tasks.labels import SINGLE
from hf_transfer_plugin.tasks.media import with_media

logger = logging.getLogger(__name__)

COLUMNS = {"image": "image", "text": "text", "label": "labels"}


@dataclass(frozen=True)
class TwoTowerCollator:
    """
    Makes a batch: pictures, and their captions; or the captions of all classes where the rows have none.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.
        captions (`tuple[str, ...]`):
            A caption for each class.
        width (`int`, *optional*):
            Tokens up to which all texts are filled; those of the longest of a batch without it.
    """

    tokenizer: Any
    captions: tuple[str, ...]
    width: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """
        Args:
            rows (`Sequence[Mapping]`):
                Prepared rows.

        Returns:
            `dict[str, Any]`: What the model reads, and `labels`: of shape `(pictures,)` a number that equal captions
            share, where the captions are those of the pictures; of shape `(pictures, 1)` the column of each picture's
            caption, where they are those of the classes.
        """
        captioned = self.has_entry_for_each(rows)
        texts = [row["text"] for row in rows] if captioned else list(self.captions)
        # The pictures first: Trainer counts the rows of a batch by its first tensor.
        pictures = [name for name in rows[0] if name not in ("text", "labels")]
        batch = {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in pictures}
        settings = (
            {"padding": "longest"} if self.width is None else {"padding": "max_length", "max_length": self.width}
        )
        batch |= self.tokenizer(texts, truncation=True, return_tensors="pt", **settings)
        if captioned:
            # The same in every batch, so that the prefix cache knows a row again.
            batch["labels"] = torch.tensor([_number_of(text) for text in texts])
        elif "labels" in rows[0]:
            batch["labels"] = torch.tensor([[row["labels"]] for row in rows])
        return batch

    def has_entry_for_each(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """
        Args:
            rows (`Sequence[Mapping]`):
                Prepared rows.

        Returns:
            `bool`: Whether there is a text for each picture, as in training, instead of one for each class.
        """
        return "text" in rows[0]


def collator(processor: Any, data: TaskData) -> TwoTowerCollator:
    """
    Args:
        processor (`ProcessorMixin`):
            Holds the tokenizer.
        data (`TaskData`):
            Names the classes.

    Returns:
        `TwoTowerCollator`: What makes a batch. SigLIP reads all texts as wide as the longest that it can.
    """
    tokenizer, captions = processor.tokenizer, tuple(captions_of(data))
    width = None
    if "siglip" in type(processor).__name__.casefold():
        width = tokenizer.model_max_length
    elif captions:
        # As wide in training as when all classes are asked for; the prefix cache is proved for one width.
        width = max(map(len, tokenizer(list(captions), truncation=True)["input_ids"]))
    return TwoTowerCollator(tokenizer, captions, width)


def _number_of(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())


def encode(data: TaskData, processor: Any, max_length: int, model_config: Any) -> tuple[DatasetDict, int]:
    """
    Lets pictures be opened and prepared when they are read, and counts captions that the text tower cannot read whole.

    Args:
        data (`TaskData`):
            The rows.
        processor (`ProcessorMixin`):
            The image processor and the tokenizer, which is told how much the text tower reads.
        max_length (`int`):
            Tokens at most.
        model_config (`PretrainedConfig`):
            Knows the text tower's positions.

    Returns:
        `tuple[DatasetDict, int]`: Rows that are prepared when they are read, and the number of overlong captions.

    Raises:
        ValueError: If the tokenizer knows no word of the captions.
    """
    tokenizer, positions = processor.tokenizer, getattr(model_config.text_config, "max_position_embeddings", None)
    tokenizer.model_max_length = min(max_length, positions or max_length)
    texts = [text for rows in data.splits.values() if "text" in rows.column_names for text in rows["text"]]
    different = list(dict.fromkeys([*texts, *captions_of(data)]))
    tokens = tokenizer(different, truncation=False, verbose=False)["input_ids"]
    _require_known(different, tokens, tokenizer)
    long = {text for text, ids in zip(different, tokens, strict=True) if len(ids) > tokenizer.model_max_length}
    overlong = sum(text in long for text in texts or different)
    preparing = Preparing(processor.image_processor)
    found = {}
    for split, rows in data.splits.items():
        names = [name for name in COLUMNS if name in rows.column_names]
        rows = rows.select_columns(names).rename_columns({n: COLUMNS[n] for n in names if COLUMNS[n] != n})
        found[split] = with_media(rows, [COLUMNS[name] for name in names], preparing)
    return DatasetDict(found), overlong


def _require_known(texts: Sequence[str], tokens: Sequence[Sequence[int]], tokenizer: Any) -> None:
    """Transformers makes an empty tokenizer where the files of one are missing."""
    kinds = len(set(map(tuple, tokens)))
    known = {number for ids in tokens for number in ids} - set(tokenizer.all_special_ids)
    if texts and not known:
        raise ValueError(
            f"The tokenizer must know words of the captions, but {type(tokenizer).__name__} knows none, not even of "
            f"{texts[0]!r}. Save the tokenizer of the text tower, with its vocabulary, beside the model."
        )
    if kinds < len(texts):
        logger.warning("The tokenizer reads %d different captions as only %d.", len(texts), kinds)


def set_up(model: Any, processor: Any, data: TaskData) -> None:
    """
    Args:
        model (`PreTrainedModel`):
            The model.
        processor (`ProcessorMixin`):
            Its processor.
        data (`TaskData`):
            The rows.

    Raises:
        ValueError: If the model has not two towers, its processor prepares not both, or two pictures of other shapes
            do not become alike.
    """
    if not find_towers(model):
        raise ValueError(
            f"The model must have a tower for pictures and one for texts, but {type(model).__name__} has not. Name a "
            f"model such as {KINDS}."
        )
    parts = [name for name in ("image_processor", "tokenizer") if getattr(processor, name, None) is None]
    if parts:
        raise ValueError(
            f"The processor must prepare pictures and texts, but {type(processor).__name__} has no "
            f"{' and no '.join(parts)}. Save one with both beside the model, such as "
            "`VisionTextDualEncoderProcessor(image_processor, tokenizer)`."
        )
    image_classification.set_up(model, processor.image_processor, data)


def reduce(logits: Any, labels: Any) -> Any:
    """
    Args:
        logits (`tuple`):
            What the model returns: similarities of pictures to captions and of captions to pictures, vectors of
            captions and of pictures, and what the towers return.
        labels (`torch.Tensor`, *optional*):
            As [`TwoTowerCollator`] makes them.

    Returns:
        `torch.Tensor` or `tuple[torch.Tensor, ...]`: Similarities of each picture to the classes; or the vectors of
        pictures and of their captions.
    """
    similarities, _, texts, pictures = logits[:4]
    return similarities if labels is None or labels.ndim == 2 else (pictures, texts)


def metrics(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Tells whether there are classes.
        outcome (`Outcome`):
            What [`reduce`] gave.

    Returns:
        `dict[str, float]`: Of classes, as of any classifier; of captions, recall both ways.
    """
    return classes.metrics(data, outcome) if data.class_names else caption_search.metrics(outcome)


def report(data: TaskData, outcome: Outcome, count: int) -> dict[str, Any]:
    """
    Args:
        data (`TaskData`):
            Tells whether there are classes.
        outcome (`Outcome`):
            What [`reduce`] gave.
        count (`int`):
            Rows at most.

    Returns:
        `dict[str, Any]`: Further fields of the record.
    """
    show = partial(shown, longest=THUMBNAIL)
    if not data.class_names:
        return caption_search.report(outcome, count, show=show)
    return classes.report(data, outcome, count, show=show)


def answers(data: TaskData, outcome: Outcome) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            Tells whether there are classes.
        outcome (`Outcome`):
            What [`reduce`] gave.

    Returns:
        `list[dict[str, Any]]`: The class of each picture, or the caption that fits it best.
    """
    return classes.answers(data, outcome) if data.class_names else caption_search.answers(outcome)


def baseline(data: TaskData, split: str, encoded: DatasetDict) -> tuple[str, dict[str, float]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to measure on.
        encoded (`DatasetDict`):
            Not needed here.

    Returns:
        `tuple`: Name and metrics of always the commonest class, or of captions in a random order.
    """
    if data.class_names:
        return classes.baseline(data, split, encoded)
    return "random_order", caption_search.CaptionSearch(data.splits[split]).chance()


def examples(data: TaskData, split: str, count: int) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to take them from.
        count (`int`):
            How many.

    Returns:
        `list[dict[str, Any]]`: Pictures with their class, or with their caption.
    """
    if data.class_names:
        return classes.examples(data, split, count, show=shown)
    rows = data.splits[split].select(range(min(count, len(data.splits[split]))))
    return [{**shown(row), "text": row["text"]} for row in rows]


def best_metric(data: TaskData) -> tuple[str, bool]:
    """
    Args:
        data (`TaskData`):
            Tells whether there are classes.

    Returns:
        `tuple[str, bool]`: The metric that decides, and whether greater is better.
    """
    return classes.BEST[SINGLE] if data.class_names else (caption_search.BEST, True)


TWO_TOWERS = Task(
    name="zero-shot-image-classification",
    auto_classes=("AutoModelForZeroShotImageClassification", "AutoModel"),
    roles=("image", "text", "label"),
    read=read,
    read_again=read_again,
    encode=encode,
    collator=collator,
    metrics=metrics,
    report=report,
    answers=answers,
    baseline=baseline,
    examples=examples,
    best_metric=best_metric,
    options=("class_names", "skip_unreadable", "caption_template", "freeze_tower"),
    processor="AutoProcessor",
    reduce=reduce,
    set_up=set_up,
    loss="contrastive",
    pretrained_head=True,
    # No forward of two towers names its labels.
    arguments={"remove_unused_columns": False, "train_sampling_strategy": "random", "label_names": ["labels"]},
)
