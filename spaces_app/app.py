"""A demo of a trained model: `python app.py`, or `python app.py --model RUN` for another one."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import audio_input
import chat
import detection_input
import image_input
import mask_input
import question_input
import row_input
import search_input
import segmentation_input
import tags
import text_input
import writing
import zero_shot_input
from answering import Demo
from limits import MAX_UPLOAD, MAX_WAITING, BodyLimit
from loading import EMBEDDER, DemoError, Settings, load
from page import CSS, HEAD, build, theme
from starlette.middleware import Middleware

CLASSIFIER = "AutoModelForSequenceClassification"
SEQ2SEQ, CAUSAL = "AutoModelForSeq2SeqLM", "AutoModelForCausalLM"
SEEN = (image_input.inputs, image_input.check, image_input.read, image_input.ask)
IMAGES: dict[str, Any] = {"limit": image_input.LIMIT, "processor": "AutoImageProcessor"}
BOXES = (text_input.inputs, text_input.check)
READ_ROW = (row_input.inputs, row_input.check, text_input.read, text_input.ask)
READ_TEXT = (*BOXES, text_input.read, text_input.ask)
WRITE = (*BOXES, writing.read_prompted, writing.ask)
ZERO_SHOT = Demo(
    "AutoModelForZeroShotImageClassification",
    "classify",
    "Classify",
    zero_shot_input.inputs,
    zero_shot_input.check,
    zero_shot_input.read,
    zero_shot_input.ask,
    zero_shot_input.outputs,
    zero_shot_input.show,
    zero_shot_input.LIMIT,
    processor="AutoProcessor",
)
SEER, HEARER = "AutoModelForImageClassification", "AutoModelForAudioClassification"
HEARD = (audio_input.inputs, audio_input.check, audio_input.read)
TOLD_BY_SOUND: dict[str, Any] = {"limit": audio_input.LIMIT, "processor": "AutoFeatureExtractor"}
TASKS = {  # (task, problem type, of a table after "row: ", or "messages" where they are what is asked) -> demo
    ("text-classification", "single_label_classification"): Demo(
        CLASSIFIER, "classify", "Classify", *READ_TEXT, text_input.one_label, text_input.softmax
    ),
    ("text-classification", "multi_label_classification"): Demo(
        CLASSIFIER, "classify", "Classify", *READ_TEXT, text_input.many_labels, text_input.sigmoid
    ),
    ("text-classification", "regression"): Demo(
        CLASSIFIER, "predict_value", "Predict", *READ_TEXT, text_input.number, text_input.value
    ),
    ("text-classification", "row: single_label_classification"): Demo(
        CLASSIFIER, "classify", "Classify", *READ_ROW, text_input.one_label, text_input.softmax, row_input.LIMIT
    ),
    ("text-classification", "row: multi_label_classification"): Demo(
        CLASSIFIER, "classify", "Classify", *READ_ROW, text_input.many_labels, text_input.sigmoid, row_input.LIMIT
    ),
    ("text-classification", "row: regression"): Demo(
        CLASSIFIER, "predict_value", "Predict", *READ_ROW, text_input.number, text_input.value, row_input.LIMIT
    ),
    ("image-classification", "single_label_classification"): Demo(
        SEER, "classify", "Classify", *SEEN, text_input.one_label, text_input.softmax, **IMAGES
    ),
    ("image-classification", "multi_label_classification"): Demo(
        SEER, "classify", "Classify", *SEEN, text_input.many_labels, text_input.sigmoid, **IMAGES
    ),
    ("image-classification", "regression"): Demo(
        SEER, "predict_value", "Predict", *SEEN, text_input.number, text_input.value, **IMAGES
    ),
    ("image-segmentation", ""): Demo(
        "AutoModelForSemanticSegmentation",
        "segment",
        "Segment",
        *SEEN[:3],
        segmentation_input.ask,
        segmentation_input.outputs,
        segmentation_input.show,
        **IMAGES | {"limit": segmentation_input.LIMIT},
    ),
    ("object-detection", ""): Demo(
        "AutoModelForObjectDetection",
        "detect",
        "Find",
        detection_input.inputs,
        detection_input.check,
        detection_input.read,
        detection_input.ask,
        detection_input.outputs,
        detection_input.show,
        detection_input.LIMIT,
        processor="AutoImageProcessor",
    ),
    ("audio-classification", "single_label_classification"): Demo(
        HEARER,
        "classify",
        "Classify",
        *HEARD,
        audio_input.ask_class,
        text_input.one_label,
        text_input.softmax,
        **TOLD_BY_SOUND,
    ),
    ("audio-classification", "multi_label_classification"): Demo(
        HEARER,
        "classify",
        "Classify",
        *HEARD,
        audio_input.ask_class,
        text_input.many_labels,
        text_input.sigmoid,
        **TOLD_BY_SOUND,
    ),
    ("audio-classification", "regression"): Demo(
        HEARER,
        "predict_value",
        "Predict",
        *HEARD,
        audio_input.ask_class,
        text_input.number,
        text_input.value,
        **TOLD_BY_SOUND,
    ),
    ("automatic-speech-recognition", ""): Demo(
        "AutoModelForSpeechSeq2Seq",
        "transcribe",
        "Transcribe",
        *HEARD,
        audio_input.ask_text,
        partial(writing.box, "Transcript"),
        writing.show,
        audio_input.LIMIT,
        processor="AutoProcessor",
    ),
    ("zero-shot-image-classification", "single_label_classification"): ZERO_SHOT,
    ("zero-shot-image-classification", ""): ZERO_SHOT,
    ("token-classification", ""): Demo(
        "AutoModelForTokenClassification",
        "tag",
        "Label",
        *BOXES,
        text_input.read,
        tags.ask,
        tags.highlighted,
        tags.show,
    ),
    ("question-answering", ""): Demo(
        "AutoModelForQuestionAnswering",
        "answer_question",
        "Answer",
        *BOXES,
        question_input.read,
        question_input.ask,
        question_input.answered,
        question_input.show,
        question_input.LIMIT,
    ),
    ("summarization", ""): Demo(
        SEQ2SEQ, "summarize", "Summarize", *WRITE, partial(writing.box, "Summary"), writing.show, writing.LIMIT
    ),
    ("translation", ""): Demo(
        SEQ2SEQ, "translate", "Translate", *WRITE, partial(writing.box, "Translation"), writing.show, writing.LIMIT
    ),
    ("text-generation", ""): Demo(
        CAUSAL,
        "complete",
        "Complete",
        *BOXES,
        writing.read_beginning,
        writing.ask,
        partial(writing.box, "Continuation"),
        writing.show,
        writing.LIMIT,
    ),
    ("text-generation", "messages"): Demo(
        CAUSAL,
        "chat",
        "Send",
        chat.inputs,
        chat.check,
        chat.read,
        writing.ask,
        chat.outputs,
        writing.show,
        chat.LIMIT,
        chat.body,
    ),
    ("fill-mask", ""): Demo(
        "AutoModelForMaskedLM",
        "fill",
        "Guess",
        mask_input.inputs,
        text_input.check,
        mask_input.read,
        mask_input.ask,
        mask_input.guesses,
        mask_input.show,
        mask_input.LIMIT,
    ),
    ("sentence-similarity", ""): Demo(
        EMBEDDER,
        "search",
        "Search",
        search_input.inputs,
        search_input.check,
        search_input.read,
        search_input.ask,
        search_input.found,
        search_input.show,
        search_input.LIMIT,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Serves the demo until it is stopped.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments; those of the process without it.

    Returns:
        `int`: 0, or 2 for a fault that the user can mend.
    """
    parser = argparse.ArgumentParser(prog="app.py", description="Serves a demo of a trained model.")
    parser.add_argument(
        "--model", default=os.environ.get("MODEL"), help="Hub id or folder; else MODEL, else demo.json"
    )
    parser.add_argument("--base", help="Hub id or folder of an adapter's base; else as the adapter names it")
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument("--open_browser", action="store_true", help="open the page in a browser")
    options = parser.parse_args(argv)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        settings = Settings.read(Path(__file__).with_name("demo.json"))
        demo = TASKS.get((settings.task, settings.form))
        if demo is None:
            raise DemoError(f"There is no demo for {settings.task} ({settings.form or 'no problem type'}).")
        model = options.model or settings.model
        loaded = load(settings, model, demo.auto_class, options.base, demo.processor)
        page = build(settings, demo, loaded, model)
    except DemoError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    try:
        page.launch(
            server_port=options.port,
            inbrowser=options.open_browser,
            share=False,
            show_error=False,
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            pwa=False,
            max_file_size=MAX_UPLOAD,
            app_kwargs={"middleware": [Middleware(BodyLimit)]},
            theme=theme(),
            css=CSS,
            head=HEAD,
        )
    except OSError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
