"""Tiny models of many families with batches for them, and the cut below their upper layer groups."""

import torch
import transformers as tf

from hf_transfer_plugin.layers import discover_layer_groups
from hf_transfer_plugin.prefix_cache.finding import find_cut

BERTISH = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 60,
    "max_position_embeddings": 40,
}
SEQ2SEQ = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "vocab_size": 60,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
WAVES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 8),
    "conv_stride": (5, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "feat_extract_norm": "layer",
}


def text(lengths, width=None):
    """Texts of these lengths with the mask, padded at the end."""
    width = width or max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.where(mask > 0, torch.randint(3, 60, mask.shape), 1), "attention_mask": mask}


def classes(lengths):
    return {**text(lengths), "labels": torch.arange(len(lengths)) % 2}


def writing(lengths):
    made = text(lengths)
    return {**made, "labels": torch.where(made["attention_mask"] > 0, made["input_ids"], -100)}


def translation(lengths):
    return {**text(lengths), "labels": writing([length - 2 for length in reversed(lengths)])["labels"]}


def images(lengths):
    return {"pixel_values": torch.randn(len(lengths), 3, 32, 32), "labels": torch.arange(len(lengths)) % 2}


def waves(lengths):
    samples = torch.tensor(lengths)[:, None] * 60
    mask = (torch.arange(int(samples.max())) < samples).long()
    values = torch.randn(mask.shape) * mask
    return {"input_values": values, "attention_mask": mask, "labels": torch.arange(len(lengths)) % 2}


def sounds(lengths):
    told = writing(lengths)["labels"]
    return {"input_features": torch.randn(len(lengths), 8, 40), "labels": told}


def wav2vec2(**changes):
    return tf.Wav2Vec2ForSequenceClassification(tf.Wav2Vec2Config(**{**WAVES, **changes}))


MAKERS = {
    "bert": (lambda: tf.BertForSequenceClassification(tf.BertConfig(**BERTISH)), classes),
    "roberta": (lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**BERTISH, pad_token_id=1)), classes),
    "llama": (lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**BERTISH, num_key_value_heads=2)), writing),
    "gpt2": (lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=60)), writing),
    "t5": (
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(
                d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2, vocab_size=60, decoder_start_token_id=0
            )
        ),
        translation,
    ),
    "bart": (
        lambda: tf.BartForConditionalGeneration(tf.BartConfig(**SEQ2SEQ, max_position_embeddings=40)),
        translation,
    ),
    "vit": (
        lambda: tf.ViTForImageClassification(
            tf.ViTConfig(
                hidden_size=16,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=24,
                image_size=32,
                patch_size=8,
            )
        ),
        images,
    ),
    "resnet": (
        lambda: tf.ResNetForImageClassification(
            tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 2, 1, 1])
        ),
        images,
    ),
    "wav2vec2": (wav2vec2, waves),
    "whisper": (
        lambda: tf.WhisperForConditionalGeneration(
            tf.WhisperConfig(**SEQ2SEQ, num_mel_bins=8, max_source_positions=20)
        ),
        sounds,
    ),
}


def probes_of(name):
    """Two batches that differ in size and length."""
    torch.manual_seed(5)
    make = MAKERS[name][1]
    return [make([7, 5]), make([9, 12, 8])]


def prefix(name, low):
    """A model in training mode, the parameters from the group `low` up, and the cut below them."""
    torch.manual_seed(3)
    model = MAKERS[name][0]().train()
    learning = upper(model, low)
    return model, learning, find_cut(model, learning, probes_of(name))


def upper(model, low):
    groups = discover_layer_groups(model)
    return frozenset(p for group in list(groups)[low:] for p in group.parameters)
