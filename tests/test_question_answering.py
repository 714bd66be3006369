"""Questions: reading, windows and back, and what is measured of the answers."""

import json
import re

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.recipes import evaluate_run, finetune, predict_run
from hf_transfer_plugin.tasks import load_splits
from hf_transfer_plugin.tasks.base import Outcome
from hf_transfer_plugin.tasks.question_answering import (
    ANSWER_COLUMNS,
    CONTEXT_COLUMNS,
    QUESTION_ANSWERING,
    QUESTION_COLUMNS,
)
from hf_transfer_plugin.tasks.windows import LONGEST_ANSWER, best_spans
from tests.conftest import TINY

TASK = QUESTION_ANSWERING
CONTEXT = "Ann met Bo in Rome. It was a warm day, and the two had great fun."
LONG = " ".join(f"w{i}," if i % 7 == 3 else f"w{i}" for i in range(120))
HIGH = 9.0


def config(dataset="data", **changes):
    changes = {"validation_fraction": 0, "stride": 4, **changes}
    return TransferConfig(model="m", dataset=str(dataset), task="question-answering", **changes)


def squad(*texts, context=CONTEXT):
    return {"text": list(texts), "answer_start": [context.find(text) for text in texts]}


def rows(questions=("who met Bo?", "where?"), contexts=(CONTEXT, CONTEXT), answers=None):
    answers = [squad("Ann"), squad("Rome")] if answers is None else answers
    return Dataset.from_dict({"question": list(questions), "context": list(contexts), "answers": list(answers)})


def read(train=None, seed=0, validation=None, test=None, **changes):
    given = {"train": rows() if train is None else train, "validation": validation, "test": test}
    splits = DatasetDict({split: found for split, found in given.items() if found is not None})
    return TASK.read(splits, config(**changes), seed)


def answered(*answers, context=CONTEXT):
    """Rows about one context."""
    return rows(["what?"] * len(answers), [context] * len(answers), answers)


@pytest.fixture(scope="module")
def processor():
    """A tokenizer that knows every word: a word is a run of letters and digits, or a sign."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *sorted(set(re.findall(r"\w+|[^\w\s]+", f"{CONTEXT} {LONG} who ? where what"))),
    ]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def sure_of(features, starts=None, ends=None):
    """Predictions that are high at the given tokens, or at the true ones, and 0 elsewhere."""
    starts = features["start_positions"] if starts is None else starts
    ends = features["end_positions"] if ends is None else ends
    width = max(len(ids) for ids in features["input_ids"])
    found = []
    for places in (starts, ends):
        scores = np.zeros((len(features), width))
        scores[np.arange(len(features)), places] = HIGH
        for i, ids in enumerate(features["input_ids"]):
            scores[i, len(ids) :] = -100
        found.append(scores)
    return tuple(found)


# Reading


def test_rows_are_read():
    data = read()
    assert data.columns == {"question": "question", "context": "context", "answers": "answers"}
    assert data.class_names == ()
    assert data.options == {"stride": 4, "no_answer": False}
    assert data.splits["train"][1]["answers"] == {"text": ["Rome"], "answer_start": [14]}


@pytest.mark.parametrize("question", QUESTION_COLUMNS)
@pytest.mark.parametrize("context", CONTEXT_COLUMNS)
@pytest.mark.parametrize("answers", ANSWER_COLUMNS)
def test_columns_are_guessed(question, context, answers):
    names = {"question": question, "context": context, "answers": answers}
    assert read(rows().rename_columns({role: name for role, name in names.items() if role != name})).columns == names


@pytest.mark.parametrize(
    "given",
    [
        [{"text": ["Rome"], "answer_start": [14]}],
        [{"text": "Rome", "answer_start": 14}],
        [[{"text": "Rome", "answer_start": 14}]],
        [{"text": ["Rome"]}],
        ["Rome"],
        [["Rome"]],
    ],
    ids=["squad", "one", "listed", "no place", "text", "texts"],
)
def test_answers_have_many_forms(given):
    data = read(answered(*given))
    assert list(data.splits["train"]["answers"]) == [{"text": ["Rome"], "answer_start": [14]}]


def test_a_text_stands_for_its_first_occurrence():
    data = read(answered("a", context="b a a"))
    assert data.splits["train"][0]["answers"] == {"text": ["a"], "answer_start": [2]}


@pytest.mark.parametrize(
    "nothing",
    [
        [{"text": [], "answer_start": []}, {"text": ["Rome"], "answer_start": [14]}],
        [[], [{"text": "Rome", "answer_start": 14}]],
        [{"text": [""], "answer_start": [0]}, {"text": ["Rome"], "answer_start": [14]}],
        ["", "Rome"],
        [None, "Rome"],
    ],
    ids=["squad", "listed", "empty text", "text", "nothing"],
)
def test_rows_may_have_no_answer(nothing):
    data = read(answered(*nothing))
    assert data.splits["train"][0]["answers"] == {"text": [], "answer_start": []}
    assert data.options["no_answer"] is True


def test_rows_without_answers_only_are_refused():
    with pytest.raises(ValueError, match="must hold answers in 'answers', but none of its 2 rows has one"):
        read(answered("", ""))


def test_answers_never_learnt_to_be_missing_are_told(caplog):
    data = read(test=answered("", "Rome"))
    assert data.options["no_answer"] is False
    assert "1 rows of the test split have no answer, but every training row has one" in caplog.text


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ({"text": ["Rome"], "answer_start": [13]}, "has 'Rome' at 13, where ' Rom' stands; the context has it at 14"),
        (
            {"text": ["rome"], "answer_start": [14]},
            "has 'rome' at 14, where 'Rome' stands; the context does not have it at all",
        ),
        ({"text": ["Rome"], "answer_start": [-1]}, "has 'Rome' at -1, where"),
        ({"text": ["fun."], "answer_start": [900]}, "has 'fun.' at 900, where '' stands"),
        ({"text": ["Rome", "Ann"], "answer_start": [14, 1]}, "has 'Ann' at 1, where 'nn ' stands"),
    ],
)
def test_answers_at_another_place_are_refused(answer, what):
    train = answered({"text": ["Ann"], "answer_start": [0]}, answer)
    with pytest.raises(ValueError, match=f"row 1 of the train split, counted from 0, {what}"):
        read(train)


def test_a_text_outside_of_its_context_is_refused():
    with pytest.raises(ValueError, match="word for word, but row 0 of the train split.* has 'Paris' in 'answers'"):
        read(answered("Paris"))


@pytest.mark.parametrize(
    "answer",
    [3, {"text": ["Ann", "Rome"], "answer_start": [0]}, {"words": ["Ann"]}, {"text": [5], "answer_start": [0]}],
)
def test_answers_of_another_kind_are_refused(answer):
    with pytest.raises(ValueError, match="Answers in 'answers' must be .*as text, but row 0 of the train"):
        read(answered(answer))


@pytest.mark.parametrize(("role", "values"), [("question", ["a?", " "]), ("context", [CONTEXT, ""])])
def test_empty_texts_are_refused(role, values):
    with pytest.raises(ValueError, match=f"Every row of '{role}' must hold text.*row 1.*`--{role}_column`"):
        read(rows(**{f"{role}s": values}))


def test_missing_columns_are_told():
    with pytest.raises(ValueError, match="The answers column must be in the data: expected one of answers, answer"):
        read(rows().remove_columns("answers"))


def test_whole_contexts_are_held_out():
    contexts = [f"{i} {CONTEXT}" for i in range(20) for _ in range(3)]
    train = rows(["who?"] * 60, contexts, ["Ann"] * 60)
    data = read(train, validation_fraction=0.1, max_train_samples=30)
    assert data.held_out
    assert {split: len(found) for split, found in data.splits.items()} == {"train": 30, "validation": 6}
    assert not set(data.splits["train"]["context"]) & set(data.splits["validation"]["context"])
    few = read(rows(["who?"] * 60, [CONTEXT] * 60, ["Ann"] * 60), validation_fraction=0.1)
    assert len(few.splits["validation"]) == 6


def test_rows_of_a_trained_model():
    splits = DatasetDict({"test": rows(["a?", "b?"], answers=["", "Rome"])})
    assert TASK.read_again(splits, config(), True).options == {"stride": 4, "no_answer": True}
    found = TASK.read_again(DatasetDict({"test": rows().remove_columns("answers")}), config(), False)
    assert found.splits["test"].column_names == ["question", "context"]
    assert found.columns == {"question": "question", "context": "context"}


@pytest.mark.parametrize(
    "given",
    [{"text": ["Paris "], "answer_start": [3]}, {"text": [" Paris"], "answer_start": [2]}, " Paris "],
    ids=["after", "before", "no place"],
)
def test_spaces_around_a_true_answer_are_left_out(given, processor):
    data = read(answered(given, context="in Paris we live now"))
    assert data.splits["train"][0]["answers"] == {"text": ["Paris"], "answer_start": [3]}
    (features,) = TASK.encode(data, processor, 32, None)[0]["train"]
    start, end = features["start_positions"], features["end_positions"]
    assert (features["offset_mapping"][start], features["offset_mapping"][end]) == ([3, 8], [3, 8])


def test_places_may_stand_in_a_column_beside_the_texts(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("question,context,answer,answer_start\nq?,b a a,a,4\nq?,b a a,,\nq?,b a a,a,\n")
    found = read(load_splits(config(file))["train"]).splits["train"]["answers"]
    assert [answer["answer_start"] for answer in found] == [[4], [], [2]]
    several = answered(["a", "b"], [], context="b a a").add_column("answer_start", [[4, 0], []])
    found = read(several).splits["train"]["answers"]
    assert list(found) == [{"text": ["a", "b"], "answer_start": [4, 0]}, {"text": [], "answer_start": []}]
    nested = answered({"text": ["Rome"], "answer_start": [14]}).add_column("answer_start", [3])
    assert read(nested).splits["train"][0]["answers"]["answer_start"] == [14]


@pytest.mark.parametrize(("start", "what"), [(1, "has 'a' at 1, where ' ' stands"), (2.5, "must be .* 2.5")])
def test_wrong_places_beside_the_texts_are_refused(start, what):
    with pytest.raises(ValueError, match=what):
        read(answered("a", context="b a a").add_column("answer_start", [start]))


def test_a_test_split_with_hidden_answers_is_left_out(caplog):
    data = read(validation=rows(), test=answered("", ""))
    assert sorted(data.splits) == ["train", "validation"]
    assert "The test split has no answers in 'answers', but every training row has one" in caplog.text
    learnt = read(answered("", "Rome"), test=answered("", ""))
    assert sorted(learnt.splits) == ["test", "train"]
    held = read(rows(["q?"] * 10, [CONTEXT] * 10, ["Ann"] * 10), test=answered(""), validation_fraction=0.2)
    assert sorted(held.splits) == ["train", "validation"]


def test_hidden_answers_that_leave_nothing_to_measure_are_refused():
    with pytest.raises(ValueError, match="`validation_fraction` is 0 and there is no test split, so nothing could be"):
        read(test=answered("", ""))


# SQuAD's files


def article(*questions, context=CONTEXT, **more):
    return {"title": "Ann", "paragraphs": [{"context": context, "qas": list(questions)}], **more}


def asked(question="who?", **more):
    return {"question": question, "id": "q1", "answers": [{"text": "Ann", "answer_start": 0}], **more}


def save(file, *articles):
    file.write_text(json.dumps({"version": "v2.0", "data": list(articles)}, indent=1))
    return file


def test_nested_files_are_flattened(tmp_path):
    impossible = {"question": "why?", "id": "q2", "answers": [], "is_impossible": True}
    file = save(tmp_path / "train.json", article(asked(), impossible), article(asked("whom?")))
    found = load_splits(config(file))["train"]
    assert len(found) == 3
    assert found[0] == {
        "id": "q1", "title": "Ann", "question": "who?", "context": CONTEXT,
        "answers": {"text": ["Ann"], "answer_start": [0]},
    }  # fmt: skip
    assert found[1]["answers"] == {"text": [], "answer_start": []}
    assert read(found).options["no_answer"] is True


def test_squads_names_of_files_are_known(tmp_path):
    save(tmp_path / "train-v2.0.json", article(asked()))
    save(tmp_path / "dev-v2.0.json", article(asked(), asked("whom?")))
    found = load_splits(config(tmp_path))
    assert {split: len(part) for split, part in found.items()} == {"train": 1, "validation": 2}


def test_flat_json_is_read_as_before(tmp_path):
    file = tmp_path / "train-v2.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    assert load_splits(config(file))["train"].column_names == ["question", "context", "answers"]
    assert sorted(load_splits(config(tmp_path, train_split="train-v2"))) == ["train"]


@pytest.mark.parametrize(
    ("articles", "what"),
    [
        ([{"title": "x", "paragraphs": 3}], r"data\[0\].paragraphs must be a list of objects.*but is 3"),
        ([article({"id": "1"})], r"data\[0\].paragraphs\[0\].qas\[0\] must have the text 'question', but has None"),
        ([article(asked(), context=None)], r"paragraphs\[0\] must have the text 'context', but has None"),
        ([article(asked(answers=["Ann"]))], r"qas\[0\].answers must be a list of objects.*but is \['Ann'\]"),
        ([article(asked(answers=[{"text": "Ann"}]))], "must have the whole number 'answer_start', but has None"),
        ([article(asked(is_impossible=True))], "has answers though `is_impossible` is true"),
        ([article()], "`dataset` must hold rows, but .* has no questions"),
    ],
)
def test_broken_nested_files_are_told(tmp_path, articles, what):
    with pytest.raises(ValueError, match=what):
        load_splits(config(save(tmp_path / "train.json", *articles)))


def test_half_a_nested_file_is_told(tmp_path):
    file = save(tmp_path / "train.json", article(asked()))
    file.write_text(file.read_text()[:-10])
    with pytest.raises(ValueError, match=r"train.json' could not be read as SQuAD's JSON"):
        load_splits(config(file))


# Windows


def test_a_short_row_is_one_window(processor):
    encoded, several = TASK.encode(read(), processor, 64, None)
    first = encoded["train"][0]
    # [CLS] who met Bo ? [SEP] Ann met Bo in ...
    assert (first["start_positions"], first["end_positions"]) == (6, 6)
    assert first["offset_mapping"][:8] == [[-1, -1]] * 6 + [[0, 3], [4, 7]]
    assert first["offset_mapping"][-1] == [-1, -1]
    assert first["null"] == 0
    assert encoded["train"]["row"][:] == [0, 1]
    assert several == 0


def test_windows_overlap_by_the_stride(processor):
    data = read(answered("w50", context=LONG), stride=6)
    encoded, several = TASK.encode(data, processor, 32, None)
    found = encoded["train"]
    assert several == 1
    assert set(found["row"]) == {0}
    assert max(len(ids) for ids in found["input_ids"]) == 32
    inside = [[tuple(place) for place in window if place != [-1, -1]] for window in found["offset_mapping"]]
    for one, following in zip(inside, inside[1:], strict=False):
        assert one[-6:] == following[:6]
    held = [s > 0 for s in found["start_positions"]]
    assert 1 <= sum(held) <= 2
    for window, start, end, holds in zip(
        found["offset_mapping"], found["start_positions"], found["end_positions"], held, strict=True
    ):
        assert (LONG[window[start][0] : window[end][1]] == "w50") is holds
        assert holds or start == end == 0


def test_every_answer_comes_back_through_windows(processor):
    """Encode any span of words, give the true tokens high scores, decode: the text of the span."""
    draws = np.random.default_rng(0)
    bounds = [match.span() for match in re.finditer(r"\w+", LONG)]
    answers = []
    for _ in range(200):
        first = int(draws.integers(len(bounds)))
        last = min(first + int(draws.integers(6)), len(bounds) - 1)
        start, end = bounds[first][0], bounds[last][1]
        answers.append({"text": [LONG[start:end]], "answer_start": [start]})
    data = read(answered(*answers, context=LONG), stride=16)
    encoded, several = TASK.encode(data, processor, 48, None)
    features = encoded["train"]
    assert several == 200
    # Windows without the answer point to [CLS], which is no part of the context.
    outcome = Outcome(data.splits["train"], features, sure_of(features))
    found = TASK.answers(data, outcome)
    for answer, gold in zip(found, answers, strict=True):
        assert (answer["prediction"], answer["start"]) == (gold["text"][0], gold["answer_start"][0])
        assert LONG[answer["start"] : answer["end"]] == answer["prediction"]
    assert TASK.metrics(data, outcome) == {"exact_match": 1, "f1": 1}


def test_answers_inside_of_a_token_take_the_whole(processor):
    data = read(answered({"text": ["om"], "answer_start": [15]}))
    encoded, _ = TASK.encode(data, processor, 64, None)
    found = TASK.answers(data, Outcome(data.splits["train"], encoded["train"], sure_of(encoded["train"])))
    assert found[0]["prediction"] == "Rome"


def test_rows_without_answer_point_to_the_first_token(processor):
    data = read(answered("", "Ann"))
    encoded, _ = TASK.encode(data, processor, 64, None)
    assert encoded["train"]["start_positions"][:] == [0, 4]
    assert encoded["train"]["end_positions"][:] == [0, 4]


def test_rows_without_labels_are_encoded(processor):
    data = TASK.read_again(DatasetDict({"test": rows().remove_columns("answers")}), config(), False)
    encoded, _ = TASK.encode(data, processor, 64, None)
    assert "start_positions" not in encoded["test"].column_names
    assert TASK.answers(data, Outcome(data.splits["test"], encoded["test"], sure_of(encoded["test"], [4, 4], [5, 5])))


def test_row_numbers_go_on_over_batches(processor):
    data = read(answered(*["w3"] * 1100, context=LONG), stride=4)
    encoded, several = TASK.encode(data, processor, 128, None)
    assert several == 1100
    assert sorted(set(encoded["train"]["row"])) == list(range(1100))


def test_a_stride_without_room_is_refused(processor):
    data = read(stride=29)
    # 40 tokens, 3 special, 4 of "who met Bo?": 33 left.
    TASK.encode(data, processor, 40, None)
    with pytest.raises(
        ValueError,
        match="but is 29: of 36 tokens 3 are special and 4 the longest question.* leaves 29. Set `--stride 14`",
    ):
        TASK.encode(data, processor, 36, None)


def test_long_questions_are_cut_and_told(processor, caplog):
    data = read(rows([" ".join(["w1"] * 50), "where?"]))
    encoded, _ = TASK.encode(data, processor, 40, None)
    assert "1 questions of the train split are longer than 20 tokens and were cut" in caplog.text
    first = encoded["train"][0]
    assert [place == [-1, -1] for place in first["offset_mapping"]].index(False) == 22
    assert len(first["input_ids"]) <= 40


def test_a_slow_tokenizer_is_refused():
    for call in (lambda p: TASK.encode(read(), p, 32, None), lambda p: TASK.set_up(None, p, read())):
        with pytest.raises(ValueError, match="question-answering needs a fast tokenizer .* but got ByT5Tokenizer"):
            call(ByT5Tokenizer())


def test_a_tokenizer_without_cls_points_to_its_first_token():
    words = Tokenizer(models.WordLevel({"who": 0, "Ann": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    plain = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="?", padding_side="left")
    TASK.set_up(None, plain, read())
    assert plain.padding_side == "right"
    encoded, _ = TASK.encode(read(answered("", "Ann", context="Ann")), plain, 32, None)
    assert encoded["train"]["null"][:] == [0, 0]
    assert encoded["train"]["start_positions"][:] == [0, 2]


# Decoding


def features_of(lengths, rows_of, offset=2):
    """Windows with [CLS], one question token, and context tokens of one character each."""
    places = [[[-1, -1]] * offset + [[i, i + 1] for i in range(length)] + [[-1, -1]] for length in lengths]
    return Dataset.from_dict({"row": rows_of, "null": [0] * len(lengths), "offset_mapping": places})


def reference(starts, ends, places, longest=LONGEST_ANSWER):
    """The best score by trying all spans."""
    inside = [i for i, place in enumerate(places) if place[0] >= 0]
    return max(starts[i] + ends[j] for i in inside for j in inside if 0 <= j - i < longest)


def test_the_best_span_is_found_among_all():
    draws = np.random.default_rng(1)
    lengths = draws.integers(1, 60, 700)
    features = features_of(lengths.tolist(), list(range(700)))
    starts, ends = draws.normal(size=(2, 700, 64))
    found = best_spans(features, (starts, ends), no_answer=False, scored=True)
    for i, places in enumerate(features["offset_mapping"]):
        first, last = found.start[i] + 2, found.end[i] + 1
        assert 0 <= last - first < LONGEST_ANSWER
        assert starts[i, first] + ends[i, last] == pytest.approx(reference(starts[i], ends[i], places))


def test_probabilities_by_hand():
    # One window, context of two tokens: spans 0-0, 0-1, 1-1 score 1 + 0, 1 + 2, 0 + 2; null 3 + 0.
    features = features_of([2], [0])
    starts, ends = np.array([[3.0, 9, 1, 0, 9]]), np.array([[0.0, 9, 0, 2, 9]])
    found = best_spans(features, (starts, ends), no_answer=False, scored=True)
    assert (found.start[0], found.end[0]) == (0, 2)
    assert found.score[0] == pytest.approx(np.e**3 / (np.e + np.e**3 + np.e**2))
    also = best_spans(features, (starts, ends), no_answer=True, scored=True)
    assert also.score[0] == pytest.approx(np.e**3 / (np.e + 2 * np.e**3 + np.e**2))
    ends[0, 0] = 0.5
    none = best_spans(features, (starts, ends), no_answer=True, scored=True)
    assert (none.start[0], none.end[0]) == (-1, -1)
    assert none.score[0] == pytest.approx(np.e**3.5 / (np.e + np.e**3 + np.e**3.5 + np.e**2))


def test_spans_of_two_windows_count_once():
    # Both windows show the same two characters; the better scores count.
    features = features_of([2, 2, 2], [0, 0, 1])
    starts = np.array([[3.0, 0, 1, 0, 0], [1.0, 0, 0, 0, 0], [0.0, 0, 0, 5, 0]])
    ends = np.array([[0.0, 0, 0, 2, 0], [0.0, 0, 4, 0, 0], [0.0, 0, 0, 5, 0]])
    found = best_spans(features, (starts, ends), no_answer=False, scored=True)
    assert list(zip(found.start, found.end, strict=True)) == [(0, 1), (1, 2)]
    # 0-0: max(1, 4), 0-1: max(3, 0), 1-1: max(2, 0).
    assert found.score[0] == pytest.approx(np.e**4 / (np.e**4 + np.e**3 + np.e**2))
    # The least null score of the windows, 1, is below 4.
    assert best_spans(features, (starts, ends), no_answer=True).start[0] == 0


def test_padding_is_no_answer():
    features = features_of([3, 1], [0, 1])
    starts, ends = np.zeros((2, 6)), np.zeros((2, 6))
    starts[1, 4:], ends[1, 4:] = 50, 50
    found = best_spans(features, (starts, ends), no_answer=False)
    assert (found.start[1], found.end[1]) == (0, 1)


def test_a_context_without_tokens_has_no_answer(recwarn):
    words = Tokenizer(models.WordLevel({"who": 0, "?": 1}, unk_token="?"))
    words.normalizer = normalizers.Replace("\u200b", "")
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    plain = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="?")
    data = read(rows(["who ?"] * 2, ["\u200b", "who"], ["", "who"]))
    encoded, _ = TASK.encode(data, plain, 32, None)
    for no_answer in (True, False):
        found = best_spans(encoded["train"], (np.zeros((2, 4)), np.zeros((2, 4))), no_answer=no_answer, scored=True)
        assert found.start.tolist() == [-1, 0]
        assert np.isfinite(found.score).all()
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


# Measuring


def outcome_of(data, processor, texts, split="train"):
    """The model says `texts`; an empty one is no answer."""
    features = TASK.encode(data, processor, 64, None)[0][split]
    starts, ends = [], []
    for text, context, places in zip(texts, data.splits[split]["context"], features["offset_mapping"], strict=True):
        begin = context.find(text)
        inside = [i for i, place in enumerate(places) if text and begin <= place[0] < begin + len(text)]
        starts.append(inside[0] if inside else 0)
        ends.append(inside[-1] if inside else 0)
    return Outcome(data.splits[split], features, sure_of(features, starts, ends))


def test_metrics_by_hand(processor):
    data = read(answered("Ann", "a warm day", "great fun", "Rome"))
    found = TASK.metrics(data, outcome_of(data, processor, ["Ann", "warm", "had great fun", "Bo"]))
    # Words without articles: 1, 2 * 1 / (1 + 2), 2 * 2 / (3 + 2), 0.
    assert found == pytest.approx({"exact_match": 1 / 4, "f1": (1 + 2 / 3 + 4 / 5 + 0) / 4})
    assert TASK.best_metric(data) == ("f1", True)


def test_the_best_of_several_true_answers_counts(processor):
    data = read(answered(["Bo in Rome", "Rome"]))
    assert TASK.metrics(data, outcome_of(data, processor, ["Rome"])) == {"exact_match": 1, "f1": 1}


def test_missing_answers_are_measured(processor):
    data = read(answered("Ann", "", "", "Rome"))
    outcome = outcome_of(data, processor, ["Ann", "", "Bo", ""])
    assert TASK.metrics(data, outcome) == {
        "exact_match": 0.5, "f1": 0.5, "has_answer_f1": 0.5, "no_answer_accuracy": 0.5
    }  # fmt: skip
    assert TASK.answers(data, outcome)[1] == {
        "prediction": "", "score": pytest.approx(1, abs=0.01), "start": None, "end": None
    }  # fmt: skip


def test_report_tells_the_most_confident_errors(processor):
    data = read(answered(["Ann", "Ann met"], [], ["great fun"], ["Rome"]))
    outcome = outcome_of(data, processor, ["Ann", "Bo", "warm", "Bo"])
    outcome.predictions[0][[1, 3]] *= [[1.5], [2]]
    found = TASK.report(data, outcome, 2)
    assert [error["prediction"] for error in found["errors"]] == ["Bo", "Bo"]
    assert found["errors"][0] == {
        "question": "what?",
        "context": CONTEXT,
        "label": "Rome",
        "prediction": "Bo",
        "score": pytest.approx(1, abs=0.01),
    }
    assert found["errors"][1]["label"] == ""
    assert found["intervals"]["f1"] == [0, pytest.approx(0.75)]
    assert TASK.report(data, outcome, 0)["errors"] == []


def test_long_contexts_are_shortened_around_the_answer(processor):
    data = read(answered("w100", context=LONG))
    features = TASK.encode(data, processor, 200, None)[0]["train"]
    error = TASK.report(data, Outcome(data.splits["train"], features, sure_of(features, [5], [5])), 1)["errors"][0]
    assert len(error["context"]) <= 302
    assert "w100" in error["context"]
    assert error["label"] == "w100"


def test_spaces_around_an_answer_are_left_out(processor):
    data = read(answered("Rome"))
    features = TASK.encode(data, processor, 64, None)[0]["train"]
    places = [[[s - (s > 0), e] if s >= 0 else [s, e] for s, e in features["offset_mapping"][0]]]
    spaced = features.remove_columns("offset_mapping").add_column("offset_mapping", places)
    answer = TASK.answers(data, Outcome(data.splits["train"], spaced, sure_of(features)))[0]
    assert (answer["prediction"], answer["start"], answer["end"]) == ("Rome", 14, 18)


def test_baseline_answers_with_the_likest_sentence():
    data = read(rows(["Was the day warm?", "Xyz?"], answers=["It was a warm day", ""]), test=rows())
    name, found = TASK.baseline(data, "train", data.splits)
    # "It was a warm day, and the two had great fun.": 4 of its 9 words without articles are right.
    assert name == "overlap"
    assert found["has_answer_f1"] == pytest.approx(2 * 4 / (4 + 9))
    assert found["no_answer_accuracy"] == 1


def test_examples_have_different_short_contexts():
    short = f"{CONTEXT} It was long ago."
    data = read(rows(["a?", "b?", "c?", "d?"], [CONTEXT + "!" * 600, CONTEXT, CONTEXT, short], ["Ann"] * 4))
    found = TASK.examples(data, "train", 3)
    assert [(row["question"], row["label"]) for row in found] == [("b?", "Ann"), ("d?", "Ann"), ("c?", "Ann")]
    assert TASK.examples(data, "train", 2)[1]["context"] == short
    assert TASK.examples(data, "train", 0) == []


def test_reduce_keeps_starts_and_ends():
    starts, ends = torch.zeros(2, 3), torch.ones(2, 3)
    found = TASK.reduce((starts, ends, "encoder states"), None)
    assert len(found) == 2
    assert found[0] is starts
    assert found[1] is ends


# Training


@pytest.mark.slow
def test_a_tiny_model_learns_to_answer(processor, tmp_path):
    places = ["Rome", "day", "fun"]
    questions = ["where?", "what?", "who?"]
    train = rows(questions * 12, [CONTEXT] * 36, places * 12)
    data = read(train, test=rows(questions, [CONTEXT] * 3, places), stride=8)
    encoded, several = TASK.encode(data, processor, 20, None)
    assert several == 39
    model = BertForQuestionAnswering(BertConfig(**{**TINY, "vocab_size": len(processor)}, initializer_range=0.2))
    found = {}

    def measure(prediction):
        found["outcome"] = Outcome(data.splits["test"], encoded["test"], prediction.predictions)
        return TASK.metrics(data, found["outcome"])

    args = TrainingArguments(
        str(tmp_path), max_steps=120, learning_rate=4e-3, per_device_train_batch_size=36, per_device_eval_batch_size=2,
        report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=encoded["train"],
        data_collator=TASK.collator(processor, data),
        compute_metrics=measure,
        preprocess_logits_for_metrics=TASK.reduce,
    )
    trainer.train()
    assert trainer.predict(encoded["test"], metric_key_prefix="test").metrics["test_f1"] == 1
    answers = TASK.answers(data, found["outcome"])
    assert [answer["prediction"] for answer in answers] == places
    assert all(CONTEXT[answer["start"] : answer["end"]] == answer["prediction"] for answer in answers)


def test_the_whole_path_keeps_what_the_training_came_to(model_folder, tmp_path):
    impossible = {"question": "why?", "answers": [], "is_impossible": True}
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        save(tmp_path / name, article(asked(), impossible, asked("who met Bo?"), impossible))
    run = tmp_path / "run"
    args = TrainingArguments(str(run), max_steps=2, report_to="none", disable_tqdm=True, use_cpu=True)
    told = config(tmp_path, max_length=20, demo_examples=1).to_dict() | {"model": model_folder}
    record = finetune(TransferConfig(**told), args)
    assert record.options == {"stride": 4, "max_length": 20, "no_answer": True}
    assert record.intervals.keys() == {"f1"}
    assert record.examples == [{"question": "who?", "context": CONTEXT, "label": "Ann"}]
    # Without unanswerable rows the model may still give no answer, as in training.
    rows().to_json(tmp_path / "new.jsonl")
    assert "no_answer_accuracy" not in evaluate_run(run, str(tmp_path / "new.jsonl"))["metrics"]
    assert predict_run(run, tmp_path / "new.jsonl", tmp_path / "answers.jsonl") == 2
    for line in (tmp_path / "answers.jsonl").read_text().splitlines():
        answer = json.loads(line)
        given = CONTEXT[answer["start"] : answer["end"]] if answer["start"] is not None else ""
        assert answer["prediction"] == given
