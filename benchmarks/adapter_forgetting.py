"""What a model still knows of other text than that which it was fine-tuned on."""

import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import peft
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from benchmarks.adapter_settings import chat_blocks, messages

CHAT_BLOCKS = 8
DRAWS, SHOTS = 20, 100  # of the probe


def perplexity(model: nn.Module, blocks: Sequence[Sequence[int]]) -> float:
    """
    Args:
        model (`nn.Module`):
            A causal language model.
        blocks (`Sequence[Sequence[int]]`):
            Blocks of equal length.

    Returns:
        `float`: `exp` of the mean loss of a token, each block by itself.
    """
    model.eval()
    losses = []
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for block in blocks:
            ids = torch.tensor([block])
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    return math.exp(statistics.fmean(losses))


def spam_probe(model: Any, tokenizer: Any) -> float:
    """
    What a sentence encoder still knows of other texts: how well a linear classifier on the mean of its last hidden
    states tells spam, learned from 100 messages and judged by 300 others, on average over 20 draws.

    Args:
        model (`nn.Module`):
            A classifier, with or without an adapter.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.

    Returns:
        `float`: Accuracy.
    """
    plain = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    encoder = getattr(plain, plain.base_model_prefix).eval()
    texts, labels = messages()
    features = []
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for i in range(0, len(texts), 50):
            batch = tokenizer(texts[i : i + 50], padding=True, truncation=True, max_length=128, return_tensors="pt")
            hidden, mask = encoder(**batch).last_hidden_state.float(), batch["attention_mask"].unsqueeze(-1)
            features.append((hidden * mask).sum(1) / mask.sum(1))
    table, known = torch.cat(features).numpy(), np.array(labels)
    scores = []
    for draw in range(DRAWS):
        order = random.Random(draw).sample(range(len(known)), len(known))
        seen, unseen = order[:SHOTS], order[SHOTS:]
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(table[seen], known[seen])
        scores.append(float(probe.score(table[unseen], known[unseen])))
    return statistics.fmean(scores)


def held_metric(setting: str, model: Any, tokenizer: Any) -> float:
    """
    Args:
        setting (`str`):
            Name of the setting.
        model (`nn.Module`):
            The model.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.

    Returns:
        `float`: The figure that tells what is forgotten.
    """
    if setting == "minilm":
        return spam_probe(model, tokenizer)
    return perplexity(model, chat_blocks(tokenizer, CHAT_BLOCKS))
