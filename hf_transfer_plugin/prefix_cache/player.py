"""Feeds a model in training what is stored, and keeps what is not yet."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_transfer_plugin.layers.probe import untouched
from hf_transfer_plugin.prefix_cache.collating import Shelves
from hf_transfer_plugin.prefix_cache.entries import cast
from hf_transfer_plugin.prefix_cache.filling import put
from hf_transfer_plugin.prefix_cache.passage import Address, Catcher
from hf_transfer_plugin.prefix_cache.proving import recheck_tolerance, worst_distance
from hf_transfer_plugin.prefix_cache.stages import Stage

logger = logging.getLogger(__name__)


class Player:
    """
    Runs a model from its cut wherever a batch brings what is stored.

    Args:
        model (`nn.Module`):
            The model, unwrapped.
        stage (`Stage`):
            The cut and its shelf.
        shelves (`Shelves`):
            What the collators see.
        report (`dict[str, Any]`):
            Counts are added to it.
        later (`Sequence[Stage]`):
            Stages to come; what one batch shows of them is kept too.
        recheck_every (`int`):
            The first batch and, as by chance, one of so many are computed again; 0 never.
        turn_off (`Callable[[str], None]`):
            Takes a reason to go on without the cache.
    """

    def __init__(
        self,
        model: nn.Module,
        stage: Stage,
        shelves: Shelves,
        report: dict[str, Any],
        *,
        later: Sequence[Stage],
        recheck_every: int,
        turn_off: Callable[[str], None],
    ) -> None:
        self._model, self._stage, self._shelves, self._report = model, stage, shelves, report
        self._recheck_every, self._turn_off = recheck_every, turn_off
        self._kept = [stage, *(one for one in later if one.lazily)]
        addresses = dict.fromkeys(address for one in self._kept for address in one.cut.addresses)
        self._passage, self._catcher = stage.cut.passage(model, stage.shapes), Catcher(model, tuple(addresses))
        self._pending: Mapping[str, Any] | None = None
        self._busy, self._fresh, self._writes = False, True, True
        self._passage.install()

    def remove(self) -> None:
        """Takes the hands off the model. A disk that fails by now breaks no training."""
        self._passage.remove()
        self._catcher.remove()
        try:
            for store in (store for stage in self._kept for store in stage.shelf.stores):
                store.flush()
        except (OSError, ValueError) as error:
            logger.warning("Not all that the frozen layers made could be stored: %s", error)

    def before(self, batch: Mapping[str, Any], brought: Mapping[str, Any] | None) -> None:
        """
        Before the model runs: feeds it, or catches what is not stored yet.

        Args:
            batch (`Mapping[str, Any]`):
                What the model is given.
            brought (`Mapping[str, Any]`, *optional*):
                What the collator added.
        """
        if self._busy:
            return
        self._passage.release()
        self._pending = None
        if brought is None or brought["cut"] != self._shelves.current:
            self._report["misses"] += self._model.training
            return
        shelf = self._stage.shelf
        if "0" not in brought:
            self._report["misses"] += 1
            if self._writes and (self._stage.lazily or (self._stage.padded and not self._model.training)):
                self._catcher.open()
                self._pending = brought
            return
        values = {address: brought[str(i)] for i, address in enumerate(shelf.addresses)}
        fed = {a: v for part in shelf.parts for a, v in cast(part, values).items()}
        self._report["hits"] += 1
        if not self._is_due(brought["digests"][0]) or self._agrees(batch, fed, brought):
            self._passage.feed(fed)

    def _is_due(self, digest: bytes) -> bool:
        """Whether a batch is computed again: the first of a stage, then some that their rows choose as by chance."""
        first, self._fresh = self._fresh, False
        return bool(self._recheck_every) and (first or int.from_bytes(digest[:8], "big") % self._recheck_every == 0)

    def after(self, *, failed: bool = False) -> None:
        """
        After the model ran: keeps what was caught.

        Args:
            failed (`bool`, *optional*, defaults to `False`):
                Whether it returned nothing.

        Raises:
            RuntimeError: If layers were skipped, and nothing stood in for them.
        """
        if self._busy:
            return
        unfed = self._passage.running and not self._passage.was_fed
        self._passage.rest()
        if failed:
            self._catcher.close()
            return
        if unfed:
            raise RuntimeError(
                f"The frozen layers were skipped, but {self._passage.fed!r} was not called, so nothing stood in for "
                "them. Train without the prefix cache (a layer dropped at random does this: set `layerdrop` to 0)."
            )
        if self._pending is None:
            return
        values, brought, self._pending = self._catcher.close(), self._pending, None
        shelves = [one.shelf for one in self._kept if all(address in values for address in one.cut.addresses)]
        try:
            put(shelves, values, brought["spans"], brought["digests"])
        except ValueError as error:
            # What is stored is read on.
            self._writes, self._report["reason"] = False, str(error).rstrip(".")
            logger.warning("Nothing more is stored: %s", error)

    def _agrees(self, batch: Mapping[str, Any], fed: Mapping[Address, torch.Tensor], brought: Any) -> bool:
        """Whether a batch that is computed again is what is stored; else the cache is off from here on."""
        self._busy = True
        try:
            with untouched(self._model):
                values = self._catcher.run(batch, self._model)
        finally:
            self._busy = False
        self._report["rechecks"] += 1
        far = worst_distance(self._stage.shelf.parts, values, fed, brought["spans"])
        store = self._stage.shelf.stores[0]
        if far <= recheck_tolerance(self._model, self._stage.place, store.storage):
            return True
        self._turn_off(
            f"a batch that was computed again differs by {far:.1e} from what is stored in '{store.folder}' (weights, "
            "data or files were changed)"
        )
        return False
