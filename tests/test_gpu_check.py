"""The checks for a GPU, as far as they can be run without one, so that the script itself is known to run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_checks_for_a_gpu_pass_on_a_processor():
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    verdicts = re.findall(r"^(pass|FAIL|skip)  (.*?):", done.stdout, re.MULTILINE)
    assert done.returncode == 0, done.stdout
    assert [name for verdict, name in verdicts if verdict == "skip"] == [
        "fp16 with skipped steps around a thaw",
        "memory",
        "launched fsdp2",
    ]
    assert [verdict for verdict, _ in verdicts].count("pass") == 9
