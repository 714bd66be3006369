import pytest
import torch

from hf_transfer_plugin import LayerwiseDecay, SlantedTriangular, discover_layer_groups
from hf_transfer_plugin.learning_rates import build_optimizer, groups_of
from tests.conftest import bert


def test_layerwise_decay_is_the_formula(groups):
    rates = LayerwiseDecay(decay=0.5, head_multiplier=3.0)
    assert [rates.base(i, groups) for i in range(5)] == [0.0625, 0.125, 0.25, 0.5, 3.0]


def test_the_head_multiplier_needs_a_head():
    tied = discover_layer_groups(bert(), ["embeddings", r"layer\.[01]", "."])
    assert LayerwiseDecay(0.5, head_multiplier=3.0).base(2, tied) == 1.0


def test_the_warm_up_after_a_thaw_rises_linearly_and_spares_groups_that_learned_from_the_start():
    rates = LayerwiseDecay(warmup_steps=4)
    assert [rates.factor(step, 10, 100) for step in (10, 11, 12, 13, 14, 50)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rates.factor(0, 0, 100) == 1.0
    assert not LayerwiseDecay().changes_with_step


def test_slanted_triangular_is_ulmfits_formula():
    rates = SlantedTriangular(cut_fraction=0.1, ratio=32)
    # T = 100, cut = 10: t = 5 gives p = .5; t = 10 the peak; t = 55 gives p = 1 - 45 / (10 * 9) = .5.
    assert rates.factor(5, 0, 100) == pytest.approx((1 + 0.5 * 31) / 32)
    assert rates.factor(10, 0, 100) == 1.0
    assert rates.factor(55, 0, 100) == pytest.approx((1 + 0.5 * 31) / 32)
    assert rates.factor(0, 0, 100) == pytest.approx(1 / 32)
    assert rates.factor(100, 0, 100) == pytest.approx(1 / 32)
    assert rates.factor(55, 50, 100) == 1.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: LayerwiseDecay(0),
        lambda: LayerwiseDecay(1.1),
        lambda: LayerwiseDecay(head_multiplier=0),
        lambda: LayerwiseDecay(warmup_steps=-1),
        lambda: SlantedTriangular(cut_fraction=1),
        lambda: SlantedTriangular(ratio=0.5),
    ],
)
def test_fields_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="but got"):
        make()


def test_the_optimizer_has_a_group_for_each_layer_and_decay_with_named_parameters(model, groups):
    everything = {n for n, _ in model.named_parameters()}
    decayed = {n for n in everything if not n.endswith("bias") and "LayerNorm" not in n}
    optimizer = build_optimizer(
        torch.optim.AdamW,
        {"lr": 1.0, "betas": (0.8, 0.9)},
        model,
        groups,
        learning=everything,
        decayed=decayed,
        weight_decay=0.1,
        learning_rates=LayerwiseDecay(0.5),
    )
    assert len(optimizer.param_groups) == 10
    assert [g["lr"] for g in optimizer.param_groups[::2]] == [1.0, 0.5, 0.25, 0.125, 0.0625]
    names = [name for g in optimizer.param_groups for name in g["param_names"]]
    assert sorted(names) == sorted(everything)
    for group in optimizer.param_groups:
        assert group["betas"] == (0.8, 0.9)
        assert all((name in decayed) == (group["weight_decay"] == 0.1) for name in group["param_names"])
    assert groups_of(optimizer, model, groups)[::2] == list(reversed(groups.names))


def test_the_optimizer_leaves_out_what_never_learns(model, groups):
    learning = set(groups[-1].parameters)
    optimizer = build_optimizer(
        torch.optim.SGD, {"lr": 1.0}, model, groups, learning=learning, decayed=set(), weight_decay=0.0
    )
    assert {n for g in optimizer.param_groups for n in g["param_names"]} == learning


def test_an_optimizer_group_over_several_layers_has_no_layer(model, groups):
    assert groups_of(torch.optim.SGD(model.parameters(), lr=1.0), model, groups) == [None]
