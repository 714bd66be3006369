"""
Reads demo.json and the model it names, whole or as an adapter.

The base model is asked beside the trained one only where it can answer: where its own checkpoint holds an output layer
for the same classes. A new, random output layer would look like a comparison and be none.
"""

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import adapter
import torch
import transformers
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

# Their figures were measured with as many tokens as in training; more would be something else.
AS_TRAINED = {"question-answering", "summarization", "translation"}
WITH_OFFSETS = {"token-classification", "question-answering"}
NAMED = "zero-shot-image-classification"  # whose classes are given with each image
EMBEDDER = "SentenceTransformer"
OTHER_HEADS = {
    "ForCausalLM": ("LMHeadModel",),
    "ForSeq2SeqLM": ("ForConditionalGeneration", "MTModel"),
    "ForSpeechSeq2Seq": ("ForConditionalGeneration",),
    "ForZeroShotImageClassification": ("Model",),
}


class DemoError(Exception):
    """A sentence for the one who starts the demo."""


@dataclass(frozen=True)
class Settings:
    """
    What demo.json says.

    Args:
        model (`str`):
            Hub id of the model.
        title (`str`):
            Heading of the page.
        task (`str`):
            The Hub's pipeline tag.
        problem_type (`str`):
            As in the model's config.
        inputs (`list[str]`):
            Names of the boxes.
        class_names (`list[str]`):
            In the order of their numbers; empty for regression.
        base_model (`str` or `None`):
            Hub id of the base model, where it is known.
        examples (`list[dict]`):
            Rows of the evaluation data: box, or `label`, -> value.
        facts (`dict`):
            What was measured: `dataset`, `split`, `rows`, `metrics`, `baselines`.
        version (`int`):
            Of the format.
        options (`dict`, *optional*):
            Options of the task that asking the model needs: `prompt`, `stride` ...
        adapter (`dict`, *optional*):
            Where the weights are an adapter's: its `name`, and the `base_precision` that it was trained on.
    """

    model: str
    title: str
    task: str
    problem_type: str
    inputs: list[str]
    class_names: list[str]
    base_model: str | None
    examples: list[dict[str, Any]]
    facts: dict[str, Any]
    version: int
    options: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)

    @property
    def form(self) -> str:
        """
        Returns:
            `str`: The problem type, after `"row: "` where rows of a table are read, or `"messages"` where they are
            what is asked.
        """
        if "feature_columns" in self.options:
            return f"row: {self.problem_type}"
        return self.problem_type or ("messages" if self.inputs == ["messages"] else "")

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """
        Args:
            path (`Path`):
                demo.json.

        Returns:
            `Settings`: Its content.

        Raises:
            DemoError: If it is missing or damaged.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DemoError(f"{path.name} is missing or damaged: {error}. Write the demo's folder again.") from error


@dataclass
class Loaded:
    """
    A model ready to be asked.

    Args:
        model (`torch.nn.Module`):
            The model, in evaluation mode.
        processor (`Any`):
            Its tokenizer, or what else prepares its inputs.
        class_names (`list[str]`):
            In the order of the model's outputs.
        max_tokens (`int` or `None`):
            Tokens that the model reads.
        as_base (`Callable` or `None`):
            Gives a context with the base model in it, where that can answer.
        options (`dict`, *optional*):
            Options of the task.
        no_base (`str`, *optional*):
            Why the base model cannot answer.
    """

    model: Any
    processor: Any
    class_names: list[str]
    max_tokens: int | None
    as_base: Callable[[], AbstractContextManager[Any]] | None
    options: dict[str, Any] = field(default_factory=dict)
    no_base: str = "The base model cannot be reached or has no output for this task, so it is not compared here."


def load(
    settings: Settings, model: str, auto_class: str, base: str | None = None, processor: str = "AutoTokenizer"
) -> Loaded:
    """
    Loads the model.

    Args:
        settings (`Settings`):
            What demo.json says.
        model (`str`):
            Hub id or folder.
        auto_class (`str`):
            Name of the auto class in transformers.
        base (`str`, *optional*):
            Hub id or folder of an adapter's base; as the adapter names it without it.
        processor (`str`, *optional*, defaults to `"AutoTokenizer"`):
            Name of the auto class of what prepares its inputs.

    Returns:
        `Loaded`: The model.

    Raises:
        DemoError: If it cannot be reached, or is made for other classes.
    """
    try:
        if Path(model).is_absolute() and not Path(model).is_dir():
            raise OSError("there is no such folder.")
        if auto_class == EMBEDDER:
            loaded = _load_embedder(settings, model)
            loaded.options = settings.options
            return loaded
        adapted = find_adapter_config_file(model) is not None
        way = partial(_load_adapter, base=base) if adapted else _load_whole
        loaded = way(settings, model, auto_class, getattr(transformers, processor))
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DemoError(
            f"The model {model!r} cannot be loaded: {reason}\n"
            "Make one with `hf-transfer-plugin quickstart --output_dir RUN` or `hf-transfer-plugin train`, "
            "then start `python app.py --model RUN`, or set MODEL to a model on the Hub."
        ) from error
    loaded.options = settings.options
    read = loaded.options.get("max_length") if settings.task in AS_TRAINED else None
    loaded.max_tokens = min(read, loaded.max_tokens or read) if read else loaded.max_tokens
    if loaded.options.get("source_language") and hasattr(loaded.processor, "src_lang"):
        loaded.processor.src_lang = loaded.options["source_language"]
    _check(settings, model, loaded)
    return loaded


def _check(settings: Settings, model: str, loaded: Loaded) -> None:
    """Raises `DemoError` where the model cannot answer what the page asks."""
    config, outputs = loaded.model.config, max(len(settings.class_names), 1)
    kind = settings.problem_type
    if (
        settings.task != NAMED
        and (kind or settings.class_names)
        and (config.num_labels != outputs or (kind and (config.problem_type or kind) != kind))
    ):
        raise DemoError(
            f"The model {model!r} has {config.num_labels} outputs for {config.problem_type or settings.task}, but "
            f"this demo was written for {outputs} and {kind or settings.task}. "
            "Start one for it with `hf-transfer-plugin demo RUN`."
        )
    processor = loaded.processor
    if settings.task in WITH_OFFSETS and not processor.is_fast:
        raise DemoError(
            f"The demo of {settings.task} must know where in the text a token lies, but the tokenizer of {model!r} "
            "has no fast version. Save the model with a fast tokenizer."
        )
    if settings.task == "fill-mask" and processor.mask_token is None:
        raise DemoError(f"The tokenizer of {model!r} has no mask token. Start the demo with a model that fills masks.")
    if settings.form == "messages" and not processor.chat_template:
        raise DemoError(
            f"The tokenizer of {model!r} has no chat template. Save the model with the tokenizer that it was trained "
            "with."
        )


def _auto(name: str, config: Any) -> Any:
    """Prompted models that only decode do the work of those that also encode."""
    if name == "AutoModelForSeq2SeqLM" and not config.is_encoder_decoder:
        name = "AutoModelForCausalLM"
    # Of models that hear, some give a character for each moment instead of writing.
    if name == "AutoModelForSpeechSeq2Seq" and type(config) not in getattr(transformers, name)._model_mapping:
        name = "AutoModelForCTC"
    # Two towers of any models have no auto class of their own.
    if name == "AutoModelForZeroShotImageClassification" and config.model_type == "vision-text-dual-encoder":
        name = "AutoModel"
    return getattr(transformers, name)


def _load_whole(settings: Settings, model: str, name: str, processors: Any) -> Loaded:
    auto = _auto(name, transformers.AutoConfig.from_pretrained(model))
    trained = _ready(auto.from_pretrained(model))
    processor = processors.from_pretrained(model)
    base = _load_base(settings, auto)
    as_base = None if base is None else lambda: nullcontext(base)
    named = list(trained.config.id2label.values())
    generic = all(str(name).startswith("LABEL_") for name in named)
    return Loaded(trained, processor, settings.class_names if generic else named, _limit(processor, trained), as_base)


def _load_embedder(settings: Settings, model: str) -> Loaded:
    """An embedding model, and its base, where that is one too."""
    make = getattr(import_module("sentence_transformers"), EMBEDDER)
    trained = _ready(make(model, device="cpu"))
    as_base = None
    try:
        # Of a body without modules of its own the library would make one that nobody has trained.
        if settings.base_model is not None and cached_file(settings.base_model, "modules.json"):
            base = _ready(make(settings.base_model, device="cpu"))
            as_base = partial(nullcontext, base)
    except (OSError, ValueError):
        as_base = None
    said = "The base model cannot be reached or gives no vectors of texts, so it is not compared here."
    return Loaded(trained, trained.tokenizer, [], trained.max_seq_length, as_base, no_base=said)


def _load_adapter(settings: Settings, model: str, name: str, processors: Any, base: str | None) -> Loaded:
    base_id = adapter.base_of(model, base, settings.base_model)
    revision = adapter.revision_of(model, base_id)
    config = transformers.AutoConfig.from_pretrained(base_id, revision=revision)
    auto, own = _auto(name, config), list(config.id2label.values())
    config.problem_type = settings.problem_type or None
    if settings.class_names:
        config.id2label = dict(enumerate(settings.class_names))
        config.label2id = {name: number for number, name in enumerate(settings.class_names)}
    elif settings.problem_type:
        config.num_labels = 1
    config.update(_sizes(settings))
    weights = adapter.weights_of(model)
    precision = adapter.precision_here(settings.adapter.get("base_precision"), weights)
    frozen, info = auto.from_pretrained(
        base_id,
        revision=revision,
        config=config,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **precision,
    )
    try:
        processor = processors.from_pretrained(model)
    except (OSError, ValueError):
        processor = processors.from_pretrained(base_id, revision=revision)
    trained = _ready(adapter.put_on(frozen, model, weights, info, processor))
    limit = _limit(processor, trained)
    limit = limit - adapter.learned_tokens(trained) if limit else limit
    loaded = Loaded(trained, processor, settings.class_names, limit, None, no_base=adapter.NO_HEAD)
    if adapter.changes_base(trained):
        loaded.no_base = adapter.CHANGED
    elif adapter.keeps_head(trained):
        loaded.no_base = adapter.KEPT
    elif _answers(own, info, settings):
        loaded.as_base = partial(adapter.switched_off, trained)
    return loaded


def _sizes(settings: Settings) -> dict[str, int]:
    """Of the output layer that a model of letters got for those of its texts."""
    return {name: settings.options[name] for name in ("vocab_size", "pad_token_id") if name in settings.options}


def _load_base(settings: Settings, auto: Any) -> Any:
    if settings.base_model is None:
        return None
    try:
        config = transformers.AutoConfig.from_pretrained(settings.base_model)
        head = auto.__name__.removeprefix("AutoModel")
        if not any(name.endswith((head, *OTHER_HEADS.get(head, ()))) for name in config.architectures or ()):
            return None
        base, info = auto.from_pretrained(settings.base_model, output_loading_info=True)
    except (OSError, ValueError):
        return None
    return _ready(base) if _answers(list(base.config.id2label.values()), info, settings) else None


def _answers(own: list[str], info: dict[str, Any], settings: Settings) -> bool:
    """Whether a checkpoint brought its own output layer, for these classes."""
    if info["missing_keys"] or info["mismatched_keys"]:
        return False
    if settings.task == NAMED:
        return True
    if not settings.class_names:
        return len(own) == 1 or not settings.problem_type
    return [str(name).casefold() for name in own] == [name.casefold() for name in settings.class_names]


def _ready(model: Any) -> Any:
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _limit(processor: Any, model: Any) -> int | None:
    positions = getattr(model.config, "max_position_embeddings", None) or math.inf
    if model.config.model_type in {"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"}:
        positions -= 2  # positions are counted from after the padding index
    limit = min(getattr(getattr(processor, "tokenizer", processor), "model_max_length", math.inf), positions)
    return int(limit) if limit < 1_000_000 else None
