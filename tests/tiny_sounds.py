"""Sounds made on the spot, and tiny models that hear them."""

import io
import json

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

RATE = 16_000
PITCHES = {"high": 900, "low": 300}
LANGUAGES = ["<|en|>", "<|zh|>", "<|de|>", "<|es|>"]  # the first of Whisper's, which its tokenizer counts
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", *LANGUAGES, "<|transcribe|>", "<|translate|>"]
WAV2VEC2 = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": (8, 8, 8), "conv_stride": (5, 4, 4), "conv_kernel": (10, 4, 4), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16, "vocab_size": 40,
}  # fmt: skip
WHISPER = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_source_positions": 50,
    "max_target_positions": 40, "num_mel_bins": 16, "vocab_size": 300, "decoder_start_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 0, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip


def tone(name="high", seconds=0.3, *, rate=RATE, channels=1, loudness=0.3):
    """A sine as samples; several channels hold it, and silence, in turn."""
    sound = loudness * np.sin(2 * np.pi * PITCHES[name] * np.arange(int(seconds * rate)) / rate)
    return np.stack([sound * (1 - i % 2) for i in range(channels)], 1).astype(np.float32)


def as_bytes(samples, rate=RATE, kind="FLAC"):
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=kind)
    return content.getvalue()


def sound_rows(count=12, **changes):
    """Rows as a dataset holds them: high and low in turn, of several lengths."""
    names = [("high", "low")[i % 2] for i in range(count)]
    given = [
        as_bytes(tone(name, 0.3 + 0.02 * (i % 5), **changes), changes.get("rate", RATE))
        for i, name in enumerate(names)
    ]
    return {"audio": [{"bytes": content, "path": None} for content in given], "label": names}


def wav2vec2(folder, letters="", **changes):
    """As it comes: without a head, or with one for letters."""
    torch.manual_seed(0)
    extractor, config = Wav2Vec2FeatureExtractor(), {**WAV2VEC2, **changes}
    if not letters:
        Wav2Vec2Model(Wav2Vec2Config(**config)).save_pretrained(folder)
        extractor.save_pretrained(folder)
        return str(folder)
    folder.mkdir(parents=True)
    tokens = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "|", *letters])}
    (folder / "vocab.json").write_text(json.dumps(tokens))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": None, "eos_token": None}
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **names)).save_pretrained(folder)
    Wav2Vec2ForCTC(Wav2Vec2Config(**{**config, "vocab_size": len(tokens)}, pad_token_id=0)).save_pretrained(folder)
    return str(folder)


def whisper_tokenizer(folder):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=[*SPECIAL, "<|notimestamps|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["high low"], trainer)
    bpe.save(str(folder / "bpe.json"))
    return WhisperTokenizer(tokenizer_file=str(folder / "bpe.json"), pad_token="<|endoftext|>")


def whisper(folder, *, multilingual=False, **changes):
    """A Whisper that hears one second."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    model = WhisperForConditionalGeneration(WhisperConfig(**{**WHISPER, **changes}))
    model.generation_config._from_model_config = False  # else what follows is saved, but not read again
    model.generation_config.is_multilingual = multilingual
    if multilingual:
        model.generation_config.lang_to_id = {"<|en|>": 2, "<|es|>": 5}
        model.generation_config.task_to_id = {"transcribe": 6, "translate": 7}
    model.generation_config.no_timestamps_token_id = 8
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    WhisperProcessor(extractor, whisper_tokenizer(folder)).save_pretrained(folder)
    return str(folder)
