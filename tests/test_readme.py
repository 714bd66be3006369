"""Every code block of the README runs."""

import re
import shlex
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import TrainingArguments

from hf_transfer_plugin.cli import COMMANDS
from tests.conftest import bert, reviews, rows

README = (Path(__file__).parents[1] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
COMMAND_LINES = re.findall(r"hf-transfer-plugin .*", "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S)))


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(code, tmp_path, monkeypatch, model_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TRANSFER_PLUGIN_CACHE", str(tmp_path / "cache"))
    Dataset.from_dict(reviews()).to_csv("reviews.csv", index=False)
    code = code.replace("sentence-transformers/all-MiniLM-L6-v2", model_folder)
    args = TrainingArguments("run", max_steps=4, report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no")
    names = {"model": bert(), "args": args, "train": rows(), "Trainer": __import__("transformers").Trainer}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_exist_and_their_flags_are_in_the_help(line, capsys):
    from hf_transfer_plugin.cli import main

    command, *words = shlex.split(line)[1:]
    assert command in COMMANDS
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words if word.startswith("--"))


def test_the_two_commands_are_there():
    assert 'pip install ".[quickstart]" && hf-transfer-plugin quickstart' in README
    assert 'pip install ".[test]" && pytest' in README
    assert "@@" not in README
