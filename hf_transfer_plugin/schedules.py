"""When layer groups learn: pure functions of the training progress, so that resume needs no state of its own."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True)
class Progress:
    """
    Where training stands, read from `TrainerState` alone.

    Args:
        step (`int`):
            Optimizer steps done.
        max_steps (`int`):
            Optimizer steps of the whole run.
        epochs (`float`, *optional*, defaults to 1.0):
            Epochs of the whole run.
        history (`Sequence[Mapping]`, *optional*):
            The logs so far, oldest first, each with its `step`.
        metric (`str`, *optional*, defaults to `"eval_loss"`):
            Key in the logs that decides what is better.
        greater_is_better (`bool`, *optional*, defaults to `False`):
            Whether a larger value of it is better.
    """

    step: int
    max_steps: int
    epochs: float = 1.0
    history: Sequence[Mapping[str, Any]] = ()
    metric: str = "eval_loss"
    greater_is_better: bool = False

    @property
    def steps_per_epoch(self) -> float:
        """
        Returns:
            `float`: Optimizer steps of one epoch.
        """
        return self.max_steps / max(self.epochs, 1e-9)


class UnfreezingSchedule(Protocol):
    """`(Progress, number of groups)` -> indices of the groups that learn, 0 being nearest to the input."""

    name: ClassVar[str]

    def __call__(self, progress: Progress, groups: int) -> tuple[int, ...]: ...  # noqa: D102

    def to_dict(self) -> dict[str, Any]: ...  # noqa: D102


class _Schedule:
    name: ClassVar[str]
    needs_head: ClassVar[bool] = False
    needs_evaluation: ClassVar[bool] = False
    keeps_first: ClassVar[bool] = False

    def to_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict[str, Any]`: `{"name": ..., **fields}`.
        """
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class GradualUnfreezing(_Schedule):
    """
    Thaws one layer group after another from the head down, as in ULMFiT (https://huggingface.co/papers/1801.06146).

    With `every=None` the j-th of the n groups that ever learn, counted from the top, learns from step
    `round(j * until * max_steps / (n - 1))`.

    Args:
        every (`int` or `str`, *optional*):
            Thaw the next group after that many steps; `"epoch"` is ULMFiT's. Without it the thaws are spread evenly
            from step 0 to `until`.
        until (`float`, *optional*, defaults to 0.5):
            Share of the run after which every group learns; 0 lets all learn from the start.
        frozen (`int`, *optional*, defaults to 0):
            Groups nearest to the input that never learn; 1 keeps the embeddings, whose update alone can cost as much
            as several layers.

    Raises:
        ValueError: If a field is out of range.
    """

    name: ClassVar[str] = "gradual-unfreezing"
    every: int | str | None = None
    until: float = 0.5
    frozen: int = 0

    def __post_init__(self) -> None:
        if self.every is not None and self.every != "epoch" and not (_whole(self.every) and int(self.every) > 0):
            raise ValueError(f'`every` must be a number of steps, "epoch" or None, but got {self.every!r}.')
        if not isinstance(self.until, (int, float)) or not 0 <= self.until <= 1:
            raise ValueError(f"`until` must lie between 0 and 1, a share of the run, but got {self.until!r}.")
        _check_frozen(self.frozen)

    def __call__(self, progress: Progress, groups: int) -> tuple[int, ...]:
        """
        Args:
            progress (`Progress`):
                The moment.
            groups (`int`):
                Number of layer groups.

        Returns:
            `tuple[int, ...]`: The groups that learn.
        """
        learning = range(self.frozen, groups)
        return tuple(i for i in learning if progress.step >= self._thaw_step(groups - 1 - i, progress, len(learning)))

    def _thaw_step(self, j: int, progress: Progress, learning: int) -> int:
        if self.every is None:
            return round(j * self.until * progress.max_steps / max(learning - 1, 1))
        return round(j * (progress.steps_per_epoch if self.every == "epoch" else int(self.every)))


@dataclass(frozen=True)
class ChainThaw(_Schedule):
    """
    Trains the head, then each group alone from the input up, then all together, as in DeepMoji
    (https://huggingface.co/papers/1708.00524). The phases divide the run evenly.
    """

    name: ClassVar[str] = "chain-thaw"

    def __call__(self, progress: Progress, groups: int) -> tuple[int, ...]:
        """
        Args:
            progress (`Progress`):
                The moment.
            groups (`int`):
                Number of layer groups.

        Returns:
            `tuple[int, ...]`: The groups that learn.
        """
        phases = [(groups - 1,), *((i,) for i in range(groups - 1)), tuple(range(groups))]
        return phases[min(progress.step * len(phases) // max(progress.max_steps, 1), len(phases) - 1)]


@dataclass(frozen=True)
class LinearProbeThenFineTune(_Schedule):
    """
    Solves the output layer on frozen features, then trains everything in one continuous run, as in LP-FT
    (https://huggingface.co/papers/2202.10054). The head is solved once, at step 0, never on resume.

    Args:
        regularization (`float`, *optional*, defaults to 1e-4):
            Inverse strength `C` of the probe's L2 penalty on standardised features. Smaller makes a smaller head: one
            solved for the best probe (`None`: chosen by cross-validation) is so large that it distorts the body.
        frozen (`int`, *optional*, defaults to 0):
            Groups nearest to the input that never learn; 1 keeps the embeddings.
        rows_per_output (`int`, *optional*, defaults to 1000):
            The head is solved on at most that many rows for each of its outputs, drawn at random, always the same
            ones; `None` takes every row. So strong a penalty needs no more, and large data would wait for it.

    Raises:
        ValueError: If a field is out of range.
    """

    name: ClassVar[str] = "lp-ft"
    needs_head: ClassVar[bool] = True
    regularization: float | None = 1e-4
    frozen: int = 0
    rows_per_output: int | None = 1000

    def __post_init__(self) -> None:
        value = self.regularization
        if value is not None and (not isinstance(value, (int, float)) or not value > 0):
            raise ValueError(f"`regularization` must be positive, but got {self.regularization!r}.")
        if self.rows_per_output is not None and not (_whole(self.rows_per_output) and self.rows_per_output > 0):
            raise ValueError(f"`rows_per_output` must be a positive whole number, but got {self.rows_per_output!r}.")
        _check_frozen(self.frozen)

    def __call__(self, progress: Progress, groups: int) -> tuple[int, ...]:
        """
        Args:
            progress (`Progress`):
                The moment.
            groups (`int`):
                Number of layer groups.

        Returns:
            `tuple[int, ...]`: All groups but the frozen ones.
        """
        return tuple(range(self.frozen, groups))


@dataclass(frozen=True)
class PlateauUnfreezing(_Schedule):
    """
    Thaws the next group from the top whenever the evaluation metric has stopped improving.

    Args:
        patience (`int`, *optional*, defaults to 1):
            Evaluations without improvement before the next group is thawed.
        min_delta (`float`, *optional*, defaults to 0.0):
            Smaller changes of the metric are no improvement.

    Raises:
        ValueError: If a field is out of range.
    """

    name: ClassVar[str] = "plateau"
    needs_evaluation: ClassVar[bool] = True
    patience: int = 1
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if not _whole(self.patience) or self.patience < 1:
            raise ValueError(f"`patience` must be a whole number of at least 1, but got {self.patience!r}.")
        if not isinstance(self.min_delta, (int, float)) or self.min_delta < 0:
            raise ValueError(f"`min_delta` must not be negative, but got {self.min_delta!r}.")

    def __call__(self, progress: Progress, groups: int) -> tuple[int, ...]:
        """
        Args:
            progress (`Progress`):
                The moment.
            groups (`int`):
                Number of layer groups.

        Returns:
            `tuple[int, ...]`: The groups that learn.
        """
        learning, best, waited = 1, None, 0
        sign = 1.0 if progress.greater_is_better else -1.0
        for entry in progress.history:
            if progress.metric not in entry or entry.get("step", 0) > progress.step:
                continue
            value = sign * float(entry[progress.metric])
            if best is None or value > best + self.min_delta:
                best, waited = value, 0
                continue
            waited += 1
            if waited >= self.patience:
                learning, waited = learning + 1, 0
        return tuple(range(max(groups - learning, 0), groups))


@dataclass(frozen=True)
class LayerSampling(_Schedule):
    """
    Trains the first and last group always, and a few random ones between them in turn, as in LISA
    (https://huggingface.co/papers/2403.17919). Adapters that leave the embeddings out are all drawn from.

    Args:
        active (`int`, *optional*, defaults to 2):
            Groups between the first and the last that learn at a time.
        every (`int`, *optional*, defaults to 20):
            Steps after which others are drawn.
        draw_seed (`int`, *optional*, defaults to 0):
            Seed of the draws; all ranks and every resume draw the same.

    Raises:
        ValueError: If a field is out of range.
    """

    name: ClassVar[str] = "layer-sampling"
    keeps_first: ClassVar[bool] = True
    active: int = 2
    every: int = 20
    draw_seed: int = field(default=0)

    def __post_init__(self) -> None:
        for label in ("active", "every"):
            value = getattr(self, label)
            if not _whole(value) or value < 1:
                raise ValueError(f"`{label}` must be a whole number of at least 1, but got {value!r}.")

    def __call__(self, progress: Progress, groups: int) -> tuple[int, ...]:
        """
        Args:
            progress (`Progress`):
                The moment.
            groups (`int`):
                Number of layer groups.

        Returns:
            `tuple[int, ...]`: The groups that learn.
        """
        middle = range(1, groups - 1)
        generator = random.Random(self.draw_seed * 1_000_003 + progress.step // self.every)
        drawn = generator.sample(middle, min(self.active, len(middle)))
        return tuple(sorted({0, groups - 1, *drawn}))


def _check_frozen(frozen: object) -> None:
    if not isinstance(frozen, int) or isinstance(frozen, bool) or frozen < 0:
        raise ValueError(f"`frozen` must be a number of layer groups, but got {frozen!r}.")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


SCHEDULES: dict[str, Any] = {
    s.name: s for s in (GradualUnfreezing, ChainThaw, LinearProbeThenFineTune, PlateauUnfreezing, LayerSampling)
}
