import pytest

from hf_transfer_plugin import (
    ChainThaw,
    GradualUnfreezing,
    LayerSampling,
    LinearProbeThenFineTune,
    PlateauUnfreezing,
    Progress,
)
from hf_transfer_plugin.schedules import SCHEDULES


def starts(schedule, max_steps, groups, epochs=1.0):
    """Step at which each group first learns."""
    found = {}
    for step in range(max_steps):
        for i in schedule(Progress(step, max_steps, epochs), groups):
            found.setdefault(i, step)
    return [found.get(i) for i in range(groups)]


def test_gradual_unfreezing_spreads_the_thaws_evenly_until_the_given_share():
    assert starts(GradualUnfreezing(until=0.5), 100, 6) == [50, 40, 30, 20, 10, 0]


def test_gradual_unfreezing_every_epoch_is_ulmfits():
    assert starts(GradualUnfreezing(every="epoch"), 40, 4, epochs=8) == [15, 10, 5, 0]


def test_gradual_unfreezing_every_number_of_steps():
    assert starts(GradualUnfreezing(every=3), 20, 4) == [9, 6, 3, 0]


def test_gradual_unfreezing_until_zero_trains_everything_at_once():
    assert starts(GradualUnfreezing(until=0), 10, 4) == [0, 0, 0, 0]


def test_gradual_unfreezing_leaves_its_frozen_groups_alone():
    assert starts(GradualUnfreezing(until=0.5, frozen=1), 100, 6) == [None, 50, 38, 25, 12, 0]


def test_chain_thaw_trains_the_head_then_each_group_alone_then_all():
    schedule = ChainThaw()
    phases = [schedule(Progress(step, 10), 4) for step in range(0, 10, 2)]
    assert phases == [(3,), (0,), (1,), (2,), (0, 1, 2, 3)]


def test_linear_probe_then_fine_tune_trains_everything_from_the_start():
    assert LinearProbeThenFineTune()(Progress(0, 10), 4) == (0, 1, 2, 3)


def history(values, every=10):
    return [{"eval_loss": v, "step": every * (i + 1)} for i, v in enumerate(values)]


def test_plateau_thaws_when_the_metric_stops_improving():
    schedule = PlateauUnfreezing(patience=1)
    logs = history([1.0, 0.8, 0.9, 0.7, 0.7])
    learned = [len(schedule(Progress(step, 100, history=logs), 5)) for step in (0, 10, 20, 30, 40, 50)]
    assert learned == [1, 1, 1, 2, 2, 3]


def test_plateau_waits_for_its_patience_and_heeds_min_delta():
    logs = history([1.0, 1.0, 1.0, 0.95])
    assert len(PlateauUnfreezing(patience=2)(Progress(40, 100, history=logs), 5)) == 2
    assert len(PlateauUnfreezing(patience=1, min_delta=0.1)(Progress(40, 100, history=logs), 5)) == 4


def test_plateau_follows_a_metric_where_greater_is_better():
    logs = [{"eval_accuracy": v, "step": i} for i, v in enumerate([0.5, 0.6, 0.7])]
    progress = Progress(5, 100, history=logs, metric="eval_accuracy", greater_is_better=True)
    assert PlateauUnfreezing()(progress, 5) == (4,)
    assert PlateauUnfreezing()(Progress(5, 100, history=logs, metric="eval_accuracy"), 5) == (2, 3, 4)


def test_plateau_never_runs_out_of_groups():
    assert PlateauUnfreezing()(Progress(999, 999, history=history([1.0] * 50)), 3) == (0, 1, 2)


def test_layer_sampling_keeps_ends_and_draws_the_same_for_the_same_step():
    schedule = LayerSampling(active=2, every=5)
    draws = [schedule(Progress(step, 1000), 8) for step in range(200)]
    assert all(len(d) == 4 and d[0] == 0 and d[-1] == 7 for d in draws)
    assert all(draws[i] == draws[i - i % 5] for i in range(200))
    assert len(set(draws)) > 5
    assert draws == [LayerSampling(active=2, every=5)(Progress(step, 1000), 8) for step in range(200)]
    assert draws != [LayerSampling(active=2, every=5, draw_seed=1)(Progress(step, 1000), 8) for step in range(200)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradualUnfreezing(every=0), "`every` must be"),
        (lambda: GradualUnfreezing(every="day"), "'day'"),
        (lambda: GradualUnfreezing(frozen=-1), "`frozen` must be"),
        (lambda: GradualUnfreezing(until=1.5), "`until` must lie between 0 and 1"),
        (lambda: PlateauUnfreezing(patience=0), "`patience`"),
        (lambda: PlateauUnfreezing(min_delta=-1), "`min_delta`"),
        (lambda: LayerSampling(active=0), "`active`"),
        (lambda: LinearProbeThenFineTune(regularization=0), "`regularization`"),
        (lambda: LinearProbeThenFineTune(rows_per_output=0), "`rows_per_output`"),
    ],
)
def test_fields_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_rebuilt_from_its_description(name):
    schedule = SCHEDULES[name]()
    fields = {key: value for key, value in schedule.to_dict().items() if key != "name"}
    assert schedule.to_dict()["name"] == name
    assert SCHEDULES[name](**fields) == schedule


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("groups", [1, 2, 7])
def test_every_schedule_always_trains_something_within_range(name, groups):
    schedule = SCHEDULES[name]()
    for step in range(20):
        learning = schedule(Progress(step, 20), groups)
        assert learning
        assert set(learning) <= set(range(groups))
