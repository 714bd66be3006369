"""What a pretrained pair of towers knows of the classes by their names alone: a baseline of image classification."""

import logging
from dataclasses import replace
from typing import Any

import torch
from datasets import DatasetDict
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.recipes.embedding import build_trainer
from hf_transfer_plugin.recipes.measuring import Measuring, measure
from hf_transfer_plugin.recipes.preparing import encode_rows, set_up
from hf_transfer_plugin.recipes.pretrained import load_model, load_processor, readable_length
from hf_transfer_plugin.tasks import TASKS, TaskData

logger = logging.getLogger(__name__)
NAMED, SINGLE = "zero-shot-image-classification", "single_label_classification"


def measure_zero_shot(prepared: Any, split: str) -> dict[str, float] | None:
    """
    Asks the towers of the pretrained checkpoint, of which image classification uses one, by captions of the classes.

    Args:
        prepared (`Prepared`):
            Model and data.
        split (`str`):
            Split to measure on.

    Returns:
        `dict[str, float]` or `None`: The metrics; `None` where the task is another, the checkpoint holds no two
        towers, or its texts cannot be read, which is logged.
    """
    data = prepared.data
    if prepared.task.name != "image-classification" or data.problem_type != SINGLE or not _has_towers(prepared.model):
        return None
    config = replace(_bare(prepared.config), task=NAMED)
    chosen = TaskData(
        DatasetDict({split: data.splits[split].select_columns(["image", "label"])}),
        data.columns,
        SINGLE,
        data.class_names,
    )
    try:
        with torch.random.fork_rng():
            return _measured(config, chosen, prepared.args, split)
    except ValueError as error:
        logger.warning("What the two towers know without training is not measured: %s", error)
        return None


def _bare(config: TransferConfig) -> TransferConfig:
    """What loads the checkpoint, and nothing of the task."""
    return TransferConfig(
        model=config.model,
        dataset=config.dataset,
        model_revision=config.model_revision,
        trust_remote_code=config.trust_remote_code,
    )


def _has_towers(model: Any) -> bool:
    """Whether the checkpoint was saved with both; a model keeps the names of what it was loaded from."""
    kinds = {*MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES.values()}
    return bool(kinds & {*(model.config.architectures or ())})


def _measured(config: TransferConfig, data: TaskData, args: Any, split: str) -> dict[str, float]:
    task = TASKS[NAMED]
    # Nothing is trained here, so no labels are smoothed.
    args = replace(args, label_names=["labels"], label_smoothing_factor=0.0)
    processor = load_processor(config)
    model, _ = load_model(config, task, data, processor)
    set_up(task, model, processor, data, args)
    encoded, _ = encode_rows(task, data, processor, readable_length(config, processor, model), model)
    trainer = build_trainer(
        task,
        data,
        model=model,
        args=args,
        eval_dataset=encoded[split],
        processing_class=processor,
        data_collator=task.collator(processor, data),
        preprocess_logits_for_metrics=task.reduce,
    )
    return measure(trainer, Measuring(trainer, task, data, split, encoded[split]), split)[0]
