"""The optimizer of an attached Trainer: the one that its arguments name, divided by layer."""

from typing import Any

import torch
from torch import nn
from transformers import Trainer

from hf_transfer_plugin.callbacks.freezing import fitting_groups
from hf_transfer_plugin.callbacks.resuming import refuse_other_parameters
from hf_transfer_plugin.freezing import ever_learning_names, set_trainable
from hf_transfer_plugin.layers import unwrapped_name
from hf_transfer_plugin.learning_rates import build_optimizer, groups_of, tensors_of
from hf_transfer_plugin.trainer.precision import keep_master_weights


def optimizer_factory(trainer: Trainer, attachment: Any) -> tuple[Any, dict[str, Any]]:
    """
    What Trainer calls with the live model: after `model_init` too, and before the model is wrapped.

    Args:
        trainer (`Trainer`):
            The Trainer.
        attachment (`FreezingCallback`):
            Holds schedule, rates and groups; its `made_for` is set, the layer group of each parameter group.

    Returns:
        `tuple`: For `Trainer.optimizer_cls_and_kwargs`.
    """
    typed = trainer.optimizer_cls_and_kwargs

    def make(model: nn.Module, **unused: Any) -> torch.optim.Optimizer:
        learning = make_ready(trainer, attachment, model)
        groups = attachment.groups
        # Again and not at attach alone: a trial of a search may have chosen another `optim` or rate.
        optimizer_class, arguments, given = choose_optimizer(trainer, model, attachment.learning_rates, typed)
        optimizer = build_optimizer(
            optimizer_class,
            arguments,
            model,
            groups,
            learning=learning,
            decayed={unwrapped_name(name) for name in trainer.get_decay_parameter_names(model)},
            weight_decay=trainer.args.weight_decay,
            learning_rates=attachment.learning_rates,
            given=given,
        )
        attachment.made_for = groups_of(optimizer, model, groups)
        optimizer.register_load_state_dict_pre_hook(refuse_other_parameters)
        return optimizer

    return (lambda: make), {}


def make_ready(trainer: Trainer, attachment: Any, model: nn.Module) -> frozenset[str]:
    """
    Makes a model such as the optimizer will hold it. At wrap time every parameter that will ever learn must be
    trainable, or DDP never synchronises it; and before a checkpoint is loaded it must be in 32 bits, or what was
    saved so is rounded.

    Args:
        trainer (`Trainer`):
            The Trainer.
        attachment (`FreezingCallback`):
            Holds schedule and groups, which are found anew where they do not fit.
        model (`nn.Module`):
            The model.

    Returns:
        `frozenset[str]`: Names of the parameters that will ever learn.
    """
    groups = attachment.groups = fitting_groups(attachment.groups, model)
    learning = ever_learning_names(attachment.schedule, model, groups)
    set_trainable(model, learning)
    keep_master_weights(model, learning, trainer.args)
    return learning


def choose_optimizer(
    trainer: Trainer, model: nn.Module, learning_rates: Any, typed: tuple[Any, dict[str, Any]] | None
) -> tuple[type[torch.optim.Optimizer], dict[str, Any], list[dict[str, Any]] | None]:
    """
    Args:
        trainer (`Trainer`):
            The Trainer.
        model (`nn.Module`):
            The model.
        learning_rates (`LayerwiseDecay` or `SlantedTriangular`, *optional*):
            Factors for each layer group.
        typed (`tuple`, *optional*):
            `optimizer_cls_and_kwargs` as the user gave them.

    Returns:
        `tuple`: Class, arguments and, where a Trainer makes them itself, parameter groups.

    Raises:
        ValueError: If the optimizer cannot be divided by layer.
    """
    optimizer_class, arguments = typed or Trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    wholes = {"params", "model", "optimizer_dict"}
    is_class = isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)
    if wholes & set(arguments) or not is_class or "bitsandbytes" in optimizer_class.__module__:
        what = "`optimizer_cls_and_kwargs`" if typed else f"`optim={str(trainer.args.optim)!r}`"
        raise ValueError(
            f"{what} brings parameter groups of its own, which `attach` cannot divide by "
            "layer. Use `adamw_torch_fused`, `adamw_torch`, `adafactor` or `sgd`."
        )
    if typed is None:
        optimizer_class, arguments = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    arguments = dict(arguments)
    given = arguments.pop("optimizer_dict", arguments.pop("params", None))
    source = f"`{type(trainer).__name__}.get_optimizer_cls_and_kwargs`"
    if "lr" not in arguments or "model" in arguments or not isinstance(given, list | None):
        raise ValueError(
            f"`attach` divides an optimizer by layer, which takes a class, an `lr` and at most a list of parameter "
            f"groups, but {source if typed is None else '`optimizer_cls_and_kwargs`'} gave {sorted(arguments)}."
        )
    inside = {id(parameter) for parameter in model.parameters()}
    rated = [g["lr"] for g in given or () if "lr" in g and any(id(p) in inside for p in tensors_of(g))]
    if learning_rates is not None and any(rate != arguments["lr"] for rate in rated):
        raise ValueError(
            f"Two sources give the rates of the model's layers: `learning_rates`, and {source} (in Sentence "
            "Transformers: `learning_rate_mapping`). Leave out one of them."
        )
    return optimizer_class, arguments, given
