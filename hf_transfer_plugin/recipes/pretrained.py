"""Loads the pretrained model and its processor, or says in one sentence why not."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from hf_transfer_plugin.adapters.loading import is_adapter
from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.recipes.base_precision import QUANTISED, head_names, keep_gradients, loading_settings
from hf_transfer_plugin.recipes.embedding import EMBEDDING, Embedder, fit_tokenizer, refuse_embedding_options
from hf_transfer_plugin.tasks import TASKS, Task, TaskData


def load_processor(config: TransferConfig, data: TaskData | None = None) -> Any:
    """
    Loads what prepares the inputs of the task: a tokenizer, an image processor, a feature extractor, or all in one.

    Args:
        config (`TransferConfig`):
            Names the model and the task.
        data (`TaskData`, *optional*):
            Rows to train on; the task may complete by them what the pretrained model does not bring.

    Returns:
        `ProcessorMixin` or `PreTrainedTokenizerBase` or `BaseImageProcessor` or `SequenceFeatureExtractor`: It; a
        tokenizer has a padding token.

    Raises:
        ValueError: If it cannot be loaded.
    """
    task = TASKS[config.task]
    completed = data is not None and task.complete is not None
    try:
        processor = _load(getattr(transformers, task.processor), config)
    except (ValueError, TypeError):
        if not completed:
            raise
        # What is missing, the vocabulary of a model that heard speech only, is made by the task.
        processor = _load(transformers.AutoFeatureExtractor, config)
    if data is not None and task.complete is not None:
        processor = task.complete(processor, data, _load(transformers.AutoConfig, config))
    tokenizer = getattr(processor, "tokenizer", processor)
    if getattr(tokenizer, "pad_token", "") is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"The tokenizer of {config.model!r} has neither a padding nor an end token to pad with.")
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def load_model(
    config: TransferConfig, task: Task, data: TaskData, processor: Any, args: Any = None
) -> tuple[nn.Module, frozenset[str]]:
    """
    Loads the model with a head for the task's labels.

    Args:
        config (`TransferConfig`):
            Names the model.
        task (`Task`):
            Names the auto class.
        data (`TaskData`):
            Names the classes.
        processor (`Any`):
            The padding token of its tokenizer goes into the model's config.
        args (`TrainingArguments`, *optional*):
            Name the device on which weights are quantised.

    Returns:
        `tuple[nn.Module, frozenset[str]]`: The model, and the names of its weights that are new, as those of a head
        that the pretrained model does not have.

    Raises:
        ValueError: If it cannot be loaded.
    """
    if task.library == EMBEDDING:
        refuse_embedding_options(config)
        embedder = _load(Embedder, config)
        fit_tokenizer(embedder, processor)
        return embedder, frozenset()
    names = data.class_names
    settings: dict[str, Any] = {}
    if data.problem_type or names:
        settings = {"problem_type": data.problem_type or None, "num_labels": data.outputs}
    if names:
        settings |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    _refuse_adapter(config.model)
    found = _load(transformers.AutoConfig, config)
    auto = _auto_class(task, found, config.model)
    if task.sizes is not None:
        settings |= task.sizes(processor, found)
    if config.base_precision in QUANTISED:
        with torch.device("meta"):
            kept = head_names(auto.from_config(found, trust_remote_code=config.trust_remote_code))
        settings |= loading_settings(config.base_precision, args=args, head=kept)
    else:
        settings |= loading_settings(config.base_precision)
    model, info = _load(auto, config, ignore_mismatched_sizes=True, output_loading_info=True, **settings)
    tokenizer = getattr(processor, "tokenizer", processor)
    if getattr(model.config, "pad_token_id", None) is None and hasattr(tokenizer, "pad_token_id"):
        model.config.pad_token_id = tokenizer.pad_token_id
    keep_gradients(model)
    mismatched = (entry[0] if isinstance(entry, (tuple, list)) else entry for entry in info["mismatched_keys"])
    return model, frozenset({*info["missing_keys"], *mismatched})


def _refuse_adapter(name: str) -> None:
    if is_adapter(Path(name).expanduser()):
        raise ValueError(
            f"`model` must be a whole model, but {name!r} holds an adapter. Merge it first with "
            f"`hf-transfer-plugin merge {name} OUTPUT`, or name its base."
        )


def _auto_class(task: Task, found: Any, name: str) -> Any:
    """The first of the task's auto classes that knows such a config."""
    for auto in task.auto_classes:
        if type(found) in getattr(transformers, auto)._model_mapping or auto in getattr(found, "auto_map", {}):
            return getattr(transformers, auto)
    raise ValueError(f"{name!r} ({type(found).__name__}) has no head for {task.name}. Choose another `model` or task.")


def _load(auto_class: Any, config: TransferConfig, **settings: Any) -> Any:
    path = Path(config.model).expanduser()
    if not path.is_dir() and config.model.startswith(("/", "./", "../", "~")):
        raise ValueError(f"`model` names a folder that does not exist: {config.model!r}. Check the path.")
    try:
        return auto_class.from_pretrained(
            str(path) if path.is_dir() else config.model,
            revision=config.model_revision or "main",
            trust_remote_code=config.trust_remote_code,
            **settings,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # Transformers names the package that is missing, as timm, and then, on a line of its own, how to install it.
        first = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
        raise ValueError(
            f"`model` must be a Hub id or the folder of a pretrained model, but {config.model!r} could not be loaded "
            f"with {auto_class.__name__}: {first}"
        ) from error


def sketch_model(name: str, task: str | None = None, *, trust_remote_code: bool = False) -> nn.Module:
    """
    Builds a model from its config alone, with random weights, to look at its structure.

    Args:
        name (`str`):
            Hub id or folder.
        task (`str`, *optional*):
            With the head of this task; else with the head that it was saved with.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Run code that comes with the model.

    Returns:
        `nn.Module`: The model; on the meta device above a billion parameters.

    Raises:
        ValueError: If the config cannot be loaded or has no such head.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"`task` must be one of {', '.join(TASKS)}, but got {task!r}.")
    settings = TransferConfig(model=name, dataset="-", trust_remote_code=trust_remote_code)
    _refuse_adapter(name)
    config = _load(transformers.AutoConfig, settings)
    saved = getattr(transformers, (getattr(config, "architectures", None) or ["AutoModel"])[0], None)
    auto = _auto_class(TASKS[task], config, name) if task else saved or transformers.AutoModel
    build = auto.from_config if hasattr(auto, "from_config") else auto
    try:
        with torch.device("meta"):
            model = build(config)
        return model if model.num_parameters() > 10**9 else build(config)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{name!r} ({type(config).__name__}) has no head for {task}: {str(error).splitlines()[0]}"
        ) from error


def readable_length(config: TransferConfig, processor: Any, model: nn.Module, *, kept: int = 0) -> int:
    """
    How many tokens a row may have.

    Args:
        config (`TransferConfig`):
            May set it.
        processor (`Any`):
            May know it.
        model (`nn.Module`):
            May know it.
        kept (`int`, *optional*, defaults to 0):
            Places that are kept for learned prompts.

    Returns:
        `int`: The smallest of what they say, and 512 where nobody says anything.

    Raises:
        ValueError: If `max_length` is more than the model reads.
    """
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    positions = positions - kept if isinstance(positions, int) else None
    told = getattr(getattr(processor, "tokenizer", processor), "model_max_length", None)
    known = [n for n in (positions, told) if isinstance(n, int) and 0 < n < 10**6]
    if config.max_length is not None:
        if positions is not None and config.max_length > positions:
            raise ValueError(
                f"`max_length` must be at most {positions} for {config.model!r}, but got {config.max_length}."
            )
        return config.max_length
    return min([*known, 512])
