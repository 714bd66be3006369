"""Adapters of prompts: which models can have them, and what they take away from the text."""

import inspect
from typing import Any

from peft import PeftConfig, TaskType
from torch import nn

from hf_transfer_plugin.adapters.methods import kind_of
from hf_transfer_plugin.layers import input_embeddings
from hf_transfer_plugin.layers.probe import dummy_inputs, untouched

_BEFORE_TEXT = (TaskType.SEQ_CLS, TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM)
_AS_KEYS = (*_BEFORE_TEXT, TaskType.TOKEN_CLS, TaskType.QUESTION_ANS)


def check_prompts(model: nn.Module, config: PeftConfig) -> None:
    """
    Args:
        model (`nn.Module`):
            The model, without adapters.
        config (`PeftConfig`):
            Prefix tuning (learned keys and values), prompt tuning or p-tuning (learned tokens).

    Raises:
        ValueError: If the model reads no text, its task's answers would be counted from the wrong place, or it takes
            no keys and values.
    """
    kind, name = kind_of(config), type(model).__name__
    prefix = kind == "PREFIX_TUNING"
    if getattr(model, "main_input_name", "input_ids") != "input_ids" or config.task_type is None:
        raise ValueError(
            f"{kind} puts learned tokens before a text, for classes or to write on, which {name} does not do. Use "
            "`lora` or `ia3`."
        )
    if TaskType(config.task_type) not in (_AS_KEYS if prefix else _BEFORE_TEXT):
        raise ValueError(
            f"{kind} would move every token of {name} to another place than its labels name. Use `prefix`, `lora` or "
            "`ia3`."
        )
    # Such heads read the last token, and by embeddings alone cannot tell which are padding.
    if not prefix and config.task_type == TaskType.SEQ_CLS and hasattr(model, "score"):
        raise ValueError(f"{kind} would let the classifier of {name} read the padding. Use `prefix` or `lora`.")
    table = input_embeddings(model)
    if config.token_dim is None and isinstance(table, nn.Embedding) and not prefix:
        config.token_dim = table.embedding_dim
    takes = inspect.signature(getattr(model, "base_model", model).forward).parameters
    wanted = "past_key_values" if prefix else "inputs_embeds"
    if wanted not in takes:
        raise ValueError(f"{kind} needs a model that takes `{wanted}`, which {name} does not. Use `lora` or `ia3`.")


def check_answers(model: Any) -> None:
    """
    Args:
        model (`PeftModel`):
            A model with prompts.

    Raises:
        ValueError: If it cannot answer dummy inputs.
    """
    base = model.get_base_model()
    if any(parameter.is_meta for parameter in base.parameters()):
        return
    failed: Exception | None = None
    for inputs in dummy_inputs(base):
        try:
            with untouched(model):
                model(**inputs)
            return
        except Exception as error:  # noqa: BLE001  whatever PEFT or the model cannot do together
            failed = error
    if failed is not None:
        kind, reason = (
            kind_of(model.active_peft_config),
            (str(failed).strip().splitlines() or [type(failed).__name__])[0],
        )
        raise ValueError(f"{kind} does not go with {type(base).__name__} ({reason}). Use `lora` or `ia3`.") from failed


def virtual_tokens(model: Any) -> int:
    """
    Args:
        model (`nn.Module`):
            A model, perhaps with an adapter.

    Returns:
        `int`: Places that learned prompts take before the text.
    """
    configs = getattr(model, "peft_config", None) or {}
    active = [configs[name] for name in getattr(model, "active_adapters", ()) if name in configs] if configs else []
    return sum(config.num_virtual_tokens for config in active if config.is_prompt_learning)
