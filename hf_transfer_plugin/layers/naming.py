"""Names of parameters as the model itself has them, whatever it is wrapped in."""

from torch import nn

_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


def unwrapped_name(name: str) -> str:
    """
    Args:
        name (`str`):
            Name of a parameter or module inside a wrapper.

    Returns:
        `str`: Its name in the model itself.
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def unwrapped_model(model: nn.Module) -> nn.Module:
    """
    Args:
        model (`nn.Module`):
            A model, perhaps wrapped.

    Returns:
        `nn.Module`: The model itself.
    """
    inside = (model._modules.get(wrapper.rstrip(".")) for wrapper in _WRAPPERS)
    inner = next((module for module in inside if module is not None), None)
    return model if inner is None else unwrapped_model(inner)


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """
    `model.named_parameters()` without the names that FSDP, `torch.compile` and checkpoint wrappers put in between.

    Args:
        model (`nn.Module`):
            A model, perhaps wrapped.

    Returns:
        `dict[str, nn.Parameter]`: The parameters in the model's order.
    """
    return {unwrapped_name(name): parameter for name, parameter in model.named_parameters()}


def is_flattened(model: nn.Module) -> bool:
    """
    Args:
        model (`nn.Module`):
            A model, perhaps wrapped.

    Returns:
        `bool`: Whether FSDP 1 has made one parameter of those of each part that it wraps (no `use_orig_params`).
    """
    return any(name.endswith("_flat_param") for name, _ in model.named_parameters())


def beneath_adapters(model: nn.Module) -> tuple[nn.Module, str]:
    """
    Args:
        model (`nn.Module`):
            A model, perhaps with PEFT's adapters.

    Returns:
        `tuple[nn.Module, str]`: The Transformers model with the adapters inside it, and the prefix of its names in
        `model`; the model itself and `""` where PEFT has not wrapped it.
    """
    inner = getattr(model, "get_base_model", None)
    if not hasattr(model, "peft_config") or inner is None:
        return model, ""
    found = inner()
    path = next((name for name, module in model.named_modules() if module is found), "")
    return found, f"{unwrapped_name(path)}." if path else ""


def input_embeddings(model: nn.Module) -> nn.Module | None:
    """
    Args:
        model (`nn.Module`):
            A model.

    Returns:
        `nn.Module` or `None`: What the model calls its input embeddings; `None` where it names none, as Transformers
        does by an error.
    """
    try:
        found = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


def locked_parameters(model: nn.Module) -> frozenset[str]:
    """
    Args:
        model (`nn.Module`):
            A model, perhaps with PEFT's adapters.

    Returns:
        `frozenset[str]`: With adapters, the names of what PEFT, or a user over it, left frozen; else none.
    """
    if not (hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False)):
        return frozenset()
    return frozenset(name for name, parameter in parameters_by_name(model).items() if not parameter.requires_grad)
