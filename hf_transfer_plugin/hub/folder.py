"""The folder that is pushed: built for the purpose, by a list of what may be in it, and searched for what may not."""

import json
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import ModelCard

from hf_transfer_plugin.hub.card import render_card
from hf_transfer_plugin.record import RECORD_NAME, TransferRecord, write_atomically

ADAPTER = "adapter_config.json"
WEIGHTS = ("model.safetensors", "model-*.safetensors", "adapter_model.safetensors")
ALLOWED = (
    *WEIGHTS,
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    ADAPTER,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    RECORD_NAME,
    "*.png",
)
# Written by training for itself; nobody misses them on the Hub.
OWN = ("README.md", "transfer_config.json", "checkpoint-*", "incomplete-checkpoint-*")
SECRETS = {
    "a Hugging Face token": re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})"),
    "an API key": re.compile(r"\b(?:sk-[A-Za-z0-9_-]{32,}|AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35})\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
# Where JSON holds what the data says.
DATA = ("examples", "errors", "samples", "class_names", "per_class", "id2label", "label2id", "vocab")
HEADER = 8


def build_folder(record: TransferRecord, folder: Path, repo: str) -> list[str]:
    """
    Copies what may be published, and writes the card.

    Args:
        record (`TransferRecord`):
            The record of the run; `record.path` lies in the run folder.
        folder (`Path`):
            An empty folder.
        repo (`str`):
            The repository that it goes to.

    Returns:
        `list[str]`: Names in the run folder that are left out.

    Raises:
        ValueError: If there are no weights, or something in the folder must not be published.
    """
    assert record.path is not None
    run = record.path.parent
    names = sorted(path.name for path in run.iterdir())
    chosen = [name for name in names if any(fnmatch(name, pattern) for pattern in ALLOWED)]
    if not any(fnmatch(name, pattern) for name in chosen for pattern in WEIGHTS):
        raise ValueError(
            f"A run to push must hold weights as safetensors ({', '.join(WEIGHTS)}), but {str(run)!r} has none."
        )
    for name in chosen:
        # Through a link the file may lie anywhere, so its content is copied.
        shutil.copyfile(run / name, folder / name)
    metadata = _adapter_metadata(record, run, folder) if ADAPTER in chosen else None
    render_card(record, folder / "README.md", model=repo, adapter=metadata)
    search(folder)
    return [name for name in names if name not in chosen and not any(fnmatch(name, own) for own in OWN)]


def _adapter_metadata(record: TransferRecord, run: Path, folder: Path) -> dict[str, Any]:
    """What PEFT wrote into its card, with the base model's id instead of a path; also mends the adapter's config."""
    config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    base = str(config.get("base_model_name_or_path") or "")
    if _is_path(base) or Path(base).expanduser().is_dir():
        if record.base_model_id is None:
            raise ValueError(
                f"The adapter was trained on a local folder, so nobody could load it from the Hub. Name the base "
                f"model: set `base_model_id` in {RECORD_NAME}, or train with `--base_model_id`."
            )
        config["base_model_name_or_path"] = record.base_model_id
        write_atomically(folder / ADAPTER, json.dumps(config, indent=2, sort_keys=True) + "\n")
    id_of_base = config["base_model_name_or_path"]
    card = run / "README.md"
    kept = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict() if card.is_file() else {}
    tags = [tag for tag in kept.get("tags") or () if not tag.startswith("base_model:")]
    kind = str(config.get("peft_type") or "").lower()
    return {
        **{name: value for name, value in kept.items() if name not in ("base_model", "model-index", "tags")},
        "library_name": "peft",
        "base_model": id_of_base,
        "tags": [f"base_model:adapter:{id_of_base}", *dict.fromkeys([*tags, kind, "transformers"])],
    }


def search(folder: Path) -> None:
    """
    Looks for what must never be public.

    Args:
        folder (`Path`):
            The folder to push.

    Raises:
        ValueError: If a file holds what looks like a token, or a path of this machine; it names the file.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        text = _text(path)
        for what, pattern in SECRETS.items():
            if pattern.search(text):
                raise ValueError(
                    f"{name} holds what looks like {what}, so nothing was pushed. Remove it from that file of the run "
                    "folder, and withdraw the token if others could have seen it."
                )
        if path.suffix == ".json" and name != "tokenizer.json":
            for key, value in _strings(json.loads(text)):
                if _is_path(value):
                    raise ValueError(
                        f"{name} holds a path of this machine (`{key}`: {value!r}), so nothing was pushed. Replace it "
                        "by a Hub id."
                    )


def _text(path: Path) -> str:
    """What a file says: of weights only the header."""
    if path.suffix == ".png":
        return ""
    if path.suffix != ".safetensors":
        return path.read_text(encoding="utf-8", errors="replace")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(HEADER), "little")
        return file.read(size).decode("utf-8", errors="replace")


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings of a JSON value; what the data says is no setting."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in DATA:
                yield from _strings(item, f"{key}.{name}" if key else name)


def _is_path(text: str) -> bool:
    """Whether it reads as an absolute path of two parts or more."""
    if " " in text.strip() or "\n" in text:
        return False
    posix = text.startswith("/") and text.strip("/").count("/") >= 1
    return posix or text.startswith("file://") or (PureWindowsPath(text).drive != "" and "\\" in text)
