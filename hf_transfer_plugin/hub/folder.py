"""The folder that is pushed: built for the purpose, by a list of what may be in it, and searched for what may not."""

import json
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hf_transfer_plugin.hub.adapter_checks import is_path, prepare_adapter
from hf_transfer_plugin.hub.adapter_facts import ADAPTER, ADAPTER_WEIGHTS, WHOLE
from hf_transfer_plugin.hub.card import render_card
from hf_transfer_plugin.hub.samples import SAMPLES, SUFFIXES
from hf_transfer_plugin.record import RECORD_NAME, TransferRecord

MODULES = "modules.json"
_MODULE_FOLDER = re.compile(r"\d+_\w+")
WEIGHTS = (*WHOLE, ADAPTER_WEIGHTS)
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
    # Of sentence-transformers; its further modules lie in folders that modules.json names.
    MODULES,
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    RECORD_NAME,
    "*.png",
)
# Written by training for itself, or anew for the Hub; nobody misses them there.
OWN = ("README.md", "transfer_config.json", "checkpoint-*", "incomplete-checkpoint-*", SAMPLES)
SECRETS = {
    "a Hugging Face token": re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})"),
    "an API key": re.compile(r"\b(?:sk-[A-Za-z0-9_-]{32,}|AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35})\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
# Where JSON holds what the data says.
DATA = ("examples", "errors", "samples", "class_names", "per_class", "id2label", "label2id", "vocab", "choices")
HEADER = 8
PICTURES = (".png", *SUFFIXES.values())


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
        ValueError: If there are no weights, an adapter would not answer as it was trained to, or something in the
            folder must not be published.
    """
    assert record.path is not None
    run = record.path.parent
    names = sorted(path.name for path in run.iterdir())
    chosen = [name for name in names if any(fnmatch(name, pattern) for pattern in ALLOWED)]
    if not any(fnmatch(name, pattern) for name in chosen for pattern in WEIGHTS):
        raise ValueError(
            f"A run to push must hold weights as safetensors ({', '.join(WEIGHTS)}), but {str(run)!r} has none."
        )
    if ADAPTER in chosen and not any(fnmatch(name, pattern) for name in chosen for pattern in WHOLE):
        # Beside an adapter, Transformers would take a downloaded folder with it for the base.
        chosen = [name for name in chosen if name != "config.json"]
    for module in _module_folders(run):
        inside = [f"{module}/{path.name}" for path in sorted((run / module).iterdir())]
        names = [name for name in names if name != module] + inside
        chosen += [name for name in inside if any(fnmatch(name.split("/")[1], pattern) for pattern in ALLOWED)]
        (folder / module).mkdir()
    for name in chosen:
        # Through a link the file may lie anywhere, so its content is copied.
        shutil.copyfile(run / name, folder / name)
    metadata = None
    if ADAPTER in chosen:
        record, metadata = prepare_adapter(record, run, folder)
    render_card(record, folder / "README.md", model=repo, adapter=metadata)
    search(folder)
    return [name for name in names if name not in chosen and not any(fnmatch(name, own) for own in OWN)]


def _module_folders(run: Path) -> list[str]:
    """Folders of the modules behind the first one, which lies in the run folder itself."""
    file = run / MODULES
    modules = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    named = [str(module.get("path") or "") for module in modules]
    return sorted(name for name in named if _MODULE_FOLDER.fullmatch(name) and (run / name).is_dir())


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
                if is_path(value):
                    raise ValueError(
                        f"{name} holds a path of this machine (`{key}`: {value!r}), so nothing was pushed. Replace it "
                        "by a Hub id."
                    )


def _text(path: Path) -> str:
    """What a file says: of weights only the header."""
    if path.suffix in PICTURES:
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
