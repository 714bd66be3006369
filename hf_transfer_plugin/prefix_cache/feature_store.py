"""Features of rows in a folder, so that what looks at a frozen model pays for it once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_transfer_plugin.features import base_model_of
from hf_transfer_plugin.layers import parameters_by_name
from hf_transfer_plugin.prefix_cache.describing import describe_model, weights_digest
from hf_transfer_plugin.prefix_cache.folders import FORMAT, read_meta
from hf_transfer_plugin.prefix_cache.proving import Place
from hf_transfer_plugin.prefix_cache.rows import row_digests
from hf_transfer_plugin.prefix_cache.storage import Slot
from hf_transfer_plugin.prefix_cache.store import ActivationStore, default_root, store_folder

# Changes where the same model and rows give other features, so that older ones are not read.
VERSION = 1


class FeatureStore:
    """
    Keeps what [`extract_features`] makes of each row, in 32 bits, under the weights that the model has then and the
    row's own inputs; `hf-transfer-plugin cache` lists and clears it.

    Args:
        directory (`str` or `Path`, *optional*):
            Folder of the caches; by default that of [`FrozenPrefixCache`].
        budget (`int`, *optional*):
            Bytes that the features may take; without it, what the disk has free but one gibibyte.

    Example:
    ```python
    >>> features = extract_features(model, encoded, collate, store=FeatureStore())
    ```
    """

    def __init__(self, directory: str | Path | None = None, *, budget: int | None = None) -> None:
        self.directory = Path(directory).expanduser() if directory is not None else default_root()
        self.budget = budget
        self._store: ActivationStore | None = None
        self._description: dict[str, Any] = {}
        self._with_labels = False

    def begin(self, model: nn.Module, module: nn.Module | None) -> None:
        """
        Args:
            model (`nn.Module`):
                The model whose features are kept from now on, with the weights that it has now.
            module (`nn.Module`, *optional*):
                The module whose input they are; without it they are averages of the last hidden state.
        """
        seen = {id(p) for p in (base_model_of(model) if module is None else model).parameters()}
        # What takes the features changes nothing in them.
        seen -= {id(p) for p in module.parameters()} if module is not None else set()
        unseen = frozenset(name for name, p in parameters_by_name(model).items() if id(p) not in seen)
        place = Place(next(model.parameters()).device)
        self._description = {
            "cut": "mean of the last hidden state" if module is None else f"input of {_name(model, module)}",
            "features": VERSION,
            **describe_model(model, weights=weights_digest(model, unseen), place=place),
        }
        self._with_labels = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        meta = read_meta(store_folder(self.directory, self._description))
        if meta is not None and meta.get("format") == FORMAT:
            self._open(tuple(Slot.from_dict(slot) for slot in meta["slots"]))

    def _open(self, slots: Sequence[Slot]) -> ActivationStore:
        folder = store_folder(self.directory, self._description)
        self._store = ActivationStore(folder, self._description, slots, "float32", self.budget)
        return self._store

    def digests(self, batch: Mapping[str, Any]) -> list[bytes]:
        """
        Args:
            batch (`Mapping[str, Any]`):
                What a collator made.

        Returns:
            `list[bytes]`: A digest of each row; with its labels where they tell which tokens are kept. Other labels
            count for nothing: where features are made, the model is given none.
        """
        labels = batch.get("labels")
        by_token = isinstance(labels, torch.Tensor) and labels.ndim == 2 and not labels.is_floating_point()
        return row_digests(batch, with_labels=by_token or self._with_labels)

    def read(self, digests: Sequence[bytes]) -> list[np.ndarray] | None:
        """
        Args:
            digests (`Sequence[bytes]`):
                Digests of rows.

        Returns:
            `list[np.ndarray]` or `None`: Their features; `None` where a row is missing.
        """
        found = None if self._store is None else self._store.read(digests)
        if found is None:
            return None
        (vectors, by_token), lengths = found
        pieces = vectors.split(lengths)
        return [(piece if many else piece[0]).numpy() for piece, many in zip(pieces, by_token, strict=True)]

    def write(self, digests: Sequence[bytes], features: Sequence[np.ndarray]) -> None:
        """
        Args:
            digests (`Sequence[bytes]`):
                Digests of rows.
            features (`Sequence[np.ndarray]`):
                Of each row one vector, or one for each of its tokens.

        Raises:
            ValueError: If there is no room for them, or the folder cannot be written.
        """
        entries = [[torch.from_numpy(np.atleast_2d(f)), torch.tensor(f.ndim == 2)] for f in features]
        slots = (Slot((None, features[0].shape[-1]), torch.float32), Slot((), torch.bool))
        store = self._open(slots) if self._store is None else self._store
        store.write(digests, entries)

    def close(self) -> None:
        """Has the disk take what was written, and closes the files."""
        if self._store is not None:
            self._store.close()
        self._store = None


def _name(model: nn.Module, module: nn.Module) -> str:
    return next((name for name, one in model.named_modules() if one is module), type(module).__name__)
