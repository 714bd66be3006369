"""Metrics that work offline, alone or inside `evaluate.combine`, and what can be said of their certainty."""

from hf_transfer_plugin.metrics.calibration import calibration
from hf_transfer_plugin.metrics.classes import (
    F1,
    Accuracy,
    ConfusionMatrix,
    Precision,
    Recall,
    RegressionError,
    macro_f1,
)
from hf_transfer_plugin.metrics.intervals import bootstrap_interval
from hf_transfer_plugin.metrics.spans import EntityF1, SquadScore, entity_counts, squad_rows
from hf_transfer_plugin.metrics.texts import Rouge, Translation, perplexity, rouge_rows, token_accuracy

METRICS = {
    m.metric_name: m
    for m in (
        Accuracy,
        Precision,
        Recall,
        F1,
        ConfusionMatrix,
        RegressionError,
        EntityF1,
        SquadScore,
        Rouge,
        Translation,
    )
}

__all__ = [
    "F1",
    "METRICS",
    "Accuracy",
    "ConfusionMatrix",
    "EntityF1",
    "Precision",
    "Recall",
    "RegressionError",
    "Rouge",
    "SquadScore",
    "Translation",
    "bootstrap_interval",
    "calibration",
    "entity_counts",
    "macro_f1",
    "perplexity",
    "rouge_rows",
    "squad_rows",
    "token_accuracy",
]
