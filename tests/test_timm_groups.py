"""Layer groups as timm's models state them; needs `pip install --target FOLDER --no-deps timm torchvision`."""

import json
import os
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import nn

from hf_transfer_plugin import TransferConfig, _optional
from hf_transfer_plugin.cli import main as cli
from hf_transfer_plugin.layers.timm_groups import timm_layer_groups
from hf_transfer_plugin.recipes.pretrained import load_processor

FOLDER = os.environ.get("TIMM_FOLDER", "")
INSTALL = "pip install --target FOLDER --no-deps timm torchvision, and set TIMM_FOLDER to it"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a process with timm in it says."""
    if not FOLDER:
        pytest.skip(f"needs timm: {INSTALL}")
    output = tmp_path_factory.mktemp("timm")
    command = [sys.executable, "-m", "tests.timm_checks", FOLDER, str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((output / "found.json").read_text())


@pytest.mark.slow
def test_groups_are_those_of_timms_matcher(found):
    for name, told in found["groups"].items():
        assert told["groups"] == told["theirs"], name
        assert told["verified"], name
        assert told["rule"].startswith("timm's group_matcher of "), name
        assert (told["names"][0], told["names"][-1]) == ("embeddings", "head"), name
        assert len(set(told["names"])) == len(told["names"]), name


@pytest.mark.slow
def test_groups_are_named_by_their_place(found):
    names = {name: told["names"] for name, told in found["groups"].items()}
    assert names["vit_tiny_patch16_224"] == ["embeddings", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert names["resnet10t"] == ["embeddings", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "head"]
    assert names["inception_v3"][-2] == "Mixed_7c"
    assert names["convnext_atto"][1] == "stages.0.blocks.0"
    assert {"head.weight", "head_dist.weight"} <= set(found["groups"]["deit_tiny_distilled_patch16_224"]["classifier"])


@pytest.mark.slow
def test_a_wrapped_model_goes_the_whole_way(found):
    run = found["run"]
    assert run["names"] == ["embeddings", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "head"]
    assert run["head"] == ["timm_model.fc.weight", "timm_model.fc.bias"]
    assert run["learned"] == ["head"]
    assert run["accuracy"] == run["again"]
    assert run["probe"] > 0.5


def test_other_models_state_nothing():
    assert timm_layer_groups(nn.Sequential(nn.Linear(2, 2))) is None


def test_without_timm_its_package_is_named(tmp_path):
    if find_spec("timm") is not None:
        pytest.skip("timm is installed")
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "num_classes": 2, "pretrained_cfg": {}}')
    given = TransferConfig(model=str(tmp_path), dataset="d", task="image-classification")
    with pytest.raises(ValueError, match="requires the timm library but it was not found.+`pip install timm`"):
        load_processor(given)


def test_a_torchvision_of_another_build_is_told_with_the_way_out(monkeypatch, capsys):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(_optional, "find_spec", lambda name: types.SimpleNamespace())
    monkeypatch.setattr(_optional, "import_module", broken)

    def fails(rest):
        raise ImportError("Could not import module 'TrainingArguments'.")

    monkeypatch.setattr("hf_transfer_plugin.cli.import_module", lambda name: types.SimpleNamespace(run=fails))
    assert cli(["train"]) == 2
    told = capsys.readouterr().err
    assert "error: torchvision is installed, but does not load beside torch 2" in told
    assert "operator torchvision::nms does not exist" in told
    assert "pip install torchvision --index-url" in told
    assert "prepared by Pillow" in told


def test_no_torchvision_is_no_fault(monkeypatch):
    monkeypatch.setattr(_optional, "find_spec", lambda name: None)
    assert _optional.torchvision_fault() == ""
    monkeypatch.setattr(_optional, "find_spec", lambda name: types.SimpleNamespace())
    monkeypatch.setattr(_optional, "import_module", lambda name: types.ModuleType(name))
    assert _optional.torchvision_fault() == ""
