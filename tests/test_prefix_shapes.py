"""Placeholders of the right shape, and the hands that put tensors in their place."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_transfer_plugin.prefix_cache.passage import Address, Catcher, Passage, fitted
from hf_transfer_plugin.prefix_cache.shapes import OutputShapes, computed_without_values


def seen(*pairs):
    """Rules learned from calls with one tensor."""
    shapes = OutputShapes()
    for size, output in pairs:
        shapes.observe(((torch.zeros(size),), {}), output)
    return shapes


def placeholder(shapes, *size):
    return shapes.placeholder(((torch.zeros(size),), {}))


# What a module would have returned


def test_sizes_follow_those_that_go_in_or_never_change():
    shapes = seen(((2, 5), torch.ones(2, 5, 8)), ((3, 9), torch.ones(3, 9, 8)))
    assert placeholder(shapes, 4, 7).shape == (4, 7, 8)
    assert not placeholder(shapes, 4, 7).any()


def test_a_size_that_could_be_of_either_input_is_not_guessed():
    shapes = seen(((4, 4), torch.ones(4, 4)))
    assert placeholder(shapes, 4, 4).shape == (4, 4)
    assert placeholder(shapes, 4, 6) is None


def test_a_constant_is_believed_once_what_goes_in_has_varied_widely():
    narrow = seen(((2, 100), torch.ones(2, 10)), ((3, 110), torch.ones(3, 10)))
    assert placeholder(narrow, 4, 300) is None
    wide = seen(((2, 100), torch.ones(2, 10)), ((3, 200), torch.ones(3, 10)))
    assert placeholder(wide, 4, 300).shape == (4, 10)


def test_a_size_computed_from_what_goes_in_is_not_guessed():
    shapes = seen(((2, 100), torch.ones(2, 20)), ((3, 200), torch.ones(3, 40)))
    assert placeholder(shapes, 3, 200).shape == (3, 40)
    assert placeholder(shapes, 3, 150) is None


def test_inputs_handed_on_plain_values_and_types_stay():
    hidden, mask = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.long)
    shapes = OutputShapes()
    shapes.observe(((hidden,), {"mask": mask}), {"mask": mask, "count": 7, "ids": mask + 1, "none": None})
    other, its_mask = torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.long)
    found = shapes.placeholder(((other,), {"mask": its_mask}))
    assert found["mask"] is its_mask
    assert found["count"] == 7
    assert found["none"] is None
    assert found["ids"].dtype == torch.long


def test_noise_fills_floats_alone():
    shapes = OutputShapes()
    shapes.observe(((torch.zeros(4),), {}), (torch.zeros(4), torch.zeros(4, dtype=torch.long)))
    floats, counts = shapes.placeholder(((torch.zeros(4),), {}), noise=True)
    assert floats.all()
    assert not counts.any()


def test_another_kind_of_call_is_another_rule():
    shapes = seen(((2, 5), torch.ones(2, 5, 8)))
    assert shapes.placeholder(((torch.zeros(2, 5, dtype=torch.double),), {})) is None
    assert shapes.placeholder(((), {"x": torch.zeros(2, 5)})) is None
    assert shapes.placeholder(((torch.zeros(2, 5), None), {})) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert placeholder(shapes, 2, 5) is None


def test_a_list_with_a_tensor_for_each_row_is_told_for_sizes_that_were_seen():
    shapes = seen(((2, 4), [torch.ones(4)] * 2), ((3, 4), [torch.ones(4)] * 3))
    assert len(placeholder(shapes, 2, 4)) == 2
    assert len(placeholder(shapes, 3, 4)) == 3
    assert placeholder(shapes, 5, 4) is None


def test_a_convolution_is_computed_without_values():
    conv = nn.Conv1d(1, 4, 5, stride=3)
    (args, _), output = computed_without_values(conv.forward, ((torch.zeros(2, 1, 50),), {}))
    assert args[0].shape == (2, 1, 50)
    assert output.shape == (2, 4, 16)
    assert type(output) is not torch.Tensor


# Hands


class Stack(nn.Module):
    def __init__(self, checkpointed=False):
        super().__init__()
        self.below, self.above, self.checkpointed = nn.Linear(3, 4), nn.Linear(4, 2), checkpointed

    def forward(self, x):
        hidden = self.below(x)
        return checkpoint(self.above, hidden, use_reentrant=False) if self.checkpointed else self.above(hidden)


IN, OUT = Address("above", False, 0), Address("below", True, 0)


@pytest.mark.parametrize("address", [IN, OUT])
def test_what_is_fed_takes_the_place_of_what_is_not_run(address):
    model, x, value = Stack(), torch.randn(5, 3), torch.randn(5, 4)
    ran = []
    model.below.register_forward_hook(lambda *_: ran.append("called"))
    with Passage(model, "above", ["below"]).installed() as passage:
        caught, live = passage.watch({"x": x})
        assert torch.equal(caught["below"][0], model.below(x))
        assert torch.equal(caught["above"][0], caught["below"][0])
        assert torch.equal(live, model.above(model.below(x)))
        assert torch.equal(passage.run({"x": x}, {address: value}), model.above(value))
        assert torch.equal(passage.run({"x": x}, {}), model.above(torch.zeros(5, 4)))
        assert passage.was_fed
        passage.release()
        assert torch.equal(model(x), live)
    assert "forward" not in model.below.__dict__
    assert not model.above._forward_pre_hooks
    assert torch.equal(model(x), live)


def test_a_shape_that_was_never_seen_is_found_out_by_the_way():
    model = Stack()
    with Passage(model, "above", ["below"]).installed() as passage:
        value = torch.randn(9, 4)
        assert torch.equal(passage.run({"x": torch.randn(9, 3)}, {IN: value}), model.above(value))


def test_a_module_that_looks_at_its_values_is_computed_once_for_each_shape():
    class Looking(nn.Linear):
        def forward(self, x):
            ran.append(len(x))
            assert float(x.sum()) == float(x.sum())
            return super().forward(x)

    ran, model, value = [], Stack(), torch.randn(9, 4)
    model.below = Looking(3, 4)
    with Passage(model, "above", ["below"]).installed() as passage:
        for _ in range(2):
            assert torch.equal(passage.run({"x": torch.randn(9, 3)}, {IN: value}), model.above(value))
    # Once without values, which fails, and once with them.
    assert ran == [9, 9]


def test_recomputation_in_the_backward_pass_is_fed_too():
    plain, kept = Stack(), Stack(checkpointed=True)
    kept.load_state_dict(plain.state_dict())
    x, value = torch.randn(5, 3), torch.randn(5, 4)
    plain.above(value).square().sum().backward()
    with Passage(kept, "above", ["below"]).installed() as passage:
        passage.watch({"x": x})
        passage.run({"x": x}, {IN: value}).square().sum().backward()
    assert torch.equal(plain.above.weight.grad, kept.above.weight.grad)
    assert kept.below.weight.grad is None


def test_each_of_several_passes_runs_again_in_the_backward_pass_as_it_ran():
    """A second batch, fed or not, between a forward pass and its backward pass: each is differentiated as it was."""
    plain, kept = Stack(), Stack(checkpointed=True)
    kept.load_state_dict(plain.state_dict())
    x, values = torch.randn(5, 3), (torch.randn(5, 4), torch.randn(5, 4))
    live = plain.above(plain.below(x).detach())
    (plain.above(values[0]).square().sum() + live.pow(3).sum() + plain.above(values[1]).sum()).backward()
    kept.below.requires_grad_(False)
    with Passage(kept, "above", ["below"]).installed() as passage:
        passage.watch({"x": x})
        first = passage.run({"x": x}, {IN: values[0]})
        passage.release()
        live = kept(x)
        second = passage.run({"x": x}, {IN: values[1]})
        passage.release()
        (first.square().sum() + live.pow(3).sum() + second.sum()).backward()
    torch.testing.assert_close(plain.above.weight.grad, kept.above.weight.grad)


def test_of_a_module_that_runs_several_times_the_first_call_alone_is_fed():
    class Twice(Stack):
        def forward(self, x):
            hidden = self.below(x)
            return self.above(self.above(hidden) @ torch.ones(2, 4))

    model, x, value = Twice(), torch.randn(5, 3), torch.randn(5, 4)
    with Passage(model, "above", ["below"], repeated=True).installed() as passage:
        passage.watch({"x": x})
        found = passage.run({"x": x}, {IN: value})
    assert torch.equal(found, model.above(model.above(value) @ torch.ones(2, 4)))


def test_a_catcher_keeps_what_passes_and_ends_the_pass_there():
    model, x, ran = Stack(), torch.randn(5, 3), []
    model.above.register_forward_hook(lambda *_: ran.append("above"))
    catcher = Catcher(model, (IN, OUT))
    assert model(x) is not None
    assert not catcher.caught
    ran.clear()
    caught = catcher.run({"x": x}, model)
    assert ran == []
    assert torch.equal(caught[IN], model.below(x))
    assert torch.equal(caught[OUT], caught[IN])
    assert not caught[IN].requires_grad
    catcher.open()
    model(x)
    assert set(catcher.close()) == {IN, OUT}
    model(torch.zeros(1, 3))
    assert len(catcher.caught[IN]) == 5
    catcher.remove()
    ran.clear()
    model(x)
    assert ran == ["above"]
    assert not model.above._forward_pre_hooks
    assert not model.below._forward_hooks


def test_a_shorter_value_is_followed_by_zeros():
    value = torch.ones(2, 3)
    assert fitted(value, torch.empty(2, 3)) is value
    assert fitted(value, None) is value
    whole = fitted(value, torch.empty(2, 5))
    assert torch.equal(whole, torch.tensor([[1.0, 1, 1, 0, 0]] * 2))
