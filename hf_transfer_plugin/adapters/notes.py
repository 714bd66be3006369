"""Warnings within PEFT that tell a user of this package nothing."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

IDLE = (
    # PEFT asks by a name that Transformers has changed.
    "`is_gradient_checkpointing` is deprecated",
    # Norms are what LN tuning is for.
    "Unsupported layer type",
    # A faster way to the same numbers.
    "Failed to load the CUDA extension",
    "Setting boft_n_butterfly_factor to 1",
    # It then sets it itself.
    "fan_in_fan_out is set to False but the target module is `Conv1D`",
)


@contextmanager
def without_idle_notes() -> Iterator[None]:
    """
    Keeps such warnings away while PEFT works.

    Yields:
        `None`
    """
    with warnings.catch_warnings():
        for start in IDLE:
            warnings.filterwarnings("ignore", message=start)
        yield
