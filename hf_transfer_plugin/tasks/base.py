"""The noun: a task is a frozen value of functions, never a folder of copies."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, DatasetDict

from hf_transfer_plugin.config import TransferConfig

FULL: dict[str, Any] = {"name": "full"}


@dataclass(frozen=True)
class TaskData:
    """
    Checked rows, with one column for each role.

    Args:
        splits (`DatasetDict`):
            `train`, `validation`, and `test` where the data has one.
        columns (`dict[str, str]`):
            Role -> column that it was read from.
        problem_type (`str`, *optional*, defaults to `""`):
            As in the model's config; empty where a task has none.
        class_names (`tuple[str, ...]`, *optional*):
            Names in the order of their numbers; empty where there are no classes.
        held_out (`bool`, *optional*, defaults to `False`):
            Whether validation was held out of train.
        options (`dict[str, Any]`, *optional*):
            What using the model needs to know beside its weights: fields of [`TransferConfig`], and what they came to.
        facts (`dict[str, Any]`, *optional*):
            What the record shall tell of the data besides, such as files that could not be opened.
    """

    splits: DatasetDict
    columns: dict[str, str]
    problem_type: str = ""
    class_names: tuple[str, ...] = ()
    held_out: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def outputs(self) -> int:
        """
        Returns:
            `int`: Outputs of the model's last layer.
        """
        return len(self.class_names) or 1


@dataclass(frozen=True)
class Outcome:
    """
    What a model gave for the rows of a split, in the order of the rows.

    Args:
        rows (`Dataset`):
            The checked rows.
        features (`Dataset`):
            What the model read; one for each row, or several where long rows are read in windows.
        predictions (`Any`):
            The model's outputs for `features`, as `Task.reduce` left them: an array, or a tuple of arrays. Token by
            token outputs are padded with -100 on the right.
        texts (`list[str]`, *optional*):
            What it wrote for `rows`, where the task writes.
    """

    rows: Dataset
    features: Dataset
    predictions: Any
    texts: list[str] | None = None


@dataclass(frozen=True)
class Task:
    """
    Everything that differs between tasks.

    Args:
        name (`str`):
            The Hub's pipeline tag.
        auto_classes (`tuple[str, ...]`):
            Transformers' auto classes; the first that knows the model is taken.
        roles (`tuple[str, ...]`):
            Columns that it reads: `"text"` stands for `text_column`.
        read (`Callable`):
            `(splits, config, seed)` -> [`TaskData`]; refuses bad rows.
        read_again (`Callable`):
            `(splits, config, labelled)` -> [`TaskData`] for a trained model: with the classes and options that the
            configuration names, and without labels if they are not wanted.
        encode (`Callable`):
            `(data, processor, max_length, model_config)` -> encoded splits and the number of overlong rows.
        collator (`Callable`):
            `(processor, data)` -> function that makes a batch; `None` where the library's Trainer brings its own.
        metrics (`Callable`):
            `(data, outcome)` -> scalar metrics.
        report (`Callable`):
            `(data, outcome, count)` -> further fields of the record; `count` rows of the data at most in each.
        answers (`Callable`):
            `(data, outcome)` -> a JSON object for each row.
        baseline (`Callable`):
            `(data, split, encoded)` -> name and metrics of an answer that needs no model.
        examples (`Callable`):
            `(data, split, count)` -> rows to try the model on, for the record: role of the column -> value.
        best_metric (`Callable`):
            `(data)` -> the metric that decides, and whether greater is better.
        options (`tuple[str, ...]`, *optional*):
            Fields of [`TransferConfig`] that it uses beside the columns.
        processor (`str`, *optional*, defaults to `"AutoTokenizer"`):
            Transformers' auto class of what prepares its inputs.
        complete (`Callable`, *optional*):
            `(processor, data, model_config)` -> the processor for training, where the pretrained model brings only a
            part of it.
        sizes (`Callable`, *optional*):
            `(processor, model_config)` -> settings of the model's config that follow from the processor.
        library (`str`, *optional*, defaults to `"transformers"`):
            What loads, trains and saves its models, as the Hub names it: `"sentence-transformers"` for vectors.
        reduce (`Callable`, *optional*):
            `(logits, labels)` -> what is kept of a batch's outputs, where keeping all would take too much memory.
        generate (`Callable`, *optional*):
            `(model, processor, data, rows, batch_size)` -> a text for each row, where the task writes.
        set_up (`Callable`, *optional*):
            `(model, processor, data)`: refuses what cannot do the task, and sets what generating needs.
        measures_texts (`bool`, *optional*, defaults to `False`):
            Whether the metrics need what it writes for every row; else it writes samples only.
        loss (`str`, *optional*):
            Loss in the place of the model's own, by its name in `LOSSES`.
        probe (`bool`, *optional*, defaults to `False`):
            Whether a linear layer solved on frozen features is a baseline.
        pretrained_head (`bool`, *optional*, defaults to `False`):
            Whether pretrained models bring the head, so that the model before training is a baseline.
        strategy (`dict`, *optional*):
            Strategy where none is named.
        arguments (`dict`, *optional*):
            Training arguments where none are given and the measured defaults do not fit.
        overlong (`str`, *optional*):
            What became of rows longer than the model reads.
    """

    name: str
    auto_classes: tuple[str, ...]
    roles: tuple[str, ...]
    read: Callable[[DatasetDict, TransferConfig, int], TaskData] = field(repr=False)
    read_again: Callable[[DatasetDict, TransferConfig, bool], TaskData] = field(repr=False)
    encode: Callable[[TaskData, Any, int, Any], tuple[DatasetDict, int]] = field(repr=False)
    collator: Callable[[Any, TaskData], Any] = field(repr=False)
    metrics: Callable[[TaskData, Outcome], dict[str, float]] = field(repr=False)
    report: Callable[[TaskData, Outcome, int], dict[str, Any]] = field(repr=False)
    answers: Callable[[TaskData, Outcome], list[dict[str, Any]]] = field(repr=False)
    baseline: Callable[[TaskData, str, DatasetDict], tuple[str, dict[str, float]]] = field(repr=False)
    examples: Callable[[TaskData, str, int], list[dict[str, Any]]] = field(repr=False)
    best_metric: Callable[[TaskData], tuple[str, bool]] = field(repr=False)
    options: tuple[str, ...] = ()
    processor: str = "AutoTokenizer"
    library: str = "transformers"
    complete: Callable[[Any, TaskData, Any], Any] | None = field(default=None, repr=False)
    sizes: Callable[[Any, Any], dict[str, Any]] | None = field(default=None, repr=False)
    reduce: Callable[[Any, Any], Any] | None = field(default=None, repr=False)
    generate: Callable[[Any, Any, TaskData, Dataset, int], list[str]] | None = field(default=None, repr=False)
    set_up: Callable[[Any, Any, TaskData], None] | None = field(default=None, repr=False)
    measures_texts: bool = False
    loss: str | None = None
    probe: bool = False
    pretrained_head: bool = False
    strategy: dict[str, Any] = field(default_factory=FULL.copy)
    arguments: dict[str, Any] = field(default_factory=dict)
    overlong: str = "truncated"
