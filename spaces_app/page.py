"""The page: built from a row of the table, demo.json and the model; nothing here depends on the task."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import gradio as gr
from loading import Loaded, Settings

# On ZeroGPU a function gets a GPU through this package; elsewhere it is missing, or does nothing.
spaces = import_module("spaces") if find_spec("spaces") else None
_SPECIAL = re.compile(r"([\\`*_\[\]|~$#!()])")
SANS = ("system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")
CSS = """
.gradio-container { width: 100%; max-width: 60rem !important; margin: 0 auto !important; overflow-wrap: break-word; }
.gradio-container .main { max-width: 100%; }
.gradio-container .table-wrap { overflow-x: auto; }
.gradio-container a { text-decoration: underline; }
.gradio-container .prose :is(th, td) { word-break: normal; overflow-wrap: normal; padding: 0.3rem 0.5rem; }
"""
# Answers are told to screen readers as they come. Gradio names an empty answer without giving it a role, and puts the
# button that closes a message into another button.
HEAD = """<script>
new MutationObserver(() => {
  document.querySelectorAll('.answer:not([aria-live])').forEach(e => e.setAttribute('aria-live', 'polite'));
  document.querySelectorAll('div.empty[aria-label]:not([role])').forEach(e => e.setAttribute('role', 'img'));
  document.querySelectorAll('.toast-header[role]').forEach(e => ['role', 'tabindex'].map(n => e.removeAttribute(n)));
}).observe(document, {childList: true, subtree: true});
</script>"""


@dataclass(frozen=True)
class Demo:
    """
    A row of the table: everything that differs between tasks.

    Args:
        auto_class (`str`):
            Name of the model's auto class in transformers.
        api_name (`str`):
            Name of the call for `gradio_client`.
        button (`str`):
            What the button says.
        inputs (`Callable`):
            `(settings)` -> components.
        check (`Callable`):
            `(settings, values)` -> checked values; raises `InputError`.
        ask (`Callable`):
            `(loaded, model, values)` -> the model's raw answer.
        cut (`Callable`):
            `(loaded, values)` -> whether the model does not read all of them.
        output (`Callable`):
            `(whose)` -> the component of the answer, `whose` it is in its label.
        show (`Callable`):
            `(loaded, raw answer)` -> its value.
    """

    auto_class: str
    api_name: str
    button: str
    inputs: Callable[[Settings], list[Any]]
    check: Callable[[Settings, list[Any]], list[Any]]
    ask: Callable[[Loaded, Any, list[Any]], Any]
    cut: Callable[[Loaded, list[Any]], bool]
    output: Callable[[str], Any]
    show: Callable[[Loaded, Any], Any]


def escape(text: Any) -> str:
    """
    Makes text from data harmless in Markdown and HTML.

    Args:
        text (`Any`):
            A name.

    Returns:
        `str`: One line without markup.
    """
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", line)


def theme() -> gr.themes.Base:
    """
    Returns:
        `gr.themes.Base`: Colours with contrast enough in light and dark, and fonts of the reader's own machine.
    """
    return gr.themes.Default(primary_hue="blue", font=SANS, font_mono=MONO).set(
        button_primary_background_fill="#1d4ed8",
        button_primary_background_fill_hover="#1e40af",
        button_primary_background_fill_dark="#1d4ed8",
        button_primary_background_fill_hover_dark="#1e40af",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        body_text_color_subdued="#4b5563",
        body_text_color_subdued_dark="#d1d5db",
        block_label_text_color="#374151",
        block_label_text_color_dark="#e5e7eb",
        link_text_color="#1d4ed8",
        link_text_color_dark="#93c5fd",
    )


def answering(settings: Settings, demo: Demo, loaded: Loaded) -> Callable[..., Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.
        demo (`Demo`):
            Row of the table.
        loaded (`Loaded`):
            The model.

    Returns:
        `Callable`: From what the page sends to what it shows; its parameters are named for `gradio_client`.
    """

    def infer(values: list[Any], compare: bool) -> list[Any]:
        raw = [demo.ask(loaded, loaded.model, values)]
        if compare and loaded.as_base is not None:
            with loaded.as_base() as base:
                raw.append(demo.ask(loaded, base, values))
        return raw

    run = spaces.GPU(duration=60)(infer) if spaces else infer

    def answer(*sent: Any) -> Any:
        values = demo.check(settings, list(sent[: len(settings.inputs)]))
        if demo.cut(loaded, values):
            gr.Warning(f"Only the first {loaded.max_tokens:,} tokens were read; the rest was left out.")
        compare = loaded.as_base is not None and sent[-1] is True
        shown = [demo.show(loaded, raw) for raw in run(values, compare)]
        if loaded.as_base is None:
            return shown[0]
        return shown[0], shown[1] if compare else None

    names = [*settings.inputs, *(["compare_with_base"] if loaded.as_base else [])]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    answer.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    return answer


def about(settings: Settings, loaded: Loaded, model: str) -> str:
    """
    Args:
        settings (`Settings`):
            What demo.json says.
        loaded (`Loaded`):
            The model.
        model (`str`):
            Hub id or folder that was loaded.

    Returns:
        `str`: Origin, figures and limits, as Markdown.
    """
    facts, base = settings.facts, settings.base_model
    lines = ["## About this model", ""]
    if model == settings.model:
        lines += [f"[Model card of {escape(model)}](https://huggingface.co/{model}): data, training and figures."]
    else:
        lines += ["The model comes from a folder or repository of your own; its card is the README.md there."]
    if base:
        lines += ["", f"Made by transfer learning from [{escape(base)}](https://huggingface.co/{base})."]
        if loaded.as_base is None:
            lines += ["The base model has no output for this task, so it cannot be asked here for comparison."]
    if facts.get("table"):
        head, *rows = facts["table"]
        lines += [
            "",
            f"Measured on {escape(facts['rows'])} rows of {escape(facts['dataset'])} ({facts['split']}):",
            "",
        ]
        lines += [f"| {' | '.join(map(escape, head))} |", f"|---{'|---:' * (len(head) - 1)}|"]
        lines += [f"| {' | '.join(map(escape, row))} |" for row in rows]
    lines += ["", "## Limits", ""]
    if facts.get("split"):
        lines += [f"- The figures hold for data like {escape(facts['dataset'])}, not for any text."]
    lines += ["- The model can be wrong with great confidence. Do not decide about people with it alone."]
    if loaded.max_tokens:
        lines += [f"- It reads {loaded.max_tokens:,} tokens; the end of a longer input is left out."]
    return "\n".join(lines)


def _examples(settings: Settings, boxes: list[Any]) -> None:
    rows = [[row.get(name, "") for name in settings.inputs] for row in settings.examples]
    if not rows:
        return
    given = [row.get("label", "") for row in settings.examples]
    label = gr.Textbox(label="Given label", visible=False)
    texts = [", ".join(map(str, g)) or "none" if isinstance(g, list) else str(g) for g in given]
    gr.Examples(
        [[*row, text] for row, text in zip(rows, texts, strict=True)],
        [*boxes, label],
        label="Examples from the evaluation data",
        cache_examples=False,
        api_visibility="private",
    )


def build(settings: Settings, demo: Demo, loaded: Loaded, model: str) -> gr.Blocks:
    """
    Builds the page.

    Args:
        settings (`Settings`):
            What demo.json says.
        demo (`Demo`):
            Row of the table.
        loaded (`Loaded`):
            The model.
        model (`str`):
            Hub id or folder that was loaded.

    Returns:
        `gr.Blocks`: The page.
    """
    with gr.Blocks(title=settings.title, analytics_enabled=False) as page:
        gr.Markdown(f"# {escape(settings.title)}")
        with gr.Row():
            with gr.Column():
                boxes = demo.inputs(settings)
                switch = gr.Checkbox(
                    label="Compare with the base model", value=False, visible=loaded.as_base is not None
                )
                with gr.Row():
                    clear = gr.Button("Clear", min_width=100)
                    button = gr.Button(demo.button, variant="primary", min_width=100)
            with gr.Column():
                models = [""] if loaded.as_base is None else [" (this model)", " (base model)"]
                outputs = [demo.output(whose) for whose in models]
        _examples(settings, boxes)
        gr.Markdown(about(settings, loaded, model))
        sent = boxes if loaded.as_base is None else [*boxes, switch]
        # Raw values: a component would turn a wrong kind of value into text.
        button.click(
            answering(settings, demo, loaded),
            sent,
            outputs,
            api_name=demo.api_name,
            preprocess=False,
            concurrency_limit=1,
        )
        everything = [*boxes, *outputs]
        clear.click(lambda: [None] * len(everything), None, everything, api_visibility="private", queue=False)
    return page
