"""Reliability and confusion: what is drawn, from a record alone."""

import importlib.util
import warnings

import numpy as np
import pytest

from hf_transfer_plugin.hub import diagnostics, plots, render_confusion, render_reliability
from hf_transfer_plugin.metrics import calibration
from hf_transfer_plugin.record import TransferRecord

PNG = b"\x89PNG\r\n\x1a\n"


def record(classes=3, names=None):
    draws = np.random.default_rng(0)
    confidences = draws.random(200)
    return TransferRecord(
        task="text-classification",
        base_model="tiny",
        class_names=names or [f"class {i}" for i in range(classes)],
        confusion_matrix=draws.integers(0, 30, (classes, classes)).tolist(),
        calibration=calibration(confidences, draws.random(200) < confidences),
    )


@pytest.fixture
def figure(monkeypatch):
    """The figure that would be written."""
    kept = []
    monkeypatch.setattr(diagnostics, "save", lambda figure, path, pyplot: kept.append(figure) or path)
    yield lambda draw, made: draw(made, "x.png") and kept[-1]
    from matplotlib import pyplot

    for one in kept:
        pyplot.close(one)


def texts_on(axes):
    return {(text.get_position(), text.get_text()) for text in axes.texts}


@pytest.mark.parametrize("draw", [render_reliability, render_confusion])
def test_plots_are_pngs_and_the_same_for_the_same_record(draw, tmp_path):
    first = draw(record(), tmp_path / "a.png")
    assert first == tmp_path / "a.png"
    content = first.read_bytes()
    assert content.startswith(PNG)
    assert len(content) > 5000
    assert draw(record(), str(tmp_path / "b.png")).read_bytes() == content
    other = record(4)
    other.calibration["bins"][3]["accuracy"] = 0.0
    assert draw(other, tmp_path / "c.png").read_bytes() != content


def test_bars_are_the_accuracy_of_each_bin_that_has_answers(figure):
    made = record()
    made.calibration = calibration(np.array([0.55, 0.65, 0.95]), np.array([True, False, True]), bins=10)
    upper, lower = figure(render_reliability, made).axes
    bars = {(round(bar.get_x(), 3), round(bar.get_width(), 3), bar.get_height()) for bar in upper.patches}
    assert bars == {(0.5, 0.1, 1.0), (0.6, 0.1, 0.0), (0.9, 0.1, 1.0)}
    assert {(round(bar.get_x(), 3), bar.get_height()) for bar in lower.patches} == {(0.5, 1), (0.6, 1), (0.9, 1)}
    diagonal, points = upper.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert list(points.get_xdata()) == pytest.approx([0.55, 0.65, 0.95])
    assert list(points.get_ydata()) == [1.0, 0.0, 1.0]
    # (1 - 0.55 + 0.65 + 1 - 0.95) / 3
    assert "error 0.383" in upper.get_title(loc="left")


def test_counts_stand_in_their_cells_and_shades_are_shares_of_the_row(figure):
    made = record(2, names=["bad", "good"])
    made.confusion_matrix = [[3, 1], [0, 12345]]
    axes = figure(render_confusion, made).axes[0]
    assert texts_on(axes) == {((0, 0), "3"), ((1, 0), "1"), ((0, 1), "0"), ((1, 1), "12k")}
    shades = np.asarray(axes.images[0].get_array())
    assert shades**2 == pytest.approx(np.array([[0.75, 0.25], [0, 1]]))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bad", "good"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["bad", "good"]


def test_a_class_without_rows_is_drawn_empty(figure):
    made = record(2)
    made.confusion_matrix = [[2, 2], [0, 0]]
    shades = np.asarray(figure(render_confusion, made).axes[0].images[0].get_array())
    assert shades[1].tolist() == [0, 0]


@pytest.mark.parametrize("classes", [2, 12, 20, 45, 60])
def test_names_and_counts_do_not_overlap(classes, figure):
    made = record(classes, names=[f"a class with a long name, number {i}" for i in range(classes)])
    drawn = figure(render_confusion, made)
    drawn.canvas.draw()
    axes = drawn.axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels(), axes.texts):
        boxes = [label.get_window_extent() for label in labels]
        for i, one in enumerate(boxes[:80]):
            assert not any(one.overlaps(other) for other in boxes[i + 1 : 80]), labels[i].get_text()
    assert len(axes.get_yticklabels()) == classes
    assert bool(axes.texts) is (classes <= 20)
    width, height = drawn.get_size_inches()
    assert max(width, height) < 16


def test_beyond_sixty_classes_their_numbers_stand(figure):
    axes = figure(render_confusion, record(70)).axes[0]
    assert axes.get_xlabel() == "class number"
    assert len(axes.get_xticks()) < 20


def test_names_are_shortened_and_never_read_as_formulas(figure):
    made = record(2, names=["$x_1$ costs $5\n", "n" * 40])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = figure(render_confusion, made)
        drawn.canvas.draw()
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == ["$x_1$ costs $5", "n" * 23 + "…"]


@pytest.mark.parametrize("draw", [render_reliability, render_confusion])
def test_nothing_is_drawn_without_facts(draw, tmp_path):
    assert draw(TransferRecord(task="text-generation", base_model="tiny"), tmp_path / "a.png") is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("draw", "what"), [(render_reliability, "reliability plot"), (render_confusion, "confusion plot")]
)
def test_without_matplotlib_there_is_a_word_and_no_plot(draw, what, tmp_path, monkeypatch, caplog):
    real = importlib.util.find_spec
    monkeypatch.setattr(plots, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    assert draw(record(), tmp_path / "a.png") is None
    assert not list(tmp_path.iterdir())
    assert f'No {what}: run `pip install "hf-transfer-plugin[plots]"` for it.' in caplog.text


def test_plots_leave_no_figure_open(tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    render_reliability(record(), tmp_path / "a.png")
    render_confusion(record(), tmp_path / "b.png")
    assert pyplot.get_fignums() == before
