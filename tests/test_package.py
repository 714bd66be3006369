"""The public face: lazy, typed and complete."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_transfer_plugin

ROOT = Path(__file__).parents[1]


def test_all_is_what_the_rooms_give():
    assert sorted(hf_transfer_plugin._HOME) == hf_transfer_plugin.__all__


@pytest.mark.parametrize("name", hf_transfer_plugin.__all__)
def test_every_public_name_can_be_imported_and_is_documented(name):
    found = getattr(hf_transfer_plugin, name)
    assert found.__doc__
    assert not (ROOT / "hf_transfer_plugin" / f"{name}.py").exists(), "a public name must not be a module's name"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hf_transfer_plugin.nothing


def test_the_type_checker_sees_the_same_names():
    tree = ast.parse((ROOT / "hf_transfer_plugin" / "__init__.py").read_text())
    typed = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert typed == set(hf_transfer_plugin.__all__)


@pytest.mark.parametrize(
    "code", ["import hf_transfer_plugin", "from hf_transfer_plugin.cli import main; main(['--help'])"]
)
def test_neither_import_nor_help_loads_the_heavy_libraries(code):
    check = f"{code}; import sys; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
