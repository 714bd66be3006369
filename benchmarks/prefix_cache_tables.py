"""
The tables of benchmarks/prefix_cache.py: ratios of runs of the same round, and the bars they should meet, judged by
the processor's time where both runs of every pair had one thread, by the clock else.
"""

import statistics
from typing import Any, NamedTuple

from benchmarks.prefix_cache_cases import CASES, PARTS, TARGET

MIB = 2**20
LIMIT = 1 / (1 - 4 / 6)  # four of six blocks frozen
Key = tuple[str, str, int]


class Ratio(NamedTuple):
    """A line of the table: what is divided by what, in the same round, and the bar."""

    title: str
    case: str
    over: tuple[str, str]
    bar: float | None = None
    what: str = "seconds"
    factor: float = 1.0


RATIOS = (
    Ratio("head only, 10 epochs, against plain frozen", "head-10", ("head-10", "plain"), 8),
    Ratio("the same, against the prefix in eval", "head-10", ("head-10", "eval")),
    Ratio("the same, against full (2 epochs, times 5)", "head-10", ("full", "plain"), None, "seconds", 5),
    Ratio("head only, 30 epochs, against plain frozen", "head-30", ("head-30", "plain"), 20),
    Ratio("the same, against full (2 epochs, times 15)", "head-30", ("full", "plain"), None, "seconds", 15),
    Ratio("top 2 of 6 layers, 10 epochs, against plain frozen", "top", ("top", "plain"), 1.5),
    Ratio("the same, against the prefix in eval", "top", ("top", "eval")),
    Ratio("the same, against full (2 epochs, times 5)", "top", ("full", "plain"), None, "seconds", 5),
    Ratio(
        "the same, a step after the fill against full but for the embeddings (limit 3)", "top",
        ("full-but-embeddings", "plain"), 0.9 * LIMIT, "ms_a_step",
    ),
    Ratio("gradual, one layer every 2 epochs, against eval", "gradual-a", ("gradual-a", "eval"), 1.4),
    Ratio("gradual, one layer an epoch, embeddings last, against eval", "gradual-b", ("gradual-b", "eval"), 1.15),
)  # fmt: skip


def figures(line: dict[str, Any], what: str) -> tuple[float, float]:
    """
    Args:
        line (`dict[str, Any]`):
            A run.
        what (`str`):
            `"seconds"` of the run or `"ms_a_step"`.

    Returns:
        `tuple[float, float]`: It by the clock and by the processor.
    """
    return (line["seconds"]["all"], line["cpu"]) if what == "seconds" else (line[what]["wall"], line[what]["cpu"])


def pairs(found: dict[Key, dict[str, Any]], case: str, over: tuple[str, str]) -> list[tuple[Any, ...]]:
    """
    Args:
        found (`dict`):
            Lines.
        case (`str`):
            A case with the cache.
        over (`tuple[str, str]`):
            Case and way of what stands against it.

    Returns:
        `list[tuple]`: The lines of each round that has both.
    """
    rounds = sorted(number for name, way, number in found if (name, way) == (case, "cached"))
    return [(found[case, "cached", n], found[*over, n]) for n in rounds if (*over, n) in found]


def shared(both: list[tuple[Any, ...]]) -> bool:
    """
    Args:
        both (`list[tuple]`):
            Lines that are compared.

    Returns:
        `bool`: Whether all had one thread: the machine is shared then, and its clock counts the work of others.
    """
    return all(line["threads"] == 1 for lines in both for line in lines)


def shown(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def met(value: float, bar: float | None, *, above: bool = True) -> str:
    return "" if bar is None else "yes" if (value >= bar if above else value <= bar) else "**no**"


def bar_rows(found: dict[Key, dict[str, Any]]) -> list[str]:
    """
    Args:
        found (`dict`):
            Lines.

    Returns:
        `list[str]`: What is faster how many times, and how near the FLOPs' ratio that is.
    """
    rows = []
    for ratio in RATIOS:
        both = pairs(found, ratio.case, ratio.over)
        if not both:
            continue
        split = [
            [ratio.factor * b / a for a, b in zip(figures(ours, ratio.what), figures(other, ratio.what), strict=True)]
            for ours, other in both
        ]
        wall, cpu = map(list, zip(*split, strict=True))
        bar = "" if ratio.bar is None else f">= {ratio.bar:g}"
        judged = cpu if shared(both) else wall
        done = met(statistics.median(judged), ratio.bar)
        rows.append(f"| {ratio.title} | {bar} | {shown(wall)} | {shown(cpu)} | {done} |")
        if ratio.case.startswith("gradual"):
            shares = [
                [value / ours["predicted"] for value, (ours, _) in zip(values, both, strict=True)]
                for values in (wall, cpu)
            ]
            title = f"the same, as a share of the ratio of planning.py's FLOPs, {both[0][0]['predicted']:.2f}"
            done = met(statistics.median(shares[shared(both)]), 0.9)
            rows.append(f"| {title} | >= 0.9 | {shown(shares[0])} | {shown(shares[1])} | {done} |")
    return rows


def memory_rows(found: dict[Key, dict[str, Any]]) -> list[str]:
    """
    Args:
        found (`dict`):
            Lines.

    Returns:
        `list[str]`: MiB above the plain run, with the cache's files allowed on top, and above `attach` without cache.
    """
    rows = []
    for case in PARTS["memory"]:
        for way in ("plain", "eval"):
            both = pairs(found, case, (case, way))
            if not both:
                continue
            more = [ours["memory_mib"]["peak"] - other["memory_mib"]["peak"] for ours, other in both]
            allowed = max(ours["report"]["bytes"] for ours, _ in both) / MIB
            peak = statistics.median(ours["memory_mib"]["peak"] for ours, _ in both)
            bar = f"<= {allowed:.1f}" if way == "plain" else ""
            done = met(statistics.median(more), allowed, above=False) if way == "plain" else ""
            title = f"{CASES[case].title}: peak MiB (of {peak:,.0f}) above {way}"
            rows.append(f"| {title} | {bar} | {shown(more, 0)} | | {done} |")
    return rows


def fill_rows(found: dict[Key, dict[str, Any]]) -> list[str]:
    """
    Args:
        found (`dict`):
            Lines.

    Returns:
        `list[str]`: Seconds of the fill against those of an evaluation pass over the same rows with warm memory, by
        the clock, which alone the cache reports.
    """
    rows = []
    for case in ("head-10", "top"):
        both = pairs(found, case, ("evaluate", "evaluate"))
        if both:
            shares = [ours["report"]["fill_seconds"] / other["seconds"]["second"] for ours, other in both]
            done = met(statistics.median(shares), 1.15, above=False)
            rows.append(f"| {CASES[case].title}: fill / evaluation pass | <= 1.15 | {shown(shares)} | | {done} |")
    return rows


def target_table(found: dict[Key, dict[str, Any]]) -> str:
    """
    Args:
        found (`dict`):
            Lines.

    Returns:
        `str`: Accuracy and time of every recipe, as a share of the better full fine-tuning's; where all runs had one
        thread the processor's time, and the heading says so.
    """
    runs = {c: [line for (case, _, _), line in sorted(found.items()) if case == c] for c in TARGET}
    full = [case for case in TARGET if CASES[case].strategy == "full" and runs[case]]
    if not full:
        return ""
    mean = {case: statistics.mean(line["accuracy"] for line in lines) for case, lines in runs.items() if lines}
    best = max(full, key=lambda case: mean[case])
    clock = int(shared([tuple(one) for one in runs.values()]))
    unit = "seconds of the processor" if clock else "seconds"
    lines = [
        f"| recipe (all rows of train) | accuracy | {unit} | share of full | reached |",
        "|---|---:|---:|---:|---|",
    ]
    for case in mean:
        way = CASES[case].ways[0]
        rounds = [n for name, _, n in sorted(found) if name == case and (best, "plain", n) in found]
        seconds = [figures(found[case, way, n], "seconds")[clock] for n in rounds]
        shares = [s / figures(found[best, "plain", n], "seconds")[clock] for s, n in zip(seconds, rounds, strict=True)]
        scores = [line["accuracy"] for line in runs[case]]
        if not rounds:
            continue
        score = f"{mean[case]:.4f} ({min(scores):.4f}-{max(scores):.4f})"
        reached = "yes" if mean[case] >= mean[best] else "no"
        lines.append(f"| {CASES[case].title} | {score} | {shown(seconds, 0)} | {shown(shares)} | {reached} |")
    return "\n".join(lines)


def bars_table(found: dict[Key, dict[str, Any]]) -> str:
    """
    Args:
        found (`dict`):
            Lines.

    Returns:
        `str`: The bars, what was measured, and whether they are met, as Markdown.
    """
    lines = ["| how many times faster with the cache | bar | by the clock | by the processor | met |",
             "|---|---:|---:|---:|---|", *bar_rows(found), *memory_rows(found), *fill_rows(found)]  # fmt: skip
    return "\n".join(lines)


def milliseconds_table(found: dict[Key, dict[str, Any]]) -> str:
    """
    Args:
        found (`dict`):
            Lines.

    Returns:
        `str`: Medians of each case and way: seconds of the run, of `attach` and of the fill, and of a step.
    """
    lines = [
        "| run | way | rounds | seconds | of the processor | ms a step | of the processor | attach s | fill s | MiB "
        "stored | peak MiB | loss |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, way in dict.fromkeys((name, way) for name, way, _ in sorted(found, key=_place)):
        runs = [line for (case, kind, _), line in found.items() if (case, kind) == (name, way)]
        if way == "evaluate":
            values = [_median(runs, "seconds", "second"), _median(runs, "cpu"), *[""] * 7]
        else:
            filled = (("report", "fill_seconds"), 1), (("report", "bytes"), MIB)
            stored = [_median(runs, *path, divisor=by) if way == "cached" else "" for path, by in filled]
            values = [
                _median(runs, "seconds", "all"), _median(runs, "cpu"), _median(runs, "ms_a_step", "wall"),
                _median(runs, "ms_a_step", "cpu"), _median(runs, "seconds", "attach"),
                *stored, _median(runs, "memory_mib", "peak"),
                _median(runs, "loss", digits=4),
            ]  # fmt: skip
        lines.append(f"| {CASES[name].title} | {way} | {len(runs)} | {' | '.join(values)} |")
    return "\n".join(lines)


def _place(key: Key) -> int:
    return list(CASES).index(key[0])


def _median(runs: list[dict[str, Any]], *path: str, divisor: float = 1.0, digits: int = 2) -> str:
    values = []
    for run in runs:
        value: Any = run
        for name in path:
            value = value[name]
        values.append(value / divisor)
    return f"{statistics.median(values):,.{digits}f}"
