"""A demo of a trained model: `python app.py`, or `python app.py --model RUN` for another one."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import text_input
from limits import MAX_UPLOAD, MAX_WAITING, BodyLimit
from loading import DemoError, Settings, load
from page import CSS, HEAD, Demo, build, theme
from starlette.middleware import Middleware

CLASSIFIER = "AutoModelForSequenceClassification"
READ_TEXT = (text_input.inputs, text_input.check, text_input.ask, text_input.cut)
TASKS = {  # (task, problem type) -> demo
    ("text-classification", "single_label_classification"): Demo(
        CLASSIFIER, "classify", "Classify", *READ_TEXT, text_input.one_label, text_input.softmax
    ),
    ("text-classification", "multi_label_classification"): Demo(
        CLASSIFIER, "classify", "Classify", *READ_TEXT, text_input.many_labels, text_input.sigmoid
    ),
    ("text-classification", "regression"): Demo(
        CLASSIFIER, "predict_value", "Predict", *READ_TEXT, text_input.number, text_input.value
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
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument("--open_browser", action="store_true", help="open the page in a browser")
    options = parser.parse_args(argv)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        settings = Settings.read(Path(__file__).with_name("demo.json"))
        demo = TASKS.get((settings.task, settings.problem_type))
        if demo is None:
            raise DemoError(f"There is no demo for {settings.task} ({settings.problem_type}).")
        model = options.model or settings.model
        page = build(settings, demo, load(settings, model, demo.auto_class), model)
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
