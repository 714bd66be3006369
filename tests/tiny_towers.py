"""Tiny models of two towers with their processors, and a tokenizer of few words."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    MobileNetV2Model,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
    set_seed,
)

from tests.tiny_pictures import MODELS, SIDE, processor_of

WORDS = [*"a photo of dark light gray picture the number very this is".split(), *".0123456789"]  # noqa: SIM905
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LENGTH = 12
VOCABULARY = len(WORDS) + len(SPECIAL)
TOWER = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "pad_token_id": 0}


def word_tokenizer():
    """A tokenizer whose texts end where CLIP looks for the end."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL[:3], *WORDS, SPECIAL[3]])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        pad_token="[PAD]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def _size(side):
    return {"height": side, "width": side}


def clip(**changes):
    """CLIP, with towers of different depth."""
    vision = {**TOWER, "num_hidden_layers": 3, "image_size": SIDE, "patch_size": 16}
    text = {**TOWER, **TEXT, "num_hidden_layers": 2, "bos_token_id": 2, "eos_token_id": VOCABULARY - 1}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8, **changes))
    pictures = CLIPImageProcessor(size=_size(SIDE), crop_size=_size(SIDE))
    return model, CLIPProcessor(pictures, word_tokenizer())


def siglip():
    """SigLIP, whose texts are always of the same length."""
    vision = {**TOWER, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": 16}
    text = {**TOWER, **TEXT, "num_hidden_layers": 2, "projection_size": 16}
    tokenizer = word_tokenizer()
    tokenizer.model_input_names = ["input_ids"]
    return SiglipModel(SiglipConfig(vision_config=vision, text_config=text)), SiglipProcessor(
        SiglipImageProcessor(size=_size(SIDE)), tokenizer
    )


def dual():
    """MobileNetV2 beside BERT."""
    picture = MobileNetV2Model(MODELS["mobilenet"][1])
    picture.conv_1x1.normalization.bias.data.fill_(0.5)  # else a tiny one says nothing of any picture
    picture.config.hidden_size = picture.conv_1x1.convolution.out_channels
    text = BertModel(BertConfig(**TOWER, **TEXT, num_hidden_layers=2))
    model = VisionTextDualEncoderModel(vision_model=picture, text_model=text)
    return model, VisionTextDualEncoderProcessor(processor_of("mobilenet"), word_tokenizer())


TOWERS = {"clip": clip, "siglip": siglip, "dual": dual}


def save_towers(name, folder, **changes):
    """Saves a tiny model as a pretrained one comes, and its processor."""
    set_seed(0)
    model, processor = TOWERS[name](**changes)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
