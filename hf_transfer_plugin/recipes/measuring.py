"""From Trainer's predictions to metrics and answers, in the order of the rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import Trainer

from hf_transfer_plugin.tasks import Outcome, Task, TaskData

TIMING = ("_runtime", "_per_second", "_preparation_time")


class Measuring:
    """
    Trainer's `compute_metrics` for one split; keeps what the model gave.

    Args:
        trainer (`Trainer`):
            The Trainer that predicts.
        task (`Task`):
            The task.
        data (`TaskData`):
            The checked rows.
        split (`str`):
            The split.
        features (`Dataset`):
            Its encoded rows.
        writes (`int`, *optional*, defaults to 0):
            For how many rows, from the first, the model shall write a text.
    """

    def __init__(
        self, trainer: Trainer, task: Task, data: TaskData, split: str, features: Dataset, *, writes: int = 0
    ) -> None:
        self.trainer, self.task, self.data = trainer, task, data
        self.rows, self.features, self.writes = data.splits[split], features, writes
        self.outcome: Outcome | None = None

    def collect(self, predictions: Any) -> Outcome:
        """
        Brings predictions into the order of the rows, and lets the model write where it shall.

        Args:
            predictions (`Any`):
                As Trainer gives them: arrays, in the order of its sampler.

        Returns:
            `Outcome`: What the model gave.
        """
        order = evaluation_order(self.trainer, self.features)
        found = _mapped(predictions, lambda array: _in_row_order(array, order))
        wanted = self.rows.select(range(min(self.writes, len(self.rows))))
        texts = write_texts(self.trainer, self.task, self.data, wanted) if self.writes else None
        self.outcome = Outcome(self.rows, self.features, found, texts)
        return self.outcome

    def __call__(self, prediction: Any) -> dict[str, float]:
        """
        Args:
            prediction (`EvalPrediction`):
                Trainer's predictions.

        Returns:
            `dict[str, float]`: The metrics.
        """
        return self.task.metrics(self.data, self.collect(prediction.predictions))


def measure(trainer: Trainer, measuring: Measuring, prefix: str) -> tuple[dict[str, float], Outcome]:
    """
    Predicts the rows of a split.

    Args:
        trainer (`Trainer`):
            The Trainer.
        measuring (`Measuring`):
            Names the split.
        prefix (`str`):
            Prefix of the metrics in Trainer's callbacks.

    Returns:
        `tuple[dict[str, float], Outcome]`: Metrics without prefix and times, empty without labels, and what the model
        gave.
    """
    before, trainer.compute_metrics = trainer.compute_metrics, measuring
    try:
        prediction = trainer.predict(measuring.features, metric_key_prefix=prefix)
    finally:
        trainer.compute_metrics = before
    outcome = measuring.outcome or measuring.collect(prediction.predictions)
    metrics = {
        name.removeprefix(f"{prefix}_"): float(value)
        for name, value in prediction.metrics.items()
        if not name.endswith(TIMING)
    }
    return metrics, outcome


def write_texts(trainer: Trainer, task: Task, data: TaskData, rows: Dataset) -> list[str]:
    """
    Args:
        trainer (`Trainer`):
            Has the model, the tokenizer and the size of a batch.
        task (`Task`):
            A task that writes.
        data (`TaskData`):
            Its options.
        rows (`Dataset`):
            The rows.

    Returns:
        `list[str]`: A text for each row.
    """
    if task.generate is None:
        raise ValueError(f"{task.name} must be a task that writes, such as summarization, but it is not.")
    model, size = trainer.accelerator.unwrap_model(trainer.model), trainer.args.per_device_eval_batch_size
    # What a model writes with is not Trainer's forward pass, in which Accelerate turns autocast on.
    with trainer.accelerator.autocast():
        return task.generate(model, trainer.processing_class, data, rows, size)


def evaluation_order(trainer: Trainer, features: Dataset) -> np.ndarray:
    """
    Trainer groups evaluation rows by length too; its sampler is drawn from the seed, so it can be drawn again.

    Args:
        trainer (`Trainer`):
            The Trainer.
        features (`Dataset`):
            The encoded rows.

    Returns:
        `np.ndarray` of shape `(rows,)`: Row numbers in the order of the predictions.
    """
    sampler = trainer._get_eval_sampler(features)
    return np.arange(len(features)) if sampler is None else np.asarray(list(sampler))


def _in_row_order(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    found = np.empty_like(array)
    found[order] = array
    return found


def _mapped(value: Any, function: Callable[[np.ndarray], np.ndarray]) -> Any:
    return tuple(_mapped(part, function) for part in value) if isinstance(value, (tuple, list)) else function(value)
