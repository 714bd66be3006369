"""`hf-transfer-plugin cache`: what it lists, removes, asks and refuses."""

import builtins

import pytest
import torch

from hf_transfer_plugin.cli import main
from hf_transfer_plugin.prefix_cache.folders import ROOT_VARIABLE
from hf_transfer_plugin.prefix_cache.storage import Slot
from hf_transfer_plugin.prefix_cache.store import ActivationStore, filling, list_stores, store_folder

SLOTS = (Slot((None, 100), torch.float32),)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with two caches and a folder of somebody else."""
    root = tmp_path / "root"
    for cut, rows in (("layer.4", 3), ("pooler", 1)):
        description = {"model": "tiny-bert", "cut": cut}
        store = ActivationStore(store_folder(root, description), description, SLOTS, "float16")
        store.write([bytes([n] * 16) for n in range(rows)], [[torch.zeros(10, 100)] for _ in range(rows)])
    (root / "theirs").mkdir()
    (root / "theirs" / "meta.json").write_text("{}")
    monkeypatch.setenv(ROOT_VARIABLE, str(root))
    return root


@pytest.fixture
def call(capsys):
    def run(*argv):
        capsys.readouterr()
        code = main(["cache", *map(str, argv)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def answer(monkeypatch, text):
    asked = []

    def say(question=""):
        asked.append(question)
        if text is None:
            raise EOFError
        return text

    monkeypatch.setattr(builtins, "input", say)
    return asked


def names(root, cut=None):
    return [one.name for one in list_stores(root) if cut in (None, one.cut)]


def test_ls_shows_each_cache_and_the_total(call, root):
    code, out, err = call("ls")
    assert (code, err) == (0, "")
    head, _, *rows = out.split("\n\n")[0].splitlines()
    assert head.split() == ["name", "model", "cut", "storage", "rows", "size", "last", "used"]
    cells = {line.split()[2]: line.split() for line in rows}
    # 10 tokens of 100 values of 2 bytes, and 44 bytes of the index, for each row.
    assert cells["layer.4"][:7] == [*names(root, "layer.4"), "tiny-bert", "layer.4", "float16", "3", "6.1", "kB"]
    assert cells["pooler"][4:7] == ["1", "2.0", "kB"]
    assert out.endswith(f"\n\n2 prefix caches with 8.2 kB in '{root}'.\n")
    assert "theirs" not in out


def test_ls_of_one_and_of_another_directory(call, root, tmp_path):
    code, out, _ = call("ls", *names(root, "pooler"))
    assert code == 0
    assert out.endswith(f"1 prefix cache with 2.0 kB in '{root}'.\n")
    nowhere = tmp_path / "none"
    assert call("ls", "--directory", nowhere) == (0, f"There are no prefix caches in '{nowhere}'.\n", "")
    assert not nowhere.exists()


@pytest.mark.parametrize("text", ["y", " Yes "])
def test_clear_tells_what_will_go_asks_and_removes(call, root, monkeypatch, text):
    asked = answer(monkeypatch, text)
    code, out, _ = call("clear")
    assert asked == [f"\nRemove 2 prefix caches with 8.2 kB from '{root}'? [y/N] "]
    assert code == 0
    assert "layer.4" in out
    assert out.endswith(f"Removed 2 prefix caches with 8.2 kB from '{root}'.\n")
    assert names(root) == []
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["theirs"]
    assert call("clear") == (0, f"There are no prefix caches in '{root}'.\n", "")


@pytest.mark.parametrize("text", ["", "n", "what?"])
def test_clear_removes_nothing_without_a_yes(call, root, monkeypatch, text):
    answer(monkeypatch, text)
    code, out, _ = call("clear")
    assert code == 1
    assert out.endswith("Nothing was removed.\n")
    assert len(names(root)) == 2


def test_clear_with_yes_asks_nobody_and_takes_names(call, root, monkeypatch):
    asked = answer(monkeypatch, "n")
    code, out, _ = call("clear", *names(root, "pooler"), "--yes", "--directory", root)
    assert (code, asked) == (0, [])
    assert f"Removed 1 prefix cache with 2.0 kB from '{root}'." in out
    assert names(root) == names(root, "layer.4") != []


def test_clear_where_nobody_can_answer_is_refused(call, root, monkeypatch):
    answer(monkeypatch, None)
    code, _, err = call("clear")
    assert (code, err) == (
        2,
        "error: Nobody is there to agree to the removal. Add `--yes` to remove without asking.\n",
    )
    assert len(names(root)) == 2


@pytest.mark.parametrize("action", ["ls", "clear"])
def test_an_unknown_name_is_refused(call, root, action):
    code, out, err = call(action, "nope", "--yes")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: There is no prefix cache 'nope' in '{root}'; there are ")
    assert len(names(root)) == 2


def test_what_is_being_filled_stays(call, root):
    with filling(root / names(root)[0]):
        code, _, err = call("clear", "--yes")
    assert code == 2
    assert "is being filled by another process. Wait for it or stop it first." in err
    assert len(names(root)) == 2


@pytest.mark.parametrize("argv", [[], ["burn"]])
def test_there_is_no_other_action(call, argv):
    code, _, err = call(*argv)
    assert code == 2
    assert "action" in err
    assert "Run `hf-transfer-plugin cache --help` for the flags." in err
