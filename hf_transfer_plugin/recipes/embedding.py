"""Embedding models: loaded, trained and saved by sentence-transformers, measured as everything else is."""

import functools
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainingArguments

from hf_transfer_plugin._optional import require
from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.losses import LOSSES
from hf_transfer_plugin.tasks import Task, TaskData
from hf_transfer_plugin.tasks.pairs import LOSSES as EMBEDDING_LOSSES
from hf_transfer_plugin.trainer.mixin import TransferMixin

EMBEDDING = "sentence-transformers"
PACKAGE, EXTRA = "sentence_transformers", "search"
# What a text is asked for as, where the pretrained model knows prompts.
PROMPTS = {"text": "query", "text_pair": "document", "negative": "document"}
SAMPLERS = {"MultipleNegatives": "no_duplicates", "Batch": "group_by_label"}


class Embedder:
    """What loads a SentenceTransformer, with the call of transformers' auto classes."""

    @staticmethod
    def from_pretrained(name: str, *, revision: str, trust_remote_code: bool) -> nn.Module:
        """
        Args:
            name (`str`):
                Hub id or folder; a body without modules of its own gets a mean over its tokens.
            revision (`str`):
                Branch, tag or commit of a Hub id.
            trust_remote_code (`bool`):
                Run code that comes with the model.

        Returns:
            `SentenceTransformer`: The model.

        Raises:
            ImportError: If sentence-transformers is not installed.
        """
        library = require(PACKAGE, extra=EXTRA)
        known = None if Path(name).is_dir() else revision
        return library.SentenceTransformer(name, revision=known, trust_remote_code=trust_remote_code, device="cpu")


def refuse_embedding_options(config: TransferConfig) -> None:
    """
    Args:
        config (`TransferConfig`):
            The configuration.

    Raises:
        ValueError: If it asks for what embedding models do not have here.
    """
    if config.adapter_spec is not None:
        raise ValueError(
            "Adapters on embedding models are not supported: sentence-transformers would not find them in the run "
            "folder. Leave out `adapter`, or train fewer layers with `--strategy gradual-unfreezing`."
        )
    if config.base_precision is not None:
        raise ValueError("`base_precision` is not supported for sentence-similarity. Leave it out.")


def fit_tokenizer(model: Any, processor: Any) -> None:
    """
    Tells the tokenizer of the run how many tokens the model reads, and gives the model's own what to pad with. The
    model keeps its own tokenizer, which may lower the case of texts first.

    Args:
        model (`SentenceTransformer`):
            The model.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.

    Raises:
        ValueError: If the model begins with something else than a transformer.
    """
    if model.transformers_model is None:
        raise ValueError(
            "An embedding model must begin with a transformer, but this one begins with "
            f"{type(model[0]).__name__}. Choose another `model`."
        )
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = processor.pad_token
    processor.model_max_length = model.max_seq_length


def build_trainer(task: Task, data: TaskData, *, kind: type[Trainer] = Trainer, **parts: Any) -> Trainer:
    """
    The Trainer that trains or measures models of the task's library.

    Args:
        task (`Task`):
            Names the library, and the loss where it is not the model's own.
        data (`TaskData`):
            Names the loss of embedding models.
        kind (`type[Trainer]`, *optional*):
            Trainer of all other models.
        **parts (`Any`):
            What every Trainer takes.

    Returns:
        `Trainer`: The Trainer.

    Raises:
        ValueError: If arguments were given that it would not heed.
    """
    if task.loss is not None:
        parts["compute_loss_func"] = LOSSES[task.loss](parts["model"])
    return embedding_trainer(data, **parts) if task.library == EMBEDDING else kind(**parts)


def embedding_trainer(data: TaskData, *, model: Any, args: TrainingArguments, **parts: Any) -> Trainer:
    """
    Args:
        data (`TaskData`):
            Names the loss; its rows tell which texts are queries.
        model (`SentenceTransformer`):
            The model.
        args (`TrainingArguments`):
            The arguments; copied, and made those that sentence-transformers takes.
        **parts (`Any`):
            What every Trainer takes.

    Returns:
        `SentenceTransformerTrainer`: One that takes schedules and gives the vectors of each row when it measures.

    Raises:
        ValueError: If arguments were given that it would not heed.
    """
    if args.label_smoothing_factor:
        raise ValueError(
            "`label_smoothing_factor` smooths labels of classes, which losses of embeddings have not. Leave it out."
        )
    if str(args.train_sampling_strategy) != "random":
        raise ValueError(
            f"`train_sampling_strategy={str(args.train_sampling_strategy)!r}` would not be heeded: which rows share a "
            'batch is a matter of the loss. Use "random".'
        )
    loss = data.options["loss"]
    sampler = next((value for start, value in SAMPLERS.items() if loss.startswith(start)), "batch_sampler")
    if sampler == SAMPLERS["Batch"] and (args.train_batch_size < 4 or args.train_batch_size % 2):
        raise ValueError(
            f"{loss} takes batches of two texts and more of a label, so `per_device_train_batch_size` must be an even "
            f"number of at least 4, but got {args.train_batch_size}."
        )
    taken = {f.name: getattr(args, f.name) for f in fields(TrainingArguments) if f.init}
    library = require(PACKAGE, extra=EXTRA)
    own = library.SentenceTransformerTrainingArguments(
        **taken, batch_sampler=sampler, prompts=column_prompts(model, data)
    )
    model.max_seq_length = parts["processing_class"].model_max_length
    # Set by the class, since its Trainer gives no outputs; ours gives the vectors.
    own.prediction_loss_only = False
    parts.pop("data_collator", None)
    parts |= {name: _texts(parts[name]) for name in ("train_dataset", "eval_dataset") if parts.get(name) is not None}
    losses = require(f"{PACKAGE}.sentence_transformer.losses", extra=EXTRA)
    trainer: Any = trainer_class()(model=model, args=own, loss=getattr(losses, loss)(model), **parts)
    form = data.facts.get("form")
    trainer.measures, trainer.compares = form is not None, loss in EMBEDDING_LOSSES.get(str(form), ())
    return trainer


def _texts(rows: Any) -> Any:
    """Without the lengths, which the library would take for texts."""
    return rows.remove_columns("length") if "length" in rows.column_names else rows


def column_prompts(model: Any, data: TaskData) -> dict[str, str]:
    """
    Args:
        model (`SentenceTransformer`):
            May have been trained to read something before a query or a document.
        data (`TaskData`):
            Rows to train on or to measure; the two texts of a scored pair are alike, and so asked for without.

    Returns:
        `dict[str, str]`: Column -> prompt, where there are such.
    """
    rows = next(iter(data.splits.values()))
    if "text_pair" not in rows.column_names or "label" in rows.column_names:
        return {}
    known = {column: (model.prompts or {}).get(name) for column, name in PROMPTS.items()}
    return {column: prompt for column, prompt in known.items() if prompt}


class EmbeddingMixin(TransferMixin):
    """Predicts the vectors of each row's texts, in the order of the rows; what it stands before is made on demand."""

    measures: bool = True
    compares: bool = True
    args: Any
    accelerator: Any
    eval_dataset: Any
    data_collator: Any
    loss: Any
    model: Any
    state: Any
    collect_features: Any
    compute_loss_context_manager: Any
    _load_from_checkpoint: Any
    _prepare_inputs: Any

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Adds none: the card is rendered from the record."""

    def _get_eval_sampler(self, eval_dataset: Any) -> None:
        return None

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """The rows in their order; in batches that the loss composes some would be missing."""
        return self._in_order(self.eval_dataset if eval_dataset is None else eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """The rows in their order."""
        return self._in_order(test_dataset)

    def _in_order(self, rows: Any) -> DataLoader:
        self.accelerator.even_batches = True
        rows = _texts(rows)
        loader = DataLoader(
            rows,
            batch_size=self.args.eval_batch_size,
            sampler=SequentialSampler(rows),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        """
        Args:
            model (`nn.Module`):
                The model.
            inputs (`dict`):
                The batch.
            prediction_loss_only (`bool`):
                Whether the loss is enough.
            ignore_keys (`list[str]`, *optional*):
                Not needed here.

        Returns:
            `tuple`: The loss, the vectors of each text, and the labels; `None` for what is not wanted.
        """
        inputs = self._prepare_inputs(inputs)
        columns, labels = self.collect_features(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            vectors = [model(dict(column))["sentence_embedding"] for column in columns]
            loss = None
            # A model can be measured on rows of another form than it was trained on.
            if self.compares:
                compare = getattr(self.loss, "compute_loss_from_embeddings", None)
                loss = (compare(vectors, labels) if compare else self.loss(columns, labels)).mean().detach()
        if labels is None and self.measures:
            # Trainer calls no metrics without.
            labels = torch.zeros(len(vectors[0]), device=vectors[0].device)
        return loss, None if prediction_loss_only else tuple(v.detach().float() for v in vectors), labels

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.model.save_pretrained(output_dir or self.args.output_dir, create_model_card=False)

    def _load_best_model(self) -> None:
        """As the library does, but what cannot be loaded is an error."""
        self._load_from_checkpoint(self.state.best_model_checkpoint)


@functools.cache
def trainer_class() -> type[Trainer]:
    """
    Returns:
        `type`: sentence-transformers' Trainer, with our terms, files and measurements.
    """
    library = require(PACKAGE, extra=EXTRA)
    return type("EmbeddingTrainer", (EmbeddingMixin, library.SentenceTransformerTrainer), {})
