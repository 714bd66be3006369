"""From what the page or a client sends to what it is told; nothing here depends on the task."""

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import gradio as gr
from loading import Loaded, Settings

# On ZeroGPU a function gets a GPU through this package; elsewhere it is missing, or does nothing.
spaces = import_module("spaces") if find_spec("spaces") else None
END_IS_CUT = "It reads {tokens:,} tokens; the end of a longer input is left out."


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
        read (`Callable`):
            `(loaded, values)` -> what the model is asked, and a sentence on what was left out or `""`.
        ask (`Callable`):
            `(loaded, model, what `read` gave)` -> the model's raw answer; a generator function streams it.
        outputs (`Callable`):
            `(whose)` -> the components of the answer, `whose` it is in their labels.
        show (`Callable`):
            `(loaded, raw answer)` -> their values.
        limit (`str`, *optional*):
            What a visitor should know of the length that is read; `{tokens}` is the model's limit.
        body (`Callable`, *optional*):
            `(settings, demo, loaded)`: lays out what is asked and answered; boxes beside answers without it.
        processor (`str`, *optional*, defaults to `"AutoTokenizer"`):
            Name of the auto class in transformers of what prepares the model's inputs.
    """

    auto_class: str
    api_name: str
    button: str
    inputs: Callable[[Settings], list[Any]]
    check: Callable[[Settings, list[Any]], list[Any]]
    read: Callable[[Loaded, list[Any]], tuple[Any, str]]
    ask: Callable[[Loaded, Any, Any], Any]
    outputs: Callable[[str], list[Any]]
    show: Callable[[Loaded, Any], list[Any]]
    limit: str = END_IS_CUT
    body: Callable[[Settings, "Demo", Loaded], None] | None = None
    processor: str = "AutoTokenizer"


def _inferring(demo: Demo, loaded: Loaded) -> Callable[[Any, bool], Iterator[list[Any]]]:
    """The part that needs the model: again and again the raw answers so far, the base model's after ours."""

    def asking(model: Any, asked: Any) -> Iterator[Any]:
        if inspect.isgeneratorfunction(demo.ask):
            yield from demo.ask(loaded, model, asked)
        else:
            yield demo.ask(loaded, model, asked)

    def infer(asked: Any, compare: bool) -> Iterator[list[Any]]:
        ours = None
        for ours in asking(loaded.model, asked):
            yield [ours]
        if compare and loaded.as_base is not None:
            with loaded.as_base() as base:
                for other in asking(base, asked):
                    yield [ours, other]

    return spaces.GPU(duration=60)(infer) if spaces else infer


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
        `Callable`: From what the page sends to what it shows; its parameters are named for `gradio_client`. It is a
        generator function where the model's answer streams.
    """
    run = _inferring(demo, loaded)

    def stream(*sent: Any) -> Iterator[Any]:
        values = demo.check(settings, list(sent[: len(settings.inputs)]))
        asked, left_out = demo.read(loaded, values)
        if left_out:
            gr.Warning(left_out)
        compare = loaded.as_base is not None and sent[-1] is True
        for raws in run(asked, compare):
            shown = [demo.show(loaded, raw) for raw in raws]
            if loaded.as_base is not None and len(raws) == 1:
                shown.append([None] * len(shown[0]))
            values = [value for part in shown for value in part]
            yield tuple(values) if len(values) > 1 else values[0]

    def last(*sent: Any) -> Any:
        return deque(stream(*sent), maxlen=1).pop()

    answer: Any = stream if inspect.isgeneratorfunction(demo.ask) else last
    names = [*settings.inputs, *(["compare_with_base"] if loaded.as_base else [])]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    answer.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    return answer
