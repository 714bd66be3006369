"""`FrozenPrefixCache`: the frozen layers' work is done once, and read again in every later epoch."""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_transfer_plugin.layers.hands import OwnHook
from hf_transfer_plugin.prefix_cache.ahead import store_ahead, that_fit
from hf_transfer_plugin.prefix_cache.aside import Aside
from hf_transfer_plugin.prefix_cache.collating import KEY, CachingCollator, Shelves
from hf_transfer_plugin.prefix_cache.cuts import CannotCacheError
from hf_transfer_plugin.prefix_cache.fill_precision import FillPrecision, check_fill_precision
from hf_transfer_plugin.prefix_cache.player import Player
from hf_transfer_plugin.prefix_cache.proving import Place
from hf_transfer_plugin.prefix_cache.sizes import parse_size, size_words
from hf_transfer_plugin.prefix_cache.stages import Keeping, Stage, make_stage
from hf_transfer_plugin.prefix_cache.storage import check_storage
from hf_transfer_plugin.prefix_cache.store import ActivationStore, default_root

logger = logging.getLogger(__name__)


class FrozenPrefixCache:
    """
    Keeps what the frozen layers below the lowest learning one make of each row, so that later epochs begin there.

    Before anything is used it is proved on the model at hand: that outputs and gradients from stored tensors are the
    same bit for bit, and that rows stored alone give the same outputs in any padded batch. Where they are not, or
    where it would not pay, training goes on without and `report["reason"]` says why.

    Args:
        directory (`str` or `Path`, *optional*):
            Folder of the caches; by default beside the Hugging Face cache, or where `HF_TRANSFER_PLUGIN_CACHE` says.
            One in memory (`/dev/shm/...`) holds them there.
        storage (`str`, *optional*, defaults to `"float16"`):
            How activations are kept: `"float16"`, `"bfloat16"`, `"int8"` (a scale for each vector), or `"float32"`,
            with which training at fixed padding gives bit for bit the weights of a run without the cache.
        fill (`str`, *optional*, defaults to `"ahead"`):
            `"ahead"` stores all rows before the first step, in batches sorted by length; `"first-epoch"` stores what
            the first epoch computes anyway.
        fill_precision (`str`, *optional*, defaults to `"same"`):
            Precision in which rows are stored ahead: `"same"` as training's; `"bfloat16"`, which is off by at most
            2**-5 or refused; `"auto"` for bfloat16 where one process trains in 32 bits and measures it to be at least
            1.2 times as fast. What training itself stores (rows of evaluation) is as training computes it.
        budget (`int` or `str`, *optional*):
            Bytes that it may take, or words such as `"20GB"`; without it, what the disk has free but one gibibyte.
        views (`int`, *optional*, defaults to 1):
            Views of each row that random augmentation of the dataset makes; they are drawn once and kept.
        recheck_every (`int`, *optional*, defaults to 500):
            The first batch at each cut and, as by chance, one of so many are computed again and compared; 0 never.

    Raises:
        ValueError: If an argument is out of range.

    Example:
    ```python
    >>> cache = FrozenPrefixCache()
    >>> attach(trainer, schedule=freeze_first(5), cache=cache)
    >>> trainer.train()
    >>> cache.report
    ```
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        storage: str = "float16",
        fill: str = "ahead",
        fill_precision: str = "same",
        budget: int | str | None = None,
        views: int = 1,
        recheck_every: int = 500,
    ) -> None:
        check_storage(storage)
        if fill not in ("ahead", "first-epoch"):
            raise ValueError(f'`fill` must be "ahead" or "first-epoch", but got {fill!r}.')
        check_fill_precision(fill_precision, storage=storage, fill=fill)
        for name, value, least in (("views", views, 1), ("recheck_every", recheck_every, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"`{name}` must be a whole number of at least {least}, but got {value!r}.")
        self.directory = Path(directory) if directory is not None else default_root()
        self.storage, self.fill, self.budget = storage, fill, parse_size(budget)
        self.fill_precision = fill_precision
        self._shelves = Shelves()
        self.views, self.recheck_every = views, recheck_every
        self.report: dict[str, Any] = {}
        self._end()

    def _end(self) -> None:
        self._stages: dict[frozenset[str], Stage | None] = {}
        self._stores: dict[Path, ActivationStore] = {}
        self._stage: Stage | None = None
        self._player: Player | None = None
        self._handles: list[Any] = []
        self.aside = Aside()

    def turn_off(self, reason: str) -> None:
        """
        Goes on without the cache, and says why.

        Args:
            reason (`str`):
                The reason, as the rest of a sentence.
        """
        logger.warning("The prefix cache stays off: %s.", reason)
        self.report |= {"used": False, "reason": reason}
        self.rest()

    def collator(self, collate: Any) -> CachingCollator:
        """
        Args:
            collate (`Callable`):
                A Trainer's collator.

        Returns:
            `CachingCollator`: It, with what is stored added to each batch.
        """
        return CachingCollator(collate, self._shelves)

    def begin(self, model: nn.Module, device: torch.device, precision: str = "no") -> None:
        """
        Starts a run.

        Args:
            model (`nn.Module`):
                The model, unwrapped.
            device (`torch.device`):
                Where it is.
            precision (`str`, *optional*, defaults to `"no"`):
                The mixed precision that it runs in.
        """
        self.close()
        self._model, self._place = model, Place(device, precision)
        filled = FillPrecision("same" if self.fill == "first-epoch" else self.fill_precision)
        self._keeping = Keeping(self.directory, self.storage, self.budget, filled)
        self.report = {"used": True, "reason": None, "storage": self.storage, "cuts": [], "hits": 0, "misses": 0}
        self.report |= {"bytes": 0, "fill_seconds": 0.0, "fill_speedup": None, "rows_filled": 0, "rechecks": 0}
        # To the end of the run: batches that were made ahead of a thaw still bring what the model must not see.
        self._handles = [
            model.register_forward_pre_hook(OwnHook(self._before), with_kwargs=True),
            # Of a pass that fails too: who catches the error goes on with a model that is fed nothing.
            model.register_forward_hook(OwnHook(self._after), always_call=True),
        ]

    def find(
        self, learnings: Sequence[tuple[frozenset[str], int]], rows: Sequence[Any], collate: Any, batch_size: int
    ) -> list[str]:
        """
        Finds and proves the cut of each phase.

        Args:
            learnings (`Sequence[tuple[frozenset[str], int]]`):
                Names of the parameters that learn in each phase, and its steps.
            rows (`Sequence`):
                A few rows of the data, of different length, the shortest first.
            collate (`Callable`):
                Makes a batch of rows.
            batch_size (`int`):
                Rows of a training batch.

        Returns:
            `list[str]`: Why some phases have none.
        """
        reasons = []
        for learning in (learning for learning, _ in learnings if learning not in self._stages):
            try:
                stage = make_stage(
                    self._model,
                    learning,
                    rows,
                    collate,
                    place=self._place,
                    batch_size=batch_size,
                    keeping=self._keeping,
                ).beside(self._stages.values())
            except Exception as error:  # noqa: BLE001  rows put together anew may fail a model or collator in any way
                self._stages[learning] = None
                known = isinstance(error, CannotCacheError)
                reasons.append(str(error) if known else f"a try at it failed ({type(error).__name__}: {error})")
                continue
            self._stages[learning] = stage
            self._stores |= {store.folder: store for store in stage.shelf.stores}
        self.report["fill_speedup"] = self._keeping.precision.speedup
        return list(dict.fromkeys(reasons))

    def fill_ahead(
        self,
        learnings: Sequence[tuple[frozenset[str], int]],
        dataset: Any,
        collate: Any,
        *,
        batch_size: int,
        share: tuple[int, int] = (0, 1),
        workers: int = 0,
    ) -> None:
        """
        Stores every row for the phases that are worth it and fit, in one pass.

        Args:
            learnings (`Sequence[tuple[frozenset[str], int]]`):
                Names of the parameters that learn in each phase, and its steps.
            dataset (`Dataset`):
                The rows.
            collate (`Callable`):
                Makes a batch of rows.
            batch_size (`int`):
                Rows of a training batch.
            share (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
                This process and the number of processes, which share the rows.
            workers (`int`, *optional*, defaults to 0):
                Worker processes that read rows.

        Raises:
            ValueError: If the folder cannot be written.
            CannotCacheError: If a row cannot be stored, as the storage or the disk does not hold it.
        """
        phases = [(self._stages.get(learning), steps) for learning, steps in learnings]
        chosen, reasons = that_fit(phases, dataset, self.views, self._keeping)
        for reason in reasons.values():
            logger.warning("Not cached: %s.", reason)
            self.report["reason"] = self.report["reason"] or reason
        self._stages = {
            key: None if stage is None or stage.cut.fed in reasons else stage for key, stage in self._stages.items()
        }
        shelves = [stage.shelf for stage, _ in chosen]
        # All of them now: workers of a loader that live on learn of no others.
        self._shelves.shelves += [shelf for shelf in shelves if shelf not in self._shelves.shelves]
        for store in (store for shelf in shelves for store in shelf.stores):
            store.make()
        if chosen and self.fill != "ahead" and all(stage.lazily for stage, _ in chosen):
            taken = size_words(sum(nbytes for _, nbytes in chosen))
            logger.info("Storing %s rows: about %s, in the first epoch.", f"{self.views * len(dataset):,}", taken)
            return
        started = time.perf_counter()
        self.report["rows_filled"] += store_ahead(
            self._model,
            chosen,
            dataset,
            collate,
            batch_size=batch_size,
            views=self.views,
            share=share,
            workers=workers,
        )
        self.report["fill_seconds"] += time.perf_counter() - started

    def follow(self, learning: frozenset[str]) -> None:
        """
        Begins at the cut of a phase, or at the input where it has none.

        Args:
            learning (`frozenset[str]`):
                Names of the parameters that learn from now on.
        """
        stage = self._stages.get(learning)
        if not self.report.get("used") or (stage is self._stage and stage is not None):
            return
        self.rest()
        if stage is None:
            return
        if stage.shelf not in self._shelves.shelves:
            self._shelves.shelves.append(stage.shelf)
        self._stage = stage
        self._player = Player(
            self._model,
            stage,
            self._shelves,
            self.report,
            later=self._later(learning) if self.fill == "first-epoch" else (),
            recheck_every=self.recheck_every,
            turn_off=self.turn_off,
        )
        self._shelves.current = self._shelves.shelves.index(stage.shelf)
        self.report["cuts"].append(stage.to_dict())

    def forget(self, learning: frozenset[str]) -> None:
        """
        Drops the cuts below which something changes from now on.

        Args:
            learning (`frozenset[str]`):
                Names of the parameters that learn from now on.
        """
        self._stages = {known: stage for known, stage in self._stages.items() if learning <= known}

    def _later(self, learning: frozenset[str]) -> list[Stage]:
        """The stages behind one; phases are known in their order."""
        names = list(self._stages)
        stages = [self._stages[name] for name in names[names.index(learning) + 1 :]]
        return [stage for stage in stages if stage is not None]

    def drop(self, learning: frozenset[str]) -> None:
        """
        Args:
            learning (`frozenset[str]`):
                Names of the parameters whose phase shall do without, as another process cannot have it.
        """
        self._stages[learning] = None

    def has(self, learning: frozenset[str]) -> bool:
        """Whether there is a cut below the parameters that learn (`frozenset[str]`)."""
        return self._stages.get(learning) is not None

    def knows(self, learning: frozenset[str]) -> bool:
        """Whether the cut below the parameters that learn (`frozenset[str]`) was looked for, found or not."""
        return learning in self._stages

    def rest(self) -> None:
        """The model runs from its input until `follow` is called."""
        self._shelves.current = -1
        player, self._player, self._stage = self._player, None, None
        if player is not None:
            player.remove()

    def close(self) -> None:
        """Ends a run: the model is as it was, the report is complete."""
        self.rest()
        for handle in self._handles:
            handle.remove()
        if self.report.get("misses") and not self.report["hits"] and self.report["used"] and self.report["cuts"]:
            self.report["reason"] = (
                self.report["reason"] or "no batch was read: the model is given others than the loader makes"
            )
            logger.warning("The prefix cache was of no use: %s.", self.report["reason"])
        if self._stores:
            self.report["bytes"] = sum(store.nbytes for store in self._stores.values())
        with ExitStack() as stack:
            stack.callback(self._end)
            for store in self._stores.values():
                stack.callback(store.close)

    def _before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        brought = kwargs.pop(KEY, None)
        if self._player is not None:
            self._player.before(kwargs, brought or self.aside.of_call(module, args, kwargs))
        return args, kwargs

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._player is not None:
            self._player.after(failed=output is None)
