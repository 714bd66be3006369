"""The order of rows within an optimizer step: sorted by length, so that each micro-batch is padded to its own rows."""

import functools
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher
from torch import nn
from torch.utils.data import BatchSampler, IterableDataset, Sampler
from transformers import Trainer

from hf_transfer_plugin.layers.probe import untouched
from hf_transfer_plugin.prefix_cache.collating import SeededViews, kept_random
from hf_transfer_plugin.prefix_cache.filling import row_lengths
from hf_transfer_plugin.trainer.loss_scale import averages_over_tokens, count_targets

logger = logging.getLogger(__name__)

# Rows among which the shortest and longest are looked for, and rows of a micro-batch of the proof.
_LOOKED_AT, _PROVED = 64, 4
_ALREADY_SORTED = ("group_by_length", "batch_rebalance")
_LEAVE_OUT = "leave out `sort_micro_batches`."


class StepOrder(Sampler[int]):
    """
    A sampler that draws as another does and sorts what it drew, the longest row first, within each optimizer step.

    An epoch's last step, where it is not full, stays as it was drawn: its last micro-batch has fewer rows, and these
    weigh more in a mean over micro-batches.

    Args:
        sampler (`Sampler`):
            What draws the rows.
        lengths (`Sequence[int]`):
            Length of each row.
        window (`int`):
            Rows of an optimizer step: micro-batch × accumulation × processes.
        keep_first (`bool`, *optional*, defaults to `False`):
            Leave the first step as it was drawn too.

    Example:
    ```python
    >>> list(StepOrder([0, 1, 2, 3, 4], lengths=[5, 9, 7, 8, 6], window=4))
    [1, 3, 2, 0, 4]
    ```
    """

    def __init__(
        self, sampler: Iterable[int], lengths: Sequence[int], window: int, *, keep_first: bool = False
    ) -> None:
        self.sampler, self.lengths, self.window, self.keep_first = sampler, lengths, window, keep_first

    def __iter__(self) -> Iterator[int]:
        drawn, kept = iter(self.sampler), self.keep_first
        while rows := list(islice(drawn, self.window)):
            if len(rows) == self.window and not kept:
                rows.sort(key=lambda row: -self.lengths[row])
            kept = False
            yield from rows

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """
        Args:
            epoch (`int`):
                Number of the epoch, which decides what is drawn.
        """
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


def order_steps(trainer: Trainer, learning: Collection[str]) -> None:
    """
    Lets the training loaders that a Trainer makes from now on sort the rows of each optimizer step by length.

    Args:
        trainer (`Trainer`):
            The Trainer, with its loss as training has it.
        learning (`Collection[str]`):
            Names of the parameters that ever learn.

    Raises:
        ValueError: If the rows cannot be sorted, or the gradient of a step would not be the same.
    """
    make = trainer.get_train_dataloader
    with kept_random():
        loader = make()
    order = _order(trainer, loader)
    if trainer.args.gradient_accumulation_steps * _shards(loader)[0] == 1:
        why = "with one process and `gradient_accumulation_steps=1` a step is one batch"
    elif len(set(order.lengths)) == 1:
        why = f"all rows have {order.lengths[0]} tokens; let the collator pad them instead"
    else:
        why = None
    if why is not None:
        logger.warning("`sort_micro_batches` changes nothing here: %s.", why)
        return
    _refuse_other_gradients(trainer, learning, loader, order.lengths)

    @functools.wraps(make)
    def ordered(*args: Any, **kwargs: Any) -> Any:
        loader = make(*args, **kwargs)
        order = _order(trainer, loader)
        # As accelerate's `set_sampler` does, also for loaders that it did not prepare.
        for sampler in _batch_samplers(loader):
            sampler.sampler = order
        return loader

    trainer.get_train_dataloader = ordered


def _batch_samplers(loader: Any) -> list[Any]:
    """The loader's batch sampler and those within it, the outermost first."""
    found: list[Any] = []
    while getattr(loader, "batch_sampler", None) is not None:
        loader = loader.batch_sampler
        found.append(loader)
    return found


def _innermost(loader: Any) -> Any:
    return _batch_samplers(loader)[-1]


def _order(trainer: Trainer, loader: Any) -> StepOrder:
    dataset, strategy = loader.dataset, str(trainer.args.train_sampling_strategy)
    data = dataset.dataset if isinstance(dataset, SeededViews) else dataset
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        raise ValueError(
            "`sort_micro_batches` needs to know the length of each row ahead, but the training data is a stream "
            f"({type(data).__name__}). Load it as a dataset with a length, or {_LEAVE_OUT}"
        )
    if strategy in _ALREADY_SORTED:
        raise ValueError(
            f"`sort_micro_batches` sorts rows that are drawn at random, but `train_sampling_strategy={strategy!r}` "
            f'already brings together rows by their length. Use "random", or {_LEAVE_OUT}'
        )
    chain = _batch_samplers(loader)
    if not chain or type(chain[-1]) is not BatchSampler or isinstance(chain[-1].sampler, BatchSampler):
        kind = type(chain[-1]).__name__ if chain else type(loader).__name__
        raise ValueError(
            "`sort_micro_batches` sorts the rows of a sampler before they are cut into batches, but "
            f"`get_train_dataloader` brings batches that {kind} composes. Use a plain sampler, or {_LEAVE_OUT}"
        )
    lengths = row_lengths(data)
    if lengths is None:
        raise ValueError(
            "`sort_micro_batches` reads the length of each row from a column `input_ids` or `input_values` of a "
            f"`datasets.Dataset` without transform, or of a list of rows, but got {_described(data)}. Encode the rows "
            f"ahead with `map`, or {_LEAVE_OUT}"
        )
    shards, split = _shards(loader)
    together = chain[-1].batch_size * (1 if split else shards)
    # Where the rows do not go up in the processes, these fill their last batches with the first rows of the epoch.
    refilled = shards > 1 and not chain[-1].drop_last and len(lengths) % together > 0
    window = together * trainer.args.gradient_accumulation_steps
    return StepOrder(chain[-1].sampler, lengths, window, keep_first=refilled)


def _described(data: Any) -> str:
    columns = getattr(data, "column_names", None)
    return f"{type(data).__name__} with {', '.join(columns)}" if columns else type(data).__name__


def _shards(loader: Any) -> tuple[int, bool]:
    """Processes that share the loader's batches, and whether each batch is divided among them."""
    if isinstance(loader, DataLoaderDispatcher):
        return loader.state.num_processes, loader.split_batches
    shard = next((one for one in _batch_samplers(loader) if isinstance(one, BatchSamplerShard)), None)
    return (1, False) if shard is None else (shard.num_processes, shard.split_batches)


def _refuse_other_gradients(trainer: Trainer, learning: Collection[str], loader: Any, lengths: Sequence[int]) -> None:
    """Raises where a step's gradient depends on which of its rows share a micro-batch."""
    with kept_random():
        batch, size = _short_and_long(loader, lengths)
    reason = _batch_statistics(trainer.model, learning) or _mean_of_means(trainer, batch)
    parameter = next(trainer.model.parameters())
    if reason is None and parameter.device.type != "meta" and not trainer.is_deepspeed_enabled:
        reason = _differs(trainer, batch, size, parameter.device)
    if reason is not None:
        raise ValueError(
            "`sort_micro_batches` needs a loss that weighs every row of an optimizer step alike, whichever rows share "
            f"its micro-batch, but {reason}, or {_LEAVE_OUT}"
        )


def _short_and_long(loader: Any, lengths: Sequence[int]) -> tuple[Any, int]:
    """One batch of the shortest and longest of a few rows, in turn, for two micro-batches; and the size of these."""
    some = sorted(range(min(len(lengths), _LOOKED_AT)), key=lambda row: lengths[row])
    size = max(min(_innermost(loader).batch_size, _PROVED, len(some) // 2), 1)
    pairs = zip(some[:size], some[::-1][:size], strict=True)
    return loader.collate_fn([loader.dataset[row] for pair in pairs for row in pair]), size


def _batch_statistics(model: nn.Module, learning: Collection[str]) -> str | None:
    """What is frozen stays in eval mode, so only a BatchNorm that learns sees its batch."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
            if not own or own & set(learning):
                return f"{name!r} is a BatchNorm that learns, with the statistics of each micro-batch. Freeze it"
    return None


def _mean_of_means(trainer: Trainer, batch: Any) -> str | None:
    """Trainer counts the targets of a step only for a model, or a `compute_loss_func`, that takes the count."""
    if not isinstance(batch, Mapping) or not averages_over_tokens(batch.get("labels")):
        return None
    args, own = trainer.args, trainer.compute_loss_func is not None
    if trainer.model_accepts_loss_kwargs or own:
        if args.world_size > 1 and not args.average_tokens_across_devices:
            return (
                "each process averages over its own tokens. Set `average_tokens_across_devices=True` in the arguments"
            )
        return None
    return (
        f"the loss of {type(trainer.model).__name__} is a mean over the tokens of each micro-batch, in which those of "
        "short ones weigh more. Use `TransferTrainer`, or a model whose loss takes `num_items_in_batch`"
    )


def _differs(trainer: Trainer, batch: Any, size: int, device: torch.device) -> str | None:
    """Compares the loss of two micro-batches with that of the same rows divided otherwise, padded alike."""
    rows = 2 * size
    whole = isinstance(batch, Mapping) and all(
        hasattr(value, "__len__") and getattr(value, "shape", (len(value),))[:1] == (rows,) for value in batch.values()
    )
    if not whole:
        return "the rows of a batch cannot be told apart in what the collator makes. Use one that keeps rows apart"
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    full = all(p.dtype in (torch.float32, torch.float64) for p in trainer.model.parameters())
    # Rounding of 16 bits hides small differences.
    context, bound = (nullcontext(), 1e-5) if full else (trainer.accelerator.autocast(), 1e-2)
    mixed, sorted_ = list(range(rows)), [*range(0, rows, 2), *range(1, rows, 2)]
    try:
        with untouched(trainer.model), trainer.compute_loss_context_manager(), context:
            first, second = (_losses(trainer, inputs, (order[:size], order[size:])) for order in (mixed, sorted_))
    except Exception as error:  # Whatever a loss of the user's raises, the claim is not shown.
        return f"it could not be computed for a few rows ({type(error).__name__}: {error}). Mend it"
    for name, one, other in zip(_names(trainer), first, second, strict=True):
        # A term that is nothing yet is rounding alone.
        if not abs(one - other) <= bound * max(abs(one), abs(other), abs(first[0]) / 100):
            return (
                f"{name} of the same {rows} rows was {one:.7g} and, divided into other micro-batches, {other:.7g}. "
                "Divide a loss over tokens by `num_items_in_batch`; one that compares the rows of a batch, as "
                "contrastive ones do, has no such form: use another"
            )
    return None


def _names(trainer: Trainer) -> list[str]:
    return ["the loss", *(f"the term {type(term).__name__}" for term in getattr(trainer, "terms", ()))]


def _losses(trainer: Trainer, inputs: Mapping[str, Any], parts: Sequence[Sequence[int]]) -> list[float]:
    """Sums over micro-batches of loss and terms, with Trainer's count of the targets in all of them."""
    counted = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
    labels = inputs.get("labels") if counted else None
    count = count_targets(trainer, dict(inputs)) if isinstance(labels, torch.Tensor) else None
    terms = getattr(trainer, "terms", ())
    found = []
    for part in parts:
        batch = {
            name: value[list(part)] if isinstance(value, torch.Tensor) else [value[row] for row in part]
            for name, value in inputs.items()
        }
        loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True, num_items_in_batch=count)
        found.append([float(loss.mean()), *(float(term(trainer.model, batch, outputs)) for term in terms)])
    return [sum(values) for values in zip(*found, strict=True)]
