"""Models of two towers, one for pictures and one for texts: what belongs to each, and a tower that stays still."""

import re

from torch import nn

from hf_transfer_plugin.config.names import TOWER_CHOICES
from hf_transfer_plugin.layers.groups import LayerGroups
from hf_transfer_plugin.layers.naming import beneath_adapters, parameters_by_name

PARTS = {"image": ("vision_model", "image_model"), "text": ("text_model",)}
KINDS = "CLIP, SigLIP, ALIGN, AltCLIP, ChineseCLIP, MetaCLIP 2, or a VisionTextDualEncoder of any two models"
# SigLIP keeps the projection of its texts inside the tower.
_PROJECTION = re.compile(r"^text_model\.(head|text_projection)\.|^(vision|image)_model\.visual_projection\.")


def find_towers(model: nn.Module) -> dict[str, str]:
    """
    Args:
        model (`nn.Module`):
            A model, perhaps with PEFT's adapters.

    Returns:
        `dict[str, str]`: `"image"` and `"text"` -> name of the module; empty where the model has not both.
    """
    inner, prefix = beneath_adapters(model)
    found = {
        side: f"{prefix}{name}"
        for side, names in PARTS.items()
        for name in names
        if isinstance(getattr(inner, name, None), nn.Module)
    }
    return found if len(found) == len(PARTS) else {}


def tower_parameters(model: nn.Module, tower: str) -> frozenset[str]:
    """
    Args:
        model (`nn.Module`):
            A model of two towers.
        tower (`str`):
            `"image"`, `"text"` or `"both"`.

    Returns:
        `frozenset[str]`: Names of its parameters; projections into the space of both, and the temperature, belong to
        neither.

    Raises:
        ValueError: If `tower` is none, or the model has not two.
    """
    if tower not in TOWER_CHOICES:
        raise ValueError(f"The tower must be one of {', '.join(TOWER_CHOICES)}, but got {tower!r}.")
    towers = find_towers(model)
    if not towers:
        raise ValueError(
            f"`freeze_tower` needs a model of two towers, such as {KINDS}, but {type(model).__name__} is none. Leave "
            "it out."
        )
    prefix = beneath_adapters(model)[1]
    chosen = [f"{name}." for side, name in towers.items() if tower in (side, "both")]
    return frozenset(
        name
        for name in parameters_by_name(model)
        if any(name.startswith(start) for start in chosen) and not _PROJECTION.search(name.removeprefix(prefix))
    )


def lock_tower(groups: LayerGroups, model: nn.Module, tower: str | None) -> LayerGroups:
    """
    Takes a tower out of what strategies choose from, so that the other one follows them alone.

    Args:
        groups (`LayerGroups`):
            The layer groups of a model of two towers.
        model (`nn.Module`):
            The model.
        tower (`str`, *optional*):
            `"image"`, `"text"`, or `"both"`, which leaves the projections and the temperature.

    Returns:
        `LayerGroups`: The same groups with the tower locked, where one is named.

    Raises:
        ValueError: If `tower` is none, or the model has not two.

    Example:
    ```python
    >>> groups = lock_tower(discover_layer_groups(model), model, "image")
    >>> attach(trainer, schedule=GradualUnfreezing(), groups=groups)
    ```
    """
    if tower is None:
        return groups
    return LayerGroups(
        groups,
        model,
        rule=groups.rule,
        verified=groups.verified,
        tied_head=groups.tied_head,
        locked=groups.locked | tower_parameters(model, tower),
    )
