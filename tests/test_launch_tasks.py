"""Tasks that read files and compare texts, under torchrun: two processes learn and measure what one does."""

import json

import numpy as np
import pytest
from transformers import ViTConfig, ViTModel, set_seed

from hf_transfer_plugin.cli import main
from hf_transfer_plugin.recipes import evaluate_run
from hf_transfer_plugin.record import TransferRecord
from tests.conftest import BAD, GOOD
from tests.test_launch import largest_difference, launch, still_folder, weights  # noqa: F401
from tests.tiny_pictures import VIT, processor_of, write_folder
from tests.tiny_sounds import as_bytes, tone, whisper

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
    "audio-classification": sounds,
    "automatic-speech-recognition": speech,
    "sentence-similarity": pairs,
}


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
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-5
    # Trainer's loss counts the row that comes twice; what is measured on answers does not.
    loss = {"loss": pytest.approx(one.metrics["loss"], rel=0.1)} if "loss" in one.metrics else {}
    assert two.metrics == {name: pytest.approx(value, abs=1e-4) for name, value in one.metrics.items()} | loss
    alone = evaluate_run(tmp_path / "two", str(data), split="test")["metrics"]
    assert alone == pytest.approx({name: one.metrics[name] for name in alone}, abs=1e-4)
