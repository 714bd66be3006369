"""Image segmentation: a class for each pixel of an image."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict
from PIL import Image as Pillow
from torch.nn.functional import interpolate
from transformers import default_data_collator

from hf_transfer_plugin.metrics import IGNORED
from hf_transfer_plugin.tasks import map_report, mask_rows
from hf_transfer_plugin.tasks.base import Task, TaskData
from hf_transfer_plugin.tasks.image_classification import set_up as require_one_size
from hf_transfer_plugin.tasks.maps import mask_uri, most_likely
from hf_transfer_plugin.tasks.masks import FROM_ONE, classes_of, read_mask, resized, values_of
from hf_transfer_plugin.tasks.media import read_image, with_media

logger = logging.getLogger(__name__)
SIZE, FRAME = (100, 80), 0.1  # of a picture whose frame must be there when it is prepared
SEEN = 0.75  # how much of the frame's brightness must be left
SMALL = map_report.THUMBNAIL
SEMANTIC, OTHERS = (
    "AutoModelForSemanticSegmentation",
    ("AutoModelForUniversalSegmentation", "AutoModelForInstanceSegmentation", "AutoModelForImageSegmentation"),
)


@dataclass(frozen=True)
class Preparing:
    """
    Makes a model's inputs of rows when they are read: pictures as Transformers' pipeline makes them of a file, and
    masks of the same size, of which each pixel has the class that lies nearest to its middle.

    Args:
        processor (`BaseImageProcessor`):
            The image processor; it decides on the size.
        values (`str`):
            What masks hold, as `mask_values` in [`TransferConfig`].
    """

    processor: Any
    values: str

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """
        Args:
            batch (`Mapping[str, Sequence]`):
                The columns `image` and, where they are known, `labels`: the masks.

        Returns:
            `dict[str, Any]`: What the model reads.
        """
        # One by one: some processors make the images of a batch alike.
        made = [self.processor(images=read_image(value), return_tensors="pt") for value in batch["image"]]
        inputs = {name: [one[name][0] for one in made] for name in made[0]}
        if "labels" not in batch:
            return inputs
        height, width = inputs["pixel_values"][0].shape[-2:]
        masks = (resized(classes_of(read_mask(value), self.values), (width, height)) for value in batch["labels"])
        return {**inputs, "labels": [torch.from_numpy(mask).long() for mask in masks]}


def complete(processor: Any, data: TaskData, model_config: Any) -> Any:
    """
    Lets the processor keep whole pictures: of what a crop leaves out the model would say nothing, and pipelines lay
    the answer over the whole picture all the same.

    Args:
        processor (`BaseImageProcessor`):
            The image processor.
        data (`TaskData`):
            Tells what masks hold.
        model_config (`PretrainedConfig`):
            The model's config.

    Returns:
        `BaseImageProcessor`: The same, without a crop; pictures are squeezed into the crop's size instead.

    Raises:
        ValueError: If the model answers with masks of things instead of a class for each pixel.
    """
    semantic = getattr(transformers, SEMANTIC)._model_mapping
    if type(model_config) not in semantic and any(
        type(model_config) in getattr(transformers, name)._model_mapping for name in OTHERS
    ):
        raise ValueError(
            f"`model` must give each pixel a class, as Segformer, BEiT, DPT, UperNet, MobileViT and MobileNetV2 do, "
            f"but {type(model_config).__name__} is of a model that answers with a set of masks, which is trained "
            "otherwise. Choose another `model`."
        )
    if getattr(processor, "do_center_crop", False):
        processor.size, processor.do_center_crop = dict(processor.crop_size), False
        logger.warning(
            "The image processor would crop pictures; they are squeezed to %s x %s pixels instead, so that every "
            "pixel gets an answer.",
            processor.size["width"],
            processor.size["height"],
        )
    if hasattr(processor, "do_reduce_labels"):
        processor.do_reduce_labels = data.options["mask_values"] == FROM_ONE
    return processor


def encode(data: TaskData, processor: Any, max_length: int, model_config: Any) -> tuple[DatasetDict, int]:
    """
    Lets pictures and masks be opened and prepared when they are read.

    Args:
        data (`TaskData`):
            The rows; the size at which the model reads them goes into the facts.
        processor (`BaseImageProcessor`):
            The image processor.
        max_length (`int`):
            Not needed here.
        model_config (`PretrainedConfig`):
            The model's config; not needed here.

    Returns:
        `tuple[DatasetDict, int]`: Rows that are prepared when they are read, and 0: nothing is too long.
    """
    preparing = Preparing(processor, data.options["mask_values"])
    found = {}
    for split, rows in data.splits.items():
        columns = ["image"]
        if "label" in rows.column_names:
            rows, columns = rows.rename_column("label", "labels"), ["image", "labels"]
        found[split] = with_media(rows, columns, preparing)
    pixels = processor(images=Pillow.new("RGB", SIZE), return_tensors="pt")["pixel_values"]
    data.facts["read_size"] = [int(pixels.shape[-1]), int(pixels.shape[-2])]
    return DatasetDict(found), 0


def sizes(processor: Any, model_config: Any) -> dict[str, Any]:
    """
    Args:
        processor (`BaseImageProcessor`):
            Not needed here.
        model_config (`PretrainedConfig`):
            The model's config.

    Returns:
        `dict[str, Any]`: The number that stands for pixels without a label, under the model's name for it.
    """
    names = ("semantic_loss_ignore_index", "loss_ignore_index")
    return {name: IGNORED for name in names if hasattr(model_config, name)}


def set_up(model: Any, processor: Any, data: TaskData) -> None:
    """
    Refuses an image processor that leaves pictures in sizes of their own, or does not show all of them.

    Args:
        model (`PreTrainedModel`):
            The model.
        processor (`BaseImageProcessor`):
            Its image processor.
        data (`TaskData`):
            The rows.

    Raises:
        ValueError: If pictures of other shapes do not become alike, are cropped or get a margin.
    """
    require_one_size(model, processor, data)
    white = np.full((SIZE[1], SIZE[0], 3), 255, np.uint8)
    framed, (top, left) = white.copy(), (round(FRAME * SIZE[1]), round(FRAME * SIZE[0]))
    framed[top:-top, left:-left] = 0
    bright, found, dark = (
        processor(images=Pillow.fromarray(one), return_tensors="pt")["pixel_values"][0].mean(0)
        for one in (white, framed, np.zeros_like(white))
    )
    share = (found - dark) / (bright - dark)
    height, width = share.shape
    edges = (share[0, width // 2], share[-1, width // 2], share[height // 2, 0], share[height // 2, -1])
    # A margin is not as bright in white pictures as their middle.
    margin = not torch.allclose(bright, bright[height // 2, width // 2], atol=1e-3)
    if margin or min(edges) < SEEN or share[height // 2, width // 2] > 1 - SEEN:
        raise ValueError(
            f"The image processor must show the whole picture, so that its pixels and those of the mask are the same, "
            f"but {type(processor).__name__} crops pictures or gives them a margin. Give a `size` with `height` and "
            "`width` in preprocessor_config.json, without `do_center_crop` and `do_pad`."
        )


def reduce(logits: Any, labels: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Keeps of a batch what can be added up: nobody could hold the logits of every pixel of every row. The likeliest
    class is taken at the size at which the model reads pictures and masks.

    Args:
        logits (`torch.Tensor` of shape `(rows, classes, height, width)`, or a tuple that begins with it):
            The model's answers, mostly smaller than the masks.
        labels (`torch.Tensor` of shape `(rows, height, width)`, or a tuple that begins with it):
            Class numbers; 255 is not labelled.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shapes `(rows, 3, classes)`, as [`pixel_counts`] gives them, and
        `(rows, 96, 96)`: the likeliest classes, small enough to be kept and drawn.
    """
    logits = logits[0] if isinstance(logits, (tuple, list)) else logits
    labels = labels[0] if isinstance(labels, (tuple, list)) else labels
    counts, maps, classes = [], [], logits.shape[1]
    for one, true in zip(logits.float(), labels, strict=True):
        answer = interpolate(one[None], size=true.shape, mode="bilinear", align_corners=False)[0].argmax(0)
        known = true != IGNORED
        kinds = (true[known & (answer == true)], answer[known], true[known])
        counts.append(torch.stack([torch.bincount(kind, minlength=classes) for kind in kinds]))
        maps.append(interpolate(answer[None, None].float(), size=(SMALL, SMALL), mode="nearest-exact")[0, 0])
    return torch.stack(counts), torch.stack(maps).to(torch.uint8)


@torch.no_grad()
def generate(model: Any, processor: Any, data: TaskData, rows: Dataset, batch_size: int) -> list[str]:
    """
    Lets the model draw masks as large as the pictures.

    Args:
        model (`PreTrainedModel`):
            The model.
        processor (`BaseImageProcessor`):
            Its image processor.
        data (`TaskData`):
            Tells what masks hold.
        rows (`Dataset`):
            The rows.
        batch_size (`int`):
            How many pictures the model sees at once.

    Returns:
        `list[str]`: A mask for each row, as a data URI of a PNG.
    """
    model.eval()
    preparing, found = Preparing(processor, data.options["mask_values"]), []
    for start in range(0, len(rows), batch_size):
        pictures = rows[start : start + batch_size]["image"]
        inputs = {name: torch.stack(list(values)) for name, values in preparing({"image": pictures}).items()}
        logits = model(**{name: value.to(model.device) for name, value in inputs.items()}).logits
        for value, one in zip(pictures, logits, strict=True):
            size = read_image(value).size[::-1]
            found.append(mask_uri(values_of(most_likely(one, size), preparing.values)))
    return found


IMAGE_SEGMENTATION = Task(
    name="image-segmentation",
    auto_classes=(SEMANTIC,),
    roles=("image", "label"),
    read=mask_rows.read,
    read_again=mask_rows.read_again,
    encode=encode,
    collator=lambda processor, data: default_data_collator,
    metrics=map_report.metrics,
    report=map_report.report,
    answers=map_report.answers,
    baseline=map_report.baseline,
    examples=map_report.examples,
    best_metric=lambda data: ("mean_iou", True),
    options=("class_names", "mask_values", "skip_unreadable"),
    processor="AutoImageProcessor",
    complete=complete,
    sizes=sizes,
    reduce=reduce,
    generate=generate,
    set_up=set_up,
    arguments={
        "remove_unused_columns": False,
        "train_sampling_strategy": "random",
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
    },
)
