"""A small RT-DETR with random weights: no detector's weights are to be had offline, so one is trained on scenes."""

from pathlib import Path

from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, set_seed
from transformers.models.rt_detr.configuration_rt_detr_resnet import RTDetrResNetConfig

CHANNELS, WIDTH, QUERIES = (16, 32, 64, 96), 64, 20


def write_untrained(folder: Path, names: tuple[str, ...], side: int) -> None:
    """
    Writes a detector of a million parameters with random weights, and its image processor.

    Args:
        folder (`Path`):
            Where it goes.
        names (`tuple[str, ...]`):
            Its classes.
        side (`int`):
            Width and height in pixels that pictures are made.
    """
    backbone = RTDetrResNetConfig(
        embedding_size=CHANNELS[0],
        hidden_sizes=list(CHANNELS),
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        # Frozen batch statistics are for backbones that are trained already.
        freeze_backbone_batch_norms=False,
        d_model=WIDTH,
        encoder_hidden_dim=WIDTH,
        encoder_in_channels=list(CHANNELS[1:]),
        decoder_in_channels=[WIDTH] * 3,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=QUERIES,
        num_denoising=QUERIES,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    set_seed(0)
    RTDetrForObjectDetection(config).save_pretrained(folder)
    RTDetrImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
