"""The model card, rendered from a record alone."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_transfer_plugin.hub.adapter_facts import (
    GENERATION,
    adapter_metadata,
    adapter_notes,
    adapter_rows,
    adapter_tags,
    is_adapter,
    method_name,
)
from hf_transfer_plugin.hub.facts import (
    answer_table,
    baseline_rows,
    cache_words,
    calibration_words,
    class_tables,
    limits,
    overlong_words,
    phase_rows,
)
from hf_transfer_plugin.hub.media_facts import WORST, figure_words, media_words, sample_words
from hf_transfer_plugin.hub.samples import SampleFile, with_files
from hf_transfer_plugin.hub.snippets import getting_started
from hf_transfer_plugin.hub.table_rows import FEATURES, table_words, verdict
from hf_transfer_plugin.record import TransferRecord, write_atomically

TEMPLATES = Path(__file__).parent / "templates"
MEASURES = {
    "ndcg_at_10": "nDCG@10",
    "mrr_at_10": "MRR@10",
    "recall_at_10": "Recall@10",
    "first_right": "First found is right",
    "spearman": "Spearman's ρ",
    "average_precision": "Average precision",
    "roc_auc": "Area under the ROC curve",
    "entity_f1": "F1 of entities",
    "entity_precision": "Precision of entities",
    "entity_recall": "Recall of entities",
    "accuracy": "Accuracy",
    "precision_macro": "Precision (macro)",
    "recall_macro": "Recall (macro)",
    "f1_macro": "F1 (macro)",
    "mean_iou": "Mean IoU",
    "mean_accuracy": "Mean accuracy of the classes",
    "pixel_accuracy": "Accuracy of the pixels",
    "mse": "Mean squared error",
    "mae": "Mean absolute error",
    "r2": "R²",
    "pearson": "Pearson's r",
    "exact_match": "Exact match",
    "f1": "F1 of the answers' words",
    "has_answer_f1": "F1 where there is an answer",
    "no_answer_accuracy": "Right where there is none",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "map": "mAP",
    "map_50": "mAP@50",
    "map_75": "mAP@75",
    "mar_100": "mAR@100",
    "wer": "Word error rate (lower is better)",
    "cer": "Character error rate (lower is better)",
    "wer_normalized": "Word error rate without case and punctuation",
    "bleu": "BLEU",
    "chrf": "chrF",
    "perplexity": "Perplexity (lower is better)",
    "token_accuracy": "Token accuracy",
    "mean_recall": "Mean recall of both ways",
    "image_to_text_recall_at_1": "Image to text, recall@1",
    "image_to_text_recall_at_5": "Image to text, recall@5",
    "text_to_image_recall_at_1": "Text to image, recall@1",
    "text_to_image_recall_at_5": "Text to image, recall@5",
    "loss": "Loss",
}
HUB_METRICS = {  # as the Hub names them, where it is otherwise
    "precision_macro": "precision",
    "recall_macro": "recall",
    "f1_macro": "f1",
    "mean_accuracy": "accuracy",
    "pixel_accuracy": "accuracy",
    "r2": "r_squared",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "first_right": "accuracy",
    "recall_at_10": "recall",
    "entity_f1": "seqeval",
    "entity_precision": "seqeval",
    "entity_recall": "seqeval",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
    "token_accuracy": "accuracy",
    "wer_normalized": "wer",
    "has_answer_f1": "f1",
    "no_answer_accuracy": "accuracy",
    "mean_recall": "recall",
    "image_to_text_recall_at_1": "recall",
    "image_to_text_recall_at_5": "recall",
    "text_to_image_recall_at_1": "recall",
    "text_to_image_recall_at_5": "recall",
}
EMBEDDING = "sentence-transformers"
PLOTS = ("schedule.png", "reliability.png", "confusion.png")
SAMPLES = {"label": "wanted", "prediction": "answer"}
_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")


def escape(text: Any) -> str:
    """
    Makes text from data harmless in Markdown and HTML.

    Args:
        text (`Any`):
            A class name, a column, a dataset's name, or an image of the record.

    Returns:
        `str`: One line without markup; of an image or a sound what shows it.
    """
    if isinstance(text, SampleFile):
        return text.markdown
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", line)


def render_card(
    record: TransferRecord,
    path: str | Path | None = None,
    *,
    model: str = ".",
    adapter: Mapping[str, Any] | None = None,
) -> str:
    """
    Renders the card of a record: the same record always gives the same card.

    Args:
        record (`TransferRecord`):
            The record.
        path (`str` or `Path`, *optional*):
            Also write it there, atomically, and the images and sounds of its rows beside it.
        model (`str`, *optional*, defaults to `"."`):
            What the code on the card loads: the repository, or the folder that the card lies in.
        adapter (`Mapping[str, Any]`, *optional*):
            Metadata of PEFT's card, where the weights are an adapter's and the record does not tell so.

    Returns:
        `str`: The card with its metadata.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701  Markdown is escaped by the filter `text`
    )
    folder = _folder(record, path)
    record, files = with_files(record)
    adapted = adapter is not None or is_adapter(record, folder)
    environment.globals["zip"] = zip
    environment.filters["text"] = escape
    environment.filters["number"] = _number
    environment.filters["fields"] = _fields
    body = environment.get_template("model_card.md").render(
        record=record,
        measures={name: label for name, label in MEASURES.items() if name in record.metrics and name != "loss"},
        labels=MEASURES,
        plots=[plot for plot in PLOTS if path is not None and (Path(path).parent / plot).is_file()],
        baselines=baseline_rows(record),
        tables=class_tables(record),
        explained=figure_words(record),
        calibration=calibration_words(record),
        errors=answer_table(record.errors, _error_columns(record)),
        samples=answer_table(record.samples, SAMPLES),
        worst=WORST.get(record.task),
        sampled=sample_words(record),
        overlong=overlong_words(record),
        media=[*media_words(record), *table_words(record)],
        verdict=verdict(record),
        phases=phase_rows(record),
        cache=cache_words(record),
        limits=limits(record),
        start=getting_started(
            record, model, adapter=adapted, generation=folder is not None and (folder / GENERATION).is_file()
        ),
        adapted=adapted,
        method=method_name(record.adapter or {}),
        adapter=adapter_rows(record, folder),
        notes=adapter_notes(record, merged=not adapted) if adapted or record.adapter else [],
    )
    metadata = _metadata(record).to_dict() | (_adapted(record, adapter or {}) if adapted else {})
    card = f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n{body}"
    if path is not None:
        for name, content in files.items():
            write_atomically(Path(path).parent / name, content)
        write_atomically(path, card)
    return card


def _folder(record: TransferRecord, path: str | Path | None) -> Path | None:
    if path is not None:
        return Path(path).parent
    return record.path.parent if record.path is not None else None


def _adapted(record: TransferRecord, given: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata that an adapter has otherwise; what was given counts more than what the record tells."""
    told = adapter_metadata(
        record, given.get("base_model") or record.base_model_id, adapter_tags(record.adapter or {})
    )
    return told | dict(given) | {"tags": list(dict.fromkeys([*given.get("tags", ()), *told["tags"]]))}


def _fields(spec: Mapping[str, Any]) -> str:
    """Fields and values in one line; the columns of a table are told elsewhere."""
    return ", ".join(f"{k}: {v}" for k, v in spec.items() if v is not None and k != FEATURES)


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def _error_columns(record: TransferRecord) -> dict[str, str]:
    """A number's score is how far off it is; a class's how sure the model was."""
    if record.task == "sentence-similarity":
        return {"text_pair": "other text", "label": "right", "prediction": "found first", "score": "similarity"}
    if record.task == "zero-shot-image-classification" and not record.class_names:
        return {"label": "own caption", "prediction": "found first", "score": "similarity"}
    if record.task == "image-segmentation":
        return {"label": "mask", "prediction": "answer", "score": "mean IoU"}
    if record.task == "object-detection":
        return {"label": "given", "prediction": "found"}
    score = "off by" if record.problem_type == "regression" else "confidence"
    return {"label": "given label", "prediction": "answer", "score": score}


def _metadata(record: TransferRecord) -> ModelCardData:
    known = {name: value for name, value in record.metrics.items() if name in MEASURES and name != "loss"}
    name = f"{record.base_model.split('/')[-1]}-{record.dataset.get('name', 'data').split('/')[-1].split('.')[0]}"
    results = [
        EvalResult(
            task_type=record.task,
            dataset_type=str(record.dataset.get("name", "local")),
            dataset_name=str(record.dataset.get("name", "local data")),
            dataset_split=record.metrics_split,
            metric_type=metric,
            metric_name=MEASURES[metric],
            metric_value=round(value, 5),
        )
        for metric, value in known.items()
    ]
    # As sentence-transformers' own cards have them; the Hub finds its models by these.
    tags = [EMBEDDING, "feature-extraction"] if record.task == "sentence-similarity" else []
    hub_dataset = not record.dataset.get("local", True)
    return ModelCardData(
        library_name=EMBEDDING if record.task == "sentence-similarity" else "transformers",
        language=record.language or None,
        license=record.license,
        pipeline_tag=record.task,
        base_model=record.base_model_id,
        base_model_relation="finetune" if record.base_model_id else None,
        datasets=[record.dataset["name"]] if hub_dataset else None,
        metrics=sorted({HUB_METRICS.get(metric, metric) for metric in known}),
        tags=[*tags, "hf-transfer-plugin", "transfer-learning", record.strategy.get("name", "full")],
        model_name=name if results else None,
        eval_results=results or None,
        co2_eq_emissions=_emissions(record),
    )


def _emissions(record: TransferRecord) -> dict[str, Any] | None:
    if "kg_co2" not in record.energy:
        return None
    return {
        "emissions": round(1000 * record.energy["kg_co2"], 4),
        "source": "codecarbon",
        "training_type": "fine-tuning",
        "hardware_used": str(record.hardware.get("device", "")),
    }
