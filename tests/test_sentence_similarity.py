"""Embedding models: rows, losses, training with schedules, files, figures, answers, and what is refused."""

import json
import shutil
import sys

import gradio as gr
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import TrainingArguments

from hf_transfer_plugin import TransferConfig, TransferRecord, finetune
from hf_transfer_plugin.hub import render_card, render_space
from hf_transfer_plugin.hub.folder import build_folder
from hf_transfer_plugin.recipes import evaluate_run, predict_run
from hf_transfer_plugin.recipes.embedding import build_trainer, column_prompts
from hf_transfer_plugin.tasks import TASKS, Outcome, TaskData
from hf_transfer_plugin.tasks.sentence_similarity import baseline, examples, metrics, read, report
from tests.conftest import BAD, GOOD
from tests.test_demo import settings_of, space  # noqa: F401
from tests.test_demo_browser import client, served  # noqa: F401

sentence_transformers = pytest.importorskip("sentence_transformers", reason="pip install '.[search]'")
TASK = TASKS["sentence-similarity"]
PAIRS = {
    "query": [f"{good} and {bad}" for good in GOOD for bad in BAD],
    "answer": [f"{bad} fun {good}" for good in GOOD for bad in BAD],
}
COUNT = len(PAIRS["query"])
ROWS = {
    "pairs": PAIRS,
    "triplets": {**PAIRS, "negative": [f"no {text}" for text in PAIRS["answer"]]},
    "scored-pairs": {**PAIRS, "score": [n % 5 for n in range(COUNT)]},
    "binary-pairs": {**PAIRS, "label": [n % 2 for n in range(COUNT)]},
    "labelled-texts": {"text": PAIRS["query"], "label": [GOOD[n // 5] for n in range(COUNT)]},
}


def config(model="-", **changes):
    return TransferConfig(**{
        "validation_fraction": 0.4,
        "model": model,
        "dataset": "-",
        "task": "sentence-similarity",
        **changes,
    })


def arguments(folder, **changes):
    fixed = {"num_train_epochs": 2.0, "per_device_train_batch_size": 9, "learning_rate": 1e-2, "report_to": "none"}
    return TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **{**fixed, **changes})


def trained(model, folder, form="pairs", args=None, **changes):
    explicit = set(args or ())
    splits = DatasetDict({"train": Dataset.from_dict(ROWS[form])})
    return finetune(config(model, **changes), arguments(folder, **(args or {})), splits=splits, explicit=explicit)


@pytest.fixture(scope="module")
def run(model_folder, tmp_path_factory):
    """A finished run over pairs, frozen at the bottom."""
    folder = tmp_path_factory.mktemp("search") / "run"
    trained(model_folder, folder, strategy='{"name": "freeze-first", "k": 2}', baselines=True, max_length=24)
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


# Rows


@pytest.mark.parametrize(("form", "rows"), ROWS.items(), ids=ROWS)
def test_every_form_of_rows_has_its_loss_and_its_figures(form, rows):
    data = read(DatasetDict({"train": Dataset.from_dict(rows), "test": Dataset.from_dict(rows)}), config(), 0)
    losses = {
        "pairs": "MultipleNegativesRankingLoss",
        "triplets": "MultipleNegativesRankingLoss",
        "scored-pairs": "CoSENTLoss",
        "binary-pairs": "ContrastiveLoss",
        "labelled-texts": "BatchAllTripletLoss",
    }
    assert data.facts["form"] == form
    assert data.options == {"loss": losses[form]}
    texts = [name for name in ("text", "text_pair", "negative") if name in data.splits["test"].column_names]
    vectors = np.random.default_rng(0).normal(size=(len(texts), COUNT, 4))
    outcome = Outcome(data.splits["test"], data.splits["test"], tuple(vectors))
    found, told = metrics(data, outcome), report(data, outcome, 3)
    best = TASK.best_metric(data)[0]
    assert best in found
    low, high = told["intervals"][best]
    assert low <= found[best] <= high
    assert len(told["errors"]) == 3
    assert set(baseline(data, "test", data.splits)[1]) == set(found)
    # Validation was held out of train.
    assert data.facts["shared_texts"]["test"]["text"] == 15


def test_figures_of_vectors_worked_out_by_hand():
    rows = Dataset.from_dict({"text": ["a", "b"], "text_pair": ["x", "y"]})
    found = (np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[2.0, 0.1], [3.0, 0.2]]))
    figures = metrics(TaskData(DatasetDict(), {}), Outcome(rows, rows, found))
    # Both queries: "x" is at (1, .05), "y" at (1, .067), so "a" finds x first, "b" finds y first.
    assert figures == {"ndcg_at_10": 1, "mrr_at_10": 1, "recall_at_10": 1, "first_right": 1}
    turned = metrics(TaskData(DatasetDict(), {}), Outcome(rows, rows, (found[0][::-1], found[1])))
    assert turned["first_right"] == 0
    assert turned["mrr_at_10"] == 0.5


def test_no_passage_is_on_both_sides_where_validation_is_held_out():
    rows = {"query": [f"q {n}" for n in range(40)], "passage": [f"p {n // 4}" for n in range(40)]}
    data = read(DatasetDict({"train": Dataset.from_dict(rows)}), config(), 0)
    assert data.held_out
    assert not set(data.splits["train"]["text_pair"]) & set(data.splits["validation"]["text_pair"])
    assert data.facts["corpus"] == {"validation": 4}


def test_examples_have_different_second_texts():
    data = read(DatasetDict({"train": Dataset.from_dict(PAIRS)}), config(), 0)
    found = examples(data, "validation", 2)
    assert len({row["text_pair"] for row in found}) == 2
    assert examples(data, "validation", 0) == []


@pytest.mark.parametrize(
    ("rows", "changes", "said"),
    [
        ({"query": ["a"] * 4}, {}, "learns from pairs of texts, or from texts with labels, but only 'query'"),
        ({"query": ["a", ""], "answer": ["b", "c"]}, {}, "'query' must hold text, but 1 of 2"),
        ({"query": ["a", "b"], "answer": ["b", None]}, {}, "'answer' must hold text, but 1 of 2"),
        ({"query": [], "answer": []}, {}, "must hold rows, but is empty"),
        ({**PAIRS, "negative": PAIRS["answer"]}, {}, "A negative must differ .* in 25 of 25 rows"),
        ({**PAIRS, "score": ["high"] * COUNT}, {}, "must be a finite number, but 25 of 25 in 'score'"),
        ({**PAIRS, "score": [float("nan"), *range(COUNT - 1)]}, {}, "must be a finite number, but 1 of 25"),
        ({**PAIRS, "score": [1] * COUNT}, {}, "must differ, but all in 'score' are 1\\."),
        (ROWS["scored-pairs"], {"loss": "CosineSimilarityLoss"}, "between -1 and 1, .* lie between 0 and 4"),
        (PAIRS, {"loss": "SoftmaxLoss"}, "`loss` for pairs must be one of .*, but got 'SoftmaxLoss'"),
        (PAIRS, {"sort_micro_batches": True}, "losses of embeddings compare the rows of a batch"),
        ({**PAIRS, "label": [1] * 24 + [0], "same": ["a"] * 25}, {}, "but all 10 of validation are 1"),
        ({"text": ["a", "b"], "label": [1, 1]}, {}, "at least two different labels"),
        ({"text": ["a", "b"], "label": [0.5, 1.5]}, {}, "must be a word or a whole number"),
        (PAIRS, {"text_column": "query", "text_pair_column": "query"}, "'query' stands for two"),
        (PAIRS, {"text_column": "query", "negative_column": "answer"}, "`text_pair_column` must name"),
        (ROWS["triplets"], {"label_column": "query"}, "Triplets have no label"),
    ],
)
def test_unusable_rows_are_refused(rows, changes, said):
    with pytest.raises(ValueError, match=said):
        read(DatasetDict({"train": Dataset.from_dict(rows), "test": Dataset.from_dict(rows)}), config(**changes), 0)


def test_classes_are_no_scores():
    rows = Dataset.from_dict({**PAIRS, "label": [n % 3 for n in range(COUNT)]})
    rows = rows.cast_column("label", ClassLabel(names=["entailment", "neutral", "against"]))
    with pytest.raises(ValueError, match="holds classes \\(entailment, neutral, against\\)"):
        read(DatasetDict({"train": rows}), config(), 0)


def test_texts_that_are_their_own_answers_are_told(caplog):
    rows = {"query": ["a", "b", "c"], "answer": ["a", "x", "y"]}
    data = read(DatasetDict({"train": Dataset.from_dict(rows), "test": Dataset.from_dict(rows)}), config(), 0)
    assert data.facts["same_text_rows"] == {"train": 1, "test": 1}
    assert "In 1 rows of the train split both texts are the same" in caplog.text
    assert "The test split shares texts with train" in caplog.text


# Training


def test_a_run_is_a_sentence_transformer_that_gives_the_same_vectors(run, model_folder):
    record = TransferRecord.load(run)
    assert record.model_class == "SentenceTransformer"
    assert record.options["loss"] == "MultipleNegativesRankingLoss"
    assert [group["name"] for group in record.groups] == ["embeddings", "layer.0", "layer.1", "layer.2"]
    assert set(record.baselines) == {"bm25", "pretrained"}
    assert {"ndcg_at_10", "mrr_at_10", "recall_at_10", "first_right", "loss"} == set(record.metrics)
    before, after = load_file(f"{model_folder}/model.safetensors"), weights(run)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(("encoder.layer.1", "encoder.layer.2")) for name in moved)
    model = sentence_transformers.SentenceTransformer(str(run), device="cpu")
    assert model.max_seq_length == 24
    assert model.similarity_fn_name == "cosine"
    file = run.parent / "texts.jsonl"
    Dataset.from_dict({"text": GOOD}).to_json(file)
    predict_run(run, file, run.parent / "vectors.jsonl", batch_size=len(GOOD))
    lines = [json.loads(line) for line in (run.parent / "vectors.jsonl").read_text().splitlines()]
    assert np.array_equal(np.float32([line["embedding"] for line in lines]), model.encode(GOOD))


def test_a_run_measures_other_data_and_answers_pairs(run, tmp_path):
    file = tmp_path / "rows.jsonl"
    Dataset.from_dict(PAIRS).to_json(file)
    found = evaluate_run(run, str(file))
    model = sentence_transformers.SentenceTransformer(str(run), device="cpu")
    first, second = model.encode(PAIRS["query"]), model.encode(PAIRS["answer"])
    scores = model.similarity(first, second)
    ranks = (scores > scores.diagonal()[:, None]).sum(1)
    assert found["metrics"]["first_right"] == pytest.approx(float((ranks == 0).float().mean()))
    predict_run(run, file, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    wanted = model.similarity_pairwise(first, second).tolist()
    assert [line["similarity"] for line in lines] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["scored-pairs", "binary-pairs", "labelled-texts"])
def test_a_run_measures_rows_of_another_form(run, tmp_path, form):
    file = tmp_path / "rows.jsonl"
    rows = Dataset.from_dict(ROWS[form])
    rows.to_json(file)
    named = {} if form != "labelled-texts" else {"text_column": "text"}
    found = evaluate_run(run, str(file), **named)["metrics"]
    data = read(DatasetDict({"train": rows, "test": rows}), config(), 0)
    assert TASK.best_metric(data)[0] in found
    assert "loss" not in found


@pytest.mark.slow
@pytest.mark.parametrize("form", ["triplets", "scored-pairs", "binary-pairs", "labelled-texts"])
def test_every_form_trains_with_a_schedule_and_rates(model_folder, tmp_path, form):
    changes = {"strategy": "gradual-unfreezing", "learning_rates": "layerwise-decay"}
    record = trained(model_folder, tmp_path / "run", form, args={"per_device_train_batch_size": 6}, **changes)
    assert len(record.phases) > 1
    before, after = load_file(f"{model_folder}/model.safetensors"), weights(tmp_path / "run")
    assert not torch.equal(before["encoder.layer.2.output.dense.weight"], after["encoder.layer.2.output.dense.weight"])


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_stopped(model_folder, tmp_path):
    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "save_total_limit": 9}
    changes = {"strategy": "gradual-unfreezing", "args": {**steps}}
    trained(model_folder, tmp_path / "whole", **changes)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "parts" / "checkpoint-2")
    shutil.copy(tmp_path / "whole" / "transfer_config.json", tmp_path / "parts")
    changes["args"]["resume_from_checkpoint"] = "true"
    record = trained(model_folder, tmp_path / "parts", **changes)
    assert record.arguments["steps"] > 2
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_best_model_is_loaded_at_the_end(model_folder, tmp_path):
    args = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    record = trained(model_folder, tmp_path / "run", args=args)
    assert record.metrics["ndcg_at_10"] > 0


def test_no_text_is_twice_in_a_batch(model_folder, tmp_path):
    rows = {"text": ["a", "b", "c", "d"] * 4, "text_pair": [f"x {n // 4}" for n in range(16)]}
    data = TaskData(
        DatasetDict({"train": Dataset.from_dict(rows)}), {}, options={"loss": "MultipleNegativesRankingLoss"}
    )
    model = sentence_transformers.SentenceTransformer(model_folder, device="cpu")
    trainer = build_trainer(
        TASK,
        data,
        model=model,
        args=arguments(tmp_path, per_device_train_batch_size=4, train_sampling_strategy="random"),
        train_dataset=data.splits["train"],
        processing_class=model.tokenizer,
    )
    sampler = trainer.get_train_dataloader().batch_sampler
    for batch in sampler:
        texts = [rows[column][row] for row in batch for column in rows]
        assert len(set(texts)) == len(texts)


def test_prompts_of_the_base_are_asked_for_as_the_demo_asks(model_folder):
    model = sentence_transformers.SentenceTransformer(model_folder, device="cpu")
    model.prompts = {"query": "find: ", "document": ""}
    asked = TaskData(DatasetDict({"train": Dataset.from_dict({"text": ["a"], "text_pair": ["b"]})}), {})
    alike = TaskData(DatasetDict({"train": Dataset.from_dict({"text": ["a"], "text_pair": ["b"], "label": [1]})}), {})
    assert column_prompts(model, asked) == {"text": "find: "}
    assert column_prompts(model, alike) == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": "lora"}, "Adapters on embedding models are not supported"),
        ({"base_precision": "bfloat16", "args": {"bf16": True}}, "`base_precision` is not supported"),
        ({"strategy": "feature-extraction"}, "needs a head group of its own"),
        ({"strategy": "lp-ft"}, "which sentence-similarity has not"),
        ({"class_names": ["a", "b"]}, "`class_names` is of no use to sentence-similarity"),
        ({"form": "labelled-texts"}, "must be an even number of at least 4, but got 9"),
        ({"args": {"label_smoothing_factor": 0.1}}, "labels of classes, which losses of embeddings have not"),
        ({"args": {"train_sampling_strategy": "group_by_length"}}, "would not be heeded"),
    ],
)
def test_what_does_not_go_together_is_refused(model_folder, tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        trained(model_folder, tmp_path / "run", **changes)


def test_the_prefix_cache_says_why_it_stays_off(model_folder, tmp_path):
    strategy = '{"name": "freeze-first", "k": 2}'
    record = trained(model_folder, tmp_path / "run", strategy=strategy, prefix_cache=str(tmp_path / "cache"))
    assert record.prefix_cache["reason"].startswith("an embedding model is called for each text of a row")


# Card, push and demo


@pytest.mark.hub
def test_a_served_search_answers_a_client(run, tmp_path, served, client):  # noqa: F811
    folder = render_space(TransferRecord.load(run), tmp_path, "me/model")
    asked = client(served([sys.executable, "app.py", "--model", str(run)], cwd=folder)[0])
    assert list(asked.view_api(return_format="dict")["named_endpoints"]) == ["/search"]
    found = asked.predict(text=GOOD[0], corpus="\n".join(BAD), api_name="/search")
    assert found["headers"] == ["rank", "similarity", "text"]
    assert sorted(row[2] for row in found["data"]) == sorted(BAD)
    with pytest.raises(Exception, match="There are no texts to search"):
        asked.predict("a", "", api_name="/search")


def test_the_card_tells_library_base_and_how_hard_the_search_was(run):
    record = TransferRecord.load(run)
    record.base_model_id = "me/base"
    record.dataset["shared_texts"] = {"validation": {"text": 2, "text_pair": 0}}
    card = render_card(record, model="me/model")
    assert "library_name: sentence-transformers" in card
    assert "pipeline_tag: sentence-similarity" in card
    assert "base_model: me/base" in card
    assert "searches among 10 texts" in card
    assert "shares 2 of its first texts with the training rows" in card
    assert "BM25, a search by shared words" in card


def test_the_code_on_the_card_runs(run, capsys):
    card = render_card(TransferRecord.load(run), model=str(run))
    exec(card.split("```python\n")[1].split("```")[0], {})  # noqa: S102
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TransferRecord.load(run).examples)


def test_what_is_pushed_loads_with_sentence_transformers(run, tmp_path):
    (run / "1_Pooling" / "notes.txt").write_text("mine")
    left = build_folder(TransferRecord.load(run), tmp_path, "me/model")
    (run / "1_Pooling" / "notes.txt").unlink()
    assert left == ["1_Pooling/notes.txt"]
    ours, theirs = (sentence_transformers.SentenceTransformer(str(f), device="cpu") for f in (run, tmp_path))
    assert np.array_equal(ours.encode(GOOD), theirs.encode(GOOD))


def test_only_module_folders_of_the_run_are_pushed(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.json").write_text("{}")
    modules = json.loads((copy / "modules.json").read_text())
    modules[1]["path"] = "../secret"
    (copy / "modules.json").write_text(json.dumps(modules))
    out = tmp_path / "out"
    out.mkdir()
    build_folder(TransferRecord.load(copy), out, "me/model")
    assert not list(out.rglob("secret*"))


@pytest.fixture
def demo(run, tmp_path, space):  # noqa: F811
    """The function behind the button, over the run."""
    folder = render_space(TransferRecord.load(run), tmp_path / "space", "me/model")
    settings = settings_of(space, folder)
    row = space.app.TASKS[settings.task, settings.form]
    loaded = space.loading.load(settings, str(run), row.auto_class)
    space.page.build(settings, row, loaded, str(run))
    assert "sentence-transformers==" in (folder / "requirements.txt").read_text()
    assert 'predict("a text", "one text\\nanother text", api_name="/search")' in (folder / "README.md").read_text()
    return settings, space.page.answering(settings, row, loaded)


def test_the_demo_finds_what_the_model_finds(demo, run):
    settings, answer = demo
    model = sentence_transformers.SentenceTransformer(str(run), device="cpu")
    scores = model.similarity(model.encode([GOOD[0]]), model.encode(BAD))[0]
    rows = answer(GOOD[0], "\n".join([*BAD, "", BAD[0], GOOD[0]]))
    assert [row[0] for row in rows] == [1, 2, 3, 4, 5]
    assert [row[2] for row in rows] == [BAD[place] for place in scores.argsort(descending=True, stable=True)]
    assert [row[1] for row in rows] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-4)
    assert settings.examples
    shown = settings.examples[0]
    assert len(answer(shown["text"], shown["corpus"])) == len(shown["corpus"].splitlines())


@pytest.mark.parametrize(
    ("query", "corpus", "said"),
    [
        ("", "a", "Query is empty"),
        ("a", "", "There are no texts to search"),
        ("a", " \n\t\n", "There are no texts to search"),
        ("a", ["b"], "must be a string with one a line, but got list"),
        ("a", "\n".join(map(str, range(501))), "There are 501 texts .* at most 500"),
        ("a", "b" * 200_001, "at most 500 of 200,000 are searched"),
        ("a", "a", "The only text to search is the query itself"),
    ],
)
def test_the_demo_says_what_it_cannot_search(demo, query, corpus, said):
    with pytest.raises(gr.Error, match=said):
        demo[1](query, corpus)


def test_a_file_fills_the_texts(space, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uploads = tmp_path / "gradio"
    uploads.mkdir()

    def sent(name, text):
        (uploads / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return {"path": str(uploads / name)}

    fill = space.search_input.fill
    assert fill(sent("a.txt", "one\n\ntwo\none\n")) == "one\ntwo"
    assert fill(sent("a.csv", 'id,text\n1,"one\nline"\n2,two\n')) == "one line\ntwo"
    assert fill(sent("b.csv", "one,1\ntwo,2\n")) == "one\ntwo"
    outside = tmp_path / "secret.txt"
    outside.write_text("secret")
    for wrong, said in (
        ({"path": str(outside)}, "Upload a file of texts"),
        ({"path": str(uploads / ".." / "secret.txt")}, "Upload a file of texts"),
        (None, "Upload a file of texts"),
        (sent("a.pdf", "x"), r"must end in \.txt or \.csv"),
        (sent("big.txt", "x" * 1_000_001), "larger than 1 MB"),
        (sent("bad.txt", b"\xff\xfe\xff"), "not UTF-8"),
        (sent("none.txt", "\n"), "There are no texts"),
    ):
        with pytest.raises(gr.Error, match=said):
            fill(wrong)
