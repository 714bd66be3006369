"""What was trained when, as a plot, and the look that all plots share."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_transfer_plugin._optional import require
from hf_transfer_plugin.hub.adapter_facts import method_name
from hf_transfer_plugin.record import TransferRecord

logger = logging.getLogger(__name__)
LEARNING, FROZEN, INK = "#2a78d6", "#e8e7e3", "#3d3c39"


def render_schedule(record: TransferRecord, path: str | Path) -> Path | None:
    """
    Draws which layer group learned when, and each group's learning rate over the steps.

    Args:
        record (`TransferRecord`):
            The record.
        path (`str` or `Path`):
            The PNG file.

    Returns:
        `Path` or `None`: The file; `None` where matplotlib is not installed.
    """
    pyplot = drawing("schedule plot")
    if pyplot is None:
        return None
    names = [group["name"] for group in record.groups]
    steps = max(int(record.arguments.get("steps", 0)), 1)
    height = 0.28 * len(names)
    figure, (upper, lower) = pyplot.subplots(
        2, 1, figsize=(9, 4.2 + height), sharex=True, height_ratios=[height + 0.6, 3], layout="constrained"
    )
    _draw_phases(upper, record, names, steps)
    _draw_rates(lower, record, names, pyplot)
    lower.set_xlabel("optimizer step")
    lower.set_xlim(0, steps)
    return save(figure, path, pyplot)


def drawing(what: str) -> Any | None:
    """
    Args:
        what (`str`):
            What is to be drawn, for the warning.

    Returns:
        `ModuleType` or `None`: matplotlib.pyplot without a window; `None`, with a warning, where it is not installed.
    """
    if find_spec("matplotlib") is None:
        logger.warning('No %s: run `pip install "hf-transfer-plugin[plots]"` for it.', what)
        return None
    require("matplotlib", extra="plots").use("Agg")
    return require("matplotlib.pyplot", extra="plots")


def save(figure: Any, path: str | Path, pyplot: Any) -> Path:
    """
    Writes a figure, the same bytes for the same figure, and closes it.

    Args:
        figure (`Figure`):
            The figure.
        path (`str` or `Path`):
            The PNG file.
        pyplot (`ModuleType`):
            As [`drawing`] gives it.

    Returns:
        `Path`: The file.
    """
    path = Path(path)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot.close(figure)
    return path


def plain(axes: Any) -> None:
    """
    Gives axes the common look.

    Args:
        axes (`Axes`):
            The axes.
    """
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)


def _what(record: TransferRecord) -> str:
    """Of a layer group with an adapter only that learns, and what was named beside it."""
    return f"{method_name(record.adapter)} in each layer group" if record.adapter else "each layer group"


def _draw_phases(axes: Any, record: TransferRecord, names: list[str], steps: int) -> None:
    """One row a group, the head on top as the thaw goes down."""
    ends = [phase["step"] for phase in record.phases[1:]] + [steps]
    for row, name in enumerate(names):
        axes.barh(row, steps, color=FROZEN, height=0.82)
        for phase, end in zip(record.phases, ends, strict=False):
            if name in phase["groups"]:
                axes.barh(row, end - phase["step"], left=phase["step"], color=LEARNING, height=0.82)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_title(
        f"{record.strategy.get('name', '')}: when {_what(record)} learned (blue) and was frozen (grey)",
        loc="left",
        fontsize=10,
        color=INK,
    )
    plain(axes)


def _draw_rates(axes: Any, record: TransferRecord, names: list[str], pyplot: Any) -> None:
    colours = pyplot.get_cmap("viridis")
    alike: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for name in names:
        points = tuple((entry["step"], entry[name]) for entry in record.rates if name in entry)
        if points:
            alike.setdefault(points, []).append(name)
    for i, (points, together) in enumerate(alike.items()):
        shade = colours(0.92 * i / max(len(alike) - 1, 1)) if len(alike) > 1 else LEARNING
        label = together[0] if len(together) == 1 else f"{together[0]} ... {together[-1]}, all at one rate"
        axes.plot(*zip(*points, strict=True), color=shade, linewidth=1.6, label=label)
    axes.set_ylabel("learning rate", color=INK, fontsize=9)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.set_title("Learning rate of each group", loc="left", fontsize=10, color=INK)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles[::-1], labels[::-1], fontsize=7, frameon=False, loc="upper right", ncols=2)
    plain(axes)
