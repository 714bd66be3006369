"""The noun: a task is a frozen value of functions, never a folder of copies."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datasets import DatasetDict

from hf_transfer_plugin.config import TransferConfig


@dataclass(frozen=True)
class TaskData:
    """
    Checked rows with the columns `text`, perhaps `text_pair`, and `label`.

    Args:
        splits (`DatasetDict`):
            `train`, `validation`, and `test` where the data has one.
        columns (`dict[str, str]`):
            Role -> column that it was read from.
        problem_type (`str`):
            As in the model's config.
        class_names (`tuple[str, ...]`):
            Names in the order of their numbers; empty for regression.
        held_out (`bool`):
            Whether validation was held out of train.
    """

    splits: DatasetDict
    columns: dict[str, str]
    problem_type: str
    class_names: tuple[str, ...] = ()
    held_out: bool = False

    @property
    def outputs(self) -> int:
        """
        Returns:
            `int`: Outputs of the model's last layer.
        """
        return len(self.class_names) or 1


@dataclass(frozen=True)
class Task:
    """
    Everything that differs between tasks.

    Args:
        name (`str`):
            The Hub's pipeline tag.
        auto_class (`str`):
            Transformers' auto class of the model.
        read (`Callable`):
            `(splits, config, seed)` -> [`TaskData`]; refuses bad rows.
        read_labelled (`Callable`):
            `(splits, config)` -> [`TaskData`] with the classes that the configuration names, for a trained model.
        encode (`Callable`):
            `(data, processor, max_length)` -> encoded splits and the number of truncated rows.
        collator (`Callable`):
            `(processor)` -> function that makes a batch.
        compute_metrics (`Callable`):
            `(data)` -> function of Trainer's predictions.
        report (`Callable`):
            `(data, logits, labels)` -> per-class metrics and confusion matrix, for the record.
        majority (`Callable`):
            `(data, split)` -> metrics of always giving the commonest answer.
        examples (`Callable`):
            `(data, split, count)` -> rows to try the model on, for the record: role of the column -> value.
        best_metric (`Callable`):
            `(data)` -> the metric that decides, and whether greater is better.
    """

    name: str
    auto_class: str
    read: Callable[[DatasetDict, TransferConfig, int], TaskData] = field(repr=False)
    read_labelled: Callable[[DatasetDict, TransferConfig], TaskData] = field(repr=False)
    encode: Callable[[TaskData, Any, int | None], tuple[DatasetDict, int]] = field(repr=False)
    collator: Callable[[Any], Any] = field(repr=False)
    compute_metrics: Callable[[TaskData], Callable[[Any], dict[str, float]]] = field(repr=False)
    report: Callable[[TaskData, Any, Any], dict[str, Any]] = field(repr=False)
    majority: Callable[[TaskData, str], dict[str, float]] = field(repr=False)
    examples: Callable[[TaskData, str, int], list[dict[str, Any]]] = field(repr=False)
    best_metric: Callable[[TaskData], tuple[str, bool]] = field(repr=False)
