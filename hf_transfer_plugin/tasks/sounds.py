"""Sounds: opened, resampled, and told of in a record."""

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_transfer_plugin._optional import require
from hf_transfer_plugin.tasks.media import source_of

PIECE = 1 << 16  # samples at a time
SILENCE = 1e-4


class Sound(NamedTuple):
    """
    What a file of sound holds.

    Args:
        rate (`int`): Samples a second.
        channels (`int`): Channels.
        seconds (`float`): Its length.
        silent (`bool`): Whether no sample is louder than a ten thousandth of the loudest that there can be.
    """

    rate: int
    channels: int
    seconds: float
    silent: bool


def look_into_audio(value: Mapping[str, Any] | None) -> Sound:
    """
    Opens a sound to the end, a piece at a time.

    Args:
        value (`Mapping`):
            `{"bytes", "path"}`.

    Returns:
        `Sound`: What it holds.

    Raises:
        ValueError: If it is missing, empty, or holds no numbers.
        ImportError: If soundfile, or what it needs of the system, is not installed.
    """
    frames, loudest = 0, 0.0
    with _opened(value) as file:
        rate, channels = file.samplerate, file.channels
        while len(samples := file.read(PIECE, dtype="float32", always_2d=True)) or not frames:
            _check(samples)
            frames, loudest = frames + len(samples), max(loudest, float(np.abs(samples).max()))
    return Sound(rate, channels, frames / rate, loudest < SILENCE)


def read_audio(value: Mapping[str, Any] | None, rate: int, seconds: float | None = None) -> np.ndarray:
    """
    Opens a sound: its channels are averaged, and it is resampled by soxr.

    Args:
        value (`Mapping`):
            `{"bytes", "path"}`.
        rate (`int`):
            Samples a second that are wanted.
        seconds (`float`, *optional*):
            Read only so much of its beginning.

    Returns:
        `np.ndarray` of shape `(samples,)`: The sound, in 32-bit floats from -1 to 1.

    Raises:
        ValueError: If it is missing, empty, or holds no numbers.
        ImportError: If soundfile or soxr, or what they need of the system, is not installed.
    """
    with _opened(value) as file:
        found, frames = file.samplerate, -1 if seconds is None else math.ceil(seconds * file.samplerate)
        samples = file.read(frames, dtype="float32", always_2d=True)
    _check(samples)
    mono = samples.mean(1)
    return mono if found == rate else require("soxr", extra="audio").resample(mono, found, rate)


def _opened(value: Mapping[str, Any] | None) -> Any:
    source = source_of(value)
    if isinstance(source, str) and not Path(source).is_file():
        raise ValueError("there is no such file")
    try:
        return sound_library().SoundFile(source)
    except RuntimeError as error:
        told = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise ValueError(f"it is no sound that can be read ({told.lower()})") from error


def _check(samples: np.ndarray) -> None:
    if not len(samples) or not np.isfinite(samples).all():
        raise ValueError("it is empty" if not len(samples) else "it holds values that are no numbers")


def sound_library() -> Any:
    """
    Returns:
        `ModuleType`: soundfile.

    Raises:
        ImportError: If it, or the system's library that it needs, is not installed.
    """
    try:
        return require("soundfile", extra="audio")
    except OSError as error:
        raise ImportError(
            "`soundfile` is installed, but the system's library libsndfile is not. Install it with your system's "
            "packages: `apt install libsndfile1`, `dnf install libsndfile`, `brew install libsndfile`."
        ) from error


def audio_uri(samples: np.ndarray, rate: int) -> str:
    """
    A sound for the record.

    Args:
        samples (`np.ndarray` of shape `(samples,)`):
            The sound.
        rate (`int`):
            Samples a second.

    Returns:
        `str`: A data URI: FLAC with 16 bits.
    """
    content = io.BytesIO()
    sound_library().write(content, samples, rate, format="FLAC", subtype="PCM_16")
    return f"data:audio/flac;base64,{base64.b64encode(content.getvalue()).decode()}"
