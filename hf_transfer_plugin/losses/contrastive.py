"""Losses of two towers: a picture and its own caption come together, all others of the batch go apart."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import log_softmax, logsigmoid


@dataclass(frozen=True)
class ContrastiveLoss:
    """
    What Trainer takes as `compute_loss_func`, for models that give `logits_per_image`.

    Args:
        sigmoid (`bool`, *optional*, defaults to `False`):
            Judge each pair by itself, as SigLIP's models were trained, instead of one caption among all.
    """

    sigmoid: bool = False

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """
        Pictures are told from the captions of their own micro-batch and process only, as by the models' own losses.

        Args:
            outputs (`ModelOutput`):
                Holds `logits_per_image` of shape `(pictures, captions)`.
            labels (`torch.Tensor`):
                Numbers that equal captions share, of shape `(pictures,)`, where there is a caption for each picture;
                else the column of each picture's own, of shape `(pictures, 1)`.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*):
                Pictures of the whole step, by which their losses are divided; those of this batch without it.

        Returns:
            `torch.Tensor`: The loss.
        """
        logits = outputs["logits_per_image"].float()
        if labels.ndim == 2:
            labels = labels[:, 0]
            logits = logits[:, labels]
        rows = sigmoid_losses(logits, labels) if self.sigmoid else softmax_losses(logits, labels)
        return rows.mean() if num_items_in_batch is None else rows.sum() / num_items_in_batch


def softmax_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r"""
    The loss of Unified Contrastive Learning in Image-Text-Label Space (https://huggingface.co/papers/2204.03610),
    which lets equal captions share what CLIP's gives to one.

    With logits $s_{ij}$ of picture $i$ and caption $j$, and $P_i$ the places of captions equal to that of $i$:

    $L_i = -\frac{1}{2 |P_i|} \sum_{j \in P_i} \left( \log \frac{e^{s_{ij}}}{\sum_k e^{s_{ik}}}
    + \log \frac{e^{s_{ji}}}{\sum_k e^{s_{ki}}} \right)$.

    Where all captions differ, its mean is CLIP's loss (https://huggingface.co/papers/2103.00020).

    Args:
        logits (`torch.Tensor`):
            $s$.
        labels (`torch.Tensor`):
            Equal numbers for equal captions.

    Returns:
        `torch.Tensor`: $L$.

    Shape:
        - logits: `(pairs, pairs)`
        - labels, returned: `(pairs,)`
    """
    shares = _equal(labels).to(logits.dtype)
    shares = shares / shares.sum(1, keepdim=True)
    to_captions = (shares * log_softmax(logits, 1)).sum(1)
    to_pictures = (shares * log_softmax(logits.T, 1)).sum(1)
    return -(to_captions + to_pictures) / 2


def sigmoid_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r"""
    The loss of Sigmoid Loss for Language Image Pre-Training (https://huggingface.co/papers/2303.15343), where equal
    captions belong to each other's pictures, too.

    With logits $s_{ij}$, which hold the model's bias, and $z_{ij} = 1$ where the captions of $i$ and $j$ are equal,
    else $-1$: $L_i = -\sum_j \log \frac{1}{1 + e^{-z_{ij} s_{ij}}}$.

    Args:
        logits (`torch.Tensor`):
            $s$.
        labels (`torch.Tensor`):
            Equal numbers for equal captions.

    Returns:
        `torch.Tensor`: $L$.

    Shape:
        - logits: `(pairs, pairs)`
        - labels, returned: `(pairs,)`
    """
    signs = 2 * _equal(labels).to(logits.dtype) - 1
    return -logsigmoid(signs * logits).sum(1)


def _equal(labels: torch.Tensor) -> torch.Tensor:
    return labels[:, None] == labels[None]


def contrastive(model: Any) -> ContrastiveLoss:
    """
    Args:
        model (`PreTrainedModel`):
            A model of two towers, perhaps with an adapter.

    Returns:
        `ContrastiveLoss`: SigLIP's loss for its models, CLIP's for all others. A picture is told from the captions of
        its own micro-batch and process: neither gradient accumulation nor more processes add captions to choose from,
        as in Transformers' own losses.
    """
    return ContrastiveLoss(sigmoid="siglip" in model.config.model_type)


LOSSES = {"contrastive": contrastive}
