"""Tiny, randomly initialised models of any class that Transformers has: each default config, shrunk by rules."""

import re
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LAYERS, TOWER_LAYERS, WIDTH, HEADS, VOCABULARY, IMAGE = 3, 4, 32, 2, 160, 64
LARGEST = 40_000_000  # parameters; a model that stays larger than that is not tiny

# The first pattern that matches a whole key decides; a number is a cap. Depth rules always apply, width rules first.
DEPTH_RULES: tuple[tuple[str, int], ...] = (
    (r".*vocab_size|entity_vocab_size", VOCABULARY),
    (r"(speech_|t2u_)?(en|de)coder_layers|num_(en|de)coder_layers|num_hidden_layers|n_layers?|num_layers", LAYERS),
    (r"(en|de)coder_num_hidden_layers|encoder_depth|layers|num_blocks|num_self_attends_per_block", LAYERS),
    (r"resampler_depth|num_lstm_layers|c2f_num_blocks", 1),
    (r"depth", TOWER_LAYERS),
    (r"num_nextn_predict_layers|num_mtp_layers|mtp_num_hidden_layers|num_kv_shared_layers|num_denoising", 0),
    (r"first_k_dense_replace|num_dense_layers|n_group|topk_group|num_expert_group", 1),
    (r".*max_position_embeddings|n_positions|max_seq_len|model_max_length", 128),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts", 4),
    (r"num_experts_per_tok(en)?|moe_k|moe_topk|top_k_experts|num_selected_experts", 2),
    (r"num_queries|num_query_tokens|latent_query_num|resampler_n_latents", 8),
    (r"ngram_vocab_size_base", 200),
    (r"group_detr", 2),
    (r"mm_tokens_per_image", 16),
    (r"max_source_positions", 100),
)
WIDTH_RULES: tuple[tuple[str, int], ...] = (
    (r"image_size|sample_size", IMAGE),
    (r"patch_size", 8),
    (r"(moe_|shared_|dense_|shared_expert_|moe_shared_expert_|shared_experts_|speech_encoder_)?intermediate_size", 64),
    (r"(t2u_)?(en|de)coder_ffn_dim|ffn_dim|d_ff|dff|d_inner|mlp_dim|ffn_hidden_size|feed_forward_size", 64),
    (r"intermediate_size_mlp|shared_intermediate_size|expert_ffn_hidden_size", 64),
    (r"hidden_size|d_model|n_embd|embed_dim|dim|hidden_dim|embedding_size|projection_dim|width|emb_dim", WIDTH),
    (r"classifier_proj_size|encoder_hidden_(size|dim)|decoder_hidden_size|word_embed_proj_dim|hidden_channels", WIDTH),
    (r"out_hidden_size|text_hidden_size|cross_attention_hidden_size|image_text_hidden_size|projection_size", WIDTH),
    (r"pooler_hidden_size|pooler_output_size|prediction_head_size|output_hidden_size|hidden_size_global", WIDTH),
    (r"projector_hidden_size|input_embedding_size|output_embedding_size|embedding_dim|adapter_out_dim", WIDTH),
    (r"fusion_hidden_size|auxiliary_channels|d_latents|pronunciation_embed_dim", WIDTH),
    (r"shape_embed_dim|entity_emb_size|aspp_out_channels|hidden_size_per_layer_input|global_hidden_size", WIDTH),
    (r"(num_)?key_value_heads|num_kv_heads|n_head_kv|.*num_key_value_heads", HEADS),
    (r".*attention_heads|n_heads?|num_heads|num_query_heads|.*num_attention_heads|resampler_n_heads", HEADS),
    (r"head_dim|d_kv|attention_head_size|d_head|v_head_dim|global_head_dim|kv_channels|qk_.*head_dim|dim_head", 16),
    (r"swa_head_dim|linear_.*head_dim|index_head_dim|resampler_head_dim|attention_head_dim", 16),
    (r"linear_num_.*heads|index_n_heads|linear_num_heads", HEADS),
    (r".*lora_rank|.*lora_dim|laurel_rank", 16),
    (r"rotary_dim", 8),
    (r"conv_dim_.*|num_conv_pos_embeddings", 16),
    (r"num_conv_pos_embedding_groups|vocoder_num_.*|num_codevectors_per_group", 4),
    (r"subsampling_conv_channels|tdnn_dim|xvector_output_dim|codevector_dim|proj_codevector_dim|num_mel_bins", 32),
)
PER_LAYER = (
    r"layer_types|mlp_layer_types|layers_block_type|block_types|attention_layers|no_rope_layers|indexer_types|"
    r"layer_rope_theta|activation_sparsity_pattern|num_attention_heads_per_layer|num_key_value_heads_per_layer|"
    r"sliding_windows|attn_layers|intermediate_size|kv_source_layers|rope_scaling_layers|full_attn_idxs|moe_layers"
)
PER_STAGE_DEPTHS = r"depths|depth|num_blocks|layer_depths|stage_num_blocks|num_block_repeats|block_sizes|n_attn_blocks"
PER_STAGE_WIDTHS = r"hidden_sizes|embed_dims?|stage_(in|mid|out)_channels|neck_hidden_sizes"

STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
COMPASS = {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
}
ZAMBA = ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"]
ZAMBA2 = ["linear_attention", "hybrid", "linear_attention"]
WITHOUT_TIMM = {"use_timm_backbone": False, "backbone": None, "backbone_config": RESNET}

SECTIONS = {"text_config": {"rope_parameters": ROPE}}
WITH_SECTIONS = ("glm4v", "glm46v", "glm_ocr", "paddleocr_vl", "qwen2_vl", "qwen2_5_vl")

# What no rule can know: settings that must fit one another.
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("conditional_detr", "dab-detr", "deformable_detr", "detr", "table-transformer"), WITHOUT_TIMM),
    "bros": {"dim_bbox_projection": 16},
    **dict.fromkeys(WITH_SECTIONS, SECTIONS),
    **dict.fromkeys(("swin", "donut-swin"), {"window_size": 2}),
    **dict.fromkeys(("minicpmv4_6", "minicpmv4_7", "minicpm_ocr"), {"image_token_id": 150}),
    "aria": {"projector_patch_to_query_dict": {64: 16}},
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16},
    "bit": {"num_groups": 4, "layer_type": "preactivation"},
    "blenderbot": {"encoder_layers": LAYERS},
    "codegen": {"n_embd": 64, "n_head": 4},
    "blip-2": {"image_token_index": 150},
    "cohere_compass": {"text_config": COMPASS},
    "cohere_compass_text": COMPASS,
    "cvt": {"depth": [1, 2, 3]},
    "data2vec-vision": {"num_hidden_layers": 4, "out_indices": [2, 3, 4, 5], "out_features": None},
    "BeitForSemanticSegmentation": {"num_hidden_layers": 4, "out_indices": [0, 1, 2, 3], "out_features": None},
    "dots1": {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 1.0, "hidden_dim": 320},
    "instructblip": {"image_token_index": 150},
    "instructblipvideo": {"video_token_index": 150},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"]},
    "ReformerModelWithLMHead": {"is_decoder": True},
    **dict.fromkeys(("moss_transcribe_diarize", "musicflamingo", "voxtral"), {"audio_token_id": 150}),
    "textnet": {"hidden_sizes": [64, 64, 128, 256, 512]},
    "vipllava": {"vision_feature_layers": [-2, -3]},
    "zamba": {
        "num_hidden_layers": 5,
        "layers_block_type": ZAMBA,
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": WIDTH,
    },
    "glm4v_moe": {"text_config": {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}}},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 4, "mamba_d_head": 16},
    "llama4": {
        "vision_config": {
            "intermediate_size": 4 * WIDTH,
            "projector_input_dim": WIDTH,
            "projector_output_dim": WIDTH,
            "vision_output_dim": WIDTH,
        }
    },
    "longcat_flash": {"qk_head_dim": 32},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "moe"]},
    "rwkv": {"attention_hidden_size": WIDTH},
    "wav2vec2-bert": {"vocab_size": 120},
    "wav2vec2-conformer": {"vocab_size": 120},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "esm": {"vocab_size": VOCABULARY, "mask_token_id": 4, "pad_token_id": 1},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "input_size": IMAGE},
    "lilt": {"hidden_size": 48},
    "ministral": {"head_dim": 16},
    "mistral4": {"qk_rope_head_dim": 8},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "mllama": {
        "text_config": {"cross_attention_layers": [1]},
        "vision_config": {"intermediate_layers_indices": [0, 1], "vision_output_dim": 3 * WIDTH},
    },
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    # Its reversible layers draw their own seeds; without dropout and with fixed hashes two runs agree.
    "reformer": {
        "axial_pos_embds": False,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "hash_seed": 0,
        "hidden_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
    },
    "step3p7": {"text_config": {"sliding_window": 8}},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {
        "layers_block_type": ZAMBA2,
        "hybrid_layer_ids": [1],
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "attention_head_dim": 32,
        "attention_hidden_size": 64,
        "kv_channels": 16,
    },
}


class Shrinker:
    """
    Rewrites the values of a config. Token ids are renumbered so that equal ids stay equal and fit the vocabulary.

    Args:
        narrow (`bool`):
            Whether widths shrink too, or depths and vocabularies alone.
    """

    def __init__(self, narrow: bool) -> None:
        self.rules = (*DEPTH_RULES, *(WIDTH_RULES if narrow else ()))
        self.narrow = narrow
        self.ids: dict[int, int] = {}

    def config(self, values: dict[str, Any], *, tower: bool = False) -> dict[str, Any]:
        """
        Args:
            values (`dict[str, Any]`):
                A config, as `to_dict` gives it.
            tower (`bool`, *optional*, defaults to `False`):
                Whether it describes an image or audio tower, which gets one layer more, to differ from the text.

        Returns:
            `dict[str, Any]`: The same keys with smaller values.
        """
        small = {}
        for key, value in values.items():
            if key == "stage_names":
                continue
            side = tower or re.search(r"vision|audio|speech|backbone|visual", key) is not None
            if key == "per_layer_config" and value:
                small[key] = {layer: v for layer, v in value.items() if int(layer) < LAYERS}
            elif isinstance(value, dict) and all(isinstance(inner, str) for inner in value):
                small[key] = self.config(value, tower=side)
            elif isinstance(value, (list, tuple)):
                small[key] = self._listed(key, list(value), TOWER_LAYERS if tower else LAYERS)
            elif isinstance(value, int) and not isinstance(value, bool):
                small[key] = self._number(key, value, tower)
            else:
                small[key] = value
        return small

    def _number(self, key: str, value: int, tower: bool) -> int:
        if re.search(r"_(token_id|token_index|token_idx|id)$", key):
            return self._token(value)
        cap = next((cap for pattern, cap in self.rules if re.fullmatch(pattern, key)), None)
        if tower and cap == LAYERS and "layer" in key:
            cap = TOWER_LAYERS
        return value if cap is None else min(value, cap)

    def _token(self, value: int) -> int:
        """Small ids stay; large ones are numbered from the top of the vocabulary downwards."""
        return value if value < 100 else self.ids.setdefault(value, VOCABULARY - 1 - len(self.ids))

    def _listed(self, key: str, values: list[Any], layers: int) -> list[Any]:
        if key == "out_features" and any(v not in STAGES for v in values):
            return [f"stage{layers - len(values) + 1 + i}" for i in range(len(values))]
        if key == "image_grid_pinpoints":
            return [[IMAGE, IMAGE]]
        if key == "mrope_section":
            return [2, 3, 3]
        if re.fullmatch(PER_LAYER, key):
            return _varied(values, layers)
        numbers = all(isinstance(v, int) and not isinstance(v, bool) for v in values)
        return self._numbers(key, values) if numbers else values

    def _numbers(self, key: str, values: list[int]) -> list[int]:
        """A list of whole numbers: token ids, or one for each stage."""
        if re.search(r"_token_ids?$", key):
            return [self._token(v) for v in values]
        if re.fullmatch(PER_STAGE_DEPTHS, key):
            return [min(v, 2) for v in values]
        if not self.narrow:
            return values
        if re.fullmatch(PER_STAGE_WIDTHS, key):
            return [16 * (i + 1) for i in range(len(values))]
        caps = {"conv_dim": 16, "tdnn_dim": 16, "image_size": IMAGE, "num_heads": HEADS, "num_attention_heads": HEADS}
        return [min(v, caps[key]) for v in values] if key in caps else values


def _varied(values: list[Any], count: int) -> list[Any]:
    """The first `count`, but so that a kind that comes only later is seen."""
    first = values[:count]
    later = [v for v in values[count:] if v not in first]
    return [*first[:-1], later[0]] if later and count > 1 else first


def tiny_config(config_class: type, class_name: str = "", *, narrow: bool = True) -> Any:
    """
    Shrinks the default config of a class.

    Args:
        config_class (`type`):
            A config class.
        class_name (`str`, *optional*):
            The model class, where one has settings of its own.
        narrow (`bool`, *optional*, defaults to `True`):
            Whether widths shrink too.

    Returns:
        `PretrainedConfig`: A config for a model of a few thousand parameters.
    """
    values = config_class().to_dict()
    for key in ("model_type", "transformers_version", "architectures", "dtype"):
        values.pop(key, None)
    small = Shrinker(narrow).config(values)
    for key in (config_class.model_type, class_name):
        _merge(small, OVERRIDES.get(key, {}))
    # Names and indices of stages must agree; the names are enough.
    for part in (small, *(v for v in small.values() if isinstance(v, dict))):
        if part.get("out_features"):
            part.pop("out_indices", None)
    return config_class(**small)


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(values.get(key), dict) and "model_type" not in change:
            _merge(values[key], change)
        else:
            values[key] = change


def tiny_model(class_name: str, model_type: str, *, narrow: bool = True) -> nn.Module:
    """
    Builds a model of a class, the same each time.

    Args:
        class_name (`str`):
            A class of `transformers`, e.g. `"BertForSequenceClassification"`.
        model_type (`str`):
            The key under which the auto mapping lists it.
        narrow (`bool`, *optional*, defaults to `True`):
            Whether widths shrink too.

    Returns:
        `nn.Module`: The model, in eval mode, on the CPU.

    Raises:
        ValueError: If it would stay too large.
    """
    model_class = getattr(transformers, class_name)
    config = tiny_config(model_class.config_class or CONFIG_MAPPING[model_type], class_name, narrow=narrow)
    if "Classification" in class_name:
        config.num_labels = 3
    if getattr(config, "pad_token_id", 0) is None:
        config.pad_token_id = 1
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{class_name} must shrink below {LARGEST:,} parameters, but has {size:,}.")
    torch.manual_seed(0)
    model = model_class(config).float().eval()
    for parameter in model.parameters():
        _liven(parameter.data)
    return model


def _liven(weights: torch.Tensor) -> None:
    """Draws a weight so that signals neither vanish nor stop: zeros, as in closed gates, hide what lies below."""
    if weights.ndim > 1:
        nn.init.normal_(weights, std=weights[0].numel() ** -0.5)
    elif not weights.any():
        nn.init.normal_(weights, std=0.1)
