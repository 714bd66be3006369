"""The prefix cache through `finetune` and the command line: what it saves, and what the record and the card say."""

import json
import os
from dataclasses import replace

import pytest

from hf_transfer_plugin.cli import main
from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.features import extraction
from hf_transfer_plugin.hub import render_card
from hf_transfer_plugin.prefix_cache.listing import list_stores
from hf_transfer_plugin.recipes import finetune
from hf_transfer_plugin.recipes.caching import cache_facts, make_cache
from hf_transfer_plugin.record import TransferRecord
from tests.test_hub import record
from tests.test_recipes import arguments, assert_same_weights, save, weights

pytestmark = pytest.mark.slow
FREEZE = {"name": "freeze-first", "k": 3}
STRATEGIES = {  # what is cached, the modules that are fed, one after the other
    "feature-extraction": ("feature-extraction", ["bert.pooler.dense"]),
    "freeze-first": (FREEZE, ["bert.encoder.layer.2"]),
    "lp-ft": ({"name": "lp-ft", "frozen": 2}, ["bert.pooler.dense", "bert.encoder.layer.1"]),
    "gradual-unfreezing": (
        {"name": "gradual-unfreezing", "until": 1.0},
        ["bert.pooler.dense", "bert.encoder.layer.2", "bert.encoder.layer.1"],
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save(tmp_path_factory.mktemp("cached") / "reviews", train=40, validation=8, test=8)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr("hf_transfer_plugin.recipes.recording.render_plots", lambda *args: None)


@pytest.fixture
def run(tmp_path, model_folder, data):
    """Trains into a folder, with the prefix cache in another; keyword arguments go to the configuration."""

    def train(name="run", args=None, **changes):
        values = {"strategy": FREEZE, "prefix_cache": str(tmp_path / "cache")}
        config = TransferConfig(model=model_folder, dataset=data, **{**values, **changes})
        given = {"max_steps": 9, "learning_rate": 1e-2, "save_strategy": "no", **(args or {})}
        return finetune(config, arguments(tmp_path / name, **given), explicit={"save_strategy"})

    return train


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_trains_from_what_is_stored_and_the_next_run_stores_nothing(run, tmp_path, name):
    strategy, fed = STRATEGIES[name]
    first = run("first", strategy=strategy)
    facts = first.prefix_cache
    assert facts["used"]
    assert [cut["fed"] for cut in facts["cuts"]] == fed
    assert facts["hits"] >= 9 - 3 * (name == "gradual-unfreezing")
    # Batches that were made ahead of a thaw.
    assert facts["misses"] <= 3 * (name == "gradual-unfreezing")
    assert facts["rows_filled"] > 0
    assert facts["bytes"] == sum(store.nbytes for store in list_stores(tmp_path / "cache"))
    assert TransferRecord.load(tmp_path / "first") == first
    assert str(tmp_path) not in (tmp_path / "first" / "transfer_record.json").read_text()
    assert "of each forward pass was read from stored activations (float16)" in render_card(first)

    again = run("again", strategy=strategy)
    assert again.prefix_cache["rows_filled"] == 0
    assert again.prefix_cache["hits"] == facts["hits"]
    assert_same_weights(weights(tmp_path / "first"), weights(tmp_path / "again"))


def test_an_adapter_in_the_upper_layers_trains_from_what_is_stored(run):
    facts = run(strategy=None, adapter={"name": "lora", "r": 4, "layers": 1}).prefix_cache
    assert facts["used"]
    assert [cut["fed"] for cut in facts["cuts"]] == ["base_model.model.bert.encoder.layer.2"]
    assert facts["hits"] >= 9


def test_off_leaves_no_trace(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TRANSFER_PLUGIN_CACHE", str(tmp_path / "default"))
    made = run(prefix_cache="off", baselines=True)
    assert made.prefix_cache is None
    assert "prefix cache" not in render_card(made)
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_auto_takes_the_default_folder(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TRANSFER_PLUGIN_CACHE", str(tmp_path / "default"))
    assert run(prefix_cache="auto").prefix_cache["used"]
    assert sorted(os.listdir(tmp_path)) == ["default", "run"]
    assert len(list_stores(tmp_path / "default")) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"keep_dropout": True}, "`keep_dropout` lets the frozen layers drop out, so they never say the same twice"),
        ({"strategy": "full"}, "nothing lies below 'bert.embeddings.word_embeddings', the first module that learns"),
        ({"args": {"max_steps": 1}}, "less than an epoch has a frozen part, so no row would be read twice"),
    ],
)
def test_why_it_stayed_off_is_in_the_record_and_on_the_card(run, tmp_path, changes, reason):
    made = run(**changes)
    assert not made.prefix_cache["used"]
    assert reason in made.prefix_cache["reason"]
    assert (made.prefix_cache["hits"], made.prefix_cache["cuts"]) == (0, [])
    assert "The prefix cache was asked for, but nothing was read from it: " in render_card(made)
    assert not list_stores(tmp_path / "cache")


def test_the_solved_head_reads_what_is_stored(run):
    facts = run(strategy={"name": "lp-ft", "frozen": 2}, args={"max_steps": 3}).prefix_cache
    # Two batches of 32 rows, three of training, one of each evaluation.
    assert facts["hits"] == 2 + 3 + 1
    assert facts["misses"] == 0


def test_the_linear_probe_computes_its_features_once(run, tmp_path, monkeypatch):
    plain = run("plain", prefix_cache="off", baselines=True).baselines["linear_probe"]
    first = run("first", baselines=True).baselines["linear_probe"]
    monkeypatch.setattr(extraction._Watcher, "vectors", lambda *args: pytest.fail("a batch was computed"))
    again = run("again", baselines=True, strategy="feature-extraction").baselines["linear_probe"]
    timeless = lambda measured: {name: value for name, value in measured.items() if name != "seconds"}
    assert timeless(plain) == timeless(first) == timeless(again)
    cuts = {store.cut for store in list_stores(tmp_path / "cache")}
    assert cuts == {"mean of the last hidden state", "bert.encoder.layer.2", "bert.pooler.dense"}


def test_a_resumed_run_reads_what_is_stored_and_ends_the_same(run, tmp_path):
    run("whole", args={"max_steps": 9, "save_strategy": "no"})
    saving = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 5}
    run("broken", args=saving)
    for name in ("transfer_record.json", "model.safetensors"):
        (tmp_path / "broken" / name).unlink()
    (tmp_path / "broken" / "checkpoint-8").rename(tmp_path / "later")
    (tmp_path / "broken" / "checkpoint-9").rename(tmp_path / "last")
    resumed = run("broken", args={**saving, "resume_from_checkpoint": True}).prefix_cache
    assert resumed["rows_filled"] == 0
    # Five steps, and the evaluations behind the second and the third epoch.
    assert (resumed["hits"], resumed["misses"]) == (5 + 2, 0)
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


def test_a_run_may_go_on_with_another_cache_or_without(run, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 5}
    run("broken", args=saving)
    file = tmp_path / "broken" / "transfer_config.json"
    begun = {key: value for key, value in json.loads(file.read_text()).items() if key != "prefix_cache"}
    file.write_text(json.dumps(begun))
    resumed = run("broken", args={**saving, "resume_from_checkpoint": True}, prefix_cache="off")
    assert resumed.prefix_cache is None


def test_the_command_line_trains_with_a_cache_and_lists_it(tmp_path, model_folder, data, capsys):
    words = f"--model {model_folder} --dataset {data} --output_dir {tmp_path / 'run'} --max_steps 6 --use_cpu true"
    words += " --report_to none --disable_tqdm true --strategy feature-extraction"
    assert main(["train", *words.split(), "--prefix_cache", str(tmp_path / "cache")]) == 0
    assert TransferRecord.load(tmp_path / "run").prefix_cache["used"]
    capsys.readouterr()
    assert main(["cache", "ls", "--directory", str(tmp_path / "cache")]) == 0
    assert "bert.pooler.dense" in capsys.readouterr().out


def test_a_cache_that_is_a_file_is_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["--model", "m", "--dataset", "d", "--output_dir", "o", "--prefix_cache", str(tmp_path / "file")]
    assert main(["train", *words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert errors == [
        f"error: `prefix_cache` must be auto, off or a folder, but {str(tmp_path / 'file')!r} is no folder. Name "
        "another folder."
    ]


# Words from the record


def facts(**changes):
    cuts = [{"fed": "layer.4", "skipped_share": 0.5, "storage_error": 2e-4}]
    known = {"used": True, "reason": None, "storage": "float16", "cuts": cuts, "hits": 1200, "misses": 34}
    return {**known, "bytes": 10, "fill_seconds": 1.5, "rows_filled": 7, "rechecks": 0, **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {},
            "While layers were frozen, 50.0% of each forward pass was read from stored activations (float16) instead "
            "of computed, in 1,200 of 1,234 batches.\n",
        ),
        (
            {"cuts": [{"skipped_share": share} for share in (0.9999, 0.25, 0.5)], "storage": "int8"},
            "While layers were frozen, 25.0% to 99.9% of each forward pass was read from stored activations (int8) "
            "instead of computed, in 1,200 of 1,234 batches.\n",
        ),
        (
            {"used": False, "reason": "a batch differs."},
            "in 1,200 of 1,234 batches. The cache was switched off on the way: a batch differs.\n",
        ),
        ({"hits": 0, "cuts": []}, "The prefix cache was asked for, but nothing was read from it.\n"),
        (
            {"hits": 0, "used": False, "reason": "NEFTune <adds> *noise*"},
            "was asked for, but nothing was read from it: NEFTune &lt;adds&gt; \\*noise\\*.\n",
        ),
    ],
)
def test_the_card_says_what_the_cache_did(changes, words):
    card = render_card(record(prefix_cache=facts(**changes)))
    procedure = card[card.index("## Training procedure") : card.index("## Cost")]
    assert words in procedure


def test_a_record_without_the_field_loads_as_before(tmp_path):
    file = record(prefix_cache=facts()).save(tmp_path)
    assert TransferRecord.load(tmp_path).prefix_cache == facts()
    values = json.loads(file.read_text())
    del values["prefix_cache"]
    file.write_text(json.dumps(values))
    assert TransferRecord.load(tmp_path) == replace(record(), path=file)
    assert TransferRecord.load(tmp_path).prefix_cache is None


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("there is room for 1 GB in '{0}'", "there is room for 1 GB in its folder"),
        ("differs from what is stored in '{0}/0123abcd' (files were changed)", "stored in its folder (files were"),
        ("nothing below learns", "nothing below learns"),
        (None, None),
    ],
)
def test_folders_of_this_machine_stay_out_of_the_record(tmp_path, reason, told):
    cache = make_cache(TransferConfig(model="m", dataset="d", prefix_cache=str(tmp_path / "a cache")))
    cuts = [{"fed": "layer.1", "folder": str(tmp_path / "a cache" / "x")}]
    cache.report = facts(reason=reason and reason.format(tmp_path / "a cache"), cuts=cuts)
    found = cache_facts(cache)
    assert found["cuts"] == [{"fed": "layer.1"}]
    assert found["reason"] == told or told in found["reason"]
    assert str(tmp_path) not in json.dumps(found)
