"""An adapter before it is pushed: who its base is, and whether everything that answers is really in it."""

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HFValidationError, HTTPError, NotASafetensorsRepoError, SafetensorsParsingError
from huggingface_hub.utils import validate_repo_id

from hf_transfer_plugin.hub.adapter_facts import ADAPTER, ADAPTER_WEIGHTS
from hf_transfer_plugin.record import RECORD_NAME, TransferRecord, write_atomically

logger = logging.getLogger(__name__)
PREFIXES = ("base_model.model.", "base_model.")  # of names in the file; the second one of prompt methods
# PEFT takes these starts out of the base's own weights, again whenever it loads the adapter.
CHANGING = ("pissa", "olora", "corda", "lora_ga", "loftq")
HEADS = {  # task -> auto class; the others have a head that every base for them brings
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}
HEADER = 8
UNREADABLE = (OSError, ValueError, KeyError, HTTPError, SafetensorsParsingError)
Shapes = dict[str, tuple[int, ...]]


def prepare_adapter(record: TransferRecord, run: Path, folder: Path) -> tuple[TransferRecord, dict[str, Any]]:
    """
    Checks an adapter, and names its base by the Hub id wherever its config names it.

    Args:
        record (`TransferRecord`):
            The record of the run.
        run (`Path`):
            The run folder.
        folder (`Path`):
            The folder to push, with copies of the adapter's files; its `adapter_config.json` is mended.

    Returns:
        `tuple[TransferRecord, dict[str, Any]]`: The record, with what the config tells of the adapter where the record
        tells nothing, and what PEFT wrote into its own card.

    Raises:
        ValueError: If nobody could load the adapter, or what was loaded would answer something else.
    """
    config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(
            f"{str(run)!r} has {ADAPTER}, but the weights of the adapter are missing: it must hold {ADAPTER_WEIGHTS}."
        )
    _check_start(config, run)
    trained_on = str(config.get("base_model_name_or_path") or "")
    base = _base_id(record, trained_on)
    revision = config.get("revision") if base == trained_on else None
    _check_head(record, run, trained_on if _is_folder(trained_on) else base, revision)
    mended = _renamed(config, trained_on, base)
    if "revision" in mended:  # A branch or commit of one repository is none of another.
        mended["revision"] = revision
    if mended != config:
        write_atomically(folder / ADAPTER, json.dumps(mended, indent=2, sort_keys=True) + "\n")
    metadata = {"library_name": "peft", "base_model": base, "base_model_relation": "adapter"}
    if record.adapter is not None:
        return record, metadata
    told = TransferRecord(**{**vars(record), "adapter": _told(config)})
    return told, _kept(run / "README.md") | metadata


def is_path(text: str) -> bool:
    """
    Args:
        text (`str`):
            A value of a config.

    Returns:
        `bool`: Whether it reads as an absolute path of two parts or more.
    """
    if " " in text.strip() or "\n" in text:
        return False
    posix = text.startswith("/") and text.strip("/").count("/") >= 1
    return posix or text.startswith("file://") or (PureWindowsPath(text).drive != "" and "\\" in text)


def _is_folder(name: str) -> bool:
    return name != "" and Path(name).expanduser().is_dir()


def _base_id(record: TransferRecord, trained_on: str) -> str:
    if record.base_model_id is not None:
        return record.base_model_id
    try:
        validate_repo_id(trained_on)
        named = not _is_folder(trained_on) and record.adapter is None
    except HFValidationError:
        named = False
    if not named:
        raise ValueError(
            "The adapter was trained on a local folder, so nobody could load it from the Hub. Name the base model: "
            f"set `base_model_id` in {RECORD_NAME}, or train with `--base_model_id`."
        )
    return trained_on


def _check_start(config: Mapping[str, Any], run: Path) -> None:
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(CHANGING):
        raise ValueError(
            f"The adapter in {str(run)!r} says `init_lora_weights`: {config['init_lora_weights']!r}, so each loading "
            "would change the base's weights anew, and with the adapter off not the base would answer. "
            "Save it as plain LoRA with `model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion="
            "FOLDER_SAVED_BEFORE_TRAINING)`; `hf-transfer-plugin train --adapter` does so itself."
        )


def _check_head(record: TransferRecord, run: Path, base: str, revision: str | None) -> None:
    """Raises `ValueError` where weights that answer are neither in the adapter's file nor in the base."""
    if record.task not in HEADS:
        return
    with tempfile.TemporaryDirectory(prefix="base-") as temporary:
        try:
            prefix, head, brought = _head_shapes(record, _config_folder(base, revision, temporary))
            there = _base_shapes(base, revision)
        except UNREADABLE as error:
            reason = str(error).strip().split("\n")[0]
            logger.warning("Could not look whether %r has all weights that the adapter has not: %s", base, reason)
            return
    saved = {name.removeprefix(start) for name in _shapes(run / ADAPTER_WEIGHTS) for start in PREFIXES}
    if there is None:  # Then what its config says must do.
        missing = [] if brought else [name for name in head if name not in saved and not name.startswith(prefix)]
    else:
        missing = [
            name
            for name, shape in head.items()
            if name not in saved and shape not in (there.get(name), there.get(name.removeprefix(prefix)))
        ]
    if missing:
        names = sorted({name.removeprefix(prefix).split(".")[0] for name in missing})
        raise ValueError(
            f"The adapter in {str(run)!r} holds no weights of {', '.join(names)}, and {base!r} has none that fit this "
            f"task, so whoever loads it would get random answers. Train it again with `modules_to_save={names}` in "
            "PEFT's configuration, or with `hf-transfer-plugin train --adapter`, which saves them."
        )


def _config_folder(base: str, revision: str | None, temporary: str) -> Path:
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder
    return Path(HfApi().hf_hub_download(base, "config.json", revision=revision, local_dir=temporary)).parent


def _head_shapes(record: TransferRecord, folder: Path) -> tuple[str, Shapes, bool]:
    """How names of the base begin, what the model of the task has above it, and whether the base has such a model."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    auto, outputs = HEADS[record.task], len(record.class_names) or 1
    kind = auto.removeprefix("AutoModel")
    brought = any(name.endswith(kind) for name in config.architectures or ())
    if record.task != "question-answering":
        brought = brought and config.num_labels == outputs
        config.num_labels = outputs
    with torch.device("meta"):  # Names and shapes need no memory.
        model = getattr(transformers, auto).from_config(config)
    prefix = f"{model.base_model_prefix}."
    above = {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if not name.startswith(prefix) or name.startswith(f"{prefix}pooler.")
    }
    return prefix, above, brought


def _base_shapes(base: str, revision: str | None) -> Shapes | None:
    """Names and shapes in a checkpoint; none where it is of another format."""
    folder = Path(base).expanduser()
    if folder.is_dir():
        files = sorted(folder.glob("*.safetensors"))
        return {name: shape for file in files for name, shape in _shapes(file).items()} if files else None
    try:
        headers = HfApi().get_safetensors_metadata(base, revision=revision).files_metadata.values()
    except NotASafetensorsRepoError:
        return None
    return {name: tuple(tensor.shape) for header in headers for name, tensor in header.tensors.items()}


def _shapes(file: Path) -> Shapes:
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(HEADER), "little")))
    return {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}


def _renamed(value: Any, trained_on: str, base: str) -> Any:
    """The config with the base's id wherever the base is named: some methods name it a second time."""
    if isinstance(value, dict):
        named = {"base_model_name_or_path": base} if "base_model_name_or_path" in value else {}
        return {name: _renamed(item, trained_on, base) for name, item in value.items()} | named
    if isinstance(value, list):
        return [_renamed(item, trained_on, base) for item in value]
    return base if trained_on and value == trained_on else value


def _told(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of an adapter that was not made here."""
    kind = str(config.get("peft_type") or "")
    names = ("r", "lora_alpha", "target_modules", "num_virtual_tokens", "use_dora")
    found = {name: config[name] for name in names if config.get(name)}
    return {"name": "dora" if config.get("use_dora") else kind.lower(), "peft_type": kind, **found}


def _kept(card: Path) -> dict[str, Any]:
    """Metadata of PEFT's card, less what the record knows better."""
    kept = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict() if card.is_file() else {}
    tags = [tag for tag in kept.get("tags") or () if not tag.startswith("base_model:")]
    without = ("base_model", "model-index", "tags")
    return {name: value for name, value in kept.items() if name not in without} | ({"tags": tags} if tags else {})
