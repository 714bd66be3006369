"""Puts an adapter into a model: PEFT's, with defaults found from the model, and checked first."""

from collections.abc import Iterable
from typing import Any

from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from torch import nn

from hf_transfer_plugin.adapters.building import also_trained, build_config, check_targets
from hf_transfer_plugin.adapters.methods import kind_of
from hf_transfer_plugin.adapters.notes import without_idle_notes
from hf_transfer_plugin.adapters.prompts import check_answers, check_prompts
from hf_transfer_plugin.adapters.targets import (
    block_modules,
    head_modules,
    norm_targets,
    outermost,
    shortest_names,
    targetable,
)
from hf_transfer_plugin.config import ADAPTER_NAMES, parse_adapter
from hf_transfer_plugin.layers import LayerGroups, discover_layer_groups

_TASKS = {
    "ForSequenceClassification": TaskType.SEQ_CLS,
    "ForTokenClassification": TaskType.TOKEN_CLS,
    "ForQuestionAnswering": TaskType.QUESTION_ANS,
}


def attach_adapter(
    model: nn.Module,
    adapter: Any,
    *,
    new_weights: Iterable[str] = (),
    groups: LayerGroups | None = None,
    revision: str | None = None,
) -> PeftModel:
    """
    Puts an adapter into a pretrained model with [PEFT](https://huggingface.co/docs/peft).

    Without `target_modules` it sits in every linear layer of the blocks (convolutions where there are none), of the
    upper `layers` blocks only if that is given. The head of the task, and what is new and random, learn in full and
    are saved with the adapter.

    Args:
        model (`PreTrainedModel`):
            The model; it is changed in place, and frozen but for the adapter.
        adapter (`str`, `dict` or `PeftConfig`):
            A name (`"lora"`, `"dora"`, `"ia3"` ...), or an object with the name, fields of PEFT's configuration, and
            `layers` (`int`): only the uppermost blocks; `also_train` (`list[str]`): `"norms"` and `"biases"` (LoRA) of
            these blocks, or names of modules, learn in full, too; `ratio` (`float`): LoRA+'s. `{"peft_type": ...}` as
            PEFT writes it, and PEFT's configurations, are taken with every other method that PEFT has.
        new_weights (`Iterable[str]`, *optional*):
            Names of parameters that the pretrained model did not bring.
        groups (`LayerGroups`, *optional*):
            Layer groups of the model; discovered where they are not given.
        revision (`str`, *optional*):
            Revision of the base model on the Hub, for `adapter_config.json`.

    Returns:
        `PeftModel`: The model with the adapter.

    Raises:
        ValueError: If the adapter is unknown, fits no module of the model, has a rank larger than a layer, or consists
            of prompts and the model cannot have them.

    Example:
    ```python
    >>> model = attach_adapter(model, {"name": "lora", "r": 8, "layers": 3})
    >>> attach(trainer, schedule=GradualUnfreezing())
    ```
    """
    if hasattr(model, "peft_config"):
        raise ValueError(
            "The model already has an adapter. Merge it first (`hf-transfer-plugin merge`), or train that one further."
        )
    groups = groups if groups is not None else discover_layer_groups(model)
    spec = parse_adapter(adapter, ADAPTER_NAMES)
    config = build_config(model, groups, spec)
    if config.task_type is None:
        config.task_type = task_type(model)
    config.revision = revision
    if any(parameter.is_meta for parameter in model.parameters()) and hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False  # Nothing to begin with.
    (check_prompts if config.is_prompt_learning else check_targets)(model, config)
    _add_saved(model, groups, config, spec, new_weights)
    try:
        with without_idle_notes():
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"PEFT cannot put {kind_of(config)} into {type(model).__name__}: {first} Its layers are "
            f"{targetable(model)}."
        ) from error
    if config.is_prompt_learning:
        check_answers(adapted)
    return adapted


def _add_saved(
    model: nn.Module, groups: LayerGroups, config: PeftConfig, spec: dict[str, Any], new_weights: Iterable[str]
) -> None:
    """Names what learns in full in `modules_to_save`."""
    wanted = head_modules(model, groups, new_weights)
    if not hasattr(config, "modules_to_save"):
        if wanted:
            raise ValueError(
                f"{kind_of(config)} saves nothing but itself, but the head of {type(model).__name__} "
                f"({', '.join(wanted)}) must learn, too. Use `lora` (with `trainable_token_indices` for tokens)."
            )
        return
    names = [name for name, _ in model.named_modules() if name]
    for what in also_trained(spec):
        if what == "norms":
            wanted += norm_targets(block_modules(model, groups, spec.get("layers")).items())
        elif what != "biases":
            found = [name for name in names if name == what or name.endswith(f".{what}")]
            if not found:
                raise ValueError(
                    f"`also_train` must hold 'norms', 'biases' or names of modules, but {type(model).__name__} has no "
                    f"{what!r}. Its layers are {targetable(model)}."
                )
            wanted += found
    typed = list(config.modules_to_save or ())
    config.modules_to_save = (
        list(dict.fromkeys([*typed, *shortest_names(outermost(wanted), model, dotted=False)])) or None
    )


def task_type(model: nn.Module) -> TaskType | None:
    """
    Args:
        model (`nn.Module`):
            A Transformers model.

    Returns:
        `TaskType` or `None`: What PEFT calls its task; `None`, which fits all, where the inputs are no token ids.
    """
    name = type(model).__name__
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        return None
    for end, kind in _TASKS.items():
        if name.endswith(end):
            return kind
    if getattr(model, "can_generate", lambda: False)():
        encodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        return TaskType.SEQ_2_SEQ_LM if encodes else TaskType.CAUSAL_LM
    return None
