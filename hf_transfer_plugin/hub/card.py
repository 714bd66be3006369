"""The model card, rendered from a record alone."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_transfer_plugin.hub.facts import getting_started, limits, phase_rows
from hf_transfer_plugin.record import TransferRecord, write_atomically

TEMPLATES = Path(__file__).parent / "templates"
MEASURES = {
    "accuracy": "Accuracy",
    "precision_macro": "Precision (macro)",
    "recall_macro": "Recall (macro)",
    "f1_macro": "F1 (macro)",
    "mse": "Mean squared error",
    "mae": "Mean absolute error",
    "r2": "R²",
    "pearson": "Pearson's r",
    "loss": "Loss",
}
_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")


def escape(text: Any) -> str:
    """
    Makes text from data harmless in Markdown and HTML.

    Args:
        text (`Any`):
            A class name, a column, a dataset's name.

    Returns:
        `str`: One line without markup.
    """
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
            Also write it there, atomically.
        model (`str`, *optional*, defaults to `"."`):
            What the code on the card loads: the repository, or the folder that the card lies in.
        adapter (`Mapping[str, Any]`, *optional*):
            Metadata of PEFT's card, where the weights are an adapter's.

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
    environment.globals["zip"] = zip
    environment.filters["text"] = escape
    environment.filters["number"] = _number
    environment.filters["fields"] = lambda spec: ", ".join(f"{k}: {v}" for k, v in spec.items() if v is not None)
    has_plot = path is not None and (Path(path).parent / "schedule.png").is_file()
    body = environment.get_template("model_card.md").render(
        record=record,
        measures=MEASURES,
        has_plot=has_plot,
        phases=phase_rows(record),
        limits=limits(record),
        start=getting_started(record, model, adapter=adapter is not None),
    )
    metadata = _metadata(record).to_dict()
    for name, value in (adapter or {}).items():
        metadata[name] = [*value, *metadata.get("tags", ())] if name == "tags" else value
    if adapter is not None:
        metadata["base_model_relation"] = "adapter"
    card = f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n{body}"
    if path is not None:
        write_atomically(path, card)
    return card


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


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
    hub_dataset = not record.dataset.get("local", True)
    return ModelCardData(
        library_name="transformers",
        language=record.language or None,
        license=record.license,
        pipeline_tag=record.task,
        base_model=record.base_model_id,
        base_model_relation="finetune" if record.base_model_id else None,
        datasets=[record.dataset["name"]] if hub_dataset else None,
        metrics=sorted({metric.removesuffix("_macro") for metric in known}),
        tags=["hf-transfer-plugin", "transfer-learning", record.strategy.get("name", "full")],
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
