"""In which precision rows are stored before training: training's own, or one in which that is faster here."""

import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import distributed, nn

from hf_transfer_plugin.layers.probe import untouched
from hf_transfer_plugin.prefix_cache.cuts import CannotCacheError, Cut, results
from hf_transfer_plugin.prefix_cache.entries import entries_of, joined_entries
from hf_transfer_plugin.prefix_cache.passage import Address, Catcher
from hf_transfer_plugin.prefix_cache.proving import (
    FILL_ROUNDING,
    HALF_AGREEMENT,
    ROUNDING,
    Collate,
    Place,
    Proof,
    distance,
    on_device,
    rounding,
)
from hf_transfer_plugin.prefix_cache.rows import row_spans

logger = logging.getLogger(__name__)

FILL_PRECISIONS = ("same", "bfloat16", "auto")
# Times as fast as training's precision; less is not worth its rounding.
FASTER = 1.2
_ROUNDS = 3


def check_fill_precision(name: str, *, storage: str, fill: str) -> None:
    """
    Args:
        name (`str`):
            A precision of the fill.
        storage (`str`):
            How floats are kept.
        fill (`str`):
            When rows are stored.

    Raises:
        ValueError: If there is no such precision, or storage or fill speak against it.
    """
    if name not in FILL_PRECISIONS:
        raise ValueError(f"`fill_precision` must be one of {', '.join(FILL_PRECISIONS)}, but got {name!r}.")
    if name != "same" and storage == "float32":
        raise ValueError(
            f'`fill_precision` must be "same" with `storage="float32"`, which keeps what training computes, but got '
            f"{name!r}. Keep 16 bits, or fill as training runs."
        )
    if name == "bfloat16" and fill == "first-epoch":
        raise ValueError(
            '`fill_precision` must be "same" or "auto" with `fill="first-epoch"`, which stores what training '
            'computes, but got "bfloat16". Use `fill="ahead"`.'
        )


@dataclass
class FillPrecision:
    """
    Decides in which precision the rows of a cut are stored before training.

    Args:
        wanted (`str`):
            One of `FILL_PRECISIONS`. `"auto"` is decided by the time of a batch, once a run for all of its cuts.
        speedup (`float`, *optional*):
            How many times as fast bfloat16 proved to be.
    """

    wanted: str
    speedup: float | None = None

    def settle(
        self,
        model: nn.Module,
        cut: Cut,
        proof: Proof,
        rows: Sequence[Any],
        collate: Collate,
        *,
        place: Place,
        batch_size: int,
        storage: str,
    ) -> tuple[Place, float]:
        """
        Args:
            model (`nn.Module`):
                The model; left as it was.
            cut (`Cut`):
                The cut.
            proof (`Proof`):
                What was proved of it as training runs.
            rows (`Sequence`):
                A few rows of the data.
            collate (`Callable`):
                Makes a batch of rows.
            place (`Place`):
                Where and in which precision training runs.
            batch_size (`int`):
                Rows of a training batch.
            storage (`str`):
                How floats are kept.

        Returns:
            `tuple[Place, float]`: The same with the precision of the fill, and what is stored differs by, relatively.

        Raises:
            CannotCacheError: If bfloat16 was asked for, and is off by more than its bound.
        """
        if self.wanted == "same" or place.is_half(model):
            return place, proof.error
        if self.wanted == "auto" and not self._pays(model, cut, rows, collate, place, batch_size):
            return place, proof.error
        filled = replace(place, fill="bfloat16")
        try:
            return filled, prove_fill(model, cut, proof, rows, collate, filled, storage)
        except CannotCacheError as error:
            if self.wanted != "auto":
                raise
            logger.info("The rows below %r are stored as training computes them: %s.", cut.fed, error)
            return place, proof.error

    def _pays(
        self, model: nn.Module, cut: Cut, rows: Sequence[Any], collate: Collate, place: Place, batch_size: int
    ) -> bool:
        # Each would measure another time, and then look for its rows in another store than those beside it.
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            return False
        if self.speedup is None:
            batch = on_device(collate([rows[i % len(rows)] for i in range(batch_size)]), place.device)
            self.speedup = round(measured_speedup(model, cut, batch, place), 2)
            logger.info(
                "In bfloat16 the frozen layers are %.2f times as fast; the rows are stored %s.",
                self.speedup,
                "so" if self.speedup >= FASTER else f"as training computes them, since {FASTER} would be worth it",
            )
        return self.speedup >= FASTER


def measured_speedup(model: nn.Module, cut: Cut, batch: Mapping[str, Any], place: Place) -> float:
    """
    Args:
        model (`nn.Module`):
            The model; left as it was.
        cut (`Cut`):
            The cut up to which it runs.
        batch (`Mapping[str, Any]`):
            A batch on its device.
        place (`Place`):
            Where and in which precision training runs.

    Returns:
        `float`: The time in training's precision over that in bfloat16: medians of a few runs by turns.
    """
    catcher, seconds = Catcher(model, cut.addresses), dict[str, list[float]](same=[], bfloat16=[])
    try:
        with untouched(model):
            for _ in range(1 + _ROUNDS):
                for fill, taken in seconds.items():
                    started = time.perf_counter()
                    with replace(place, fill=fill).filling():
                        values = catcher.run(batch, model)
                    for value in values.values():  # On a GPU it has only begun.
                        value.cpu()
                    taken.append(time.perf_counter() - started)
    finally:
        catcher.remove()
    # The first call of a kind is slow.
    same, other = (statistics.median(taken[1:]) for taken in seconds.values())
    return same / other


def prove_fill(
    model: nn.Module, cut: Cut, proof: Proof, rows: Sequence[Any], collate: Collate, place: Place, storage: str
) -> float:
    """
    Catches rows in the precision of the fill: what is stored of them must lie within `ROUNDING + 2**-5` of what
    training computes, as `|stored - exact| / |exact|` in Euclidean norms, and the outputs from it within 5e-2 of the
    largest, as where training itself has 16 bits.

    The bound is measured, not derived: bfloat16 rounds each product by up to 2**-9, and a prefix adds up many. Above
    the layers of MiniLM that came to 2.6e-3 to 4.7e-3 (7e-3 on random tokens), for tiny models of ten families from
    3e-5 (BERT) to 1.2e-2 (wav2vec 2.0's convolutions); 2**-5 = 3.1e-2 leaves room for deeper ones. Checks in training
    take the same bound: what is wrong by less than it is not seen.

    Args:
        model (`nn.Module`):
            The model; left as it was.
        cut (`Cut`):
            The cut.
        proof (`Proof`):
            What was proved of it as training runs.
        rows (`Sequence`):
            Rows of different length.
        collate (`Callable`):
            Makes a batch of rows.
        place (`Place`):
            Where the model runs, and in which precision rows are stored.
        storage (`str`):
            How floats are kept.

    Returns:
        `float`: What is stored differs by, relatively.

    Raises:
        CannotCacheError: If that is more than the bound.
    """
    batches = [on_device(collate([row]), place.device) for row in rows]
    whole = on_device(collate(list(rows)), place.device)
    catcher = Catcher(model, cut.addresses)
    try:
        with untouched(model):
            exact = [dict(catcher.run(batch, model)) for batch in batches]
            with place.filling():
                filled = [dict(catcher.run(batch, model)) for batch in batches]
    finally:
        catcher.remove()
    values: dict[Address, torch.Tensor] = {}
    error, spans = 0.0, row_spans(whole)
    for part in proof.parts:
        entries = entries_of(part, filled, batches)
        error = max(error, rounding(part, entries, entries_of(part, exact, batches), storage))
        joined, _ = joined_entries(part, entries, spans)
        values |= {address: value.to(place.device) for address, value in joined.items()}
    bound = ROUNDING[storage] + FILL_ROUNDING[place.fill]
    if not error <= bound:
        raise CannotCacheError(
            f"{place.fill} is off by {error:.1e} from what training computes, more than {bound:.1e}"
        )
    with untouched(model), cut.passage(model, proof.shapes).installed() as passage:
        _, live = passage.watch(whole)
        far = distance(results(live), results(passage.run(whole, values)), spans)
    if not far <= HALF_AGREEMENT:
        raise CannotCacheError(
            f"outputs from what is stored in {place.fill} differ by {far:.1e} of the largest, more than "
            f"{HALF_AGREEMENT:.1e}"
        )
    return error
