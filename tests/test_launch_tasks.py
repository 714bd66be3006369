"""Tasks that read files and compare texts, under torchrun: two processes learn and measure what one does."""

import json
from unittest.mock import ANY

import numpy as np
import pytest
from transformers import ViTConfig, ViTModel, set_seed

from hf_transfer_plugin.cli import main
from hf_transfer_plugin.recipes import evaluate_run
from hf_transfer_plugin.record import TransferRecord
from tests.conftest import BAD, GOOD
from tests.test_launch import largest_difference, launch, still_folder, weights  # noqa: F401
from tests.tiny_pictures import VIT, processor_of, write_folder
from tests.tiny_scenes import save_model as save_scene_model
from tests.tiny_scenes import write_scenes
from tests.tiny_sounds import as_bytes, tone, whisper
from tests.tiny_towers import save_towers

pytestmark = pytest.mark.distributed
# Eight rows a step, and plain descent: what two processes add up is what one finds in the same rows.
STILL = ["--validation_fraction", "0.2", "--optim", "sgd", "--learning_rate", "0.05", "--max_steps", "4"]
ROWS = 20  # four of them become validation
TEST_ROWS = 7  # an odd number, so that one process gets a row twice


def pictures(root, text_model):
    set_seed(0)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ViTModel(ViTConfig(**VIT, **quiet, image_size=32, patch_size=16)).save_pretrained(root / "model")
    processor_of("vit").save_pretrained(root / "model")
    write_folder(root / "data", train=ROWS, test=TEST_ROWS)
    return root / "model", root / "data", []


def maps(root, text_model):
    model = save_scene_model("segformer", root / "model")
    write_scenes(root / "data", train=ROWS, test=TEST_ROWS)
    return model, root / "data", []


def towers(root, text_model):
    write_folder(root / "data", train=ROWS, test=TEST_ROWS)
    return save_towers("clip", root / "model"), root / "data", []


def sounds(root, text_model, column="label", **words):
    model = whisper(root / "model")
    for split, count in (("train", ROWS), ("test", TEST_ROWS)):
        place, lines = root / "data" / split, []
        place.mkdir(parents=True)
        for number in range(count):
            name = ("high", "low")[number % 2]
            (place / f"{number}.flac").write_bytes(as_bytes(tone(name, 0.3 + 0.02 * (number % 5))))
            lines.append(json.dumps({"file_name": f"{number}.flac", column: words.get(name, name)}))
        (place / "metadata.jsonl").write_text("\n".join(lines))
    return model, root / "data", []


def speech(root, text_model):
    model, data, _ = sounds(root, text_model, "sentence", high="so very high", low="low")
    return model, data, ["--max_target_length", "16"]


def pairs(root, text_model):
    """Scores of pairs: a loss over single pairs, so that the processes' batches add up."""
    texts = [(f"{good} and {bad}", f"{bad} {word} {good}") for word in ("fun", "work") for good in GOOD for bad in BAD]
    scores = np.random.default_rng(0).uniform(0, 1, len(texts)).round(3)
    (root / "data").mkdir()
    for split, first, last in (("train", 0, ROWS), ("test", ROWS, ROWS + TEST_ROWS)):
        lines = [
            json.dumps({"sentence1": a, "sentence2": b, "score": s})
            for (a, b), s in zip(texts[first:last], scores[first:last], strict=True)
        ]
        (root / "data" / f"{split}.jsonl").write_text("\n".join(lines))
    return text_model, root / "data", ["--loss", "CosineSimilarityLoss"]


TASKS = {
    "image-classification": pictures,
    "image-segmentation": maps,
    "zero-shot-image-classification": towers,
    "audio-classification": sounds,
    "automatic-speech-recognition": speech,
    "sentence-similarity": pairs,
}
# What a process has in its batch counts for itself: other pictures, and what BatchNorm sees of them.
APART = ("zero-shot-image-classification", "image-segmentation")


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_learn_and_measure_what_one_does(launch, still_folder, tmp_path, task):  # noqa: F811
    model, data, more = TASKS[task](tmp_path, still_folder)

    def words(name, batch):
        given = {"model": model, "dataset": data, "task": task, "output_dir": tmp_path / name, "use_cpu": "true"}
        given |= {"strategy": "full", "per_device_train_batch_size": batch, "report_to": "none"}
        return ["train", *(str(w) for flag, v in given.items() for w in (f"--{flag}", v)), *STILL, *more]

    done = launch(*words("two", 4))
    assert done.returncode == 0, done.stderr
    assert main(words("one", 8)) == 0
    one, two = TransferRecord.load(tmp_path / "one"), TransferRecord.load(tmp_path / "two")
    assert two.hardware["processes"] == 2
    assert two.dataset["splits"]["test"] == TEST_ROWS
    apart = largest_difference(weights(tmp_path / "one"), weights(tmp_path / "two"))
    alone = evaluate_run(tmp_path / "two", str(data), split="test")["metrics"]
    # Trainer's loss counts the row that comes twice; what is measured on answers does not.
    about = ANY if task in APART else pytest.approx(two.metrics.get("loss"), rel=0.1)
    loss = {"loss": about} if "loss" in alone else {}
    assert alone == {name: pytest.approx(two.metrics[name], abs=1e-4) for name in alone} | loss
    if task in APART:
        assert apart > 0
    else:
        assert apart < 1e-5
        assert two.metrics == {name: pytest.approx(value, abs=1e-4) for name, value in one.metrics.items()} | loss
