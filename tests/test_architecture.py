"""The house rules, as tests: who may import whom, who alone may touch what, and how large things may grow."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_transfer_plugin"
FLOORS = [  # a module may import only from floors above it in this list (= lower in the house)
    {"_optional"},
    {"config", "record", "metrics", "augmentation", "interpolation"},
    {"layers"},
    {"freezing", "schedules", "learning_rates", "adapters", "features", "losses", "tasks"},
    {"callbacks", "prefix_cache", "transferability", "planning"},
    {"trainer"},
    {"tuning"},
    {"recipes"},
    {"cli", "__main__"},
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
WING = {"hub": {"_optional", "record"}}  # beside the tower: knows only what the record says
KEEPERS = {"peft": {"adapters"}, "gradio": {"hub"}, "optuna": {"tuning"}, "huggingface_hub": {"hub"}}
TRAINER_NAMES = {"Trainer", "TrainerCallback", "Seq2SeqTrainer"}  # from floor 3 up
FILE_LINES, FUNCTION_LINES = 350, 60
SPACE = PACKAGE / "hub" / "templates"  # the Space is a product of its own: it may import nothing of ours
ALL = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


MODULES = [p for p in ALL if room(p) != "__init__" and SPACE not in p.parents]
IDS = [str(p.relative_to(PACKAGE)) for p in MODULES]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_go_down(path):
    here = room(path)
    assert here in FLOOR or here in WING, f"{here} has no floor"
    for name in imports(path):
        top, *rest = name.split(".")
        if top != "hf_transfer_plugin":
            continue
        there = rest[0]
        if there == here or {here, there} == {"cli", "__main__"}:
            continue
        if here in WING:
            assert there in WING[here], f"{here} may know only {sorted(WING[here])}, not {there}"
        elif there in WING:
            assert here in {"recipes", "cli"}, f"{here} must not reach into {there}"
        else:
            assert FLOOR[there] < FLOOR[here], (
                f"{here} (floor {FLOOR[here]}) may not import {there} (floor {FLOOR[there]})"
            )


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_libraries_have_their_keepers(path):
    here = room(path)
    for name in imports(path):
        top = name.split(".")[0]
        assert here in KEEPERS.get(top, {here}), f"only {KEEPERS.get(top)} may import {top}"
        if name.split(".")[0] == "transformers" and name.split(".")[-1] in TRAINER_NAMES:
            assert FLOOR.get(here, 0) >= FLOOR["callbacks"], f"{here} is below the floor that knows {name}"


def test_one_hand_on_the_tap():
    writers = {room(p) for p in MODULES if "requires_grad_(" in p.read_text() or ".requires_grad = " in p.read_text()}
    assert writers <= {"freezing"}


def test_the_space_stands_alone():
    for path in SPACE.rglob("*.py"):
        assert not any(name.split(".")[0] == "hf_transfer_plugin" for name in imports(path)), path


@pytest.mark.parametrize("path", ALL, ids=[str(p.relative_to(PACKAGE)) for p in ALL])
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES, "split by sibling"
    assert path.stem not in {"utils", "helpers", "common", "misc"}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.lineno
            assert node.end_lineno - start < FUNCTION_LINES, f"{node.name} is too long"
