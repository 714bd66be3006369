import math

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import BertConfig, BertLMHeadModel

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks import Outcome, load_splits
from hf_transfer_plugin.tasks.conversations import end_of_turn, mark_answers, read_conversation
from hf_transfer_plugin.tasks.likelihood import aligned_sums, answer_sums, commonest_token, shifted_sums, token_figures
from hf_transfer_plugin.tasks.padding import RightPadding
from hf_transfer_plugin.tasks.text_generation import TEXT_GENERATION, beginning
from tests.conftest import TINY
from tests.tiny_writers import CORPUS, byte_tokenizer, tiny_llama

TASK = TEXT_GENERATION
TALK = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "It is Paris."},
    {"role": "user", "content": "And what runs there?"},
    {"role": "assistant", "content": "A long river — the Seine."},
]


def config(**changes):
    return TransferConfig(model="-", dataset="-", task="text-generation", **changes)


def splits(test=None, **columns):
    train = Dataset.from_dict(columns)
    return DatasetDict({"train": train, "validation": train, **({"test": test} if test else {})})


def chat(*talks, **changes):
    return TASK.read(splits(messages=list(talks)), config(**changes), 0)


def encoded(data, processor, max_length=512):
    return TASK.encode(data, processor, max_length, None)


# --- raw text


def test_packing_loses_no_token_and_ends_every_text():
    processor = byte_tokenizer()
    data = TASK.read(splits(text=[f"{text} {n}" for n in range(700) for text in CORPUS]), config(), 0)
    found, cut = encoded(data, processor, 32)
    expected = [token for text in data.splits["train"]["text"] for token in [*processor(text).input_ids, 2]]
    assert [token for row in found["train"]["input_ids"] for token in row] == expected
    lengths = [len(row) for row in found["train"]["input_ids"]]
    assert set(lengths[:-1]) == {32}
    assert found["train"]["length"] == lengths
    assert cut == 0
    assert data.options["packing"] is True


def test_a_single_token_does_not_make_a_block():
    processor = byte_tokenizer()
    tokens = len(processor(CORPUS[0]).input_ids) + 1
    data = TASK.read(splits(text=[CORPUS[0]]), config(), 0)
    found, _ = encoded(data, processor, tokens - 1)
    assert [len(row) for row in found["train"]["input_ids"]] == [tokens - 1]


def test_without_packing_lines_stand_alone_and_long_ones_are_counted():
    processor = byte_tokenizer()
    data = TASK.read(splits(text=["The cat.", *CORPUS]), config(packing=False), 0)
    found, cut = encoded(data, processor, 12)
    short, *long = found["train"]["input_ids"]
    assert processor.decode(short) == "The cat.<|im_end|>"
    assert all(len(row) == 12 and row[-1] != 2 for row in long)
    assert cut == 8  # four of train and four of validation


def test_rows_without_labels_learn_every_token():
    batch = RightPadding(0, learn_all=True)([{"input_ids": [5, 6, 0]}, {"input_ids": [7]}])
    assert batch["labels"].tolist() == [[5, 6, 0], [7, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["input_ids"].tolist() == [[5, 6, 0], [7, 0, 0]]


def test_empty_rows_of_raw_text_are_left_out_and_told(caplog):
    data = TASK.read(splits(text=["", "The cat.", " \n", None]), config(), 0)
    assert data.splits["train"]["text"] == ["The cat."]
    assert "3 of 4 rows of the train split hold no text" in caplog.text


def test_raw_text_without_text_is_refused():
    with pytest.raises(ValueError, match="must hold text in 'text', but all of its rows are empty"):
        TASK.read(splits(text=["", " "]), config(), 0)
    with pytest.raises(ValueError, match="row 0, counted from 0, is a number"):
        TASK.read(splits(text=[1, 2]), config(), 0)


# --- conversations


def learned(row, processor):
    """The answers, as the labels spell them."""
    parts, labels = [], row["labels"]
    for number, label in enumerate(labels):
        if label != -100:
            if number == 0 or labels[number - 1] == -100:
                parts.append([])
            parts[-1].append(label)
    return [processor.decode(part) for part in parts]


def test_only_answers_and_the_end_of_the_turn_are_learned():
    processor = byte_tokenizer()
    data = chat(TALK, [{"role": "system", "content": "You answer briefly."}, *TALK[:2]])
    found, cut = encoded(data, processor)
    first, second = found["train"]
    assert learned(first, processor) == ["It is Paris.<|im_end|>", "A long river — the Seine.<|im_end|>"]
    assert learned(second, processor) == ["It is Paris.<|im_end|>"]
    assert processor.decode(first["input_ids"]) == processor.apply_chat_template(TALK, tokenize=False)
    assert cut == 0
    assert data.options["packing"] is None


def test_without_a_mark_the_line_break_ends_an_answer():
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    processor = byte_tokenizer(template=template)
    text, spans = mark_answers(processor, TALK)
    assert [text[start:end] for start, end in spans] == [" It is Paris.\n", " A long river — the Seine.\n"]
    found, _ = encoded(chat(TALK), processor)
    assert learned(found["train"][0], processor) == [" It is Paris.\n", " A long river — the Seine.\n"]
    assert end_of_turn(processor) is None
    assert end_of_turn(byte_tokenizer()) == 2


def test_other_names_for_roles_and_parts():
    shared = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]
    assert read_conversation(shared, "row 0") == [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "I."},
    ]
    assert TASK.read(splits(conversations=[shared]), config(), 0).columns == {"messages": "conversations"}


def test_prompts_and_answers_become_conversations():
    rows = {"instruction": ["Add.", "Name it."], "input": ["1 and 2", ""], "output": ["3", "Tom"]}
    data = TASK.read(splits(**rows), config(), 0)
    assert data.columns == {"text": "instruction", "text_pair": "input", "target": "output"}
    assert data.splits["train"]["messages"][0] == [
        {"role": "user", "content": "Add.\n\n1 and 2"},
        {"role": "assistant", "content": "3"},
    ]
    assert data.splits["train"]["messages"][1][0]["content"] == "Name it."


def test_overlong_conversations_are_cut_and_those_without_an_answer_dropped(caplog):
    processor = byte_tokenizer()
    long = [{"role": "user", "content": CORPUS[0] * 5}, {"role": "assistant", "content": "Yes."}]
    limit = len(processor.apply_chat_template(TALK, tokenize=True, return_dict=True)["input_ids"]) - 5
    data = chat(TALK, long)
    found, cut = encoded(data, processor, limit)
    assert len(found["train"]) == 1
    assert len(found["train"][0]["input_ids"]) == len(found["train"][0]["labels"]) == limit
    assert cut == 4
    assert "1 of 2 conversations of the train split are left out" in caplog.text
    with pytest.raises(ValueError, match="No conversation of the train split has an answer within its first 10"):
        encoded(chat(long), processor, 10)


@pytest.mark.parametrize(
    ("talk", "match"),
    [
        ("Hello", "must be a list of messages"),
        ([], "must be a list of messages"),
        ([TALK[0]], "must end with an answer of `assistant`, but row 0 of train ends with `user`"),
        ([TALK[1], TALK[0]], "in turn, with one of `system` before them or none, but row 0 of train has assistant"),
        ([TALK[0], TALK[0], TALK[1]], "has user, user, assistant"),
        ([TALK[0], TALK[1], {"role": "system", "content": "x"}], "has user, assistant, system"),
        ([{"role": "tool", "content": "x"}], "message 0 of row 0 of train has 'tool'"),
        ([TALK[0], {"role": "assistant", "content": " "}], "must hold text in `content`, but message 1"),
        ([{"role": "system", "content": "x"}], "ends with `system`"),
    ],
)
def test_conversations_that_are_none_are_refused(talk, match):
    with pytest.raises(ValueError, match=match):
        read_conversation(talk, "row 0 of train")


def test_what_stands_against_a_chat_is_refused():
    data = chat(TALK)
    with pytest.raises(ValueError, match="need the model's chat template"):
        encoded(data, byte_tokenizer(template=None))
    with pytest.raises(ValueError, match="need the model's chat template"):
        TASK.set_up(tiny_llama(), byte_tokenizer(template=None), data)
    with pytest.raises(ValueError, match="`packing` is for raw text"):
        chat(TALK, packing=True)
    only_last = "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
    only_last += "{% endfor %}{% if add_generation_prompt %}{{ '>' }}{% endif %}"
    with pytest.raises(ValueError, match="writes an answer otherwise when more messages follow"):
        encoded(data, byte_tokenizer(template=only_last))
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_REST
    with pytest.raises(ValueError, match="does not take a conversation of system, user, assistant: no system"):
        encoded(chat([{"role": "system", "content": "x"}, *TALK[:2]]), byte_tokenizer(template=strict))
    slow = byte_tokenizer()
    slow.__class__ = type("SlowTokenizer", (type(slow),), {"is_fast": False})
    with pytest.raises(ValueError, match="SlowTokenizer has no fast version"):
        encoded(data, slow)


CHAT_REST = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_a_model_that_reads_both_ways_is_refused():
    with pytest.raises(ValueError, match=r"must write from left to right, but BertLMHeadModel \(bert\) does not"):
        TASK.set_up(BertLMHeadModel(BertConfig(**TINY)), byte_tokenizer(), chat(TALK))
    TASK.set_up(BertLMHeadModel(BertConfig(**TINY, is_decoder=True)), byte_tokenizer(), chat(TALK))


# --- figures


def test_sums_are_those_of_cross_entropy():
    logits, labels = torch.randn(3, 6, 11), torch.randint(0, 11, (3, 6))
    labels[0, :3], labels[2] = -100, -100
    for sums, scores, wanted in (
        (aligned_sums, logits, labels),
        (shifted_sums, logits[:, :-1], labels[:, 1:]),
    ):
        found = sums(logits, labels)
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), wanted.flatten(), reduction="sum")
        kept = wanted != -100
        assert found[:, 0].sum().item() == pytest.approx(loss.item(), rel=1e-5)
        assert found[:, 1].sum().item() == (scores.argmax(-1) == wanted)[kept].sum().item()
        assert found[:, 2].tolist() == kept.sum(1).tolist()
    assert aligned_sums((logits, None), None).tolist() == [[0, 0, 0]] * 3


def test_an_answer_is_shifted_where_the_prompt_stands_before_it():
    logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    assert torch.equal(answer_sums((logits, logits), labels), aligned_sums(logits, labels))
    labels[:, 0] = -100
    assert torch.equal(answer_sums(logits, labels), shifted_sums(logits, labels))


def test_perplexity_by_hand():
    rows = Dataset.from_dict({"text": ["a", "b"]})
    # Two tokens of probability 1/2 and one of 1/4: exp((2 ln 2 + ln 4) / 3) = 2 ** (4 / 3).
    sums = [[2 * math.log(2), 2, 2], [math.log(4), 0, 1]]
    found = token_figures(Outcome(rows, rows, sums))
    assert found == {"perplexity": pytest.approx(2 ** (4 / 3)), "token_accuracy": pytest.approx(2 / 3)}


def test_perplexity_is_that_of_the_model_s_own_loss():
    processor, model = byte_tokenizer(), tiny_llama()
    data = chat(TALK, TALK[:2])
    found, _ = encoded(data, processor)
    rows = found["train"]
    batch = TASK.collator(processor, data)([rows[0], rows[1]])
    output = model(**batch)
    sums = TASK.reduce(output.logits, batch["labels"]).detach()
    metrics = TASK.metrics(data, Outcome(data.splits["train"], rows, sums.numpy()))
    assert metrics["perplexity"] == pytest.approx(math.exp(output.loss.item()), rel=1e-4)
    report = TASK.report(data, Outcome(data.splits["train"], rows, sums.numpy(), ["Paris?"]), 2)
    low, high = report["intervals"]["perplexity"]
    assert low <= metrics["perplexity"] <= high
    assert report["samples"] == [
        {"text": "And what runs there?", "label": "A long river — the Seine.", "prediction": "Paris?"}
    ]


def test_the_commonest_token_by_hand():
    train = Dataset.from_dict({"input_ids": [[9, 5, 5, 6], [9, 5]]})
    measured = Dataset.from_dict({"input_ids": [[9, 5, 7]]})
    # The first token of a row is never predicted: 5 three times, 6 once; 7 was not seen. N = 4, V = 3.
    found = commonest_token(train, measured, shifted=True)
    assert found["token_accuracy"] == 0.5
    assert found["perplexity"] == pytest.approx(math.exp(-(math.log(4 / 7) + math.log(1 / 7)) / 2))
    labelled = Dataset.from_dict({"input_ids": [[9, 5, 7]], "labels": [[-100, -100, 5]]})
    assert commonest_token(train, labelled, shifted=True)["token_accuracy"] == 1
    name, figures = TASK.baseline(None, "test", DatasetDict({"train": train, "test": measured}))
    assert (name, figures) == ("commonest_token", found)


# --- what it writes


def test_batches_write_what_single_prompts_do():
    processor, model = byte_tokenizer(), tiny_llama()
    talks = [
        [{"role": "user", "content": text[:size]}, TALK[1]] for text, size in zip(CORPUS, (60, 5, 30, 12), strict=True)
    ]
    data = chat(*talks, max_target_length=12)
    rows = data.splits["train"]
    together = TASK.generate(model, processor, data, rows, 3)
    assert together == [TASK.generate(model, processor, data, rows.select([n]), 1)[0] for n in range(4)]
    asked = processor.apply_chat_template(talks[1][:1], add_generation_prompt=True, return_tensors="pt")
    direct = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert together[1] == processor.decode(direct, skip_special_tokens=True).strip()
    assert len(set(together)) > 1


def test_generating_leaves_the_model_as_it_was():
    processor, model = byte_tokenizer(), tiny_llama().train()
    model.model.layers[0].eval()
    before, settings = [module.training for module in model.modules()], model.generation_config.to_dict()
    data = chat(TALK, max_target_length=3)
    assert processor.padding_side == "right"
    TASK.generate(model, processor, data, data.splits["train"], 2)
    assert [module.training for module in model.modules()] == before
    assert model.generation_config.to_dict() == settings
    assert processor.padding_side == "right"


def test_raw_texts_are_gone_on_with_from_their_first_half():
    assert beginning("one two  three four five") == ("one two", "three four five")
    assert beginning("one") == ("one", "")
    assert len(beginning("word " * 100)[0].split()) == 32
    data = TASK.read(splits(text=["The cat sat on the mat today"]), config(max_target_length=4), 0)
    assert TASK.examples(data, "validation", 3) == [{"text": "The cat sat", "label": "on the mat today"}]
    processor, model = byte_tokenizer(), tiny_llama()
    ids = processor("The cat sat", return_tensors="pt")
    direct = model.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
    written = TASK.generate(model, processor, data, data.splits["validation"], 1)
    assert written == [processor.decode(direct, skip_special_tokens=True).strip()]


def test_rows_to_predict_need_no_answer():
    asked = DatasetDict({"test": Dataset.from_dict({"messages": [TALK[:3], TALK[:1]]})})
    data = TASK.read_again(asked, config(max_target_length=3), False)
    found, _ = encoded(data, byte_tokenizer())
    assert len(found["test"]) == 2
    texts = TASK.generate(tiny_llama(), byte_tokenizer(), data, data.splits["test"], 2)
    outcome = Outcome(data.splits["test"], found["test"], None, texts)
    assert [row["prediction"] for row in TASK.answers(data, outcome)] == texts
    texts = DatasetDict({"test": Dataset.from_dict({"text": ["The cat sat"]})})
    whole = TASK.read_again(texts, config(packing=True), False)
    assert whole.options["whole_texts"] is True
    assert whole.splits["test"]["text"] == ["The cat sat"]
    prompts = TASK.read_again(texts, config(text_column="text"), False)
    assert prompts.splits["test"]["messages"][0] == [{"role": "user", "content": "The cat sat"}]
    with pytest.raises(ValueError, match="The target column must be in the data"):
        TASK.read_again(texts, config(), True)
    with pytest.raises(ValueError, match="The text column must be in the data"):
        TASK.read_again(asked, config(packing=True), True)
    with pytest.raises(ValueError, match="must end with an answer"):
        TASK.read_again(asked, config(), True)


def test_examples_of_a_chat_are_asked_before_the_last_answer():
    data = chat(TALK, [{**TALK[0], "content": "x" * 400}, TALK[1]], [{**TALK[0], "content": "y" * 1000}, *TALK[1:]])
    assert TASK.examples(data, "validation", 4) == [{"messages": TALK[:3], "label": "A long river — the Seine."}]


def test_a_file_of_text_is_read_line_by_line(tmp_path):
    (tmp_path / "train.txt").write_text("The cat sat.\n\n  A dog, \u201cran\u201d.\tNA\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("A river.\n", encoding="utf-8")
    found = load_splits(TransferConfig(model="-", dataset=str(tmp_path), task="text-generation"))
    assert found["train"]["text"] == ["The cat sat.", "", "  A dog, \u201cran\u201d.\tNA"]
    assert TASK.read(found, config(validation_fraction=0.5), 0).splits["test"]["text"] == ["A river."]
