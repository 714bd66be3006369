"""Dummy inputs for any model class: texts, images, audio, and texts that hold places for images or audio."""

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

LENGTH, FRAMES, SAMPLES = 12, 200, 6400
Inputs = dict[str, Any]
SENSES = {"pixel_values", "flattened_patches", "input_values", "input_features"}
SIDES = ("image", "audio", "speech")
PLACES = {
    "image": ("image_token_id", "image_token_index", "media_placeholder_token_id", "image_patch_id"),
    "audio": ("audio_token_id", "audio_token_index"),
    "speech": ("audio_token_id", "audio_token_index", "speech_token_id"),
}


def setting(config: Any, *names: str, default: Any = None) -> Any:
    """
    Args:
        config (`PretrainedConfig`):
            A config.
        *names (`str`):
            Names of settings.
        default (`Any`, *optional*):
            What to say where there is none.

    Returns:
        `Any`: The first of them that the config or one of its parts has a value for.
    """
    parts = [config, *(v for v in getattr(config, "__dict__", {}).values() if hasattr(v, "to_dict"))]
    for name in names:
        for part in parts:
            if getattr(part, name, None) is not None:
                return getattr(part, name)
    return default


def noise(*shape: int) -> torch.Tensor:
    """Values between -1 and 1, the same each time."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def text(model: nn.Module, places: dict[int, int] | None = None) -> Inputs:
    """Token ids, with a run of each place token after the first word, and the mask."""
    words = torch.arange(LENGTH) + 50
    end = setting(model.config, "eos_token_id")
    if isinstance(end, int) and end >= 0:
        words[-1] = end
    runs = [torch.full((count,), token) for token, count in (places or {}).items()]
    ids = torch.cat([words[:2], *runs, words[2:]])[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def images(model: nn.Module, accepted: set[str]) -> Iterator[Inputs]:
    """Images in each of the forms that models take, the likeliest first."""
    config = getattr(model.config, "vision_config", None) or model.config
    size = setting(config, "image_size", "input_size", default=64)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = next(
        n for n in (*(getattr(config, k, None) for k in ("num_channels", "in_channels")), 3) if n in (1, 3)
    )
    patch = setting(config, "patch_size", default=8)
    patch = patch if isinstance(patch, int) else patch[0]
    volume = channels * patch * patch
    if accepted & {"image_grid_thw", "image_grid_hw"}:
        temporal = setting(config, "temporal_patch_size", "patch_temporal", default=1)
        grids = {"image_grid_thw": torch.tensor([[1, 4, 4]]), "image_grid_hw": torch.tensor([[4, 4]])}
        grids["image_merge_sizes"] = torch.tensor([1])
        for shape in ((16, volume * temporal), (16, volume), (16, channels, patch, patch)):
            yield {"pixel_values": noise(*shape), **grids}
            yield {"pixel_values": noise(1, *shape), **grids}
    if accepted & {"spatial_shapes", "target_sizes"}:
        patches = {"pixel_values": noise(1, 16, volume), "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long)}
        yield {"pixel_values": noise(1, channels, patch, 16 * patch), "target_sizes": torch.tensor([[4, 4]])}
        yield {**patches, "spatial_shapes": torch.tensor([[4, 4]])}
    if "aspect_ratio_ids" in accepted:
        tiles = setting(config, "max_num_tiles", default=1)
        ratio = {"aspect_ratio_ids": torch.tensor([[1]]), "aspect_ratio_mask": torch.ones(1, 1, tiles).long()}
        mask = torch.ones(1, LENGTH, 1, tiles).long()
        yield {"pixel_values": noise(1, 1, tiles, channels, height, width), **ratio, "cross_attention_mask": mask}
    sizes = {"image_sizes": torch.tensor([[height, width]])}
    if "image_sizes" in accepted:
        for count in (3, 2, 5):
            yield {"pixel_values": noise(1, count, channels, height, width), **sizes}
    yield {"pixel_values": noise(1, channels, height, width), **sizes}
    yield {"pixel_values": noise(1, channels, height, width)}
    yield {"pixel_values": noise(1, 1, channels, height, width)}
    yield {"pixel_values": noise(1, channels, 32, 32), **sizes}
    yield {"flattened_patches": noise(1, 16, 2 + channels * 16 * 16)}
    yield {"flattened_patches": noise(1, 16, 2 + volume)}


def sounds(model: nn.Module) -> Iterator[Inputs]:
    """Audio in each of the forms that models take."""
    bins = setting(
        model.config,
        "feature_projection_input_dim",
        "num_mel_bins",
        "feature_size",
        "input_dim",
        "input_feat_per_channel",
        default=80,
    )
    frames = setting(model.config, "max_source_positions", default=FRAMES // 2) * 2
    mask = torch.ones(1, FRAMES, dtype=torch.long)
    for mask_name in ("input_features_mask", "feature_attention_mask", "attention_mask"):
        yield {"input_features": noise(1, bins, frames), mask_name: torch.ones(1, frames, dtype=torch.long)}
        yield {"input_features": noise(1, FRAMES, bins), mask_name: mask}
    yield {"input_values": noise(1, SAMPLES)}
    yield {"input_values": noise(1, 1, SAMPLES)}
    yield {"input_values": noise(1, setting(model.config, "max_length", default=frames), bins)}


def on_text_alone(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a model that takes images or audio was given neither."""
    accepted = set(inspect.signature(model.forward).parameters)
    return "input_ids" in inputs and bool(accepted & SENSES) and not inputs.keys() & SENSES


def candidates(model: nn.Module) -> Iterator[Inputs]:
    """
    Lists inputs that a model may take, the richest first: those that run every tower.

    Args:
        model (`nn.Module`):
            The model.

    Yields:
        `Inputs`: Keyword arguments for a forward pass.
    """
    accepted = set(inspect.signature(model.forward).parameters)
    written = "input_ids" in accepted
    seen = [{}]
    if accepted & {"pixel_values", "flattened_patches"}:
        seen = [*images(model, accepted), {}]
    heard = [*sounds(model), {}] if accepted & {"input_values", "input_features"} else [{}]
    tried = set()
    for sight, sound in itertools.product(seen, heard):
        chosen = {k: v for k, v in {**sight, **sound}.items() if k in accepted}
        key = str({k: tuple(v.shape) for k, v in chosen.items()})
        if key in tried or (not chosen and not written):
            continue
        tried.add(key)
        alone = not written and "decoder_input_ids" not in accepted
        if alone and len(chosen) == 1 and chosen.get("pixel_values", torch.empty(0)).ndim == 4:
            # In torch 2.13 some convolutions give wrong gradients to a single image (CvT's, by finite differences).
            chosen = {"pixel_values": torch.cat([chosen["pixel_values"], chosen["pixel_values"].flip(-1)])}
        for words in _texts(model, chosen) if written else [{}]:
            yield _with_extras(model, accepted, {**chosen, **words})
        if chosen and "decoder_input_ids" in accepted:
            yield _with_extras(model, accepted, chosen)


def _texts(model: nn.Module, chosen: Inputs) -> Iterator[Inputs]:
    """A text with as many places as there are features, else with none."""
    places = {}
    for side in SIDES:
        count = _features(model, side, chosen)
        token = setting(model.config, *PLACES[side])
        if count and isinstance(token, int):
            places[token] = count
    if places:
        yield text(model, places)
    yield text(model)
    books = setting(model.config, "num_codebooks")
    if books:
        yield {"input_ids": torch.arange(LENGTH).repeat(books, 1) + 5}


def _features(model: nn.Module, side: str, chosen: Inputs) -> int:
    """How many tokens an image or a sound becomes, by the model's own word."""
    measure = getattr(model, f"get_{side}_features", None) or getattr(model.base_model, f"get_{side}_features", None)
    if measure is None or not chosen:
        return 0
    kind = ("pixel", "image", "spatial") if side == "image" else ("input_", "feature_")
    given = {k: v for k, v in chosen.items() if k.startswith(kind)}
    if "qformer_input_ids" in inspect.signature(measure).parameters:
        given["qformer_input_ids"] = _question()
    try:
        with torch.no_grad():
            found = measure(**given)
    except Exception:  # noqa: BLE001  these inputs are a guess; the next one is tried
        return 0
    found = getattr(found, "pooler_output", found)
    width = setting(model.config.get_text_config(), "hidden_size", "d_model", "n_embd", default=1)
    return sum(t.numel() for t in _tensors(found)) // width


def _question() -> torch.Tensor:
    """What a model with a querying transformer asks its image."""
    return torch.arange(4)[None] + 5


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    return [t for v in value for t in _tensors(v)] if hasattr(value, "__iter__") and not isinstance(value, str) else []


def _with_extras(model: nn.Module, accepted: set[str], inputs: Inputs) -> Inputs:
    """Adds what a class requires beside its main inputs."""
    ids = inputs.get("input_ids")
    length = ids.shape[1] if ids is not None else LENGTH
    extras = {
        "decoder_input_ids": lambda: torch.arange(LENGTH)[None] + 5,
        "bbox": lambda: torch.tensor([1, 2, 30, 40]).repeat(1, length, 1),
        "mm_token_type_ids": lambda: _kinds(model, ids),
        "visual_feats": lambda: noise(1, 4, model.config.visual_feat_dim),
        "visual_pos": lambda: noise(1, 4, model.config.visual_pos_dim),
        "entity_ids": lambda: torch.tensor([[1, 2]]),
        "entity_position_ids": lambda: torch.tensor([[[1, 2], [3, 4]]]),
        "qformer_input_ids": _question,
    }
    places = setting(model.config, "latent_query_num", default=0)
    extras["image_embeds_position_mask"] = lambda: (torch.arange(length) < places).long()[None]
    extras["image_attention_mask"] = lambda: torch.ones(1, length, 1).long()
    extras["global_attention_mask"] = lambda: (torch.arange(length) < 1).long()[None]
    added = {name: make() for name, make in extras.items() if name in accepted and name not in inputs}
    return {**inputs, **{k: v for k, v in added.items() if v is not None}}


def _kinds(model: nn.Module, ids: torch.Tensor | None) -> torch.Tensor | None:
    if ids is None:
        return None
    kinds = torch.zeros_like(ids)
    for side in SIDES:
        token = setting(model.config, *PLACES[side])
        if isinstance(token, int):
            kinds[ids == token] = 1 if side == "image" else 2
    return kinds
