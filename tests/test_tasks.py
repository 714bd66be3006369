"""From files and folders to checked rows, and every bad input told in one sentence."""

import json
from collections import Counter

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from sklearn import metrics as sklearn_metrics

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.metrics import calibration, macro_f1
from hf_transfer_plugin.tasks import TASKS, Outcome, TaskData, load_splits
from hf_transfer_plugin.tasks.classification import PAIR_COLUMNS
from hf_transfer_plugin.tasks.columns import LABEL_COLUMNS, TEXT_COLUMNS
from hf_transfer_plugin.tasks.splitting import warn_of_lost
from tests.conftest import reviews

TASK = TASKS["text-classification"]
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
ROWS = 10


def config(dataset="data", **changes):
    return TransferConfig(model="m", dataset=str(dataset), **changes)


def labelled(labels, feature=None, **columns):
    values = {"text": [f"text {i}" for i in range(len(labels))], **columns, "label": labels}
    rows = Dataset.from_dict(values)
    return rows.cast_column("label", feature) if feature is not None else rows


def read(train, seed=0, validation=None, test=None, **changes):
    given = {"train": train, "validation": validation, "test": test}
    splits = DatasetDict({split: rows for split, rows in given.items() if rows is not None})
    return TASK.read(splits, config(**changes), seed)


def in_order(labels, feature=None, **changes):
    """Reads without a held-out part, so that the rows keep their order."""
    return read(labelled(labels, feature), validation_fraction=0, **changes)


def write(path, rows):
    """Writes a dictionary of columns in the format of the file's name."""
    data = Dataset.from_dict(rows)
    {
        ".csv": lambda: data.to_csv(str(path), index=False),
        ".tsv": lambda: data.to_csv(str(path), index=False, sep="\t"),
        ".jsonl": lambda: data.to_json(str(path)),
        ".json": lambda: path.write_text(json.dumps([dict(row) for row in data])),
        ".parquet": lambda: data.to_parquet(str(path)),
    }[path.suffix]()
    return path


def save(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# Loading


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_one_file_is_the_training_split(tmp_path, suffix):
    rows = {"text": ["tab\tand, comma", 'a "quoted" one', "line"], "label": [1, 0, 1]}
    found = load_splits(config(write(tmp_path / f"rows.{suffix}", rows)))
    assert list(found) == ["train"]
    assert found["train"].to_dict() == rows


def test_suffix_may_be_written_large(tmp_path):
    write(tmp_path / "rows.csv", reviews(4)).rename(tmp_path / "ROWS.CSV")
    assert len(load_splits(config(tmp_path / "ROWS.CSV"))["train"]) == 4


def test_folder_of_files_named_after_their_splits(tmp_path):
    write(tmp_path / "train.csv", reviews(6))
    write(tmp_path / "test.jsonl", reviews(4))
    write(tmp_path / "dev.csv", reviews(2))
    (tmp_path / "notes.txt").write_text("not data")
    found = load_splits(config(tmp_path))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 6, "validation": 2, "test": 4}


@pytest.mark.parametrize("alias", ["valid", "val", "dev", "eval", "Dev", "validation"])
def test_validation_has_other_names(tmp_path, alias):
    write(tmp_path / "train.csv", reviews(6))
    write(tmp_path / f"{alias}.csv", reviews(2))
    assert sorted(load_splits(config(tmp_path))) == ["train", "validation"]


def test_splits_may_be_named_by_the_user(tmp_path):
    for name, count in (("first", 6), ("second", 4), ("third", 2)):
        write(tmp_path / f"{name}.csv", reviews(count))
    named = config(tmp_path, train_split="third", validation_split="second", test_split="first")
    found = load_splits(named)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 2, "validation": 4, "test": 6}


def test_a_single_file_in_a_folder_trains_whatever_its_name(tmp_path):
    write(tmp_path / "whatever.csv", reviews(6))
    assert len(load_splits(config(tmp_path))["train"]) == 6


@pytest.mark.parametrize("whole", [True, False])
def test_saved_dataset_folder(tmp_path, whole):
    rows = Dataset.from_dict(reviews(6))
    data = DatasetDict({"train": rows, "test": rows.select(range(2))}) if whole else rows
    data.save_to_disk(str(tmp_path / "saved"))
    found = load_splits(config(tmp_path / "saved"))
    assert {s: len(r) for s, r in found.items()} == ({"train": 6, "test": 2} if whole else {"train": 6})


def test_missing_file_is_told(tmp_path):
    with pytest.raises(ValueError, match="`dataset` names a file or folder that does not exist: .*nowhere.csv"):
        load_splits(config(tmp_path / "nowhere.csv"))
    with pytest.raises(ValueError, match="does not exist: 'reviews.csv'. Check the path"):
        load_splits(config("reviews.csv"))
    with pytest.raises(ValueError, match="does not exist"):
        load_splits(config("./reviews"))


def test_unreachable_hub_dataset_is_told():
    with pytest.raises(ValueError, match="must be a Hub id, a file or a folder, but 'nobody/nothing' could not be"):
        load_splits(config("nobody/nothing"))


@pytest.mark.parametrize("content", ["", "\n\n", "text,label\n"])
def test_file_without_rows_is_told(tmp_path, content):
    file = tmp_path / "rows.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"`dataset` must hold rows, but '.*rows.csv' (is empty|has none)\."):
        load_splits(config(file))


def test_split_file_without_rows_is_told(tmp_path):
    write(tmp_path / "train.csv", reviews(6))
    (tmp_path / "test.csv").write_text("text,label\n")
    with pytest.raises(ValueError, match="`dataset` must hold rows, but '.*test.csv' has none"):
        load_splits(config(tmp_path))


def test_unknown_format_is_told(tmp_path):
    (tmp_path / "rows.xlsx").write_text("x")
    with pytest.raises(ValueError, match="`dataset` must be one of .csv, .*, but got '.*rows.xlsx'"):
        load_splits(config(tmp_path / "rows.xlsx"))


def test_folder_without_data_is_told(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    told = "`dataset` is a folder without .csv, .* files, images or sounds: .*Name the files after"
    with pytest.raises(ValueError, match=told):
        load_splits(config(tmp_path))


def test_folder_without_a_training_split_lists_what_it_has(tmp_path):
    write(tmp_path / "one.csv", reviews(6))
    write(tmp_path / "test.csv", reviews(6))
    with pytest.raises(
        ValueError, match="`train_split` must be one of the dataset's splits, one, test, but got 'train'"
    ):
        load_splits(config(tmp_path))
    assert sorted(load_splits(config(tmp_path), for_training=False)) == ["test"]


@pytest.mark.parametrize("second", ["train.jsonl", "validation.csv"])
def test_two_files_for_one_split_are_told(tmp_path, second):
    for name in ("train.csv", "dev.csv", second):
        write(tmp_path / name, reviews(6))
    with pytest.raises(ValueError, match="`dataset` must have one file for each split, but .* and .* are both"):
        load_splits(config(tmp_path))


def test_unreadable_file_is_told_by_name(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", \n{"text')
    with pytest.raises(ValueError, match="'.*rows.jsonl' could not be read as json: "):
        load_splits(config(tmp_path / "rows.jsonl"))


# Columns


@pytest.mark.parametrize("name", [n for n in TEXT_COLUMNS if n not in PAIR_COLUMNS])
def test_text_column_is_guessed(name):
    rows = Dataset.from_dict({"id": list(range(8)), name: ["a"] * 8, "label": [0, 1] * 4})
    assert read(rows).columns == {"text": name, "label": "label"}


@pytest.mark.parametrize("name", LABEL_COLUMNS)
def test_label_column_is_guessed(name):
    rows = Dataset.from_dict({"id": list(range(8)), "text": ["a"] * 8, name: [0, 1] * 4})
    assert read(rows).columns == {"text": "text", "label": name}


@pytest.mark.parametrize(("first", "second"), [(a, b) for a, b in PAIR_COLUMNS.items() if a in TEXT_COLUMNS])
def test_pairs_are_guessed(first, second):
    rows = labelled([0, 1] * ROWS, **{second: ["b"] * 2 * ROWS}).rename_column("text", first)
    found = read(rows)
    assert found.columns == {"text": first, "text_pair": second, "label": "label"}
    assert set(found.splits["train"]["text_pair"]) == {"b"}


def test_named_columns_win_over_guesses():
    rows = labelled([0, 1] * ROWS, body=["b"] * 2 * ROWS, other=["o"] * 2 * ROWS, y=["q", "p"] * ROWS)
    found = read(rows, text_column="body", text_pair_column="other", label_column="y", validation_fraction=0)
    assert found.columns == {"text": "body", "text_pair": "other", "label": "y"}
    assert found.splits["train"][0] == {"text": "b", "text_pair": "o", "label": 1}


def test_a_named_text_column_is_no_pair_by_guess():
    rows = labelled([0, 1] * ROWS, sentence2=["b"] * 2 * ROWS).rename_column("text", "sentence1")
    assert "text_pair" not in read(rows, text_column="sentence1").columns


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text_column": "body"},
            "The text column must be in the data: expected 'body', but the columns are label, text. .*--text_column",
        ),
        ({"label_column": "y"}, "The label column .* expected 'y', but the columns are label, text. .*--label_column"),
        ({"text_pair_column": "b"}, "The text_pair column .* expected 'b', but .* label, text. .*--text_pair_column"),
    ],
)
def test_missing_column_lists_the_columns(changes, message):
    with pytest.raises(ValueError, match=message):
        read(labelled([0, 1] * ROWS), **changes)


def test_column_that_cannot_be_guessed_lists_the_columns():
    with pytest.raises(ValueError, match="expected one of text, sentence, .*, but the columns are label, words"):
        read(labelled([0, 1] * ROWS).rename_column("text", "words"))


def test_split_with_other_columns_is_told():
    other = labelled([0, 1]).rename_column("text", "words")
    with pytest.raises(
        ValueError, match="The test split must have the same columns .* lacks 'text'; it has label, words"
    ):
        read(labelled([0, 1] * ROWS), test=other)


# Kinds of labels


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([0, 1, 1, 0], ("0", "1"), [0, 1, 1, 0]),
        ([5, 3, 5, 3], ("3", "5"), [1, 0, 1, 0]),
        (["good", "bad", "good", "bad"], ("bad", "good"), [1, 0, 1, 0]),
        (["10", "9", "10", "9"], ("10", "9"), [0, 1, 0, 1]),
        ([True, False, True, False], ("False", "True"), [1, 0, 1, 0]),
    ],
)
def test_classes_are_numbered_in_sorted_order(labels, names, numbers):
    found = in_order(labels)
    assert (found.problem_type, found.class_names, found.outputs) == (SINGLE, names, 2)
    assert list(found.splits["train"]["label"]) == numbers


def test_class_label_keeps_its_own_order_and_names():
    feature = ClassLabel(names=["zero", "alpha", "never"])
    found = in_order([0, 1, 1, 0], feature)
    assert found.class_names == ("zero", "alpha", "never")
    assert list(found.splits["train"]["label"]) == [0, 1, 1, 0]
    assert in_order([0, 1, 1, 0], feature, class_names=["a", "b", "c"]).class_names == ("a", "b", "c")


def test_class_names_give_words_their_numbers():
    found = in_order(["lo", "hi", "lo", "hi"], class_names=["lo", "hi", "top"])
    assert found.class_names == ("lo", "hi", "top")
    assert list(found.splits["train"]["label"]) == [0, 1, 0, 1]


def test_class_names_name_numbers():
    found = in_order([1, 0, 1, 0], class_names=["negative", "positive"])
    assert found.class_names == ("negative", "positive")
    assert list(found.splits["train"]["label"]) == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("labels", "feature", "names", "message"),
    [
        (["good", "bad"] * 4, None, ["good", "awful"], r"must be among `class_names` .* the data also has \['bad'\]"),
        ([1, 2] * 4, None, ["a", "b"], r"2 `class_names` need labels 0 to 1, but the data has \[1, 2\]"),
        ([0, 2] * 4, ClassLabel(num_classes=3), ["a", "b"], "`class_names` must name the 3 classes .* names 2"),
        ([[0, 1], [1, 1]] * 4, None, ["a", "b", "c"], "`class_names` must name the 2 labels of a row, but names 3"),
        ([["x"], ["y"]] * 4, None, ["x", "z"], r"must be among `class_names` .* also has \['y'\]"),
    ],
)
def test_wrong_class_names_are_told(labels, feature, names, message):
    with pytest.raises(ValueError, match=message):
        read(labelled(labels, feature), class_names=names)


def test_fractions_are_a_regression():
    found = in_order([0.5, 2.0, 1.0, 0.0])
    assert (found.problem_type, found.class_names, found.outputs) == (REGRESSION, (), 1)
    assert list(found.splits["train"]["label"]) == [0.5, 2.0, 1.0, 0.0]


def test_whole_numbers_are_a_regression_when_the_user_says_so():
    found = in_order([3, 1, 2, 3], problem_type=REGRESSION)
    assert found.problem_type == REGRESSION
    assert list(found.splits["train"]["label"]) == [3.0, 1.0, 2.0, 3.0]


def test_fractions_are_classes_when_the_user_says_so():
    found = in_order([0.5, 1.0, 0.5, 1.0], problem_type=SINGLE)
    assert (found.problem_type, found.class_names) == (SINGLE, ("0.5", "1.0"))


def test_lists_of_names_are_several_classes():
    found = in_order([["b", "a"], [], ["c"], ["a"]])
    assert (found.problem_type, found.class_names) == (MULTI, ("a", "b", "c"))
    assert list(found.splits["train"]["label"]) == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]


def test_lists_of_numbers_are_several_classes():
    found = in_order([[2, 0], [1], []], class_names=["a", "b", "c"])
    assert found.class_names == ("a", "b", "c")
    assert list(found.splits["train"]["label"]) == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_rows_of_zeros_and_ones_are_kept():
    found = in_order([[0, 1, 1], [1, 0, 0], [0, 0, 0]], class_names=["a", "b", "c"])
    assert (found.problem_type, found.class_names) == (MULTI, ("a", "b", "c"))
    assert list(found.splits["train"]["label"]) == [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_lists_of_class_labels_are_several_classes():
    feature = datasets.Sequence(ClassLabel(names=["a", "b", "c"]))
    found = in_order([[0, 1], [1, 0], [2, 1]], feature)
    assert (found.problem_type, found.class_names) == (MULTI, ("a", "b", "c"))
    assert list(found.splits["train"]["label"]) == [[1, 1, 0], [1, 1, 0], [0, 1, 1]]


# Bad labels


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        ([1] * 8, {}, "The train split must hold at least two classes in 'label', but every row is 1"),
        (["same"] * 8, {}, "must hold at least two classes in 'label', but every row is 'same'"),
        ([0, 1, None, 1], {}, "Every row must have a label, but row 2 of the train split has none in 'label'"),
        (["a", None, "b"], {}, "Every row must have a label, but row 1 of the train split"),
        ([0.5, 1.5, float("nan")], {}, "Every row must have a label, but row 2 of the train split"),
        ([["a"], None, ["b"]], {}, "Every row must have a label, but row 1 of the train split"),
        ([["a"], ["b", None]], {}, "Every row must have a label, but row 1 of the train split"),
        (["1", "0", "good"] * 4, {}, r"some are numbers \('1'\) and some are words \('good'\). Write them all as"),
        (list(range(20)), {}, "must be classes, but 20 of 20 rows differ. Name another `--label_column`, or set"),
        ([f"id-{i}" for i in range(20)], {}, "must be classes, but 20 of 20 rows differ"),
        (["a", "b"] * 4, {"problem_type": REGRESSION}, "Regression needs finite numbers in 'label', but got 'a'"),
        ([0.5, float("inf")] * 4, {}, "Regression needs finite numbers in 'label', but got inf in the train split"),
        ([True, False] * 4, {"problem_type": REGRESSION}, "Regression needs finite numbers in 'label', but got True"),
        ([["a"], ["b"]] * 4, {"problem_type": SINGLE}, "Lists of labels are a multi_label_classification, but `pro"),
        ([["a"], ["b"]] * 4, {"problem_type": REGRESSION}, "Lists of labels are a multi_label_classification"),
        ([0, 1] * 4, {"problem_type": MULTI}, "must be lists of labels, but row 0 of the train split is 0"),
        (["a", "b"] * 4, {"problem_type": MULTI}, "must be lists of labels, but row 0 of the train split is 'a'"),
        ([["a"], ["a"]] * 4, {}, r"The train split must hold at least two labels in 'label', but has only a\."),
        ([[], []] * 4, {}, "The train split must hold at least two labels in 'label', but has only none"),
    ],
)
def test_unusable_labels_are_told(labels, changes, message):
    with pytest.raises(ValueError, match=message):
        read(labelled(labels), **changes)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"text": "a", "label": 1}, {"text": "b", "label": "good"}], "must be of one type, but are int, str"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": True}], "must be of one type, but are bool, int"),
    ],
)
def test_mixed_labels_of_a_json_file_are_told(tmp_path, lines, message):
    splits = load_splits(config(save(tmp_path / "rows.jsonl", lines * 5)))
    with pytest.raises(ValueError, match=message):
        TASK.read(splits, config(), 0)


def test_mixed_labels_of_a_csv_file_are_told(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\na,1\nb,0\nc,good\nd,1\n")
    with pytest.raises(ValueError, match=r"must be of one type, but some are numbers \('1'\) and some are words"):
        TASK.read(load_splits(config(file)), config(), 0)


def test_empty_cells_of_a_csv_file_are_told(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\na,1\nb,0\nc,\nd,1\n")
    with pytest.raises(ValueError, match="Every row must have a label, but row 2 of the train split has none"):
        TASK.read(load_splits(config(file)), config(), 0)
    file.write_text("text,label\na,1\nb,0\n,0\n,1\n")
    with pytest.raises(ValueError, match=r"2 of 4 in the train split do not \(row 2, counted from 0, is empty"):
        TASK.read(load_splits(config(file)), config(), 0)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["a", "b"], ["a", "c"], r"Every label of the test split must occur in train, but 'c' .*\(train has a, b\)"),
        ([0, 1], [0, -1], "Every label of the test split must occur in train, but -1 does not"),
        ([0, 1], ["0", "1"], "Every label of the test split must occur in train, but '0' does not"),
        ([["a"], ["b"]], [["a", "c"]], "Every label of the test split must occur in train, but 'c' does not"),
        ([[0, 1], [1, 0]], [[0, 2]], "Every row of the test split must be 2 zeros and ones as in train, but row 0 is"),
        ([[0, 1], [1, 0]], [[0, 1], [0, 1, 1]], "Every row of the test split must be 2 zeros and ones .* row 1 is"),
        ([0.5, 1.5], ["good", "bad"], "Regression needs finite numbers in 'label', but got 'good'"),
        ([0.5, 1.5], [0.5, None], "Every row must have a label, but row 1 of the test split has none"),
        ([["a"], ["b"]], ["a", "b"], "must be lists of labels, but row 0 of the test split is 'a'"),
        (
            [0, 1],
            [[0], [1]],
            r"must be one label a row, but row 0 of the test split is \[0\]",
        ),
    ],
)
def test_labels_of_another_split_that_do_not_fit_are_told(train, test, message):
    with pytest.raises(ValueError, match=message):
        read(labelled(train * ROWS), test=labelled(test))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_empty_split_is_told(split):
    rows = labelled([0, 1] * ROWS)
    with pytest.raises(ValueError, match=f"The {split} split must hold rows, but is empty"):
        read(rows, **{split: rows.select([])})


def test_empty_training_split_is_told():
    with pytest.raises(ValueError, match="The train split must hold rows, but is empty"):
        read(labelled([0, 1]).select([]))


def test_unlabelled_test_split_is_left_out_with_a_word(caplog):
    feature = ClassLabel(names=["a", "b"])
    found = read(labelled([0, 1] * ROWS, feature), test=labelled([-1, -1, -1], feature))
    assert sorted(found.splits) == ["train", "validation"]
    assert "The test split has no labels (all are -1) and is left out." in caplog.text


# Bad texts


@pytest.mark.parametrize(
    ("bad", "what"),
    [(None, "empty or missing"), ("", "empty or missing"), (" \n\t", "empty or missing")],
)
def test_bad_texts_are_counted_and_the_first_is_named(bad, what):
    texts = ["fine"] * 3 + [bad] + ["fine"] * 3 + [bad]
    rows = Dataset.from_dict({"text": texts, "label": [0, 1] * 4})
    with pytest.raises(ValueError, match=rf"of 'text' .* 2 of 8 .* do not \(row 3, counted from 0, is {what}\)"):
        read(rows)


@pytest.mark.parametrize("column", [[1, 2, 3, 4], [0.5, float("nan"), 1.0, 2.0]])
def test_column_of_numbers_is_no_text(column):
    with pytest.raises(ValueError, match=r"4 of 4 .* \(row 0, counted from 0, is a number\).*--text_column"):
        read(Dataset.from_dict({"text": column, "label": [0, 1, 0, 1]}))


def test_bad_texts_of_pairs_and_other_splits_are_told():
    train = labelled([0, 1] * 4, sentence2=["b"] * 8).rename_column("text", "sentence1")
    test = labelled([0, 1], sentence2=["b", " "]).rename_column("text", "sentence1")
    with pytest.raises(ValueError, match=r"of 'sentence2' must hold text, but 1 of 2 in the test split .*row 1"):
        read(train, test=test)


# Held-out and drawn rows


@pytest.mark.parametrize("seed", range(4))
def test_held_out_validation_is_stratified_and_disjoint(seed):
    labels = [0] * 32 + [1] * 8
    found = read(labelled(labels), seed=seed, validation_fraction=0.25)
    texts = {split: list(rows["text"]) for split, rows in found.splits.items()}
    assert found.held_out
    assert Counter(found.splits["validation"]["label"]) == {0: 8, 1: 2}
    assert not set(texts["train"]) & set(texts["validation"])
    assert sorted(texts["train"] + texts["validation"]) == sorted(f"text {i}" for i in range(40))
    for rows in found.splits.values():
        assert [labels[int(text.split()[1])] for text in rows["text"]] == list(rows["label"])


def test_held_out_rows_follow_the_seed():
    rows = labelled([0, 1] * 20)
    first, again, other = (list(read(rows, seed=seed).splits["validation"]["text"]) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_given_validation_split_is_kept_whole():
    found = read(labelled([0, 1] * ROWS), validation=labelled([1, 0, 1]))
    assert not found.held_out
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 2 * ROWS, "validation": 3}


def test_nothing_is_held_out_with_a_fraction_of_zero():
    found = read(labelled([0, 1] * ROWS), validation_fraction=0)
    assert (list(found.splits), found.held_out) == (["train"], False)


@pytest.mark.parametrize("seed", range(4))
def test_drawn_training_rows_are_stratified(seed):
    found = read(labelled([0] * 32 + [1] * 8), seed=seed, max_train_samples=10, validation_fraction=0)
    assert Counter(found.splits["train"]["label"]) == {0: 8, 1: 2}
    assert len(set(found.splits["train"]["text"])) == 10


def test_drawn_rows_come_from_what_is_not_held_out():
    found = read(labelled([0, 1] * 20), max_train_samples=8)
    assert len(found.splits["train"]) == 8
    assert not set(found.splits["train"]["text"]) & set(found.splits["validation"]["text"])


def test_more_samples_than_rows_keep_all_rows():
    assert len(in_order([0, 1] * ROWS, max_train_samples=1000).splits["train"]) == 2 * ROWS


def test_class_of_one_row_and_regression_are_held_out_at_random():
    assert len(read(labelled([0, 1] * ROWS + [2])).splits["validation"]) == 3
    assert len(read(labelled([float(i) for i in range(20)])).splits["validation"]) == 2


def test_too_few_rows_to_hold_any_out_are_told():
    with pytest.raises(ValueError, match="1 rows are too few to draw 0.1 of them; give a validation split"):
        read(labelled([0.5]))


# Encoding


def test_only_longer_rows_are_truncated_and_counted(tokenizer):
    texts = ["a fine warm film", "no fun", "a bore to watch at all", "cold"]
    rows = Dataset.from_dict({"text": texts, "label": [0, 1, 0, 1]})
    data = TaskData(DatasetDict({"train": rows, "test": rows.select([2, 3])}), {}, SINGLE, ("a", "b"))
    for length, count in ((8, 0), (7, 2), (6, 2), (5, 3), (4, 3), (3, 4)):  # 6, 4, 8, 3 tokens, and the last two again
        encoded, truncated = TASK.encode(data, tokenizer, length, None)
        assert truncated == count
        assert max(len(ids) for ids in encoded["train"]["input_ids"]) <= length
    assert list(encoded["test"]["labels"]) == [0, 1]
    assert sorted(encoded["train"].column_names) == ["attention_mask", "input_ids", "labels", "length"]
    assert encoded["train"]["length"] == [len(ids) for ids in encoded["train"]["input_ids"]]


def test_pairs_are_encoded_together_and_counted_once(tokenizer):
    rows = Dataset.from_dict({
        "text": ["a fine warm film"] * 2,
        "text_pair": ["no fun at all", "cold"],
        "label": [0, 1],
    })
    data = TaskData(DatasetDict({"train": rows}), {}, SINGLE, ("a", "b"))
    encoded, truncated = TASK.encode(data, tokenizer, 8, None)
    assert truncated == 1
    assert list(encoded["train"]["input_ids"][1]) == tokenizer("a fine warm film", "cold")["input_ids"]


def test_batches_are_padded(tokenizer):
    data = in_order([0, 1])
    encoded, _ = TASK.encode(data, tokenizer, 8, None)
    longer = {
        **encoded["train"][0],
        "input_ids": [2, 5, 6, 7, 3],
        "attention_mask": [1] * 5,
    }
    batch = TASK.collator(tokenizer, data)([longer, encoded["train"][1]])
    assert batch["input_ids"].shape == (2, 5)
    assert batch["input_ids"][1, -1] == tokenizer.pad_token_id
    assert batch["labels"].tolist() == [0, 1]


# Measuring


def task_data(problem_type, names=(), train=(), test=()):
    splits = {
        s: Dataset.from_dict({"label": list(labels)}) for s, labels in (("train", train), ("test", test)) if labels
    }
    return TaskData(DatasetDict(splits), {}, problem_type, names)


def outcome(predictions, labels, texts=None):
    """What a model gave for rows of such labels."""
    texts = texts or [f"row {i}" for i in range(len(labels))]
    rows = Dataset.from_dict({"text": texts, "label": np.asarray(labels).tolist()})
    return Outcome(rows, rows, predictions)


LOGITS = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [5.0, 1.0, 0.0], [0.0, 2.0, 1.0]])  # answers 0, 1, 0, 1
TRUE = np.array([0, 1, 1, 1])


def test_metrics_of_classes_by_hand():
    data = task_data(SINGLE, ("a", "b", "c"))
    found = TASK.metrics(data, outcome(LOGITS, TRUE))
    # Class a: precision 1/2, recall 1, F1 2/3. Class b: 1, 2/3, 4/5. Class c does not occur.
    assert found == pytest.approx({
        "accuracy": 3 / 4,
        "precision_macro": (1 / 2 + 1) / 2,
        "recall_macro": (1 + 2 / 3) / 2,
        "f1_macro": (2 / 3 + 4 / 5) / 2,
    })


def test_metrics_take_the_first_of_several_outputs():
    data = task_data(SINGLE, ("a", "b", "c"))
    found = TASK.metrics(data, outcome((LOGITS, np.zeros((4, 9))), TRUE))
    assert found["accuracy"] == 3 / 4


def test_report_of_classes_by_hand():
    found = TASK.report(task_data(SINGLE, ("a", "b", "c")), outcome(LOGITS, TRUE), 4)
    assert found["confusion_matrix"] == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert found["per_class"]["a"] == pytest.approx({"precision": 1 / 2, "recall": 1.0, "f1": 2 / 3, "support": 1})
    assert found["per_class"]["b"] == pytest.approx({"precision": 1.0, "recall": 2 / 3, "f1": 4 / 5, "support": 3})
    assert found["per_class"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_metrics_and_report_of_several_classes_by_hand():
    data = task_data(MULTI, ("a", "b"))
    logits = np.array([[1.0, -1.0], [2.0, 0.5], [-1.0, -2.0], [0.1, -0.1]])  # 10, 11, 00, 10
    true = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found = TASK.metrics(data, outcome(logits, true))
    assert found == pytest.approx({
        "accuracy": 1 / 4,
        "precision_macro": (2 / 3 + 0) / 2,
        "recall_macro": (1 + 0) / 2,
        "f1_macro": (4 / 5 + 0) / 2,
    })
    report = TASK.report(data, outcome(logits, true), 4)
    assert report.keys() == {"per_class", "calibration", "intervals", "errors"}
    assert report["per_class"]["a"] == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 4 / 5, "support": 2})
    assert report["per_class"]["b"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}


def test_metrics_of_a_regression_by_hand():
    data = task_data(REGRESSION)
    given = outcome(np.array([[1.0], [3.0]]), np.array([1.0, 2.0]))
    found = TASK.metrics(data, given)
    assert found == pytest.approx({"mse": 0.5, "mae": 0.5, "r2": -1.0, "pearson": 1.0})
    report = TASK.report(data, given, 4)
    assert report.keys() == {"intervals", "errors"}
    assert report["errors"] == [{"text": "row 1", "label": 2.0, "prediction": 3.0, "score": 1.0}]
    low, high = report["intervals"]["mse"]
    assert (low, high) == (0.0, 1.0)


def test_the_most_confident_errors_come_first():
    data = task_data(SINGLE, ("a", "b", "c"))
    logits = np.array([[9.0, 0.0, 0.0], [0.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    texts = ["one", "two " * 200, "three", "four"]
    errors = TASK.report(data, outcome(logits, [1, 0, 0, 2], texts), 4)["errors"]
    assert [row["text"][:3] for row in errors] == ["one", "two"]
    assert len(errors[1]["text"]) <= 300
    assert errors[1]["text"].endswith("…")
    assert errors[0]["label"] == "b"
    assert errors[0]["prediction"] == "a"
    assert errors[0]["score"] == pytest.approx(np.exp(9) / (np.exp(9) + 2))
    assert TASK.report(data, outcome(logits, [1, 0, 0, 2]), 1)["errors"][0]["text"] == "row 0"
    assert TASK.report(data, outcome(logits, [1, 0, 0, 2]), 0)["errors"] == []


def test_an_error_of_several_classes_is_as_sure_as_its_wrongest_decision():
    data = task_data(MULTI, ("a", "b"))
    logits = np.array([[4.0, 1.0], [-3.0, 5.0], [2.0, -9.0]])
    (first, second) = TASK.report(data, outcome(logits, [[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]), 4)["errors"]
    assert first == {"text": "row 0", "label": ["b"], "prediction": ["a", "b"], "score": pytest.approx(0.98201, 1e-4)}
    assert second["score"] == pytest.approx(0.95257, 1e-4)


def test_calibration_and_interval_of_classes():
    data = task_data(SINGLE, ("a", "b", "c"))
    found = TASK.report(data, outcome(LOGITS, TRUE), 4)
    sure = np.exp(LOGITS).max(1) / np.exp(LOGITS).sum(1)
    right = np.array([True, True, False, True])
    assert found["calibration"]["ece"] == pytest.approx(calibration(sure, right)["ece"])
    assert sum(one["count"] for one in found["calibration"]["bins"]) == 4
    low, high = found["intervals"]["accuracy"]
    assert low < 3 / 4 < high <= 1


def test_macro_f1_of_counts_is_that_of_the_metric():
    generator = np.random.default_rng(0)
    answers, labels = generator.integers(0, 2, (2, 50, 4))
    expected = sklearn_metrics.f1_score(labels, answers, average="macro", zero_division=0)
    assert macro_f1(answers, labels, 4) == pytest.approx(expected)


def test_answers_of_every_problem_type():
    single = TASK.answers(task_data(SINGLE, ("a", "b", "c")), outcome(LOGITS, TRUE))
    chances = np.exp(LOGITS[0]) / np.exp(LOGITS[0]).sum()
    assert single[0] == {
        "prediction": "a",
        "score": pytest.approx(chances[0]),
        "probabilities": pytest.approx(dict(zip("abc", chances, strict=True))),
    }
    (several,) = TASK.answers(task_data(MULTI, ("a", "b")), outcome(np.array([[1.0, -1.0]]), [[0.0, 1.0]]))
    assert several == {
        "prediction": ["a"],
        "probabilities": pytest.approx({"a": 1 / (1 + np.exp(-1)), "b": 1 / (1 + np.exp(1))}),
    }
    (value,) = TASK.answers(task_data(REGRESSION), outcome(np.array([[1.5]]), [0.0]))
    assert value == {"prediction": 1.5}


def test_rows_without_labels_are_read_for_a_trained_model():
    rows = DatasetDict({"test": Dataset.from_dict({"text": ["one", "two"]})})
    found = TASK.read_again(rows, config(class_names=["a", "b"], problem_type=SINGLE), False)
    assert found.splits["test"].column_names == ["text"]
    assert found.class_names == ("a", "b")
    with pytest.raises(ValueError, match="The label column must be in the data"):
        TASK.read_again(rows, config(class_names=["a", "b"], problem_type=SINGLE), True)


def test_majority_of_classes():
    data = task_data(SINGLE, ("a", "b", "c"), train=[2, 2, 2, 0, 1], test=[2, 0, 0, 0])
    name, found = TASK.baseline(data, "test", data.splits)
    assert name == "majority"
    assert found["accuracy"] == 1 / 4
    assert found["f1_macro"] == pytest.approx((2 * 1 / 4 / (1 / 4 + 1)) / 2)


def test_majority_of_several_classes():
    data = task_data(MULTI, ("a", "b"), train=[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], test=[[1.0, 0.0], [1.0, 1.0]])
    name, found = TASK.baseline(data, "test", data.splits)
    assert name == "majority"
    assert found["accuracy"] == 1 / 2
    assert found["recall_macro"] == pytest.approx((1 + 0) / 2)


def test_majority_of_numbers_is_the_mean_of_train():
    data = task_data(REGRESSION, train=[1.0, 3.0], test=[2.0, 6.0])
    name, found = TASK.baseline(data, "test", data.splits)
    assert name == "majority"
    assert found["mse"] == pytest.approx(sklearn_metrics.mean_squared_error([2.0, 6.0], [2.0, 2.0]))
    assert found["mae"] == 2.0


@pytest.mark.parametrize(
    ("problem_type", "expected"),
    [(SINGLE, ("accuracy", True)), (MULTI, ("f1_macro", True)), (REGRESSION, ("mse", False))],
)
def test_deciding_metric(problem_type, expected):
    assert TASK.best_metric(task_data(problem_type)) == expected


# The labels of a trained model


def read_known(labels, names, problem_type=SINGLE, feature=None):
    rows = DatasetDict({"test": labelled(labels, feature)})
    found = TASK.read_again(rows, config(class_names=names, problem_type=problem_type), True)
    assert found.class_names == tuple(names or ())
    return [np.asarray(label).tolist() for label in found.splits["test"]["label"]]


@pytest.mark.parametrize(
    ("labels", "names", "feature", "expected"),
    [
        (["good", "good"], ["bad", "good"], None, [1, 1]),
        ([1, 0, 1], ["bad", "good"], None, [1, 0, 1]),
        ([5, 3], ["3", "4", "5"], None, [2, 0]),
        ([2, 1], ["1", "2", "3"], None, [1, 0]),
        ([True, False], ["False", "True"], None, [1, 0]),
        ([0, 1], ["bad", "good"], ClassLabel(names=["bad", "good"]), [0, 1]),
        ([0, 1], ["bad", "good"], ClassLabel(names=["good", "bad"]), [1, 0]),
        ([0, 1], ["negative", "positive"], ClassLabel(names=["neg", "pos"]), [0, 1]),
        ([0, 1], ["0", "1"], ClassLabel(names=["neg", "pos"]), [0, 1]),
        ([2, 1], ["bad", "good"], ClassLabel(names=["so-so", "good", "bad"]), [0, 1]),
    ],
)
def test_known_classes_are_found_by_name_or_number(labels, names, feature, expected):
    assert read_known(labels, names, feature=feature) == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([["b"], [], ["a", "b"]], [[0, 1, 0], [0, 0, 0], [1, 1, 0]]),
        ([[0, 1, 1], [1, 0, 0]], [[0, 1, 1], [1, 0, 0]]),
        ([[2], [0, 1]], [[0, 0, 1], [1, 1, 0]]),
    ],
)
def test_known_classes_of_lists(labels, expected):
    assert read_known(labels, ["a", "b", "c"], MULTI) == expected


def test_known_regression_takes_numbers():
    assert read_known([1, 2], None, REGRESSION) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("labels", "names", "problem_type", "feature", "message"),
    [
        (["great"], ["bad", "good"], SINGLE, None, "among the model's classes bad, good, but the data has 'great'"),
        ([0, 2], ["bad", "good"], SINGLE, None, "among the model's classes bad, good, but the data has 2"),
        ([0, 1], ["1", "2", "3"], SINGLE, None, "among the model's classes 1, 2, 3, but the data has 0"),
        ([0, 1], ["bad", "good"], SINGLE, ClassLabel(names=["bad", "so-so"]), "bad, good, but the data has 'so-so'"),
        ([0, 0], ["1", "2"], SINGLE, None, "among the model's classes 1, 2, but the data has 0"),
        ([0, -1], ["a", "b"], SINGLE, ClassLabel(names=["a", "b"]), "classes a, b, but the data has -1"),
        ([0, 1], ["a", "b"], SINGLE, ClassLabel(names=["x", "y", "z"]), "classes a, b, but the data has 'x'"),
        ([0, None], ["a", "b"], SINGLE, None, "Every row must have a label, but row 1 of the test split has none"),
        (
            [["a"], ["b"]],
            ["a", "b"],
            SINGLE,
            None,
            r"must be one label a row, but row 0 of the test split is \['a'\]",
        ),
        (["a", "b"], ["a", "b"], MULTI, None, "must be lists of labels, but row 0 of the test split is 'a'"),
        ([["a"], ["c"]], ["a", "b"], MULTI, None, "among the model's classes a, b, but the data has 'c'"),
        (["good"], None, REGRESSION, None, "Regression needs finite numbers in 'label', but got 'good'"),
    ],
)
def test_labels_that_are_not_the_models_are_refused(labels, names, problem_type, feature, message):
    with pytest.raises(ValueError, match=message):
        read_known(labels, names, problem_type, feature)


def test_features_of_another_type_still_load():
    rows = labelled([0, 1] * ROWS).cast(Features({"text": Value("large_string"), "label": Value("uint8")}))
    assert read(rows).class_names == ("0", "1")


@pytest.mark.parametrize(
    ("problem_type", "names", "labels", "expected"),
    [
        ("single_label_classification", ("bad", "good"), [0, 0, 1], ["bad", "good", "bad"]),
        ("multi_label_classification", ("a", "b"), [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]], [["a", "b"], ["b"], []]),
        ("regression", (), [0.5, 1.5, -2.0], [0.5, 1.5, -2.0]),
    ],
)
def test_examples_are_short_rows_of_every_label(problem_type, names, labels, expected):
    rows = Dataset.from_dict({"text": ["x" * 301, "one", "two", "three"], "label": [labels[0], *labels]})
    found = TASKS["text-classification"].examples(
        TaskData(DatasetDict({"test": rows}), {}, problem_type, names), "test", 3
    )
    assert sorted(map(str, (row["label"] for row in found))) == sorted(map(str, expected))
    assert {row["text"] for row in found} == {"one", "two", "three"}
    assert (
        TASKS["text-classification"].examples(
            TaskData(DatasetDict({"test": rows}), {}, problem_type, names), "test", 0
        )
        == []
    )


# Classes of few rows, and lists in the cells of a table


@pytest.mark.parametrize("changes", [{"validation_fraction": 0.1}, {"validation_fraction": 0, "max_train_samples": 8}])
def test_the_only_row_of_a_class_stays_in_train(changes):
    rows = labelled(["a", "b"] * ROWS + ["c"])
    for seed in range(10):
        found = read(rows, seed=seed, **changes)
        counts = Counter(found.splits["train"]["label"])
        assert counts[2] == 1
        # 3 of 21 rows are held out, or 8 drawn; those of a and b stay balanced.
        assert sum(counts.values()) == changes.get("max_train_samples", 18)
        assert abs(counts[0] - counts[1]) <= 1


def test_the_only_row_of_a_class_stays_in_train_of_many_classes(caplog):
    labels = [f"class {i}" for i in range(20)] * 4 + ["lone"]
    for seed in range(10):
        caplog.clear()
        found = read(labelled(labels), seed=seed)
        assert len(found.splits["validation"]) == 9
        assert found.class_names.index("lone") in list(found.splits["train"]["label"])
        assert "Too few rows for a stratified draw of 0.1; drawing at random." in caplog.text


def test_classes_that_a_small_draw_leaves_out_are_told(caplog):
    read(labelled(["a", "b", "c"] * ROWS), max_train_samples=2, validation_fraction=0)
    assert "occurs in no training row after the split" in caplog.text
    caplog.clear()
    read(labelled(["a", "b", "c"] * ROWS), max_train_samples=3)
    assert "occurs in no training row" not in caplog.text


def test_lost_classes_are_told_by_name(caplog):
    before, after = labelled([0, 1, 2, 1]), labelled([1, 1])
    warn_of_lost(before, after, "label", "class", ["a", "b", "c"])
    assert "class 'a', 'c' occurs in no training row after the split" in caplog.text
    warn_of_lost(before, after, "label", "class")
    assert "class 0, 2 occurs in no training row after the split" in caplog.text


def test_lists_of_labels_in_the_cells_of_a_table_are_read(tmp_path):
    file = tmp_path / "train.csv"
    Dataset.from_dict({"text": list("wxyz"), "label": ['["b", "a"]', "[]", '["c"]', '["a"]']}).to_csv(
        file, index=False
    )
    rows = load_splits(config(file))["train"]
    found = read(rows, validation_fraction=0)
    assert (found.problem_type, found.class_names) == (MULTI, ("a", "b", "c"))
    numbers = [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert list(found.splits["train"]["label"]) == numbers
    known = TASK.read_again(DatasetDict({"test": rows}), config(class_names=["a", "b", "c"], problem_type=MULTI), True)
    assert list(known.splits["test"]["label"]) == numbers
    assert list(in_order(["[0, 1]", "[1, 0]", "[1, 1]"]).splits["train"]["label"]) == [[0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ['["a"]', "b"] * 4,
            r"'label' must all be lists written as JSON, .* row 1 of the train split.* is 'b'. Write",
        ),
        (["['a', 'b']", "['a']"] * 4, r"must all be lists written as JSON, or none may be, but row 0 of the train"),
        (['["a", null]', '["b"]'] * 4, "Every row must have a label, but row 0 of the train split has none"),
    ],
)
def test_lists_that_are_no_json_are_told(labels, message):
    with pytest.raises(ValueError, match=message):
        read(labelled(labels))


def test_labels_in_brackets_are_classes():
    assert in_order(["[PER]", "[LOC]"] * 4).class_names == ("[LOC]", "[PER]")
