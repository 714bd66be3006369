"""Adapters by name: where they sit, what learns beside them, and what is refused."""

import json

import pytest
import torch
import transformers
from peft import LoHaConfig, LoraConfig
from transformers import BertForMaskedLM

from hf_transfer_plugin.adapters import METHODS, attach_adapter, describe_adapter, virtual_tokens
from hf_transfer_plugin.adapters.methods import learning_rate_of, ratio_of
from hf_transfer_plugin.config import ADAPTER_NAMES, ConfigError, TransferConfig
from hf_transfer_plugin.freezing import ever_learning_names, freeze_first, full, learning_names, set_trainable
from hf_transfer_plugin.layers import discover_layer_groups
from hf_transfer_plugin.layers.probe import dummy_inputs
from hf_transfer_plugin.planning import plan
from hf_transfer_plugin.recipes.defaults import build_strategy
from hf_transfer_plugin.schedules import GradualUnfreezing, LayerSampling, LinearProbeThenFineTune, Progress
from tests.conftest import TINY, bert
from tests.tiny_writers import tiny_llama, tiny_t5

LINEAR = ["query", "key", "value", "output.dense", "intermediate.dense"]


def gpt2():
    sizes = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))


def resnet():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2]}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, num_labels=3))


def wav2vec2():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    front = {"conv_dim": (8, 8), "conv_kernel": (3, 3), "conv_stride": (2, 2), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    return transformers.Wav2Vec2ForSequenceClassification(
        transformers.Wav2Vec2Config(**sizes, **front, **positions, vocab_size=30)
    )


def vit():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=16, patch_size=8))


MODELS = {"bert": bert, "llama": tiny_llama, "gpt2": gpt2, "t5": tiny_t5, "resnet": resnet, "wav2vec2": wav2vec2,
          "vit": vit}  # fmt: skip
TEXT, IMAGES = ("bert", "llama", "gpt2", "t5"), ("resnet", "wav2vec2", "vit")
PROMPTS = ("prefix", "prompt", "p-tuning")
# What PEFT itself cannot do is refused; what is said has tests of its own.
WITHOUT = {
    ("gpt2", "olora"), ("gpt2", "oft"), ("gpt2", "boft"), ("bert", "trainable-tokens"), ("resnet", "pissa"),
    ("resnet", "olora"), ("resnet", "vera"), ("resnet", "oft"),
    *((model, name) for model in IMAGES for name in (*PROMPTS, "trainable-tokens")),
}  # fmt: skip


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_every_name_has_a_method():
    assert set(METHODS) == set(ADAPTER_NAMES)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ADAPTER_NAMES)
@pytest.mark.parametrize("kind", MODELS)
def test_each_adapter_runs_in_each_model(kind, name):
    """The output is that of the model without it or, where it is not made so, at least finite; only it learns."""
    if (kind, name) in WITHOUT:
        with pytest.raises(ValueError, match=r"\. |Use `|Its layers are|must learn"):
            attach_adapter(MODELS[kind](), name)
        return
    model = MODELS[kind]().eval()
    inputs = next(dummy_inputs(model))
    with torch.no_grad():
        before = model(**inputs).logits.clone()
    spec = {"name": name} | ({"token_indices": [1, 2]} if name == "trainable-tokens" else {})
    adapted = attach_adapter(model, spec).eval()
    groups = discover_layer_groups(adapted)
    after = adapted(**inputs).logits
    if name not in PROMPTS:
        assert torch.allclose(after, before, atol=1e-4)
    assert torch.isfinite(after).all()
    assert {n for group in groups.open for n in group.parameters} == learning(adapted)
    assert set(groups.locked) | learning(adapted) == {n for n, _ in adapted.named_parameters()}
    assert groups.verified
    after.sum().backward()
    assert all(p.grad is None for n, p in adapted.named_parameters() if n in groups.locked)
    described = describe_adapter(adapted, spec)
    assert described["name"] == name
    assert json.loads(json.dumps(described)) == described


def test_lora_sits_in_every_linear_layer_and_the_head_learns():
    adapted = attach_adapter(bert(), "lora")
    config = adapted.peft_config["default"]
    assert config.target_modules == set(LINEAR)
    assert describe_adapter(adapted)["modules_to_save"] == ["classifier", "pooler"]
    assert str(config.task_type.value) == "SEQ_CLS"
    with_lora = {n.split(".lora_")[0] for n in learning(adapted) if ".lora_" in n}
    assert len(with_lora) == 3 * 6
    assert not any("pooler" in name or "classifier" in name for name in with_lora)
    names = [group.name for group in discover_layer_groups(adapted).open]
    assert names == ["layer.0", "layer.1", "layer.2", "head"]


def test_adalora_has_ranks_to_take_away():
    config = attach_adapter(bert(hidden_size=4), "adalora").peft_config["default"]
    assert (config.init_r, config.target_r) == (4, 2)


def test_upper_layers_only():
    adapted = attach_adapter(bert(), {"name": "lora", "r": 2, "layers": 1})
    assert {n.split("layer.")[1][0] for n in learning(adapted) if ".lora_" in n} == {"2"}
    assert [g.name for g in discover_layer_groups(adapted).open] == ["layer.2", "head"]


def test_norms_biases_and_named_modules_learn_beside_it():
    spec = {
        "name": "lora",
        "also_train": ["norms", "biases", "layer.2.intermediate.dense"],
        "target_modules": ["query"],
    }
    found = learning(attach_adapter(bert(), spec))
    assert any("LayerNorm.modules_to_save" in name for name in found)
    assert any(name.endswith("key.bias") for name in found)
    assert any("layer.2.intermediate.dense.modules_to_save" in name for name in found)
    assert not any("embeddings.LayerNorm" in name and name.endswith("weight") for name in found)


def test_in_the_upper_layers_only_their_norms_and_biases_learn_beside_it():
    adapted = attach_adapter(bert(), {"name": "lora", "layers": 1, "also_train": ["norms", "biases"]})
    assert [g.name for g in discover_layer_groups(adapted).open] == ["layer.2", "head"]
    found = learning(adapted)
    assert any("layer.2.output.LayerNorm.modules_to_save" in name for name in found)
    assert any(name.endswith("layer.2.output.dense.base_layer.bias") for name in found)


def test_new_weights_are_saved_with_it():
    model = BertForMaskedLM(transformers.BertConfig(**TINY))
    new = {"cls.predictions.transform.dense.weight", "cls.predictions.transform.dense.bias"}
    adapted = attach_adapter(model, "lora", new_weights=new)
    assert any("transform.dense.modules_to_save" in name for name in learning(adapted))


def test_a_tied_output_layer_with_a_new_bias_is_not_trained():
    model = transformers.DistilBertForMaskedLM(
        transformers.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=60)
    )
    new = {"vocab_projector.bias", "vocab_transform.weight", "vocab_transform.bias"}
    found = learning(attach_adapter(model, "lora", new_weights=new))
    assert any("vocab_transform.modules_to_save" in name for name in found)
    assert not any("vocab_projector" in name for name in found)


def test_only_the_outermost_of_nested_modules_is_saved():
    adapted = attach_adapter(bert(), {"name": "lora", "also_train": ["dense"], "target_modules": ["query"]})
    saved = [name for name, module in adapted.named_modules() if hasattr(module, "modules_to_save")]
    assert not any(one.startswith(f"{other}.") for one in saved for other in saved)
    config = adapted.peft_config["default"]
    assert len(config.modules_to_save) - 1 <= len(set(config.modules_to_save))  # PEFT adds the classifier once more


def test_names_of_modules_may_be_one_text():
    found = learning(attach_adapter(bert(), {"name": "lora", "also_train": "norms"}))
    assert any("LayerNorm.modules_to_save" in name for name in found)


def test_sets_and_tuples_become_json():
    config = TransferConfig(model="a", dataset="b", adapter={"name": "lora", "target_modules": {"query", "key"}})
    assert json.loads(json.dumps(config.adapter_spec))["target_modules"] == ["key", "query"]


def test_an_object_is_read_and_not_changed():
    given = LoraConfig(r=4)
    for make in (bert, tiny_llama):
        adapted = attach_adapter(make(), given)
        assert adapted.peft_config["default"].r == 4
    assert given.target_modules is given.modules_to_save is None
    assert len({n.split(".lora_")[0] for n in learning(attach_adapter(bert(), given)) if ".lora_" in n}) == 18


def test_a_large_model_without_weights_takes_any_start():
    with torch.device("meta"):
        model = bert()
    assert learning(attach_adapter(model, "pissa", groups=discover_layer_groups(model)))


def test_a_language_model_keeps_its_output_layer():
    assert describe_adapter(attach_adapter(tiny_llama(), "lora")).get("modules_to_save") is None


@pytest.mark.parametrize(
    "given",
    [
        LoraConfig(r=3, target_modules=["query"]),
        {"peft_type": "LOHA", "r": 3},
        LoHaConfig(r=3, target_modules=["key"]),
    ],
    ids=["lora object", "loha mapping", "loha object"],
)
def test_pefts_own_configurations_pass_through(given):
    adapted = attach_adapter(bert(), given)
    assert adapted.peft_config["default"].r == 3
    assert any("classifier.modules_to_save" in name for name in learning(adapted))


def test_a_saved_configuration_passes_through(tmp_path):
    """Of an adapter that was trained elsewhere: its method is taken, not where it came from."""
    attach_adapter(bert(), {"name": "lora", "r": 5, "target_modules": ["query"]}).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**saved, "base_model_name_or_path": "x/y"}))
    adapted = attach_adapter(bert(), str(tmp_path / "adapter_config.json"))
    config = adapted.peft_config["default"]
    assert (config.r, config.inference_mode) == (5, False)
    assert config.base_model_name_or_path != "x/y"
    assert any(".lora_" in name for name in learning(adapted))
    config = TransferConfig(model="a/b", dataset="c", adapter=LoraConfig(r=5, target_modules=["query"]))
    assert json.loads(json.dumps(config.to_dict()))["adapter"]["r"] == 5


def test_schedules_run_over_the_groups_with_adapters():
    """Three groups are open, so gradual unfreezing thaws at 0, 1/2 and all of `until`; nothing locked ever learns."""
    adapted = attach_adapter(bert(), {"name": "lora", "layers": 2})
    groups = discover_layer_groups(adapted)

    def at(step, schedule):
        names = learning_names(schedule, Progress(step, 100), adapted, groups)
        assert not names & groups.locked
        return [g.name for g in groups.open if names & set(g.parameters)]

    gradual = GradualUnfreezing()
    assert [at(step, gradual) for step in (0, 25, 50)] == [
        ["head"], ["layer.2", "head"], ["layer.1", "layer.2", "head"]
    ]  # fmt: skip
    drawn = {tuple(at(step, LayerSampling(active=1, every=1))) for step in range(20)}
    assert drawn == {("layer.1", "head"), ("layer.2", "head")}
    assert at(0, LinearProbeThenFineTune(frozen=1)) == ["layer.2", "head"]
    assert ever_learning_names(gradual, adapted, groups) == learning(adapted)
    assert freeze_first(1)(adapted, groups) == {n for g in groups.open[1:] for n in g.parameters}
    assert full()(adapted, groups) == learning(adapted)
    with pytest.raises(ValueError, match="`k` must lie between 0 and 2"):
        freeze_first(3)(adapted, groups)


def test_the_table_tells_what_can_learn():
    text = str(discover_layer_groups(attach_adapter(bert(), "lora")))
    assert "can learn" in text.splitlines()[0]
    assert text.splitlines()[1].split()[-1] == "0"


def test_transformers_own_adapters_are_known():
    model = bert()
    model.add_adapter(LoraConfig(target_modules=["query"]))
    groups = discover_layer_groups(model)
    assert [g.name for g in groups.open] == ["layer.0", "layer.1", "layer.2"]
    assert "can learn" in str(groups)


def test_frozen_adapters_are_refused():
    adapted = attach_adapter(bert(), "lora")
    set_trainable(adapted, [])
    groups = discover_layer_groups(adapted)
    with pytest.raises(ValueError, match="all frozen. Load them with `is_trainable=True`"):
        ever_learning_names(full(), adapted, groups)


def test_the_plan_counts_adapters_and_their_cut():
    adapted = attach_adapter(bert(), {"name": "lora", "layers": 1})
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    found = plan(adapted, full(), max_steps=10)
    assert found.measured
    assert found.phases[0].trainable_parameters == sum(discover_layer_groups(adapted).open_sizes.values())
    lower = plan(attach_adapter(bert(), "lora"), full(), max_steps=10)
    assert found.phases[0].flops < lower.phases[0].flops
    assert found.phases[0].activation_bytes < lower.phases[0].activation_bytes
    assert all(torch.equal(p, before[name]) for name, p in adapted.named_parameters())


def test_prompts_take_places_away():
    assert virtual_tokens(attach_adapter(bert(), {"name": "prompt", "num_virtual_tokens": 4})) == 4
    assert virtual_tokens(attach_adapter(bert(), "lora")) == 0
    assert virtual_tokens(bert()) == 0


def test_lora_plus_is_a_rate():
    config = TransferConfig(model="a", dataset="b", adapter={"name": "lora+", "ratio": 8})
    assert build_strategy(config)[1].lora_b_multiplier == 8
    both = TransferConfig(model="a", dataset="b", adapter="lora+", learning_rates='{"name": "layerwise-decay"}')
    rates = build_strategy(both)[1]
    assert (rates.lora_b_multiplier, rates.decay) == (16, 0.9)
    assert build_strategy(TransferConfig(model="a", dataset="b", adapter="lora"))[1] is None
    assert ratio_of({"name": "lora"}) == 1


def test_a_strategy_may_name_an_adapter():
    config = TransferConfig(model="a", dataset="b", strategy="lora")
    assert config.adapter_spec == {"name": "lora"}
    assert build_strategy(config)[0].name == "full"
    mixed = TransferConfig(model="a", dataset="b", adapter="lora", strategy="gradual-unfreezing")
    assert build_strategy(mixed)[0].name == "gradual-unfreezing"
    assert build_strategy(TransferConfig(model="a", dataset="b", adapter="ia3"))[0].name == "full"
    assert learning_rate_of({"name": "ia3"}) > learning_rate_of({"name": "lora"})


BAD = {
    "unknown": (bert, "loar", "must name one of lora, dora"),
    "rank": (bert, {"name": "lora", "r": 17}, "`r` must be at most 16, the smallest side"),
    "ranks of adalora": (bert, {"name": "adalora", "init_r": 4, "target_r": 2, "layers": 7}, "between 1 and 3"),
    "rank of adalora": (bert, {"name": "adalora", "init_r": 99}, "`init_r` must be at most 16"),
    "targets": (
        bert,
        {"name": "lora", "target_modules": ["q_proj"]},
        "match none. These could be: .*query .3 Linear.",
    ),
    "pattern": (bert, {"name": "lora", "target_modules": ".*nothing"}, "'.*nothing' match none"),
    "unsupported target": (bert, {"name": "lora", "target_modules": ["LayerNorm"]}, "PEFT cannot put LORA into Bert"),
    "field": (bert, {"name": "lora", "rank": 4}, "LoraConfig has no field 'rank'"),
    "type": (bert, {"peft_type": "LORO"}, "`peft_type` must be one of ADALORA"),
    "layers": (bert, {"name": "lora", "layers": 4}, "between 1 and 3"),
    "layers twice": (bert, {"name": "lora", "layers": 1, "target_modules": ["query"]}, "both say where"),
    "layers of prompts": (bert, {"name": "prompt", "layers": 1}, "prompts stand before the text"),
    "ratio": (bert, {"name": "lora", "ratio": 4}, "name the adapter `lora.`"),
    "also": (bert, {"name": "lora", "also_train": ["nowhere"]}, "has no 'nowhere'"),
    "biases": (bert, {"name": "ia3", "also_train": ["biases"]}, "saves none"),
    "tokens and head": (bert, {"name": "trainable-tokens", "token_indices": [1]}, "must learn, too. Use `lora`"),
    "tokens of images": (vit, {"name": "trainable-tokens"}, "a table of them"),
    "prompts for images": (vit, "prompt", "which ViTForImageClassification does not do"),
    "prompts for speech": (wav2vec2, "prefix", "which Wav2Vec2ForSequenceClassification does not do"),
    "prompts for masks": (lambda: BertForMaskedLM(transformers.BertConfig(**TINY)), "prefix", "does not do"),
    "prompts for tags": (
        lambda: transformers.BertForTokenClassification(transformers.BertConfig(**TINY)),
        "prompt",
        "another place than its labels name. Use `prefix`",
    ),
    "prefix without keys": (
        lambda: transformers.DistilBertForSequenceClassification(
            transformers.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=60)
        ),
        "prefix",
        "takes `past_key_values`",
    ),
    "olora": (gpt2, "olora", "transposed layers"),
    "oft": (gpt2, "oft", "PEFT cannot put OFT into GPT2LMHeadModel"),
    "oft of convolutions": (resnet, "oft", "does not begin as the model itself"),
    "vera": (resnet, "vera", "PEFT cannot put VERA"),
    "pissa": (resnet, "pissa", "PEFT cannot put LORA"),
    "tokens without indices": (tiny_llama, "trainable-tokens", "`token_indices` must name the tokens"),
    "dora and pissa": (bert, {"name": "dora", "init_lora_weights": "pissa"}, "Use one of them"),
    "olora by its start": (
        gpt2,
        {"name": "lora", "init_lora_weights": "olora", "target_modules": ["c_attn"]},
        "transposed",
    ),
    "prompts and the last token": (
        lambda: transformers.GPT2ForSequenceClassification(gpt2().config),
        "prompt",
        "read the padding. Use `prefix`",
    ),
    "prompts that fail": (
        lambda: transformers.T5ForSequenceClassification(tiny_t5().config),
        "prompt",
        "does not go with T5ForSequenceClassification",
    ),
    "json": (bert, '{"name": "lora"', "is no JSON"),
    "file": (bert, "nowhere/adapter_config.json", "no file"),
    "value": (
        bert,
        {"name": "lora", "layers": None, "target_modules": ["query"], "layers_pattern": "layer"},
        "refuses",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    make, adapter, message = BAD[case]
    with pytest.raises((ValueError, ConfigError), match=message):
        attach_adapter(make(), adapter)


def test_a_second_adapter_is_refused():
    with pytest.raises(ValueError, match="already has an adapter. Merge it first"):
        attach_adapter(attach_adapter(bert(), "lora"), "lora")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": "lora", "strategy": "dora"}, "both name an adapter"),
        ({"adapter_output": "both"}, "there is no `adapter`"),
        ({"adapter": "lora", "adapter_output": "merge"}, "`adapter_output` must be one of adapter, merged, both"),
        ({"adapter": "lorra"}, "`adapter` must name one of"),
        ({"base_precision": "2bit"}, "`base_precision` must be one of bfloat16"),
    ],
)
def test_refused_in_a_configuration(changes, message):
    with pytest.raises(ConfigError, match=message):
        TransferConfig(model="a", dataset="b", **changes)
