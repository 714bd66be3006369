"""Where adapters can sit: the modules of a model, told apart by its layer groups."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_transfer_plugin.layers import LayerGroups

LINEAR = (nn.Linear, Conv1D)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
SHOWN = 12


def block_modules(model: nn.Module, groups: LayerGroups, layers: int | None = None) -> dict[str, nn.Module]:
    """
    Args:
        model (`nn.Module`):
            The model, without adapters.
        groups (`LayerGroups`):
            Its layer groups.
        layers (`int`, *optional*):
            Only that many blocks, the uppermost.

    Returns:
        `dict[str, nn.Module]`: The modules with weights of their own in the blocks, by name: not those of the
        embeddings and of the head.

    Raises:
        ValueError: If there are fewer blocks.
    """
    blocks = [group for group in groups if group.name not in ("embeddings", "head")]
    if layers is not None:
        if not isinstance(layers, int) or isinstance(layers, bool) or not 1 <= layers <= len(blocks):
            raise ValueError(
                f"`layers` must be a number of upper blocks between 1 and {len(blocks)} for {groups.model_name!r}, "
                f"but got {layers!r}."
            )
        blocks = blocks[-layers:]
    names = {name for group in blocks for name in group.parameters}
    inside = {id(parameter) for name, parameter in model.named_parameters() if name in names}

    def belongs(module: nn.Module) -> bool:
        own = dict(module.named_parameters(recurse=False))
        # A tied output layer has its bias at the end of the blocks, and its weight in the embeddings.
        return any(
            id(parameter) in inside for name, parameter in own.items() if name == "weight" or "weight" not in own
        )

    return {path: module for path, module in model.named_modules() if belongs(module)}


def linear_targets(modules: dict[str, nn.Module]) -> list[str]:
    """
    Args:
        modules (`dict[str, nn.Module]`):
            Modules by name.

    Returns:
        `list[str]`: Names of the linear layers; of the ungrouped convolutions where there is no linear layer.
    """
    linear = [name for name, module in modules.items() if isinstance(module, LINEAR)]
    return linear or [
        name for name, module in modules.items() if isinstance(module, CONVOLUTIONS) and module.groups == 1
    ]


def norm_targets(modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """
    Args:
        modules (`Iterable[tuple[str, nn.Module]]`):
            Names and modules.

    Returns:
        `list[str]`: Names of the normalisation layers with weights.
    """
    return [name for name, m in modules if "norm" in type(m).__name__.lower() and isinstance(_weight(m), nn.Parameter)]


def head_modules(model: nn.Module, groups: LayerGroups, new_weights: Iterable[str] = ()) -> list[str]:
    """
    What must learn in full beside an adapter and be saved with it: the task's head, and whatever is new and random.
    The output layer of a language model came with it and stays.

    Args:
        model (`nn.Module`):
            The model, without adapters.
        groups (`LayerGroups`):
            Its layer groups.
        new_weights (`Iterable[str]`, *optional*):
            Names of parameters that no checkpoint had.

    Returns:
        `list[str]`: Names of the outermost modules.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    writes = output is not None
    chosen = set(groups[-1].parameters) if groups.has_head and not writes else set()
    looked_up = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    parts = dict(model.named_modules())
    owners = dict.fromkeys(name.rpartition(".")[0] for name in new_weights if "." in name)
    # What holds the table of the embeddings, as a tied output layer does, is not new but for its bias, which is zero.
    new = [o for o in owners if o in parts and not any(id(p) in looked_up for p in parts[o].parameters())]
    return outermost([*_outermost(model, "", chosen), *new])


def outermost(names: Iterable[str]) -> list[str]:
    """
    Args:
        names (`Iterable[str]`):
            Names of modules.

    Returns:
        `list[str]`: Those that lie in no other of them, each once.
    """
    listed = list(dict.fromkeys(names))
    return [name for name in listed if not any(name.startswith(f"{other}.") for other in listed)]


def _outermost(module: nn.Module, path: str, names: set[str]) -> list[str]:
    """Modules all of whose parameters are among the names, and that do not lie in another such."""
    prefix = f"{path}." if path else ""
    own = [f"{prefix}{name}" for name, _ in module.named_parameters()]
    if own and path and not isinstance(module, CONTAINERS) and names.issuperset(own):
        return [path]
    return [found for name, child in module.named_children() for found in _outermost(child, f"{prefix}{name}", names)]


def shortest_names(wanted: Sequence[str], model: nn.Module, *, dotted: bool = True) -> list[str]:
    """
    The names as a reader would write them, `"query"` for the queries of all layers: PEFT takes each for the end of a
    name.

    Args:
        wanted (`Sequence[str]`):
            Whole names of modules.
        model (`nn.Module`):
            The model.
        dotted (`bool`, *optional*, defaults to `True`):
            Whether an end begins after a dot, as with `target_modules`, or anywhere, as with `modules_to_save`.

    Returns:
        `list[str]`: Ends of names that together match the wanted modules and no others.
    """
    chosen, dot = set(wanted), "." if dotted else ""
    others = [f"{dot}{name}" for name, _ in model.named_modules(remove_duplicate=False) if name not in chosen]
    return list(dict.fromkeys(_shortest(name, others, dot) for name in wanted))


def _shortest(name: str, others: Sequence[str], dot: str) -> str:
    parts = name.split(".")
    ends = (".".join(parts[-count:]) for count in range(1, len(parts)))
    return next((end for end in ends if not any(other.endswith(f"{dot}{end}") for other in others)), name)


def targetable(model: nn.Module) -> str:
    """
    Args:
        model (`nn.Module`):
            The model.

    Returns:
        `str`: What could be targeted, for a message: the last parts of the names of its layers with weights, with
        their class and how many there are.
    """
    kinds: dict[tuple[str, str], int] = {}
    for name, module in model.named_modules():
        if isinstance(module, (*LINEAR, *CONVOLUTIONS, nn.Embedding)):
            last = name.split(".")[-1]
            end = ".".join(name.split(".")[-2:]) if last.isdigit() else last
            kinds[end, type(module).__name__] = kinds.get((end, type(module).__name__), 0) + 1
    listed = [f"{end} ({count} {kind})" for (end, kind), count in kinds.items()]
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")


def smallest_side(modules: Iterable[nn.Module]) -> int:
    """
    Args:
        modules (`Iterable[nn.Module]`):
            Targeted modules.

    Returns:
        `int`: The smallest number of inputs or outputs, above which no rank is.
    """
    return min((side for module in modules for side in _sides(module)), default=0)


def inputs_of(module: nn.Module) -> int:
    """
    Args:
        module (`nn.Module`):
            A targeted module.

    Returns:
        `int`: Numbers that one of its outputs is made of; a convolution's kernel counts. 0 where that is unknown.
    """
    if isinstance(module, CONVOLUTIONS):
        return module.weight[0].numel()
    return getattr(module, "in_features", 0)


def _sides(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, CONVOLUTIONS):
        return module.in_channels, module.out_channels
    weight = _weight(module)
    return (weight.shape[0], weight.shape[-1]) if weight is not None and weight.ndim > 1 else (10**9, 10**9)


def _weight(module: nn.Module) -> Any:
    return getattr(module, "weight", None)
