import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BigBirdConfig,
    BigBirdForSequenceClassification,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionConfig,
    CvtConfig,
    CvtForImageClassification,
    DetrConfig,
    DetrForObjectDetection,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SqueezeBertConfig,
    SqueezeBertForSequenceClassification,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    XLMConfig,
    XLMForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from hf_transfer_plugin import LayerGroup, LayerGroups, discover_layer_groups
from hf_transfer_plugin.layers.probe import untouched
from tests.conftest import TINY, bert

VISION = {"num_hidden_layers": 2, "image_size": 16, "patch_size": 8}

TOWER = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
BART = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 120,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def clip():
    return CLIPModel(
        CLIPConfig(
            text_config={**TOWER, "num_hidden_layers": 2, "vocab_size": 120, "max_position_embeddings": 20},
            vision_config={**TOWER, "num_hidden_layers": 3, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    )


MODELS = {
    "bert": (bert, "embeddings layer.0 layer.1 layer.2 head"),
    "distilbert": (
        lambda: DistilBertForSequenceClassification(
            DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=120)
        ),
        "embeddings layer.0 layer.1 head",
    ),
    "albert": (
        lambda: AlbertForSequenceClassification(AlbertConfig(**TINY, embedding_size=8)),
        "embeddings shared head",
    ),
    "llama untied": (
        lambda: LlamaForCausalLM(LlamaConfig(**TINY, num_key_value_heads=2)),
        "embeddings layers.0 layers.1 layers.2 head",
    ),
    "gpt2 tied": (
        lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=120)),
        "embeddings h.0 h.1",
    ),
    "t5": (
        lambda: T5ForConditionalGeneration(
            T5Config(d_model=16, num_layers=2, num_heads=2, d_ff=32, d_kv=8, vocab_size=120)
        ),
        "embeddings encoder.0 encoder.1 decoder.0 decoder.1",
    ),
    "bart": (
        lambda: BartForConditionalGeneration(BartConfig(**BART)),
        "embeddings encoder.0 encoder.1 decoder.0 decoder.1",
    ),
    "vit": (
        lambda: ViTForImageClassification(ViTConfig(**TOWER, num_hidden_layers=2, image_size=16, patch_size=8)),
        "embeddings layers.0 layers.1 head",
    ),
    "resnet": (
        lambda: ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
        ),
        "embeddings stages.0.layers.0 stages.1.layers.0 stages.1.layers.1 head",
    ),
    "swin": (
        lambda: SwinForImageClassification(
            SwinConfig(embed_dim=8, depths=[1, 2], num_heads=[1, 2], image_size=32, window_size=2, patch_size=4)
        ),
        "embeddings layers.0.blocks.0 layers.1.blocks.0 layers.1.blocks.1 head",
    ),
    "clip": (clip, "embeddings towers.0 towers.1 towers.2 head"),
}


@pytest.mark.parametrize("name", MODELS)
def test_groups_of_each_family_verified_by_a_forward(name):
    make, expected = MODELS[name]
    groups = discover_layer_groups(make())
    assert " ".join(groups.names) == expected
    assert groups.verified


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_in_exactly_one_group(name):
    model = MODELS[name][0]()
    listed = [n for group in discover_layer_groups(model) for n in group.parameters]
    assert sorted(listed) == sorted(n for n, _ in model.named_parameters())


def test_the_pooler_belongs_to_the_head_and_the_final_norm_to_the_last_block():
    groups = discover_layer_groups(bert())
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= set(groups[-1].parameters)
    vit = discover_layer_groups(MODELS["vit"][0]())
    assert "vit.layernorm.weight" in vit[-2].parameters
    assert vit[-1].parameters == ("classifier.weight", "classifier.bias")


def test_a_bare_model_has_its_pooler_as_head():
    groups = discover_layer_groups(BertModel(BertConfig(**TINY)))
    assert groups[-1].parameters == ("pooler.dense.weight", "pooler.dense.bias")


def test_a_tied_head_belongs_to_the_embeddings_and_head_only_strategies_are_refused():
    groups = discover_layer_groups(BertForMaskedLM(BertConfig(**TINY)))
    assert groups.tied_head
    assert not groups.has_head
    assert "cls.predictions.transform.dense.weight" in groups[-1].parameters
    with pytest.raises(ValueError, match=r"needs a head group.*shares its weights with the embeddings"):
        groups.require_head("feature-extraction")


def test_a_tied_matrix_that_goes_by_the_name_of_the_output_layer_is_an_embedding():
    model = XLMRobertaForMaskedLM(XLMRobertaConfig(**TINY))
    groups = discover_layer_groups(model)
    embedding = next(n for n, p in model.named_parameters() if p is model.get_input_embeddings().weight)
    assert embedding in groups[0].parameters
    assert not groups.has_head


def test_a_head_beside_a_tower_without_base_prefix_is_found():
    config = CLIPConfig(vision_config={**TOWER, **VISION}, text_config={**TOWER, "num_hidden_layers": 2}, num_labels=3)
    groups = discover_layer_groups(CLIPForImageClassification(config))
    assert groups.names == ("embeddings", "layers.0", "layers.1", "head")
    assert groups[-1].parameters == ("classifier.weight", "classifier.bias")


def test_blocks_count_however_small_beside_the_embeddings():
    groups = discover_layer_groups(bert(vocab_size=5000, hidden_size=8, intermediate_size=8))
    assert groups.names == ("embeddings", "layer.0", "layer.1", "layer.2", "head")


def test_blocks_whose_forward_is_called_past_the_hooks_are_seen():
    config = SqueezeBertConfig(**TINY, embedding_size=16, q_groups=1, k_groups=1, v_groups=1, post_attention_groups=1,
                               intermediate_groups=1, output_groups=1)  # fmt: skip
    groups = discover_layer_groups(SqueezeBertForSequenceClassification(config))
    assert groups.verified
    assert groups.names[1:4] == ("layers.0", "layers.1", "layers.2")


def test_sparse_attention_outlives_the_short_dummy_text():
    model = BigBirdForSequenceClassification(BigBirdConfig(**{**TINY, "max_position_embeddings": 512})).eval()
    assert model.bert.attention_type == "block_sparse"
    discover_layer_groups(model)
    assert model.bert.attention_type == "block_sparse"
    assert not any(module.training for module in model.modules())


def test_blocks_of_two_towers_are_aligned_at_the_output():
    groups = discover_layer_groups(clip())
    assert all(name.startswith("vision_model") for name in groups[1].parameters)
    assert {name.split(".")[0] for name in groups[2].parameters} == {"text_model", "vision_model"}
    assert "logit_scale" in groups[-1].parameters
    assert "vision_model.post_layernorm.weight" in groups[-2].parameters


def test_a_closing_convolution_belongs_to_the_last_block():
    groups = discover_layer_groups(
        MobileNetV2ForImageClassification(MobileNetV2Config(image_size=32, depth_multiplier=0.1))
    )
    assert "mobilenet_v2.conv_1x1.convolution.weight" in groups[-2].parameters
    assert "mobilenet_v2.conv_stem.first_conv.convolution.weight" in groups[0].parameters


def test_patterns_of_the_user_come_first():
    groups = discover_layer_groups(bert(), [r"embeddings|layer\.0", r"layer\.", "pooler|classifier"])
    assert len(groups) == 3
    assert "bert.encoder.layer.2.output.dense.weight" in groups[1].parameters


def test_patterns_that_miss_a_parameter_or_match_nothing_are_refused():
    with pytest.raises(ValueError, match=r"exactly one layer group.*Add a pattern"):
        discover_layer_groups(bert(), ["embeddings", "encoder"])
    with pytest.raises(ValueError, match="'nothing'.*match none"):
        discover_layer_groups(bert(), [".", "nothing"])


def test_a_parameter_in_two_groups_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="weight"):
        LayerGroups([LayerGroup("a", ("weight", "bias")), LayerGroup("b", ("weight",))], model, rule="", verified=True)


def test_the_verifying_forward_leaves_mode_buffers_and_random_state_alone():
    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ).train()
    model.resnet.embedder.eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    assert discover_layer_groups(model).verified
    assert torch.equal(state, torch.get_rng_state())
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_untouched_restores_buffers_that_the_forward_moved():
    model = nn.BatchNorm1d(2)
    with untouched(model):
        model.train()
        model(torch.randn(4, 2))
    assert torch.equal(model.running_mean, torch.zeros(2))


def llava():
    vision = CLIPVisionConfig(**TOWER, **{**VISION, "num_hidden_layers": 4})
    text = LlamaConfig(**TINY, num_key_value_heads=2)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=100))


VISION_BLOCKS = tuple(f"vision_tower.encoder.layers.{i}" for i in range(4))
TEXT_BLOCKS = tuple(f"language_model.layers.{i}" for i in range(3))


def test_a_vision_tower_comes_before_the_language_model():
    model = llava()
    words = torch.cat([torch.full((1, 4), 100), torch.ones(1, 3).long()], dim=1)
    seen = discover_layer_groups(model, inputs={"input_ids": words, "pixel_values": torch.rand(1, 3, 16, 16)})
    assert seen.verified
    assert seen.names == ("embeddings", *VISION_BLOCKS, *TEXT_BLOCKS, "head")
    assert seen[-1].parameters == ("lm_head.weight",)
    assert {"model.multi_modal_projector.linear_1.weight"} <= set(seen[4].parameters)
    assert {"model.language_model.norm.weight"} <= set(seen[-2].parameters)
    unseen = discover_layer_groups(model)
    assert unseen.names == seen.names
    assert not unseen.verified


def test_a_tower_that_a_real_batch_leaves_idle_goes_with_the_embeddings():
    groups = discover_layer_groups(llava(), inputs={"input_ids": torch.ones(1, 5).long()})
    assert groups.verified
    assert groups.names == ("embeddings", "layers.0", "layers.1", "layers.2", "head")
    assert any(name.startswith("model.vision_tower.encoder.layers.3") for name in groups[0].parameters)


def test_stages_that_begin_with_an_embedding_are_flattened_to_their_blocks():
    config = CvtConfig(embed_dim=[16, 32, 32], num_heads=[1, 2, 2], depth=[1, 2, 3])
    groups = discover_layer_groups(CvtForImageClassification(config))
    assert groups.verified
    assert groups.names[1:-1] == tuple(f"stages.{i}.layers.{j}" for i in range(3) for j in range(i + 1))
    assert "cvt.encoder.stages.1.embedding.convolution_embeddings.projection.weight" in groups[1].parameters


@pytest.mark.parametrize("pre_norm", [False, True])
def test_layers_kept_as_lists_of_their_parts_are_put_together(pre_norm):
    config = XLMConfig(vocab_size=120, emb_dim=16, n_layers=3, n_heads=2, pre_norm=pre_norm)
    groups = discover_layer_groups(XLMForSequenceClassification(config))
    assert groups.verified
    assert groups.names == ("embeddings", "layers.0", "layers.1", "layers.2", "head")
    parts = ("attentions", "layer_norm1", "ffns", "layer_norm2")
    assert all(any(f"{part}.1." in name for name in groups[2].parameters) for part in parts)
    assert not any(".0." in name for name in groups[2].parameters)


def test_an_output_layer_tied_to_the_decoders_own_embeddings_is_no_head():
    bert = BertConfig(**TINY)
    model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert))
    groups = discover_layer_groups(model)
    assert groups.tied_head
    assert groups.names[-1] == "decoder.2"
    assert "decoder.bert.embeddings.word_embeddings.weight" in groups[0].parameters


def test_a_backbone_comes_before_encoder_and_decoder_and_queries_are_embeddings():
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 4, "d_model": 16}
    config = DetrConfig(use_timm_backbone=False, backbone=None, backbone_config=backbone, **sizes, **heads)
    groups = discover_layer_groups(DetrForObjectDetection(config))
    assert groups.verified
    sides = [next(s for s in ("backbone", "encoder", "decoder") if s in name) for name in groups.names[1:-1]]
    assert sides == ["backbone"] * 2 + ["encoder"] * 2 + ["decoder"] * 2
    assert "model.query_position_embeddings.weight" in groups[0].parameters


class Backwards(nn.Module):
    """Runs its blocks from the last to the first, so that the structure misleads."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, input_ids):
        hidden = torch.nn.functional.one_hot(input_ids % 4, 4).float()
        for layer in reversed(self.layers):
            hidden = layer(hidden)
        return {"logits": hidden}


def test_a_stack_that_runs_in_another_order_is_not_trusted():
    groups = discover_layer_groups(Backwards())
    assert groups.rule.startswith("coarse")
    assert not groups.verified


class Picky(Backwards):
    def forward(self, input_ids):
        if input_ids.shape[1] != 5:
            raise RuntimeError("five tokens, please")
        hidden = torch.nn.functional.one_hot(input_ids % 4, 4).float()
        for layer in self.layers:
            hidden = layer(hidden)
        return {"logits": hidden}


def test_a_structural_guess_is_labelled_unverified_and_a_real_batch_confirms_it():
    assert not discover_layer_groups(Picky()).verified
    groups = discover_layer_groups(Picky(), inputs={"input_ids": torch.ones(2, 5, dtype=torch.long)})
    assert groups.verified
    assert groups.names == ("layers.0", "layers.1", "layers.2")


def test_a_model_on_the_meta_device_is_grouped_unverified():
    with torch.device("meta"):
        model = bert()
    groups = discover_layer_groups(model)
    assert groups.names == ("embeddings", "layer.0", "layer.1", "layer.2", "head")
    assert not groups.verified


def test_printing_shows_sizes_shares_and_the_rule():
    text = str(discover_layer_groups(bert()))
    assert "layer.2" in text
    assert "100" not in text.splitlines()[0]
    assert "bert.encoder.layer (verified by a forward pass)" in text
    assert f"{sum(p.numel() for p in bert().parameters()):,}" in text
