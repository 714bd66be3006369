"""Whether rows and settings of a Trainer let the frozen layers' work be kept at all."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer

from hf_transfer_plugin.callbacks.agreement import uses_reentrant
from hf_transfer_plugin.prefix_cache.filling import row_lengths
from hf_transfer_plugin.prefix_cache.rows import row_digests, row_spans

# Rows looked at to find short and long ones, and rows of the proofs.
_LOOKED_AT, _PROBED = 64, 5


def refusal_of(trainer: Trainer, model: nn.Module, loader: Any, *, keep_dropout: bool) -> str | None:
    """
    Args:
        trainer (`Trainer`):
            The Trainer.
        model (`nn.Module`):
            Its model, unwrapped.
        loader (`DataLoader`):
            Its batches.
        keep_dropout (`bool`):
            Whether frozen layers shall drop out.

    Returns:
        `str` or `None`: Why the frozen layers' work cannot be kept, as far as that is known without a look at it.
    """
    args, config = trainer.args, getattr(model, "config", None)
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "to_dict"))] if config else []

    def set_to(*names: str) -> str | None:
        return next((name for part in parts for name in names if getattr(part, name, None)), None)

    dropped = set_to("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
    handed = set_to("output_hidden_states", "output_attentions")
    masked = set_to("apply_spec_augment") and set_to("mask_time_prob", "mask_feature_prob")
    data, dispatched = loader.dataset, trainer.accelerator.dispatch_batches and args.world_size > 1
    reasons = {
        "the data is a stream without length": isinstance(data, IterableDataset) or not hasattr(data, "__len__"),
        "`keep_dropout` lets the frozen layers drop out, so they never say the same twice": keep_dropout,
        "an embedding model is called for each text of a row, and the cache knows one call a batch": hasattr(
            trainer, "collect_features"
        ),
        "NEFTune adds noise below the frozen layers": bool(args.neftune_noise_alpha),
        "`torch_compile` makes one program of the whole model": args.torch_compile,
        "FSDP and DeepSpeed divide the frozen layers": trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled,
        "`dispatch_batches` cuts the batches of one process up for the others; set it to False": bool(dispatched),
        "several devices of one process (`DataParallel`) share no activations; use torchrun": args.n_gpu > 1,
        f"`config.{handed}` hands on what the skipped layers would make; set it to False": handed is not None,
        "reentrant checkpointing differentiates a block only if its inputs are; use `use_reentrant=False`": (
            bool(args.activation_checkpointing) and uses_reentrant(args)
        ),
        f"`config.{dropped}` leaves out layers at random; set it to 0": dropped is not None,
        "SpecAugment masks what the frozen layers see; set `config.apply_spec_augment` to False": bool(masked),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def probe_rows(dataset: Any, collate: Any) -> list[Any]:
    """
    Args:
        dataset (`Dataset`):
            The rows.
        collate (`Callable`):
            Makes a batch of rows.

    Returns:
        `list`: A few rows of different length, the shortest first.
    """
    some = list(range(min(len(dataset), _LOOKED_AT)))
    lengths: Any = row_lengths(dataset)
    if lengths is None:
        lengths = _collated_lengths(dataset, some, collate)
    if lengths is not None:
        some.sort(key=lambda i: lengths[i])
        last = len(some) - 1
        some = [some[round(i * last / (_PROBED - 1))] for i in range(_PROBED)]
    return [dataset[i] for i in dict.fromkeys(some[:_PROBED])]


def _collated_lengths(dataset: Any, some: Sequence[int], collate: Any) -> dict[int, int] | None:
    """Tokens of some rows, where a batch tells how long each is."""
    found = {}
    for i in some:
        try:
            batch = collate([dataset[i]])
        except Exception:  # noqa: BLE001  some collators want two rows and more; the proof will say so
            return None
        span = row_spans(batch).get("tokens") if isinstance(batch, Mapping) else None
        if span is None:
            return None
        found[i] = span.lengths[0]
    return found


def never_the_same(loader: Any, rows: Sequence[Any], views: int) -> str | None:
    """
    Args:
        loader (`DataLoader`):
            Batches of Trainer.
        rows (`Sequence`):
            What [`probe_rows`] found.
        views (`int`):
            Views of each row that are kept.

    Returns:
        `str` or `None`: Why a row cannot be known again.
    """

    def digests(some: Sequence[Any]) -> list[bytes]:
        return row_digests(loader.collate_fn(list(some)), with_labels=True)

    try:
        first, second = digests(rows), digests(rows)
        others = probe_rows(loader.dataset, loader.collate_fn)
        again = digests(others)
    except Exception as error:  # noqa: BLE001  so few rows may fail a collator in any way
        return f"the rows of a batch cannot be told apart ({error})"
    if len(first) != len(rows):
        return f"the collator makes {len(first)} rows of {len(rows)}"
    if first != second:
        return "the collator makes other batches of the same rows each time, as masking does"
    if again != first:
        return (
            "the rows are others each time they are read, as random augmentation makes them; keep a number of views "
            "of each with `FrozenPrefixCache(views=...)`"
            if views == 1
            else "the rows of a view are others each time they are read: what is drawn must come from `random`, "
            "`numpy.random` or torch's own generator"
        )
    return None
