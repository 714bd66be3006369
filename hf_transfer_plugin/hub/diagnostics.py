"""Plots of where a classifier errs: how far its confidence can be trusted, and which classes it takes for which."""

from pathlib import Path
from typing import Any

from hf_transfer_plugin.hub.plots import INK, LEARNING, drawing, plain, render_schedule, save
from hf_transfer_plugin.record import TransferRecord

GAP = "#d1495b"
COUNTED, NAMED = 20, 60  # classes up to which a cell has room for its count, and an axis for the names
LONGEST = 24
LETTER = 0.075  # inches, with a margin
SHARES = (0, 0.02, 0.1, 0.25, 0.5, 1)


def render_plots(record: TransferRecord, folder: str | Path) -> None:
    """
    Draws everything that a record tells in pictures: `schedule.png`, `reliability.png` and `confusion.png`, as far as
    it does.

    Args:
        record (`TransferRecord`):
            The record.
        folder (`str` or `Path`):
            Where the pictures go.
    """
    render_schedule(record, Path(folder) / "schedule.png")
    render_reliability(record, Path(folder) / "reliability.png")
    render_confusion(record, Path(folder) / "confusion.png")


def render_reliability(record: TransferRecord, path: str | Path) -> Path | None:
    """
    Draws how often the model is right at each confidence, and how many answers have it.

    Args:
        record (`TransferRecord`):
            The record.
        path (`str` or `Path`):
            The PNG file.

    Returns:
        `Path` or `None`: The file; `None` where the record has no calibration or matplotlib is not installed.
    """
    if not record.calibration:
        return None
    pyplot = drawing("reliability plot")
    if pyplot is None:
        return None
    figure, (upper, lower) = pyplot.subplots(
        2, 1, figsize=(5.6, 5.8), sharex=True, height_ratios=[3.2, 1], layout="constrained"
    )
    bins = [one for one in record.calibration["bins"] if one["count"]]
    _draw_reliability(upper, bins, record.calibration["ece"])
    for one in bins:
        lower.bar(one["low"], one["count"], width=_width(one), align="edge", color=LEARNING, edgecolor="white")
    lower.set_ylabel("answers", color=INK, fontsize=9)
    lower.set_xlabel("confidence of the answer", color=INK, fontsize=9)
    lower.set_xlim(0, 1)
    lower.yaxis.get_major_locator().set_params(nbins=3, integer=True)
    lower.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    plain(lower)
    return save(figure, path, pyplot)


def _width(one: dict[str, Any]) -> float:
    return one["high"] - one["low"]


def _draw_reliability(axes: Any, bins: list[dict[str, Any]], ece: float) -> None:
    label: str | None = "share of right answers"
    for one in bins:
        axes.bar(
            one["low"],
            one["accuracy"],
            width=_width(one),
            align="edge",
            color=LEARNING,
            edgecolor="white",
            label=label,
        )
        label = None
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="right as often as it says")
    axes.plot(
        [one["confidence"] for one in bins],
        [one["accuracy"] for one in bins],
        color=GAP,
        marker="o",
        markersize=3.5,
        linewidth=0,
        label="mean confidence of the bin",
    )
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("right", color=INK, fontsize=9)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title(
        f"Is it right as often as it says? (expected calibration error {ece:.3f})", loc="left", fontsize=10, color=INK
    )
    axes.legend(fontsize=7.5, frameon=False, loc="upper left")
    plain(axes)


def render_confusion(record: TransferRecord, path: str | Path) -> Path | None:
    """
    Draws which true class (row) got which answer (column), as a share of the row; with counts up to 20 classes.

    Args:
        record (`TransferRecord`):
            The record.
        path (`str` or `Path`):
            The PNG file.

    Returns:
        `Path` or `None`: The file; `None` where the record has no confusion matrix or matplotlib is not installed.
    """
    counts = record.confusion_matrix
    if not counts:
        return None
    pyplot = drawing("confusion plot")
    if pyplot is None:
        return None
    names = [_shortened(name) for name in record.class_names]
    cell = max(0.52, 2.2 / len(counts)) if len(counts) <= COUNTED else min(0.2, 13 / len(counts))
    longest = LETTER * max(len(name) for name in names) if len(names) <= NAMED else 0.4
    side, upright = cell * len(counts), longest > cell
    figure, axes = pyplot.subplots(
        figsize=(side + longest + 1.4, side + (longest if upright else 0.2) + 0.7), layout="constrained"
    )
    shares = [[count / (sum(row) or 1) for count in row] for row in counts]
    # By the root, so that a confusion of one row in fifty is seen.
    image = axes.imshow([[share**0.5 for share in row] for row in shares], cmap="Blues", vmin=0, vmax=1)
    _name_axes(axes, names, upright=upright)
    if len(counts) <= COUNTED:
        _write_counts(axes, counts, shares)
    _add_bar(figure, axes, image)
    axes.set_title("True class (row) by answer (column)", loc="left", fontsize=10, color=INK)
    return save(figure, path, pyplot)


def _shortened(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _add_bar(figure: Any, axes: Any, image: Any) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02)
    bar.set_ticks([share**0.5 for share in SHARES], labels=[f"{share:.0%}" for share in SHARES])
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=7)
    bar.set_label("share of the true class", color=INK, fontsize=8)


def _name_axes(axes: Any, names: list[str], *, upright: bool) -> None:
    """Names where there is room, else the numbers of some classes."""
    if len(names) > NAMED:
        axes.set_xlabel("class number", color=INK, fontsize=9)
    else:
        # A name may hold a dollar sign, which would begin a formula.
        axes.set_xticks(range(len(names)), names, parse_math=False, rotation=90 if upright else 0)
        axes.set_yticks(range(len(names)), names, parse_math=False)
    plain(axes)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=8 if len(names) <= COUNTED else 7)


def _write_counts(axes: Any, counts: list[list[int]], shares: list[list[float]]) -> None:
    for row, (numbers, parts) in enumerate(zip(counts, shares, strict=True)):
        for column, (count, share) in enumerate(zip(numbers, parts, strict=True)):
            told = f"{count:,}" if count < 10_000 else f"{count / 1000:,.0f}k"
            shade = "white" if share > 0.35 else INK if count else "#b9b7b0"
            axes.text(column, row, told, ha="center", va="center", fontsize=7.5, color=shade)
