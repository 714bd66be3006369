"""Tiny segmentation models with their processors, and pictures with masks that they can learn."""

import json

import numpy as np
from PIL import Image
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    BeitImageProcessor,
    ConvNextConfig,
    DPTConfig,
    DPTForSemanticSegmentation,
    DPTImageProcessor,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2ImageProcessor,
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    MobileViTImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    set_seed,
)

SIDE, FOUR = 32, ["stage1", "stage2", "stage3", "stage4"]
SQUARE = {"size": {"height": SIDE, "width": SIDE}}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIDE,
    "patch_size": 16,
}
MODELS = {
    "segformer": (
        SegformerForSemanticSegmentation,
        lambda **given: SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
            **given,
        ),
        lambda **given: SegformerImageProcessor(**{**SQUARE, **given}),
    ),
    "mobilenet": (
        MobileNetV2ForSemanticSegmentation,
        lambda **given: MobileNetV2Config(
            depth_multiplier=0.1, min_depth=8, depth_divisible_by=8, image_size=SIDE, output_stride=8, **given
        ),
        lambda **given: MobileNetV2ImageProcessor(**{
            "size": {"shortest_edge": 36},
            "crop_size": {"height": SIDE, "width": SIDE},
            **given,
        }),
    ),
    "beit": (
        BeitForSemanticSegmentation,
        lambda **given: BeitConfig(
            **VIT, out_indices=[1, 2, 3, 4], pool_scales=[1, 2], use_mask_token=False, auxiliary_channels=8, **given
        ),
        lambda **given: BeitImageProcessor(**{**SQUARE, "do_center_crop": False, **given}),
    ),
    "dpt": (
        DPTForSemanticSegmentation,
        lambda **given: DPTConfig(
            **VIT,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            is_hybrid=False,
            **given,
        ),
        lambda **given: DPTImageProcessor(**{**SQUARE, **given}),
    ),
    "upernet": (
        UperNetForSemanticSegmentation,
        lambda **given: UperNetConfig(
            backbone_config=ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=FOUR),
            hidden_size=16,
            pool_scales=[1, 2],
            auxiliary_channels=8,
            auxiliary_in_channels=8,
            **given,
        ),
        lambda **given: SegformerImageProcessor(**{**SQUARE, **given}),
    ),
    "mobilevit": (
        MobileViTForSemanticSegmentation,
        lambda **given: MobileViTConfig(
            hidden_sizes=[8, 8, 8],
            neck_hidden_sizes=[8] * 7,
            image_size=SIDE,
            num_attention_heads=2,
            aspp_out_channels=16,
            **given,
        ),
        lambda **given: MobileViTImageProcessor(**{
            "size": {"shortest_edge": 36},
            "crop_size": {"height": SIDE, "width": SIDE},
            **given,
        }),
    ),
}


def save_model(name, folder, processor=None, **given):
    """Saves a tiny model and its processor."""
    kind, config, make = MODELS[name]
    set_seed(0)
    kind(config(**given)).save_pretrained(folder)
    make(**(processor or {})).save_pretrained(folder)
    return str(folder)


def models_in(root):
    """Saved tiny models, made when they are asked for."""
    made = {}

    def saved(name, **processor):
        key = "-".join([name, *map(str, processor)])
        if key not in made:
            made[key] = save_model(name, root / key, processor)
        return made[key]

    return saved


def scene(number, size=(40, 30)):
    """A dark picture with a light and a red box, and its mask: 0 is the ground, 1 the light box, 2 the red one."""
    width, height = size
    draws = np.random.default_rng(number)
    picture, mask = draws.integers(0, 60, (height, width, 3)), np.zeros((height, width), np.uint8)
    for kind, colour in ((1, (230, 230, 230)), (2, (230, 20, 20))):
        top, left = draws.integers(0, height // 2), draws.integers(0, width // 4) + (kind - 1) * width // 2
        spot = np.s_[top : top + height // 2, left : left + width // 4]
        picture[spot], mask[spot] = colour, kind
    return Image.fromarray(picture.astype(np.uint8)), mask


def write_scenes(folder, change=lambda mask: mask, **counts):
    """A folder as ImageFolder reads it: pictures, masks and metadata.jsonl for each split."""
    start = 0
    for split, count in counts.items():
        place = folder / split
        (place / "masks").mkdir(parents=True)
        lines = []
        for number in range(start, start + count):
            picture, mask = scene(number, (40 + number % 3, 30))
            picture.save(place / f"{number}.png")
            Image.fromarray(change(mask)).save(place / "masks" / f"{number}.png")
            lines.append(json.dumps({"file_name": f"{number}.png", "mask_file_name": f"masks/{number}.png"}))
        (place / "metadata.jsonl").write_text("\n".join(lines))
        start += count
    return folder
