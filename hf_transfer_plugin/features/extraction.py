"""Features of a dataset: what a frozen model makes of each row, computed or read from where it was kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

Collate = Callable[[list[Any]], Mapping[str, Any]]


class RowStore(Protocol):
    """Where the features of rows are kept, by digests of what the model is given of them."""

    def begin(self, model: nn.Module, module: nn.Module | None) -> None:
        """
        Args:
            model (`nn.Module`):
                The model whose features are kept from now on, with the weights that it has now.
            module (`nn.Module`, *optional*):
                The module whose input they are; without it they are averages of the last hidden state.
        """

    def digests(self, batch: Mapping[str, Any]) -> list[bytes]:
        """
        Args:
            batch (`Mapping[str, Any]`):
                What a collator made.

        Returns:
            `list[bytes]`: A digest of each row.
        """

    def read(self, digests: Sequence[bytes]) -> list[np.ndarray] | None:
        """
        Args:
            digests (`Sequence[bytes]`):
                Digests of rows.

        Returns:
            `list[np.ndarray]` or `None`: Their features; `None` where a row is missing.
        """

    def write(self, digests: Sequence[bytes], features: Sequence[np.ndarray]) -> None:
        """
        Args:
            digests (`Sequence[bytes]`):
                Digests of rows.
            features (`Sequence[np.ndarray]`):
                Of each row one vector, or one for each of its tokens.
        """

    def close(self) -> None:
        """Ends what `begin` began."""


def extract_features(
    model: nn.Module,
    dataset: Any,
    collate: Collate,
    *,
    module: nn.Module | None = None,
    batch_size: int = 32,
    progress: str | None = None,
    store: RowStore | None = None,
) -> Dataset:
    """
    Runs the frozen model over a dataset and gives one vector a row, or one a token where each token has a label.

    Args:
        model (`nn.Module`):
            The model; left as it was.
        dataset (`datasets.Dataset`):
            Encoded rows, with `labels` where they have some.
        collate (`Callable`):
            Makes a batch of rows.
        module (`nn.Module`, *optional*):
            Keep the input of this module; where it runs on every token, the input at the token whose output the model
            returns. Without it, the last hidden state of the base model averaged over the tokens that the attention
            mask keeps.
        batch_size (`int`, *optional*, defaults to 32):
            Rows at a time.
        progress (`str`, *optional*):
            Title of a progress bar; none without it.
        store (`RowStore`, *optional*):
            Keeps the features, e.g. a [`FeatureStore`]; rows that it has are not computed again.

    Returns:
        `datasets.Dataset`: In NumPy's format, the columns `features` (32-bit vectors of one length) and `labels`, in
        the order of the rows. Where tokens have labels, each labelled token stands for itself, and the column `row`
        tells whose it is.

    Raises:
        ValueError: If `module` takes something else than one vector for each row or label.

    Example:
    ```python
    >>> found = extract_features(model, encoded, DataCollatorWithPadding(tokenizer))
    >>> LogisticRegression().fit(found["features"][:], found["labels"][:])
    ```
    """
    features, labels = _rows(
        model, dataset, collate, module=module, batch_size=batch_size, progress=progress, store=store
    )
    by_token = any(one.ndim == 2 for one in features)
    columns: dict[str, Any] = {"features": np.concatenate(features) if by_token else np.stack(features)}
    kinds: dict[str, Any] = {"features": List(Value("float32"), length=columns["features"].shape[1])}
    if labels is not None:
        columns["labels"] = found = np.concatenate(labels) if by_token else np.stack(labels)
        kind = Value("float32" if found.dtype.kind == "f" else "int64")
        kinds["labels"] = kind if found.ndim == 1 else List(kind, length=found.shape[1])
    if by_token:
        columns["row"] = np.repeat(np.arange(len(features)), [len(one) for one in features])
        kinds["row"] = Value("int64")
    return Dataset.from_dict(columns, features=Features(kinds)).with_format("numpy")


def collect_features(
    model: nn.Module,
    dataset: Any,
    collate: Collate,
    *,
    module: nn.Module | None = None,
    batch_size: int = 32,
    progress: str | None = None,
    store: RowStore | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    As [`extract_features`], as arrays to solve a head on.

    Args:
        model (`nn.Module`):
            The model; left as it was.
        dataset (`datasets.Dataset`):
            Encoded rows with `labels`.
        collate (`Callable`):
            Makes a batch of rows.
        module (`nn.Module`, *optional*):
            Keep the input of this module.
        batch_size (`int`, *optional*, defaults to 32):
            Rows at a time.
        progress (`str`, *optional*):
            Title of a progress bar; none without it.
        store (`RowStore`, *optional*):
            Keeps the features.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Features of shape `(rows, features)` and the labels; of labels for tokens
        those that are not -100, row after row.

    Raises:
        ValueError: If there are no labels, or `module` takes something else than one vector for each.
    """
    features, labels = _rows(
        model,
        dataset,
        collate,
        module=module,
        batch_size=batch_size,
        progress=progress,
        store=store,
        needs_labels=True,
    )
    assert labels is not None
    join = np.concatenate if any(one.ndim == 2 for one in features) else np.stack
    return join(features), join(labels)


def _rows(
    model: nn.Module,
    dataset: Any,
    collate: Collate,
    *,
    module: nn.Module | None,
    batch_size: int,
    progress: str | None,
    store: RowStore | None,
    needs_labels: bool = False,
) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """Of each row its vector, or those of its labelled tokens, and its labels where there are some."""
    features: dict[int, np.ndarray] = {}
    labels: dict[int, np.ndarray] = {}
    with _evaluating(model), _Watcher(model, module) as watcher, _opened(store, model, module):
        for rows, batch in _batches(dataset, collate, batch_size, progress):
            targets = batch.get("labels")
            if targets is None and needs_labels:
                raise ValueError(
                    f"A head is solved on `labels`, but the batches hold {', '.join(sorted(batch))}. Use another "
                    "strategy than `lp-ft` for this task."
                )
            digests = [] if store is None else store.digests(batch)
            vectors = None if store is None else store.read(digests)
            if vectors is None:
                vectors = watcher.vectors(batch, targets, len(rows))
                if store is not None:
                    store.write(digests, vectors)
            features |= zip(rows, vectors, strict=True)
            if targets is not None:
                values = zip(targets.numpy(), vectors, strict=True)
                found = [label[label != -100] if vector.ndim == 2 else label for label, vector in values]
                labels |= zip(rows, found, strict=True)
    order = range(len(features))
    return [features[i] for i in order], [labels[i] for i in order] if labels else None


@contextmanager
def _opened(store: RowStore | None, model: nn.Module, module: nn.Module | None) -> Iterator[None]:
    if store is None:
        yield
        return
    store.begin(model, module)
    try:
        yield
    finally:
        store.close()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _batches(dataset: Any, collate: Collate, batch_size: int, progress: str | None) -> Iterator[Any]:
    """Batches in order of length, longest first, with the row numbers of each."""
    order = list(range(len(dataset)))
    names = getattr(dataset, "column_names", None) or ()
    if "input_ids" in names:
        lengths = [len(ids) for ids in dataset["input_ids"]]
        order.sort(key=lambda i: -lengths[i])
    loader = DataLoader(Subset(dataset, order), batch_size=batch_size, collate_fn=collate)
    # Not `disable=False`, which would overrule what the environment says.
    shown = loader if progress is None else tqdm(loader, desc=progress, unit="batch")
    for number, batch in enumerate(shown):
        yield order[number * batch_size : (number + 1) * batch_size], batch


class _Watcher:
    """Runs a model and looks at what goes into one of its modules, or at the last hidden state of its base."""

    def __init__(self, model: nn.Module, module: nn.Module | None) -> None:
        self._module, self._device = module, next(model.parameters()).device
        self._runner = model if module else base_model_of(model)
        self._whole = self._runner is model
        self._caught: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __enter__(self) -> "_Watcher":
        if self._module is not None:
            self._handle = self._module.register_forward_hook(lambda m, args, out: self._caught.append((args[0], out)))
        return self

    def __exit__(self, *error: Any) -> None:
        if self._module is not None:
            self._handle.remove()

    def vectors(self, batch: Mapping[str, Any], labels: torch.Tensor | None, rows: int) -> list[np.ndarray]:
        """What it makes of the rows of a batch."""
        self._caught.clear()
        output = self._runner(**self._inputs(batch)) if self._whole or not _is_timm(self._runner) else None
        if output is None:
            # What timm's models give themselves is the head's answer.
            found = self._runner.forward_features(self._moved(batch["pixel_values"]))  # type: ignore[operator]
            found = self._runner.forward_head(found, pre_logits=True)  # type: ignore[operator]
        elif self._module is not None:
            found = _returned_token(*self._caught[-1], output.get("logits"))
        else:
            found = output[0]
            if not _one_a_token(found, labels):
                found = _mean_pooled(found, batch.get("attention_mask"))
        by_token = _one_a_token(found, labels)
        if len(found) != rows or (found.ndim != 2 and not by_token):
            what = "the last hidden state" if self._module is None else f"the input of {type(self._module).__name__}"
            raise ValueError(
                f"Features must be one vector a row, or one a labelled token, but {what} has the shape "
                f"{tuple(found.shape)} for {rows} rows. Name another `module`; where `lp-ft` cannot solve the output "
                "layer, use another strategy."
            )
        values = found.float().cpu().numpy()
        if not by_token or labels is None:
            return list(values)
        return [vector[label != -100] for vector, label in zip(values, labels.numpy(), strict=True)]

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors, and what a collator adds for hooks of the whole model, as Trainer hands it on."""
        kinds = (torch.Tensor, Mapping) if self._whole else (torch.Tensor,)
        return {k: self._moved(v) for k, v in batch.items() if k != "labels" and isinstance(v, kinds)}

    def _moved(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: self._moved(part) for name, part in value.items()}
        return value.to(self._device) if isinstance(value, torch.Tensor) else value


def base_model_of(model: nn.Module) -> nn.Module:
    """
    Args:
        model (`nn.Module`):
            A model.

    Returns:
        `nn.Module`: The model without its head; itself where it has none.
    """
    found = getattr(model, getattr(model, "base_model_prefix", ""), model)
    assert isinstance(found, nn.Module)
    return found


def _is_timm(model: nn.Module) -> bool:
    return type(model).__module__.startswith("timm.")


def _one_a_token(found: torch.Tensor, labels: torch.Tensor | None) -> bool:
    """Whether each token has a vector and a class; rows of 0/1 for several classes at once are floats."""
    return (
        labels is not None and found.ndim == 3 and found.shape[:2] == labels.shape and not labels.is_floating_point()
    )


def _returned_token(inputs: torch.Tensor, outputs: torch.Tensor, logits: torch.Tensor | None) -> torch.Tensor:
    """Of inputs for every token (decoders), the one whose output the model returns for the row."""
    if inputs.ndim != 3 or logits is None or logits.shape != (len(outputs), outputs.shape[-1]):
        return inputs
    chosen = (outputs == logits[:, None]).all(-1)
    return inputs[torch.arange(len(inputs)), chosen.int().argmax(1)] if chosen.any(1).all() else inputs


def _mean_pooled(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if hidden.ndim == 4:
        # Of images, channels stand first.
        return hidden.mean((2, 3))
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.flatten(1, -2).mean(1) if hidden.ndim > 2 else hidden
    kept = mask[..., None].to(hidden.device, hidden.dtype)
    return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)
