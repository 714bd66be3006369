"""Images and sounds of a record's rows: data URIs in the record, files beside a card and in a Space."""

import base64
import re
from dataclasses import replace
from typing import Any

from hf_transfer_plugin.record import TransferRecord

SAMPLES = "examples"
SUFFIXES = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "audio/flac": ".flac",
    "audio/ogg": ".ogg",
    "audio/wav": ".wav",
}
_URI = re.compile(r"data:(?P<kind>[a-z]+/[a-z]+);base64,(?P<content>[A-Za-z0-9+/=]+)")


class SampleFile(str):
    """Path of an image or a sound, beside the card."""

    __slots__ = ()

    @property
    def is_image(self) -> bool:
        """
        Returns:
            `bool`: Whether it is an image.
        """
        return self.endswith((".jpg", ".png"))

    @property
    def markdown(self) -> str:
        """
        Returns:
            `str`: What shows it on a page.
        """
        return f"{'!' if self.is_image else ''}[{self.removeprefix(SAMPLES + '/').partition('.')[0]}]({self})"


def with_files(record: TransferRecord) -> tuple[TransferRecord, dict[str, bytes]]:
    """
    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `tuple[TransferRecord, dict[str, bytes]]`: A copy in whose rows a [`SampleFile`] stands for each data URI, and
        what the files hold, by path.
    """
    files: dict[str, bytes] = {}

    def named(value: Any, name: str) -> Any:
        found = _URI.fullmatch(value) if isinstance(value, str) and value.startswith("data:") else None
        if found is None or found["kind"] not in SUFFIXES:
            return value
        path = SampleFile(f"{SAMPLES}/{name}{SUFFIXES[found['kind']]}")
        files[path] = base64.b64decode(found["content"])
        return path

    changed: dict[str, Any] = {}
    for kind in ("examples", "errors", "samples"):
        rows = getattr(record, kind)
        changed[kind] = [
            {role: named(value, f"{kind.removesuffix('s')}-{number}-{role}") for role, value in row.items()}
            for number, row in enumerate(rows)
        ]
    return (replace(record, **changed), files) if files else (record, files)
