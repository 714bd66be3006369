import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_transfer_plugin import (
    GradualUnfreezing,
    PlateauUnfreezing,
    discover_layer_groups,
    feature_extraction,
    freeze_first,
    freeze_pattern,
    full,
    plan,
)
from tests.conftest import TINY, bert


def wide():
    return bert(hidden_size=32, intermediate_size=64)


def test_phases_tell_from_which_step_which_groups_learn():
    found = plan(bert(), GradualUnfreezing(until=0.5), max_steps=100)
    assert [phase.step for phase in found.phases] == [0, 12, 25, 38, 50]
    assert [phase.steps for phase in found.phases] == [12, 13, 13, 12, 50]
    assert found.phases[0].groups == ("head",)
    assert found.phases[-1].trainable_parameters == sum(p.numel() for p in bert().parameters())
    assert "everything" in str(found)


def test_flops_of_freezing_the_bottom_follow_the_formula():
    # Forward F a block, backward 2F where its weights learn: freezing 2 of 4 blocks leaves (4 + 4) / 12 of the work.
    model = wide()
    config = model.config
    config.num_hidden_layers = 4
    model = type(model)(config)
    found = plan(model, freeze_first(3), max_steps=10, length=16)
    assert found.relative_flops == pytest.approx(2 / 3, abs=0.04)


def test_full_fine_tuning_costs_three_forward_passes():
    model = wide()
    forward = plan(model, feature_extraction(), max_steps=1, length=16).phases[0].flops
    whole = plan(model, full(), max_steps=1, length=16).full.flops
    assert whole / forward == pytest.approx(3, rel=0.1)


def test_memory_counts_gradients_adam_and_saved_activations():
    model = wide()
    size = sum(p.numel() for p in model.parameters()) * 4
    found = plan(model, freeze_first(4), max_steps=10, batch_size=2, length=16)
    head = 32 * 32 + 32 + 2 * 32 + 2
    assert found.full.gradient_bytes == size
    assert found.full.optimizer_bytes == 2 * size
    assert found.phases[0].gradient_bytes == 4 * head
    assert found.phases[0].optimizer_bytes == 8 * head
    assert 0 < found.phases[0].activation_bytes < found.full.activation_bytes / 5
    assert (
        plan(model, full(), max_steps=1, batch_size=4, length=16).full.activation_bytes
        == 2 * found.full.activation_bytes
    )


def test_the_model_is_left_as_it_was():
    model = bert()
    before = {name: (p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    plan(model, GradualUnfreezing(), max_steps=10)
    assert torch.equal(state, torch.get_rng_state())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])
        assert parameter.grad is None


def test_training_only_the_bottom_is_warned_of():
    found = plan(bert(), freeze_pattern([r"layer\.[12]", "pooler"]), max_steps=10)
    assert any("Freezing saves time from the bottom up only" in warning for warning in found.warnings)
    assert not plan(bert(), GradualUnfreezing(), max_steps=10).warnings
    assert not plan(bert(), freeze_first(1), max_steps=10).warnings


def test_checkpointing_a_tied_head_a_short_run_and_a_metric_are_warned_of():
    model = LlamaForCausalLM(LlamaConfig(**TINY, num_key_value_heads=2, tie_word_embeddings=True))
    warnings = " ".join(plan(model, GradualUnfreezing(), max_steps=10, checkpointing=True).warnings)
    assert "runs frozen bottom layers twice" in warnings
    assert "shares its weights with the embeddings" in warnings
    late = plan(bert(), GradualUnfreezing(every=10), max_steps=15).warnings
    assert late == ("The run ends before embeddings, layer.0, layer.1 learn; train longer or thaw faster.",)
    assert "only the first phase can be foreseen" in plan(bert(), PlateauUnfreezing(), max_steps=9).warnings[0]


def test_strategies_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`k` must lie between"):
        plan(bert(), freeze_first(9), max_steps=10)


def test_a_model_that_takes_no_dummy_inputs_is_planned_without_flops():
    class Strange(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, graph):
            return self.layer(graph)

    model = Strange()
    found = plan(model, full(), max_steps=4, groups=discover_layer_groups(model))
    assert not found.measured
    assert "unknown" in str(found)
