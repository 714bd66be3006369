"""Loads saved adapters onto a base, or says in one sentence why they do not fit it."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import GenerationConfig

from hf_transfer_plugin.adapters.merging import quantisation
from hf_transfer_plugin.adapters.notes import without_idle_notes

CONFIG, WEIGHTS, GENERATION = "adapter_config.json", "adapter_model.safetensors", "generation_config.json"
# Prompt methods keep the sizes of the base that they were trained on, so PEFT does not see that another has others.
SIZES_OF_BASE = ("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules")
# AdaLoRA cuts these, along this axis, to the rank that each module was left with.
CUT = {"lora_A": 0, "lora_B": 1, "lora_E": 0}
PREFIX = "base_model.model."
HALVES = (torch.bfloat16, torch.float16)


def is_adapter(folder: str | Path) -> bool:
    """
    Args:
        folder (`str` or `Path`):
            A folder.

    Returns:
        `bool`: Whether it holds an adapter.
    """
    return (Path(folder) / CONFIG).is_file()


def base_of(folder: str | Path) -> str:
    """
    Args:
        folder (`str` or `Path`):
            The folder of an adapter.

    Returns:
        `str`: Hub id or folder of the base that it was trained on; empty where its config does not tell.

    Raises:
        ValueError: If there is no adapter in it.
    """
    return str(_read_config(folder).get("base_model_name_or_path") or "")


def revision_of(folder: str | Path) -> str | None:
    """
    Args:
        folder (`str` or `Path`):
            The folder of an adapter.

    Returns:
        `str` or `None`: Branch, tag or commit of the base on the Hub that it was trained on, where its config names
        one.

    Raises:
        ValueError: If there is no adapter in it.
    """
    return _read_config(folder).get("revision") or None


def _read_config(folder: str | Path) -> dict[str, Any]:
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise ValueError(
            f"Expected the folder of an adapter, with {CONFIG}, but {str(folder)!r} has none. Name a folder that "
            "`save_pretrained` of an adapter or `hf-transfer-plugin train --adapter` wrote."
        )
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")).items())
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} must be the config of an adapter, but is no JSON object: {error}.") from error


def load_adapter(base: nn.Module, folder: str | Path, *, trainable: bool = False, exact: bool = False) -> PeftModel:
    """
    Loads a saved adapter onto its base.

    Before a weight is read, names and shapes in the file are compared with those that PEFT makes on this base: PEFT
    itself only warns of parameters that the file lacks, and keeps silent about those that the model does not have.

    Args:
        base (`nn.Module`):
            The model without adapter; it is wrapped, and left as it was where the adapter does not fit.
        folder (`str` or `Path`):
            The folder of the adapter. A `generation_config.json` in it becomes that of the model.
        trainable (`bool`, *optional*, defaults to `False`):
            Whether the adapter shall go on learning.
        exact (`bool`, *optional*, defaults to `False`):
            As in [`load_adapters`].

    Returns:
        `PeftModel`: The base with the adapter on.

    Raises:
        ValueError: If there is no adapter in the folder, or it is made for another base.

    Example:
    ```python
    >>> model = load_adapter(AutoModelForCausalLM.from_pretrained(base_of("my-run")), "my-run")
    ```
    """
    return load_adapters(base, {"default": folder}, trainable=trainable, exact=exact)


def load_adapters(
    base: nn.Module, folders: Mapping[str, str | Path], *, trainable: bool = False, exact: bool = False
) -> PeftModel:
    """
    Loads several saved adapters onto one base; the first is on, `model.set_adapter(name)` switches.

    Args:
        base (`nn.Module`):
            The model without adapter.
        folders (`Mapping[str, str | Path]`):
            Name of the adapter -> its folder.
        trainable (`bool`, *optional*, defaults to `False`):
            Whether the adapters shall go on learning.
        exact (`bool`, *optional*, defaults to `False`):
            Turn a base in 16 bits to 32 where an adapter holds 32-bit weights that would be rounded, as of a head:
            what learned in full gets the precision of the base from PEFT. The base's own values stay the same. A
            quantised base stays as it is.

    Returns:
        `PeftModel`: The base with the adapters.

    Raises:
        ValueError: If there is no adapter in a folder, or it is made for another base.
    """
    if not folders:
        raise ValueError("`folders` must name at least one adapter, but is empty.")
    if isinstance(base, PeftModel) or getattr(base, "peft_config", None):
        raise ValueError(
            f"`base` must be a model without adapter, but this {type(base).__name__} has one. Load the base again."
        )
    found = {name: _fitting_config(base, Path(folder)) for name, folder in folders.items()}
    configs = {name: config for name, (config, _) in found.items()}
    if trainable and any(config.is_prompt_learning for config in configs.values()):
        raise ValueError(
            "`trainable` must be False for prompt methods, whose encoder is not saved, so that nothing could go on "
            "learning. Train them anew."
        )
    _check_sharing(configs)
    first, *others = folders
    if exact and any(rounded for _, rounded in found.values()) and not quantisation(base):
        base.float()
    _take_generation(base, Path(folders[first]))
    with without_idle_notes():
        model = PeftModel.from_pretrained(base, str(folders[first]), adapter_name=first, is_trainable=trainable)
    for name in others:
        model.load_adapter(str(folders[name]), adapter_name=name, is_trainable=trainable)
    return model


def _check_sharing(configs: Mapping[str, PeftConfig]) -> None:
    """Raises `ValueError` if the adapters cannot be on one base."""
    biased = [name for name, config in configs.items() if getattr(config, "bias", "none") not in ("none", False)]
    if biased and len(configs) > 1:
        raise ValueError(
            f"{biased[0]!r} trained the base's own biases (`bias={configs[biased[0]].bias!r}`), of which a base has "
            "one set, so it cannot share it. Load it onto a base of its own."
        )
    first, *others = configs
    for name in others:
        one, other = _kind(configs[first]), _kind(configs[name])
        if one != other:
            raise ValueError(
                f"The adapters {first!r} and {name!r} cannot share a base: one is {one}, the other {other}. Load each "
                "onto a base of its own."
            )


def _kind(config: PeftConfig) -> str:
    """Method and task, which PEFT wants to be the same for all adapters of a model."""
    method, task = (str(getattr(value, "value", value)) for value in (config.peft_type, config.task_type))
    return f"{method} for {task}" if config.task_type else method


def _take_generation(base: nn.Module, folder: Path) -> None:
    if (folder / GENERATION).is_file() and getattr(base, "generation_config", None) is not None:
        base.generation_config = GenerationConfig.from_pretrained(folder)


def _fitting_config(base: nn.Module, folder: Path) -> tuple[PeftConfig, bool]:
    """The adapter's config, where its parameters are those that it would get on this base, and if any is rounded."""
    trained_on = base_of(folder)
    start = f"The adapter in {str(folder)!r} was trained on {trained_on!r} and does not fit this {type(base).__name__}"
    end = f"Load {trained_on!r}, or train an adapter for this base."
    saved = _saved_weights(folder)
    config = PeftConfig.from_pretrained(str(folder))
    try:
        wanted, known = _weights_on(base, config)
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        targets = getattr(config, "target_modules", None)
        if "not found in the base model" in str(error) or "No modules were targeted" in str(error):
            listed = targets if isinstance(targets, str) else ", ".join(sorted(targets or ()))
            raise ValueError(f"{start}: its targets ({listed}) match no module of it. {end}") from error
        raise ValueError(f"{start}: {str(error).strip().splitlines()[0]} {end}") from error
    cut = config.peft_type == "ADALORA"
    odd = _differences(_shapes(saved), _shapes(wanted), _shapes(known), cut=cut)
    if odd:
        count = f"{len(odd)} of its {len(saved)} parameters differ" if len(odd) > 1 else "one parameter differs"
        raise ValueError(f"{start}: {count}, {'first ' if len(odd) > 1 else ''}{odd[0]}. {end}")
    there = {**known, **wanted}
    rounded = any(one.dtype == "F32" and there[name].dtype in HALVES for name, one in saved.items())
    return config, rounded


@dataclass(frozen=True)
class _Saved:
    """What the header of a file tells of a weight."""

    shape: tuple[int, ...]
    dtype: str


def _saved_weights(folder: Path) -> dict[str, _Saved]:
    """Weights by name, from the header of the file alone."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise ValueError(
            f"Expected the weights of an adapter as {WEIGHTS}, but {str(folder)!r} has none. Save the adapter with "
            "`save_pretrained` again; pickles are not read."
        )
    try:
        with safe_open(file, "pt") as opened:
            found = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: _Saved(tuple(one.get_shape()), one.get_dtype()) for name, one in found.items()}
    except SafetensorError as error:
        raise ValueError(
            f"{str(file)!r} is damaged or no safetensors file: {error}. Copy or save it again."
        ) from error


def _weights_on(base: nn.Module, config: PeftConfig) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The parameters that an adapter gets on a base, and all of the base with the adapter, without their values."""
    config = copy.deepcopy(config)
    config.inference_mode = True
    for name in SIZES_OF_BASE:
        if config.is_prompt_learning and hasattr(config, name):
            setattr(config, name, None)
    if config.peft_type == "ADALORA":
        config.rank_pattern = None
    # OLoRA alone has other shapes by its start on GPT-2's layers; the others' starts need values, not shapes.
    if getattr(config, "init_lora_weights", None) not in (None, "olora"):
        config.init_lora_weights = False
    with without_idle_notes():
        model = get_peft_model(_sketch(base), config, low_cpu_mem_usage=True)
    return get_peft_model_state_dict(model, save_embedding_layers=False), model.state_dict()


def _sketch(base: nn.Module) -> nn.Module:
    """A copy of a model that holds no values."""
    empty: dict[int, Any] = {}
    for parameter in base.parameters():
        copied = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        # Quantised parameters carry what PEFT asks of them.
        copied.__dict__.update(parameter.__dict__)
        empty[id(parameter)] = copied
    empty |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in base.buffers()}
    return copy.deepcopy(base, empty)


def _shapes(weights: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def _differences(
    saved: dict[str, tuple[int, ...]],
    wanted: dict[str, tuple[int, ...]],
    known: dict[str, tuple[int, ...]],
    *,
    cut: bool,
) -> list[str]:
    """A phrase for each parameter that is not the same in the file and in the model."""
    found = []
    for name, shape in saved.items():
        there = wanted.get(name, known.get(name))
        short = f"`{name.removeprefix(PREFIX)}`"
        if there is None:
            found.append(f"{short}, of shape {shape} in the file and missing in the model")
        elif shape != there and not (cut and _same_but_rank(name, shape, there)):
            found.append(f"{short}, of shape {shape} in the file and {there} in the model")
    found += [
        f"`{name.removeprefix(PREFIX)}`, missing in the file and of shape {shape} in the model"
        for name, shape in wanted.items()
        if name not in saved
    ]
    return found


def _same_but_rank(name: str, saved: tuple[int, ...], there: tuple[int, ...]) -> bool:
    """Whether a parameter of AdaLoRA differs from the model's by nothing but a lower rank."""
    axis = next((axis for part, axis in CUT.items() if name.endswith(part)), None)
    if axis is None or len(saved) != len(there) or saved[axis] > there[axis]:
        return False
    return all(one == other for i, (one, other) in enumerate(zip(saved, there, strict=True)) if i != axis)
