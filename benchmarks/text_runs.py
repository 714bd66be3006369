"""The real runs of benchmarks/text_tasks.py as data: model, data, flags, and which metrics their table shows."""

from dataclasses import dataclass, field
from typing import Any

MINILM, SMOLLM2 = "sentence-transformers/all-MiniLM-L6-v2", "HuggingFaceTB/SmolLM2-135M-Instruct"
BOTTOM_FROZEN = '{"name": "freeze-first", "k": 16}'  # embeddings and half of SmolLM2's thirty blocks
ALWAYS: dict[str, Any] = {
    "baselines": True,
    "bf16": True,
    "use_cpu": True,
    "save_strategy": "no",
    "seed": 0,
    "license": "apache-2.0",
    "report_to": "none",
    "disable_tqdm": True,
}
REHEARSAL: dict[str, Any] = {"max_steps": 2, "max_train_samples": 32, "eval_strategy": "no"}


@dataclass(frozen=True)
class Run:
    """
    One run.

    Args:
        name (`str`):
            Its name, and that of its folder in model_cards/.
        task (`str`):
            The task.
        model (`str`):
            Hub id of the base model.
        data (`str`):
            Folder that benchmarks/text_data.py made.
        flags (`dict`):
            Flags of this run alone.
        data_license (`str`):
            Licence of the data.
        language (`tuple[str, ...]`):
            Its languages.
        headline (`tuple[str, ...]`):
            Metrics of the table.
    """

    name: str
    task: str
    model: str
    data: str
    flags: dict[str, Any]
    data_license: str
    language: tuple[str, ...] = ("en",)
    headline: tuple[str, ...] = field(default=("accuracy",), kw_only=True)


PAIR = {"text_column": "text", "text_pair_column": "text_pair", "max_length": 128}
WORDS = {"max_length": 128, "num_train_epochs": 3, "learning_rate": 2e-4}
# No validation on the way: writing texts costs more than learning to.
WRITING = {"text_column": "text", "target_column": "target", "eval_strategy": "no"}
RUNS = (
    Run(
        "multi-label",
        "text-classification",
        MINILM,
        "reviews-and-messages",
        {"label_column": "labels", "max_length": 128, "num_train_epochs": 4},
        "mit",
        headline=("f1_macro", "accuracy"),
    ),
    Run(
        "similarity",
        "text-classification",
        MINILM,
        "similarity",
        {
            **PAIR,
            "label_column": "score",
            "problem_type": "regression",
            "max_length": 64,
            "max_train_samples": 1000,
            "num_train_epochs": 2,
        },
        "other",
        headline=("pearson", "mae"),
    ),
    Run(
        "document-pairs",
        "text-classification",
        MINILM,
        "document-pairs",
        {**PAIR, "label_column": "label", "num_train_epochs": 2},
        "other",
        headline=("accuracy", "f1_macro"),
    ),
    Run(
        "pos",
        "token-classification",
        MINILM,
        "brown-pos",
        WORDS,
        "other",
        headline=("accuracy", "f1_macro"),
    ),
    Run(
        "names",
        "token-classification",
        MINILM,
        "brown-names",
        {**WORDS, "max_train_samples": 1500, "num_train_epochs": 2},
        "other",
        headline=("entity_f1", "accuracy"),
    ),
    Run(
        "spans",
        "question-answering",
        MINILM,
        "brown-spans",
        {"max_length": 192, "stride": 64, "max_train_samples": 800, "num_train_epochs": 2, "learning_rate": 2e-4},
        "other",
        headline=("exact_match", "f1"),
    ),
    Run(
        "summaries",
        "summarization",
        SMOLLM2,
        "aclsum",
        {
            **WRITING,
            "test_split": "validation",  # fifty rows; writing a hundred takes too long here
            "validation_split": "test",
            "prompt": "{text}\n\nThe outcome of this paper in one sentence:",
            "strategy": BOTTOM_FROZEN,
            "max_length": 384,
            "max_target_length": 48,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 8,
        },
        "mit",
        headline=("rouge1", "rougeL"),
    ),
    Run(
        "translations",
        "translation",
        SMOLLM2,
        "tatoeba",
        {
            **WRITING,
            "prompt": "English: {text}\nSpanish:",
            "source_language": "en",
            "target_language": "es",
            "strategy": "full",
            "max_length": 96,
            "max_target_length": 40,
            "max_train_samples": 600,
            "num_train_epochs": 1,
            "per_device_eval_batch_size": 32,
        },
        "cc-by-2.0",
        ("en", "es"),
        headline=("bleu", "chrf"),
    ),
    Run(
        "articles",
        "text-generation",
        SMOLLM2,
        "wikitext",
        {
            "text_column": "text",
            "packing": True,
            "max_train_samples": 120,
            "max_length": 512,
            "strategy": "full",
            "learning_rate": 5e-5,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
        },
        "cc-by-sa-3.0",
        headline=("perplexity", "token_accuracy"),
    ),
    Run(
        "chat",
        "text-generation",
        SMOLLM2,
        "conversations",
        {
            "messages_column": "messages",
            "strategy": BOTTOM_FROZEN,
            "max_length": 384,
            "max_train_samples": 240,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
        },
        "other",
        ("en", "es"),
        headline=("perplexity", "token_accuracy"),
    ),
    Run(
        "masks",
        "fill-mask",
        MINILM,
        "rotten-text",
        {
            "text_column": "text",
            "max_length": 128,
            "mlm_probability": 0.15,
            "max_train_samples": 1200,
            "num_train_epochs": 2,
            "learning_rate": 3e-4,
        },
        "mit",
        headline=("perplexity", "token_accuracy"),
    ),
)


def flags_of(run: Run, changes: dict[str, Any]) -> list[str]:
    """
    The command line of a run, without model, data and output folder.

    Args:
        run (`Run`):
            The run.
        changes (`dict`):
            Flags that win over those of the run.

    Returns:
        `list[str]`: The words.
    """
    values = {**ALWAYS, "task": run.task, **run.flags, "dataset_license": run.data_license, **changes}
    words = []
    for name, value in values.items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return [*words, "--language", *run.language]
