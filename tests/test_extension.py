"""`hf transfer-plugin`: what huggingface_hub's extension loader finds once it has installed this package."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAME = "hf-transfer-plugin"


def script(name):
    found = Path(sysconfig.get_path("scripts")) / name
    return found if found.is_file() else Path(sys.executable).parent / name


@pytest.fixture
def home(tmp_path):
    """A home with the manifest that `hf extensions install` leaves behind."""
    folder = tmp_path / ".local" / "share" / "hf" / "extensions" / NAME
    folder.mkdir(parents=True)
    manifest = {
        "owner": "tester",
        "repo": NAME,
        "repo_id": f"tester/{NAME}",
        "short_name": NAME.removeprefix("hf-"),
        "executable_path": str(script(NAME)),
        "type": "python",
        "installed_at": datetime.now(UTC).isoformat(),
        "description": "Transfer learning",
        "commit_sha": "0" * 40,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def hf(home, *words):
    return subprocess.run(
        [str(script("hf")), *words],
        env={**os.environ, "HOME": str(home), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_console_script_has_the_name_that_the_loader_wants():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == NAME
    assert project["scripts"] == {NAME: "hf_transfer_plugin.__main__:main"}
    # The loader installs the package without extras and reads its description line by line.
    assert '\ndescription = "' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.skipif(not script(NAME).is_file(), reason="the package is not installed")
def test_hf_reaches_our_commands_and_hands_exit_codes_on(home):
    done = hf(home, "transfer-plugin", "--help")
    assert done.returncode == 0, done.stderr
    assert "Transfer learning for Hugging Face models." in done.stdout
    wrong = hf(home, "transfer-plugin", "card", "nothing-here")
    assert wrong.returncode == 2
    assert "error: Expected a run folder" in wrong.stderr
    assert "transfer-plugin" in hf(home, "--help").stdout
