"""What a configuration accepts, and that it tells every fault at once."""

import dataclasses

import pytest
from transformers import Seq2SeqTrainingArguments

from hf_transfer_plugin.config import (
    LEARNING_RATE_NAMES,
    STRATEGY_NAMES,
    TASK_NAMES,
    ConfigError,
    TransferConfig,
    parse_spec,
    read_config_file,
)
from hf_transfer_plugin.freezing import POLICIES
from hf_transfer_plugin.learning_rates import LEARNING_RATES
from hf_transfer_plugin.recipes import DEFAULT_STRATEGY
from hf_transfer_plugin.schedules import SCHEDULES
from hf_transfer_plugin.tasks import TASKS


def config(**changes):
    return TransferConfig(**{"model": "m", "dataset": "d", **changes})


def test_names_equal_the_registries():
    assert sorted(STRATEGY_NAMES) == sorted([*POLICIES, *SCHEDULES])
    assert sorted(LEARNING_RATE_NAMES) == sorted(LEARNING_RATES)
    assert sorted(TASK_NAMES) == sorted(TASKS)
    assert all(name == made.name for registry in (SCHEDULES, LEARNING_RATES, TASKS) for name, made in registry.items())


def test_measured_defaults_have_known_names():
    assert DEFAULT_STRATEGY["name"] in STRATEGY_NAMES


def test_no_field_name_is_shared_with_the_training_arguments():
    mine = {f.name for f in dataclasses.fields(TransferConfig)}
    assert not mine & {f.name for f in dataclasses.fields(Seq2SeqTrainingArguments)}


def test_every_field_has_help_text():
    assert all(f.metadata.get("help") for f in dataclasses.fields(TransferConfig))


def test_all_faults_are_told_at_once():
    faulty = {
        "model": " ",
        "dataset": None,
        "task": "dancing",
        "problem_type": "ranking",
        "class_names": ["a", "a"],
        "strategy": "thaw",
        "learning_rates": "{",
        "validation_fraction": 1.0,
        "max_train_samples": 0,
        "max_length": 2.5,
        "early_stopping_patience": True,
        "trust_remote_code": "false",
        "prompt": "Summarize:",
        "mlm_probability": 1.0,
        "stride": 0,
        "max_target_length": -1,
        "prefix_cache": "yes",
        "sort_micro_batches": "yes",
    }
    with pytest.raises(ConfigError) as caught:
        TransferConfig(**faulty)
    told = [next(name for name in faulty if problem.startswith(f"`{name}`")) for problem in caught.value.problems]
    assert sorted(told) == sorted(faulty)
    assert str(caught.value).splitlines() == list(caught.value.problems)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "`model` must be a Hub id or a path, but got ''"),
        ({"task": "x"}, "`task` must be one of text-classification, .*, fill-mask, .*but got 'x'"),
        ({"problem_type": "x"}, "`problem_type` must be one of .*regression, but got 'x'"),
        (
            {"class_names": "positive"},
            "`class_names` must be at least two different names, as text, but got 'positive'",
        ),
        ({"class_names": ["one"]}, "`class_names` must be at least two different names"),
        ({"class_names": [False, True]}, r"`class_names` must be at least two different names, .*\[False, True\]"),
        ({"class_names": 3}, "`class_names` must be at least two different names, as text, but got 3"),
        ({"validation_fraction": -0.1}, "`validation_fraction` must be at least 0 and below 1, but got -0.1"),
        ({"validation_fraction": float("nan")}, "`validation_fraction` must be at least 0"),
        ({"validation_fraction": "0.1"}, "`validation_fraction` must be at least 0"),
        ({"max_train_samples": -1}, "`max_train_samples` must be a whole number of at least 1, but got -1"),
        ({"max_length": 0}, "`max_length` must be a whole number"),
        ({"early_stopping_patience": 0}, "`early_stopping_patience` must be a whole number"),
        ({"trust_remote_code": "false"}, "`trust_remote_code` must be true or false, but got 'false'"),
        ({"sort_micro_batches": 1}, "`sort_micro_batches` must be true or false, but got 1"),
        ({"strategy": "lpft"}, "`strategy` must name one of full, .*, but got 'lpft'"),
        ({"strategy": {"k": 3}}, "`strategy` must name one of full, .*, but got None"),
        ({"prefix_cache": ""}, "`prefix_cache` must be auto, off or a folder, but got ''"),
        ({"prefix_cache": True}, "`prefix_cache` must be auto, off or a folder, but got True. Use auto"),
        ({"prefix_cache": "AUTO"}, "`prefix_cache` must be auto, off or a folder, but got 'AUTO'"),
        ({"prefix_cache": __file__}, r"`prefix_cache` must be .* but '.*test_config.py' is no folder. Name another"),
        ({"prefix_cache": f"{__file__}/deep/er"}, r"`prefix_cache` must be .* but '.*test_config.py' is no folder"),
        ({"learning_rates": "decay"}, "`learning_rates` must name one of layerwise-decay, slanted-triangular"),
    ],
)
def test_wrong_values_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        config(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"validation_fraction": 0},
        {"validation_fraction": 0.0},
        {"class_names": ["a", "b"]},
        {"class_names": ("a", "b")},
        {"strategy": "lp-ft"},
        {"strategy": '{"name": "freeze-first", "k": 3}'},
        {"strategy": {"name": "freeze-first", "k": 3}},
        {"learning_rates": ' {"name": "layerwise-decay", "decay": 0.9}'},
        {"prefix_cache": "auto"},
        {"sort_micro_batches": True},
        {"prefix_cache": "~/not/there/yet"},
    ],
)
def test_right_values_are_kept(change):
    made = config(**change)
    assert {name: getattr(made, name) for name in change} == change
    assert TransferConfig.from_dict(made.to_dict()) == made


def test_the_prefix_cache_is_off_without_a_word_and_as_yaml_reads_off(tmp_path):
    assert config().prefix_cache == "off"
    (tmp_path / "run.yaml").write_text("prefix_cache: off\n")
    assert config(**read_config_file(tmp_path / "run.yaml")).prefix_cache == "off"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bitfit", {"name": "bitfit"}),
        ('{"name": "freeze-first", "k": 3}', {"name": "freeze-first", "k": 3}),
        ('\n {"name": "plateau"}', {"name": "plateau"}),
        ({"name": "freeze-first", "k": 3}, {"name": "freeze-first", "k": 3}),
    ],
)
def test_spec_as_name_json_or_mapping_gives_one_form(value, expected):
    assert parse_spec(value, STRATEGY_NAMES, "strategy") == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"name": "bitfit"', r"`strategy` must be a name or a JSON object, but .* is no JSON \(.*\)"),
        ('{"k": 3}', "`strategy` must name one of .*, but got None"),
        ("[]", r"`strategy` must name one of .*, but got '\[\]'"),
        (7, "`strategy` must name one of .*, but got 7"),
        ({"name": ["bitfit"]}, r"`strategy` must name one of .*, but got \['bitfit'\]"),
    ],
)
def test_wrong_spec_names_its_flag(value, message):
    with pytest.raises(ConfigError, match=message):
        parse_spec(value, STRATEGY_NAMES, "strategy")


def test_spec_does_not_share_the_mapping_it_came_from():
    given = {"name": "full"}
    parse_spec(given, STRATEGY_NAMES, "strategy")["k"] = 1
    assert given == {"name": "full"}


def test_unknown_and_missing_keys_are_told_together():
    with pytest.raises(ConfigError) as caught:
        TransferConfig.from_dict({"dataset": "d", "stratgy": "full", "lr": 1})
    assert len(caught.value.problems) == 3
    assert caught.value.problems[0].startswith("Unknown key 'stratgy'; the keys are adapter, adapter_output, ")
    assert caught.value.problems[1].startswith("Unknown key 'lr'")
    assert caught.value.problems[2] == "`model` is required but missing."


def test_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().model = "other"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("run.yaml", "model: m\nmax_steps: 4\nclass_names: [a, b]\n", {"model": "m", "max_steps": 4}),
        ("run.json", '{"model": "m", "strategy": {"name": "full"}}', {"model": "m", "strategy": {"name": "full"}}),
        ("run.yaml", "model: café\n", {"model": "café"}),
    ],
)
def test_config_file_is_read(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_config_file(tmp_path / name)
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "is no YAML: "),
        ("- model\n- dataset\n", "must hold keys and values, but holds list"),
        ("", "must hold keys and values, but holds NoneType"),
        ("model", "must hold keys and values, but holds str"),
        ("a: !!python/object/apply:os.system ['true']", "is no YAML: "),
    ],
)
def test_faulty_config_file_is_refused_by_name(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_config_file(file)
    assert str(file) in str(caught.value)


def test_missing_config_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="`--config` must name a YAML file, but there is no file .*nowhere.yaml"):
        read_config_file(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="there is no file"):
        read_config_file(tmp_path)
