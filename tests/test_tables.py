"""Rows of a table as text: how cells are written, which columns are read, what is refused, and boosting beside it."""

import json
import logging
import random
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import TrainingArguments

from benchmarks.tabular_sources import NAMES, divide
from benchmarks.tabular_tasks import COLUMNS, table
from hf_transfer_plugin import TransferConfig, finetune
from hf_transfer_plugin.config import ConfigError
from hf_transfer_plugin.hub import render_card
from hf_transfer_plugin.hub.folder import search
from hf_transfer_plugin.hub.table_rows import examples_of, inputs_of, table_words, verdict
from hf_transfer_plugin.recipes import evaluate_run, predict_run
from hf_transfer_plugin.recipes.boosting import _settings, boost, columns_of, difference_of
from hf_transfer_plugin.recipes.preparing import prepare, require_used
from hf_transfer_plugin.record import TransferRecord
from hf_transfer_plugin.tasks import TASKS, Outcome, TaskData, load_splits
from hf_transfer_plugin.tasks.cells import kind_of, read_value, row_text, tidy, written
from hf_transfer_plugin.tasks.labels import MULTI, REGRESSION, SINGLE

TASK = TASKS["text-classification"]


def config(**changes):
    values = {"model": "m", "dataset": "rows", "feature_columns": "all", "label_column": "late"}
    return TransferConfig(**{**values, **changes})


def customers(count=40):
    """Who pays late: those who owe much."""
    draw = random.Random(0)
    owed = [draw.choice([10.0, 900.5]) + i for i in range(count)]
    return {
        "customer_id": [f"C{i:04}" for i in range(count)],
        "amount_owed": owed,
        "job": [draw.choice(["cook", "judge", None]) for _ in range(count)],
        "member": [draw.random() < 0.5 for _ in range(count)],
        "country": ["here"] * count,
        "late": ["yes" if amount > 500 else "no" for amount in owed],
    }


def read(rows, **changes):
    found = {split: Dataset.from_dict(part) for split, part in rows.items()}
    return TASK.read(DatasetDict(found), config(**changes), 0)


# Cells


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, "0.3"),
        (3.90000009536743, "3.9"),
        (0.885245901639344, "0.885246"),
        (12.0, "12"),
        (12345678, "12345678"),
        (1234567.891, "1234567.89"),
        (-0.0, "0"),
        (0.000012345678, "0.0000123457"),
        (1e-12, "1e-12"),
        (2.5e20, "2.5e+20"),
        (-41.5, "-41.5"),
        (True, "yes"),
        (False, "no"),
        (None, "unknown"),
        ("a judge", "a judge"),
    ],
)
def test_values_are_written_without_noise(value, text):
    assert written(value) == text
    assert written(tidy(value)) == text


def test_a_row_is_one_line_in_the_order_of_its_columns():
    row = {"loan_amount": 1200.0, "self_employed": True, "job": None, "a  b": "x"}
    assert row_text(row) == "loan amount: 1200; self employed: yes; job: unknown; a b: x"


@pytest.mark.parametrize(
    ("kind", "value", "found"),
    [
        ("number", "3.50", 3.5),
        ("number", "NA", None),
        ("number", " ", None),
        ("number", float("nan"), None),
        ("number", float("inf"), None),
        ("number", True, 1),
        ("number", Decimal("2.50"), 2.5),
        ("number", 2**63 - 1, 2**63 - 1),
        ("number", 2**63, 2.0**63),
        ("boolean", "Yes", True),
        ("boolean", 0, False),
        ("boolean", 1.0, True),
        ("boolean", "", None),
        ("date", date(2024, 3, 1), "2024-03-01"),
        ("date", datetime(2024, 3, 1), "2024-03-01"),
        ("date", datetime(2024, 3, 1, 14, 30), "2024-03-01 14:30:00"),
        ("date", "2024-03-01", "2024-03-01"),
        ("date", " 2024-03-01T00:00:00 ", "2024-03-01"),
        ("date", "2024-03-01T14:30", "2024-03-01 14:30:00"),
        ("date", "NA", None),
        ("category", "NA", "NA"),
        ("category", "  two\nlines ", "two lines"),
        ("category", 3, "3"),
        ("category", 3.0, "3"),
        ("category", "", None),
        ("text", True, "yes"),
    ],
)
def test_values_are_read_by_the_kind_of_their_column(kind, value, found):
    assert read_value(value, kind) == found


@pytest.mark.parametrize(
    ("values", "feature", "kind"),
    [
        ([1, 2], Value("int8"), "number"),
        ([1.5, None], Value("float32"), "number"),
        (["1.5", "NA", "-2"], Value("string"), "number"),
        (["01", "NA", "02"], Value("string"), "category"),
        (["1", "2"], Value("string"), "category"),
        (["True", "false", None], Value("string"), "boolean"),
        ([True, None], Value("bool"), "boolean"),
        ([date(2024, 3, 1)], Value("date32"), "date"),
        ([datetime(2024, 3, 1)], Value("timestamp[s]"), "date"),
        (["2024-03-01", None, "NA", "2024-03-02T10:00:00Z"], Value("string"), "date"),
        (["2024-03-01", "2024-13-01"], Value("string"), "category"),
        (["2024-03-01", "soon"], Value("string"), "category"),
        (["a cook", "a judge"], Value("string"), "category"),
        (["the parcel came late and the box was open again"], Value("string"), "text"),
        ([0, 1], ClassLabel(names=["a", "b"]), "category"),
        ([None, None], Value("null"), "category"),
        ([b"x"], Value("binary"), None),
        ([{"a": 1}], {"a": Value("int8")}, None),
    ],
)
def test_kinds_of_columns(values, feature, kind):
    assert kind_of(Dataset.from_dict({"c": values}, Features({"c": feature})), "c") == kind


# Columns


def test_all_takes_neither_ids_nor_constants_nor_nested_columns_and_says_so(caplog):
    rows = customers() | {"orders": [[1, 2]] * 40, "Unnamed: 0": list(range(40)), "number": list(range(5, 45))}
    with caplog.at_level(logging.WARNING):
        data = read({"train": rows})
    assert data.options == {"feature_columns": {"amount_owed": "number", "job": "category", "member": "boolean"}}
    assert data.facts["table"]["left_out"] == {
        "customer_id": "looks like an id",
        "country": "constant",
        "orders": "nested",
        "Unnamed: 0": "looks like an id",
        "number": "looks like an id",
    }
    assert "Columns that are not read: customer_id (looks like an id), country (constant)" in caplog.text
    assert data.facts["table"]["choices"] == {"job": ["cook", "judge"]}
    assert data.columns == {"label": "late"}
    assert data.splits["train"][0]["text"].startswith("amount owed: ")


@pytest.mark.parametrize(
    ("name", "left"),
    [(n, True) for n in ("ID", "Id", "CUSTOMER_ID", "loan_Id", "customerID", "Row-Index", "UUID")]
    + [(n, False) for n in ("paid", "Covid", "RAID", "ideal")],
)
def test_ids_are_known_by_their_names_in_any_case(name, left):
    numbers = random.Random(0).sample(range(1000), 40)
    left_out = read({"train": customers() | {name: numbers}}).facts["table"]["left_out"]
    assert (left_out.get(name) == "looks like an id") == left


def test_numbers_that_64_bits_hold_without_a_sign_are_read(tmp_path):
    lines = [f"{2**63 + 1 if i % 2 else 5},{'no' if i % 4 < 2 else 'yes'}" for i in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["hash_value,late", *lines]))
    given = config(dataset=str(tmp_path / "rows.csv"))
    assert set(TASK.read(load_splits(given), given, 0).splits["train"]["text"]) == {
        "hash value: 5",
        "hash value: 9.22337e+18",
    }


def test_long_texts_stand_last_so_that_truncating_cuts_nothing_else():
    rows = {"complaint": [f"the parcel number {i} came late and the box was open" for i in range(40)], **customers()}
    assert list(read({"train": rows}).options["feature_columns"])[-1] == "complaint"
    assert next(iter(read({"train": rows}, feature_columns=["complaint", "job"]).options["feature_columns"])) == (
        "complaint"
    )


def test_named_columns_keep_their_order_and_the_others_are_told(caplog):
    data = read({"train": customers()}, feature_columns=["member", "country", "customer_id"])
    assert list(data.options["feature_columns"]) == ["member", "country", "customer_id"]
    assert data.facts["table"]["left_out"] == {"amount_owed": "not named", "job": "not named"}
    assert data.facts["table"]["constant"] == ["country"]
    assert "same value in every training row: country" in caplog.text
    assert "not named" not in caplog.text


def test_kinds_may_be_given():
    rows = customers() | {"postcode": [1000 + i % 3 for i in range(40)]}
    data = read({"train": rows}, feature_columns={"postcode": "category"})
    assert data.facts["table"]["choices"] == {"postcode": ["1000", "1001", "1002"]}


def test_classes_of_the_data_are_written_by_name():
    features = Features({"job": ClassLabel(names=["cook", "judge"]), "late": Value("string")})
    rows = Dataset.from_dict({"job": [0, 1] * 20, "late": ["no", "yes", "yes", "no"] * 10}, features)
    found = TASK.read(DatasetDict({"train": rows, "validation": rows}), config(), 0)
    assert found.splits["train"]["text"][:2] == ["job: cook", "job: judge"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["amount", "job"], "must name columns of the data, but 'amount' is not among customer_id"),
        (["job", "late"], "must not name the label, but names 'late'"),
        (["job", "orders"], "one value in each cell, but 'orders' is nested"),
    ],
)
def test_columns_that_cannot_be_read_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read({"train": customers() | {"orders": [[1, 2]] * 40}}, feature_columns=given)


def test_a_table_without_columns_is_refused():
    rows = {name: customers()[name] for name in ("customer_id", "country", "late")}
    with pytest.raises(ValueError, match=r"none is left: customer_id \(looks like an id\), country \(constant\)"):
        read({"train": rows})
    with pytest.raises(ValueError, match="none is left: no other"):
        read({"train": {"late": rows["late"]}})


def test_without_text_the_way_to_tables_is_told():
    with pytest.raises(ValueError, match="Rows of a table become texts with `--feature_columns all`"):
        read({"train": customers()}, feature_columns=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_column": "job"}, "`text_column` names a text, but `feature_columns` makes one"),
        ({"text_pair_column": "job"}, "`text_pair_column` names a text"),
        ({"feature_columns": []}, "must be `all`, or different names"),
        ({"feature_columns": "job"}, "must be `all`, or different names"),
        ({"feature_columns": ["job", "job"]}, "must be `all`, or different names"),
        ({"feature_columns": [1]}, "must be `all`, or different names"),
        ({"feature_columns": {"job": "word"}}, "must name kinds among number, boolean, date, category, text"),
    ],
)
def test_configurations_that_cannot_be_meant_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_other_tasks_have_no_use_for_a_table():
    other = TransferConfig(model="m", dataset="rows", task="fill-mask", feature_columns=["all"])
    with pytest.raises(ConfigError, match="`feature_columns` is of no use to fill-mask"):
        require_used(other, TASKS["fill-mask"])


# Leaks


@pytest.mark.parametrize(
    ("column", "leaks"),
    [
        (lambda i, late: "r" if late else "g", True),
        (lambda i, late: f"{'r' if late else 'g'}{i % 4}", True),
        (lambda i, late: f"reason {i}" if late else None, True),
        (lambda i, late: "r" if late or i % 10 == 0 else "g", False),
        (lambda i, late: f"{'r' if late else 'g'}{i}", False),
        (lambda i, late: i % 2, False),
    ],
    ids=["twin", "code", "missing", "one differs", "all differ", "other"],
)
def test_a_column_that_tells_the_label_is_told(column, leaks, caplog):
    rows = customers()
    rows["why"] = [column(i, late == "yes") for i, late in enumerate(rows["late"])]
    data = read({"train": rows}, feature_columns=["why", "job"])
    assert data.facts["table"]["leaks"] == (["why"] if leaks else [])
    assert ("The column 'why' tells the label in every training row" in caplog.text) == leaks


def test_numbers_that_follow_the_label_are_told():
    rows = {
        "paid": [i * 2.0 + 1 for i in range(40)],
        "age": [i % 7 for i in range(40)],
        "late": [i * 1.0 for i in range(40)],
    }
    data = read({"train": rows}, feature_columns=["paid", "age"])
    assert data.problem_type == REGRESSION
    assert data.facts["table"]["leaks"] == ["paid"]


def test_rare_labels_tell_nothing_of_leaks():
    rows = {"kind": ["a"] * 36 + ["b"] * 4, "age": list(range(40)), "late": ["no"] * 36 + ["yes"] * 4}
    assert read({"train": rows}, feature_columns=["kind", "age"]).facts["table"]["leaks"] == []


# A trained model's table


KINDS = {"amount_owed": "number", "job": "category", "member": "boolean"}


def again(rows, labelled=False, **changes):
    given = config(feature_columns=KINDS, class_names=["no", "yes"], **changes)
    return TASK.read_again(DatasetDict({"test": Dataset.from_dict(rows)}), given, labelled)


def test_rows_are_written_as_in_training_whatever_their_file_holds():
    trained = read({"train": customers()})
    first = trained.splits["train"][0]["row"]
    late = {
        "member": [int(first["member"])],
        "extra": [1],
        "job": [first["job"]],
        "amount_owed": [first["amount_owed"]],
    }
    assert again(late).splits["test"][0]["text"] == trained.splits["train"][0]["text"]
    whole = {"member": ["yes"], "job": [None], "amount_owed": ["12.0"]}
    assert again(whole).splits["test"][0]["text"] == "amount owed: 12; job: unknown; member: yes"


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="lacks 'job', 'member'; it has amount_owed"):
        again({"amount_owed": [1.0]})
    with pytest.raises(ValueError, match="'amount_owed' holds a number in each row.* but row 1 of the test split"):
        again({"amount_owed": ["1", "much"], "job": ["x", "y"], "member": [True, True]})
    with pytest.raises(ValueError, match=r"'since' holds a date \(such as 2024-03-01\).* has '1.3.24'"):
        TASK.read_again(
            DatasetDict({"test": Dataset.from_dict({"since": ["1.3.24"]})}),
            config(feature_columns={"since": "date"}, class_names=["no", "yes"]),
            False,
        )
    with pytest.raises(ValueError, match="'member' holds a boolean"):
        again({"amount_owed": [1], "job": ["x"], "member": ["maybe"]})
    with pytest.raises(ValueError, match="must hold rows, but is empty"):
        again({name: [] for name in KINDS})
    with pytest.raises(ValueError, match="must be those of its record, column -> kind"):
        TASK.read_again(DatasetDict({"test": Dataset.from_dict(customers())}), config(), False)


# Boosting


def table_data(rows, kinds, labels, problem_type=SINGLE, names=("no", "yes"), asked=None):
    cells = [dict(zip(kinds, values, strict=True)) for values in zip(*rows, strict=True)]
    train = Dataset.from_dict({"row": cells, "label": labels})
    splits = DatasetDict({"train": train, "test": train if asked is None else Dataset.from_dict({"row": asked})})
    return TaskData(splits, {}, problem_type, tuple(names), options={"feature_columns": kinds})


def test_boosting_learns_what_text_hides():
    """The label is whether exactly one of two columns is large: neither column tells it alone."""
    draw = np.random.default_rng(0)
    first, second = draw.random(400), draw.random(400)
    labels = ((first > 0.5) != (second > 0.5)).astype(int).tolist()
    asked = [{"a": 0.9, "b": 0.1}, {"a": 0.9, "b": 0.9}, {"a": 0.1, "b": 0.1}, {"a": 0.1, "b": 0.9}]
    data = table_data([first.tolist(), second.tolist()], {"a": "number", "b": "number"}, labels, asked=asked)
    logits = boost(data, "test", 0)
    assert logits.argmax(-1).tolist() == [1, 0, 0, 1]
    assert np.exp(logits).sum(-1) == pytest.approx(1)
    assert np.array_equal(logits, boost(data, "test", 0))


def test_boosting_takes_new_categories_and_missing_values():
    kinds = {"job": "category", "age": "number", "none": "category"}
    asked = [
        {"job": "cook", "age": 30, "none": "a"},
        {"job": "pilot", "age": 30, "none": None},
        {"job": None, "age": None, "none": None},
    ]
    data = table_data([["cook", "judge"] * 30, [30, None] * 30, [None] * 60], kinds, [0, 1] * 30, asked=asked)
    logits = boost(data, "test", 0)
    assert np.isfinite(logits).all()
    assert logits[0].argmax() == 0


def test_boosting_goes_on_without_columns_that_no_training_row_fills():
    kinds = {"age": "number", "since": "date", "debt": "number"}
    asked = [{"age": 30, "since": "2024-03-01", "debt": debt} for debt in (1.0, 38.0)]
    column = [float(i) for i in range(40)]
    data = table_data([[None] * 40, [None] * 40, column], kinds, [int(v > 20) for v in column], asked=asked)
    assert boost(data, "test", 0).argmax(-1).tolist() == [0, 1]


def test_dates_are_the_same_in_every_kind_of_file(tmp_path):
    rows = [
        {"since": f"2024-03-{1 + i % 28:02}T{i % 3:02}:00:00", "late": "no" if i % 2 else "yes"} for i in range(40)
    ]
    Dataset.from_list(rows).to_csv(str(tmp_path / "rows.csv"), index=False)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = [
        TASK.read(load_splits(config(dataset=str(tmp_path / f"rows.{kind}"))), config(), 0)
        for kind in ("csv", "jsonl")
    ]
    assert found[0].options == found[1].options == {"feature_columns": {"since": "date"}}
    assert found[0].splits["train"]["text"] == found[1].splits["train"]["text"]
    assert {"since: 2024-03-01", "since: 2024-03-02 01:00:00"} <= set(found[0].splits["train"]["text"])


def test_columns_become_numbers_by_hand():
    train = [
        {"job": "cook", "day": "1970-01-03", "member": True, "note": "late again"},
        {"job": None, "day": None, "member": None, "note": None},
        {"job": "judge", "day": "1970-01-01 12:00:00", "member": False, "note": "late"},
    ]
    asked = [{"job": "pilot", "day": "soon", "member": True, "note": "new"}]
    kinds = {"job": "category", "day": "date", "member": "boolean", "note": "text"}
    known, new, categories = columns_of(train, asked, kinds, 0)
    assert known[:, 0].tolist()[0::2] == [0, 1]
    assert np.isnan(known[1, :3]).all()
    assert known[[0, 2], 1].tolist() == [2, 0.5]
    assert known[[0, 2], 2].tolist() == [1, 0]
    assert np.isnan(new[0, :2]).all()
    assert (known[0, 3:] > 0).all()  # "again" and "late"
    assert known[1, 3:].tolist() == new[0, 3:].tolist() == [0, 0]
    assert categories.tolist() == [True, False, False, False, False]


def test_long_texts_become_few_numbers_and_none_where_there_are_no_words():
    words = [{"note": f"word{i} word{i + 1} word{i + 2}"} for i in range(40)]
    assert columns_of(words, words[:3], {"note": "text"}, 0)[1].shape == (3, 16)
    nothing = [{"note": None}] * 3
    assert columns_of(nothing, nothing, {"note": "text"}, 0)[0].tolist() == [[0]] * 3


def test_boosting_answers_every_kind_of_label():
    kinds, column = {"a": "number"}, [float(i) for i in range(60)]
    number = table_data([column], kinds, [value * 2 for value in column], REGRESSION, ())
    found = boost(number, "test", 0)
    assert found.shape == (60, 1)
    assert np.corrcoef(found[:, 0], column)[0, 1] > 0.95
    several = [[float(value > 30), float(value > 10), 0.0] for value in column]
    found = boost(table_data([column], kinds, several, MULTI, ("a", "b", "c")), "test", 0)
    assert (found[:, :2] > 0).tolist() == [[value > 30, value > 10] for value in column]
    assert (found[:, 2] < 0).all()  # no training row has it
    three = [int(value > 20) * 2 for value in column]
    found = boost(table_data([column], kinds, three, names=("a", "b", "c")), "test", 0)
    assert set(found.argmax(-1).tolist()) == {0, 2}


def test_few_rows_have_small_leaves_and_hold_nothing_out():
    assert _settings(64, 30, 0) == {"early_stopping": False, "max_iter": 100, "min_samples_leaf": 3, "random_state": 0}
    assert _settings(1500, 100, 7) == {
        "early_stopping": True,
        "max_iter": 500,
        "min_samples_leaf": 20,
        "random_state": 7,
    }
    assert not _settings(1500, 9, 0)["early_stopping"]


@pytest.mark.parametrize(
    ("problem_type", "ours", "theirs", "labels", "difference"),
    [
        (SINGLE, [[2, 0], [0, 1], [3, 0]], [[0, 1], [0, 1], [0, 1]], [0, 1, 1], 0.0),  # 2/3 and 2/3
        (SINGLE, [[2, 0], [0, 1], [0, 1]], [[0, 1], [0, 1], [1, 0]], [0, 1, 1], 2 / 3),
        (REGRESSION, [[1.0], [2.0], [3.0]], [[2.0], [2.0], [1.0]], [1.0, 2.0, 5.0], (4 - 17) / 3),
        (MULTI, [[1, -1], [1, 1]], [[-1, -1], [1, 1]], [[1, 0], [1, 1]], 1 - (2 / 3 + 1) / 2),
    ],
)
def test_difference_by_hand(problem_type, ours, theirs, labels, difference):
    data = TaskData(DatasetDict(), {}, problem_type, ("a", "b"))
    found = difference_of(data, np.array(ours), np.array(theirs), np.array(labels))
    assert found(np.arange(len(labels))) == pytest.approx(difference)


# The whole path


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder):
    work = tmp_path_factory.mktemp("table")
    for split, rows in {"train": (0, 32), "test": (32, 60)}.items():
        Dataset.from_dict(customers(60)).select(range(*rows)).to_csv(str(work / "data" / f"{split}.csv"), index=False)
    given = config(model=model_folder, dataset=str(work / "data"), feature_columns=["all"], baselines=True)
    args = arguments(work / "run")
    return finetune(given, args), work, given


def arguments(folder):
    return TrainingArguments(
        str(folder),
        max_steps=3,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )


def test_the_record_has_columns_boosting_and_their_difference(run):
    record = run[0]
    assert record.options["feature_columns"] == KINDS
    assert set(record.baselines) == {"majority", "linear_probe", "gradient_boosting"}
    assert record.baselines["gradient_boosting"]["accuracy"] == 1.0  # whoever owes much pays late
    assert record.baselines["gradient_boosting"]["roc_auc"] == 1.0
    assert set(record.metrics) >= {"accuracy", "roc_auc", "f1_macro"}
    low, high = record.intervals["accuracy_minus_gradient_boosting"]
    assert low <= record.metrics["accuracy"] - 1 <= high <= 0
    assert record.examples[0]["row"].keys() == KINDS.keys()
    assert TransferRecord.load(run[1] / "run").baselines.keys() == record.baselines.keys()


def test_evaluate_and_predict_write_rows_as_training_did(run, tmp_path):
    record, work, _ = run
    again = evaluate_run(work / "run", str(work / "data"))
    for name, value in record.metrics.items():
        assert again["metrics"][name] == pytest.approx(value, rel=1e-4), name
    rows = Dataset.from_dict(customers(60)).select(range(32, 60))
    turned = rows.select_columns(["member", "job", "amount_owed"])
    turned.to_json(str(tmp_path / "asked.jsonl"))
    rows.to_csv(str(tmp_path / "asked.csv"), index=False)
    for kind in ("jsonl", "csv"):
        assert predict_run(work / "run", tmp_path / f"asked.{kind}", tmp_path / f"{kind}.jsonl") == 28
    found = [
        [json.loads(line)["probabilities"] for line in (tmp_path / f"{kind}.jsonl").read_text().splitlines()]
        for kind in ("jsonl", "csv")
    ]
    assert found[0] == found[1]
    turned.remove_columns("job").to_json(str(tmp_path / "less.jsonl"))
    with pytest.raises(ValueError, match="lacks 'job'"):
        predict_run(work / "run", tmp_path / "less.jsonl", tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="`text_column` names a text"):
        evaluate_run(work / "run", str(work / "data"), text_column="job")


def test_a_run_that_goes_on_reads_the_same_rows(run, tmp_path):
    record, _, given = run
    assert prepare(given, arguments(tmp_path)).encoded["train"]._fingerprint == record.dataset["fingerprint"]
    kept = json.loads((run[1] / "run" / "transfer_config.json").read_text())
    assert kept["feature_columns"] == ["all"]
    assert TransferConfig.from_dict(kept) == given


@pytest.mark.slow
def test_frozen_layers_are_stored_for_rows_of_a_table_too(run, tmp_path):
    _, _, given = run
    frozen = replace(given, baselines=False, strategy="feature-extraction", prefix_cache=str(tmp_path / "cache"))
    args = replace(arguments(tmp_path / "run"), max_steps=-1, num_train_epochs=2)
    record = finetune(frozen, args)
    assert record.prefix_cache["hits"] > 0
    assert "gradient_boosting" not in record.baselines


def test_the_card_tells_columns_and_who_won(run):
    text = render_card(run[0])
    assert "On accuracy gradient boosting won: 1.000 of gradient boosting on the same columns and rows against" in text
    assert "amount\\_owed (number), job (category), member (boolean)." in text
    assert "Columns that are not read: customer\\_id (looks like an id), country (constant)." in text
    assert "feature_columns" not in text.split("```")[2]
    assert "It reads the columns as words" in text


def test_values_of_the_data_are_no_paths_of_this_machine(tmp_path):
    facts = {
        "table": {"choices": {"folder": ["/home/me/x", "/home/me/y"]}, "left_out": {}, "constant": [], "leaks": []}
    }
    TransferRecord("text-classification", "m", dataset={"name": "d", **facts}).save(tmp_path)
    search(tmp_path)


# What the card says


def told(mine, other, interval=None, problem_type=SINGLE, metric="accuracy"):
    return verdict(
        TransferRecord(
            "text-classification",
            "m",
            problem_type=problem_type,
            metrics={metric: mine},
            baselines={"gradient_boosting": {metric: other, "seconds": 0.5}},
            intervals={f"{metric}_minus_gradient_boosting": interval} if interval else {},
            seconds={"train": 60.0},
            options={"feature_columns": {"a": "number"}},
        )
    )


def test_verdict_names_the_winner_and_whether_the_rows_settle_it():
    found = told(0.9, 0.8, [0.05, 0.15])
    assert found.startswith("On accuracy this model won: 0.900 of this model against 0.800 of gradient boosting")
    assert "+0.050 to +0.150 (this model minus boosting, paired bootstrap over the rows), leaves zero out" in found
    assert found.endswith("Boosting took 0.5 s, training this model 60.0 s.")
    assert "gradient boosting won" in told(0.8, 0.9, [-0.15, -0.05])
    assert "holds zero, so these rows do not settle" in told(0.8, 0.81, [-0.02, 0.01])
    assert "neither won" in told(0.8, 0.8)
    assert "interval" not in told(0.8, 0.9)
    assert "this model won" in told(1.0, 2.0, problem_type=REGRESSION, metric="mse")
    assert verdict(TransferRecord("text-classification", "m", problem_type=SINGLE, metrics={"accuracy": 1.0})) == ""


def test_verdict_says_where_the_ranking_of_the_rows_differs():
    def ranked(mine, other, accuracy=0.9):
        return verdict(
            TransferRecord(
                "text-classification",
                "m",
                problem_type=SINGLE,
                metrics={"accuracy": accuracy, "roc_auc": mine},
                baselines={"gradient_boosting": {"accuracy": 0.8, "roc_auc": other}},
            )
        )

    assert "the area under the ROC curve, gradient boosting is ahead: 0.600 of this model, 0.700" in ranked(0.6, 0.7)
    assert "ahead" not in ranked(0.7, 0.6)
    assert "ahead" not in ranked(0.7, 0.7)
    assert "gradient boosting is ahead: 0.600 of this model, 0.700" in ranked(0.6, 0.7, accuracy=0.8)
    assert "this model is ahead: 0.700 of this model, 0.600" in ranked(0.7, 0.6, accuracy=0.8)


def test_card_warns_of_leaks_and_constants():
    table = {"left_out": {}, "constant": ["country"], "leaks": ["why"], "choices": {}}
    made = TransferRecord(
        "text-classification", "m", options={"feature_columns": {"why": "text"}}, dataset={"table": table}
    )
    found = " ".join(table_words(made))
    assert "Warning: the column why tells the label in every training row" in found
    assert "the same value in every training row: country." in found


def test_fields_of_the_form_have_names_that_a_client_can_send():
    columns = {"self": "boolean", "class": "category", "loan amount": "number", "loan_amount": "number", "1st": "date"}
    row = dict(zip(columns, (True, None, 2.5, None, None), strict=True))
    made = TransferRecord(
        "text-classification",
        "m",
        options={"feature_columns": columns},
        examples=[{"row": row, "label": "no"}],
    )
    assert inputs_of(made) == ["self_", "class_", "loan_amount", "loan_amount_", "column_1st"]
    assert list(examples_of(made)[0].values()) == ["yes", "unknown", 2.5, None, None, "no"]


def test_ranking_is_measured_where_there_are_two_classes():
    rows = Dataset.from_dict({"label": [0, 1, 1, 0]})
    logits = np.array([[2.0, 0], [0, 1], [1, 0], [1, 0]])
    data = TaskData(DatasetDict(), {}, SINGLE, ("no", "yes"), options={"feature_columns": {"a": "number"}})
    assert TASK.metrics(data, Outcome(rows, rows, logits))["roc_auc"] == pytest.approx((2 + 1.5) / 4)
    assert "roc_auc" not in TASK.metrics(replace(data, options={}), Outcome(rows, rows, logits))
    same = rows.select([1, 2])
    assert "roc_auc" not in TASK.metrics(data, Outcome(same, same, logits[1:3]))


# The committed runs


def test_real_rows_are_divided_alike_by_label_and_each_once():
    rows = [{"number": str(i), "denied": "yes" if i % 8 == 0 else "no"} for i in range(80)]
    splits = divide(rows)
    assert {split: len(part) for split, part in splits.items()} == {"train": 52, "validation": 8, "test": 20}
    assert sorted(int(row["number"]) for part in splits.values() for row in part) == list(range(80))
    assert [sum(row["denied"] == "yes" for row in part) for part in splits.values()] == [7, 1, 2]
    assert splits == divide(rows)
    assert set(NAMES.values()) - set(COLUMNS) == {"denied", "black"}


def test_table_of_few_rows_has_the_mean_and_the_ends():
    def line(seed, accuracy):
        models = {
            name: {"accuracy": 0.5, "seconds": 2.0} for name in ("majority", "linear_probe", "gradient_boosting")
        }
        ours = {"accuracy": accuracy, "roc_auc": 0.75}
        seconds = {"train_cpu": 30.0 + seed}
        return {"rows": 64, "splits": {"train": 64}, "models": {**models, "this_model": ours}, "seconds": seconds}

    found = table([line(0, 0.8), line(1, 0.9)]).splitlines()
    assert len(found) == 6
    assert found[-1] == (
        "| 64 | MiniLM, fine-tuned on text | 0.750 (0.750 to 0.750) | 0.850 (0.800 to 0.900) |  | 30.5 |"
    )
    assert found[2] == "| 64 | commonest answer |  | 0.500 (0.500 to 0.500) |  | 2.0 |"
