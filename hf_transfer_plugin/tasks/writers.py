"""Which models can write."""

from typing import Any

READS_BOTH_WAYS = (
    "bert",
    "big_bird",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "megatron-bert",
    "reformer",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


def require_writer(model: Any) -> None:
    """
    Args:
        model (`PreTrainedModel`):
            The model.

    Raises:
        ValueError: If each of its tokens sees those that follow, as in BERT, so that it cannot write.
    """
    config = model.config
    both = config.model_type in READS_BOTH_WAYS and not getattr(config, "is_decoder", False)
    if both or not model.can_generate():
        raise ValueError(
            f"The model must write from left to right, but {type(model).__name__} ({config.model_type}) does not. "
            "Choose a causal or an encoder-decoder model, or the task `fill-mask`."
        )
