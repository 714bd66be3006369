"""Code for a card that shows the model a picture, or lets it hear a sound."""

import json
import re

from hf_transfer_plugin.hub.snippet_loading import PIPELINE, Source, model_lines, quoted
from hf_transfer_plugin.record import TransferRecord

SEGMENTING = """\
{start}for part in segment({file}):
    mask = part["mask"]  # as large as the picture: 255 where it shows this class, else 0
    print(part["label"], f"{{mask.histogram()[255] / (mask.width * mask.height):.1%}}")"""
HEARING = """\
{imports}
samples, rate = soundfile.read({file}, dtype="float32", always_2d=True)
wanted = {call}.feature_extractor.sampling_rate
sound = {{"raw": soxr.resample(samples.mean(1), rate, wanted), "sampling_rate": wanted}}
{ask}"""


def candidates(record: TransferRecord) -> list[str]:
    """
    Args:
        record (`TransferRecord`):
            The record of a model that chooses among names.

    Returns:
        `list[str]`: Names to choose from: its classes, or captions of its examples.
    """
    return record.class_names or list(dict.fromkeys(str(row["text"]) for row in record.examples if "text" in row))


def look(record: TransferRecord, source: Source) -> str:
    """
    Args:
        record (`TransferRecord`):
            The record of a model that classifies images.
        source (`Source`):
            Where the model is loaded from.

    Returns:
        `str`: Python.
    """
    file = _picture(record, source)
    if record.task == "zero-shot-image-classification":
        dual = record.model_class == "VisionTextDualEncoderModel"
        kind = "AutoModel" if dual else "AutoModelForZeroShotImageClassification"
        template = record.options.get("caption_template", "{label}").replace("{label}", "{}")
        names = quoted(candidates(record) or ["one name", "another name"])
        return (
            f"{_media_pipeline(record, source, 'classify', kind)}names = {names}\n"
            f"print(classify({file}, candidate_labels=names, hypothesis_template={quoted(template)}))"
        )
    start = _media_pipeline(record, source, "classify", "AutoModelForImageClassification")
    return f"{start}print(classify({file}, top_k=None))"


def _picture(record: TransferRecord, source: Source) -> str:
    """The first example, quoted: on the Hub, or beside the card."""
    given, name = next((row["image"] for row in record.examples if "image" in row), "picture.jpg"), source.name[1:-1]
    fetched = given != "picture.jpg" and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)
    return quoted(f"https://huggingface.co/{name}/resolve/main/{given}" if fetched else given)


def detect(record: TransferRecord, source: Source) -> str:
    """
    Args:
        record (`TransferRecord`):
            The record of a model that finds objects.
        source (`Source`):
            Where the model is loaded from.

    Returns:
        `str`: Python.
    """
    start = _media_pipeline(record, source, "detect", "AutoModelForObjectDetection")
    sure = float(record.options.get("score_threshold", 0.5))
    ask = f"for found in detect({_picture(record, source)}, threshold={sure:g}):"
    return f'{start}{ask}\n    print(found["label"], round(found["score"], 3), found["box"])'


def segment(record: TransferRecord, source: Source) -> str:
    """
    Args:
        record (`TransferRecord`):
            The record of a model that gives every pixel a class.
        source (`Source`):
            Where the model is loaded from.

    Returns:
        `str`: Python.
    """
    start = _media_pipeline(record, source, "segment", "AutoModelForSemanticSegmentation")
    return SEGMENTING.format(start=start, file=_picture(record, source))


def hear(record: TransferRecord, source: Source) -> str:
    """
    Files are opened by soundfile, as in training: a pipeline would need ffmpeg, and torchaudio to resample.

    Args:
        record (`TransferRecord`):
            The record of a model that listens.
        source (`Source`):
            Where the model is loaded from.

    Returns:
        `str`: Python.
    """
    classes = record.task == "audio-classification"
    call, ask = (
        ("classify", "print(classify(sound, top_k=None))")
        if classes
        else ("transcribe", 'print(transcribe(sound)["text"])')
    )
    kind = (
        "AutoModelForAudioClassification"
        if classes
        else ("AutoModelForCTC" if record.options.get("ctc") else "AutoModelForSpeechSeq2Seq")
    )
    given = next((row["audio"] for row in record.examples if "audio" in row), "sound.wav")
    file, start = quoted(given), _media_pipeline(record, source, call, kind)
    fetched = given != "sound.wav" and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", json.loads(source.name))
    imports = [
        "import soundfile",
        "import soxr",
        *(["from huggingface_hub import hf_hub_download"] if fetched else []),
    ]
    file = f"hf_hub_download({source.name}, {file})" if fetched else file
    return HEARING.format(imports="\n".join([*imports, start.rstrip()]), call=call, file=file, ask=ask)


def _media_pipeline(record: TransferRecord, source: Source, call: str, kind: str) -> str:
    if not source.adapter:
        return PIPELINE.format(call=call, task=quoted(record.task), name=source.name, extra="")
    model, peft, own = model_lines(record, source, kind)
    image = record.task not in ("audio-classification", "automatic-speech-recognition")
    auto, part = ("AutoImageProcessor", "image_processor") if image else ("AutoFeatureExtractor", "feature_extractor")
    parts, names, given = [f"{part} = {auto}.from_pretrained({source.name})"], [auto], f"{part}={part}"
    if record.task in ("automatic-speech-recognition", "zero-shot-image-classification"):
        parts.append(f"tokenizer = AutoTokenizer.from_pretrained({source.name})")
        names, given = [*names, "AutoTokenizer"], f"{given}, tokenizer=tokenizer"
    imports = sorted([*names, *own, "pipeline"], key=lambda one: (one.islower(), one))
    head = [*([f"from peft import {peft}"] if peft else []), f"from transformers import {', '.join(imports)}", ""]
    return "\n".join([*head, *model, *parts, f"{call} = pipeline({quoted(record.task)}, model=model, {given})", ""])
