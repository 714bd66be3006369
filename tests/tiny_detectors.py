"""Tiny detectors with their processors, and scenes of plain boxes that they can tell apart."""

import io
import json

import numpy as np
import transformers
from PIL import Image
from transformers import (
    ConditionalDetrConfig,
    DeformableDetrConfig,
    DetrConfig,
    DFineConfig,
    HGNetV2Config,
    ResNetConfig,
    RTDetrConfig,
    RTDetrV2Config,
    YolosConfig,
    set_seed,
)
from transformers.models.rt_detr.configuration_rt_detr_resnet import RTDetrResNetConfig

SIDE = 64
COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
FEATURES = ["stage2", "stage3", "stage4"]
ATTENTION = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
DETR = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "num_queries": 8, "backbone": None, **ATTENTION}
RT_DETR = {
    "d_model": 16,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [16, 16, 16],
    "decoder_in_channels": [16, 16, 16],
    "encoder_layers": 1,
    "decoder_layers": 2,
    "decoder_n_points": 2,
    "num_queries": 8,
    "num_denoising": 4,
    **ATTENTION,
}
HGNET = {
    "embedding_size": 8,
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 16, 16, 16],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 16, 16, 16],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3, 3, 5, 5],
    "stage_numb_of_layers": [1, 1, 1, 1],
    "hidden_sizes": [16, 16, 16, 16],
    "depths": [1, 1, 1, 1],
}
VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


def one_feature():
    return ResNetConfig(**STAGES, out_features=["stage4"])


MODELS = {
    "detr": ("Detr", lambda: DetrConfig(backbone_config=one_feature(), **DETR)),
    "conditional": ("ConditionalDetr", lambda: ConditionalDetrConfig(backbone_config=one_feature(), **DETR)),
    "deformable": (
        "DeformableDetr",
        lambda: DeformableDetrConfig(
            backbone_config=ResNetConfig(**STAGES, out_features=FEATURES), **{**DETR, "d_model": 32}
        ),
    ),
    "yolos": (
        "Yolos",
        lambda: YolosConfig(**VIT, image_size=[SIDE, SIDE], num_detection_tokens=8, use_mid_position_embeddings=True),
    ),
    "rt_detr": (
        "RTDetr",
        lambda: RTDetrConfig(backbone_config=RTDetrResNetConfig(**STAGES, out_features=FEATURES), **RT_DETR),
    ),
    "rt_detr_v2": (
        "RTDetrV2",
        lambda: RTDetrV2Config(backbone_config=RTDetrResNetConfig(**STAGES, out_features=FEATURES), **RT_DETR),
    ),
    "d_fine": (
        "DFine",
        lambda: DFineConfig(
            backbone_config=HGNetV2Config(**HGNET, out_features=FEATURES), **{**RT_DETR, "decoder_n_points": [2, 2, 2]}
        ),
    ),
}
PROCESSORS = {"rt_detr": "RTDetr", "rt_detr_v2": "RTDetr", "d_fine": "RTDetr"}


def processor_of(name, **size):
    """The image processor of a tiny model: pictures become squares, if no other size is asked for."""
    kind = getattr(transformers, f"{PROCESSORS.get(name, MODELS[name][0])}ImageProcessor")
    return kind(size=size or {"height": SIDE, "width": SIDE})


def save_model(name, folder, *, names=("one", "two", "three"), **size):
    """Saves a tiny detector as a pretrained one comes, with its own classes, and its processor."""
    kind, config = MODELS[name]
    set_seed(0)
    made = config()
    made.id2label, made.label2id = dict(enumerate(names)), {name: number for number, name in enumerate(names)}
    getattr(transformers, f"{kind}ForObjectDetection")(made).save_pretrained(folder)
    processor_of(name, **size).save_pretrained(folder)
    return str(folder)


def scene(number, *, size=(60, 48), objects=2):
    """A gray picture with boxes of colour, and what is in it."""
    generator = np.random.default_rng(number)
    width, height = size
    values = generator.integers(90, 130, (height, width, 3)).astype(np.uint8)
    boxes, names = [], []
    for place in range(objects):
        name = list(COLOURS)[(number + place) % 2]
        # Side by side, so that none hides another.
        start, end = place * width // objects, (place + 1) * width // objects
        w, h = (int(generator.integers(8, limit - 2)) for limit in (end - start, height))
        x, y = int(generator.integers(start, end - w)), int(generator.integers(0, height - h))
        values[y : y + h, x : x + w] = COLOURS[name]
        boxes.append([x, y, w, h])
        names.append(name)
    return Image.fromarray(values), {"bbox": boxes, "category": names}


def content(image, kind="PNG", **settings):
    """A picture as a file holds it."""
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def write_folder(folder, **counts):
    """SPLIT/NUMBER.png and SPLIT/metadata.jsonl, pictures of several sizes with one object or two."""
    start = 0
    for split, count in counts.items():
        (folder / split).mkdir(parents=True)
        lines = []
        for number in range(start, start + count):
            image, told = scene(number, size=(60 + number % 3 * 4, 48), objects=1 + number % 2)
            image.save(folder / split / f"{number}.png")
            lines.append(json.dumps({"file_name": f"{number}.png", "objects": told}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        start += count
    return folder
