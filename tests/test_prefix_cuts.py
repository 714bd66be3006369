"""Where the frozen part of a model ends, and that running the rest on stored tensors is the same."""

import pytest
import torch
import transformers as tf
from torch import nn

from hf_transfer_plugin.adapters import attach_adapter
from hf_transfer_plugin.freezing import set_trainable
from hf_transfer_plugin.layers import discover_layer_groups, parameters_by_name
from hf_transfer_plugin.prefix_cache.cuts import CannotCacheError, results
from hf_transfer_plugin.prefix_cache.finding import find_cut
from hf_transfer_plugin.prefix_cache.passage import Address, Catcher
from hf_transfer_plugin.prefix_cache.traces import trace
from tests.conftest import bert
from tests.tiny_prefixes import BERTISH, MAKERS, classes, prefix, text, upper

pytestmark = pytest.mark.slow

BART = ("embed_tokens", "embed_positions", "layernorm_embedding")
# Model, lowest group that learns, module that is fed, modules that are skipped, inputs of it that are stored.
CUTS = [
    ("bert", 1, "bert.encoder", ["bert.embeddings"], [0]),
    ("bert", 3, "bert.encoder.layer.2", ["bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1"], [0]),
    ("bert", -1, "bert.pooler.dense", ["bert.embeddings", "bert.encoder"], [0]),
    # Its head drops out before its first layer; the cut lies below that.
    ("roberta", -1, "classifier.dropout", ["roberta"], [0]),
    ("llama", 2, "model.layers.1", ["model.embed_tokens", "model.layers.0"], [0]),
    ("llama", -1, "lm_head", ["model"], [0]),
    ("gpt2", -1, "transformer.h.2", [f"transformer.{m}" for m in ("wte", "wpe", "h.0", "h.1")], [0]),
    ("t5", 3, "encoder.block.2", None, [0]),
    ("t5", -1, "decoder.block.2", None, [0, 3]),
    ("bart", 2, "model.encoder.layers.1", [f"model.encoder.{m}" for m in (*BART, "layers.0")], [0]),
    (
        "bart",
        -1,
        "model.decoder.layers.1",
        ["model.encoder", *(f"model.decoder.{m}" for m in (*BART, "layers.0"))],
        [0, 2],
    ),
    ("vit", 2, "vit.layers.1", ["vit.embeddings", "vit.layers.0"], [0]),
    ("vit", -1, "classifier", ["vit"], [0]),
    ("resnet", 3, "resnet.encoder.stages.1.layers.1", None, [0]),
    ("resnet", -1, "classifier", ["resnet"], [0]),
    ("wav2vec2", 2, "wav2vec2.encoder.layers.1", None, [0]),
    ("wav2vec2", -1, "projector", ["wav2vec2"], [0]),
    ("whisper", -1, "model.decoder.layers.1", None, [0, 2]),
]


def facts(model, learning, output):
    """Loss, logits, and the gradients of what learns."""
    parameters = [p for name, p in parameters_by_name(model).items() if name in learning]
    gradients = torch.autograd.grad(output.loss, parameters, allow_unused=True)
    return [output.loss, output.logits, *(g for g in gradients if g is not None)]


def replay(model, learning, cut, batch, change=lambda values: values):
    """A live pass, then one from what passed the cut; and which of the skipped modules ran in the latter."""
    model.eval()
    set_trainable(model, learning)
    catcher = Catcher(model, cut.addresses)
    values = catcher.run(batch, model)
    catcher.remove()
    live = facts(model, learning, model(**batch))
    ran = []
    inner = [m for name in cut.skipped for m in model.get_submodule(name).modules() if m._parameters]
    handles = [m.register_forward_pre_hook(lambda m, args: ran.append(m)) for m in inner]
    with cut.passage(model).installed() as passage:
        for name in cut.skipped:
            for module in model.get_submodule(name).children():
                handles.append(module.register_forward_pre_hook(lambda m, args: ran.append(m)))
        passage.watch(batch)
        ran.clear()
        replayed = facts(model, learning, passage.run(batch, change(values), noise=True))
    for handle in handles:
        handle.remove()
    within = {id(m) for name in cut.skipped for m in model.get_submodule(name).modules()}
    tops = {id(model.get_submodule(name)) for name in cut.skipped}
    return live, replayed, [m for m in ran if id(m) in within - tops]


def touched(model):
    """How many hooks each module carries, or a forward of its own; some models put their own on in the first pass."""
    found = {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in module.__dict__)
        for name, module in model.named_modules()
    }
    return {name: marks for name, marks in found.items() if any(marks)}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("name", "low", "fed", "skipped", "leaves"), CUTS, ids=lambda v: str(v)[:20])
def test_the_cut_lies_below_what_learns_and_replays_bit_for_bit(name, low, fed, skipped, leaves):
    model, learning, cut = prefix(name, low)
    assert cut.fed == fed
    assert skipped is None or sorted(cut.skipped) == sorted(skipped)
    assert cut.addresses == tuple(Address(fed, False, leaf) for leaf in leaves)
    torch.manual_seed(11)
    batch = MAKERS[name][1]([10, 6, 9])
    before = touched(model)
    live, replayed, ran = replay(model, learning, cut, batch)
    assert len(live) > 2
    assert all(torch.equal(one, other) for one, other in zip(live, replayed, strict=True))
    assert ran == []
    assert touched(model) == before


@pytest.mark.parametrize(("name", "low"), [("bert", 3), ("t5", -1), ("resnet", 3)])
def test_other_values_give_another_answer(name, low):
    model, learning, cut = prefix(name, low)
    batch = MAKERS[name][1]([10, 6, 9])
    for address in cut.addresses:
        live, replayed, _ = replay(model, learning, cut, batch, lambda v, a=address: {**v, a: v[a] + 0.1})
        assert not torch.equal(live[0], replayed[0])


def test_nothing_learning_is_skipped_and_resnets_prefix_is_its_stem_and_stages():
    for name, low in (("resnet", 3), ("wav2vec2", 2), ("whisper", -1)):
        model, learning, cut = prefix(name, low)
        own = {n for n, _ in model.named_parameters() if any(n.startswith(f"{s}.") for s in cut.skipped)}
        assert own
        assert not own & learning
    model, _, cut = prefix("resnet", 3)
    assert cut.skipped == ("resnet.embedder", "resnet.encoder.stages.0", "resnet.encoder.stages.1.layers.0")


def test_the_first_block_makes_a_position_bias_anew_which_is_not_one_of_each_text():
    model, learning, cut = prefix("t5", 3)
    frozen = {name for name in dict(model.encoder.named_parameters(prefix="encoder")) if name not in learning}
    run = {name for name in frozen if not any(name.startswith(f"{s}.") for s in cut.skipped)}
    assert run == {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"}
    assert "encoder.block.1" in cut.skipped


def test_finding_a_cut_leaves_the_model_as_it_was():
    model = MAKERS["resnet"][0]().train()
    set_trainable(model, ["classifier.1.bias"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probes = [MAKERS["resnet"][1]([1, 1])]
    state = torch.get_rng_state()
    find_cut(model, upper(model, 3), probes)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["classifier.1.bias"]
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert touched(model) == {}


def test_hands_come_off_after_a_refusal_and_a_forward_of_its_own_comes_back():
    model = bert().train()
    with pytest.raises(CannotCacheError):
        find_cut(model, upper(model, 0), [classes([5, 4])])
    assert touched(model) == {}
    layer = model.bert.encoder.layer[0]
    own = layer.forward
    layer.forward = own
    cut = find_cut(model, upper(model, 3), [classes([5, 4]), classes([7, 6, 5])])
    assert "bert.encoder.layer.0" in cut.skipped
    assert layer.__dict__["forward"] is own
    assert touched(model) == {"bert.encoder.layer.0": (0, 0, True)}


def test_below_an_adapter_in_the_upper_blocks():
    model = bert(num_hidden_layers=4)
    wrapped = attach_adapter(model, {"name": "lora", "layers": 2}).train()
    groups = discover_layer_groups(wrapped)
    learning = frozenset(name for name, p in parameters_by_name(wrapped).items() if p.requires_grad)
    cut = find_cut(wrapped, learning, [classes([7, 5]), classes([9, 12, 8])])
    assert cut.fed.endswith("bert.encoder.layer.2")
    assert [name.split("bert.")[-1] for name in cut.skipped] == ["embeddings", "encoder.layer.0", "encoder.layer.1"]
    live, replayed, ran = replay(wrapped, learning, cut, classes([6, 3]))
    assert all(torch.equal(one, other) for one, other in zip(live, replayed, strict=True))
    assert ran == []
    assert len(groups) == 6


def test_an_encoders_output_is_stored_whole_where_the_decoder_alone_learns():
    model, learning, cut = prefix("t5", -1)
    assert "encoder" in cut.skipped
    batch = MAKERS["t5"][1]([10, 6, 9])
    catcher = Catcher(model.eval(), cut.addresses)
    hidden, encoded = (v for _, v in sorted(catcher.run(batch, model).items()))
    catcher.remove()
    assert torch.equal(encoded, model.encoder(batch["input_ids"], batch["attention_mask"])[0])
    assert hidden.shape == (3, 8, 16)


# Refusals


def test_embeddings_that_learn_leave_nothing_below():
    model = bert().train()
    with pytest.raises(CannotCacheError, match=r"nothing lies below 'bert\.embeddings\.word_embeddings'"):
        find_cut(model, upper(model, 0), [classes([5, 4])])


class Deaf(nn.Module):
    """Its frozen part feeds nothing."""

    def __init__(self, scale):
        super().__init__()
        self.below, self.above, self.scale = nn.Linear(4, 4), nn.Linear(4, 2), scale

    def forward(self, x):
        return {"logits": self.above(x + self.scale * self.below(x))}


def test_a_frozen_part_that_feeds_nothing_proves_nothing():
    batches = [{"x": torch.randn(2, 4)}, {"x": torch.randn(3, 4)}]
    learning = frozenset({"above.weight", "above.bias"})
    assert find_cut(Deaf(1.0), learning, batches).fed == "above"
    with pytest.raises(CannotCacheError, match="noise in its place gives the same outputs"):
        find_cut(Deaf(0.0), learning, batches)


class Tempered(nn.Module):
    """It holds a temperature, and reads it above its layers; perhaps also between them, in a way without gradients."""

    def __init__(self, read=None):
        super().__init__()
        self.below, self.middle, self.above = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.temperature, self.read = nn.Parameter(torch.ones(())), read

    def forward(self, x):
        hidden = self.below(x)
        if self.read is not None:
            hidden = hidden * self.read(self.temperature)
        return {"logits": self.above(self.middle(hidden)) * self.temperature}


@pytest.mark.parametrize("read", [None, lambda t: t, torch.Tensor.detach, torch.Tensor.item, lambda t: t.data])
def test_what_the_model_itself_holds_may_learn_where_nothing_below_the_cut_reads_it(read):
    batches = [{"x": torch.randn(2, 4)}, {"x": torch.randn(3, 4)}]
    learning = frozenset({"temperature", "above.weight"})
    if read is None:
        assert find_cut(Tempered(), learning, batches).fed == "above"
        return
    assert find_cut(Tempered(read), learning - {"temperature"}, batches).fed == "above"
    with pytest.raises(CannotCacheError, match="'temperature' learns, but is read before 'above'"):
        find_cut(Tempered(read), learning, batches)


class Branching(nn.Module):
    """What learns is given the third layer's result; the first one's is read again behind it, as is the last layer."""

    def __init__(self):
        super().__init__()
        for name in ("first", "second", "third", "above", "last"):
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, x):
        early = self.first(x)
        hidden = self.third(self.second(self.last(early)))
        return {"logits": self.last(self.above(hidden) + early)}


def test_of_earlier_outputs_those_are_stored_that_are_read_again_and_what_runs_again_is_not_skipped():
    model, learning = Branching(), frozenset({"above.weight", "above.bias"})
    cut = find_cut(model, learning, [{"x": torch.randn(2, 4)}, {"x": torch.randn(3, 4)}])
    assert cut.skipped == ("first", "second", "third")
    assert cut.addresses == (Address("first", True, 0), Address("above", False, 0))


class Mixing(Deaf):
    """What passes holds one entry for the whole batch."""

    def forward(self, x):
        return {"logits": self.above(self.below(x).mean(0))}


def test_what_is_not_one_of_each_row_cannot_be_stored():
    learning = frozenset({"above.weight", "above.bias"})
    with pytest.raises(CannotCacheError, match=r"a tensor of shape \(4,\) that is not one of each row"):
        find_cut(Mixing(1.0), learning, [{"x": torch.randn(2, 4)}, {"x": torch.randn(3, 4)}])


class Answering(nn.Module):
    """A frozen part that decides what runs next."""

    def __init__(self):
        super().__init__()
        self.below, self.above = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.below(x)
        if not bool(torch.equal(hidden, nn.functional.linear(x, self.below.weight, self.below.bias))):
            raise RuntimeError("values are not what they should be")
        return {"logits": self.above(hidden)}


def test_a_model_that_looks_at_the_values_is_refused_with_its_error():
    learning = frozenset({"above.weight", "above.bias"})
    with pytest.raises(CannotCacheError, match="fails on placeholders: RuntimeError: values are not what"):
        find_cut(Answering(), learning, [{"x": torch.randn(2, 4)}, {"x": torch.randn(3, 4)}])


def test_a_learning_parameter_that_no_module_call_reads_is_refused():
    model = bert()
    model.loose = nn.Parameter(torch.zeros(1))
    with pytest.raises(CannotCacheError, match="no module with a learning parameter is called by itself"):
        find_cut(model, frozenset({"classifier.nothing"}), [classes([4, 3])])


# What is read off a pass


def test_a_trace_names_modules_in_order_and_repeats_shared_ones():
    config = tf.AlbertConfig(**{**BERTISH, "embedding_size": 8, "num_hidden_layers": 2})
    model = tf.AlbertForSequenceClassification(config)
    seen = trace(model, text([4, 3]))
    layer = "albert.encoder.albert_layer_groups.0"
    assert seen.order[0] == ""
    assert seen.order.count(layer) == 2
    assert seen.first("albert.embeddings") < seen.first(layer) < seen.first("classifier")
    assert touched(model) == {}


def test_a_block_that_runs_several_times_is_fed_once():
    config = tf.AlbertConfig(**{**BERTISH, "embedding_size": 8})
    model = tf.AlbertForSequenceClassification(config).train()
    learning = upper(model, 1)
    cut = find_cut(model, learning, [classes([7, 5]), classes([9, 12, 8])])
    live, replayed, ran = replay(model, learning, cut, classes([6, 3]))
    assert all(torch.equal(one, other) for one, other in zip(live, replayed, strict=True))
    assert ran == []
    assert "albert.embeddings" in cut.skipped


def test_results_are_loss_and_logits_else_the_first_tensor():
    loss, logits, hidden, ids = torch.ones(()), torch.ones(2, 3), torch.zeros(2, 4), torch.ones(2, dtype=torch.long)
    assert results({"loss": loss, "ids": ids, "start_logits": logits, "hidden_states": hidden}) == [loss, logits]
    assert results({"ids": ids, "last_hidden_state": hidden, "other": logits})[0] is hidden
    assert results(hidden)[0] is hidden
    with pytest.raises(CannotCacheError, match="neither loss nor logits"):
        results({"ids": ids})
