"""After training: adapters loaded, merged, combined, and made from a whole fine-tune."""

import json

import pytest
import torch
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration, set_seed

from hf_transfer_plugin.adapters.loading import base_of, is_adapter, load_adapter, load_adapters
from tests.conftest import TINY, VOCABULARY, bert

pytestmark = [
    # PEFT asks Transformers for a property by its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
LINEAR = {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]}
METHODS = {
    "lora": LoraConfig(r=4, **LINEAR),
    "lora-biases": LoraConfig(r=4, bias="all", **LINEAR),
    "dora": LoraConfig(r=4, use_dora=True, **LINEAR),
    "rslora": LoraConfig(r=4, use_rslora=True, **LINEAR),
    "lora-embedding": LoraConfig(
        r=4, target_modules=["word_embeddings", "query", "intermediate.dense"], modules_to_save=["classifier"]
    ),
    "adalora": AdaLoraConfig(init_r=4, total_step=10, tinit=1, tfinal=1, **LINEAR),
    "ia3": IA3Config(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]),
    "vera": VeraConfig(r=4, target_modules=["query"], modules_to_save=["classifier"]),
    "oft": OFTConfig(r=0, oft_block_size=4, **LINEAR),
    "boft": BOFTConfig(boft_block_size=4, **LINEAR),
    "loha": LoHaConfig(r=4, **LINEAR),
    "lokr": LoKrConfig(r=4, **LINEAR),
    "ln-tuning": LNTuningConfig(target_modules=["LayerNorm"], modules_to_save=["classifier"]),
    "trainable-tokens": TrainableTokensConfig(token_indices=[5, 6], target_modules=["word_embeddings"]),
}
PROMPTS = {
    "prefix": PrefixTuningConfig(num_virtual_tokens=4),
    "prompt": PromptTuningConfig(num_virtual_tokens=4),
    "p-tuning": PromptEncoderConfig(num_virtual_tokens=4),
}


def based(seed=0, **changes):
    set_seed(seed)
    return bert(**changes).eval()


def gpt2(seed=0, **changes):
    set_seed(seed)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "vocab_size": VOCABULARY}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1, pad_token_id=0, **changes)).eval()


def t5(seed=0, **changes):
    set_seed(seed)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": VOCABULARY}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, **changes)).eval()


def moved(model, seed=1, size=0.3):
    """The model, with every parameter that learns moved at random, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                step = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter += (size * step).to(parameter.dtype)
    return model


def saved(folder, config, model=None, seed=1, task_type="SEQ_CLS"):
    """A folder with an adapter that has learned."""
    config = type(config).from_peft_type(**{**config.to_dict(), "task_type": task_type})
    wrapped = moved(get_peft_model(model or based(), config), seed)
    wrapped.peft_config["default"].base_model_name_or_path = "tester/base"
    wrapped.eval().save_pretrained(folder)
    return wrapped


IDS = torch.arange(3, 27).reshape(3, 8)


def logits(model, ids=IDS):
    extra = {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
    with torch.no_grad():
        return model(input_ids=ids, **extra).logits


@pytest.mark.parametrize("name", [*METHODS, *PROMPTS])
def test_a_loaded_adapter_answers_as_the_saved_one(tmp_path, name):
    before = saved(tmp_path, {**METHODS, **PROMPTS}[name])
    assert is_adapter(tmp_path)
    assert base_of(tmp_path) == "tester/base"
    expected, bare = logits(before), logits(based())
    assert not torch.allclose(expected, bare)
    model = load_adapter(based(), tmp_path)
    assert torch.equal(logits(model.eval()), expected)


def test_adalora_is_loaded_with_the_ranks_that_it_was_left_with(tmp_path):
    config = AdaLoraConfig(init_r=4, target_r=2, total_step=6, tinit=1, tfinal=1, task_type="SEQ_CLS", **LINEAR)
    model = moved(get_peft_model(based(), config))
    model.peft_config["default"].base_model_name_or_path = "tester/base"
    for step in range(1, 7):
        model(input_ids=IDS, labels=torch.tensor([0, 1, 0])).loss.backward()
        model.base_model.update_and_allocate(step)
        model.zero_grad()
    expected = logits(model.eval())
    model.save_pretrained(tmp_path)
    ranks = {v.shape[0] for k, v in load_file(tmp_path / "adapter_model.safetensors").items() if "lora_A" in k}
    assert max(ranks) < 4
    assert torch.allclose(logits(load_adapter(based(), tmp_path).eval()), expected, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"first `bert.encoder.layer.0.*lora_A`, of shape \(\d, 16\) in the file and \(4, 32\)"
    ):
        load_adapter(based(hidden_size=32), tmp_path)


@pytest.mark.parametrize("name", ["lora", "lora-biases", "dora", "adalora", "ia3", "boft", "prefix", "prompt"])
def test_an_adapter_for_a_wider_base_is_refused_with_names_and_shapes(tmp_path, name):
    saved(tmp_path, {**METHODS, **PROMPTS}[name])
    base = based(hidden_size=32)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"was trained on 'tester/base' and does not fit this BertForSequenceClassification: \d+ of its \d+ "
        r"parameters differ, first `\S+`, of shape \([\d, ]+\) in the file and \([\d, ]+\) in the model. "
        r"Load 'tester/base', or",
    ):
        load_adapter(base, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    assert list(before) == list(base.state_dict())


def test_the_first_difference_is_told_in_numbers(tmp_path):
    saved(tmp_path, METHODS["lora"])
    base = based(num_labels=3)
    with pytest.raises(ValueError, match=r"2 of its 14 .* first `classifier.bias`, of shape \(2,\) .* and \(3,\) in"):
        load_adapter(base, tmp_path)


def test_more_or_fewer_layers_are_told_by_what_is_missing(tmp_path):
    saved(tmp_path, METHODS["lora"])
    absent = (
        r"first `bert.encoder.layer.2.attention.self.query.lora_A.weight`, of shape \(4, 16\) in the file and missing"
    )
    with pytest.raises(ValueError, match=rf"4 of its 14 parameters differ, {absent} in the model"):
        load_adapter(based(num_hidden_layers=2), tmp_path)
    with pytest.raises(ValueError, match=r"`bert.encoder.layer.3.*`, missing in the file and of shape \(4, 16\) in"):
        load_adapter(based(num_hidden_layers=4), tmp_path)


def test_a_file_that_lost_its_head_is_refused(tmp_path):
    saved(tmp_path, METHODS["lora"])
    file = tmp_path / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "classifier" not in k}, file)
    with pytest.raises(
        ValueError, match="2 of its 12 parameters differ, first `classifier.weight`, missing in the file"
    ):
        load_adapter(based(), tmp_path)


def test_targets_that_are_not_in_the_base_are_named(tmp_path):
    saved(tmp_path, METHODS["lora"])
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel: its targets \(query, value\) match no module of it"):
        load_adapter(gpt2(), tmp_path)


def test_folders_without_a_whole_adapter_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"folder of an adapter, with adapter_config.json, but .* has none"):
        load_adapter(based(), tmp_path)
    saved(tmp_path, METHODS["lora"])
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is damaged or no safetensors file"):
        load_adapter(based(), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights of an adapter as adapter_model.safetensors, but"):
        load_adapter(based(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(ValueError, match="must be the config of an adapter, but is no JSON object"):
        base_of(tmp_path)


def test_several_adapters_share_a_base_and_are_switched(tmp_path):
    expected = {
        name: logits(saved(tmp_path / name, METHODS["lora"], seed=seed)) for name, seed in (("a", 1), ("b", 2))
    }
    model = load_adapters(based(), {name: tmp_path / name for name in expected}).eval()
    assert torch.equal(logits(model), expected["a"])
    for name in ("b", "a", "b"):
        model.set_adapter(name)
        assert torch.equal(logits(model), expected[name])
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(based()))


def test_what_cannot_live_together_is_refused(tmp_path):
    saved(tmp_path / "lora", METHODS["lora"])
    saved(tmp_path / "prompt", PROMPTS["prompt"])
    with pytest.raises(ValueError, match="'a' and 'b' cannot live on one base: one is a prompt method"):
        load_adapters(based(), {"a": tmp_path / "lora", "b": tmp_path / "prompt"})
    with pytest.raises(ValueError, match="`base` must be a model without adapter, but this"):
        load_adapter(load_adapter(based(), tmp_path / "lora"), tmp_path / "lora")
    with pytest.raises(ValueError, match="`trainable` must be False for prompt methods"):
        load_adapter(based(), tmp_path / "prompt", trainable=True)
    with pytest.raises(ValueError, match="at least one adapter"):
        load_adapters(based(), {})


def test_only_a_trainable_adapter_learns(tmp_path):
    saved(tmp_path, METHODS["lora"])
    assert not any(p.requires_grad for p in load_adapter(based(), tmp_path).parameters())
    learning = {n for n, p in load_adapter(based(), tmp_path, trainable=True).named_parameters() if p.requires_grad}
    assert len(learning) == 14
    assert all("lora_" in name or "modules_to_save" in name for name in learning)


def test_how_it_writes_comes_with_the_adapter(tmp_path):
    saved(tmp_path, LoraConfig(r=2, target_modules=["c_attn"]), gpt2(), task_type="CAUSAL_LM")
    assert load_adapter(gpt2(), tmp_path).generation_config.max_new_tokens is None
    GenerationConfig(max_new_tokens=7, eos_token_id=1).save_pretrained(tmp_path)
    model = load_adapter(gpt2(), tmp_path)
    assert model.generation_config.max_new_tokens == 7
    assert model.generate(input_ids=IDS[:1], min_new_tokens=7).shape == (1, 15)


def test_an_adapter_over_tied_embeddings_is_found_again(tmp_path):
    config = LoraConfig(r=2, target_modules=["shared", "q", "v"])
    before = saved(tmp_path, config, t5(), task_type="SEQ_2_SEQ_LM")
    assert torch.equal(logits(load_adapter(t5(), tmp_path).eval()), logits(before))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    assert TINY["hidden_size"] == 16
