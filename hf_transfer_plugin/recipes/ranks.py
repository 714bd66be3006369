"""Several processes, one voice: they take turns at downloads, share their faults, and one of them tells a fault."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar, cast

from torch import distributed

Result = TypeVar("Result")
TELLER = "hf_transfer_plugin/teller"


def together(work: Callable[[], Result]) -> Result:
    """
    Does the same on every process of a launcher; where it fails on any of them, it fails on all.

    Without this the others would wait for the failed one until a collective times out, or go on without it.

    Args:
        work (`Callable`):
            What to do. It must not wait for the other processes.

    Returns:
        What `work` returns.

    Raises:
        ValueError: If it failed elsewhere; what it raised itself, if it failed here in the same way.
    """
    if not _grouped():
        return work()
    result, fault = None, None
    try:
        result = work()
    except Exception as error:
        fault = error
    _share(fault)
    return cast(Result, result)


def in_turn(work: Callable[[], Result]) -> Result:
    """
    Does it on the first process of each machine alone, then on the others, which find its downloads in the cache.

    Args:
        work (`Callable`):
            What to do. It must not wait for the other processes.

    Returns:
        What `work` returns.

    Raises:
        ValueError: As [`together`]; if it fails on the first process, the others do not begin.
    """
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    early = together(lambda: work() if first else None)
    late = together(lambda: None if first else work())
    return cast(Result, early if first else late)


def _share(fault: Exception | None) -> None:
    """Raises on every process what any of them brings; the first process tells it if it is a sentence."""
    rank = distributed.get_rank()
    found: list[tuple[bool, str] | None] = [None] * distributed.get_world_size()
    mine = None if fault is None else (isinstance(fault, ValueError), str(fault) or type(fault).__name__)
    distributed.all_gather_object(found, mine)
    failed = next((number for number, one in enumerate(found) if one is not None), None)
    if failed is None:
        return
    sentence, text = found[failed] or (False, "")
    if rank == (0 if sentence else failed):
        tells_faults()
    distributed.barrier()  # No other process asks before the one that shall tell.
    if fault is not None:
        raise fault
    raise ValueError(f"In process {failed}: {text}") from fault


def tells_faults() -> bool:
    """
    Whether this process is the one to tell a fault: the first that asks. Those that fail after it mostly fail because
    it left them.

    Returns:
        `bool`: True for one process alone. Where the launcher keeps no store and no process group has begun, that is
        the process of rank 0.
    """
    rank, attempt = os.environ.get("RANK", "0"), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and not _grouped():
        return rank == "0"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A connection of its own: that of the process group may be amid a collective.
        store = distributed.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        return store.compare_set(f"{TELLER}/{attempt}", "", rank).decode() == rank
    except (KeyError, RuntimeError):
        return rank == "0"


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized()
