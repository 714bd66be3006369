"""The prefix cache in a Trainer: when it starts, what it follows, and where it stays off."""

import functools
import logging
import math
from collections.abc import MutableMapping, Sequence
from typing import Any

from torch import nn
from transformers import Trainer

from hf_transfer_plugin.callbacks.ranks import anywhere, together
from hf_transfer_plugin.planning import phase_starts
from hf_transfer_plugin.prefix_cache import FrozenPrefixCache
from hf_transfer_plugin.prefix_cache.collating import KEY, SeededViews, kept_random
from hf_transfer_plugin.prefix_cache.cuts import CannotCacheError
from hf_transfer_plugin.schedules import LinearProbeThenFineTune
from hf_transfer_plugin.trainer.cacheable import never_the_same, probe_rows, refusal_of

logger = logging.getLogger(__name__)
_TOO_SHORT = "less than an epoch has a frozen part, so no row would be read twice"
_TOO_MANY = "fewer epochs have a frozen part than there are views, so none would be read twice"
_UNTOLD = "`dataloader_persistent_workers` keeps workers that do not know what began to be stored after them"
Phases = list[tuple[frozenset[str], int]]


class PrefixCaching:
    """
    Starts a [`FrozenPrefixCache`] with each run of an attached Trainer, and hands it the cuts of the schedule.

    Args:
        trainer (`Trainer`):
            The Trainer.
        cache (`FrozenPrefixCache`):
            The cache.
        schedule (`FreezingPolicy` or `UnfreezingSchedule`):
            Which parameters learn when.
        keep_dropout (`bool`):
            Whether frozen layers shall drop out.
    """

    def __init__(self, trainer: Trainer, cache: FrozenPrefixCache, schedule: Any, *, keep_dropout: bool) -> None:
        self.trainer, self.cache, self.schedule = trainer, cache, schedule
        self._keep_dropout = keep_dropout
        self._data: tuple[Any, Any, Sequence[Any]] | None = None
        self._phases: Phases = []
        self._bring_along("get_train_dataloader", views=cache.views)
        self._bring_along("get_test_dataloader")
        self._bring_along("get_eval_dataloader")
        self._take_aside()
        self._end_with_train()

    def _bring_along(self, name: str, *, views: int = 1) -> None:
        """Lets the loaders that a method makes bring what is stored."""
        make, trainer, cache = getattr(self.trainer, name), self.trainer, self.cache

        @functools.wraps(make)
        def loader(*args: Any, **kwargs: Any) -> Any:
            collate, data = trainer.data_collator, trainer.train_dataset
            trainer.data_collator = cache.collator(collate)
            if views > 1 and hasattr(data, "__len__"):
                trainer.train_dataset = SeededViews(data, views, trainer.args.seed)
            try:
                return make(*args, **kwargs)
            finally:
                trainer.data_collator, trainer.train_dataset = collate, data

        setattr(self.trainer, name, loader)

    def _take_aside(self) -> None:
        """Keeps what the collator added from the model, from loss terms and from a `compute_loss` of the user's."""
        prepare, trainer, cache = self.trainer._prepare_inputs, self.trainer, self.cache

        @functools.wraps(prepare)
        def prepared(inputs: Any) -> Any:
            brought = inputs.pop(KEY, None) if isinstance(inputs, MutableMapping) else None
            found = prepare(inputs)
            cache.aside.keep(trainer._prepare_input(brought), found)
            return found

        trainer._prepare_inputs = prepared

    def _end_with_train(self) -> None:
        """Takes the hands off the model when training breaks off, too."""
        train = self.trainer.train

        @functools.wraps(train)
        def trained(*args: Any, **kwargs: Any) -> Any:
            try:
                return train(*args, **kwargs)
            finally:
                self.end()

        self.trainer.train = trained

    def end(self) -> None:
        """Takes the hands off the model. A disk that fails by now breaks no training, and hides no error of it."""
        try:
            self.cache.close()
        except (OSError, ValueError) as error:
            logger.warning("Not all that the frozen layers made could be stored: %s", error)

    def begin(self, state: Any, model: nn.Module, groups: Any, loader: Any) -> None:
        """
        Finds the cuts of the phases that lie ahead, proves them, and stores what they need.

        Args:
            state (`TrainerState`):
                The state.
            model (`nn.Module`):
                The model, unwrapped.
            groups (`LayerGroups`):
                Its layer groups.
            loader (`DataLoader`):
                Trainer's.
        """
        args = self.trainer.args
        self.cache.begin(model, args.device, self.trainer.accelerator.mixed_precision)
        self._data = None
        refusal = refusal_of(self.trainer, model, loader, keep_dropout=self._keep_dropout)
        if refusal is None:
            with kept_random():
                rows = together(lambda: probe_rows(loader.dataset, loader.collate_fn))
                refusal = together(lambda: never_the_same(loader, rows, self.cache.views))
        if anywhere(refusal is not None, args.device):
            self.cache.turn_off(refusal or "another process cannot use it")
            return
        self._data = loader.dataset, loader.collate_fn, rows
        self._phases = _phases(self.schedule, state, model, groups)
        phases = _foreseen(self._phases)
        ahead = self._as_solved(state, groups, len(loader.dataset)) + phases
        reason = self._find_and_fill(ahead)
        if reason is not None and len(phases) == len(self._phases):
            self.cache.turn_off(reason)
        elif ahead[0] not in phases:
            # The head is solved on what is stored.
            self.cache.follow(ahead[0][0])

    def _as_solved(self, state: Any, groups: Any, rows: int) -> Phases:
        """LP-FT solves the head first, on every row or on a part; then everything learns."""
        schedule = self.schedule
        if not isinstance(schedule, LinearProbeThenFineTune) or state.global_step:
            return []
        labels = getattr(self.trainer.model.config, "num_labels", 1)
        if schedule.rows_per_output is not None and rows > schedule.rows_per_output * labels:
            return []
        return [(frozenset(groups.open[-1].parameters), math.ceil(rows / self._rows_a_step()))]

    def _rows_a_step(self) -> int:
        args = self.trainer.args
        return args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def _too_short(self, phases: Phases, dataset: Any) -> str | None:
        """Why no view of a row would be read more often than it is stored."""
        if sum(steps for _, steps in phases) * self._rows_a_step() >= len(dataset) * self.cache.views:
            return None
        return _TOO_SHORT if self.cache.views == 1 else _TOO_MANY

    def _drop_what_others_lack(self, phases: Phases) -> None:
        for learning in dict.fromkeys(learning for learning, _ in phases):
            if anywhere(not self.cache.has(learning), self.trainer.args.device):
                self.cache.drop(learning)

    def _find_and_fill(self, phases: Phases) -> str | None:
        """Why nothing of this is used; else it is ready."""
        args, cache = self.trainer.args, self.cache
        assert self._data is not None
        dataset, collate, rows = self._data
        if short := self._too_short(phases, dataset):
            for learning, _ in phases:
                cache.drop(learning)
            return short
        with kept_random():
            reasons = together(lambda: cache.find(phases, rows, collate, args.train_batch_size))
            self._drop_what_others_lack(phases)
            used = [(learning, steps) for learning, steps in phases if cache.has(learning)]
            if not used:
                return reasons[0] if reasons else "another process cannot use it"
            if short := self._too_short(used, dataset):
                return short
            reason = together(lambda: self._why_not_stored(used))
            if anywhere(reason is not None, args.device):
                for learning, _ in used:
                    cache.drop(learning)
                return reason or "another process cannot store its rows"
            self._drop_what_others_lack(used)
        return None if any(cache.has(learning) for learning, _ in used) else cache.report["reason"]

    def _why_not_stored(self, phases: Phases) -> str | None:
        """Stores the rows; else why they cannot be."""
        args = self.trainer.args
        assert self._data is not None
        dataset, collate, _ = self._data
        try:
            self.cache.fill_ahead(
                phases,
                dataset,
                collate,
                batch_size=args.train_batch_size,
                share=(args.process_index, args.world_size),
                workers=args.dataloader_num_workers,
            )
        except CannotCacheError as error:
            return str(error)
        return None

    def follow(self, state: Any, learning: frozenset[str]) -> None:
        """
        Begins at the cut of a phase; one that could not be foreseen is found, and filled where it pays.

        Args:
            state (`TrainerState`):
                The state.
            learning (`frozenset[str]`):
                Names of the parameters that learn from now on.
        """
        if self._data is not None:
            self.cache.forget(learning)
            # Asked together, and before one process goes on alone: it may have gone off here and not elsewhere.
            unknown = not self.cache.knows(learning)
            if unknown and not anywhere(not self.cache.report["used"], self.trainer.args.device):
                # As it is now, the model must run itself.
                self.cache.rest()
                self._find_late(learning, self._steps_of(state, learning))
        self.cache.follow(learning)

    def _find_late(self, learning: frozenset[str], steps: int) -> None:
        """What fails now ends the cache, and not the training."""
        args = self.trainer.args
        reason: str | None = _UNTOLD
        if args.dataloader_num_workers and args.dataloader_persistent_workers:
            self.cache.drop(learning)
        else:
            try:
                reason = self._find_and_fill([(learning, steps)])
            except ValueError as error:
                self.cache.drop(learning)
                reason = str(error).rstrip(".")
        if reason is not None:
            logger.warning("Not cached from here on: %s.", reason)
            self.cache.report["reason"] = self.cache.report["reason"] or reason

    def _steps_of(self, state: Any, learning: frozenset[str]) -> int:
        """Steps of the phase that begins now; where it could not be foreseen, all that are left."""
        end = state.max_steps
        for phase, steps in reversed(self._phases):
            if end - steps == state.global_step and phase == learning:
                return steps
            end -= steps
        return int(state.max_steps - state.global_step)

    def begin_epoch(self, loader: Any, epoch: float) -> None:
        """
        Args:
            loader (`DataLoader`):
                Trainer's.
            epoch (`float`):
                The epoch, which decides the view of each row.
        """
        if isinstance(loader.dataset, SeededViews):
            loader.dataset.set_epoch(int(epoch))


def _phases(schedule: Any, state: Any, model: nn.Module, groups: Any) -> Phases:
    """What learns in each phase from now on, and for how many steps."""
    starts = phase_starts(schedule, state.max_steps, state.num_train_epochs, model, groups)
    ends = [step for step, _ in starts[1:]] + [state.max_steps]
    left = [(learning, end - max(step, state.global_step)) for (step, learning), end in zip(starts, ends, strict=True)]
    return [(learning, steps) for learning, steps in left if steps > 0]


def _foreseen(phases: Phases) -> Phases:
    """The phases before which nothing learns that they freeze again; what lies below the others is not known yet."""
    found: Phases = []
    learned: frozenset[str] = frozenset()
    for learning, steps in phases:
        if learned <= learning:
            found.append((learning, steps))
        learned |= learning
    return found
