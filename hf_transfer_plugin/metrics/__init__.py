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
from hf_transfer_plugin.metrics.detection import MeanAveragePrecision, average_precision, match_boxes
from hf_transfer_plugin.metrics.intervals import bootstrap_interval
from hf_transfer_plugin.metrics.retrieval import (
    MRR,
    NDCG,
    RetrievalRecall,
    SimilarityCorrelation,
    correlations,
    ranking_rows,
)
from hf_transfer_plugin.metrics.segmentation import IGNORED, MeanIou, class_ious, map_scores, pixel_counts
from hf_transfer_plugin.metrics.spans import EntityF1, SquadScore, entity_counts, squad_rows
from hf_transfer_plugin.metrics.speech import CharacterErrorRate, WordErrorRate, error_counts, error_rate, normalized
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
        WordErrorRate,
        CharacterErrorRate,
        MeanAveragePrecision,
        NDCG,
        MRR,
        RetrievalRecall,
        SimilarityCorrelation,
        MeanIou,
    )
}

__all__ = [
    "F1",
    "IGNORED",
    "METRICS",
    "MRR",
    "NDCG",
    "Accuracy",
    "CharacterErrorRate",
    "ConfusionMatrix",
    "EntityF1",
    "MeanAveragePrecision",
    "MeanIou",
    "Precision",
    "Recall",
    "RegressionError",
    "RetrievalRecall",
    "Rouge",
    "SimilarityCorrelation",
    "SquadScore",
    "Translation",
    "WordErrorRate",
    "average_precision",
    "bootstrap_interval",
    "calibration",
    "class_ious",
    "correlations",
    "entity_counts",
    "error_counts",
    "error_rate",
    "macro_f1",
    "map_scores",
    "match_boxes",
    "normalized",
    "perplexity",
    "pixel_counts",
    "ranking_rows",
    "rouge_rows",
    "squad_rows",
    "token_accuracy",
]
