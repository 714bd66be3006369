"""What a card says in words and tables, told from the record alone."""

from typing import Any

from hf_transfer_plugin.hub.media_facts import COUNTED, MEDIA_LIMITS
from hf_transfer_plugin.hub.samples import SampleFile
from hf_transfer_plugin.hub.table_rows import is_table, table_limits
from hf_transfer_plugin.record import TransferRecord

FEW_ROWS = 300
SHOWN = 320  # characters of a text in a table
BASELINES = {  # name in the record -> words; also of the demo
    "majority": "commonest answer",
    "mean_box": "commonest class in its mean place, in every picture",
    "from_scratch": "the same training from random weights",
    "linear_probe": "linear probe on frozen features",
    "gradient_boosting": "gradient boosting on the columns (scikit-learn)",
    "pretrained": "pretrained model, not trained further",
    "zero_shot": "pretrained towers by class names alone",
    "random_order": "captions in a random order",
    "lead": "first sentences of the text",
    "copy": "the source itself",
    "overlap": "sentence that shares most words with the question",
    "commonest_token": "commonest token",
    "commonest_tag": "commonest tag of each word",
    "bm25": "BM25, a search by shared words",
    "tf_idf": "TF-IDF, shared words of the two texts",
}
OVERLONG = {
    "question-answering": "were read in overlapping windows",
    "packing": "were divided into blocks",
}
LIMITS = {
    "question-answering": (
        "It answers with words of the given text and nothing else: it does not reason, count or know the world. Read "
        "the sentence around an answer before you rely on it."
    ),
    "summarization": (
        "A summary can state what is not in the text, or leave out what matters: check it against the text before you "
        "use it."
    ),
    "translation": (
        "A translation can leave out, add or turn round what the text says, and reads fluently all the same. It knows "
        "the one direction that it learned."
    ),
    "text-generation": "It writes what is likely, not what is true, and states both in the same tone.",
    "sentence-similarity": (
        "It finds what is most similar, also where nothing fits: look at the similarity before you rely on the first "
        "place."
    ),
    "fill-mask": "It guesses what fits the words around a gap, which says nothing of whether the sentence is true.",
    **MEDIA_LIMITS,
}
CALIBRATED = 0.01
ANSWERED = ("label", "prediction", "score")


def baseline_rows(record: TransferRecord) -> list[tuple[str, dict[str, float]]]:
    """
    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `list[tuple[str, dict[str, float]]]`: What fine-tuning must beat, in words, and its metrics.
    """
    return [(BASELINES.get(name, name), values) for name, values in record.baselines.items()]


def calibration_words(record: TransferRecord) -> str:
    """
    What the calibration error means for somebody who sees the model's confidence.

    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `str`: Sentences, or nothing where the record has no calibration.
    """
    if not record.calibration:
        return ""
    ece, bins = record.calibration["ece"], [one for one in record.calibration["bins"] if one["count"]]
    lean = sum(one["count"] * (one["confidence"] - one["accuracy"]) for one in bins)
    total = sum(one["count"] for one in bins)
    found = (
        "How far its confidence can be trusted: on average the confidence that it states and the share of right "
        f"answers lie {100 * ece:.1f} percentage points apart (expected calibration error {ece:.3f})."
    )
    if ece >= CALIBRATED and abs(lean) / total > ece / 2:
        found += (
            " It is mostly surer than it is right." if lean > 0 else " It is mostly right more often than it says."
        )
    return found


def cache_words(record: TransferRecord) -> str:
    """
    What the prefix cache did in training.

    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `str`: A sentence, or nothing where no cache was asked for.
    """
    facts = record.prefix_cache
    if facts is None:
        return ""
    hits, used, reason = facts["hits"], facts["used"], str(facts["reason"]).rstrip(".")
    if not hits:
        return f"The prefix cache was asked for, but nothing was read from it{'' if used else f': {reason}'}."
    shares = sorted(min(100 * cut["skipped_share"], 99.9) for cut in facts["cuts"])
    span = f"{shares[0]:.1f}%" if shares[0] == shares[-1] else f"{shares[0]:.1f}% to {shares[-1]:.1f}%"
    return (
        f"While layers were frozen, {span} of each forward pass was read from stored activations ({facts['storage']}) "
        f"instead of computed, in {hits:,} of {hits + facts['misses']:,} batches."
        f"{'' if used else f' The cache was switched off on the way: {reason}.'}"
    )


def shown(value: Any, joint: str = " ") -> str:
    """
    A value of a row as one line of text that fits into a table.

    Args:
        value (`Any`):
            A text, a number, a list of words or names, a conversation, or the path of an image or a sound.
        joint (`str`, *optional*, defaults to a space):
            What stands between the parts of a list.

    Returns:
        `str`: At most 320 characters.
    """
    if isinstance(value, SampleFile):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        parts = [f"{one['role']}: {one['content']}" if isinstance(one, dict) else str(one) for one in value]
        value = (" / " if value and isinstance(value[0], dict) else joint).join(parts)
    line = " ".join(str(value).split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1].rstrip()}…"


def answer_table(rows: list[dict[str, Any]], last: dict[str, str]) -> list[list[str]]:
    """
    Rows of the data with what the model answered, as a table.

    Args:
        rows (`list[dict[str, Any]]`):
            `errors` or `samples` of a record.
        last (`dict[str, str]`):
            Columns after those of the input -> their headings.

    Returns:
        `list[list[str]]`: The headings, then a line for each row; empty without rows.
    """
    if not rows:
        return []
    roles = [role for role in dict.fromkeys(role for row in rows for role in row) if role not in ANSWERED]
    told = [name for name in last if any(name in row for row in rows)]
    head = [role.replace("_", " ") for role in roles] + [last[name] for name in told]
    inputs, answers = ([[row.get(name, "") for name in names] for row in rows] for names in (roles, told))
    lines = zip(inputs, answers, strict=True)
    return [head, *([*map(shown, texts), *(shown(one, ", ") or "(none)" for one in given)] for texts, given in lines)]


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
    found = [*_class_limits(record), *([LIMITS[record.task]] if record.task in LIMITS else [])]
    found += [*_search_limits(record), *table_limits(record)]
    if record.problem_type == "regression":
        asked = "row" if is_table(record) else "image" if record.task == "image-classification" else "text"
        found.append(f"It answers with a number to every {asked}, also where none would be right.")
    if "perplexity" in record.metrics:
        found.append("The perplexity depends on the tokenizer: it compares only models with the same one.")
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
    worst = _worst_class(record)
    if worst:
        found.append(worst)
    if record.dataset.get("truncated") and overlong_words(record).endswith("truncated"):
        found.append("It does not read the end of long texts.")
    found.append(f"Whatever {record.base_model} learned before, biases too, is still in it.")
    return found


def _search_limits(record: TransferRecord) -> list[str]:
    """How hard the search was that the figures tell of, and what made it easier."""
    split, found = record.metrics_split, []
    size = record.dataset.get("corpus", {}).get(split)
    if size:
        found.append(
            f"The figures tell of searches among {size:,} texts; among more, the right one is found less often."
        )
    shared = record.dataset.get("shared_texts", {}).get(split)
    if shared:
        places = {"text": "first", "text_pair": "second"}
        told = " and ".join(f"{count:,} of its {places[column]} texts" for column, count in shared.items() if count)
        found.append(f"The {split} split shares {told} with the training rows, which flatters the figures.")
    same = sum(record.dataset.get("same_text_rows", {}).values())
    if same:
        found.append(f"In {same:,} rows of the data both texts are the same, which makes the task look easier.")
    return found


def overlong_words(record: TransferRecord) -> str:
    """
    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `str`: What became of rows that were longer than the model reads.
    """
    kind = "packing" if record.options.get("packing") else record.task
    return OVERLONG.get(kind, "were truncated")


def _class_limits(record: TransferRecord) -> list[str]:
    if not record.class_names:
        return []
    count = len(record.class_names)
    if record.task == "token-classification":
        return [f"It gives every word one of its {count} tags and nothing else, also where none fits."]
    if record.task == "zero-shot-image-classification":
        return [f"The figures hold for choices among its {count} classes; other names can be given to choose from."]
    if record.task == "object-detection":
        return [f"It finds {count} kinds of things and nothing else." if count > 1 else "It finds one kind of thing."]
    if record.task == "image-segmentation":
        return [f"It gives every pixel one of its {count} classes and nothing else, also where none fits."]
    kind = "any of" if record.problem_type == "multi_label_classification" else "one of"
    return [f"It answers with {kind} its {count} classes and nothing else, also where none fits."]


def class_tables(record: TransferRecord) -> list[tuple[str, str, dict[str, dict[str, float]]]]:
    """
    The figures of each class, and apart from them those of what several tags mark together.

    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `list[tuple[str, str, dict]]`: What the figures are of, what is counted (`"class"`, `"rows"`), and the figures
        by name.
    """
    if record.task != "token-classification":
        return [("class", COUNTED.get(record.task, "rows"), record.per_class)] if record.per_class else []
    tags = {name: values for name, values in record.per_class.items() if name in record.class_names}
    spans = {name: values for name, values in record.per_class.items() if name not in tags}
    return [one for one in (("entity", "entities", spans), ("tag", "words", tags)) if one[2]]


def _worst_class(record: TransferRecord) -> str:
    kind, counted, figures = next(iter(class_tables(record)), ("", "", {}))
    seen = {name: values for name, values in figures.items() if values["support"]}
    if not seen:
        return ""
    name, worst = min(seen.items(), key=lambda item: item[1]["recall"])
    return f"It misses most often in {kind} {name}: it finds {worst['recall']:.0%} of those {counted}."
