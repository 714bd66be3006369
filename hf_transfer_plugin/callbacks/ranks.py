"""Several processes, one voice: they decide together, take turns at downloads, share faults; one tells a fault."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
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
    if not grouped():
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
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and not grouped():
        return rank == "0"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A connection of its own: that of the process group may be amid a collective.
        store = distributed.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        return store.compare_set(f"{TELLER}/{attempt}", "", rank).decode() == rank
    except (KeyError, RuntimeError):
        return rank == "0"


def grouped() -> bool:
    """
    Returns:
        `bool`: Whether this process belongs to a group.
    """
    return distributed.is_available() and distributed.is_initialized()


def anywhere(flag: bool, device: torch.device) -> bool:
    """
    All processes of a run must ask together.

    Args:
        flag (`bool`):
            What this process says.
        device (`torch.device`):
            The device of its collectives.

    Returns:
        `bool`: Whether any process says yes.
    """
    if not grouped():
        return flag
    raised = torch.tensor(int(flag), device=device)
    distributed.all_reduce(raised, distributed.ReduceOp.MAX)
    return bool(raised)


def of_first(value: Result) -> Result:
    """
    All processes of a run must ask together.

    Args:
        value (`Any`):
            What this process has; it can be pickled.

    Returns:
        What the first process has.
    """
    if not grouped():
        return value
    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]


def require_same(facts: Mapping[str, Any], device: torch.device) -> None:
    """
    All processes of a run must ask together.

    Args:
        facts (`Mapping[str, Any]`):
            JSON values by name, the same names on every process.
        device (`torch.device`):
            The device of its collectives.

    Raises:
        ValueError: If the processes differ; it names the first fact that does. Later they would wait for one another.
    """
    if not grouped():
        return
    values = [json.dumps(value, sort_keys=True, default=str).encode() for value in facts.values()]
    hashes = [int.from_bytes(hashlib.sha256(value).digest()[:8], "little", signed=True) for value in values]
    mine = torch.tensor(hashes, dtype=torch.int64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everyone, mine)
    differing = (torch.stack(everyone) != everyone[0]).any(0).tolist()
    if any(differing):
        raise ValueError(
            f"All processes of a run must train alike, but they differ in the {list(facts)[differing.index(True)]}. "
            "Give every process the same model, arguments, data and strategy."
        )
