"""Measures a finished run on other data, and lets it answer rows without labels."""

import csv
import io
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import TrainingArguments

from hf_transfer_plugin.adapters import virtual_tokens
from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.layers import beneath_adapters
from hf_transfer_plugin.recipes.embedding import build_trainer
from hf_transfer_plugin.recipes.measuring import Measuring, measure, write_texts
from hf_transfer_plugin.recipes.preparing import encode_rows, set_up
from hf_transfer_plugin.recipes.pretrained import load_processor, readable_length
from hf_transfer_plugin.recipes.trained import load_run_model
from hf_transfer_plugin.record import TransferRecord, write_atomically
from hf_transfer_plugin.tasks import TASKS, Outcome, Task, TaskData, load_splits
from hf_transfer_plugin.tasks.media import check_media, look_at_image, media_columns, with_names
from hf_transfer_plugin.tasks.sounds import look_into_audio

logger = logging.getLogger(__name__)

FORMATS = (".jsonl", ".csv")
LOOKS: dict[str, Callable[..., Any]] = {"image": look_at_image, "audio": look_into_audio}  # by what a task reads
# Arguments of a task that hold for measuring, too.
EVALUATING = ("per_device_eval_batch_size", "train_sampling_strategy", "remove_unused_columns", "label_names")


def evaluate_run(
    run: str | Path,
    dataset: str,
    *,
    split: str | None = None,
    batch_size: int | None = None,
    errors: int = 4,
    base: str | None = None,
    **columns: Any,
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
        batch_size (`int`, *optional*):
            Rows at a time; 64, or what the task takes where its outputs are large.
        errors (`int`, *optional*, defaults to 4):
            Most confident errors, or samples of what the model wrote, at most.
        base (`str`, *optional*):
            Hub id or folder of the base of an adapter, where the run does not find it.
        **columns (`str`, *optional*):
            `text_column="..."` and so on, as in [`TransferConfig`]; as in training, or guessed, without them. With
            `skip_unreadable=True`, rows whose image or sound cannot be opened are named and left out.

    Returns:
        `dict[str, Any]`: `rows`, `split`, `metrics`, and what the task tells besides: `per_class`,
        `confusion_matrix`, `calibration`, `intervals`, `errors`, `samples`.

    Raises:
        ValueError: If run or data are missing or do not fit together.
    """
    data, _, metrics, outcome = _predict(
        run, dataset, split, columns, batch_size, labelled=True, errors=errors, base=base
    )
    told = TASKS[TransferRecord.load(run).task].report(data, outcome, errors)
    return {"rows": len(outcome.rows), "split": split or next(iter(data.splits)), "metrics": metrics, **told}


def predict_run(
    run: str | Path,
    file: str | Path,
    output: str | Path,
    *,
    split: str | None = None,
    batch_size: int | None = None,
    base: str | None = None,
    **columns: Any,
) -> int:
    """
    Lets the model of a run answer every row of a file, and writes the answers.

    Args:
        run (`str` or `Path`):
            A run folder.
        file (`str` or `Path`):
            Rows without labels, as `dataset` in [`TransferConfig`].
        output (`str` or `Path`):
            File to write, `.jsonl` or `.csv`: the given columns and the answer's, with probabilities where there are.
        split (`str`, *optional*):
            Split to answer, where there are several.
        batch_size (`int`, *optional*):
            Rows at a time.
        base (`str`, *optional*):
            As in [`evaluate_run`].
        **columns (`str`, *optional*):
            As in [`evaluate_run`].

    Returns:
        `int`: The number of answers.

    Raises:
        ValueError: If run or data are missing or do not fit together, or `output` exists or has another suffix.

    Example:
    ```python
    >>> predict_run("my-run", "new_reviews.csv", "predictions.jsonl")
    ```
    """
    output = Path(output)
    if output.suffix.lower() not in FORMATS:
        raise ValueError(f"`output` must end in {' or '.join(FORMATS)}, but got {output.name!r}.")
    if output.exists():
        raise ValueError(f"`output` must be a new file, but {str(output)!r} exists. Delete it or name another.")
    data, given, _, outcome = _predict(run, str(file), split, columns, batch_size, labelled=False, base=base)
    answers = TASKS[TransferRecord.load(run).task].answers(data, outcome)
    rows = [{**row, **answer} for row, answer in zip(with_names(given), answers, strict=True)]
    write_atomically(output, _as_csv(rows) if output.suffix.lower() == ".csv" else _as_lines(rows))
    return len(rows)


def _predict(
    run: str | Path,
    dataset: str,
    split: str | None,
    columns: dict[str, Any],
    batch_size: int | None,
    *,
    labelled: bool,
    base: str | None,
    errors: int = 0,
) -> tuple[TaskData, Dataset, dict[str, float], Outcome]:
    """The rows as read and as given, metrics, and what the model gave."""
    record = TransferRecord.load(run)
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    task = TASKS[record.task]
    data, given = _read(record, folder, dataset, split, columns, labelled=labelled)
    chosen = next(iter(data.splits))
    config = TransferConfig(model=str(folder), dataset=dataset, task=record.task)
    processor = load_processor(config)
    model = load_run_model(folder, record, processor=processor, base=base)
    known = {"per_device_eval_batch_size": 64, "train_sampling_strategy": "group_by_length"} | task.arguments
    chosen_arguments = {name: known[name] for name in EVALUATING if name in known}
    args = TrainingArguments(
        output_dir=str(folder),
        **chosen_arguments | ({"per_device_eval_batch_size": batch_size} if batch_size else {}),
        report_to="none",
        dataloader_pin_memory=False,
    )
    inner = beneath_adapters(model)[0]
    set_up(task, inner, processor, data, args)
    length = readable_length(config, processor, inner, kept=virtual_tokens(model))
    encoded, _ = encode_rows(task, data, processor, length, inner)
    trainer = build_trainer(
        task,
        data,
        model=model,
        args=args,
        data_collator=task.collator(processor, data),
        processing_class=processor,
        preprocess_logits_for_metrics=task.reduce,
    )
    rows = len(data.splits[chosen])
    samples = rows if task.measures_texts or not labelled else errors
    writes = samples if task.generate is not None else 0
    if writes and not labelled:
        texts = write_texts(trainer, task, data, data.splits[chosen])
        return data, given, {}, Outcome(data.splits[chosen], encoded[chosen], None, texts)
    measuring = Measuring(trainer, task, data, chosen, encoded[chosen], writes=writes)
    return data, given, *measure(trainer, measuring, "eval")


def _read(
    record: TransferRecord,
    folder: Path,
    dataset: str,
    split: str | None,
    columns: dict[str, Any],
    *,
    labelled: bool,
) -> tuple[TaskData, Dataset]:
    """The rows of one split, read as those of the training were, and as they were given."""
    known = {f.name for f in fields(TransferConfig)}
    options = {name: value for name, value in record.options.items() if name in known}
    config = TransferConfig.from_dict({
        "model": str(folder),
        "dataset": dataset,
        "task": record.task,
        "class_names": record.class_names or None,
        "problem_type": record.problem_type or None,
        "test_split": split or "test",
        **options,
        **columns,
    })
    loaded = load_splits(config, for_training=False)
    chosen = next((name for name in ("test", "validation", "train") if name in loaded), "")
    if not chosen or (split is not None and chosen != "test"):
        raise ValueError(f"`split` must be one of the dataset's splits, but {dataset!r} has no {split or 'test'!r}.")
    trained = record.dataset.get("columns", {})
    config = replace(config, **_columns_of_training(trained, config, _names_in(loaded[chosen])))
    kept = DatasetDict({chosen: loaded[chosen]})
    if columns.get("skip_unreadable"):
        kept = _readable(kept, TASKS[record.task], config)
    data = TASKS[record.task].read_again(kept, config, labelled)
    # What the training came to, such as the prompt or whether there may be no answer, holds for other data too.
    data = replace(data, options={**data.options, **record.options})
    if record.problem_type and trained and ("text_pair" in trained) != ("text_pair" in data.columns):
        what = "pairs of texts" if "text_pair" in trained else "single texts"
        raise ValueError(
            f"The run was trained on {what}, so the data must hold them too, but its columns were read as "
            f"{data.columns}. Name them with `--text_column` and `--text_pair_column`."
        )
    return data, kept[chosen]


def _readable(splits: DatasetDict, task: Task, config: TransferConfig) -> DatasetDict:
    """The rows whose files can be opened; the others are named."""
    role = next((role for role in LOOKS if role in task.roles), None)
    if role is None:
        raise ValueError(f"`skip_unreadable` is of no use to {task.name}, which reads no files. Leave it out.")
    splits, column = media_columns(splits, config, role)
    splits, told = check_media(splits, column, LOOKS[role], role=role, skip=True)
    for names in told["skipped"].values():
        logger.warning("Left out, since they cannot be opened: %s.", "; ".join(names))
    return splits


def _names_in(rows: Dataset) -> list[str]:
    """Columns, and the keys of those that hold objects, as translations do."""
    inside = [key for value in (rows[0] if len(rows) else {}).values() if isinstance(value, dict) for key in value]
    return [*rows.column_names, *inside]


def _columns_of_training(columns: dict[str, str], config: TransferConfig, names: Iterable[str]) -> dict[str, Any]:
    """Columns that the user does not name, where the data has those of the training."""
    return {
        f"{role}_column": column
        for role, column in columns.items()
        if getattr(config, f"{role}_column") is None and column in names
    }


def _as_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _as_csv(rows: list[dict[str, Any]]) -> str:
    """Lists and objects are written as JSON in their cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({
            name: value if isinstance(value, (str, int, float)) else json.dumps(value, ensure_ascii=False, default=str)
            for name, value in row.items()
        })
    return text.getvalue()
