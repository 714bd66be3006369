"""
For which architectures can the frozen layers be cached? Builds a tiny model of every class of
`benchmarks/architecture_survey.py`, freezes the lower half of its layer groups, then all but the last group, and asks
`find_cut` each time for a cut: stored tensors in the place of what lies below must give the same outputs and gradients
bit for bit, and noise others. Then `prove_storage` puts rows that were caught one by one into one batch.

Resumable, as the other survey is: one line a class in results/prefix_cache_survey.jsonl.
    python -m benchmarks.prefix_cache_survey --minutes 19        # again, until it says that nothing is left
    python -m benchmarks.prefix_cache_survey --only BertForMaskedLM T5ForConditionalGeneration
    python -m benchmarks.prefix_cache_survey --table             # writes results/prefix_cache_survey.md
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from benchmarks.architecture_survey import TASKS, find_groups, listed_classes, reason, run, running_model
from benchmarks.tiny_batches import collate, padding_of, richer, row_sets
from benchmarks.tiny_inputs import Inputs, on_text_alone
from hf_transfer_plugin import LayerGroups
from hf_transfer_plugin.layers import parameters_by_name
from hf_transfer_plugin.prefix_cache.cuts import CannotCacheError, Cut
from hf_transfer_plugin.prefix_cache.finding import find_cut
from hf_transfer_plugin.prefix_cache.proving import Place, prove_storage
from hf_transfer_plugin.prefix_cache.rows import row_digests
from hf_transfer_plugin.prefix_cache.traces import trace

RESULTS = Path(__file__).parent / "results" / "prefix_cache_survey.jsonl"
SETTINGS = {"half": "the lower half of the layer groups frozen", "last": "all but the last group frozen"}
STORAGE = "float16"
# What is asked for is a share of the cuts that there can be: one group alone, or none below, is no refusal.
OUTCOMES = ("exact", "refused", "crash", "nothing")
# What lies behind the refusals, found by hand.
PADDING_SEEN = "what it computes for a text depends on the padding behind it"
EXPLAINED = {
    **dict.fromkeys(("xlnet", "fsmt"), "its layers take the rows in the second dimension"),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "its rows are four codebooks each"),
    "instructblipvideo": "the dummy text has no place for the video",
    "rf_detr": "its layers take windows of images, not images",
    "rwkv": "in eval mode it rescales its weights while it runs",
    "longt5": "the position bias that it hands on holds -1e10 for masked places",
    "deformable_detr": "dummy images are so small that a row alone has one value a channel",
    **dict.fromkeys(("canine", "convbert", "fnet", "funnel", "layoutlmv3", "mobilebert"), PADDING_SEEN),
    **dict.fromkeys(("nystromformer", "reformer", "yoso"), PADDING_SEEN),
}
# Of the largest output: as much as a batch of another size changes it, in deep networks of convolutions.
ROUNDING_ALONE = "by rounding alone"


def survey_class(class_name: str, model_type: str) -> dict[str, Any]:
    """
    Surveys one class.

    Args:
        class_name (`str`):
            A class of `transformers`.
        model_type (`str`):
            The key under which the auto mapping lists it.

    Returns:
        `dict[str, Any]`: A row of the results.
    """
    model, inputs, stage, reasons = running_model(class_name, model_type)
    row = {"class": class_name, "model_type": model_type, "stage": stage, "reasons": reasons[:1]}
    if model is None:
        return row
    groups = find_groups(model, inputs)[0]
    if getattr(model.config, "is_encoder_decoder", False) and not hasattr(model.config, "decoder_start_token_id"):
        model.config.decoder_start_token_id = 2
    differing, sets = find_rows(model, inputs)
    row |= {
        "groups": list(groups.names),
        "inputs": sorted(sets[0][0]),
        "text_alone": on_text_alone(model, inputs),
        "probes": differing,
    }
    make = partial(collate, padding=padding_of(model))
    for name, low in (("half", len(groups) // 2), ("last", len(groups) - 1)):
        row[name] = survey_cut(model, groups, low, sets, make)
    return row


def find_rows(model: nn.Module, inputs: Inputs) -> tuple[str, list[list[Inputs]]]:
    """The most different rows that a model runs on, with what real collators add where it takes that."""
    padding = padding_of(model)
    for differing in ("size, length and padding", "size and length", "size", "values"):
        for given in richer(model, inputs):
            for name, sets in row_sets(model, given):
                if name == differing and all(_runs(model, collate(rows, padding=padding)) for rows in sets):
                    return differing, sets
    return "nothing", [[inputs]]


def _runs(model: nn.Module, batch: Inputs) -> bool:
    try:
        with torch.no_grad():
            model(**batch)
    except Exception:  # noqa: BLE001  a guess at inputs may fail in any way
        return False
    return True


def survey_cut(
    model: nn.Module, groups: LayerGroups, low: int, sets: Sequence[Sequence[Inputs]], make: Callable[..., Inputs]
) -> dict[str, Any]:
    """One setting: the groups from `low` up learn."""
    if len(groups) < 2:
        return {"outcome": "nothing", "reason": "a single layer group"}
    learning = frozenset(name for group in groups[low:] for name in group.parameters)
    model.train()
    torch.manual_seed(1)
    probes = [make(rows) for rows in sets]
    begin = time.perf_counter()
    try:
        cut = find_cut(model, learning, probes)
    except CannotCacheError as error:
        empty = str(error).startswith("nothing lies below")
        return {"outcome": "nothing" if empty else "refused", "reason": " ".join(str(error).split())[:400]}
    except Exception as error:  # noqa: BLE001  the survey is there to find these
        return {"outcome": "crash", "reason": reason(error)}
    seconds = round(time.perf_counter() - begin, 2)
    described = _described(model, cut, learning, probes[0])
    return {"outcome": "exact", **described, "seconds": seconds, **_storage(model, cut, sets, make)}


def _described(model: nn.Module, cut: Cut, learning: frozenset[str], probe: Inputs) -> dict[str, Any]:
    """What the cut skips, as a share of all weights and of the frozen ones whose modules run on the inputs."""
    sizes = {name: parameter.numel() for name, parameter in parameters_by_name(model).items()}
    ran = set(trace(model, probe).order)
    frozen = sum(size for name, size in sizes.items() if name not in learning and name.rpartition(".")[0] in ran)
    skipped = {f"{name}.{inner}" for name in cut.skipped for inner, _ in model.get_submodule(name).named_parameters()}
    own = [size for name, size in sizes.items() if name in skipped and name.rpartition(".")[0] in ran]
    return {
        "fed": cut.fed,
        "skipped": len(cut.skipped),
        "tensors": len(cut.addresses),
        "of_all": round(sum(own) / sum(sizes.values()), 3),
        "of_frozen": round(sum(own) / max(frozen, 1), 3),
    }


def _storage(
    model: nn.Module, cut: Cut, sets: Sequence[Sequence[Inputs]], make: Callable[..., Inputs]
) -> dict[str, Any]:
    """Whether rows stored one by one give the same answers in one batch; told apart by their digests."""
    rows = [row for rows in sets for row in rows]
    found: dict[str, Any] = {}
    for how, joined in (("accepted", make), ("one length", partial(make, whole=rows))):
        try:
            row_digests(joined(rows))
            error = prove_storage(model, cut, rows, joined, Place(torch.device("cpu")), STORAGE).error
        except (CannotCacheError, ValueError) as refusal:
            found = {"storage": "refused", "storage_reason": " ".join(str(refusal).split())[:400]} | found
        except Exception as crash:  # noqa: BLE001  the survey is there to find these
            found = {"storage": "crash", "storage_reason": reason(crash)} | found
        else:
            return found | {"storage": how, "rounding": float(f"{error:.1e}")}
    return found


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: for each setting the counts of each task, then every class that is not exact, with its reason."""
    classes = listed_classes()
    ran = {name: rows[name] for name in classes if rows.get(name, {}).get("stage") in {"runs", "fails"}}
    lines = [
        "# Prefix cache survey",
        "",
        f"Whether the frozen part of every class in the auto mappings of transformers {transformers.__version__} that",
        "runs on dummy inputs can be cached, on tiny models. Written by",
        "`python -m benchmarks.prefix_cache_survey --table`, where it says what is asked. *Exact*: outputs and",
        "gradients from stored tensors are the same bit for bit, and noise gives others. *Nothing*: a single group,",
        "or no module with weights runs before what learns. *Weights*: median share of the frozen weights that need",
        "not run. *Stored*: rows caught one by one give the same answers in one batch, padded where the class takes",
        f"texts or sounds of different length, as a cache with {STORAGE} needs; *in one length*: only where every row",
        "is padded to the same length. Shares are of those with something to cache.",
    ]
    for setting, about in SETTINGS.items():
        lines += ["", f"## With {about}", "", *_counts(ran, classes, setting)]
    for setting, about in SETTINGS.items():
        for outcome in ("refused", "crash"):
            found = {
                n: r[setting]["reason"] for n, r in ran.items() if _outcome(r, setting) == outcome and setting in r
            }
            lines += _listed(f"{outcome.capitalize()} with {about}", found, rows)
        found = {
            n: f"{r[setting]['storage']}: {r[setting]['storage_reason']}"
            for n, r in ran.items()
            if r.get(setting, {}).get("storage", "accepted") != "accepted"
        }
        lines += _listed(f"Exact, but not stored, or in one length only, with {about}", found, rows)
    empty = [f"{n} ({s})" for n, r in ran.items() for s in SETTINGS if _outcome(r, s) == "nothing"]
    lines += ["", f"## Nothing to cache ({len(empty)})", "", ", ".join(empty)]
    for probes in ("size", "values", "nothing"):
        alike = [n for n, r in ran.items() if r.get("probes") == probes]
        lines += ["", f"## Batches that differ in {probes} only ({len(alike)})", "", ", ".join(alike)]
    died = {n: "; ".join(r["reasons"]) for n, r in ran.items() if r["stage"] == "fails"}
    lines += _listed("The process ended", died, rows)
    return "\n".join([*lines, *_absent(classes, rows)]) + "\n"


def _outcome(row: Mapping[str, Any], setting: str) -> str:
    return row.get(setting, {}).get("outcome", "crash")


def _counts(ran: Mapping[str, Any], classes: Mapping[str, Any], setting: str) -> Iterable[str]:
    yield "| task | run | exact | refused | crash | nothing | exact share | weights | stored | in one length | share |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for task in (*TASKS, "all classes"):
        mine = [r for n, r in ran.items() if task in classes[n][1] or task == "all classes"]
        counts = Counter(_outcome(r, setting) for r in mine)
        asked = max(len(mine) - counts["nothing"], 1)
        exact = [r[setting] for r in mine if _outcome(r, setting) == "exact"]
        shares = sorted(cut["of_frozen"] for cut in exact)
        stored = Counter(cut["storage"] for cut in exact)
        cells = [task, len(mine), *(counts[outcome] for outcome in OUTCOMES), f"{counts['exact'] / asked:.1%}"]
        cells += [f"{shares[len(shares) // 2]:.0%}" if shares else "", stored["accepted"], stored["one length"]]
        yield f"| {' | '.join(map(str, cells))} | {(stored['accepted'] + stored['one length']) / asked:.1%} |"


def _listed(title: str, found: Mapping[str, str], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not found:
        return []
    lines = ["", f"## {title} ({len(found)})", "", "| class | reason |", "|---|---|"]
    for name, why in found.items():
        known = EXPLAINED.get(rows[name]["model_type"], "")
        known = ROUNDING_ALONE if re.search(r"\(by [\d.]+e-05 of", why) else known
        lines.append(f"| {name} | {f'{known}: {why}' if known else why} |".replace("\n", " "))
    return lines


def _absent(classes: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = [n for n in classes if rows.get(n, {}).get("stage") not in {"runs", "fails"}]
    about = "Not asked: no dummy inputs that they run on, or not built (see architecture_survey.md)"
    return ["", f"## {about} ({len(names)})", "", ", ".join(names)]


if __name__ == "__main__":
    run(survey_class, RESULTS, table, __doc__ or "")
