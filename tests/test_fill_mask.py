import copy
import math
import pickle

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import BertConfig, BertForMaskedLM, BertModel

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.tasks import Outcome
from hf_transfer_plugin.tasks.fill_mask import FILL_MASK
from hf_transfer_plugin.tasks.masking import Masking
from tests.conftest import BAD, GOOD, TINY
from tests.tiny_writers import byte_tokenizer, tiny_llama

TASK = FILL_MASK
MASK = 4


def config(**changes):
    return TransferConfig(model="-", dataset="-", task="fill-mask", **changes)


def read(texts, **changes):
    rows = Dataset.from_dict({"text": texts})
    return TASK.read(DatasetDict({"train": rows, "validation": rows}), config(**changes), 0)


def encoded(data, tokenizer, max_length=32):
    return TASK.encode(data, tokenizer, max_length, None)


def restored(row):
    return [label if label != -100 else token for token, label in zip(row["input_ids"], row["labels"], strict=True)]


def test_rows_to_measure_are_hidden_once_and_training_rows_in_the_batch(tokenizer):
    data = read((GOOD + BAD) * 20)
    (found, cut), (again, _) = encoded(data, tokenizer), encoded(data, tokenizer)
    assert cut == 0
    assert found["validation"]["input_ids"] == again["validation"]["input_ids"]
    assert found["validation"]["labels"] == again["validation"]["labels"]
    assert "labels" not in found["train"].column_names
    whole = tokenizer(list(data.splits["validation"]["text"]))["input_ids"]
    assert [restored(row) for row in found["validation"]] == whole
    labels = [label for row in found["validation"]["labels"] for label in row]
    hidden = sum(label != -100 for label in labels) / sum(len(ids) - 2 for ids in whole)
    assert 0.12 < hidden < 0.3  # 15% of the words, and one at least of each short row
    assert {2, 3}.isdisjoint(labels)
    collate = TASK.collator(tokenizer, data)
    rows = [found["validation"][n] for n in (7, 3)]
    batch = collate(rows)
    for row, ids, wanted in zip(rows, batch["input_ids"], batch["labels"], strict=True):
        size = len(row["input_ids"])
        assert ids[:size].tolist() == row["input_ids"]
        assert wanted[:size].tolist() == row["labels"]
        assert set(wanted[size:].tolist()) <= {-100}


def test_training_rows_change_with_batch_and_epoch_but_not_with_the_random_state(tokenizer):
    found, _ = encoded(read((GOOD + BAD) * 3), tokenizer)
    rows = list(found["train"])
    collate = Masking(tokenizer, 0.3)
    state = torch.get_rng_state()
    first = collate(rows)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = Masking(tokenizer, 0.3)(rows)
    assert torch.equal(first["labels"], again["labels"])
    assert torch.equal(first["input_ids"], again["input_ids"])
    turned = collate(rows[::-1])
    assert not torch.equal(first["labels"], turned["labels"].flip(0))
    collate.set_epoch(1)
    assert not torch.equal(first["labels"], collate(rows)["labels"])


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_that_outlive_an_epoch_see_the_next_one(start, tokenizer):
    rows = [{"input_ids": [2, *range(5, 25), 3]}] * 4
    collate = copy.deepcopy(Masking(tokenizer, 0.3))
    loader = torch.utils.data.DataLoader(
        rows, 4, collate_fn=collate, num_workers=1, persistent_workers=True, multiprocessing_context=start
    )
    found = []
    for epoch in range(3):
        collate.set_epoch(epoch)
        (batch,) = loader
        assert torch.equal(batch["labels"], collate(rows)["labels"])
        found.append(batch["labels"])
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_masking_is_copied_with_its_epoch(tokenizer):
    first = Masking(tokenizer, 0.3)
    first.set_epoch(2)
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):  # noqa: S301
        assert other.shared_epoch.is_shared()
        assert int(other.shared_epoch) == 2
        other.set_epoch(5)
    assert int(first.shared_epoch) == 2


def test_eight_of_ten_hidden_words_become_the_mask(tokenizer):
    rows = [{"input_ids": [2, *range(5, 25), 3]}] * 500
    batch = Masking(tokenizer, 0.15)(rows)
    hidden = batch["labels"] != -100
    original = torch.tensor([row["input_ids"] for row in rows])
    assert hidden.float().sum().item() / (500 * 20) == pytest.approx(0.15, abs=0.015)
    assert (batch["input_ids"][hidden] == MASK).float().mean().item() == pytest.approx(0.8, abs=0.05)
    assert (batch["input_ids"][hidden] == original[hidden]).float().mean().item() == pytest.approx(0.1, abs=0.04)
    assert torch.equal(batch["input_ids"][~hidden], original[~hidden])


def test_at_least_one_word_of_a_row_is_hidden(tokenizer):
    batch = Masking(tokenizer, 0.001)([{"input_ids": [2, 9, 3]}, {"input_ids": [2, 9, 8, 3]}])
    assert (batch["labels"] != -100).sum(1).tolist() == [1, 1]
    assert batch["labels"][0].tolist() == [-100, 9, -100, -100]
    assert batch["input_ids"][0].tolist() == [2, MASK, 3, 0]


def test_packing_fills_blocks(tokenizer):
    data = read(GOOD + BAD, packing=True)
    found, cut = encoded(data, tokenizer, 16)
    tokens = [token for ids in tokenizer(GOOD + BAD)["input_ids"] for token in ids]
    assert [token for ids in found["train"]["input_ids"] for token in ids] == tokens
    assert {len(ids) for ids in found["train"]["input_ids"][:-1]} == {16}
    assert cut == 0
    lines, cut = encoded(read(GOOD + BAD), tokenizer, 5)
    assert lines["train"]["input_ids"][1] == [*tokenizer(GOOD[1])["input_ids"][:4], 3]
    assert cut == 2 * sum(len(ids) > 5 for ids in tokenizer(GOOD + BAD)["input_ids"]) > 0


def test_a_lone_split_is_measured(tokenizer):
    rows = DatasetDict({"train": Dataset.from_dict({"text": GOOD})})
    data = TASK.read_again(rows, config(mlm_probability=0.5), True)
    assert "labels" in encoded(data, tokenizer)[0]["train"].column_names
    assert data.options["mlm_probability"] == 0.5


def test_metrics_are_those_of_the_hidden_words(tokenizer):
    model = BertForMaskedLM(BertConfig(**TINY)).eval()
    data = read(GOOD + BAD)
    found, _ = encoded(data, tokenizer)
    rows = found["validation"]
    batch = TASK.collator(tokenizer, data)(list(rows))
    output = model(**batch)
    outcome = Outcome(data.splits["validation"], rows, TASK.reduce(output.logits, batch["labels"]).detach().numpy())
    metrics = TASK.metrics(data, outcome)
    assert metrics["perplexity"] == pytest.approx(math.exp(output.loss.item()), rel=1e-4)
    low, high = TASK.report(data, outcome, 3)["intervals"]["perplexity"]
    assert low <= metrics["perplexity"] <= high
    name, known = TASK.baseline(data, "validation", found)
    words = [word for ids in tokenizer(GOOD + BAD)["input_ids"] for word in ids[1:-1]]
    commonest = max(set(words), key=words.count)
    wanted = [label for labels in rows["labels"] for label in labels if label != -100]
    assert name == "commonest_token"
    assert known["token_accuracy"] == pytest.approx(wanted.count(commonest) / len(wanted))


def test_masks_are_filled_with_the_likeliest_word(tokenizer):
    model = BertForMaskedLM(BertConfig(**TINY)).train()
    rows = DatasetDict({"test": Dataset.from_dict({"text": ["a [MASK] warm film", "no fun at <mask> , [MASK] fun"]})})
    data = TASK.read_again(rows, config(), False)
    texts = TASK.generate(model, tokenizer, data, data.splits["test"], 1)
    assert model.training
    ids = tokenizer("a [MASK] warm film", return_tensors="pt")
    with torch.no_grad():
        best = model.eval()(**ids).logits[0, 2].argmax()
    assert texts[0] == f"a {tokenizer.decode([best])} warm film"
    assert "MASK" not in texts[1].replace(tokenizer.mask_token, "MASK")
    found = TASK.answers(data, Outcome(data.splits["test"], None, None, texts))
    assert found[0] == {"prediction": texts[0]}
    with pytest.raises(ValueError, match=r"must have \[MASK\] in place of the word to guess, but 10 of 10"):
        TASK.read_again(DatasetDict({"test": Dataset.from_dict({"text": GOOD + BAD})}), config(), False)


def test_rows_to_predict_are_all_kept_or_refused(caplog):
    rows = DatasetDict({"train": Dataset.from_dict({"text": ["a [MASK] film", " ", "no [MASK]"]})})
    with pytest.raises(
        ValueError, match=r"must hold text, but 1 of 3 .*\(row 1, counted from 0, is empty or missing\)"
    ):
        TASK.read_again(rows, config(), False)
    assert not caplog.text
    assert TASK.read_again(rows, config(), True).splits["train"]["text"] == ["a [MASK] film", "no [MASK]"]
    assert "1 of 3 rows hold no text and are left out" in caplog.text
    caplog.clear()
    read([*GOOD, ""])
    assert "1 of 6 rows of the train split hold no text and are left out" in caplog.text
    assert "1 of 6 rows of the validation split hold" in caplog.text


def test_examples_hide_a_word_amid_the_text():
    data = read(["a fine warm film", "x y", "great fun and a great cast"])
    assert TASK.examples(data, "validation", 3) == [
        {"text": "a fine [MASK] film", "label": "warm"},
        {"text": "great fun and a [MASK] cast", "label": "great"},
    ]


def test_what_cannot_guess_words_is_refused(tokenizer):
    data = read(GOOD)
    with pytest.raises(ValueError, match="must have a mask token, but .* has none"):
        encoded(data, byte_tokenizer())
    with pytest.raises(ValueError, match="must have a mask token"):
        TASK.set_up(tiny_llama(), byte_tokenizer(), data)
    with pytest.raises(ValueError, match="must have a head that guesses tokens, but BertModel has none"):
        TASK.set_up(BertModel(BertConfig(**TINY)), tokenizer, data)
    with pytest.raises(ValueError, match="No text of the train split has a token that the tokenizer knows"):
        encoded(read(["привет", "мир"]), tokenizer)
    TASK.set_up(BertForMaskedLM(BertConfig(**TINY)), tokenizer, data)
