"""In which precision the frozen weights are loaded: 16 bits, or 8 and 4 beneath adapters."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig

from hf_transfer_plugin._optional import require
from hf_transfer_plugin.adapters.methods import FROM_WEIGHTS

HALVES = {"bfloat16": (torch.bfloat16, "bf16"), "float16": (torch.float16, "fp16")}
QUANTISED = {"8bit": "bitsandbytes", "4bit": "bitsandbytes", "int8": "torchao"}


def check_base_precision(
    precision: str | None, args: Any, *, adapted: bool, adapter: Mapping[str, Any] | None = None
) -> None:
    """
    Refuses a precision of the frozen weights that this run cannot have, before anything is loaded.

    Args:
        precision (`str`, *optional*):
            `base_precision` of [`TransferConfig`].
        args (`TrainingArguments`):
            How to train, and on which device.
        adapted (`bool`):
            Whether an adapter learns above the frozen weights.
        adapter (`Mapping[str, Any]`, *optional*):
            Its name and fields, as far as they are known.

    Raises:
        ValueError: If the weights could not learn, the library is missing, or device or adapter lack the precision.
    """
    if precision is None:
        return
    if precision not in (*HALVES, *QUANTISED):
        raise ValueError(
            f"`base_precision` must be one of {', '.join((*HALVES, *QUANTISED))}, but got {precision!r}. Leave it out "
            "to load the weights as they were saved."
        )
    if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
        raise ValueError(
            f"`base_precision` {precision!r} leaves two precisions in one model, which FSDP and DeepSpeed cannot "
            "flatten together. Leave out `base_precision`, or train with DDP or one process."
        )
    if precision in HALVES:
        _check_half(precision, args)
    else:
        _check_quantised(precision, args, adapted=adapted)
        _check_method(precision, args, adapter or {})


def _check_half(precision: str, args: Any) -> None:
    flag = HALVES[precision][1]
    if precision == "float16" and args.device.type == "cpu":
        raise ValueError(
            "`base_precision` 'float16' needs a GPU, but this run is on a CPU. Use `--base_precision bfloat16 --bf16 "
            "true`."
        )
    if not getattr(args, flag):
        raise ValueError(
            f"`base_precision` {precision!r} lets 16-bit weights meet the 32-bit ones that learn, which needs the "
            f"autocast of `{flag}`, but it is off. Add `--{flag} true`."
        )


def _check_quantised(precision: str, args: Any, *, adapted: bool) -> None:
    if not adapted:
        raise ValueError(
            f"`base_precision` {precision!r} holds quantised weights, which cannot learn, and there is no adapter "
            "above them. Add `--adapter lora`, or use `--base_precision bfloat16`, where the layers that learn are "
            "kept in 32 bits."
        )
    name = QUANTISED[precision]
    try:
        library = require(name, extra="quantization")
    except ImportError as error:
        raise ValueError(f"`base_precision` {precision!r}: {error}") from error
    devices = getattr(library, "supported_torch_devices", ())
    if devices and args.device.type not in devices:
        raise ValueError(
            f"`base_precision` {precision!r} needs a device that {name} supports ({', '.join(sorted(devices))}), but "
            f"this run is on {args.device.type!r}. Use `--base_precision bfloat16 --bf16 true`."
        )


def _check_method(precision: str, args: Any, adapter: Mapping[str, Any]) -> None:
    name = adapter.get("name")
    start = str(adapter.get("init_lora_weights", "")).lower()
    if name in FROM_WEIGHTS or start.startswith(FROM_WEIGHTS):
        raise ValueError(
            f"{name or 'The adapter'!r} starts from a decomposition of the base's weights and changes them, which "
            f"quantised weights ({precision!r}) do not allow. Use `--adapter lora`, or `--base_precision bfloat16`."
        )
    if precision == "8bit" and (name == "dora" or adapter.get("use_dora")) and args.device.type != "cuda":
        raise ValueError(
            f"'dora' reads the weights back, which bitsandbytes cannot do in 8 bits on {args.device.type!r}. Use "
            "`--base_precision 4bit` or `int8`, or `--adapter lora`."
        )


def check_frozen(precision: str | None, model: nn.Module, learning: Collection[str]) -> None:
    """
    Refuses a precision of the frozen weights where none stays frozen.

    Args:
        precision (`str`, *optional*):
            `base_precision` of [`TransferConfig`].
        model (`nn.Module`):
            The model.
        learning (`Collection[str]`):
            Names of the parameters that will ever learn.

    Raises:
        ValueError: If all of them will.
    """
    if precision is not None and set(learning).issuperset(name for name, _ in model.named_parameters()):
        raise ValueError(
            f"`base_precision` {precision!r} is for weights that stay frozen, but every layer learns at some time, so "
            "it would only round what they start from. Leave it out, add `--adapter lora`, or keep layers frozen with "
            '`--strategy \'{"name": "freeze-first", "k": 4}\'`.'
        )


def loading_settings(precision: str | None, *, args: Any = None, head: Sequence[str] = ()) -> dict[str, Any]:
    """
    Args:
        precision (`str`, *optional*):
            `base_precision` of [`TransferConfig`].
        args (`TrainingArguments`, *optional*):
            Name the device, and the precision of what is not quantised: that of autocast, else 32 bits.
        head (`Sequence[str]`, *optional*):
            Names of modules that are never quantised; see [`head_names`].

    Returns:
        `dict[str, Any]`: Keyword arguments of `from_pretrained`.

    Raises:
        ImportError: If the library is not installed.
    """
    if precision is None:
        return {}
    if precision in HALVES:
        return {"dtype": HALVES[precision][0]}
    dtype = next((dtype for dtype, flag in HALVES.values() if getattr(args, flag, False)), torch.float32)
    settings: dict[str, Any] = {"dtype": dtype, "quantization_config": _quantisation(precision, dtype, list(head))}
    if args is not None:
        # Left alone, Transformers quantises on the first GPU that it sees, also with `use_cpu`.
        settings["device_map"] = {"": args.device}
    return settings


def _quantisation(precision: str, dtype: torch.dtype, head: list[str]) -> Any:
    library = require(QUANTISED[precision], extra="quantization")
    kept = head or None
    if precision == "int8":
        config = library.quantization.Int8WeightOnlyConfig()
        return TorchAoConfig(config, modules_to_not_convert=kept)
    if precision == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def head_names(model: nn.Module) -> list[str]:
    """
    The modules that learn in full above a quantised base, and so must not be quantised. Transformers itself spares the
    last layer of a head alone.

    Args:
        model (`PreTrainedModel`):
            The model, or one made of its config on the meta device.

    Returns:
        `list[str]`: Names of what stands beside the base model, and of its poolers, which many checkpoints lack; none
        where the base model is the model itself.
    """
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or not isinstance(getattr(model, prefix, None), nn.Module):
        return []
    poolers = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "pooler"]
    beside = [
        name for name, child in model.named_children() if name != prefix and any(True for _ in child.parameters())
    ]
    return beside + poolers


def keep_gradients(model: nn.Module) -> nn.Module:
    """
    Keeps 4-bit layers such that gradients pass through them. On processors with AVX512-BF16, bitsandbytes repacks a
    layer at its first forward pass in eval mode, and from then on its output has no gradient, in training too: what
    lies below learns nothing, and no error tells. Call it on the loaded model before any forward pass.

    Args:
        model (`nn.Module`):
            The model; changed in place.

    Returns:
        `nn.Module`: The same model.

    Raises:
        ValueError: If a layer was repacked before.
    """
    for path, module in model.named_modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
        if getattr(getattr(getattr(module, "weight", None), "quant_state", None), "packing_format_for_cpu", False):
            raise ValueError(f"{path!r} was repacked by bitsandbytes when the model was called. Load the model again.")
    return model


def make_ready_for_adapters(model: nn.Module) -> nn.Module:
    """
    What a base beneath adapters needs of PEFT's `prepare_model_for_kbit_training`, and no more. Everything that is not
    quantised was loaded in the precision of autocast and what learns is kept in 32 bits by [`attach`]; only 16-bit
    LayerNorms among quantised layers are turned to 32 bits, since some adapters hand them 32-bit inputs. The hook by
    which the embeddings' output needs a gradient is not put on: with it the blocks below the lowest adapter would be
    differentiated and recomputed for nothing.

    Args:
        model (`PeftModel`):
            The model with its adapter; changed in place.

    Returns:
        `PeftModel`: The same model.

    Raises:
        ValueError: If quantised weights should learn, or biases that bitsandbytes would round at every step.
    """
    if not any(is_quantised(parameter) for parameter in model.parameters()):
        return model
    for path, module in model.named_modules():
        _refuse_learning(path, module)
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            module.float()
    return model


def _refuse_learning(path: str, module: nn.Module) -> None:
    """PEFT would hand the optimizer what cannot learn, or what is rounded each time it is used."""
    copies = getattr(module, "modules_to_save", None)
    if isinstance(copies, nn.ModuleDict) and any(map(is_quantised, copies.parameters())):
        raise ValueError(
            f"{path!r} shall learn in full, but its weights are quantised. Leave it out of `also_train` and "
            "`modules_to_save`, or use `--base_precision bfloat16`."
        )
    own = dict(module.named_parameters(recurse=False))
    rounds = "weight" in own and type(own["weight"]).__module__.startswith("bitsandbytes")
    if rounds and any(parameter.requires_grad for parameter in own.values()):
        raise ValueError(
            f"The bias of {path!r} shall learn, but bitsandbytes rounds the biases of its layers to the precision "
            'of each input. Leave out `bias` and "biases" in `also_train`, or use `--base_precision bfloat16`.'
        )


def is_quantised(parameter: torch.Tensor) -> bool:
    """
    Args:
        parameter (`torch.Tensor`):
            A parameter.

    Returns:
        `bool`: Whether its entries are integers, or a library's own tensors that behave like floats.
    """
    return not parameter.is_floating_point() or type(parameter.data) is not torch.Tensor
