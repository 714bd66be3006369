"""Tiny image models with their processors, and pictures that they can tell apart."""

import io

import numpy as np
import transformers
from PIL import Image
from transformers import (
    ConvNextConfig,
    MobileNetV2Config,
    MobileNetV2ImageProcessor,
    ResNetConfig,
    ViTConfig,
    ViTImageProcessor,
    set_seed,
)

VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
SIDE = 32
MODELS = {
    "vit": ("ViTModel", ViTConfig(**VIT, image_size=SIDE, patch_size=16)),
    "resnet": ("ResNetModel", ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
    "convnext": ("ConvNextModel", ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=SIDE)),
    "mobilenet": (
        "MobileNetV2Model",
        MobileNetV2Config(depth_multiplier=0.1, min_depth=8, depth_divisible_by=8, image_size=SIDE),
    ),
}


def processor_of(name):
    """The image processor of a tiny model."""
    if name == "mobilenet":
        return MobileNetV2ImageProcessor(size={"shortest_edge": 36}, crop_size={"height": SIDE, "width": SIDE})
    return ViTImageProcessor(size={"height": SIDE, "width": SIDE})


def save_model(name, folder, *, head=False, **labels):
    """Saves a tiny model as a pretrained one comes, and its processor."""
    kind, config = MODELS[name]
    set_seed(0)
    config = type(config)(**{**config.to_diff_dict(), **labels})
    kind = kind.replace("Model", "ForImageClassification") if head else kind
    getattr(transformers, kind)(config).save_pretrained(folder)
    processor_of(name).save_pretrained(folder)
    return str(folder)


def picture(number, *, light, size=(30, 24), mode="RGB"):
    """A picture of noise, dark or light."""
    values = np.random.default_rng(number).integers(0, 100, (size[1], size[0], 3)) + (150 if light else 0)
    return Image.fromarray(values.astype(np.uint8)).convert(mode)


def content(image, kind="PNG", **settings):
    """A picture as a file holds it."""
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def write_folder(folder, **counts):
    """SPLIT/CLASS/NUMBER.png, of several sizes."""
    start = 0
    for split, count in counts.items():
        for number in range(start, start + count):
            light = number % 2
            place = folder / split / ("light" if light else "dark")
            place.mkdir(parents=True, exist_ok=True)
            picture(number, light=light, size=(30 + number % 3, 24)).save(place / f"{number}.png")
        start += count
    return folder
