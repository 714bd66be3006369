"""Checks that a built wheel holds the whole package and nothing else."""

import sys
import zipfile
from pathlib import Path

root = Path(__file__).parents[1]
source = {
    str(p.relative_to(root))
    for p in (root / "hf_transfer_plugin").rglob("*")
    if p.is_file() and "__pycache__" not in p.parts
}
names = {name for name in zipfile.ZipFile(sys.argv[1]).namelist() if ".dist-info/" not in name}
assert names == source, f"missing: {sorted(source - names)}; too much: {sorted(names - source)}"
templates = "hf_transfer_plugin/hub/templates"
for needed in ("hf_transfer_plugin/py.typed", f"{templates}/model_card.md", f"{templates}/space/app.py"):
    assert needed in names, needed
metadata = zipfile.ZipFile(sys.argv[1])
entry = next(n for n in metadata.namelist() if n.endswith("entry_points.txt"))
assert "hf-transfer-plugin" in metadata.read(entry).decode()
assert any(n.endswith("licenses/LICENSE") for n in metadata.namelist())
print(f"{len(names)} files in the wheel")
