"""Sentence similarity: an embedding model, in which texts that belong together lie together; semantic search."""

from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.metrics import average_precision_score, roc_auc_score

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.metrics import bootstrap_interval, correlations, ranking_rows
from hf_transfer_plugin.tasks.base import Outcome, Task, TaskData
from hf_transfer_plugin.tasks.pairs import (
    BINARY,
    LABELLED,
    SEARCHED,
    TEXTS,
    choose_loss,
    choose_pairs,
    form_of,
    plain_rows,
    same_texts,
)
from hf_transfer_plugin.tasks.retrieval import (
    Search,
    bm25,
    cosines,
    far_pairs,
    search_of,
    shared_words,
    unit,
    wrong_finds,
)
from hf_transfer_plugin.tasks.splitting import hold_out, hold_out_groups

K = 10


def read(splits: DatasetDict, config: TransferConfig, seed: int) -> TaskData:
    """
    Checks the rows and brings them into the columns `text`, `text_pair`, `negative` and `label`, as far as there are.
    Where validation is held out of train, no second text is in both, if there are enough.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        seed (`int`):
            Seed of held-out and drawn rows.

    Returns:
        `TaskData`: The rows; `options` has the `loss`, `facts` the `form` of the rows, the size of the `corpus` of
        each split that is searched, and texts that splits share.

    Raises:
        ValueError: If a column is missing, or texts, labels or scores are unusable.
    """
    if config.sort_micro_batches:
        raise ValueError(
            "`sort_micro_batches` changes which rows share a batch, but losses of embeddings compare the rows of a "
            "batch with each other. Leave it out."
        )
    columns = choose_pairs(splits, config)
    plain = plain_rows(splits, columns)
    form = form_of(plain["train"])
    loss = choose_loss(form, config, plain["train"])
    if form in SEARCHED and form != LABELLED:
        plain, held_out = hold_out_groups(plain, config, seed, "text_pair")
    else:
        plain, held_out = hold_out(plain, config, seed, strata="label" if form in (LABELLED, BINARY) else None)
    facts: dict[str, Any] = {"form": form, **same_texts(plain)}
    for split, rows in plain.items():
        if form == BINARY and len(set(rows["label"])) < 2:
            raise ValueError(
                f"The pairs of each split must be labelled both 0 and 1, but all {len(rows)} of {split} are "
                f"{rows['label'][0]}. Give others, or a larger `--validation_fraction`."
            )
    if form in SEARCHED:
        facts["corpus"] = {split: len(search_of(rows).documents) for split, rows in plain.items() if split != "train"}
    return TaskData(plain, columns, held_out=held_out, options={"loss": loss}, facts=facts)


def read_again(splits: DatasetDict, config: TransferConfig, labelled: bool) -> TaskData:
    """
    As [`read`], for a trained model; nothing is held out. Without labels one column of texts is enough.

    Args:
        splits (`DatasetDict`):
            As loaded.
        config (`TransferConfig`):
            The configuration.
        labelled (`bool`):
            Whether the rows shall be measured.

    Returns:
        `TaskData`: The rows.

    Raises:
        ValueError: If a column is missing, or texts, labels or scores are unusable.
    """
    columns = choose_pairs(splits, config, labelled=labelled)
    plain = plain_rows(splits, columns)
    # What is not to be measured has no form: a search through all rows of a large file takes long.
    return TaskData(plain, columns, facts={"form": form_of(next(iter(plain.values())))} if labelled else {})


def set_up(model: Any, processor: Any, data: TaskData) -> None:
    """
    Args:
        model (`SentenceTransformer`):
            The model; vectors will be compared by their cosine, by which they are trained.
        processor (`PreTrainedTokenizerBase`):
            Not needed here.
        data (`TaskData`):
            Not needed here.
    """
    model.similarity_fn_name = "cosine"


def encode(data: TaskData, processor: Any, max_length: int, model_config: Any) -> tuple[DatasetDict, int]:
    """
    Leaves the texts as they are, since the model's own modules prepare them, and counts those that are too long.

    Args:
        data (`TaskData`):
            The rows.
        processor (`PreTrainedTokenizerBase`):
            The tokenizer.
        max_length (`int`):
            Tokens of a text at most.
        model_config (`PretrainedConfig`):
            Not needed here.

    Returns:
        `tuple[DatasetDict, int]`: The rows with the tokens that are read of their texts as `length`, and how many have
        a text that is truncated.
    """
    overlong, splits = 0, DatasetDict()
    for split, rows in data.splits.items():
        columns = [name for name in TEXTS if name in rows.column_names]
        tokens = [processor(list(rows[column]), truncation=False, verbose=False)["input_ids"] for column in columns]
        lengths = np.array([[len(ids) for ids in column] for column in tokens])
        overlong += int((lengths > max_length).any(0).sum())
        splits[split] = rows.add_column("length", np.minimum(lengths, max_length).sum(0).tolist())
    return splits, overlong


def _vectors(outcome: Outcome) -> list[np.ndarray]:
    found = outcome.predictions
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _searched(outcome: Outcome) -> tuple[Search, list[list[int]], list[list[float]]]:
    """The search of the rows, and what the vectors find."""
    rows, search = outcome.rows, search_of(outcome.rows)
    vectors = dict(zip([name for name in TEXTS if name in rows.column_names], _vectors(outcome), strict=True))
    documents = np.stack([vectors[column][row] for column, row in search.document_places])
    found, scores = search.ranked(cosines(vectors["text"][search.query_rows], documents), K)
    return search, found, scores


def _similarities(outcome: Outcome) -> np.ndarray:
    first, second = _vectors(outcome)[:2]
    return (unit(first) * unit(second)).sum(-1).astype(np.float64)


def _ranking(search: Search, found: list[list[int]]) -> dict[str, np.ndarray]:
    """Figures of each query; whether the very first document is right is the recall of one only where one is."""
    rows = ranking_rows(found, search.right, k=K)
    first = [float(bool(ranked) and ranked[0] in right) for ranked, right in zip(found, search.right, strict=True)]
    return {**rows, "first_right": np.array(first)}


def metrics(data: TaskData, outcome: Outcome) -> dict[str, float]:
    """
    Args:
        data (`TaskData`):
            Not needed here.
        outcome (`Outcome`):
            The vectors of the texts.

    Returns:
        `dict[str, float]`: `ndcg_at_10`, `mrr_at_10`, `recall_at_10` and `first_right`, the share of queries whose
        first document is right, where texts are searched for; `spearman` and `pearson` of cosines with scores;
        `average_precision` and `roc_auc` for pairs with 0 or 1.
    """
    if form_of(outcome.rows) in SEARCHED:
        search, found, _ = _searched(outcome)
        return {name: float(values.mean()) for name, values in _ranking(search, found).items()}
    return _pair_metrics(_similarities(outcome), outcome.rows)


def _pair_metrics(values: np.ndarray, rows: Dataset) -> dict[str, float]:
    wanted = np.asarray(rows["label"], dtype=float)
    if form_of(rows) != BINARY:
        return correlations(values, wanted)
    return {
        "average_precision": float(average_precision_score(wanted, values)),
        "roc_auc": float(roc_auc_score(wanted, values)),
    }


def report(data: TaskData, outcome: Outcome, count: int) -> dict[str, Any]:
    """
    Args:
        data (`TaskData`):
            Not needed here.
        outcome (`Outcome`):
            The vectors of the texts.
        count (`int`):
            Errors at most.

    Returns:
        `dict[str, Any]`: `intervals` of the deciding metric over draws of queries or pairs, and `errors`: wrong
        documents that were found first, the most similar ones; or the pairs whose similarity is farthest off.
    """
    rows = outcome.rows
    if form_of(rows) in SEARCHED:
        search, found, scores = _searched(outcome)
        gains = _ranking(search, found)["ndcg_at_10"]
        return {
            "intervals": {"ndcg_at_10": bootstrap_interval(lambda drawn: float(gains[drawn].mean()), len(gains))},
            "errors": wrong_finds(search, found, scores, count),
        }
    values, wanted = _similarities(outcome), np.asarray(rows["label"], dtype=float)
    name = best_metric(TaskData(DatasetDict({"test": rows}), {}))[0]

    def measured(drawn: np.ndarray) -> float:
        if name == "spearman":
            return correlations(values[drawn], wanted[drawn])["spearman"]
        return float(average_precision_score(wanted[drawn], values[drawn])) if wanted[drawn].any() else float("nan")

    return {"intervals": {name: bootstrap_interval(measured, len(rows))}, "errors": far_pairs(rows, values, count)}


def answers(data: TaskData, outcome: Outcome) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            Not needed here.
        outcome (`Outcome`):
            The vectors of the texts.

    Returns:
        `list[dict[str, Any]]`: The `similarity` of each pair, the cosine of its vectors; or the `embedding` of each
        text, where there is only one.
    """
    if "text_pair" in outcome.rows.column_names:
        return [{"similarity": value} for value in _similarities(outcome).tolist()]
    return [{"embedding": vector} for vector in np.asarray(_vectors(outcome)[0], dtype=float).tolist()]


def baseline(data: TaskData, split: str, encoded: DatasetDict) -> tuple[str, dict[str, float]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to measure on.
        encoded (`DatasetDict`):
            Not needed here.

    Returns:
        `tuple`: `"bm25"`, and metrics of a search by shared words; or `"tf_idf"`, and those of the cosine of word
        counts, for pairs with scores.
    """
    rows = data.splits[split]
    if form_of(rows) in SEARCHED:
        search = search_of(rows)
        found, _ = search.ranked(bm25(search.queries, search.documents), K)
        return "bm25", {name: float(values.mean()) for name, values in _ranking(search, found).items()}
    return "tf_idf", _pair_metrics(shared_words(rows["text"], rows["text_pair"]), rows)


def examples(data: TaskData, split: str, count: int) -> list[dict[str, Any]]:
    """
    Args:
        data (`TaskData`):
            The rows.
        split (`str`):
            Split to take them from.
        count (`int`):
            How many.

    Returns:
        `list[dict[str, Any]]`: Rows with different second texts, the shortest ones: the `text` and, as `text_pair`,
        the one that belongs to it. Labelled texts stand alone.
    """
    rows = data.splits[split]
    second = rows["text_pair"] if "text_pair" in rows.column_names else [None] * len(rows)
    found: dict[str, dict[str, Any]] = {}
    order = sorted(range(len(rows)), key=lambda n: len(rows["text"][n]) + len(second[n] or "")) if count else []
    for n in order:
        text, other = rows["text"][n], second[n]
        if (other or text) not in found:
            found[other or text] = {"text": text, **({"text_pair": other} if other else {})}
        if len(found) == count:
            break
    return list(found.values())


def best_metric(data: TaskData) -> tuple[str, bool]:
    """
    Args:
        data (`TaskData`):
            The rows.

    Returns:
        `tuple[str, bool]`: The metric that decides; greater is better.
    """
    rows = next(iter(data.splits.values()), None)
    form = form_of(rows) if rows is not None else SEARCHED[0]
    return "ndcg_at_10" if form in SEARCHED else "average_precision" if form == BINARY else "spearman", True


SENTENCE_SIMILARITY = Task(
    name="sentence-similarity",
    auto_classes=("AutoModel",),
    roles=("text", "text_pair", "negative", "label"),
    read=read,
    read_again=read_again,
    encode=encode,
    collator=lambda processor, data: None,
    metrics=metrics,
    report=report,
    answers=answers,
    baseline=baseline,
    examples=examples,
    best_metric=best_metric,
    options=("loss",),
    library="sentence-transformers",
    set_up=set_up,
    pretrained_head=True,
    arguments={
        "learning_rate": 2e-5,
        "num_train_epochs": 1.0,
        "per_device_train_batch_size": 32,
        "train_sampling_strategy": "random",
    },
)
