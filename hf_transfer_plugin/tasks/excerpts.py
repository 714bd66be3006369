"""The part of a long text that matters."""

from hf_transfer_plugin.tasks.class_report import SHORT


def excerpt(text: str, start: int, end: int, limit: int = SHORT, *, marks: tuple[str, str] = ("", "")) -> str:
    """
    Args:
        text (`str`):
            A text.
        start (`int`):
            First character of the part that matters.
        end (`int`):
            Character after its last.
        limit (`int`, *optional*, defaults to 300):
            Characters at most, beside the marks and the signs of what was left out.
        marks (`tuple[str, str]`, *optional*):
            What to put before and after the part.

    Returns:
        `str`: The text, or as much of it as goes around the part.

    Example:
    ```python
    >>> excerpt("The cat sat on the mat.", 4, 7, 11, marks=("«", "»"))
    'The «cat» sat…'
    ```
    """
    end = min(end, start + limit)
    room = max(limit - (end - start), 0)
    first = max(min(start - room // 2, len(text) - limit), 0)
    last = min(first + limit, len(text))
    before, after = text[first:start].lstrip(), text[end:last].rstrip()
    return f"{'…' * (first > 0)}{before}{marks[0]}{text[start:end]}{marks[1]}{after}{'…' * (last < len(text))}"
