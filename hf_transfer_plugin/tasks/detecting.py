"""What a detector reads and gives: pictures with targets in batches, and boxes out of its raw outputs."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from PIL import Image as Pillow

from hf_transfer_plugin.metrics.detection import LARGEST
from hf_transfer_plugin.tasks.base import TaskData
from hf_transfer_plugin.tasks.media import read_image, with_media

logger = logging.getLogger(__name__)

SHAPES = ((40, 60), (60, 40))  # of two pictures that a batch must hold side by side
SEEN, FRAME = 64, 128  # pixels of a picture and of the frame around it, by which a model shows whether it reads masks
MASK, PADDED = "mask", "frame"
DIVIDING = ("loss_for_object_detection", "loss_deformable_detr")  # modules of Transformers


@dataclass(frozen=True)
class Preparing:
    """
    Makes a model's inputs of rows when they are read, as Transformers' pipeline makes them of a file. Targets are
    shares of the picture itself, as the pipeline reads the model's answers, so no resizing changes them.

    Args:
        processor (`BaseImageProcessor`):
            The image processor.
    """

    processor: Any

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """
        Args:
            batch (`Mapping[str, Sequence]`):
                The columns `image`, `width`, `height` and, where they are known, `boxes` and `categories`.

        Returns:
            `dict[str, Any]`: What the model reads; `labels` are empty where the objects are not known.
        """
        made = [self.processor(images=read_image(value), return_tensors="pt") for value in batch["image"]]
        inputs = {name: [one[name][0] for one in made] for name in ("pixel_values", "pixel_mask") if name in made[0]}
        nothing: list[list[Any]] = [[] for _ in made]
        objects = zip(batch.get("boxes", nothing), batch.get("categories", nothing), strict=True)
        sizes = zip(batch["width"], batch["height"], strict=True)
        return {**inputs, "labels": [target(*one, *size) for one, size in zip(objects, sizes, strict=True)]}


def target(
    boxes: Sequence[Sequence[float]], categories: Sequence[int], width: int, height: int
) -> dict[str, torch.Tensor]:
    """
    Args:
        boxes (`Sequence`):
            Left, top, right and bottom of each box in pixels.
        categories (`Sequence[int]`):
            Class of each.
        width (`int`):
            Of the picture.
        height (`int`):
            Of the picture.

    Returns:
        `dict[str, torch.Tensor]`: `class_labels`, and `boxes` as centre, width and height, in shares of the picture.
    """
    corners = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4) / torch.tensor([width, height, width, height])
    first, last = corners[:, :2], corners[:, 2:]
    made = torch.cat([(first + last) / 2, last - first], 1).float()
    return {"class_labels": torch.tensor(categories, dtype=torch.long), "boxes": made}


def encode(data: TaskData, processor: Any, max_length: int, model_config: Any) -> tuple[DatasetDict, int]:
    """
    Lets pictures be opened and prepared when they are read.

    Args:
        data (`TaskData`):
            The rows.
        processor (`BaseImageProcessor`):
            The image processor; it decides on the size.
        max_length (`int`):
            Not needed here.
        model_config (`PretrainedConfig`):
            The model's config; not needed here.

    Returns:
        `tuple[DatasetDict, int]`: Rows that are prepared when they are read, and 0: nothing is too long.
    """
    preparing, found = Preparing(processor), {}
    for split, rows in data.splits.items():
        found[split] = with_media(rows, rows.column_names, preparing)
    return DatasetDict(found), 0


@dataclass(frozen=True)
class Batching:
    """
    Makes a batch of pictures; smaller ones are padded on the right and at the bottom.

    Boxes are told as shares of what the model takes for the whole: the picture, where it reads masks; else the frame
    with the padding. [`reduce`] turns its answers back into shares of the picture by the batch's `share`.

    Args:
        classes (`int`):
            How many classes there are.
        padding (`str`):
            `"mask"` or `"frame"`: what the model takes for the whole; empty where all pictures have one size.
    """

    classes: int
    padding: str

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """
        Args:
            rows (`Sequence[Mapping]`):
                Prepared rows.

        Returns:
            `dict[str, Any]`: `pixel_values`, `pixel_mask` where the model reads it, and `labels`.
        """
        sizes = [row["pixel_values"].shape[-2:] for row in rows]
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        first = rows[0]["pixel_values"]
        pixels = first.new_zeros(len(rows), first.shape[0], height, width)
        mask = torch.zeros(len(rows), height, width, dtype=torch.long)
        labels = []
        for number, (row, (own_height, own_width)) in enumerate(zip(rows, sizes, strict=True)):
            pixels[number, :, :own_height, :own_width] = row["pixel_values"]
            mask[number, :own_height, :own_width] = row.get("pixel_mask", 1)
            whole = torch.tensor([own_width / width, own_height / height])
            share = whole if self.padding == PADDED else torch.ones(2)
            boxes = row["labels"]["boxes"] * share.repeat(2)
            labels.append({**row["labels"], "boxes": boxes, "share": share, "classes": torch.tensor(self.classes)})
        # Pixels first: Trainer counts rows by the first tensor that it finds.
        return {"pixel_values": pixels, **({"pixel_mask": mask} if self.padding == MASK else {}), "labels": labels}


def reduce(outputs: Any, labels: Any) -> torch.Tensor:
    """
    What is kept of a batch: of each picture its surest boxes, as Transformers' image processors choose them. A model
    with one output more than there are classes knows "nothing" as a class, so that its outputs are softmaxed; others
    are asked for each class by itself.

    Trainer could not gather targets of several lengths from several processes, nor needs them: the metrics read the
    rows. So the list of them is emptied, and holds a zero for each row.

    Args:
        outputs (`Any`):
            The model's outputs; class logits come before boxes.
        labels (`list[dict]`):
            Targets as [`Batching`] makes them.

    Returns:
        `torch.Tensor` of shape `(rows, boxes, 6)`: Class, score, and left, top, right and bottom as shares of the
        picture; surest first.
    """
    tensors = [value for value in outputs if isinstance(value, torch.Tensor)]
    logits, boxes = next(pair for pair in pairwise(tensors) if _are_boxes(*pair))
    share = torch.stack([one["share"] for one in labels]).repeat(1, 2)[:, None]
    if logits.shape[-1] == int(labels[0]["classes"]) + 1:
        chances, classes = logits.float().softmax(-1)[..., :-1].max(-1)
        scores, places = chances.topk(min(LARGEST, chances.shape[1]), dim=1)
        classes = classes.gather(1, places)
    else:
        chances, count = logits.float().sigmoid().flatten(1), logits.shape[-1]
        scores, flat = chances.topk(min(LARGEST, chances.shape[1]), dim=1)
        places, classes = flat // count, flat % count
    chosen = boxes.float().gather(1, places[..., None].expand(-1, -1, 4))
    centre, extent = chosen[..., :2], chosen[..., 2:]
    corners = torch.cat([centre - extent / 2, centre + extent / 2], -1) / share
    found = torch.cat([classes[..., None].float(), scores[..., None], corners], -1)
    labels[:] = [found.new_zeros(len(found))]
    return found


def _are_boxes(logits: torch.Tensor, boxes: torch.Tensor) -> bool:
    return logits.ndim == boxes.ndim == 3 and boxes.shape[-1] == 4 and logits.shape[:2] == boxes.shape[:2]


def set_up(model: Any, processor: Any, data: TaskData) -> None:
    """
    Finds out how the model reads pictures of several sizes, and warns where it takes padding for a part of them, or
    where a picture has more objects than it finds.

    Args:
        model (`PreTrainedModel`):
            The model.
        processor (`BaseImageProcessor`):
            Its image processor.
        data (`TaskData`):
            The rows; `options["padding"]` is set.
    """
    made = [processor(images=Pillow.new("RGB", shape), return_tensors="pt") for shape in SHAPES]
    alike = made[0]["pixel_values"].shape == made[1]["pixel_values"].shape
    masked = "pixel_mask" in inspect.signature(model.forward).parameters and reads_masks(model)
    data.options.pop("padding", None)
    if masked and (not alike or "pixel_mask" in made[0]):
        data.options["padding"] = MASK
    elif not alike:
        data.options["padding"] = PADDED
        logger.warning(
            "%s does not tell the padding of smaller pictures in a batch from the picture, so its answers depend on "
            "what stands beside them. Measure with `--per_device_eval_batch_size 1`, or give a `size` with `height` "
            "and `width` in preprocessor_config.json.",
            type(model).__name__,
        )
    _check_queries(model, data.splits)
    _tell_of_processes(model)


@torch.no_grad()
def reads_masks(model: Any) -> bool:
    """
    Args:
        model (`PreTrainedModel`):
            A detector that takes `pixel_mask`; some take it and do not look at it.

    Returns:
        `bool`: Whether its boxes change with the mask.
    """
    parameter = next(model.parameters())
    pixels = torch.zeros(1, 3, FRAME, FRAME)
    pixels[..., :SEEN, :SEEN] = torch.linspace(-1, 1, SEEN)
    mask = torch.zeros(1, FRAME, FRAME, dtype=torch.long)
    mask[:, :SEEN, :SEEN] = 1
    training = model.training
    model.eval()
    try:
        given = pixels.to(parameter.device, parameter.dtype)
        found = [
            model(pixel_values=given, pixel_mask=one.to(parameter.device)).pred_boxes
            for one in (mask, torch.ones_like(mask))
        ]
    finally:
        model.train(training)
    return not torch.equal(*found)


def _tell_of_processes(model: Any) -> None:
    """Transformers takes the mean of the processes' boxes for their sum, and divides by their number once more."""
    processes = PartialState().num_processes
    if processes > 1 and getattr(model.loss_function, "__module__", "").endswith(DIVIDING):
        logger.warning(
            "With %d processes Transformers weighs the losses of this model's boxes %d times as heavy as with one. "
            "Train it with one process, or with a model such as RT-DETR, which counts its boxes itself.",
            processes,
            processes,
        )


def _check_queries(model: Any, splits: Mapping[str, Dataset]) -> None:
    most = max((max(map(len, rows["boxes"])) for rows in splits.values() if "boxes" in rows.column_names), default=0)
    queries = getattr(model.config, "num_queries", None) or getattr(model.config, "num_detection_tokens", None)
    if isinstance(queries, int) and most > queries:
        logger.warning(
            "A picture has %d objects, but %s finds %d at most; the others are not learnt. Choose a model with more "
            "queries, or cut pictures into parts.",
            most,
            type(model).__name__,
            queries,
        )
