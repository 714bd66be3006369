"""Demos that listen: to a file or the microphone, with one channel and resampled as in training."""

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from limits import MAX_UPLOAD, InputError, finite, uploaded
from loading import Loaded, Settings

SECONDS = 30
SILENCE = 1e-4
FORMATS = "WAV, FLAC, OGG or MP3"
LIMIT = "It listens to the beginning of a sound, as much as is said below its box."


def _seconds(options: dict[str, Any]) -> float:
    return min(float(options.get("max_seconds") or SECONDS), SECONDS)


def inputs(settings: Settings) -> list[Any]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.

    Returns:
        `list[Component]`: A box for a file or a recording.
    """
    size = MAX_UPLOAD.replace("mb", " MB")
    box = gr.Audio(
        label="Sound", sources=["upload", "microphone"], type="filepath", elem_id="audio", buttons=["download"]
    )
    gr.Markdown(f"{FORMATS}, at most {size}; of a longer sound the first {_seconds(settings.options):g} s are read.")
    return [box]


def check(settings: Settings, values: list[Any]) -> list[Path]:
    """
    Args:
        settings (`Settings`):
            What demo.json says.
        values (`list`):
            What the box sent.

    Returns:
        `list[Path]`: The uploaded file.

    Raises:
        InputError: If there is none.
    """
    return [uploaded(values[0], "sound", "record one")]


def read(loaded: Loaded, files: list[Path]) -> tuple[np.ndarray, str]:
    """
    Args:
        loaded (`Loaded`):
            The model's feature extractor and options.
        files (`list[Path]`):
            One file.

    Returns:
        `tuple[np.ndarray, str]`: Samples at the model's rate, and a sentence where the end is left out.

    Raises:
        InputError: If it cannot be read, or is silent.
    """
    # Spaces of other tasks do not install these.
    soundfile, soxr = import_module("soundfile"), import_module("soxr")
    seconds = _seconds(loaded.options)
    try:
        with soundfile.SoundFile(files[0]) as file:
            rate, long = file.samplerate, file.frames > math.ceil(seconds * file.samplerate)
            samples = file.read(math.ceil(seconds * rate), dtype="float32", always_2d=True)
    except (RuntimeError, OSError, ValueError):
        raise InputError(f"This file cannot be read as a sound. Send {FORMATS}.") from None
    if not len(samples) or not np.isfinite(samples).all():
        raise InputError("The sound is empty or damaged. Send another one.")
    if np.abs(samples).max() < SILENCE:
        raise InputError("The sound is silent. Look whether the microphone is on.")
    wanted = _extractor(loaded).sampling_rate
    mono = samples.mean(1)
    mono = mono if rate == wanted else soxr.resample(mono, rate, wanted)
    short = max(int(loaded.options.get("min_samples") or 0) - len(mono), 0)
    return np.pad(mono, (0, short)), f"Only the first {seconds:g} seconds were read." if long else ""


def _extractor(loaded: Loaded) -> Any:
    return getattr(loaded.processor, "feature_extractor", loaded.processor)


def _batch(loaded: Loaded, model: Any, samples: np.ndarray) -> dict[str, torch.Tensor]:
    extractor = _extractor(loaded)
    batch = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return {name: value.to(model.device) for name, value in batch.items()}


@torch.inference_mode()
def ask_class(loaded: Loaded, model: Any, samples: np.ndarray) -> list[float]:
    """
    Args:
        loaded (`Loaded`):
            The model's feature extractor.
        model (`torch.nn.Module`):
            The model, or its base.
        samples (`np.ndarray`):
            The sound.

    Returns:
        `list[float]`: Logits.

    Raises:
        InputError: If the model's answer is no number.
    """
    return finite(model(**_batch(loaded, model, samples)).logits[0]).tolist()


@torch.inference_mode()
def ask_text(loaded: Loaded, model: Any, samples: np.ndarray) -> str:
    """
    Args:
        loaded (`Loaded`):
            The model's processor.
        model (`torch.nn.Module`):
            The model, or its base.
        samples (`np.ndarray`):
            The sound.

    Returns:
        `str`: What is said in it.

    Raises:
        InputError: If the model's answer is no number.
    """
    batch, tokenizer = _batch(loaded, model, samples), loaded.processor.tokenizer
    if model.config.is_encoder_decoder:
        written = tokenizer.decode(model.generate(**batch, do_sample=False)[0], skip_special_tokens=True)
    else:
        # A character for each moment: repetitions and blanks are left out by the tokenizer.
        written = tokenizer.decode(finite(model(**batch).logits[0]).argmax(-1).tolist())
    if not written.strip():
        gr.Info("The model hears no words.")
    return written.strip()
