"""What a card says in words and tables, told from the record alone."""

import json
from typing import Any

from hf_transfer_plugin.record import TransferRecord

FEW_ROWS = 300
ADAPTER_CLASSES = {"text-classification": "AutoPeftModelForSequenceClassification"}


def getting_started(record: TransferRecord, model: str, *, adapter: bool) -> str:
    """
    Code that loads the model and asks it about the first example.

    Args:
        record (`TransferRecord`):
            The record.
        model (`str`):
            Repository or folder.
        adapter (`bool`):
            Whether the weights are an adapter's.

    Returns:
        `str`: Python, or nothing for a task without such code.
    """
    if record.task != "text-classification":
        return ""
    example = record.examples[0] if record.examples else {"text": "Write your text here."}
    asked: Any = {role: value for role, value in example.items() if role != "label"}
    asked = asked["text"] if list(asked) == ["text"] else asked
    ask = f"print(classify({json.dumps(asked, ensure_ascii=False)}, top_k=None))"
    name = json.dumps(model, ensure_ascii=False)
    if not adapter:
        return f'from transformers import pipeline\n\nclassify = pipeline("text-classification", model={name})\n{ask}'
    outputs, kind = len(record.class_names) or 1, ADAPTER_CLASSES[record.task]
    # The adapter's repository has no config of the model.
    named = ", ".join(f"{i}: {json.dumps(name, ensure_ascii=False)}" for i, name in enumerate(record.class_names))
    labels = f", id2label={{{named}}}" if named else ""
    return (
        f"from peft import {kind}\nfrom transformers import AutoTokenizer, pipeline\n\n"
        f"model = {kind}.from_pretrained({name}, num_labels={outputs}{labels})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({name})\n"
        'classify = pipeline("text-classification", model=model, tokenizer=tokenizer)\n'
        f"{ask}"
    )


def phase_rows(record: TransferRecord) -> list[dict[str, str]]:
    """
    What was frozen when, and at which rates the rest learned.

    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `list[dict[str, str]]`: Of each phase `step`, `frozen`, `learning`, `trainable`, `share` and `rates`, the
        highest rate that the lowest and the highest learning group had.
    """
    names = [group["name"] for group in record.groups]
    total = sum(group["parameters"] for group in record.groups)
    rows = []
    for number, phase in enumerate(record.phases):
        end = record.phases[number + 1]["step"] if number + 1 < len(record.phases) else float("inf")
        seen = [entry for entry in record.rates if phase["step"] < entry["step"] <= end]
        learning = phase["groups"]
        rows.append({
            "step": f"{phase['step']:,}",
            "frozen": _spans([name for name in names if name not in learning], names) or "nothing",
            "learning": _spans(learning, names),
            "trainable": f"{phase['trainable_parameters']:,}",
            "share": f"{phase['trainable_parameters'] / total:.1%}" if total else "",
            "rates": _rates(seen, learning),
        })
    return rows


def _spans(some: list[str], names: list[str]) -> str:
    """`layer.0 - layer.5, head` instead of every name; neighbours in the model's order are one span."""
    known = {name: i for i, name in enumerate(names)}
    spans: list[list[str]] = []
    for name in sorted(some, key=lambda n: known.get(n, len(known))):
        if spans and known.get(name, -2) == known.get(spans[-1][-1], -4) + 1:
            spans[-1].append(name)
        else:
            spans.append([name])
    return ", ".join(name for s in spans for name in ([f"{s[0]} - {s[-1]}"] if len(s) > 2 else s))


def _rates(seen: list[dict[str, Any]], learning: list[str]) -> str:
    peaks = {name: max((entry[name] for entry in seen if name in entry), default=None) for name in learning}
    found = {name: peak for name, peak in peaks.items() if peak is not None}
    if not found:
        return "-"
    if len({f"{peak:.2e}" for peak in found.values()}) == 1:
        return f"{next(iter(found.values())):.2g}"
    low, high = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    return f"{found[low]:.2g} ({low}) to {found[high]:.2g} ({high})"


def limits(record: TransferRecord) -> list[str]:
    """
    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `list[str]`: What the model cannot do, as far as the record tells, a sentence each; plain text.
    """
    found = []
    if record.class_names:
        kind = "any of" if record.problem_type == "multi_label_classification" else "one of"
        found.append(
            f"It answers with {kind} its {len(record.class_names)} classes and nothing else, also where none fits."
        )
    train = record.dataset.get("splits", {}).get("train")
    if train:
        found.append(
            f"It learned from {train:,} rows of {record.dataset.get('name', 'one dataset')}; on data from elsewhere "
            "expect worse answers than the figures above."
        )
    if record.language:
        found.append(f"The data's language: {', '.join(record.language)}. Nothing is known of other languages.")
    rows = record.dataset.get("splits", {}).get(record.metrics_split)
    if record.metrics and rows and rows < FEW_ROWS:
        found.append(f"It was measured on {rows:,} rows only, so the figures are uncertain.")
    if record.per_class:
        name, worst = min(record.per_class.items(), key=lambda item: item[1]["recall"])
        found.append(f"It misses most often in class {name}: it finds {worst['recall']:.0%} of those rows.")
    if record.dataset.get("truncated"):
        found.append("It does not read the end of long texts.")
    found.append(f"Whatever {record.base_model} learned before, biases too, is still in it.")
    return found
