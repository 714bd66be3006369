"""Bytes and times as people write them."""

import re

UNITS = ("B", "kB", "MB", "GB", "TB")
_SIZE = re.compile(r"\s*([\d.]+)\s*([kKMGT]?)i?B?\s*$")


def size_words(count: int) -> str:
    """
    Args:
        count (`int`):
            Bytes.

    Returns:
        `str`: The size as people write it.
    """
    power = min(max(0, len(str(abs(count))) - 1) // 3, len(UNITS) - 1)
    return f"{count / 1000**power:,.{1 if power else 0}f} {UNITS[power]}"


def time_words(seconds: float) -> str:
    """
    Args:
        seconds (`float`):
            A time.

    Returns:
        `str`: The time as people write it.
    """
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def parse_size(size: int | str | None) -> int | None:
    """
    Args:
        size (`int` or `str`, *optional*):
            Bytes, or words such as `"20GB"`.

    Returns:
        `int` or `None`: Bytes.

    Raises:
        ValueError: If it is neither.
    """
    if size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0):
        return size
    found = _SIZE.match(size) if isinstance(size, str) else None
    if not found or float(found[1]) <= 0:
        raise ValueError(f'`budget` must be a number of bytes or a size such as "20GB", but got {size!r}.')
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))
