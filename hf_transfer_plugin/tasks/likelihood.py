"""How likely a model finds tokens: sums for each row, and the figures that come of them."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional

from hf_transfer_plugin.metrics import bootstrap_interval, perplexity, token_accuracy
from hf_transfer_plugin.tasks.base import Outcome
from hf_transfer_plugin.tasks.padding import IGNORED

PLACES = 16


def aligned_sums(logits: Any, labels: torch.Tensor | None) -> torch.Tensor:
    """
    Sums over the tokens of each row that have a label, each predicted at its own place (masked language models,
    encoder-decoders). One row is worked on at a time, and only its labelled places: a batch of logits may fill the
    memory alone.

    Args:
        logits (`torch.Tensor` of shape `(rows, length, vocabulary)`, or a tuple that begins with it):
            The model's outputs.
        labels (`torch.Tensor` of shape `(rows, length)`, *optional*):
            Token numbers, -100 for no label.

    Returns:
        `torch.Tensor` of shape `(rows, 3)`: `-log p` of the labels, how many of them had the highest logit, and how
        many there are; zeros without labels.
    """
    scores = logits[0] if isinstance(logits, (tuple, list)) else logits
    found = torch.zeros(len(scores), 3, dtype=torch.float32, device=scores.device)
    for row, wanted in enumerate(() if labels is None else labels):
        kept = (wanted != IGNORED).nonzero()[:, 0]
        if len(kept):
            found[row] = _sums(scores[row], wanted, kept)
    return found


def _sums(scores: torch.Tensor, wanted: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    found = torch.zeros(3, device=scores.device)
    # A few places at a time stay in the processor's cache: eight times faster than all at once.
    for part in kept.split(PLACES):
        chosen, target = scores[part].float(), wanted[part]
        found[0] += functional.cross_entropy(chosen, target, reduction="sum")
        found[1] += (chosen.argmax(-1) == target).sum()
    found[2] = len(kept)
    return found


def shifted_sums(logits: Any, labels: torch.Tensor | None) -> torch.Tensor:
    """
    As [`aligned_sums`], for causal models, which predict a token one place before it. Outputs of learned prompts,
    which stand before the text, are passed over.

    Args:
        logits (`torch.Tensor` of shape `(rows, length, vocabulary)`, or a tuple that begins with it):
            The model's outputs.
        labels (`torch.Tensor` of shape `(rows, length)`, *optional*):
            Token numbers, -100 for no label.

    Returns:
        `torch.Tensor` of shape `(rows, 3)`: As there.
    """
    scores = logits[0] if isinstance(logits, (tuple, list)) else logits
    if labels is None:
        return aligned_sums(scores, None)
    return aligned_sums(scores[:, scores.shape[1] - labels.shape[1] : -1], labels[:, 1:])


def answer_sums(logits: Any, labels: torch.Tensor | None) -> torch.Tensor:
    """
    As [`aligned_sums`] or [`shifted_sums`], for models of either kind that answer a prompt: a causal model's labels
    never begin at the first place, where the prompt is, and a decoder's always do.

    Args:
        logits (`torch.Tensor` of shape `(rows, length, vocabulary)`, or a tuple that begins with it):
            The model's outputs.
        labels (`torch.Tensor` of shape `(rows, length)`, *optional*):
            Token numbers, -100 for no label.

    Returns:
        `torch.Tensor` of shape `(rows, 3)`: As there.
    """
    causal = labels is not None and bool((labels[:, 0] == IGNORED).all())
    return (shifted_sums if causal else aligned_sums)(logits, labels)


def token_figures(outcome: Outcome) -> dict[str, float]:
    """
    Args:
        outcome (`Outcome`):
            Its predictions are the sums of each row.

    Returns:
        `dict[str, float]`: `perplexity`, `exp(sum of -log p / tokens)`, and `token_accuracy`; nothing where no token
        has a label.
    """
    loss, right, tokens = np.asarray(outcome.predictions, dtype=np.float64).sum(0)
    if not tokens:
        return {}
    return {"perplexity": perplexity(loss, int(tokens)), "token_accuracy": token_accuracy(int(right), int(tokens))}


def perplexity_interval(outcome: Outcome) -> dict[str, list[float]]:
    """
    Args:
        outcome (`Outcome`):
            Its predictions are the sums of each row.

    Returns:
        `dict[str, list[float]]`: Bootstrap interval of `perplexity`.
    """
    sums = np.asarray(outcome.predictions, dtype=np.float64)

    def drawn(rows: np.ndarray) -> float:
        loss, _, tokens = sums[rows].sum(0)
        return float(np.exp(loss / tokens)) if tokens else np.nan

    return {"perplexity": bootstrap_interval(drawn, len(sums))} if sums[:, 2].any() else {}


def commonest_token(train: Dataset, measured: Dataset, *, shifted: bool) -> dict[str, float]:
    """
    What an answer knows that reads nothing: each token is as likely as it is common in train, `p = (n + 1) / (N + V)`
    with the count `n` of the token, the number `N` of all tokens, and the number `V` of different ones, seen or not.

    Args:
        train (`Dataset`):
            Encoded rows to count in.
        measured (`Dataset`):
            Encoded rows to measure on.
        shifted (`bool`):
            Whether the first token of a row is never predicted.

    Returns:
        `dict[str, float]`: `perplexity`, and the `token_accuracy` of always the commonest token.
    """
    seen, wanted = (_labels(rows, shifted) for rows in (train, measured))
    if not len(wanted) or not len(seen):
        return {}
    counts = np.bincount(seen, minlength=int(wanted.max()) + 1)
    chances = (counts + 1) / (counts.sum() + np.count_nonzero(counts + np.bincount(wanted, minlength=len(counts))))
    right = int((wanted == counts.argmax()).sum())
    return {
        "perplexity": perplexity(float(-np.log(chances[wanted]).sum()), len(wanted)),
        "token_accuracy": token_accuracy(right, len(wanted)),
    }


def _labels(rows: Dataset, shifted: bool) -> np.ndarray:
    """The tokens to predict: the labels; all tokens that are not special, where there are none."""
    arrow = rows.with_format("arrow")
    column = arrow[:]["labels" if "labels" in rows.column_names else "input_ids"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    keep = values != IGNORED
    if "labels" not in rows.column_names and "special_tokens_mask" in rows.column_names:
        special = arrow[:]["special_tokens_mask"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        keep &= special == 0
    if shifted:
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        keep[(np.cumsum(lengths) - lengths)[lengths > 0]] = False
    return values[keep]
