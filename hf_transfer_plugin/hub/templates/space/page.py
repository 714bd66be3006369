"""The page: built from a row of the table, demo.json and the model; nothing here depends on the task."""

import re
from inspect import isgeneratorfunction
from typing import Any

import gradio as gr
from answering import Demo, answering
from loading import Loaded, Settings

_SPECIAL = re.compile(r"([\\`*_\[\]|~$#!()])")
SANS = ("system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")
CSS = """
.gradio-container { width: 100%; max-width: 60rem !important; margin: 0 auto !important; overflow-wrap: break-word; }
.gradio-container .main { max-width: 100%; }
.gradio-container .table-wrap { overflow-x: auto; }
.gradio-container .rows { --font-mono: var(--font); }
.gradio-container [data-testid=highlighted-text] .textfield { word-break: normal; overflow-wrap: anywhere; }
.gradio-container .place .textfield { display: block; }
.gradio-container .place .textfield * { display: inline; margin: 0; }
.gradio-container #audio :is(time, button) { color: var(--body-text-color); }
.gradio-container a { text-decoration: underline; }
.gradio-container .prose :is(th, td) { word-break: normal; overflow-wrap: normal; padding: 0.3rem 0.5rem; }
"""
# Answers are told to screen readers as they come. Gradio names an empty answer without giving it a role, lets no key
# scroll a conversation, and puts the button that closes a message into another button.
HEAD = """<script>
new MutationObserver(() => {
  document.querySelectorAll('.answer:not([aria-live])').forEach(e => e.setAttribute('aria-live', 'polite'));
  document.querySelectorAll('div.empty[aria-label]:not([role])').forEach(e => e.setAttribute('role', 'img'));
  document.querySelectorAll('[role=log]:not([tabindex])').forEach(e => e.setAttribute('tabindex', '0'));
  document.querySelectorAll('.toast-header[role]').forEach(e => ['role', 'tabindex'].map(n => e.removeAttribute(n)));
}).observe(document, {childList: true, subtree: true});
</script>"""


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


def about(settings: Settings, demo: Demo, loaded: Loaded, model: str) -> str:
    """
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
    if hasattr(loaded.model, "peft_config"):
        lines += ["", *_adapter(settings, loaded)]
    elif base and loaded.as_base is None:
        lines += [loaded.no_base]
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
        lines += [f"- The figures hold for data like {escape(facts['dataset'])}, not for any other."]
    lines += ["- The model can be wrong with great confidence. Do not decide about people with it alone."]
    if loaded.max_tokens or (demo.limit and "{tokens" not in demo.limit):
        lines += [f"- {demo.limit.format(tokens=loaded.max_tokens)}"]
    return "\n".join(lines)


def _adapter(settings: Settings, loaded: Loaded) -> list[str]:
    """What switching it off shows, and in which precision the base is here."""
    name, trained_in = settings.adapter.get("name"), settings.adapter.get("base_precision")
    lines = [
        f"Its weights are an adapter{f' ({escape(name)})' if name else ''} on the base model, which stays as it was."
    ]
    if loaded.as_base is None:
        lines += [loaded.no_base]
    else:
        lines += ["*Compare with the base model* asks the same model with the adapter off."]
    if trained_in:
        here = str(next(loaded.model.get_base_model().parameters()).dtype).removeprefix("torch.")
        lines += [f"In training the base was held in {escape(trained_in)}; here it is in {here}."]
    return lines


def _examples(settings: Settings, boxes: list[Any]) -> None:
    rows = [[row.get(name, "") for name in settings.inputs] for row in settings.examples]
    if not rows:
        return
    given = [row.get("label", "") for row in settings.examples]
    texts = [", ".join(map(str, g)) or "none" if isinstance(g, list) else str(g) for g in given]
    if any(texts):
        what = "Given label" if settings.class_names or settings.problem_type else "Given answer"
        boxes = [*boxes, gr.Textbox(label=what, visible=False)]
        rows = [[*row, text] for row, text in zip(rows, texts, strict=True)]
    gr.Examples(rows, boxes, label="Examples from the evaluation data", cache_examples=False, api_visibility="private")


def form(settings: Settings, demo: Demo, loaded: Loaded) -> None:
    """
    Lays out boxes beside answers.

    Args:
        settings (`Settings`):
            What demo.json says.
        demo (`Demo`):
            Row of the table.
        loaded (`Loaded`):
            The model.
    """
    answer = answering(settings, demo, loaded)
    with gr.Row():
        with gr.Column():
            boxes = demo.inputs(settings)
            switch = gr.Checkbox(label="Compare with the base model", value=False, visible=loaded.as_base is not None)
            with gr.Row():
                clear = gr.Button("Clear", min_width=100)
                stop = gr.Button("Stop", min_width=100, visible=isgeneratorfunction(answer))
                button = gr.Button(demo.button, variant="primary", min_width=100)
        with gr.Column():
            models = [""] if loaded.as_base is None else [" (this model)", " (base model)"]
            outputs = [output for whose in models for output in demo.outputs(whose)]
    _examples(settings, boxes)
    # Raw values: a component would turn a wrong kind of value into text.
    event = button.click(
        answer,
        boxes if loaded.as_base is None else [*boxes, switch],
        outputs,
        api_name=demo.api_name,
        preprocess=False,
        concurrency_limit=1,
    )
    stop.click(None, cancels=[event], api_visibility="private", queue=False)
    everything = [*boxes, *outputs]
    clear.click(lambda: [None] * len(everything), None, everything, api_visibility="private", queue=False)


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
        (demo.body or form)(settings, demo, loaded)
        gr.Markdown(about(settings, demo, loaded, model))
    return page
