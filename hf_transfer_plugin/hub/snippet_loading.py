"""How code on a card loads a model, an adapter and what prepares their inputs."""

import json
from dataclasses import dataclass
from typing import Any

from hf_transfer_plugin.record import TransferRecord

ADAPTER_CLASSES = {
    "AutoModelForSequenceClassification": "AutoPeftModelForSequenceClassification",
    "AutoModelForTokenClassification": "AutoPeftModelForTokenClassification",
    "AutoModelForQuestionAnswering": "AutoPeftModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM": "AutoPeftModelForSeq2SeqLM",
    "AutoModelForCausalLM": "AutoPeftModelForCausalLM",
}
CLASSIFYING = ("AutoModelForSequenceClassification", "AutoModelForTokenClassification")
READ = ("AutoModelForTokenClassification", "AutoModelForQuestionAnswering")  # whose outputs the snippet reads itself
WRITING_KINDS = ("AutoModelForSeq2SeqLM", "AutoModelForCausalLM")
TEXT = "Write your text here."

# A base in 16 bits would round what an adapter learned in 32, first of all the head.
PRECISION = 'dtype="float32"'

# PEFT has no auto class of every kind; pipelines do not know its wrapper of the others.
WRAPPING = """\
config = PeftConfig.from_pretrained({name})
base = {kind}.from_pretrained(config.base_model_name_or_path, revision=config.revision{sizes}, {precision})
model = PeftModel.from_pretrained(base, {name}).get_base_model()  # with the adapter in it"""
PIPELINE = "from transformers import pipeline\n\n{call} = pipeline({task}, model={name}{extra})\n"


@dataclass(frozen=True)
class Source:
    """
    Where the model is loaded from.

    Args:
        name (`str`): Repository or folder, quoted.
        adapter (`bool`): Whether the weights are an adapter's.
        generation (`bool`): Whether an adapter has settings of its own for writing.
    """

    name: str
    adapter: bool
    generation: bool


def quoted(value: Any) -> str:
    """
    Args:
        value (`Any`):
            Text, a list or an object.

    Returns:
        `str`: It as Python and JSON write it.
    """
    return json.dumps(value, ensure_ascii=False)


def _shortest(record: TransferRecord) -> dict[str, Any]:
    return min(record.examples, key=lambda row: len(quoted(row)), default={})


def example(record: TransferRecord, role: str, limit: int) -> str:
    """
    What the shortest example has in a column; words that come as a list are joined.

    Args:
        record (`TransferRecord`):
            The record.
        role (`str`):
            Role of the column.
        limit (`int`):
            Characters that are kept.

    Returns:
        `str`: The text, or a word in its place where no example has one.
    """
    value = _shortest(record).get(role) or TEXT
    text = " ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0]


def pipeline(record: TransferRecord, source: Source, call: str, kind: str, extra: str = "") -> str:
    """
    Args:
        record (`TransferRecord`):
            The record.
        source (`Source`):
            Where the model is loaded from.
        call (`str`):
            Name that the pipeline gets.
        kind (`str`):
            Auto class of the model.
        extra (`str`, *optional*):
            Further arguments of the pipeline.

    Returns:
        `str`: Imports and the pipeline.
    """
    task = quoted("text-generation" if kind == "AutoModelForCausalLM" else record.task)
    if not source.adapter:
        return PIPELINE.format(call=call, task=task, name=source.name, extra=extra)
    start = loading(record, source, kind, "pipeline")
    return f"{start}{call} = pipeline({task}, model=model, tokenizer=tokenizer{extra})\n"


def loading(record: TransferRecord, source: Source, kind: str, *others: str) -> str:
    """
    Args:
        record (`TransferRecord`):
            The record.
        source (`Source`):
            Where the model is loaded from.
        kind (`str`):
            Auto class of the model.
        others (`str`):
            What else is imported from Transformers.

    Returns:
        `str`: Imports, the model and its tokenizer.
    """
    model, peft, own = model_lines(record, source, kind)
    imports = sorted(["AutoTokenizer", *others, *own], key=lambda one: (one.islower(), one))
    languages = "".join(
        f", {argument}={quoted(record.options[option])}"
        for option, argument in (("source_language", "src_lang"), ("target_language", "tgt_lang"))
        if record.options.get(option)
    )
    lines = [
        *(["import torch"] if kind in READ and not others else []),
        *([f"from peft import {peft}"] if peft else []),
        f"from transformers import {', '.join(imports)}",
        "",
        *model,
        f"tokenizer = AutoTokenizer.from_pretrained({source.name}{languages})",
    ]
    return "\n".join(lines) + "\n"


def model_lines(record: TransferRecord, source: Source, kind: str) -> tuple[list[str], str, list[str]]:
    """
    Args:
        record (`TransferRecord`):
            The record.
        source (`Source`):
            Where the model is loaded from.
        kind (`str`):
            Auto class of the model.

    Returns:
        `tuple[list[str], str, list[str]]`: Lines that load it, and what they need of PEFT and of Transformers.
    """
    name = source.name
    if not source.adapter:
        return [f"model = {kind}.from_pretrained({name})"], "", [kind]
    if kind not in ADAPTER_CLASSES:
        sizes = _sizes(record)
        return (
            [WRAPPING.format(kind=kind, name=name, sizes=sizes, precision=PRECISION)],
            "PeftConfig, PeftModel",
            [kind],
        )
    peft = ADAPTER_CLASSES[kind]
    labels = _labels(record) if kind in CLASSIFYING else ""
    lines = [f"model = {peft}.from_pretrained({name}{labels}, {PRECISION})"]
    if not (source.generation and kind in WRITING_KINDS):
        return lines, peft, []
    lines.append(f"model.get_base_model().generation_config = GenerationConfig.from_pretrained({name})")
    return lines, peft, ["GenerationConfig"]


def _sizes(record: TransferRecord) -> str:
    """What the head has that the adapter was trained with."""
    if record.class_names or record.problem_type:
        return _labels(record)
    given = "".join(f", {n}={record.options[n]}" for n in ("vocab_size", "pad_token_id") if n in record.options)
    return f"{given}, ignore_mismatched_sizes=True" if given else ""


def _labels(record: TransferRecord) -> str:
    """An adapter's repository has no config of the model, and its base may have an output layer for other classes."""
    named = ", ".join(f"{i}: {quoted(name)}" for i, name in enumerate(record.class_names))
    labels = f", num_labels={len(record.class_names) or 1}" + (f", id2label={{{named}}}" if named else "")
    told = record.problem_type and record.problem_type != "single_label_classification"
    labels += f", problem_type={quoted(record.problem_type)}" if told else ""
    return f"{labels}, ignore_mismatched_sizes=True"
