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
