"""Models that are an adapter on a base: loaded with all that answers, and switched off to compare."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from peft import PeftConfig, PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig

WEIGHTS = "adapter_model.safetensors"
PREFIXES = ("base_model.model.", "base_model.")  # of names in the file; the second one of prompt methods
# PEFT takes these starts out of the base's own weights when it loads the adapter.
CHANGING = ("pissa", "olora", "corda", "lora_ga", "loftq")
PLACED = ("TOKEN_CLS", "QUESTION_ANS")  # whose answers are places in the text
NO_HEAD = (
    "With the adapter off, the base model has no trained output layer for these answers: they would be random, so it "
    "is not asked here for comparison."
)
CHANGED = (
    "This adapter changed the base model's own weights, so with it off another model would answer; it is not asked."
)
KEPT = (
    "Without the learned prompt the output layer that was trained with it would still answer, and not that of the "
    "base model, so it is not asked here for comparison."
)


def base_of(model: str, given: str | None, known: str | None) -> str:
    """
    Args:
        model (`str`):
            Hub id or folder of the adapter.
        given (`str`, *optional*):
            The base, as the one who starts the demo names it.
        known (`str`, *optional*):
            Hub id of the base in demo.json.

    Returns:
        `str`: Hub id or folder of the base. An adapter trained from a folder of another machine names that folder.

    Raises:
        ValueError: If it is not here, and nobody knows its id.
    """
    named = given or PeftConfig.from_pretrained(model).base_model_name_or_path or ""
    if named and Path(named).expanduser().is_dir():
        return str(Path(named).expanduser())
    try:
        validate_repo_id(named)
    except HFValidationError:
        if known and not given:
            return known
        raise ValueError(f"its base {named!r} is not here. Name it with `--base FOLDER_OR_ID`.") from None
    return named


def revision_of(model: str, base: str) -> str:
    """
    Args:
        model (`str`):
            Hub id or folder of the adapter.
        base (`str`):
            Hub id or folder of the base, from [`base_of`].

    Returns:
        `str`: Branch, tag or commit of the base that the adapter was trained on; another base has others.
    """
    config = PeftConfig.from_pretrained(model)
    return (config.revision if base == config.base_model_name_or_path else None) or "main"


def weights_of(model: str) -> dict[str, str]:
    """
    Args:
        model (`str`):
            Hub id or folder of the adapter.

    Returns:
        `dict[str, str]`: Name -> data type of each of its weights, from the header of the file alone.

    Raises:
        ValueError: If there is no such file, or it is damaged.
    """
    missing = f"it has no {WEIGHTS}. Save the adapter again with `save_pretrained`; pickles (.bin) are not read."
    file = Path(model) / WEIGHTS
    if file.parent.is_dir() and not file.is_file():
        raise ValueError(missing)
    try:
        with safe_open(file if file.is_file() else hf_hub_download(model, WEIGHTS), "pt") as opened:
            return {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"its {WEIGHTS} is damaged: {error}. Copy or save it again.") from error
    except RemoteEntryNotFoundError as error:
        raise ValueError(missing) from error


def precision_here(trained_in: str | None, weights: dict[str, str]) -> dict[str, Any]:
    """
    Args:
        trained_in (`str`, *optional*):
            Precision of the frozen base in training, where that was not the checkpoint's own.
        weights (`dict[str, str]`):
            Name -> data type of the adapter's weights.

    Returns:
        `dict[str, Any]`: How to load it: in 32 bits, which hold every number of the shorter kinds, meet a head of 32
        bits without rounding it, and are the faster ones on a CPU.
    """
    return {"dtype": torch.float32} if trained_in or "F32" in weights.values() else {}


def put_on(base: Any, model: str, weights: Iterable[str], info: dict[str, Any], processor: Any) -> Any:
    """
    Args:
        base (`PreTrainedModel`):
            The base.
        model (`str`):
            Hub id or folder of the adapter.
        weights (`Iterable[str]`):
            Names of the adapter's weights.
        info (`dict[str, Any]`):
            What loading the base told.
        processor (`PreTrainedTokenizerBase`):
            The adapter's tokenizer.

    Returns:
        `PeftModel`: The base with the adapter on.

    Raises:
        ValueError: If weights that answer are neither in the base nor in the adapter, or answers would be counted from
            the wrong place.
    """
    saved = {name.removeprefix(start) for name in weights for start in PREFIXES}
    new = [name if isinstance(name, str) else name[0] for name in (*info["missing_keys"], *info["mismatched_keys"])]
    lost = sorted({name.rpartition(".")[0] for name in new if name not in saved})
    if lost:
        raise ValueError(
            f"the adapter holds no weights of {', '.join(lost)}, and its base has none that fit, so its answers would "
            f"be random. Train it again with `modules_to_save={lost}`."
        )
    if len(processor) > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(len(processor))
    if base.can_generate():
        with suppress(OSError):  # Where the adapter brings none, the base's stays.
            base.generation_config = GenerationConfig.from_pretrained(model)
    trained = PeftModel.from_pretrained(base, model)
    config = trained.active_peft_config
    if learned_tokens(trained) and config.task_type in PLACED and config.peft_type != "PREFIX_TUNING":
        raise ValueError(
            "its learned prompt moves every token to another place than the answers name. Train prefix tuning or LoRA."
        )
    return trained


def changes_base(trained: Any) -> bool:
    """
    Args:
        trained (`PeftModel`):
            A model with an adapter.

    Returns:
        `bool`: Whether the adapter changed weights of the base that switching it off does not bring back.
    """
    return str(getattr(trained.active_peft_config, "init_lora_weights", "")).lower().startswith(CHANGING)


def keeps_head(trained: Any) -> bool:
    """
    Args:
        trained (`PeftModel`):
            A model with an adapter.

    Returns:
        `bool`: Whether switching the adapter off leaves a trained output layer in the base, as with prompt methods.
    """
    modules = trained.get_base_model().modules()
    return learned_tokens(trained) > 0 and any(isinstance(module, ModulesToSaveWrapper) for module in modules)


def learned_tokens(trained: Any) -> int:
    """
    Args:
        trained (`PeftModel`):
            A model with an adapter.

    Returns:
        `int`: Places that learned prompts take away from the text.
    """
    config = trained.active_peft_config
    return config.num_virtual_tokens if config.is_prompt_learning else 0


@contextmanager
def switched_off(trained: Any) -> Iterator[Any]:
    """
    Args:
        trained (`PeftModel`):
            A model with an adapter.

    Yields:
        `PeftModel` or `PreTrainedModel`: The same, answering as its base alone.
    """
    if learned_tokens(trained):  # PEFT would write with the prompt of an encoder all the same.
        yield trained.get_base_model()
        return
    with trained.disable_adapter():
        yield trained
