"""The whole path on a tiny model: run folder, record, resume, refusals."""

import json
import os
import signal
from datetime import date
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    TrainerCallback,
    TrainingArguments,
)

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.recipes import (
    DEFAULT_ARGUMENTS,
    DEFAULT_STRATEGY,
    build_strategy,
    energy,
    evaluate_run,
    finetune,
    finetuning,
    sketch_model,
)
from hf_transfer_plugin.recipes.defaults import with_defaults
from hf_transfer_plugin.recipes.finetuning import prepare
from hf_transfer_plugin.record import TransferRecord
from tests.conftest import BAD, GOOD, TINY, reviews

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
GROUPS = ["embeddings", "layer.0", "layer.1", "layer.2", "head"]
RUN_FILES = {
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "transfer_record.json",
    "transfer_config.json",
    "README.md",
    "schedule.png",
}
LABELS = {
    "single": lambda i: ["bad", "good"][i % 2],
    "pairs": lambda i: ["bad", "good"][i % 2],
    "multi": lambda i: [["short"], ["good", "short"], [], ["good"]][i % 4],
    "regression": lambda i: i % 2 + i / 100,
}
METRICS = {
    "single": {"loss", "accuracy", "precision_macro", "recall_macro", "f1_macro"},
    "regression": {"loss", "mse", "mae", "r2", "pearson"},
}


@pytest.fixture(autouse=True)
def interrupts():
    """A run that failed must not keep Ctrl-C from the tests behind it."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def arguments(folder, **changes):
    defaults = {"max_steps": 4, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder), **{**defaults, **changes})


def save(folder, kind="single", **counts):
    """A folder of JSONL files of such labels, one for each split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        with open(folder / f"{split}.jsonl", "w") as file:
            for i, text in enumerate(reviews(count)["text"]):
                row = {"sentence1": text, "sentence2": (BAD if i % 2 else GOOD)[i % 5]}
                texts = row if kind == "pairs" else {"text": text}
                file.write(json.dumps({**texts, "label": LABELS[kind](i)}) + "\n")
    return str(folder)


def weights(folder):
    return load_file(os.path.join(folder, "model.safetensors"))


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder):
    """A finished run with splits for validation and test, and its data."""
    folder = tmp_path_factory.mktemp("finished")
    data = save(folder / "reviews", train=40, validation=8, test=16)
    args = arguments(folder / "run", max_steps=40, learning_rate=1e-2, logging_steps=1)
    config = TransferConfig(
        model=model_folder, dataset=data, strategy="gradual-unfreezing", learning_rates="layerwise-decay"
    )
    return finetune(config, args), data


# The run folder and its record


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["single", "pairs", "multi", "regression"])
def test_run_folder_of_every_kind_of_task(tmp_path, model_folder, kind):
    data = save(tmp_path / "data", kind, train=40, test=12)
    folder = tmp_path / "run"
    record = finetune(TransferConfig(model=model_folder, dataset=data, baselines=True), arguments(folder))
    assert not (folder / "training_args.bin").exists()

    assert {name for name in os.listdir(folder) if (folder / name).stat().st_size} >= RUN_FILES
    assert record.path == folder / "transfer_record.json"
    assert TransferRecord.load(folder) == record
    problem_type = {"multi": MULTI, "regression": REGRESSION}.get(kind, SINGLE)
    assert record.problem_type == problem_type
    assert record.metrics_split == "test"
    assert record.metrics.keys() == METRICS.get(kind, METRICS["single"])
    assert record.baselines.keys() == {"majority", "linear_probe"}
    for measured in record.baselines.values():
        assert measured.keys() == record.metrics.keys() - {"loss"} | {"seconds"}

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    batch = AutoTokenizer.from_pretrained(folder)("warm and funny", return_tensors="pt")
    assert model.config.problem_type == problem_type
    assert model(**batch).logits.shape == (1, 1 if kind == "regression" else 2)
    if kind == "regression":
        assert (record.class_names, record.per_class, record.confusion_matrix) == ([], {}, [])
    else:
        names = ["good", "short"] if kind == "multi" else ["bad", "good"]
        assert record.class_names == names == [model.config.id2label[i] for i in range(2)]
        assert list(record.per_class) == names
        assert sum(map(sum, record.confusion_matrix)) == (0 if kind == "multi" else 12)
    assert ("text_pair" in record.dataset["columns"]) == (kind == "pairs")


def test_record_holds_what_was_done(run, model_folder):
    record, _ = run
    assert (record.task, record.model_class) == ("text-classification", "BertForSequenceClassification")
    assert (record.base_model, record.base_model_id) == ("tiny-bert", None)
    assert record.dataset["name"] == "reviews"
    assert record.dataset["splits"] == {"train": 40, "validation": 8, "test": 16}
    assert record.dataset["columns"] == {"text": "text", "label": "label"}
    assert not record.dataset["validation_held_out"]
    assert record.arguments["steps"] == record.arguments["max_steps"] == 40
    assert record.arguments["learning_rate"] == 1e-2
    assert {"python", "torch", "transformers", "scikit-learn"} <= record.versions.keys()
    assert record.versions["torch"] == torch.__version__
    assert date.fromisoformat(record.created) <= date.today()
    assert record.hardware["device"] == "cpu"
    assert record.seconds.keys() == {"train", "train_cpu", "evaluate"}
    assert min(record.seconds.values()) > 0


def test_measured_defaults_are_used_without_a_word(run):
    record, _ = run
    strategy, rates = build_strategy(TransferConfig(model="m", dataset="d"))
    assert strategy.to_dict().items() >= DEFAULT_STRATEGY.items()
    assert rates is None
    assert record.arguments["per_device_train_batch_size"] == DEFAULT_ARGUMENTS["per_device_train_batch_size"]
    assert record.arguments["weight_decay"] == DEFAULT_ARGUMENTS["weight_decay"]


def test_record_holds_groups_and_phases(run):
    record, _ = run
    sizes = {group["name"]: group["parameters"] for group in record.groups}
    assert list(sizes) == GROUPS
    assert sum(sizes.values()) == sum(tensor.numel() for tensor in weights(record.path.parent).values())
    assert record.phases[0]["step"] == 0
    assert [phase["step"] for phase in record.phases] == sorted({phase["step"] for phase in record.phases})
    assert all(phase["groups"] == GROUPS[-len(phase["groups"]) :] for phase in record.phases)
    assert len(record.phases[0]["groups"]) < len(record.phases[-1]["groups"])
    for phase in record.phases:
        assert phase["trainable_parameters"] == sum(sizes[name] for name in phase["groups"])


def test_record_holds_the_rate_of_each_learning_group(run):
    record, _ = run
    assert [entry["step"] for entry in record.rates] == list(range(1, 41))
    for entry in record.rates:
        learning = [p["groups"] for p in record.phases if p["step"] < entry["step"]][-1]
        assert entry.keys() == {"step", *learning}
        for lower, upper in zip(learning, learning[1:], strict=False):
            assert entry[lower] == pytest.approx(record.learning_rates["decay"] * entry[upper])
    assert max(entry["head"] for entry in record.rates) == pytest.approx(1e-2)


def test_confusion_matrix_and_classes_add_up_to_the_test_rows(run):
    record, _ = run
    assert sum(map(sum, record.confusion_matrix)) == 16
    assert [sum(row) for row in record.confusion_matrix] == [v["support"] for v in record.per_class.values()]
    right = sum(record.confusion_matrix[i][i] for i in range(2))
    assert record.metrics["accuracy"] == pytest.approx(right / 16)


def test_neither_record_nor_card_nor_model_config_names_a_path_of_this_machine(run, tmp_path, model_folder):
    record, data = run
    folder = record.path.parent
    for name in ("transfer_record.json", "README.md", "config.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        for path in (data, str(folder), model_folder, str(Path.home()) + os.sep, str(Path(data).parent)):
            assert path not in text, name


def test_validation_is_the_measured_split_without_a_test_split(tmp_path, model_folder, reviews_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    os.rename(reviews_file, folder / "reviews.csv")
    monkeypatch.chdir(folder)
    config = TransferConfig(
        model=model_folder, dataset=".", base_model_id="google/bert_uncased", validation_fraction=0.2
    )
    record = finetune(config, arguments(tmp_path / "run"))
    assert record.metrics_split == "validation"
    assert record.dataset["splits"] == {"train": 32, "validation": 8}
    assert record.dataset["validation_held_out"]
    assert record.dataset["name"] == "data"
    assert (record.base_model, record.base_model_id) == ("google/bert_uncased", "google/bert_uncased")
    assert sum(map(sum, record.confusion_matrix)) == 8


def test_rows_in_memory_and_the_announced_plan(tmp_path, model_folder):
    heard = []
    splits = DatasetDict({"train": Dataset.from_dict(reviews(24)), "test": Dataset.from_dict(reviews(8))})
    config = TransferConfig(model=model_folder, dataset="films", validation_fraction=0, class_names=["bad", "good"])
    record = finetune(config, arguments(tmp_path / "run", max_steps=-1), splits=splits, announce=heard.append)
    assert len(heard) == 1
    assert "from step" in heard[0]
    assert "(full)" in heard[0]
    assert record.dataset["splits"] == {"train": 24, "test": 8}
    assert record.dataset["name"] == "films"
    assert record.class_names == ["bad", "good"]
    assert record.arguments["steps"] == 6  # 3 epochs of 24 rows, 16 at a time
    assert record.strategy.items() >= DEFAULT_STRATEGY.items()
    assert record.learning_rates is None
    assert record.arguments["learning_rate"] == DEFAULT_ARGUMENTS["learning_rate"]


def test_feature_extraction_leaves_the_body_as_it_was(tmp_path, model_folder, reviews_file):
    config = TransferConfig(model=model_folder, dataset=reviews_file, strategy="feature-extraction")
    record = finetune(config, arguments(tmp_path / "run", learning_rate=1e-2))
    before, after = weights(model_folder), weights(tmp_path / "run")
    for name, tensor in before.items():
        # The pooler belongs to the head.
        assert torch.equal(tensor, after[f"bert.{name}"]) != name.startswith("pooler"), name
    assert [phase["groups"] for phase in record.phases] == [["head"]]


def test_a_finished_run_is_a_model_to_start_from(tmp_path, run):
    record, _ = run
    data = tmp_path / "rows.csv"
    texts = reviews(30)["text"]
    Dataset.from_dict({"text": texts, "label": ["a", "b", "c"] * 10}).to_csv(str(data), index=False)
    config = TransferConfig(model=str(record.path.parent), dataset=str(data), strategy="full")
    again = finetune(config, arguments(tmp_path / "run", max_steps=1))
    assert again.class_names == ["a", "b", "c"]
    assert weights(tmp_path / "run")["classifier.weight"].shape[0] == 3
    assert again.learning_rates is None


# Defaults


def test_defaults_take_the_place_of_trainers_own(tmp_path):
    given = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    made = with_defaults(given)
    assert {name: getattr(made, name) for name in DEFAULT_ARGUMENTS} == DEFAULT_ARGUMENTS
    assert given.learning_rate != made.learning_rate
    assert (made.output_dir, made.use_cpu, made.seed) == (given.output_dir, True, given.seed)


def test_defaults_spare_what_differs_and_what_is_explicit(tmp_path):
    given = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=1e-3, num_train_epochs=7)
    made = with_defaults(given, explicit={"weight_decay", "save_strategy"})
    assert (made.learning_rate, made.num_train_epochs) == (1e-3, 7)
    assert (made.weight_decay, made.save_strategy) == (0.0, "steps")
    assert made.per_device_train_batch_size == DEFAULT_ARGUMENTS["per_device_train_batch_size"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}, "steps"),
        ({"eval_strategy": "epoch", "save_strategy": "epoch"}, "epoch"),
        ({"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best"}, "best"),
    ],
)
def test_defaults_save_when_they_evaluate_if_the_best_model_is_wanted(tmp_path, given, expected):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, load_best_model_at_end=True, **given)
    made = with_defaults(args)
    assert (made.save_strategy, made.eval_strategy) == (expected, given["eval_strategy"])


@pytest.mark.parametrize(
    ("strategy", "rates", "expected"),
    [
        ("full", None, ("full", None)),
        ("full", "layerwise-decay", ("full", "layerwise-decay")),
        ("bitfit", None, ("bitfit", None)),
        (None, "slanted-triangular", (DEFAULT_STRATEGY["name"], "slanted-triangular")),
        ('{"name": "freeze-first", "k": 2}', None, ("freeze-first", None)),
    ],
)
def test_strategy_and_rates_are_built_from_their_names(strategy, rates, expected):
    built, rate = build_strategy(TransferConfig(model="m", dataset="d", strategy=strategy, learning_rates=rates))
    assert (built.name, rate and rate.name) == expected


@pytest.mark.parametrize(
    ("flag", "spec", "message"),
    [
        ("strategy", "freeze-first", "`strategy` 'freeze-first' does not take the fields {}: missing .*'k'.*as JSON"),
        ("strategy", {"name": "full", "k": 2}, "`strategy` 'full' does not take the fields {'k': 2}: "),
        ("strategy", {"name": "lp-ft", "epochs": 2}, "`strategy` 'lp-ft' does not take .* 'epochs'"),
        ("strategy", {"name": "gradual-unfreezing", "until": 2}, "`until` must lie between 0 and 1"),
        ("learning_rates", {"name": "layerwise-decay", "rate": 2}, "`learning_rates` 'layerwise-decay' does not take"),
    ],
)
def test_wrong_fields_of_a_strategy_are_told(flag, spec, message):
    with pytest.raises(ValueError, match=message):
        build_strategy(TransferConfig(model="m", dataset="d", **{flag: spec}))


# The best model, and stopping early


def flipped(folder):
    """Training rows, and validation rows with the opposite labels: learning makes the evaluation worse."""
    rows = reviews(32)
    other = {"text": rows["text"][:16], "label": [1 - label for label in rows["label"][:16]]}
    folder.mkdir()
    Dataset.from_dict(rows).to_csv(str(folder / "train.csv"), index=False)
    Dataset.from_dict(other).to_csv(str(folder / "validation.csv"), index=False)
    return str(folder)


def test_early_stopping_ends_with_the_best_model(tmp_path, model_folder):
    config = TransferConfig(
        model=model_folder, dataset=flipped(tmp_path / "data"), strategy="full", early_stopping_patience=2
    )
    args = arguments(
        tmp_path / "run",
        max_steps=20,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        save_total_limit=20,
    )
    record = finetune(config, args)
    assert record.arguments["steps"] < 20
    assert record.arguments["load_best_model_at_end"]
    states = {path.name: json.loads((path / "trainer_state.json").read_text()) for path in tmp_path.glob("run/check*")}
    last = states[f"checkpoint-{record.arguments['steps']}"]
    assert last["best_global_step"] == record.arguments["steps"] - 2
    losses = {entry["step"]: entry["eval_loss"] for entry in last["log_history"] if "eval_loss" in entry}
    assert min(losses, key=losses.get) == last["best_global_step"]
    best, end = (
        weights(tmp_path / "run" / f"checkpoint-{step}")
        for step in (last["best_global_step"], record.arguments["steps"])
    )
    assert_same_weights(weights(tmp_path / "run"), best)
    assert not torch.equal(best["classifier.weight"], end["classifier.weight"])
    assert record.metrics["loss"] == pytest.approx(min(losses.values()), abs=1e-5)


def test_the_loss_decides_where_it_was_named(tmp_path, model_folder, reviews_file):
    config = TransferConfig(model=model_folder, dataset=reviews_file)
    for explicit, metric in (((), "accuracy"), (("metric_for_best_model",), "loss")):
        chosen = {"eval_strategy": "steps", "load_best_model_at_end": True, "metric_for_best_model": "loss"}
        args = arguments(tmp_path / metric, **chosen)
        prepared = prepare(config, args, explicit=explicit)
        assert (prepared.args.metric_for_best_model, prepared.args.greater_is_better) == (metric, metric != "loss")


def test_labels_that_every_or_no_row_has_are_trained_with_the_default(tmp_path, model_folder):
    rows = {"text": [f"film {i}" for i in range(16)], "label": [[1, 0, i % 2] for i in range(16)]}
    splits = DatasetDict({split: Dataset.from_dict(rows) for split in ("train", "test")})
    config = TransferConfig(model=model_folder, dataset="memory", validation_fraction=0, baselines=True)
    record = finetune(config, arguments(tmp_path / "run"), splits=splits)
    assert record.baselines["linear_probe"].keys() >= {"f1_macro"}


def test_words_such_as_none_are_labels_in_a_csv(tmp_path, model_folder):
    (tmp_path / "rows.csv").write_text("text,label\n" + "a film,None\nNA,NA\n" * 10)
    config = TransferConfig(model=model_folder, dataset=str(tmp_path / "rows.csv"))
    assert prepare(config, arguments(tmp_path / "run")).data.class_names == ("NA", "None")


def test_the_tasks_own_metric_decides_by_default(tmp_path, model_folder, reviews_file):
    args = arguments(
        tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True
    )
    finetune(TransferConfig(model=model_folder, dataset=reviews_file), args, explicit=("eval_strategy",))
    (file,) = tmp_path.glob("checkpoint-*/trainer_state.json")
    state = json.loads(file.read_text())
    measured = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry]
    assert state["best_metric"] == max(measured)


@pytest.mark.parametrize(
    ("config", "args", "message"),
    [
        ({"early_stopping_patience": 2}, {}, "`early_stopping_patience` stops at the best .*--load_best_model_at_end"),
        ({"validation_fraction": 0}, {}, "`validation_fraction` is 0 and there is no test split, so nothing could be"),
        ({"max_length": 41}, {}, "`max_length` must be at most 40 for .*tiny-bert', but got 41"),
        ({"strategy": {"name": "freeze-first", "k": 5}}, {}, "`k` must lie between 0 and 4 .*but got 5"),
        ({"strategy": {"name": "freeze-pattern", "patterns": "lora"}}, {}, r"Every pattern must match .*\['lora'\]"),
        ({"label_column": "stars"}, {}, "The label column .* expected 'stars', but the columns are label, text"),
    ],
)
def test_what_cannot_work_is_refused_before_training(tmp_path, model_folder, reviews_file, config, args, message):
    with pytest.raises(ValueError, match=message):
        finetune(TransferConfig(model=model_folder, dataset=reviews_file, **config), arguments(tmp_path / "r", **args))
    assert not (tmp_path / "r").exists()


def test_plateau_without_evaluation_is_refused(tmp_path, model_folder, reviews_file):
    config = TransferConfig(model=model_folder, dataset=reviews_file, strategy="plateau")
    with pytest.raises(ValueError, match="`plateau` follows the evaluations, but `eval_strategy` is no"):
        finetune(config, arguments(tmp_path / "run"), explicit=("eval_strategy",))


def test_evaluating_on_nothing_is_refused(tmp_path, model_folder):
    config = TransferConfig(model=model_folder, dataset=save(tmp_path / "d", train=8, test=4), validation_fraction=0)
    with pytest.raises(ValueError, match="`validation_fraction` is 0, so there is nothing to evaluate on before"):
        finetune(config, arguments(tmp_path / "run", eval_strategy="epoch"), explicit=("eval_strategy",))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/nowhere/model", "`model` names a folder that does not exist: '/nowhere/model'. Check the path."),
        ("nobody/nothing", "`model` must be a Hub id or the folder of .*, but 'nobody/nothing' could not be loaded"),
        (".", "`model` must be a Hub id or the folder of a pretrained model, but '.' could not be loaded"),
    ],
)
def test_model_that_cannot_be_loaded_is_told(tmp_path, reviews_file, monkeypatch, model, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        finetune(TransferConfig(model=model, dataset=reviews_file), arguments(tmp_path / "run"))


def test_sketch_of_a_model_without_its_weights(run, model_folder, tmp_path):
    record, _ = run
    (tmp_path / "config.json").write_text((Path(model_folder) / "config.json").read_text())
    assert type(sketch_model(str(tmp_path))).__name__ == "BertModel"
    assert type(sketch_model(str(tmp_path), "text-classification")).__name__ == "BertForSequenceClassification"
    assert type(sketch_model(str(record.path.parent))).__name__ == "BertForSequenceClassification"
    with pytest.raises(ValueError, match="`task` must be one of text-classification, .*, but got 'dancing'"):
        sketch_model(str(tmp_path), "dancing")


# Measuring a run later


def test_evaluating_the_same_rows_gives_the_runs_own_metrics(run, tmp_path):
    record, data = run
    copied = tmp_path / "elsewhere.jsonl"
    copied.write_text((Path(data) / "test.jsonl").read_text())
    before = sorted(os.listdir(record.path.parent))
    for found in (
        evaluate_run(record.path.parent, str(copied)),
        evaluate_run(str(record.path), data),
        evaluate_run(str(record.path.parent), data, split="test", batch_size=3),
    ):
        assert found["rows"] == 16
        assert found["metrics"] == pytest.approx(record.metrics, abs=1e-6)
        assert found["per_class"] == record.per_class
        assert found["confusion_matrix"] == record.confusion_matrix
    assert sorted(os.listdir(record.path.parent)) == before
    assert record.metrics["accuracy"] > 0.5  # so that the metrics say something about this model


def test_evaluating_reads_the_columns_and_the_length_of_training(tmp_path, model_folder):
    rows = reviews(40)
    columns = {"text": ["decoy"] * 40, "body": rows["text"], "label": ["x"] * 40, "verdict": rows["label"]}
    for split in ("train", "test"):
        Dataset.from_dict(columns).to_json(str(tmp_path / f"{split}.jsonl"))
    config = TransferConfig(
        model=model_folder,
        dataset=str(tmp_path),
        text_column="body",
        label_column="verdict",
        class_names=["bad", "good"],
        max_length=4,
        strategy="full",
    )
    record = finetune(config, arguments(tmp_path / "run", max_steps=20, learning_rate=1e-2))
    assert record.dataset["truncated"] > 0
    found = evaluate_run(tmp_path / "run", str(tmp_path / "test.jsonl"))
    assert found["metrics"] == pytest.approx(record.metrics, abs=1e-6)
    other = Dataset.from_dict({"text": rows["text"], "label": ["bad", "good"] * 20})
    other.to_csv(str(tmp_path / "other.csv"), index=False)
    found = evaluate_run(tmp_path / "run", str(tmp_path / "other.csv"))
    assert found["metrics"] == pytest.approx(record.metrics, abs=1e-6)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_another_split_can_be_measured(run, split):
    record, data = run
    found = evaluate_run(record.path.parent, data, split=split)
    assert (found["split"], found["rows"]) == (split, record.dataset["splits"][split])


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"text": ["a"], "label": ["great"]}, {}, "among the model's classes bad, good, but the data has 'great'"),
        ({"text": ["a"], "label": [2]}, {}, "among the model's classes bad, good, but the data has 2"),
        ({"text": ["a"], "stars": [2], "x": [1]}, {"label_column": "mark"}, "expected 'mark', but the columns are"),
        ({"words": ["a"], "label": ["bad"]}, {}, "The text column must be in the data"),
        ({"text": [""], "label": ["bad"]}, {}, r"1 of 1 in the train split do not \(row 0, counted from 0, is empty"),
        (
            {"text": ["a"], "label": ["bad"]},
            {"split": "dev"},
            "`split` must be one of the dataset's splits, .* no 'dev'",
        ),
    ],
)
def test_data_that_does_not_fit_the_run_is_refused(run, tmp_path, rows, options, message):
    record, _ = run
    Dataset.from_dict(rows).to_json(str(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match=message):
        evaluate_run(record.path.parent, str(tmp_path / "rows.jsonl"), **options)


@pytest.mark.parametrize(
    ("kind", "trained_on", "message"),
    [
        (
            "single",
            {"text": "sentence1", "text_pair": "sentence2"},
            "The run was trained on pairs of texts, so the data",
        ),
        ("pairs", {"text": "text"}, "The run was trained on single texts, .* read as .*'text_pair': 'sentence2'"),
    ],
)
def test_single_texts_are_no_pairs(run, tmp_path, monkeypatch, kind, trained_on, message):
    record, _ = run
    monkeypatch.setitem(record.dataset, "columns", {**trained_on, "label": "label"})
    monkeypatch.setattr(TransferRecord, "load", lambda path: record)
    with pytest.raises(ValueError, match=message):
        evaluate_run(record.path.parent, save(tmp_path / "data", kind, test=8))


def test_folder_that_is_no_run_is_refused(tmp_path, reviews_file):
    with pytest.raises(ValueError, match="Expected a run folder with a transfer_record.json, but .* has none"):
        evaluate_run(tmp_path, reviews_file)


# Ctrl-C, resume, and what may not be mixed


class Interrupt(TrainerCallback):
    """Presses Ctrl-C while a step runs."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interrupted_at(monkeypatch):
    """Makes the next run be interrupted at a step."""
    real = finetuning.make_trainer

    def at(step):
        def make(prepared, *callbacks):
            trainer = real(prepared, *callbacks)
            trainer.add_callback(Interrupt(step))
            return trainer

        monkeypatch.setattr(finetuning, "make_trainer", make)

    yield at
    monkeypatch.setattr(finetuning, "make_trainer", real)


RESUMED = {"max_steps": 8, "learning_rate": 5e-3, "logging_steps": 1}


def resumable(model_folder, data):
    return TransferConfig(
        model=model_folder,
        dataset=data,
        strategy={"name": "gradual-unfreezing", "until": 0.8},
        learning_rates={"name": "layerwise-decay", "decay": 0.8, "warmup_steps": 2},
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, model_folder):
    """A run of eight steps, three an epoch, that was never stopped; and its data."""
    folder = tmp_path_factory.mktemp("unbroken")
    data = save(folder / "data", train=40, validation=6)
    return finetune(resumable(model_folder, data), arguments(folder / "run", **RESUMED)), data


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 5, 6])  # amid the first and the second epoch, and at the end of the second
def test_resume_after_ctrl_c_ends_where_an_unbroken_run_ends(
    unbroken, tmp_path, model_folder, interrupted_at, monkeypatch, step
):
    whole, data = unbroken
    before = signal.getsignal(signal.SIGINT)
    interrupted_at(step)
    with pytest.raises(KeyboardInterrupt) as caught:
        finetune(resumable(model_folder, data), arguments(tmp_path / "run", **RESUMED))
    assert caught.value.args == (step,)
    assert signal.getsignal(signal.SIGINT) == before
    assert f"checkpoint-{step}" in os.listdir(tmp_path / "run")
    assert not {"model.safetensors", "transfer_record.json"} & set(os.listdir(tmp_path / "run"))
    stopped = weights(tmp_path / "run" / f"checkpoint-{step}")["classifier.weight"]

    monkeypatch.undo()
    args = arguments(tmp_path / "run", resume_from_checkpoint="true", **RESUMED)
    resumed = finetune(resumable(model_folder, data), args)
    assert_same_weights(weights(tmp_path / "run"), weights(whole.path.parent))
    assert (resumed.phases, resumed.rates, resumed.metrics) == (whole.phases, whole.rates, whole.metrics)
    assert resumed.confusion_matrix == whole.confusion_matrix
    assert not torch.equal(stopped, weights(tmp_path / "run")["classifier.weight"])


@pytest.mark.parametrize("held", ["transfer_record.json", "model.safetensors", "checkpoint-3"])
def test_folder_of_another_run_is_refused(tmp_path, model_folder, reviews_file, held):
    (tmp_path / "run" / held).mkdir(parents=True)
    with pytest.raises(
        ValueError, match=rf"`output_dir` must be a new .* holds another run \({held}\).*--resume_from"
    ):
        finetune(TransferConfig(model=model_folder, dataset=reviews_file), arguments(tmp_path / "run"))
    assert os.listdir(tmp_path / "run") == [held]


def test_resuming_without_a_checkpoint_is_refused(tmp_path, model_folder, reviews_file):
    args = arguments(tmp_path / "run", resume_from_checkpoint="true")
    with pytest.raises(ValueError, match="There is no checkpoint in '.*run' to resume from"):
        finetune(TransferConfig(model=model_folder, dataset=reviews_file), args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "full"}, "configured as it began, but `strategy` was 'bitfit' and is now 'full'"),
        ({"max_length": 8}, "configured as it began, but `max_length` was None and is now 8"),
    ],
)
def test_resuming_another_configuration_is_refused(tmp_path, model_folder, reviews_file, change, message):
    config = {"model": model_folder, "dataset": reviews_file, "strategy": "bitfit"}
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    began = TransferConfig(**config)
    (tmp_path / "run" / "transfer_config.json").write_text(json.dumps(began.to_dict()))
    with pytest.raises(ValueError, match=message):
        finetune(TransferConfig(**{**config, **change}), arguments(tmp_path / "run", resume_from_checkpoint="true"))


def test_rates_that_explode_stop_the_run_at_its_step(tmp_path, model_folder, reviews_file):
    config = TransferConfig(model=model_folder, dataset=reviews_file, strategy="full")
    args = arguments(tmp_path / "run", learning_rate=1e30, warmup_steps=0)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        RuntimeError, match=r"The loss became (nan|inf) at step 2, so the run was stopped. Lower `learn"
    ):
        finetune(config, args, explicit=("warmup_steps",))
    assert not {"model.safetensors", "transfer_record.json"} & set(os.listdir(tmp_path / "run"))
    assert signal.getsignal(signal.SIGINT) == before
    finetune(config, arguments(tmp_path / "run"))
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_label_that_no_loss_can_hold_stops_the_run_at_its_step(tmp_path, model_folder):
    rows = Dataset.from_dict({"text": ["a film"] * 16, "label": [0.5] * 15 + [1e30]})
    rows.to_json(str(tmp_path / "train.jsonl"))
    rows.select(range(4)).to_json(str(tmp_path / "test.jsonl"))
    config = TransferConfig(model=model_folder, dataset=str(tmp_path), validation_fraction=0)
    with pytest.raises(RuntimeError, match="The loss became inf at step 1, so the run was stopped.*bad rows"):
        finetune(config, arguments(tmp_path / "run"))


def test_accumulated_batches_give_the_gradient_of_one_large_batch(tmp_path, tokenizer, reviews_file):
    still = BertConfig(**TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    BertModel(still).save_pretrained(tmp_path / "still")
    tokenizer.save_pretrained(tmp_path / "still")
    ends = []
    for size, accumulation in ((8, 1), (4, 2)):
        folder = tmp_path / f"run-{size}"
        args = TrainingArguments(
            str(folder), max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
            optim="sgd", learning_rate=1.0, warmup_steps=0, max_grad_norm=0.0, lr_scheduler_type="constant",
            train_sampling_strategy="sequential", report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        config = TransferConfig(model=str(tmp_path / "still"), dataset=reviews_file, strategy="full")
        explicit = ("warmup_steps", "train_sampling_strategy", "per_device_train_batch_size")
        finetune(config, args, explicit=explicit)
        ends.append(load_file(folder / "model.safetensors"))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.slow
def test_energy_is_measured_where_codecarbon_is_installed(tmp_path, model_folder, reviews_file, monkeypatch):
    pytest.importorskip("codecarbon")
    monkeypatch.setenv("CODECARBON_COUNTRY_ISO_CODE", "FRA")
    config = TransferConfig(model=model_folder, dataset=reviews_file, strategy="full")
    record = finetune(config, arguments(tmp_path / "run", max_steps=2))
    assert record.energy["kwh"] > 0
    assert record.energy["kg_co2"] > 0
    assert "Energy by codecarbon:" in (tmp_path / "run" / "README.md").read_text()
    monkeypatch.delenv("CODECARBON_COUNTRY_ISO_CODE")
    record = finetune(config, arguments(tmp_path / "second", max_steps=2))
    assert set(record.energy) == {"kwh"}


def test_without_codecarbon_no_energy_is_told(monkeypatch):
    monkeypatch.setattr(energy, "find_spec", lambda name: None)
    found = {}
    with energy.measured_energy(found):
        pass
    assert found == {}
