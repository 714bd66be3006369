"""The head of LP-FT: the model's own output layer, solved instead of trained."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from hf_transfer_plugin.features import collect_features, find_output_layer, solve_linear_head
from hf_transfer_plugin.layers import LayerGroups
from hf_transfer_plugin.schedules import LinearProbeThenFineTune


def solve_output_layer(
    model: nn.Module, groups: LayerGroups, dataloader: Any, schedule: LinearProbeThenFineTune
) -> None:
    """
    Solves the model's own output layer on that layer's real input over the training data, and writes it.

    Args:
        model (`nn.Module`):
            The model.
        groups (`LayerGroups`):
            Its layer groups; the last is the head.
        dataloader (`DataLoader`):
            Trainer's loader; its dataset and collator are used, in order, without touching its random state.
        schedule (`LinearProbeThenFineTune`):
            How strongly the head is held small, and how many rows it is solved on.

    Raises:
        ValueError: If the data has no length, or the head no linear output layer.
    """
    if not hasattr(dataloader.dataset, "__len__"):
        raise ValueError(
            "`lp-ft` solves the head on the whole training set, but the dataset is a stream without length."
        )
    layer = find_output_layer(model, groups.open[-1].parameters)
    limit = schedule.rows_per_output
    rows = dataloader.dataset if limit is None else _drawn(dataloader.dataset, limit * layer.out_features)
    features, labels = collect_features(model, rows, dataloader.collate_fn, module=layer, progress="Solving the head")
    problem = getattr(model.config, "problem_type", None)
    if problem is None:
        multi = "multi_label_classification" if labels.ndim == 2 else "single_label_classification"
        problem = "regression" if labels.dtype.kind == "f" and labels.ndim == 1 else multi
    head = solve_linear_head(
        features, labels, problem_type=problem, outputs=layer.out_features, regularization=schedule.regularization
    )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(head.bias))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for parameter in layer.parameters():
                torch.distributed.broadcast(parameter, 0)


def _drawn(dataset: Any, count: int) -> Any:
    """At most that many rows, always the same ones."""
    if len(dataset) <= count:
        return dataset
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count].tolist()
    return dataset.select(chosen) if hasattr(dataset, "select") else Subset(dataset, chosen)
