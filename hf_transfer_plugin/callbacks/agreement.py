"""Whether all processes of a run still have the same weights: checked at every thaw, and before every checkpoint."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from hf_transfer_plugin.callbacks.ranks import grouped
from hf_transfer_plugin.layers import LayerGroups, parameters_by_name

SAMPLED = 4096
ROW = 16
FLATTENED = (
    "FSDP 1 without `use_orig_params` flattens the parameters of different layers into one, so that they cannot be "
    "frozen or rated apart. Set `use_orig_params: true`, or use FSDP 2."
)
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class RankAgreement:
    """
    Compares weights between the processes, bit for bit. In a run of one process it does nothing; sharded weights
    (FSDP, tensor parallel) differ by design, so of those only the names that learn are compared.

    Args:
        model (`nn.Module`):
            The model.
        groups (`LayerGroups`):
            Its layer groups.
        device (`torch.device`, *optional*):
            The device of the collectives; that of the first parameter without it.
    """

    def __init__(self, model: nn.Module, groups: LayerGroups, device: torch.device | None = None) -> None:
        self.active = grouped() and torch.distributed.get_world_size() > 1
        self.checked_at = -1
        self._names = [group.name for group in groups]
        parameters = parameters_by_name(model)
        whole = [] if is_sharded(model) else list(groups)
        self._parameters = [[parameters[n] for n in group.parameters] for group in whole]
        self._samples: list[list[list[torch.Tensor]]] | None = None
        self._device = device or next(iter(parameters.values())).device

    def check_sample(self, learning: Iterable[str], step: int) -> None:
        """
        Compares the names that learn and up to 4,096 entries of each layer group, spread over its parameters; those
        that leave gaps in memory are left to `check_all`.

        Args:
            learning (`Iterable[str]`):
                Names of the parameters that learn.
            step (`int`):
                Steps done.

        Raises:
            RuntimeError: If the processes differ; it names the first layer group that does.
        """
        if self.active:
            self._compare([_hash(learning), *self.sample_sums()], step)

    def check_all(self, step: int) -> None:
        """
        Compares every entry of every parameter, once a step.

        Args:
            step (`int`):
                Steps done.

        Raises:
            RuntimeError: If the processes differ.
        """
        if self.active and step != self.checked_at:
            self.checked_at = step
            self._compare([0, *self.all_sums()], step)

    def sample_sums(self) -> list[int]:
        """
        Returns:
            `list[int]`: Of each group the sum of the sampled entries' bits, read as integers.
        """
        if self._samples is None:
            self._samples = [_samples(group) for group in self._parameters]
        return [sum(_sum(torch.cat(views)) for views in group) for group in self._samples]

    def all_sums(self) -> list[int]:
        """
        Returns:
            `list[int]`: The same of all entries.
        """
        return [sum(_sum(parameter.detach()) for parameter in group) for group in self._parameters]

    def _compare(self, values: list[int], step: int) -> None:
        mine = torch.tensor([_signed(value) for value in values], dtype=torch.int64, device=self._device)
        all_values = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(all_values, mine)
        differing = (torch.stack(all_values) != all_values[0]).any(0).nonzero().flatten().tolist()
        if differing:
            what = (
                "which parameters learn" if differing[0] == 0 else f"the weights of {self._names[differing[0] - 1]!r}"
            )
            raise RuntimeError(
                f"After step {step} the processes no longer agree on {what}, so the run was stopped. Do not freeze, "
                "thaw or change weights yourself on some of them, and give all the same data order and seed; resume "
                "from the last checkpoint."
            )


def is_sharded(model: nn.Module) -> bool:
    """
    Args:
        model (`nn.Module`):
            A model as it is trained.

    Returns:
        `bool`: Whether each process holds only a part of the weights (FSDP, tensor parallel, ZeRO-3).
    """
    if isinstance(model, FullyShardedDataParallel):
        return True
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())


def check_ddp(args: Any, *, sharded: bool) -> None:
    """
    Refuses what a changing schedule cannot live with under DDP.

    Args:
        args (`TrainingArguments`):
            The arguments.
        sharded (`bool`):
            Whether the processes run FSDP or DeepSpeed instead.

    Raises:
        ValueError: With the way out.
    """
    if args.ddp_static_graph:
        raise ValueError("`ddp_static_graph=True` forbids a changing schedule. Leave it out.")
    if sharded or args.parallel_mode.value != "distributed":
        return
    checkpointing = bool(args.activation_checkpointing)
    if args.ddp_find_unused_parameters is False or (checkpointing and args.ddp_find_unused_parameters is None):
        raise ValueError(
            "A changing schedule under DDP needs `ddp_find_unused_parameters=True`"
            + (": with activation checkpointing Trainer turns it off." if checkpointing else ", but it is off.")
            + " Set it in the training arguments."
        )
    if checkpointing and uses_reentrant(args):
        raise ValueError("A changing schedule under DDP needs non-reentrant checkpointing: drop `use_reentrant`.")


def uses_reentrant(args: Any) -> bool:
    """
    Args:
        args (`TrainingArguments`):
            The arguments.

    Returns:
        `bool`: Whether activation checkpointing, if it is on, is of the reentrant kind.
    """
    return bool((args.activation_checkpointing_kwargs or {}).get("use_reentrant", False))


def _samples(parameters: list[nn.Parameter]) -> list[list[torch.Tensor]]:
    """Views of rows of neighbouring entries, evenly over each parameter; one list for each dtype and width."""
    lists: dict[Any, list[torch.Tensor]] = {}
    share = max(SAMPLED // max(len(parameters), 1), 1)
    for parameter in parameters:
        flat = parameter.detach()
        # A transposed or channels-last weight lies in memory without gaps, in another order of its dimensions.
        flat = flat.permute(sorted(range(flat.ndim), key=flat.stride, reverse=True))
        flat = flat.view(-1) if flat.is_contiguous() else flat.flatten()[:0]
        width = min(ROW, share, len(flat))
        if not width:
            continue
        count = max(min(share, len(flat)) // width, 1)
        stride = max(len(flat) // count, width)
        view = flat.as_strided((count, width), (stride, 1), flat.storage_offset())
        lists.setdefault((flat.dtype, width), []).append(view)
    return list(lists.values())


def _sum(values: torch.Tensor) -> int:
    integer = _INTEGERS.get(values.element_size(), torch.int64)
    return int(values.contiguous().view(integer).sum(dtype=torch.int64))


def _hash(names: Iterable[str]) -> int:
    return int.from_bytes(hashlib.sha256("\n".join(sorted(names)).encode()).digest()[:8], "little")


def _signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63
