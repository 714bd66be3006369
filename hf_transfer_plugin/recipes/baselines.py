"""What fine-tuning must beat: an answer without a model, a linear head on frozen features, the model as it came."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_transfer_plugin.callbacks.ranks import together
from hf_transfer_plugin.features import collect_features, solve_linear_head
from hf_transfer_plugin.recipes.caching import make_feature_store
from hf_transfer_plugin.recipes.embedding import build_trainer
from hf_transfer_plugin.recipes.measuring import Measuring, measure
from hf_transfer_plugin.recipes.zero_shot import measure_zero_shot
from hf_transfer_plugin.tasks import Outcome

TOKEN_REGULARIZATION = 0.01


def measure_baselines(prepared: Any, split: str) -> dict[str, dict[str, float]]:
    """
    Measures the baselines of the task, with the untouched pretrained model.

    Args:
        prepared (`Prepared`):
            Model and data; `config.baselines` asks for those that need the model.
        split (`str`):
            Split to measure on.

    Returns:
        `dict[str, dict[str, float]]`: Metrics and `seconds` of each, by name.
    """
    data, task = prepared.data, prepared.task

    def without_training() -> dict[str, dict[str, float]]:
        started = time.perf_counter()
        name, metrics = task.baseline(data, split, prepared.encoded)
        found = {name: {**metrics, "seconds": time.perf_counter() - started}}
        if prepared.config.baselines and task.probe:
            started = time.perf_counter()
            found["linear_probe"] = {**_probe(prepared, split), "seconds": time.perf_counter() - started}
        return found

    found = together(without_training)
    if prepared.config.baselines and task.pretrained_head and not prepared.new_weights:
        started = time.perf_counter()
        found["pretrained"] = {**_pretrained(prepared, split), "seconds": time.perf_counter() - started}
    started = time.perf_counter()
    named = measure_zero_shot(prepared, split) if prepared.config.baselines else None
    return found if named is None else found | {"zero_shot": {**named, "seconds": time.perf_counter() - started}}


def _probe(prepared: Any, split: str) -> dict[str, float]:
    """A linear layer solved on the frozen features of train; for tokens with a fixed penalty, as they are many."""
    data, task = prepared.data, prepared.task
    collate = task.collator(prepared.processor, data)
    encoded = {s: _inputs(rows, prepared.processor) for s, rows in prepared.encoded.items() if s in ("train", split)}
    store = make_feature_store(prepared.config)
    found = {
        s: collect_features(prepared.model, rows, collate, progress=f"Frozen features of {s}", store=store)
        for s, rows in encoded.items()
    }
    penalty = None if data.problem_type else TOKEN_REGULARIZATION
    kind = data.problem_type or "single_label_classification"
    head = solve_linear_head(*found["train"], problem_type=kind, outputs=data.outputs, regularization=penalty)
    logits = head.logits(found[split][0])
    predictions = logits if data.problem_type else _by_token(logits, encoded[split]["labels"])
    return task.metrics(data, Outcome(data.splits[split], prepared.encoded[split], predictions))


def _inputs(rows: Dataset, processor: Any) -> Dataset:
    """What the model reads; rows that are prepared when they are read hold nothing else."""
    if rows.format["type"] == "custom":
        return rows
    names = [*processor.model_input_names, "labels"]
    return rows.select_columns([name for name in rows.column_names if name in names])


def _by_token(logits: np.ndarray, labels: Sequence[Sequence[int]]) -> np.ndarray:
    """Class and probability at each labelled token, as `Task.reduce` leaves them: `(rows, tokens, 2)`."""
    wanted = np.full((len(labels), max(map(len, labels))), -100)
    for row, values in zip(wanted, labels, strict=True):
        row[: len(values)] = values
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    found = np.full((*wanted.shape, 2), -100.0)
    found[wanted != -100] = np.stack([logits.argmax(-1), raised.max(-1) / raised.sum(-1)], -1)
    return found


def _pretrained(prepared: Any, split: str) -> dict[str, float]:
    """The model with the head that it came with, before any training; left as it was."""
    task, model = prepared.task, prepared.model
    with torch.random.fork_rng():
        trainer = build_trainer(
            task,
            prepared.data,
            model=model,
            args=prepared.args,
            eval_dataset=prepared.encoded[split],
            processing_class=prepared.processor,
            data_collator=task.collator(prepared.processor, prepared.data),
            preprocess_logits_for_metrics=task.reduce,
        )
        rows = len(prepared.data.splits[split]) if task.measures_texts else 0
        measuring = Measuring(trainer, task, prepared.data, split, prepared.encoded[split], writes=rows)
        found = measure(trainer, measuring, split)[0]
    # Accelerate marks what it has prepared, here without DDP, and would not prepare it again for training.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.__dict__.pop("_is_accelerate_prepared", None)
    return found
