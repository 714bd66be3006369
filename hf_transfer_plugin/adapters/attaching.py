"""Puts an adapter into a model: PEFT's, with defaults found from the model, and checked first."""

from collections.abc import Iterable
from typing import Any

from peft import IA3Config, OFTConfig, PeftConfig, PeftModel, TaskType, VeraConfig, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as _SCALED_BEFORE,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as _SCALED,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_transfer_plugin.adapters.methods import OWN_FIELDS, Method, kind_of, method_of
from hf_transfer_plugin.adapters.notes import without_idle_notes
from hf_transfer_plugin.adapters.prompts import check_prompts
from hf_transfer_plugin.adapters.targets import (
    CONVOLUTIONS,
    block_modules,
    head_modules,
    inputs_of,
    linear_targets,
    norm_targets,
    shortest_names,
    smallest_side,
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
    spec = {} if isinstance(adapter, PeftConfig) else parse_adapter(adapter, ADAPTER_NAMES)
    config = adapter if isinstance(adapter, PeftConfig) else build_config(model, groups, spec)
    prompts = config.is_prompt_learning
    if config.task_type is None:
        config.task_type = task_type(model)
    config.revision = revision or config.revision
    if prompts:
        check_prompts(model, config)
    else:
        check_targets(model, config)
    _add_saved(model, groups, config, spec, new_weights)
    try:
        with without_idle_notes():
            return get_peft_model(model, config)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"PEFT cannot put {kind_of(config)} into {type(model).__name__}: {first} Its layers are "
            f"{targetable(model)}."
        ) from error


def build_config(model: nn.Module, groups: LayerGroups, spec: dict[str, Any]) -> PeftConfig:
    """
    Args:
        model (`nn.Module`):
            The model, without adapters.
        groups (`LayerGroups`):
            Its layer groups.
        spec (`dict[str, Any]`):
            The adapter as JSON values.

    Returns:
        `PeftConfig`: With its targets.

    Raises:
        ValueError: If a field is wrong.
    """
    method = method_of(spec)
    given = {key: value for key, value in spec.items() if key not in (*OWN_FIELDS, "peft_type")}
    settings = {**method.settings, **given}
    if method.targets == "prompt":
        if spec.get("layers") is not None:
            raise ValueError("`layers` says where an adapter sits, but prompts stand before the text. Leave it out.")
    elif settings.get("target_modules") is None:
        settings |= _found_targets(model, groups, spec, method)
    elif spec.get("layers") is not None:
        raise ValueError("`layers` and `target_modules` both say where the adapter sits. Leave one of them out.")
    settings |= _bias(spec, method)
    if method.config is not VeraConfig:  # whose rank is meant to be larger than the layers
        settings = _fitted(settings, given, model)
    try:
        return method.config(**settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{method.config.__name__} refuses {given or 'its settings'}: {error}") from error


def _bias(spec: dict[str, Any], method: Method) -> dict[str, Any]:
    if "biases" not in spec.get("also_train", ()):
        return {}
    if "bias" not in method.config.__dataclass_fields__:
        raise ValueError(
            f"`also_train` cannot hold 'biases' with {method.config.__name__}, which saves none. Use LoRA, or 'norms'."
        )
    return {"bias": "all" if spec.get("layers") is None else "lora_only"}


def _found_targets(model: nn.Module, groups: LayerGroups, spec: dict[str, Any], method: Method) -> dict[str, Any]:
    modules = block_modules(model, groups, spec.get("layers"))
    if method.targets == "embedding":
        return {"target_modules": [_embedding_table(model)]}
    wanted = norm_targets(modules.items()) if method.targets == "norm" else linear_targets(modules)
    if not wanted:
        raise ValueError(
            f"An adapter sits in {method.targets} layers, but the blocks of {type(model).__name__} have none. Name "
            f"others in `target_modules`: {targetable(model)}."
        )
    kinds = {type(modules[name]) for name in wanted}
    if method.settings.get("init_lora_weights") == "olora" and Conv1D in kinds:
        raise ValueError(f"`olora` cannot read the transposed layers of {type(model).__name__}. Use `lora`.")
    if method.config is OFTConfig and kinds & set(CONVOLUTIONS):
        raise ValueError(
            f"`oft` over the convolutions of {type(model).__name__} does not begin as the model itself. Use `lora`."
        )
    if method.config is not IA3Config:
        return {"target_modules": shortest_names(wanted, model)}
    kind = getattr(getattr(model, "config", None), "model_type", "")
    wanted = [name for name in wanted if name.endswith(tuple(_SCALED.get(kind, [""])))]
    inner = [name for name in wanted if name.endswith(tuple(_SCALED_BEFORE.get(kind, ())))]
    return {
        "target_modules": shortest_names(wanted, model),
        "feedforward_modules": shortest_names(inner, model) if inner else [],
    }


def _embedding_table(model: nn.Module) -> str:
    try:
        table = model.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        table = None
    if not isinstance(table, nn.Embedding):
        raise ValueError(
            f"Tokens can be trained where there is a table of them, which {type(model).__name__} has not."
        )
    return next(name for name, module in model.named_modules() if module is table)


def _fitted(settings: dict[str, Any], given: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Sizes that were not typed, made no larger than the layers."""
    side = smallest_side(_matched(model, settings.get("target_modules")))
    for name in ("r", "init_r"):
        if name in settings and name not in given and side:
            settings[name] = min(settings[name], side)
    if "init_r" in settings and "target_r" not in given:
        # AdaLoRA's own ratio: ranks must be left over to be taken away.
        settings["target_r"] = max(2 * settings["init_r"] // 3, 1)
    for name in ("oft_block_size", "boft_block_size"):
        if settings.get(name) and name not in given and not {"r", "boft_block_num"} & set(given):
            widths = [width for m in _matched(model, settings["target_modules"]) if (width := inputs_of(m))]
            settings[name] = next(n for n in range(settings[name], 0, -1) if all(w % n == 0 for w in widths))
    return settings


def _matched(model: nn.Module, targets: Any) -> list[nn.Module]:
    if not targets or targets == "all-linear":
        return []
    probe = PeftConfig()
    probe.target_modules = targets if isinstance(targets, str) else set(targets)
    return [m for name, m in model.named_modules() if name and check_target_module_exists(probe, name)]


def check_targets(model: nn.Module, config: PeftConfig) -> None:
    """
    Args:
        model (`nn.Module`):
            The model, without adapters.
        config (`PeftConfig`):
            The adapter.

    Raises:
        ValueError: If its targets match nothing, naming what could be targeted, or its rank is larger than a layer.
    """
    targets = getattr(config, "target_modules", None)
    found = _matched(model, targets)
    if targets and targets != "all-linear" and not found:
        listed = targets if isinstance(targets, str) else ", ".join(sorted(targets))
        raise ValueError(
            f"`target_modules` must match modules of {type(model).__name__}, but {listed!r} match none. These could "
            f"be: {targetable(model)}. A list holds ends of names, a text a regular expression for whole names."
        )
    side, kind = smallest_side(found), kind_of(config)
    rank = getattr(config, "init_r" if kind == "ADALORA" else "r", None)
    if kind not in ("VERA", "OFT") and isinstance(rank, int) and side and rank > side:
        raise ValueError(
            f"`{'init_r' if kind == 'ADALORA' else 'r'}` must be at most {side}, the smallest side of the targeted "
            f"layers of {type(model).__name__}, but got {rank}: a larger rank adds numbers and no freedom."
        )


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
    for what in spec.get("also_train", ()):
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
    config.modules_to_save = [*typed, *shortest_names(list(dict.fromkeys(wanted)), model, dotted=False)] or None


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


def describe_adapter(model: PeftModel, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    Args:
        model (`PeftModel`):
            A model with an adapter.
        spec (`dict[str, Any]`, *optional*):
            How it was asked for.

    Returns:
        `dict[str, Any]`: What a record tells of it, as JSON values.
    """
    config = model.peft_config[model.active_adapter]
    spec = spec or {}
    told = ("r", "init_r", "target_r", "lora_alpha", "lora_dropout", "bias", "num_virtual_tokens", "oft_block_size",
            "boft_block_size", "use_dora", "use_rslora", "init_lora_weights")  # fmt: skip
    values = {name: getattr(config, name) for name in told if getattr(config, name, None) not in (None, False, "none")}
    targets = getattr(config, "target_modules", None)
    if targets:
        values["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
    if getattr(config, "modules_to_save", None):
        values["modules_to_save"] = sorted(set(config.modules_to_save) & _saved(model))
    return {
        "name": spec.get("name", kind_of(config).lower()),
        "peft_type": kind_of(config),
        **{name: spec[name] for name in OWN_FIELDS[1:] if name in spec},
        **values,
    }


def _saved(model: PeftModel) -> set[str]:
    """Which names in `modules_to_save` are there; PEFT adds names that may be in a model of the kind."""
    held = [name for name, module in model.named_modules() if hasattr(module, "modules_to_save")]
    names = {end for name in held for end in _ends(name)}
    return {
        name for c in model.peft_config.values() for name in getattr(c, "modules_to_save", ()) or () if name in names
    }


def _ends(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[-count:]) for count in range(1, len(parts) + 1)}
