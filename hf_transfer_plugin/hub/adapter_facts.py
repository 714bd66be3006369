"""What a card says of an adapter, told from the record and the files beside it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_transfer_plugin.record import TransferRecord

ADAPTER, ADAPTER_WEIGHTS, GENERATION = "adapter_config.json", "adapter_model.safetensors", "generation_config.json"
WHOLE = ("model.safetensors", "model-*.safetensors")
NAMES = {  # as in the record -> as their authors write them
    "lora": "LoRA",
    "lora+": "LoRA+",
    "dora": "DoRA",
    "rslora": "rank-stabilised LoRA",
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "adalora": "AdaLoRA",
    "ia3": "IA³",
    "vera": "VeRA",
    "oft": "OFT",
    "boft": "BOFT",
    "prefix": "prefix tuning",
    "prompt": "prompt tuning",
    "p-tuning": "P-tuning",
    "ln-tuning": "tuning of the layer norms",
    "trainable-tokens": "trainable tokens",
}
SIZES = {  # field of the record -> words
    "r": "rank",
    "init_r": "rank at the start",
    "target_r": "mean rank at the end",
    "lora_alpha": "alpha",
    "oft_block_size": "block size",
    "boft_block_size": "block size",
    "num_virtual_tokens": "learned tokens",
    "ratio": "rate of B over that of A",
}
SHOWN = 10


def is_adapter(record: TransferRecord, folder: Path | None = None) -> bool:
    """
    Args:
        record (`TransferRecord`):
            The record.
        folder (`Path`, *optional*):
            Where the weights lie; what lies there counts more than what the record says.

    Returns:
        `bool`: Whether the weights of the run are an adapter's, and not the whole model with one merged into it.
    """
    if folder is not None and (folder / ADAPTER).is_file():
        return True
    merged = folder is not None and any(True for pattern in WHOLE for _ in folder.glob(pattern))
    return record.adapter is not None and not merged


def method_name(adapter: Mapping[str, Any]) -> str:
    """
    Args:
        adapter (`Mapping[str, Any]`):
            `adapter` of a record.

    Returns:
        `str`: The method, as its authors write it.
    """
    name = str(adapter.get("name") or adapter.get("peft_type") or "adapter")
    return NAMES.get(name.lower(), name)


def adapter_tags(adapter: Mapping[str, Any]) -> list[str]:
    """
    Args:
        adapter (`Mapping[str, Any]`):
            `adapter` of a record.

    Returns:
        `list[str]`: What PEFT calls the method, what we call it, and the library that loads it.
    """
    names = [str(adapter.get(key) or "").lower() for key in ("peft_type", "name")]
    return [*dict.fromkeys(name for name in names if name), "transformers"]


def adapter_metadata(record: TransferRecord, base: str | None, tags: list[str]) -> dict[str, Any]:
    """
    Args:
        record (`TransferRecord`):
            The record.
        base (`str` or `None`):
            Hub id of the base model, where it is known.
        tags (`list[str]`):
            Tags of the method.

    Returns:
        `dict[str, Any]`: What the Hub reads on the card of an adapter.
    """
    strategy = record.strategy.get("name", "full")
    ours = ["hf-transfer-plugin", "transfer-learning", *([] if strategy == "full" else [strategy])]
    named = {"base_model": base, "base_model_relation": "adapter"} if base else {}
    start = [f"base_model:adapter:{base}"] if base else []
    return {"library_name": "peft", **named, "tags": list(dict.fromkeys([*start, *tags, *ours]))}


def adapter_rows(record: TransferRecord, folder: Path | None) -> list[tuple[str, str]]:
    """
    Args:
        record (`TransferRecord`):
            The record.
        folder (`Path`, *optional*):
            Where the file of the adapter may lie.

    Returns:
        `list[tuple[str, str]]`: What the adapter is, a line each; empty where the record tells of none.
    """
    adapter = record.adapter
    if not adapter:
        return []
    sizes = [f"{words} {_plain(adapter[name])}" for name, words in SIZES.items() if adapter.get(name) is not None]
    found = [
        ("method", method_name(adapter)),
        ("size", ", ".join(sizes)),
        ("sits in", _place(adapter)),
        ("also learned, in full", ", ".join(_full(adapter))),
        ("trainable parameters", _share(record)),
    ]
    if is_adapter(record, folder):
        found.append(("saved as", _saved(adapter)))
    file = folder / ADAPTER_WEIGHTS if folder is not None else None
    if file is not None and file.is_file():
        found.append((f"size of {ADAPTER_WEIGHTS}", _size(file.stat().st_size)))
    if adapter.get("base_precision"):
        found.append(("precision of the frozen base in training", str(adapter["base_precision"])))
    return [(name, value) for name, value in found if value]


def adapter_notes(record: TransferRecord, *, merged: bool = False) -> list[str]:
    """
    Args:
        record (`TransferRecord`):
            The record.
        merged (`bool`, *optional*, defaults to `False`):
            Whether the adapter was merged into the base, so that the weights are those of a whole model.

    Returns:
        `list[str]`: What a reader should know before loading it, a sentence each; plain text.
    """
    if merged:
        return ["The adapter was merged into the base, so it loads like any other model."]
    found = [
        "The weights here are the adapter alone: what loads it loads the base model, too, and PEFT must be installed."
    ]
    if record.class_names:
        found.append(
            "The names of the classes stand in the code above. By the name of the repository alone, pipelines and "
            "the auto classes of Transformers take labels and output layer of the base: they answer with LABEL_0, or "
            "fail."
        )
    if (record.adapter or {}).get("use_dora") or (record.adapter or {}).get("name") == "dora":
        found.append(
            "Load it with PEFT, as above: from_pretrained of Transformers leaves out the lengths of the weights that "
            "DoRA learned, and says nothing."
        )
    precision = str((record.adapter or {}).get("base_precision") or "")
    if precision:
        found.append(
            f"It was trained over the base in {precision}. Loaded in float32, as above and by the demo, the base is "
            "closer to what its checkpoint holds, so answers may differ a little from those measured."
        )
    else:
        found.append(
            "Load the base in float32, as above: one in 16 bits would round what the adapter learned in 32, so "
            "answers would differ a little from those measured."
        )
    return found


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _saved(adapter: Mapping[str, Any]) -> str:
    """Words for what the file holds, where that is not what was trained."""
    kind, rank = adapter.get("saved_as"), adapter.get("saved_rank")
    if not kind or (kind == adapter.get("peft_type") and rank in (None, adapter.get("r"))):
        return ""
    name = "plain LoRA" if kind == "LORA" else str(kind)
    most = " at most" if adapter.get("peft_type") == "ADALORA" else ""  # each module keeps as many as it needs
    return f"{name} of rank {rank}{most}" if rank else name


def _place(adapter: Mapping[str, Any]) -> str:
    """Kinds of modules, each once however many layers have it, and of how many layers."""
    targets = adapter.get("target_modules") or ()
    if isinstance(targets, str):
        place = f"modules that match {targets}"
    else:
        kinds = list(dict.fromkeys(name.rpartition(".")[2] if "." in name else name for name in targets))
        more = f" and {len(kinds) - SHOWN} more" if len(kinds) > SHOWN else ""
        place = ", ".join(kinds[:SHOWN]) + more
    if not place and adapter.get("num_virtual_tokens") is not None:
        return "front of the text"
    layers = adapter.get("layers")
    if layers is None or not place:
        return place
    if isinstance(layers, int):
        return f"{place} of the upper {layers} layers" if layers > 1 else f"{place} of the uppermost layer"
    return f"{place} of the layers {', '.join(map(str, layers))}"


def _full(adapter: Mapping[str, Any]) -> list[str]:
    """Modules, each kind once: of the norms in every layer there is one name."""
    also = [what for what in adapter.get("also_train") or () if what in ("norms", "biases")]
    modules = [str(name).rpartition(".")[2] for name in adapter.get("modules_to_save") or ()]
    told = [name for name in modules if "norms" not in also or not re.search("norm|^ln", name, re.IGNORECASE)]
    kinds = list(dict.fromkeys([*told, *also]))
    return kinds[:SHOWN] + ([f"{len(kinds) - SHOWN} more"] if len(kinds) > SHOWN else [])


def _share(record: TransferRecord) -> str:
    learned = (record.adapter or {}).get("trainable_parameters")
    if learned is None:
        learned = max((phase["trainable_parameters"] for phase in record.phases), default=None)
    if learned is None:
        return ""
    total = sum(group["parameters"] for group in record.groups)
    return f"{learned:,} of {total:,} ({100 * learned / total:.3g}%)" if total else f"{learned:,}"
