"""Measures a finished run on other data."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import Trainer, TrainingArguments

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.recipes.pretrained import load_model, load_processor, readable_length
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.tasks import TASKS, load_splits


def evaluate_run(
    run: str | Path,
    dataset: str,
    *,
    split: str | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    batch_size: int = 64,
) -> dict[str, Any]:
    """
    Measures the model of a run on a labelled dataset, without training.

    Args:
        run (`str` or `Path`):
            A run folder.
        dataset (`str`):
            As in [`TransferConfig`].
        split (`str`, *optional*):
            Split to measure on; the test split where there is one, else the only or first one.
        text_column (`str`, *optional*):
            Column of the text; as in training, or guessed, without it.
        text_pair_column (`str`, *optional*):
            Column of the second text.
        label_column (`str`, *optional*):
            Column of the label.
        batch_size (`int`, *optional*, defaults to 64):
            Rows at a time.

    Returns:
        `dict[str, Any]`: `rows`, `split`, `metrics`, and `per_class` and `confusion_matrix` for classes.

    Raises:
        ValueError: If run or data are missing or do not fit together.
    """
    record = TransferRecord.load(run)
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    config = TransferConfig(
        model=str(folder),
        dataset=dataset,
        task=record.task,
        text_column=text_column,
        text_pair_column=text_pair_column,
        label_column=label_column,
        class_names=record.class_names or None,
        problem_type=record.problem_type,
        test_split=split or "test",
    )
    task = TASKS[config.task]
    loaded = load_splits(config, for_training=False)
    chosen = next((name for name in ("test", "validation", "train") if name in loaded), "")
    if not chosen or (split is not None and chosen != "test"):
        raise ValueError(f"`split` must be one of the dataset's splits, but {dataset!r} has no {split or 'test'!r}.")
    columns = record.dataset.get("columns", {})
    config = replace(config, **_columns_of_training(columns, config, loaded[chosen].column_names))
    data = task.read_labelled(DatasetDict({chosen: loaded[chosen]}), config)
    if columns and ("text_pair" in columns) != ("text_pair" in data.columns):
        what = "pairs of texts" if "text_pair" in columns else "single texts"
        raise ValueError(
            f"The run was trained on {what}, so the data must hold them too, but its columns were read as "
            f"{data.columns}. Name them with `--text_column` and `--text_pair_column`."
        )
    processor = load_processor(config)
    model = load_model(config, task, data, processor)
    encoded, _ = task.encode(data, processor, readable_length(config, processor, model))
    args = TrainingArguments(
        output_dir=str(folder), per_device_eval_batch_size=batch_size, report_to="none", dataloader_pin_memory=False
    )
    trainer = Trainer(
        model=model,
        args=args,
        data_collator=task.collator(processor),
        processing_class=processor,
        compute_metrics=task.compute_metrics(data),
    )
    prediction = trainer.predict(encoded[chosen], metric_key_prefix="eval")
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    timing = ("_runtime", "_per_second", "_preparation_time")
    metrics = {k.removeprefix("eval_"): float(v) for k, v in prediction.metrics.items() if not k.endswith(timing)}
    return {
        "rows": len(encoded[chosen]),
        "split": split or chosen,
        "metrics": metrics,
        **task.report(data, logits, prediction.label_ids),
    }


def _columns_of_training(columns: dict[str, str], config: TransferConfig, names: Sequence[str]) -> dict[str, Any]:
    """Columns that the user does not name, where the data has those of the training."""
    return {
        f"{role}_column": column
        for role, column in columns.items()
        if getattr(config, f"{role}_column") is None and column in names
    }
