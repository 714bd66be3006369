"""Tiny models that write, with a byte-level tokenizer trained on the spot."""

import functools

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

CORPUS = [
    "The cat sat on the mat. The dog ran in the park, and the bird sang.",
    "What is the capital of France? It is Paris, said the teacher.",
    "Summarize the following text. Translate it into Spanish. You answer briefly.",
    "A long river runs through the old town and under seven bridges.",
]
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou answer.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@functools.cache
def _trained(encoder):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    if encoder:
        bpe.post_processor = processors.TemplateProcessing(
            single="$A <|im_end|>", pair="$A $B <|im_end|>", special_tokens=[("<|im_end|>", 2)]
        )
    return bpe.to_str()


def byte_tokenizer(*, template=CHATML, encoder=False, **changes):
    """For a causal model; with `encoder`, one that ends every text as T5's does."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(encoder)),
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=template,
        **changes,
    )


def tiny_llama(**changes):
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 400}
    return LlamaForCausalLM(LlamaConfig(**sizes, **ids, initializer_range=0.5, **changes)).eval()


def tiny_t5(**changes):
    set_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    ids = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2, "vocab_size": 400}
    config = T5Config(**sizes, **ids, **changes)
    config.initializer_factor = 5.0
    return T5ForConditionalGeneration(config).eval()
