"""What fine-tuning must beat: the commonest answer, and a linear head solved on frozen features."""

import time
from typing import Any

from transformers import EvalPrediction

from hf_transfer_plugin.features import extract_features, solve_linear_head


def measure_baselines(prepared: Any, split: str) -> dict[str, dict[str, float]]:
    """
    Measures both baselines with the untouched pretrained model.

    Args:
        prepared (`Prepared`):
            Model and data.
        split (`str`):
            Split to measure on.

    Returns:
        `dict[str, dict[str, float]]`: Metrics and `seconds` of `majority` and `linear_probe`.
    """
    data, task = prepared.data, prepared.task
    started = time.perf_counter()
    found = {"majority": {**task.majority(data, split), "seconds": time.perf_counter() - started}}
    started = time.perf_counter()
    collate = task.collator(prepared.processor)
    features, labels = extract_features(
        prepared.model, prepared.encoded["train"], collate, progress="Frozen features of train"
    )
    head = solve_linear_head(features, labels, problem_type=data.problem_type, outputs=data.outputs)
    features, labels = extract_features(
        prepared.model, prepared.encoded[split], collate, progress=f"Frozen features of {split}"
    )
    metrics = task.compute_metrics(data)(EvalPrediction(predictions=head.logits(features), label_ids=labels))
    found["linear_probe"] = {**metrics, "seconds": time.perf_counter() - started}
    return found
