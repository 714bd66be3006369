"""What a frozen model already knows: features of a dataset, and the linear head solved on them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class LinearHead:
    """
    A linear layer, solved.

    Args:
        weight (`np.ndarray` of shape `(outputs, features)`):
            The weights.
        bias (`np.ndarray` of shape `(outputs,)`):
            The bias.
    """

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """
        Args:
            features (`np.ndarray` of shape `(rows, features)`):
                The features.

        Returns:
            `np.ndarray` of shape `(rows, outputs)`: `features @ weight.T + bias`.
        """
        return features @ self.weight.T + self.bias


def solve_linear_head(
    features: np.ndarray, labels: np.ndarray, *, problem_type: str, outputs: int, regularization: float | None = None
) -> LinearHead:
    """
    Solves the output layer instead of training it: logistic regression for classes, ridge for numbers.

    The features are standardised for the solver, `z = (x - m) / s`, and the scaling is folded back:
    `weight = w / s`, `bias = b - weight @ m`. Two classes give the symmetric pair `(-w / 2, w / 2)`, whose softmax is
    the solver's sigmoid.

    Args:
        features (`np.ndarray` of shape `(rows, features)`):
            Inputs of the layer.
        labels (`np.ndarray` of shape `(rows,)` or `(rows, outputs)`):
            Class numbers, rows of 0/1, or values.
        problem_type (`str`):
            As in the model's config.
        outputs (`int`):
            Outputs of the layer.
        regularization (`float`, *optional*):
            Inverse strength `C` of the L2 penalty; chosen by 5-fold cross-validation where not given.

    Returns:
        `LinearHead`: The layer.

    Raises:
        ValueError: If there are fewer than two classes; a constant label among many is no error.
    """
    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    if problem_type == "regression":
        strengths = [1 / c for c in STRENGTHS]
        solver = RidgeCV(alphas=strengths) if regularization is None else Ridge(alpha=1 / regularization)
        fitted = solver.fit(scaled, labels.reshape(len(labels), -1))
        raw_weight, raw_bias = np.atleast_2d(fitted.coef_), np.atleast_1d(fitted.intercept_)
    elif problem_type == "multi_label_classification":
        rows = [_one_label(scaled, labels[:, j], regularization) for j in range(outputs)]
        raw_weight, raw_bias = np.stack([weight for weight, _ in rows]), np.array([bias for _, bias in rows])
    else:
        raw_weight, raw_bias = _logistic(scaled, labels, outputs, regularization)
    weight = raw_weight / scaler.scale_
    return LinearHead(weight, raw_bias - weight @ scaler.mean_)


def _one_label(scaled: np.ndarray, labels: np.ndarray, regularization: float | None) -> tuple[np.ndarray, float]:
    """One of many labels; where every row or none has it, the log-odds of its share with half a row on either side."""
    on = int((labels > 0.5).sum())
    if on in (0, len(labels)):
        return np.zeros(scaled.shape[1]), float(np.log((on + 0.5) / (len(labels) - on + 0.5)))
    weight, bias = _logistic(scaled, labels, 2, regularization)
    return weight[1] - weight[0], bias[1] - bias[0]


def _logistic(
    scaled: np.ndarray, labels: np.ndarray, outputs: int, regularization: float | None
) -> tuple[np.ndarray, np.ndarray]:
    classes, counts = np.unique(labels.astype(int), return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            f"A head needs at least two classes to be solved, but the labels hold only {classes.tolist()}."
        )
    folds = min(5, int(counts.min()))
    if regularization is None and folds > 1:
        search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": list(STRENGTHS)}, cv=folds)
        regularization = search.fit(scaled, labels.astype(int)).best_params_["C"]
    solver = LogisticRegression(C=regularization or 0.01, max_iter=1000).fit(scaled, labels.astype(int))
    weight, bias = np.zeros((outputs, scaled.shape[1])), np.full(outputs, -30.0)
    if len(classes) == 2:
        weight[classes], bias[classes] = np.stack([-solver.coef_[0], solver.coef_[0]]) / 2, solver.intercept_[0] / 2
        bias[classes[0]] *= -1
    else:
        weight[classes], bias[classes] = solver.coef_, solver.intercept_
    # A class that no row has is left unlikely rather than undefined.
    return weight, bias


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


def _batches(
    dataset: Any, collate: Callable[[list[Any]], Any], batch_size: int, progress: str | None
) -> Iterator[Any]:
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


def extract_features(
    model: nn.Module,
    dataset: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    *,
    module: nn.Module | None = None,
    batch_size: int = 32,
    progress: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Runs the frozen model over a dataset and keeps one vector a row, or one a token where each token has a label.

    Args:
        model (`nn.Module`):
            The model; left as it was.
        dataset (`datasets.Dataset`):
            Encoded rows with `labels`.
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

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Features of shape `(rows, features)` and the labels; of labels for tokens
        those that are not -100, row after row.

    Raises:
        ValueError: If `module` takes something else than one vector for each label.
    """
    device = next(model.parameters()).device
    captured: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = module.register_forward_hook(lambda m, args, out: captured.append((args[0], out))) if module else None
    runner = model if module else getattr(model, getattr(model, "base_model_prefix", ""), model)
    features: dict[int, np.ndarray] = {}
    labels: dict[int, np.ndarray] = {}
    try:
        with _evaluating(model):
            for rows, batch in _batches(dataset, collate, batch_size, progress):
                inputs = {k: v.to(device) for k, v in batch.items() if k != "labels" and isinstance(v, torch.Tensor)}
                captured.clear()
                if "labels" not in batch:
                    raise ValueError(
                        f"A head is solved on `labels`, but the batches hold {', '.join(sorted(batch))}. Use another "
                        "strategy than `lp-ft` for this task."
                    )
                output, targets = runner(**inputs), batch["labels"]
                if module:
                    found = _returned_token(*captured[-1], output.get("logits"))
                else:
                    found = output[0]
                    if not _one_a_token(found, targets):
                        found = _mean_pooled(found, inputs.get("attention_mask"))
                if len(found) != len(rows) or (found.ndim != 2 and not _one_a_token(found, targets)):
                    raise ValueError(
                        f"The output layer must take one vector a row to be solved, but {type(module).__name__} takes "
                        f"{tuple(found.shape)} for {len(rows)} rows. Use another strategy than `lp-ft` for this model."
                    )
                for i, vector, label in zip(rows, found.float().cpu().numpy(), targets.numpy(), strict=True):
                    kept = label != -100 if found.ndim == 3 else None
                    features[i], labels[i] = vector[kept], label[kept]
    finally:
        if handle is not None:
            handle.remove()
    order = range(len(features))
    return np.concatenate([features[i] for i in order]), np.concatenate([labels[i] for i in order])


def _one_a_token(found: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether each token has a vector and a class; rows of 0/1 for several classes at once are floats."""
    return found.ndim == 3 and found.shape[:2] == labels.shape and not labels.is_floating_point()


def _returned_token(inputs: torch.Tensor, outputs: torch.Tensor, logits: torch.Tensor | None) -> torch.Tensor:
    """Of inputs for every token (decoders), the one whose output the model returns for the row."""
    if inputs.ndim != 3 or logits is None or logits.shape != (len(outputs), outputs.shape[-1]):
        return inputs
    chosen = (outputs == logits[:, None]).all(-1)
    return inputs[torch.arange(len(inputs)), chosen.int().argmax(1)] if chosen.any(1).all() else inputs


def _mean_pooled(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.flatten(1, -2).mean(1) if hidden.ndim > 2 else hidden
    kept = mask[..., None].to(hidden.dtype)
    return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)


def find_output_layer(model: nn.Module, head: tuple[str, ...]) -> nn.Linear:
    """
    The last linear layer of the head with one output for each label.

    Args:
        model (`nn.Module`):
            The model.
        head (`tuple[str, ...]`):
            Names of the head's parameters.

    Returns:
        `nn.Linear`: The layer.

    Raises:
        ValueError: If the head has none.
    """
    labels = getattr(getattr(model, "config", None), "num_labels", None)
    found = [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{path}.weight" in head and module.out_features == labels
    ]
    if not found:
        raise ValueError(
            f"`lp-ft` solves a linear output layer with {labels} outputs, but the head of {type(model).__name__} has "
            "none. Use `gradual-unfreezing` for this model."
        )
    return found[-1]
