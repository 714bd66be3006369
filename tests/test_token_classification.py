"""Tags of words: reading, aligning with tokens, and what is measured of them."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import List as ListFeature
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForTokenClassification,
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.recipes import finetune, predict_run
from hf_transfer_plugin.tasks import load_splits
from hf_transfer_plugin.tasks.base import Outcome
from hf_transfer_plugin.tasks.excerpts import excerpt
from hf_transfer_plugin.tasks.tags import marks_spans, split_words
from hf_transfer_plugin.tasks.token_classification import TAG_COLUMNS, TOKEN_CLASSIFICATION, WORD_COLUMNS
from hf_transfer_plugin.tasks.word_alignment import reduce, tagged_words
from tests.conftest import TINY

TASK = TOKEN_CLASSIFICATION
WORDS = [["a", "warm", "film"], ["no", "fun", "at", "all"], ["great", "cast"]]
TAGS = [["DET", "ADJ", "NOUN"], ["DET", "NOUN", "ADP", "ADV"], ["ADJ", "NOUN"]]
NAMES = ("ADJ", "ADP", "ADV", "DET", "NOUN")
IOB = ("B-LOC", "B-PER", "I-PER", "O")
PEOPLE = [["Ann", "Lee", "met", "Bo"], ["in", "Rome"], ["Ann", "slept"]]
SPANS = [["B-PER", "I-PER", "O", "B-PER"], ["O", "B-LOC"], ["B-PER", "O"]]


def config(dataset="data", **changes):
    return TransferConfig(model="m", dataset=str(dataset), task="token-classification", **changes)


def rows(words=WORDS, tags=TAGS, **names):
    return Dataset.from_dict({names.get("text", "tokens"): words, names.get("label", "tags"): tags})


def read(train=None, validation_fraction=0, seed=0, validation=None, test=None, **changes):
    given = {"train": rows() if train is None else train, "validation": validation, "test": test}
    splits = DatasetDict({split: found for split, found in given.items() if found is not None})
    return TASK.read(splits, config(validation_fraction=validation_fraction, **changes), seed)


def read_again(data, labelled=True, names=NAMES, **changes):
    return TASK.read_again(DatasetDict({"test": data}), config(class_names=list(names), **changes), labelled)


def encoded_of(data, split="test", longest=None):
    """Encoded rows that have one token for each of the first words."""
    ids = [[-1, *range(len(words))][: longest and longest + 1] + [-1] for words in data.splits[split]["text"]]
    return DatasetDict({split: Dataset.from_dict({"word_ids": ids})})


def outcome_of(data, answers, scores=None, split="train"):
    """An outcome whose features have one token for each word, between [CLS] and [SEP]."""
    found, width = data.splits[split], max(len(row) for row in answers) + 2
    predictions = np.full((len(found), width, 2), -100.0)
    for i, row in enumerate(answers):
        predictions[i, 1 : len(row) + 1, 0] = [data.class_names.index(tag) for tag in row]
        predictions[i, 1 : len(row) + 1, 1] = scores[i] if scores else 0.9
    ids = [[-1, *range(len(row)), -1] for row in answers]
    return Outcome(found, Dataset.from_dict({"word_ids": ids}), predictions)


# Reading


def test_rows_become_words_and_numbers():
    data = read()
    assert data.class_names == NAMES
    assert data.columns == {"text": "tokens", "label": "tags"}
    assert data.problem_type == ""
    assert data.outputs == 5
    assert data.splits["train"].to_dict() == {"text": WORDS, "label": [[3, 0, 4], [3, 4, 1, 2], [0, 4]]}


@pytest.mark.parametrize("text", WORD_COLUMNS)
@pytest.mark.parametrize("label", TAG_COLUMNS)
def test_columns_are_guessed(text, label):
    assert read(rows(text=text, label=label)).columns == {"text": text, "label": label}


def test_columns_may_be_named():
    found = read(rows(text="w", label="t"), text_column="w", label_column="t")
    assert found.columns == {"text": "w", "label": "t"}


def test_class_label_names_the_tags():
    features = Features({
        "tokens": ListFeature(Value("string")),
        "ner_tags": ListFeature(ClassLabel(names=["O", "X", "Y"])),
    })
    train = Dataset.from_dict({"tokens": [["a", "b"], ["c"]], "ner_tags": [[2, 0], [1]]}, features=features)
    data = read(train)
    assert data.class_names == ("O", "X", "Y")
    assert list(data.splits["train"]["label"]) == [[2, 0], [1]]
    assert read(train, class_names=["o", "x", "y"]).class_names == ("o", "x", "y")
    with pytest.raises(ValueError, match="`class_names` must name the 3 tags of the data, but names 2"):
        read(train, class_names=["o", "x"])


def test_numbers_are_named_by_the_user():
    data = read(rows([["a", "b"]], [[2, 0]]), class_names=["X", "Y", "Z"])
    assert data.class_names == ("X", "Y", "Z")
    assert list(data.splits["train"]["label"]) == [[2, 0]]
    assert read(rows([["a", "b"]], [[7, 3]])).class_names == ("3", "7")
    with pytest.raises(ValueError, match="the numbers 0 to 1 of `class_names` .*but the data also has 2"):
        read(rows([["a", "b"]], [[2, 0]]), class_names=["X", "Y"])


def test_names_keep_the_order_of_the_user():
    data = read(class_names=list(NAMES[::-1]))
    assert data.class_names == NAMES[::-1]
    assert data.splits["train"]["label"][2] == [4, 0]
    with pytest.raises(ValueError, match="Tags must be among `class_names` .*but the data also has 'ADP'"):
        read(class_names=["ADJ", "ADV", "DET", "NOUN"])


@pytest.mark.parametrize(
    ("words", "what"), [("a warm film", "plain text"), (None, "a NoneType")], ids=["plain text", "nothing"]
)
def test_plain_text_is_refused(words, what):
    train = rows([words, words], [["A"], ["B"]])
    with pytest.raises(ValueError, match=f"list of words, but row 0 of the train split.*is {what}.*in CSV write `"):
        read(train)


@pytest.mark.parametrize(
    ("words", "what"), [([], "has no words"), (["a", " "], "holds ' '"), (["a", None], "holds None")]
)
def test_empty_words_are_refused(words, what):
    with pytest.raises(ValueError, match=f"row 1 of the train split, counted from 0, {what}. Remove"):
        read(rows([["x", "y"], words], [["A", "B"], ["A", "B"]]))


def test_unequal_lengths_are_refused():
    with pytest.raises(
        ValueError, match="row 1 of the test split, counted from 0, has 4 words in 'tokens' and 3 tags in 'tags'"
    ):
        read(test=rows(WORDS, [TAGS[0], TAGS[1][:3], TAGS[2]]))


@pytest.mark.parametrize(("tags", "what"), [(["DET", None, "X"], r"\['DET', None, 'X'\]"), (None, "None")])
def test_missing_tags_are_refused(tags, what):
    with pytest.raises(ValueError, match=f"must be a list of tags, but row 0 of the train split.* is {what}"):
        read(rows(WORDS, [tags, *TAGS[1:]]))


def test_labels_of_sentences_are_refused():
    with pytest.raises(ValueError, match="must be a list of tags, but row 0 .* is 'good'"):
        read(rows(WORDS, ["good", "bad", "good"]))


def test_tags_of_another_type_are_refused():
    with pytest.raises(ValueError, match="must be all words or all whole numbers, but are of type float"):
        read(rows([["a", "b"]], [[0.5, 1.0]]))
    with pytest.raises(ValueError, match="all words or all whole numbers, but are of type int, str"):
        read(test=rows(WORDS, [[0] * len(row) for row in WORDS]))


def test_a_single_tag_is_refused():
    with pytest.raises(ValueError, match="at least two tags in 'tags', but every word has 'O'"):
        read(rows(WORDS, [["O"] * len(row) for row in WORDS]))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_tags_unknown_to_train_are_refused(split):
    with pytest.raises(ValueError, match=rf"Every tag of the {split} split must occur in train, but 'VERB' does not"):
        read(**{split: rows([["sleep"]], [["VERB"]])})


@pytest.mark.parametrize("declared", ["by the data", "by the user"])
def test_declared_tags_that_train_lacks_are_told_by_name(declared, caplog):
    train, test = rows([["a", "b"]], [[0, 1]]), rows([["c"]], [[2]])
    given = {"class_names": ["O", "X", "Y"]}
    if declared == "by the data":
        feature = ListFeature(ClassLabel(names=given.pop("class_names")))
        train, test = (part.cast_column("tags", feature) for part in (train, test))
    data = read(train, test=test, **given)
    assert data.class_names == ("O", "X", "Y")
    assert list(data.splits["test"]["label"]) == [[2]]
    assert "Tag 'Y' of the test split occurs in no training row" in caplog.text


def test_tags_beside_the_declared_ones_are_refused():
    with pytest.raises(ValueError, match=r"test split must occur in train, but 3 does not \(train has O, X\)"):
        read(rows([["a", "b"]], [[0, 1]]), test=rows([["c"]], [[3]]), class_names=["O", "X", "Y"])


def test_tags_that_the_split_takes_out_of_train_are_told(caplog):
    train = rows([["a", "b"]] * 9 + [["c"]], [["O", "B-X"]] * 9 + [["B-Y"]])
    read(train, max_train_samples=10)
    assert "occurs in no training row" not in caplog.text
    for seed in range(20):
        caplog.clear()
        left = read(train, validation_fraction=0.2, seed=seed).splits["train"]["label"]
        lost = [1] not in list(left)
        assert ("tag 'B-Y' occurs in no training row after the split" in caplog.text) is lost
        if lost:
            return
    pytest.fail("No seed held the only row of a tag out.")


def test_lists_in_the_cells_of_a_table_are_read(tmp_path):
    file = tmp_path / "train.csv"
    cells = {"tokens": [json.dumps(words) for words in WORDS], "tags": [json.dumps(tags) for tags in TAGS]}
    Dataset.from_dict(cells).to_csv(file, index=False)
    loaded = load_splits(config(file))["train"]
    data = read(loaded)
    assert data.splits["train"].to_dict() == read().splits["train"].to_dict()
    assert read_again(loaded).splits["test"].to_dict() == read().splits["train"].to_dict()
    assert list(read_again(loaded, labelled=False).splits["test"]["text"]) == WORDS


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        (['["a"]', "b"], r"must all be lists written as JSON, or none may be, but row 1 of the train .* is 'b'"),
        (["['a' 'b']", "['c']"], r"written as JSON.* but row 0 of the train split, counted from 0, is \"\['a' 'b'\]"),
        (['["a"]', "[1]"], "Entries of the lists in 'tags' must be all words or .* are of type int, str in the train"),
    ],
)
def test_lists_in_some_cells_are_refused(cells, what):
    with pytest.raises(ValueError, match=what):
        read(rows([["x"], ["y"]], cells))


def test_missing_columns_are_told():
    with pytest.raises(ValueError, match="The label column must be in the data: expected one of tags, ner_tags"):
        read(Dataset.from_dict({"tokens": WORDS}))


def test_validation_is_held_out():
    data = read(rows(WORDS * 10, TAGS * 10), validation_fraction=0.1)
    assert data.held_out
    assert {split: len(found) for split, found in data.splits.items()} == {"train": 27, "validation": 3}


def test_json_lines_are_loaded(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"tokens": w, "tags": t}) + "\n" for w, t in zip(WORDS, TAGS, strict=True)))
    assert TASK.read(load_splits(config(file)), config(validation_fraction=0), 0).class_names == NAMES


def test_spans_that_begin_inside_are_told(caplog):
    read(rows(PEOPLE, [["I-PER", "I-PER", "O", "B-PER"], ["O", "B-LOC"], ["B-PER", "O"]]))
    assert "1 spans of the training rows begin with `I-`" in caplog.text
    caplog.clear()
    read(rows(PEOPLE, SPANS))
    assert "begin with" not in caplog.text


@pytest.mark.parametrize(
    ("names", "marked"),
    [(IOB, True), (NAMES, False), (("O", "I-PER"), False), (("O", "B-PER", "S-PER"), False), (("B-X", "I-X"), True)],
)
def test_iob_names_are_known(names, marked):
    assert marks_spans(names) is marked


# A trained model's rows


def test_known_tags_are_found_by_name_and_by_number():
    assert list(read_again(rows()).splits["test"]["label"])[0] == [3, 0, 4]
    assert list(read_again(rows([["a", "b"]], [[4, 0]])).splits["test"]["label"]) == [[4, 0]]
    assert read_again(rows()).class_names == NAMES


def test_new_tags_are_refused():
    with pytest.raises(ValueError, match="Labels must be among the model's classes ADJ, ADP.*but the data has 'VERB'"):
        read_again(rows([["run"]], [["VERB"]]))


def test_without_labels_plain_text_is_split():
    found = read_again(Dataset.from_dict({"text": ["Don't pay $3.50!", "well-known"]}), labelled=False)
    assert list(found.splits["test"]["text"]) == [["Don't", "pay", "$", "3.50", "!"], ["well-known"]]
    assert found.splits["test"].column_names == ["text"]
    found = read_again(Dataset.from_dict({"tokens": WORDS}), labelled=False)
    assert list(found.splits["test"]["text"]) == WORDS


def test_texts_without_words_are_refused():
    with pytest.raises(ValueError, match="row 1 of the test split, counted from 0, has no words"):
        read_again(Dataset.from_dict({"text": ["a", " "]}), labelled=False)


def test_words_are_split_at_signs():
    assert split_words("U.S. (naïve) 50% «ja»") == ["U.S", ".", "(", "naïve", ")", "50", "%", "«", "ja", "»"]


# Encoding


def test_tags_stand_at_first_tokens(tokenizer):
    data = read(rows([["no-fun", "at", "all"], ["great"]], [["A", "B", "C"], ["B"]]))
    encoded, truncated = TASK.encode(data, tokenizer, 32, None)
    first = encoded["train"][0]
    assert tokenizer.convert_ids_to_tokens(first["input_ids"]) == [
        "[CLS]", "no", "[UNK]", "fun", "at", "all", "[SEP]"
    ]  # fmt: skip
    assert first["labels"] == [-100, 0, -100, -100, 1, 2, -100]
    assert first["word_ids"] == [-1, 0, -1, -1, 1, 2, -1]
    assert encoded["train"][1]["labels"] == [-100, 1, -100]
    assert truncated == 0


def test_every_word_has_its_tag_in_many_rows(tokenizer):
    words = [[WORDS[j % 3][j % 2] + "-x" * (j % 3) for j in range(i, i + 1 + i % 5)] for i in range(2500)]
    tags = [[("A", "B", "C")[(i + j) % 3] for j in range(len(row))] for i, row in enumerate(words)]
    data = read(rows(words, tags))
    encoded, _ = TASK.encode(data, tokenizer, 32, None)
    for row, labels in zip(data.splits["train"], encoded["train"]["labels"], strict=True):
        assert [label for label in labels if label != -100] == row["label"]


def test_overlong_rows_are_cut_and_counted(tokenizer):
    data = read(rows([["no", "fun", "at", "all"], ["great", "cast"]], [["A", "B", "A", "B"], ["A", "B"]]))
    encoded, truncated = TASK.encode(data, tokenizer, 4, None)
    assert truncated == 1
    assert encoded["train"]["labels"][0] == [-100, 0, 1, -100]
    assert TASK.overlong == "truncated"


def test_words_without_tokens_are_passed_over():
    words = Tokenizer(models.WordLevel({"no": 0, "fun": 1, "?": 2}, unk_token="?"))
    words.normalizer = normalizers.Replace("\u200b", "")
    processor = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="?")
    encoded, _ = TASK.encode(read(rows([["no", "\u200b", "fun"]], [["A", "B", "C"]])), processor, 32, None)
    assert encoded["train"][0]["word_ids"] == [0, 2]
    assert encoded["train"][0]["labels"] == [0, 2]


def test_rows_without_labels_are_encoded(tokenizer):
    encoded, _ = TASK.encode(read_again(Dataset.from_dict({"tokens": WORDS}), labelled=False), tokenizer, 32, None)
    assert "labels" not in encoded["test"].column_names
    assert encoded["test"]["word_ids"][2] == [-1, 0, 1, -1]


def test_byte_level_tokenizers_see_the_spaces():
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        ["the cat"] * 9, trainers.BpeTrainer(special_tokens=["<pad>"], initial_alphabet=alphabet)
    )
    processor = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    encoded, _ = TASK.encode(read(rows([["the", "cat"]], [["A", "B"]])), processor, 32, None)
    assert encoded["train"]["input_ids"][0] == processor("the cat").input_ids
    assert encoded["train"]["labels"][0] == [0, 1]


def test_a_slow_tokenizer_is_refused():
    for call in (lambda p: TASK.encode(read(), p, 32, None), lambda p: TASK.set_up(None, p, read())):
        with pytest.raises(ValueError, match="token-classification needs a fast tokenizer .* but got ByT5Tokenizer"):
            call(ByT5Tokenizer())


def test_set_up_pads_on_the_right_and_asks_for_seqeval(tokenizer, monkeypatch):
    processor = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]", padding_side="left"
    )
    TASK.set_up(None, processor, read())
    assert processor.padding_side == "right"
    monkeypatch.setattr("hf_transfer_plugin._optional.find_spec", lambda name: None)
    TASK.set_up(None, processor, read())
    with pytest.raises(ImportError, match="`seqeval` is needed"):
        TASK.set_up(None, processor, read(rows(PEOPLE, SPANS)))


# Outputs


def test_reduce_keeps_the_likeliest_tag_and_its_probability():
    logits = torch.tensor([[[0.0, np.log(3.0)], [np.log(4.0), 0.0]]])
    found = reduce((logits, "hidden states"), None)
    assert found.shape == (1, 2, 2)
    assert np.allclose(found.numpy(), [[[1, 0.75], [0, 0.8]]])
    assert reduce(logits.bfloat16(), None).dtype == torch.float32


def test_words_are_found_again_by_row():
    features = Dataset.from_dict({"word_ids": [[-1, 0, -1, 1, -1], [-1, 0, 2, -1]]})
    predictions = np.arange(20, dtype=float).reshape(2, 5, 2) / 20
    predictions[..., 0] *= 20
    found = tagged_words(Outcome(None, features, predictions))
    assert found.row.tolist() == [0, 0, 1, 1]
    assert found.word.tolist() == [0, 1, 0, 2]
    assert found.answer.tolist() == [2, 6, 12, 14]
    assert np.allclose(found.score, [0.15, 0.35, 0.65, 0.75])
    assert found.by_row(found.answer, 3) == [[2, 6], [12, 14], []]


# Measuring


def test_accuracy_and_macro_averages_by_hand():
    data = read(rows([["a", "b", "c"], ["d"]], [["X", "X", "Y"], ["Y"]]))
    found = TASK.metrics(data, outcome_of(data, [["X", "Y", "Y"], ["Y"]]))
    # X: precision 1, recall 1/2; Y: precision 2/3, recall 1.
    assert found == pytest.approx({
        "accuracy": 3 / 4,
        "precision_macro": 5 / 6,
        "recall_macro": 3 / 4,
        "f1_macro": (2 / 3 + 4 / 5) / 2,
    })
    assert TASK.best_metric(data) == ("accuracy", True)


def test_entities_by_hand():
    data = read(rows(PEOPLE, SPANS))
    assert data.class_names == IOB
    answers = [["B-PER", "O", "O", "B-PER"], ["O", "B-LOC"], ["B-PER", "O"]]
    found = TASK.metrics(data, outcome_of(data, answers))
    # Right: Bo, Rome, Ann; "Ann" instead of "Ann Lee" is wrong. 3 of 4 given, 3 of 4 true.
    assert found["entity_precision"] == found["entity_recall"] == found["entity_f1"] == 3 / 4
    assert found["accuracy"] == 7 / 8
    assert TASK.best_metric(data) == ("entity_f1", True)


def test_words_that_were_cut_off_are_not_measured():
    data = read(rows([["a", "b", "c"], ["d", "e"]], [["X", "X", "Y"], ["Y", "X"]]))
    assert TASK.metrics(data, outcome_of(data, [["X", "Y"], ["Y", "X"]]))["accuracy"] == 3 / 4


def test_report_by_hand():
    data = read(rows([["a", "b", "c"], ["d"]], [["X", "X", "Y"], ["Y"]]))
    found = TASK.report(data, outcome_of(data, [["X", "Y", "X"], ["Y"]], [[0.9, 0.6, 0.8], [0.7]]), 4)
    assert found["confusion_matrix"] == [[1, 1], [1, 1]]
    assert found["per_class"]["X"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert found["errors"] == [
        {"text": "a b «c»", "label": "Y", "prediction": "X", "score": pytest.approx(0.8)},
        {"text": "a «b» c", "label": "X", "prediction": "Y", "score": pytest.approx(0.6)},
    ]
    # Gaps of |right - confidence|: 0.1, 0.6, 0.8, 0.3, each in a bin of its own.
    assert found["calibration"]["ece"] == pytest.approx(1.8 / 4)
    # Rows have 1 of 3 and 1 of 1 right; draws are (0, 0), (0, 1) or (1, 1).
    assert found["intervals"]["accuracy"] == pytest.approx([1 / 3, 1])
    assert len(TASK.report(data, outcome_of(data, [["X", "Y", "X"], ["Y"]]), 1)["errors"]) == 1


def test_interval_of_entities_is_drawn_by_row():
    data = read(rows(PEOPLE, SPANS))
    answers = [["B-PER", "O", "O", "O"], ["O", "B-LOC"], ["B-PER", "O"]]
    low, high = TASK.report(data, outcome_of(data, answers), 2)["intervals"]["entity_f1"]
    assert (low, high) == (0, 1)


def test_answers_name_words_tags_and_entities():
    data = read(rows(PEOPLE, SPANS))
    outcome = outcome_of(data, [["B-PER", "I-PER", "O"], ["O", "B-LOC"], ["I-PER", "O"]])
    first, second, third = TASK.answers(data, outcome)
    assert first == {
        "words": PEOPLE[0],
        "prediction": ["B-PER", "I-PER", "O", None],
        "score": [0.9, 0.9, 0.9, None],
        "entities": [{"label": "PER", "text": "Ann Lee", "start_word": 0, "end_word": 2}],
    }
    assert [entity["text"] for entity in second["entities"]] == ["Rome"]
    assert third["entities"] == []
    assert json.loads(json.dumps(first)) == first
    plain = read()
    assert "entities" not in TASK.answers(plain, outcome_of(plain, TAGS))[0]


def test_baseline_gives_each_word_its_commonest_tag():
    train = rows([["a", "b", "a", "a"], ["b"], ["c", "c"]], [["X", "Y", "X", "Y"], ["Y"], ["Y", "Y"]])
    data = read(train, test=rows([["a", "b", "new"], ["new"]], [["X", "X", "Y"], ["X"]]))
    name, found = TASK.baseline(data, "test", encoded_of(data))
    # a -> X, b -> Y, unknown -> Y: right, wrong, right, wrong.
    assert name == "commonest_tag"
    assert found["accuracy"] == 0.5
    # Of rows cut to one word, a is right and the unknown word is wrong; to two, right, wrong, wrong.
    assert TASK.baseline(data, "test", encoded_of(data, longest=1))[1]["accuracy"] == 0.5
    assert TASK.baseline(data, "test", encoded_of(data, longest=2))[1]["accuracy"] == pytest.approx(1 / 3)


def test_baseline_measures_entities():
    data = read(rows(PEOPLE, SPANS), test=rows([["Ann", "Lee"], ["Rome"]], [["B-PER", "O"], ["B-LOC"]]))
    # "Ann Lee" is given as one name, Rome is right.
    assert TASK.baseline(data, "test", encoded_of(data))[1]["entity_f1"] == 0.5


def test_examples_are_short_and_varied():
    words = [["x"] * 200, ["a"], ["a", "b"], ["c"]]
    data = read(rows(words, [["X"] * 200, ["X"], ["X", "Y"], ["Y"]]))
    assert TASK.examples(data, "train", 2) == [{"text": "a b", "label": ["X", "Y"]}, {"text": "a", "label": ["X"]}]
    assert TASK.examples(data, "train", 0) == []


def test_excerpts_go_around_the_part():
    text = "0123456789" * 10
    assert excerpt(text, 50, 52, 10, marks=("«", "»")) == "…6789«01»2345…"
    assert excerpt(text, 0, 2, 10) == "0123456789…"
    assert excerpt(text, 98, 100, 10) == "…0123456789"
    assert excerpt("short", 1, 2, 10) == "short"


# Training


@pytest.mark.slow
def test_a_tiny_model_learns_its_tags(tokenizer, tmp_path):
    data = read(rows(WORDS * 12, TAGS * 12), test=rows())
    encoded, _ = TASK.encode(data, tokenizer, 32, None)
    model = BertForTokenClassification(BertConfig(**TINY, num_labels=data.outputs))
    found = {}

    def measure(prediction):
        found["outcome"] = Outcome(data.splits["test"], encoded["test"], prediction.predictions)
        return TASK.metrics(data, found["outcome"])

    args = TrainingArguments(
        str(tmp_path), max_steps=60, learning_rate=1e-2, per_device_train_batch_size=12, per_device_eval_batch_size=2,
        report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=encoded["train"],
        data_collator=TASK.collator(tokenizer, data),
        compute_metrics=measure,
        preprocess_logits_for_metrics=TASK.reduce,
    )
    trainer.train()
    metrics = trainer.predict(encoded["test"], metric_key_prefix="test").metrics
    assert metrics["test_accuracy"] == 1
    assert found["outcome"].predictions.shape == (3, 6, 2)
    assert [answer["prediction"] for answer in TASK.answers(data, found["outcome"])] == TAGS
    assert min(min(answer["score"]) for answer in TASK.answers(data, found["outcome"])) > 0.5


def test_the_whole_path_tags_new_text(model_folder, tmp_path):
    for split, count in (("train", 8), ("test", 2)):
        rows(PEOPLE * count, SPANS * count).to_json(tmp_path / f"{split}.jsonl")
    run = tmp_path / "run"
    args = TrainingArguments(str(run), max_steps=2, report_to="none", disable_tqdm=True, use_cpu=True)
    told = TransferConfig(model=model_folder, dataset=str(tmp_path), task="token-classification", demo_examples=1)
    record = finetune(told, args)
    assert record.class_names == list(IOB)
    assert {"accuracy", "entity_f1"} <= record.metrics.keys()
    assert record.intervals.keys() == {"entity_f1"}
    assert record.baselines["commonest_tag"]["accuracy"] == 1
    assert record.examples == [{"text": "Ann Lee met Bo", "label": SPANS[0]}]
    (tmp_path / "new.jsonl").write_text(json.dumps({"text": "Bo slept."}) + "\n")
    assert predict_run(run, tmp_path / "new.jsonl", tmp_path / "answers.jsonl") == 1
    answer = json.loads((tmp_path / "answers.jsonl").read_text())
    assert answer["words"] == ["Bo", "slept", "."]
    assert set(answer["prediction"]) <= set(IOB)
