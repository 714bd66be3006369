"""Frozen weights in 16, 8 and 4 bits: they stay as they were loaded, and what learns is kept in 32 bits."""

import os
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    set_seed,
)

import hf_transfer_plugin._optional as optional
from benchmarks.base_precision import summarise, table
from hf_transfer_plugin import attach, freeze_first, full
from hf_transfer_plugin.adapters import attach_adapter
from hf_transfer_plugin.recipes.base_precision import (
    check_base_precision,
    check_frozen,
    head_names,
    is_quantised,
    keep_gradients,
    loading_settings,
    make_ready_for_adapters,
)
from tests.conftest import TINY, VOCABULARY, bert, rows
from tests.test_callbacks import Watcher

pytestmark = [
    pytest.mark.slow,
    # PEFT asks Transformers for a property by its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
WIDE = TINY | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
CONSTANT = {"lr_scheduler_type": "constant", "learning_rate": 2e-3, "max_steps": 8}


def with_library(*precisions):
    """The precisions, each skipped where its library is missing; in CI, which installs it for the slow tests, not."""
    libraries = {"8bit": "bitsandbytes", "4bit": "bitsandbytes", "int8": "torchao"}
    missing = {name: not os.environ.get("CI") and find_spec(library) is None for name, library in libraries.items()}
    return [
        pytest.param(
            name,
            marks=[pytest.mark.slow, pytest.mark.skipif(missing[name], reason=f"pip install {libraries[name]}")],
        )
        for name in precisions
    ]


def on(device="cpu", **changes):
    """Arguments as the checks read them, of a machine that is not here."""
    defaults = {"device": torch.device(device), "bf16": False, "fp16": False, "fsdp": None, "deepspeed": None}
    return SimpleNamespace(**{**defaults, **changes})


def sentences(count=16):
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, VOCABULARY, (8,), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "labels": ids} for ids in texts]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A classifier and a language model on disk."""
    set_seed(0)
    folder = tmp_path_factory.mktemp("bases")
    bert(**WIDE).save_pretrained(folder / "classifier")
    LlamaForCausalLM(LlamaConfig(**WIDE, pad_token_id=0)).save_pretrained(folder / "writer")
    return folder


KINDS = {"classifier": (AutoModelForSequenceClassification, rows), "writer": (AutoModelForCausalLM, sentences)}


def loaded(folders, kind, precision, args, adapter="lora"):
    """As a recipe does it: loaded in the precision, with an adapter above."""
    set_seed(0)
    auto = KINDS[kind][0]
    head = head_names(bert(**WIDE)) if kind == "classifier" else []
    base = auto.from_pretrained(folders / kind, **loading_settings(precision, args=args, head=head))
    return make_ready_for_adapters(attach_adapter(keep_gradients(base), adapter))


def trained(make_trainer, folders, kind, precision, adapter="lora", callbacks=None, **changes):
    blank = make_trainer(**CONSTANT | changes)
    trainer = make_trainer(
        loaded(folders, kind, precision, blank.args, adapter), train=KINDS[kind][1](), callbacks=callbacks,
        **CONSTANT | changes,
    )  # fmt: skip
    attach(trainer, schedule=full())
    trainer.train()
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("precision", "args", "adapted", "adapter", "message"),
    [
        ("half", on(), True, None, "must be one of bfloat16, float16, 8bit, 4bit, int8, but got 'half'"),
        ("float16", on(fp16=True), True, None, "needs a GPU.*--base_precision bfloat16 --bf16 true"),
        ("bfloat16", on(), True, None, "autocast of `bf16`, but it is off. Add `--bf16 true`"),
        ("bfloat16", on("cuda", fp16=True), False, None, "autocast of `bf16`, but it is off"),
        ("float16", on("cuda", bf16=True), True, None, "autocast of `fp16`, but it is off. Add `--fp16 true`"),
        ("bfloat16", on("cuda", bf16=True, fsdp="full_shard"), True, None, "FSDP and DeepSpeed cannot flatten"),
        ("4bit", on(deepspeed={"stage": 3}), True, None, "FSDP and DeepSpeed cannot flatten"),
        ("8bit", on(), False, None, "quantised weights, which cannot learn.*Add `--adapter lora`"),
        ("4bit", on(), False, None, "quantised weights, which cannot learn"),
        ("int8", on("cuda"), False, None, "quantised weights, which cannot learn"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(precision, args, adapted, adapter, message):
    with pytest.raises(ValueError, match=message):
        check_base_precision(precision, args, adapted=adapted, adapter=adapter)


@pytest.mark.parametrize(
    ("precision", "args"), [(None, on()), ("bfloat16", on(bf16=True)), ("float16", on("cuda", fp16=True))]
)
@pytest.mark.parametrize("adapted", [True, False])
def test_what_can_be_passes(precision, args, adapted):
    check_base_precision(precision, args, adapted=adapted)


@pytest.mark.parametrize(
    ("precision", "library"), [("4bit", "bitsandbytes"), ("8bit", "bitsandbytes"), ("int8", "torchao")]
)
def test_a_missing_library_is_named_with_its_pip_line(monkeypatch, precision, library):
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=rf"{precision}.*`{library}` is needed.*pip install \"hf-transfer-plugin\[quantization\]"
    ):
        check_base_precision(precision, on(), adapted=True)
    with pytest.raises(ImportError, match=library):
        loading_settings(precision)


def test_a_device_that_the_library_lacks_is_told(monkeypatch):
    library = SimpleNamespace(supported_torch_devices={"cuda", "xpu"})
    monkeypatch.setattr("hf_transfer_plugin.recipes.base_precision.require", lambda name, extra: library)
    with pytest.raises(ValueError, match=r"that bitsandbytes supports \(cuda, xpu\), but this run is on 'cpu'"):
        check_base_precision("4bit", on(), adapted=True)
    check_base_precision("4bit", on("cuda"), adapted=True)


@pytest.mark.parametrize(
    ("precision", "device", "adapter", "message"),
    [
        ("4bit", "cpu", {"name": "pissa"}, "'pissa' starts from a decomposition.*Use `--adapter lora`"),
        ("int8", "cuda", {"name": "olora"}, "'olora' starts from a decomposition"),
        ("int8", "cuda", {"peft_type": "LORA", "init_lora_weights": "pissa"}, "'The adapter' starts from a decompos"),
        ("8bit", "cpu", {"name": "dora"}, "cannot do in 8 bits on 'cpu'. Use `--base_precision 4bit` or `int8`"),
        ("8bit", "cpu", {"name": "lora", "use_dora": True}, "'dora' reads the weights back"),
    ],
)
def test_adapters_that_need_exact_weights_are_refused_over_quantised_ones(
    monkeypatch, precision, device, adapter, message
):
    monkeypatch.setattr("hf_transfer_plugin.recipes.base_precision.require", lambda name, extra: SimpleNamespace())
    with pytest.raises(ValueError, match=message):
        check_base_precision(precision, on(device), adapted=True, adapter=adapter)
    check_base_precision(precision, on(device), adapted=True, adapter={"name": "lora"})


def test_a_precision_of_frozen_weights_is_refused_where_none_is_frozen(model, groups):
    everything = {name for name, _ in model.named_parameters()}
    with pytest.raises(ValueError, match="'bfloat16' is for weights that stay frozen, but every layer learns"):
        check_frozen("bfloat16", model, everything)
    check_frozen(None, model, everything)
    check_frozen("bfloat16", model, everything - set(groups[0].parameters))


def test_settings_of_16_bits_and_of_none():
    assert loading_settings(None) == {}
    assert loading_settings("bfloat16", args=on(bf16=True)) == {"dtype": torch.bfloat16}
    assert loading_settings("float16") == {"dtype": torch.float16}


def test_heads_are_found_whole():
    roberta = RobertaForSequenceClassification(RobertaConfig(**TINY))
    assert head_names(bert()) == ["classifier", "bert.pooler"]
    assert head_names(roberta) == ["classifier"]
    assert head_names(LlamaForCausalLM(LlamaConfig(**TINY))) == ["lm_head"]
    assert head_names(BertModel(bert().config)) == []


ADAPTERS = {
    "lora": "lora",
    "norms": {"name": "lora", "also_train": ["norms"]},
    "biases": {"name": "lora", "also_train": ["biases"]},
    "dora": "dora",
    "ia3": "ia3",
    "ln-tuning": "ln-tuning",
    "prefix": "prefix",
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_learn_in_32_bits_over_a_base_in_16_that_stays(make_trainer, folders, kind, adapter):
    watcher = Watcher()
    trainer = trained(
        make_trainer,
        folders,
        kind,
        "bfloat16",
        ADAPTERS[adapter],
        [watcher],
        bf16=True,
        per_device_train_batch_size=16,
    )
    model, (start, first, second) = trainer.model, watcher.seen[:3]
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in model.named_parameters():
        before, values = start[name], (first[name], second[name], parameter)
        assert all(value.dtype == before.dtype for value in values), name
        if name in learning:
            assert parameter.dtype == torch.float32, name
        else:
            assert all(torch.equal(before, value) for value in values), name
    # Biases share their layer with weights that are turned with them.
    frozen = {parameter.dtype for name, parameter in model.named_parameters() if name not in learning}
    assert frozen == {torch.bfloat16} or (adapter == "biases" and kind == "classifier")
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_the_head_beside_an_adapter_takes_up_small_updates(make_trainer, folders):
    """PEFT keeps adapters in 32 bits, but not what learns in full beside them."""
    changes = {"bf16": True, "learning_rate": 1e-6}
    kept = trained(make_trainer, folders, "classifier", "bfloat16", **changes).model.state_dict()
    unturned = loaded(folders, "classifier", "bfloat16", on(bf16=True))
    make_trainer(unturned, train=rows(), **CONSTANT | changes).train()
    name = "base_model.model.bert.pooler.modules_to_save.default.dense.weight"
    before, rounded = loaded(folders, "classifier", "bfloat16", on()).state_dict()[name], unturned.state_dict()[name]
    assert (before.dtype, rounded.dtype, kept[name].dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    # All but entries near zero are larger than 2⁸ updates.
    assert (rounded != before).float().mean() < 0.1
    assert (kept[name] != before.float()).float().mean() > 0.9


class Once(nn.Module):
    """Counts the passes of a block, with and without a gradient."""

    def __init__(self, blocks):
        super().__init__()
        self.forward_passes, self.backward_passes = [], []
        for i, block in enumerate(blocks):
            block.register_forward_pre_hook(
                lambda m, args, i=i: self.forward_passes.append(i) if torch.is_grad_enabled() else None
            )
            block.register_full_backward_hook(lambda m, into, out, i=i: self.backward_passes.append(i))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_below_the_lowest_adapter_are_neither_differentiated_nor_recomputed(make_trainer, checkpointing):
    base = bert(num_hidden_layers=4).to(torch.bfloat16)
    if checkpointing:
        base.activation_checkpointing_enable()  # PEFT then puts on the hook at once, as in many a script.
    model = make_ready_for_adapters(attach_adapter(base, {"name": "lora", "layers": 2}))
    trainer = make_trainer(
        model, bf16=True, max_steps=1, activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip
    attach(trainer, schedule=full())
    counted = Once([block.attention.output.dense for block in model.base_model.model.bert.encoder.layer[:2]]
                   + [block.attention.self for block in model.base_model.model.bert.encoder.layer[2:]])  # fmt: skip
    trainer.train()
    assert counted.forward_passes.count(0) == counted.forward_passes.count(1) == 1
    assert counted.forward_passes.count(2) == counted.forward_passes.count(3) == (2 if checkpointing else 1)
    assert set(counted.backward_passes) <= {2, 3}
    assert 3 in counted.backward_passes


def entries(parameter):
    return parameter.dequantize() if parameter.is_floating_point() and is_quantised(parameter) else parameter.data


def resumed_alike(make_trainer, folders, kind, precision, **changes):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "max_grad_norm": 0.5, **changes}
    whole = trained(make_trainer, folders, kind, precision, {"name": "lora", "also_train": ["norms"]}, **settings)
    blank = make_trainer(**CONSTANT | settings)
    again = make_trainer(
        loaded(folders, kind, precision, blank.args, {"name": "lora", "also_train": ["norms"]}),
        train=KINDS[kind][1](), **CONSTANT | settings,
    )  # fmt: skip
    attach(again, schedule=full())
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    # Quantised tensors do not compare in a state dict, so the logs and then the entries.
    assert losses(again) == losses(whole)
    end = dict(again.model.named_parameters())
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(entries(end[name]), entries(parameter)), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_over_16_bits_resumes_bitwise(make_trainer, folders, kind):
    resumed_alike(make_trainer, folders, kind, "bfloat16", bf16=True)


@pytest.mark.parametrize("precision", with_library("4bit", "8bit", "int8"))
def test_a_run_over_quantised_weights_resumes_bitwise(make_trainer, folders, precision):
    resumed_alike(make_trainer, folders, "writer", precision, bf16=True)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("precision", with_library("4bit", "8bit", "int8"))
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_learn_over_quantised_weights_that_stay(make_trainer, folders, kind, precision, bf16):
    trainer = make_trainer(bf16=bf16, **CONSTANT)
    model = loaded(folders, kind, precision, trainer.args)
    before = {name: entries(parameter).clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(
        model, train=KINDS[kind][1](), bf16=bf16, **CONSTANT | {"per_device_train_batch_size": 16, "max_steps": 12}
    )
    attach(trainer, schedule=full())
    trainer.train()
    quantised = [name for name, parameter in model.named_parameters() if is_quantised(parameter)]
    assert len(quantised) == 2 * (6 if kind == "classifier" else 7)
    for name, parameter in model.named_parameters():
        assert torch.equal(entries(parameter), before[name]) != parameter.requires_grad, name
        assert not parameter.requires_grad or parameter.dtype == torch.float32, name
    rest = torch.bfloat16 if bf16 else torch.float32
    assert model.get_input_embeddings().weight.dtype == rest
    assert losses(trainer)[-1] < losses(trainer)[0]


@pytest.mark.parametrize("precision", with_library("4bit", "8bit", "int8"))
def test_gradients_pass_through_quantised_layers_that_were_called_in_eval(folders, precision):
    """bitsandbytes repacks 4-bit layers in eval on some processors, and then nothing below learns."""
    inputs = {key: row.unsqueeze(0) for key, row in sentences(1)[0].items()}
    found = {}
    for name in (precision, None):
        model = loaded(folders, "writer", name, on())
        with torch.no_grad():
            model.eval()(**inputs)
        model.train()(**inputs).loss.backward()
        found[name] = model.base_model.model.model.layers[0].self_attn.v_proj.lora_B["default"].weight.grad
    exact = found[None]
    assert exact.abs().max() > 0
    error = (found[precision] - exact).norm() / exact.norm()
    assert error < (0.3 if precision == "4bit" else 0.03)


@pytest.mark.parametrize("precision", with_library("4bit"))
def test_a_model_that_was_repacked_is_told(folders, precision):
    base = AutoModelForCausalLM.from_pretrained(folders / "writer", **loading_settings(precision, args=on()))
    layer = base.model.layers[0].mlp.up_proj
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"'model.layers.0.mlp.up_proj' was repacked.*Load the model again"):
        keep_gradients(base)


@pytest.mark.parametrize("precision", with_library("8bit", "4bit"))
def test_biases_that_would_be_rounded_are_refused(folders, precision):
    with pytest.raises(ValueError, match=r"The bias of '.*query.*' shall learn, but bitsandbytes rounds"):
        loaded(folders, "classifier", precision, on(), {"name": "lora", "also_train": ["biases"]})


@pytest.mark.parametrize("precision", with_library("8bit", "4bit", "int8"))
def test_quantised_layers_that_shall_learn_are_refused(folders, precision):
    told = "mlp.up_proj' shall learn in full, but its weights are quantised|only Tensors of floating point"
    adapter = {"name": "lora", "target_modules": ["q_proj"], "also_train": ["mlp.up_proj"]}
    with pytest.raises((ValueError, RuntimeError), match=told):
        loaded(folders, "writer", precision, on(), adapter)


def test_layers_learn_in_32_bits_above_a_frozen_bottom_in_16(make_trainer, folders):
    """Without an adapter."""
    watcher = Watcher()
    model = AutoModelForSequenceClassification.from_pretrained(
        folders / "classifier", **loading_settings("bfloat16", args=on(bf16=True))
    )
    trainer = make_trainer(model, cls=Trainer, train=rows(), callbacks=[watcher], bf16=True, **CONSTANT)
    groups = attach(trainer, schedule=freeze_first(2))
    trainer.train()
    bottom = {name for group in groups[:2] for name in group.parameters}
    check_frozen("bfloat16", model, {name for name, _ in model.named_parameters()} - bottom)
    for name, parameter in model.named_parameters():
        values = [seen[name] for seen in watcher.seen]
        assert {value.dtype for value in values} == {torch.bfloat16 if name in bottom else torch.float32}
        assert torch.equal(values[0], parameter) == (name in bottom)
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_the_benchmark_gives_medians_and_ratios_within_one_machine():
    values = {"full, 32 bits": (400.0, 2.0), "LoRA, 32 bits": (200.0, 1.0), "LoRA, bfloat16, autocast": (150.0, 0.5)}
    lines = [
        {"device": "cpu", "model": "minilm", "cell": cell, "repeat": repeat, "learning": 8, "loading_peak_mib": 10.0,
         "peak_mib": memory + away, "seconds_a_step": seconds}
        for cell, (memory, seconds) in values.items() for repeat, away in enumerate((-50.0, 0.0, 1.0))
    ]  # fmt: skip
    lines.append({**lines[0], "device": "cuda", "peak_mib": 30.0})
    found = {(entry["device"], entry["cell"]): entry for entry in summarise(lines)}
    half = found["cpu", "LoRA, bfloat16, autocast"]
    assert (half["peak_mib"], half["peak_mib_range"], half["runs"]) == (150.0, [100.0, 151.0], 3)
    assert (half["peak_mib_to_full"], half["peak_mib_to_LoRA"]) == (0.375, 0.75)
    assert (half["seconds_a_step_to_full"], half["seconds_a_step_to_LoRA"]) == (0.25, 0.5)
    assert found["cuda", "full, 32 bits"]["peak_mib_to_full"] == 1.0
    assert "peak_mib_to_LoRA" not in found["cuda", "full, 32 bits"]
    assert "| minilm | LoRA, bfloat16, autocast | 150 | 0.38 | 0.75 | 10 | 0.500 | 0.25 | 0.50 |" in table([half])
