"""Two towers from files to card: tiny models, trained on classes and on captions, with towers that stay still."""

import json
import math
import re

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, Value
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, TrainerCallback, TrainingArguments, pipeline
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from hf_transfer_plugin import FrozenPrefixCache, TransferConfig, TransferRecord, finetune
from hf_transfer_plugin.callbacks import TemperatureCallback
from hf_transfer_plugin.hub.snippets import getting_started
from hf_transfer_plugin.layers import discover_layer_groups, find_towers, lock_tower
from hf_transfer_plugin.losses import ContrastiveLoss, sigmoid_losses, softmax_losses
from hf_transfer_plugin.recipes import evaluate_run, predict_run
from hf_transfer_plugin.recipes.finetuning import make_trainer
from hf_transfer_plugin.recipes.preparing import prepare
from hf_transfer_plugin.recipes.zero_shot import measure_zero_shot
from hf_transfer_plugin.tasks import Outcome
from hf_transfer_plugin.tasks.caption_search import CaptionSearch
from hf_transfer_plugin.tasks.two_towers import TWO_TOWERS
from hf_transfer_plugin.trainer import attach
from tests.tiny_pictures import content, picture, save_model, write_folder
from tests.tiny_towers import TOWERS, clip, save_towers

TASK = "zero-shot-image-classification"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Saved tiny models, made when they are asked for."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def saved(name):
        if name not in made:
            made[name] = save_towers(name, root / name)
        return made[name]

    return saved


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("pictures"), train=24, test=8))


def arguments(output, **changes):
    given = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "save_strategy": "no"}
    return TrainingArguments(
        str(output), use_cpu=True, report_to="none", disable_tqdm=True, log_level="error", **{**given, **changes}
    )


def config(model, data="rows", **changes):
    return TransferConfig(model=model, dataset=str(data), task=TASK, **changes)


def rows(count=16, column="caption", values=None):
    """Pictures in memory, each with a caption or a class."""
    values = values or [f"a {'light' if i % 2 else 'dark'} picture {i % 4}" for i in range(count)]
    files = [{"bytes": content(picture(i, light=i % 2)), "path": None} for i in range(count)]
    kinds = Features({"image": Image(), column: Value("int64" if isinstance(values[0], int) else "string")})
    return Dataset.from_dict({"image": files, column: values[:count]}, features=kinds)


def splits(**changes):
    return DatasetDict({split: rows(**changes) for split in ("train", "validation", "test")})


@pytest.fixture(scope="module")
def run(models, pictures, tmp_path_factory):
    """A finished run over a folder of classes, with all baselines."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    given = config(models("clip"), pictures, baselines=True, demo_examples=2, freeze_tower="text")
    finetune(given, arguments(folder))
    return folder


# Losses


def test_one_value_of_the_softmax_loss_by_hand():
    logits, labels = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [1.0, 0.0, 2.0]]), torch.tensor([0, 1, 0])
    # Picture 0 belongs to captions 0 and 2, which are equal.
    row, column = [math.exp(v) for v in (2, 1, 0)], [math.exp(v) for v in (2, 0, 1)]
    to_captions = (math.log(row[0] / sum(row)) + math.log(row[2] / sum(row))) / 2
    to_pictures = (math.log(column[0] / sum(column)) + math.log(column[2] / sum(column))) / 2
    assert softmax_losses(logits, labels)[0].item() == pytest.approx(-(to_captions + to_pictures) / 2)


def test_one_value_of_the_sigmoid_loss_by_hand():
    logits, labels = torch.tensor([[2.0, -1.0], [0.5, 3.0]]), torch.tensor([0, 1])
    expected = -math.log(1 / (1 + math.exp(-2))) - math.log(1 / (1 + math.exp(-1)))
    assert sigmoid_losses(logits, labels)[0].item() == pytest.approx(expected)
    both = -math.log(1 / (1 + math.exp(-2))) - math.log(1 / (1 + math.exp(1)))
    assert sigmoid_losses(logits, torch.zeros(2).long())[0].item() == pytest.approx(both)


@pytest.mark.parametrize("name", TOWERS)
def test_without_equal_captions_the_loss_is_the_models_own(name):
    model, processor = TOWERS[name]()
    batch = processor(
        text=[f"a photo {i}" for i in range(4)],
        images=[picture(i, light=i % 2) for i in range(4)],
        padding="max_length",
        return_tensors="pt",
    )
    with torch.no_grad():
        outputs = model.eval()(**batch, return_loss=True)
    ours = ContrastiveLoss(sigmoid=name == "siglip")(outputs, torch.arange(4))
    assert ours.item() == pytest.approx(outputs.loss.item(), rel=1e-5)
    theirs = image_text_contrastive_loss(2 * torch.eye(4)).item()
    assert ContrastiveLoss()({"logits_per_image": 2 * torch.eye(4)}, torch.arange(4)).item() == pytest.approx(theirs)


def test_columns_of_classes_give_the_loss_of_their_captions():
    logits, labels = torch.randn(3, 2), torch.tensor([1, 0, 1])
    wanted = softmax_losses(logits[:, labels], labels).mean()
    found = ContrastiveLoss()({"logits_per_image": logits}, labels[:, None])
    assert found.item() == pytest.approx(wanted.item())


def test_micro_batches_of_a_step_weigh_by_their_rows():
    logits = torch.randn(5, 5)
    parts = [slice(0, 3), slice(3, 5)]
    losses = [ContrastiveLoss()({"logits_per_image": logits[p, p]}, torch.arange(len(logits[p])), 5) for p in parts]
    whole = [softmax_losses(logits[p, p], torch.arange(len(logits[p]))) for p in parts]
    assert sum(losses).item() == pytest.approx(torch.cat(whole).mean().item())


# The whole path


def test_class_names_become_captions_record_and_card(run):
    record = TransferRecord.load(run)
    assert record.class_names == ["dark", "light"]
    assert record.options == {"freeze_tower": "text", "caption_template": "a photo of a {label}."}
    assert record.metrics["accuracy"] == 1
    assert record.baselines["majority"]["accuracy"] == 0.5
    assert record.baselines["pretrained"]["accuracy"] <= 0.5
    assert record.confusion_matrix == [[4, 0], [0, 4]]
    assert [row["label"] for row in record.examples] == ["dark", "light"]
    text = (run / "README.md").read_text()
    assert f"pipeline_tag: {TASK}" in text
    assert "freeze\\_tower: text" in text
    assert "The text tower stayed as it was, whatever the strategy." in text
    assert (run / "examples" / "example-0-image.png").is_file()


def test_the_saved_model_answers_like_a_pipeline(run, pictures, tmp_path):
    output = tmp_path / "answers.jsonl"
    assert predict_run(run, f"{pictures}/test", output) == 8
    classify = pipeline(TASK, model=str(run))
    for row in map(json.loads, output.read_text().splitlines()):
        found = classify(row["image"], candidate_labels=["dark", "light"], hypothesis_template="a photo of a {}.")
        assert {one["label"]: one["score"] for one in found} == pytest.approx(row["probabilities"], abs=1e-5)
    assert evaluate_run(run, pictures)["metrics"]["accuracy"] == 1


def test_other_classes_are_measured_by_their_names(run, tmp_path, caplog):
    data = write_folder(tmp_path / "data", test=8)
    (data / "test" / "dark").rename(data / "test" / "gray")
    found = evaluate_run(run, str(data))
    assert set(found["per_class"]) == {"gray", "light"}
    assert "Measured among the data's own classes" in caplog.text


def test_the_code_on_the_card_runs(run, capsys, monkeypatch):
    monkeypatch.chdir(run)
    code = re.search(r"```python\n(.+?)```", (run / "README.md").read_text(), re.DOTALL).group(1)
    exec(compile(code, "card", "exec"), {})  # noqa: S102
    assert "'dark'" in capsys.readouterr().out


@pytest.fixture(scope="module")
def captioned(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "captioned"
    given = config(models("clip"), baselines=True, demo_examples=2)
    finetune(given, arguments(folder, num_train_epochs=6), splits=splits())
    return folder


def test_captions_make_a_search_both_ways(captioned):
    record = TransferRecord.load(captioned)
    assert (record.problem_type, record.class_names) == ("", [])
    assert record.dataset["columns"] == {"image": "image", "text": "caption"}
    assert record.baselines["random_order"]["image_to_text_recall_at_1"] == pytest.approx(1 / 4)
    assert record.metrics["mean_recall"] > record.baselines["random_order"]["mean_recall"]
    assert "mean_recall" in record.baselines["pretrained"]
    low, high = record.intervals["image_to_text_recall_at_1"]
    assert low <= record.metrics["image_to_text_recall_at_1"] <= high
    assert {"image", "label", "prediction", "score"} <= record.errors[0].keys()
    assert record.examples[0]["text"] == "a dark picture 0"
    assert "| Image to text, recall@1 |" in (captioned / "README.md").read_text()


def test_a_model_of_captions_is_measured_on_classes(captioned, pictures, tmp_path):
    assert set(evaluate_run(captioned, pictures)["per_class"]) == {"dark", "light"}
    data = tmp_path / "data"
    DatasetDict(test=rows(4)).save_to_disk(str(data))
    assert predict_run(captioned, str(data), tmp_path / "answers.jsonl") == 4
    answer = json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])
    assert answer["prediction"].startswith("a ")
    assert -1 <= answer["score"] <= 1


def test_recall_by_hand():
    search = CaptionSearch(Dataset.from_dict({"text": ["a", "b", "a"]}))
    assert (search.captions, search.own.tolist(), search.first) == (["a", "b"], [0, 1, 0], [0, 1])
    pictures = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    texts = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    captions, nearest, found = search.found(pictures, texts)
    assert captions[:, 0].tolist() == [0, 0, 1]
    assert nearest[0] == 1
    recalls = search.recalls(captions, found)
    assert recalls["image_to_text_recall_at_1"] == pytest.approx(1 / 3)
    # Of the two pictures of "a" the first is found; that of "b" is not.
    assert recalls["text_to_image_recall_at_1"] == pytest.approx((1 / 2 + 0) / 2)
    assert search.chance()["text_to_image_recall_at_1"] == pytest.approx(1 / 3)


# Batches


def test_equal_captions_share_a_column_and_classes_have_one_each(models, tmp_path):
    named = splits(column="label", values=["dark", "light"] * 8)
    prepared = prepare(config(models("clip")), arguments(tmp_path), splits=named)
    collate = TWO_TOWERS.collator(prepared.processor, prepared.data)
    train = collate([prepared.encoded["train"][i] for i in (0, 1, 2, 3)])
    assert train["labels"][0] == train["labels"][2] != train["labels"][1] == train["labels"][3]
    assert len(train["input_ids"]) == 4
    assert torch.equal(train["input_ids"][0], train["input_ids"][2])
    test = collate([prepared.encoded["test"][i] for i in (1, 2, 3)])
    assert test["labels"].tolist() == [[1], [0], [1]]
    assert test["input_ids"].shape[1] == train["input_ids"].shape[1]
    assert len(test["input_ids"]) == 2
    assert next(iter(test)) == "pixel_values"


@pytest.mark.slow
def test_siglip_learns(models, tmp_path):
    record = finetune(config(models("siglip")), arguments(tmp_path, max_steps=2), splits=splits())
    assert np.isfinite(record.metrics["loss"])


def test_siglip_reads_texts_of_one_length(models, tmp_path):
    prepared = prepare(config(models("siglip")), arguments(tmp_path / "other"), splits=splits())
    batch = TWO_TOWERS.collator(prepared.processor, prepared.data)([prepared.encoded["train"][0]])
    assert batch["input_ids"].shape == (1, 12)


def test_accumulated_steps_are_those_of_the_same_micro_batches(models, tmp_path):
    prepared = prepare(
        config(models("clip")), arguments(tmp_path, gradient_accumulation_steps=2, max_steps=1), splits=splits()
    )
    trainer = make_trainer(prepared)
    batches = [
        trainer._prepare_inputs(batch) for _, batch in zip(range(2), trainer.get_train_dataloader(), strict=False)
    ]
    for batch in batches:
        labels = batch.pop("labels")
        loss = ContrastiveLoss()(prepared.model.train()(**batch), labels, 16)
        loss.backward()
        batch["labels"] = labels
    wanted = prepared.model.logit_scale.grad.clone()
    prepared.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 2
    for batch in batches:
        trainer.training_step(prepared.model, batch, torch.tensor(16))
    assert prepared.model.logit_scale.grad == pytest.approx(wanted)


# Frozen towers


def still(before, after, start):
    names = [name for name in before if name.startswith(start)]
    assert names
    return all(torch.equal(before[name], after[name]) for name in names)


@pytest.mark.parametrize(
    ("name", "tower", "strategy"),
    [
        ("dual", "image", "full"),
        ("clip", "image", "gradual-unfreezing"),
        pytest.param("dual", "both", "full", marks=pytest.mark.slow),
        pytest.param("clip", "text", "layer-sampling", marks=pytest.mark.slow),
        *(
            pytest.param("clip", "image", strategy, marks=pytest.mark.slow)
            for strategy in (
                "bitfit",
                "norm-only",
                "chain-thaw",
                "feature-extraction",
                '{"name": "freeze-first", "k": 1}',
            )
        ),
    ],
)
def test_a_frozen_tower_stays_still_to_the_bit(name, tower, strategy, models, tmp_path):
    model = models(name)
    given = config(model, freeze_tower=tower, strategy=strategy, learning_rates="layerwise-decay")
    record = finetune(given, arguments(tmp_path, num_train_epochs=10), splits=splits())
    before, after = load_file(f"{model}/model.safetensors"), load_file(tmp_path / "model.safetensors")
    alone = strategy == "feature-extraction"  # the projections, whatever tower is frozen
    assert still(before, after, "vision_model.") == (tower in ("image", "both") or alone)
    assert still(before, after, "text_model.") == (tower in ("text", "both") or alone)
    assert not torch.equal(before["visual_projection.weight"], after["visual_projection.weight"])
    assert record.options["freeze_tower"] == tower


def test_what_remains_follows_the_strategy_group_by_group():
    model = clip()[0]
    groups = lock_tower(discover_layer_groups(model), model, "image")
    assert [group.name for group in groups.open] == ["embeddings", "towers.1", "towers.2", "head"]
    assert {name.split(".")[0] for group in groups.open[:-1] for name in group.parameters} == {"text_model"}
    both = lock_tower(groups, model, "both")
    assert [set(group.parameters) for group in both.open] == [
        {"logit_scale", "visual_projection.weight", "text_projection.weight"}
    ]


@pytest.mark.parametrize("name", TOWERS)
def test_projections_belong_to_no_tower(name):
    model = TOWERS[name]()[0]
    assert find_towers(model) == {"image": "vision_model", "text": "text_model"}
    (left,) = lock_tower(discover_layer_groups(model), model, "both").open
    own = {"text_model.head.weight", "text_model.head.bias", "logit_bias"} if name == "siglip" else None
    assert set(left.parameters) == {"logit_scale", *(own or {"visual_projection.weight", "text_projection.weight"})}


@pytest.mark.parametrize("name", ["clip", pytest.param("dual", marks=pytest.mark.slow)])
def test_a_frozen_picture_tower_is_read_from_the_cache_and_changes_nothing(name, models, tmp_path):
    found = []
    for cache in (None, FrozenPrefixCache(tmp_path / "cache", storage="float32")):
        output = arguments(tmp_path / f"run-{cache is None}", num_train_epochs=3)
        prepared = prepare(config(models(name), freeze_tower="image"), output, splits=splits())
        trainer = make_trainer(prepared)
        attach(trainer, schedule=prepared.strategy, cache=cache, groups=prepared.groups)
        trainer.train()
        found.append({key: value.clone() for key, value in prepared.model.state_dict().items()})
    assert (cache.report["hits"], cache.report["misses"]) == (6, 0), cache.report["reason"]
    assert cache.report["cuts"][0]["skipped_share"] > 0.4
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_the_cache_says_why_it_stays_off_below_a_learning_picture_tower(models, tmp_path):
    prepared = prepare(config(models("clip"), freeze_tower="text"), arguments(tmp_path, max_steps=2), splits=splits())
    trainer, cache = make_trainer(prepared), FrozenPrefixCache(tmp_path / "cache")
    attach(trainer, schedule=prepared.strategy, cache=cache, groups=prepared.groups)
    trainer.train()
    assert "nothing lies below 'vision_model" in cache.report["reason"]


@pytest.mark.slow
def test_lora_learns_in_the_tower_that_is_not_frozen(models, tmp_path, capsys):
    given = config(models("clip"), strategy="lora", freeze_tower="image")
    prepared = prepare(given, arguments(tmp_path / "other"), splits=splits())
    learning = prepared.strategy(prepared.model, prepared.groups)
    assert any("text_model" in name for name in learning)
    assert not any("vision_model" in name for name in learning)
    record = finetune(given, arguments(tmp_path / "run", max_steps=2), splits=splits())
    assert np.isfinite(record.metrics["loss"])
    code = re.sub(
        r'classify\(".+?", ', "classify(PICTURE, ", getting_started(record, str(tmp_path / "run"), adapter=True)
    )
    exec(compile(code, "card", "exec"), {"PICTURE": picture(1, light=True)})  # noqa: S102
    assert "'a dark picture 0'" in capsys.readouterr().out


class Stop(TrainerCallback):
    """Ends training after a step, as a crash would."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3
        control.should_save = state.global_step == 3


def test_a_resumed_run_equals_one_that_was_not_stopped(models, tmp_path):
    given = config(models("clip"), strategy="gradual-unfreezing", freeze_tower="image")
    finetune(given, arguments(tmp_path / "whole", num_train_epochs=3), splits=splits())
    parts = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 3}
    prepared = prepare(given, arguments(tmp_path / "parts", **parts), splits=splits())
    trainer = make_trainer(prepared, Stop())
    attach(trainer, schedule=prepared.strategy, learning_rates=prepared.rates, groups=prepared.groups)
    trainer.train()
    again = arguments(tmp_path / "parts", **parts, resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    finetune(given, again, splits=splits())
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("start", "end"), [(4.6, math.log(100)), (5.0, 5.0), (1.0, 1.5)])
def test_the_temperature_is_cut_where_clip_cut_it(start, end):
    model = clip()[0]
    callback = TemperatureCallback()
    model.logit_scale.data.fill_(start)
    callback.on_train_begin(None, None, None, model=model)
    model.logit_scale.data.fill_(start + 0.5)
    callback.on_step_end(None, None, None, model=model)
    assert model.logit_scale.item() == pytest.approx(end)


def test_the_scale_of_siglip_is_free():
    model = TOWERS["siglip"]()[0]
    model.logit_scale.data.fill_(9.0)
    TemperatureCallback().on_step_end(None, None, None, model=model)
    assert model.logit_scale.item() == 9


@pytest.mark.slow
def test_the_temperature_is_cut_while_training(models, tmp_path):
    model, processor = clip(logit_scale_init_value=4.6)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    finetune(config(str(tmp_path / "model")), arguments(tmp_path / "run", learning_rate=0.1), splits=splits())
    assert AutoModel.from_pretrained(tmp_path / "run").logit_scale.item() <= math.log(100) + 1e-6


# A baseline of image classification


def test_class_names_alone_are_a_baseline_of_image_classification(models, pictures, tmp_path):
    given = TransferConfig(
        model=models("clip"), dataset=pictures, task="image-classification", strategy="full", baselines=True
    )
    found = measure_zero_shot(prepare(given, arguments(tmp_path / "run")), "test")
    prepared = prepare(config(models("clip"), pictures), arguments(tmp_path / "other"))
    assert found["accuracy"] == asked_by_names(prepared)["accuracy"]
    smoothed = arguments(tmp_path / "run", label_smoothing_factor=0.1)  # of the classifier's own labels
    assert measure_zero_shot(prepare(given, smoothed), "test") == found


@pytest.mark.slow
def test_the_card_of_image_classification_tells_what_class_names_alone_give(models, pictures, tmp_path):
    given = TransferConfig(
        model=models("clip"), dataset=pictures, task="image-classification", strategy="full", baselines=True
    )
    record = finetune(given, arguments(tmp_path / "run", max_steps=1))
    assert record.model_class == "CLIPForImageClassification"
    assert "accuracy" in record.baselines["zero_shot"]
    assert "pretrained towers by class names alone" in (tmp_path / "run" / "README.md").read_text()


def asked_by_names(prepared):
    """What the towers are right about before any training, by hand."""
    collate = TWO_TOWERS.collator(prepared.processor, prepared.data)
    batch = collate([prepared.encoded["test"][i] for i in range(8)])
    labels = batch.pop("labels")[:, 0]
    with torch.no_grad():
        answers = prepared.model.eval()(**batch).logits_per_image.argmax(1)
    return {"accuracy": (answers == labels).float().mean().item()}


def test_without_a_text_tower_there_is_no_such_baseline(tmp_path, pictures, caplog):
    given = TransferConfig(model=save_model("vit", tmp_path / "vit"), dataset=pictures, task="image-classification")
    assert measure_zero_shot(prepare(given, arguments(tmp_path / "run")), "test") is None
    folder = tmp_path / "clip"
    model, processor = clip()
    model.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    given = TransferConfig(model=str(folder), dataset=pictures, task="image-classification")
    assert measure_zero_shot(prepare(given, arguments(tmp_path / "run")), "test") is None
    assert "is not measured: The tokenizer must know words" in caplog.text


# Bad input


def test_models_without_two_towers_are_refused(tmp_path, model_folder):
    with pytest.raises(
        ValueError, match="a tower for pictures and one for texts, but BertModel has not.+CLIP, SigLIP"
    ):
        prepare(config(model_folder), arguments(tmp_path), splits=splits())
    with pytest.raises(ValueError, match="but ViTModel has not"):
        prepare(config(save_model("vit", tmp_path / "vit")), arguments(tmp_path), splits=splits())


def test_a_processor_of_texts_alone_is_refused(models, tmp_path):
    model, processor = clip()
    with pytest.raises(ValueError, match="CLIPImageProcessor.* has no image_processor and no tokenizer. Save one"):
        TWO_TOWERS.set_up(model, processor.image_processor, None)
    model.save_pretrained(tmp_path / "model")
    processor.tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="Can't load image processor"):
        prepare(config(str(tmp_path / "model")), arguments(tmp_path / "run"), splits=splits())


def test_long_captions_are_truncated_and_counted(models, tmp_path):
    long = [" ".join(["a very dark picture"] * 5), "a light picture"] * 8
    prepared = prepare(config(models("clip")), arguments(tmp_path), splits=splits(values=long))
    assert prepared.overlong == 24
    batch = TWO_TOWERS.collator(prepared.processor, prepared.data)([prepared.encoded["train"][0]])
    assert batch["input_ids"].shape == (1, 12)
    assert batch["input_ids"][0, -1] == prepared.processor.tokenizer.eos_token_id


@pytest.mark.slow
def test_a_shorter_reading_is_saved_with_the_tokenizer(models, tmp_path):
    finetune(config(models("clip"), max_length=5), arguments(tmp_path, max_steps=1), splits=splits())
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.tokenizer.model_max_length == 5


def test_captions_that_the_tokenizer_reads_alike_are_told(models, tmp_path, caplog):
    given = config(models("clip"))
    prepare(given, arguments(tmp_path), splits=splits(values=["dark car", "dark cat", "light"] * 6))
    assert "reads 3 different captions as only 2" in caplog.text
    with pytest.raises(ValueError, match="TokenizersBackend knows none, not even of 'car'. Save the tokenizer"):
        prepare(given, arguments(tmp_path), splits=splits(values=["car", "cat"] * 8))


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        ({"values": ["a photo", " "] * 8}, {}, "must hold text, but 8 of 16"),
        ({"values": ["a photo"] * 16}, {}, "must tell pictures apart"),
        ({"column": "label", "values": ["Dark", "dark "] * 8}, {}, "must differ by more than case and spaces"),
        ({"column": "label", "values": [0, 1] * 8}, {"class_names": [" ", "b"]}, "one is empty. Give `class_names`"),
        ({"column": "label", "values": [0, 1] * 8}, {"problem_type": "regression"}, "of no use"),
        ({"column": "other"}, {}, "must hold captions or classes.+image, other.+--text_column"),
        ({}, {"caption_template": "one {label}"}, "but the data has captions"),
        ({}, {"text_column": "caption", "label_column": "label"}, "both given"),
    ],
)
def test_rows_that_cannot_be_learned_from_are_refused(data, changes, message, models, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare(config(models("clip"), **changes), arguments(tmp_path), splits=splits(**data))


def test_numbers_as_labels_are_told_but_named_ones_are_captions(models, tmp_path, caplog):
    data = splits(column="label", values=[0, 1] * 8)
    prepare(config(models("clip")), arguments(tmp_path), splits=data)
    assert "say nothing as captions" in caplog.text
    prepared = prepare(
        config(models("clip"), class_names=["dark", "light"], caption_template="this is {label}"),
        arguments(tmp_path),
        splits=data,
    )
    assert prepared.data.splits["train"]["text"][:2] == ["this is dark", "this is light"]


@pytest.mark.parametrize("template", ["a photo", "{label} {label}", "{label} {}", "a {name}", "{label} }"])
def test_templates_without_one_place_for_the_class_are_refused(template):
    with pytest.raises(ValueError, match="`caption_template` must hold {label}.+once"):
        config("m", caption_template=template)


def test_other_names_of_towers_and_other_tasks_are_refused(tmp_path, model_folder):
    with pytest.raises(ValueError, match="`freeze_tower` must be one of image, text, both"):
        config("m", freeze_tower="left")
    given = TransferConfig(model=model_folder, dataset="d", freeze_tower="image")
    with pytest.raises(ValueError, match="`freeze_tower` is of no use to text-classification"):
        prepare(given, arguments(tmp_path), splits=DatasetDict())
    model = AutoModel.from_pretrained(model_folder)
    with pytest.raises(ValueError, match="needs a model of two towers, such as CLIP.+BertModel is none"):
        lock_tower(discover_layer_groups(model), model, "image")
    with pytest.raises(ValueError, match="must be one of image, text, both"):
        lock_tower(discover_layer_groups(model), model, "left")


def test_unreadable_pictures_are_named_or_left_out(models, tmp_path):
    folder = write_folder(tmp_path / "data", train=12, test=4)
    (folder / "train" / "dark" / "notes.png").write_text("no image")
    with pytest.raises(ValueError, match=r"1 of 13.+notes\.png.+--skip_unreadable"):
        prepare(config(models("clip"), folder), arguments(tmp_path / "run"))
    prepared = prepare(config(models("clip"), folder, skip_unreadable=True), arguments(tmp_path / "run"))
    assert prepared.data.facts["skipped"] == {"train": 1}


def test_smoothed_labels_are_refused(models, tmp_path):
    with pytest.raises(ValueError, match="learns by the loss of two towers. Leave `--label_smoothing_factor` out"):
        prepare(config(models("clip")), arguments(tmp_path, label_smoothing_factor=0.1), splits=splits())


def test_batches_without_other_captions_are_refused(models, tmp_path):
    alone = arguments(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    with pytest.raises(ValueError, match="learns nothing from batches of 1, with any `gradient_accumulation_steps`"):
        prepare(config(models("clip")), alone, splits=splits())


def test_a_model_of_classes_is_measured_on_captions(run, tmp_path):
    DatasetDict(test=rows(4)).save_to_disk(str(tmp_path / "data"))
    assert "mean_recall" in evaluate_run(run, str(tmp_path / "data"))["metrics"]


def test_lp_ft_is_refused(models, tmp_path):
    with pytest.raises(ValueError, match="solves an output layer of classes"):
        prepare(config(models("clip"), strategy="lp-ft"), arguments(tmp_path), splits=splits())


def test_reduce_keeps_similarities_of_classes_and_vectors_of_captions():
    similar, texts, seen = torch.randn(3, 2), torch.randn(2, 4), torch.randn(3, 4)
    own = texts[[1, 0, 1]]
    kept = TWO_TOWERS.reduce((similar, similar.T, own, seen, "towers"), torch.tensor([5, 3, 5]))
    assert torch.equal(kept[0], seen)
    assert torch.equal(kept[1], own)
    for labels in (None, torch.tensor([[1], [0], [1]])):
        assert torch.equal(TWO_TOWERS.reduce((similar, similar.T, texts, seen), labels), similar)
    outcome = Outcome(Dataset.from_dict({"text": ["a", "b", "a"]}), None, tuple(map(np.asarray, kept)))
    assert TWO_TOWERS.metrics(TWO_TOWERS_DATA, outcome)["mean_recall"] >= 0


TWO_TOWERS_DATA = type("Data", (), {"class_names": ()})()
