"""The command line: help, flags and files, exit codes, and errors of one sentence."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from hf_transfer_plugin.cli import COMMANDS, evaluate, main
from hf_transfer_plugin.cli.parsing import table, typed_names
from hf_transfer_plugin.cli.train import EXAMPLE, parse
from hf_transfer_plugin.config import ConfigError, TransferConfig
from hf_transfer_plugin.recipes import DEFAULT_ARGUMENTS
from hf_transfer_plugin.record import TransferRecord
from tests.conftest import reviews

ROOT = Path(__file__).parents[1]
QUICK = ["--max_steps", "4", "--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true"]
REQUIRED = ["--model", "m", "--dataset", "d", "--output_dir", "o"]


@pytest.fixture
def call(capsys):
    """Runs a command; gives its exit code and what it printed."""

    def run(*argv):
        capsys.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refused(call):
    """Runs a command that must fail with one sentence; gives the sentence."""

    def run(*argv):
        code, _, err = call(*argv)
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        assert code == 2, err
        assert len(lines) == 1, err
        assert "Traceback" not in err
        return lines[0]

    return run


@pytest.fixture
def train(reviews_file, model_folder, tmp_path):
    """The words of a quick run, with some replaced."""

    def words(**changes):
        flags = {"model": model_folder, "dataset": reviews_file, "output_dir": tmp_path / "run", **changes}
        return ["train", *QUICK, *(str(w) for name, value in flags.items() for w in (f"--{name}", value))]

    return words


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folder):
    """A run made by the command line from a YAML file and typed flags, its data, and what was printed."""
    folder = tmp_path_factory.mktemp("cli")
    rows = Dataset.from_dict(reviews())
    rows.to_csv(str(folder / "rows.csv"), index=False)
    settings = {
        "model": model_folder,
        "dataset": str(folder / "rows.csv"),
        "output_dir": str(folder / "run"),
        "strategy": {"name": "freeze-first", "k": 1},
        "class_names": ["bad", "good"],
        "learning_rate": "1e-3",
        "max_steps": 2,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "weight_decay": 0.0,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder, main(["train", "--config", str(folder / "run.yaml"), "--max_steps", "3"])


# Help


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_exactly_the_commands(call, argv):
    code, out, err = call(*argv)
    listed = out.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert [line.split(maxsplit=1)[1] for line in listed] == list(COMMANDS.values())
    assert "Example:\n  hf-transfer-plugin train " in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example(call, command):
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    assert f"usage: hf-transfer-plugin {command}" in out
    assert f"Example:\n  hf-transfer-plugin {command} " in out


def test_help_of_train_shows_the_measured_defaults(call):
    _, out, _ = call("train", "--help")
    assert f"(default: {DEFAULT_ARGUMENTS['learning_rate']})" in " ".join(out.split())
    for name in ("--strategy", "--learning_rates", "--label_column", "--per_device_train_batch_size"):
        assert name in out
    assert "for later epochs: auto, off, or a folder. (default: off)" in " ".join(out.split())


def test_examples_of_train_can_be_parsed():
    words = next(line for line in EXAMPLE.splitlines() if "hf-transfer-plugin train" in line).split()
    config, args, explicit = parse(words[2:])
    assert (config.dataset, args.output_dir) == ("reviews.csv", "my-run")
    assert explicit == {"model", "dataset", "output_dir"}


def test_unknown_command_lists_the_commands(refused):
    assert refused("tune") == f"error: There is no command 'tune'; the commands are {', '.join(COMMANDS)}."


# Flags and files


def test_missing_flags_are_told_at_once(call):
    code, out, err = call("train")
    assert (code, out) == (2, "")
    for name in ("model", "dataset", "output_dir"):
        assert f"error: `--{name}` is required but missing." in err.splitlines()
    assert "Traceback" not in err


@pytest.mark.parametrize("missing", ["model", "dataset", "output_dir"])
def test_each_missing_flag_is_told(call, missing):
    words = [f"--{name}=x" for name in ("model", "dataset", "output_dir") if name != missing]
    code, _, err = call("train", *words)
    assert code == 2
    assert [line for line in err.splitlines() if "required" in line] == [
        f"error: `--{missing}` is required but missing."
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stratgy", "full"], "error: Unknown flag '--stratgy'. See `hf-transfer-plugin train --help`."),
        (["stray"], "error: Unknown flag 'stray'."),
        (
            ["--learning_rate", "fast"],
            "error: argument --learning_rate.*: invalid float value: 'fast'. Run `hf-transfer",
        ),
        (["--strategy", "thaw"], "error: `strategy` must name one of full, .*, but got 'thaw'."),
        (["--strategy", '{"name": '], "error: `strategy` must be a name or a JSON object"),
        (["--task", "dancing"], "error: `task` must be one of text-classification, .*, but got 'dancing'."),
        (["--max_length", "0"], "error: `max_length` must be a whole number of at least 1, but got 0."),
        (["--eval_strategy", "sometimes"], "error: .*sometimes"),
        (["--eval_strategy", "no", "--load_best_model_at_end", "true"], "error: The training arguments do not go to"),
    ],
)
def test_wrong_flags_are_told_in_one_line(refused, words, message):
    assert re.match(message, refused("train", *REQUIRED, *words))


def test_several_faults_are_told_at_once(call):
    code, _, err = call("train", *REQUIRED, "--strategy", "thaw", "--task", "x", "--max_length", "0")
    assert code == 2
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 3


def test_typed_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: m\ndataset: d\noutput_dir: o\nlearning_rate: 1e-3\nseed: 5\nmax_length: 12\n"
        "strategy: {name: freeze-first, k: 2}\nclass_names: [a, b]\nweight_decay: 0.0\nuse_cpu: true\n"
    )
    config, args, explicit = parse(["--config", str(file), "--seed", "7", "--model=typed", "--max-length", "9"])
    assert (config.model, config.dataset, args.output_dir) == ("typed", "d", "o")
    assert (args.seed, args.learning_rate, config.max_length) == (7, 1e-3, 9)
    assert config.strategy == {"name": "freeze-first", "k": 2}
    assert config.class_names == ["a", "b"]
    assert args.weight_decay == 0.0
    assert args.warmup_steps == DEFAULT_ARGUMENTS["warmup_steps"]
    assert {"weight_decay", "seed", "max_length", "learning_rate"} <= explicit
    assert "warmup_steps" not in explicit


def test_a_typed_value_that_equals_trainers_default_is_explicit():
    _, args, explicit = parse([*REQUIRED, "--save_strategy", "steps", "--num-train-epochs=3"])
    assert {"save_strategy", "num_train_epochs"} <= explicit
    assert args.save_strategy == "steps"


def test_saving_follows_the_evaluation_when_the_best_model_is_wanted():
    flags = ["--load_best_model_at_end", "true", "--eval_strategy", "steps", "--eval_steps", "5", "--save_steps", "5"]
    _, args, _ = parse([*REQUIRED, *flags, "--use_cpu", "true"])
    assert (args.eval_strategy, args.save_strategy) == ("steps", "steps")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: m\n", "error: Unknown key 'modle' in '.*run.yaml'. See `hf-transfer-plugin train --help`."),
        ("- a\n", "error: '.*run.yaml' must hold keys and values, but holds list."),
        ("max_steps: many\n", "error: argument --max_steps.*: invalid int value: 'many'"),
        ("task: dancing\n", "error: `task` must be one of"),
        ("class_names: [no, yes]\n", "error: `class_names` must be at least two different names, as text"),
    ],
)
def test_wrong_config_file_is_told_in_one_line(refused, tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    assert re.match(message, refused("train", *REQUIRED, "--config", tmp_path / "run.yaml"))


def test_missing_config_file_is_told(refused):
    assert "there is no file 'nowhere.yaml'" in refused("train", *REQUIRED, "--config", "nowhere.yaml")


def test_parse_gives_every_field_of_the_configuration():
    config, _, _ = parse([
        *REQUIRED,
        "--text_column",
        "body",
        "--trust_remote_code",
        "false",
        "--class_names",
        "a",
        "b",
    ])
    assert config == TransferConfig(model="m", dataset="d", text_column="body", class_names=["a", "b"])
    with pytest.raises(ConfigError, match="`--model` is required"):
        parse(["--dataset", "d"])


def test_typed_names():
    assert typed_names(["--a", "1", "--b-c=2", "x", "-h", "--d"]) == {"a", "b_c", "d"}


def test_table_has_aligned_columns():
    assert table([("metric", "test"), ("accuracy", 0.5), ("rows", 12)]) == (
        "metric     test\n--------  -----\naccuracy  0.500\nrows         12"
    )


# Commands that work


def test_train_with_a_config_file(finished, call):
    folder, code = finished
    assert code == 0
    record = TransferRecord.load(folder / "run")
    assert record.arguments["steps"] == 3  # typed, not the file's 2
    assert record.arguments["learning_rate"] == 1e-3
    assert record.arguments["weight_decay"] == 0.0  # the file's, although it is Trainer's default
    assert record.strategy == {"name": "freeze-first", "k": 1}
    assert record.class_names == ["bad", "good"]


def test_train_prints_plan_result_and_next_command(call, train, tmp_path):
    code, out, _ = call(*train(max_steps=1))
    record = TransferRecord.load(tmp_path / "run")
    assert code == 0
    assert "The plan:\nfrom step  learning" in out
    assert f"accuracy  {record.metrics['accuracy']:.3f}".replace("  ", " ") in " ".join(out.split())
    assert f"Next: hf-transfer-plugin evaluate {tmp_path / 'run'} --dataset OTHER_DATA" in out


def test_evaluate_prints_tables(finished, call):
    folder, _ = finished
    code, out, _ = call("evaluate", folder / "run", "--dataset", folder / "rows.csv")
    assert code == 0
    assert "accuracy" in out
    assert "on 40 rows (train)." in out
    lines = [line.split() for line in out.splitlines()]
    head = lines.index(["class", "precision", "recall", "F1", "rows"])
    assert [line[0] for line in lines[head + 2 : head + 4]] == ["bad", "good"]


def test_evaluate_prints_the_figures_that_a_class_has(capsys):
    found = {"metrics": {"mean_iou": 0.5}, "rows": 2, "split": "test"}
    found["samples"] = [{"image": "data:x", "found": "dog"}]
    found["per_class"] = {"cat": {"recall": 0.0, "support": 0}, "dog": {"iou": 0.5, "recall": 1.0, "support": 9}}
    evaluate._print(found, "pixels")
    out = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["class", "IoU", "recall", "pixels"] in out
    assert ["dog", "0.500", "1.000", "9"] in out
    assert ["found:", "dog"] in out


def test_evaluate_prints_json(finished, call):
    folder, _ = finished
    code, out, _ = call("evaluate", folder / "run", "--dataset", folder / "rows.csv", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["rows"] == 40
    assert sum(map(sum, found["confusion_matrix"])) == 40
    assert found["per_class"].keys() == {"bad", "good"}


def test_inspect_lists_the_layer_groups(finished, call, model_folder):
    code, out, err = call("inspect", model_folder, "--task", "text-classification")
    assert (code, err) == (0, "")
    assert out.startswith(f"BertForSequenceClassification of {model_folder}\n")
    for name in ("embeddings", "layer.0", "layer.1", "layer.2", "head"):
        assert name in out
    assert call("inspect", model_folder)[1].startswith("BertModel of")
    folder, _ = finished
    assert call("inspect", folder / "run")[1].startswith("BertForSequenceClassification of")


def test_inspect_groups_by_patterns(call, model_folder):
    code, out, _ = call("inspect", model_folder, "--pattern", "embeddings", "--pattern", ".*")
    assert code == 0
    assert "layer.0" not in out.splitlines()[1]


def test_plan_shows_phases_without_training(call, model_folder):
    before = sorted(os.listdir(model_folder))
    code, out, err = call("plan", model_folder, "--strategy", "chain-thaw", "--rows", "64", "--length", "16")
    assert (code, err) == (0, "")
    # 64 rows, 16 at a time, 3 epochs: 12 steps in 6 phases.
    assert [line.split()[0] for line in out.splitlines()[1:7]] == ["0", "2", "4", "6", "8", "10"]
    assert "(full)" in out
    assert sorted(os.listdir(model_folder)) == before
    assert call("plan", model_folder)[0] == 0


def test_plan_and_inspect_know_adapters(call, model_folder):
    spec = '{"name": "lora", "layers": 1}'
    code, out, err = call("plan", model_folder, "--adapter", spec, "--rows", "64", "--length", "16")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split()[1:4] == [
        "layer.2,",
        "head",
        "3,890",
    ]  # 4 of 16 x 16, 2 of 16 x 32 at rank 16; pooler and classifier
    listed = call("inspect", model_folder, "--task", "text-classification", "--adapter", spec)[1].splitlines()
    assert listed[1].endswith("can learn")
    assert [line.split()[-1] for line in listed[2:5]] == ["0", "0", "0"]
    assert call("plan", model_folder, "--adapter", "loar")[::2] == (
        2,
        "error: `adapter` must name one of lora, dora, rslora, pissa, olora, lora+, adalora, ia3, vera, oft, boft, "
        "ln-tuning, trainable-tokens, prefix, prompt, p-tuning, but got 'loar'.\n",
    )


# Everything that goes wrong


BAD_FILES = {
    "empty": ("", "must hold rows, but '.*' is empty"),
    "header": ("text,label\n", "must hold rows, but '.*' has none"),
    "columns": ("words,label\na,1\nb,0\n", "The text column must be in the data: .* the columns are label, words"),
    "no label": ("text,mark\na,1\nb,0\n", "The label column must be in the data: .* the columns are mark, text"),
    "one class": ("text,label\na,1\nb,1\n", "must hold at least two classes in 'label', but every row is 1"),
    "mixed": ("text,label\na,1\nb,0\nc,good\n", "some are numbers .* and some are words"),
    "no text": ("text,label\na,1\n,0\n,1\n", r"2 of 3 in the train split do not \(row 1, counted from 0, is empty"),
    "no class": ("text,label\na,1\nb,\n", "Every row must have a label, but row 1 of the train split has none"),
    "numbers": ("text,label\n1,1\n2,0\n", "row 0, counted from 0, is a number"),
    "ids": ("text,label\n" + "".join(f"t,{i}\n" for i in range(9)), "must be classes, but 9 of 9 rows differ"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_data_is_told_in_one_line(refused, train, tmp_path, name):
    text, message = BAD_FILES[name]
    (tmp_path / "bad.csv").write_text(text)
    assert re.search(message, refused(*train(dataset=tmp_path / "bad.csv")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "nowhere.csv"}, "`dataset` names a file or folder that does not exist: 'nowhere.csv'"),
        ({"dataset": "nobody/nothing"}, "'nobody/nothing' could not be loaded"),
        ({"model": "nobody/nothing"}, "`model` must be a Hub id or .*, but 'nobody/nothing' could not be loaded"),
        ({"model": "./nowhere"}, "`model` names a folder that does not exist: './nowhere'"),
        ({"strategy": "freeze-first"}, "`strategy` 'freeze-first' does not take the fields {}: missing"),
        ({"strategy": '{"name": "freeze-first", "k": 9}'}, "`k` must lie between 0 and 4 for .* but got 9"),
        ({"label_column": "stars"}, "expected 'stars', but the columns are label, text"),
        ({"class_names": "only"}, "`class_names` must be at least two different names"),
        ({"resume_from_checkpoint": "true"}, "There is no checkpoint in .* to resume from"),
        ({"early_stopping_patience": "2"}, "`early_stopping_patience` .* needs `--load_best_model_at_end true`"),
        ({"validation_fraction": "1.5"}, "`validation_fraction` must be at least 0 and below 1, but got 1.5"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(refused, train, changes, message):
    assert re.search(message, refused(*train(**changes)))


def test_folder_of_another_run_is_refused(refused, train, finished):
    folder, _ = finished
    told = refused(*train(output_dir=folder / "run"))
    assert "`output_dir` must be a new or empty folder" in told
    assert "--resume_from_checkpoint true" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect"], "error: the following arguments are required: model. Run `hf-transfer-plugin inspect --help`"),
        (["inspect", "nobody/nothing"], "'nobody/nothing' could not be loaded"),
        (["inspect", "./nowhere"], "`model` names a folder that does not exist"),
        (["inspect", "MODEL", "--task", "dancing"], "`task` must be one of text-classification, "),
        (["inspect", "MODEL", "--pattern", "lora"], "Every pattern must match a parameter"),
        (["inspect", "MODEL", "--pattern", "("], "A pattern must be a regular expression, but '(' is not: missing )"),
        (["plan", "MODEL", "--strategy", "thaw"], "`strategy` must name one of"),
        (["plan", "MODEL", "--strategy", '{"name": "freeze-first", "k": 5}'], "`k` must lie between 0 and 4"),
        (["plan", "MODEL", "--strategy", '{"name": "freeze-first", "k": -1}'], "`k` must lie between 0 and 4"),
        (
            ["plan", "MODEL", "--rows", "0"],
            "error: `--rows` must be positive, but got 0. Run `hf-transfer-plugin plan",
        ),
        (["plan", "MODEL", "--task", "x"], "`task` must be one of text-classification, "),
        (["plan", "MODEL", "--steps", "3"], "error: unrecognized arguments: --steps 3. Run `hf-transfer-plugin plan"),
        (["evaluate", "RUN"], "error: the following arguments are required: --dataset"),
        (["evaluate", "nowhere", "--dataset", "x.csv"], "Expected a run folder with a transfer_record.json"),
        (["evaluate", "RUN", "--dataset", "x.csv"], "`dataset` names a file or folder that does not exist"),
        (["evaluate", "RUN", "--dataset", "DATA", "--split", "dev"], "`split` must be one of the dataset's splits"),
        (["evaluate", "RUN", "--dataset", "DATA", "--label_column", "y"], "expected 'y', but the columns are label"),
        (["quickstart", "--rows", "3", "--output_dir", "never"], "`rows` must lie between 20 and 6824, but got 3"),
    ],
)
def test_faults_of_the_other_commands_are_told_in_one_line(refused, finished, model_folder, words, message):
    folder, _ = finished
    places = {"MODEL": model_folder, "RUN": folder / "run", "DATA": folder / "rows.csv"}
    assert message in refused(*(places.get(word, word) for word in words))


def test_evaluate_refuses_other_classes(refused, finished, tmp_path):
    folder, _ = finished
    (tmp_path / "other.csv").write_text("text,label\na,good\nb,great\n")
    told = refused("evaluate", folder / "run", "--dataset", tmp_path / "other.csv")
    assert told == "error: Labels must be among the model's classes bad, good, but the data has 'great'."


def test_ctrl_c_gives_130_and_the_way_on(call, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt(5)

    monkeypatch.setattr("hf_transfer_plugin.recipes.finetune", stopped)
    code, _, err = call("train", *REQUIRED)
    assert code == 130
    assert "Stopped after step 5; the checkpoint is saved." in err
    assert "`--resume_from_checkpoint true`" in err


def test_ctrl_c_before_training_says_nothing_of_a_checkpoint(call, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_transfer_plugin.recipes.finetune", stopped)
    assert call("train", *REQUIRED) == (130, "", "")


def test_faults_of_other_code_keep_their_traceback(monkeypatch):
    def bug(*args, **kwargs):
        raise ValueError("a bug somewhere else")

    monkeypatch.setattr("hf_transfer_plugin.recipes.finetune", bug)
    with pytest.raises(ValueError, match="a bug somewhere else"):
        main(["train", *REQUIRED])


def test_only_the_first_process_tells_a_fault(call, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert call("train", *REQUIRED, "--task", "x") == (2, "", "")


# Imports


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import hf_transfer_plugin; dir(hf_transfer_plugin)", {"torch", "transformers", "datasets", "sklearn"}),
        ("from hf_transfer_plugin.cli import main; main(['--help'])", {"torch", "transformers", "datasets", "yaml"}),
        ("from hf_transfer_plugin.config import TransferConfig", {"torch", "transformers", "datasets"}),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code, unwanted):
    script = f"import sys\n{code}\nprint(sorted({unwanted!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
