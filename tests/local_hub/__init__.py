"""A Hub of our own over real HTTP, for the real huggingface_hub client: see `LocalHub`."""

import os

import pytest

if not os.environ.get("CI"):  # there, a missing package is a failure
    for name in ("starlette", "uvicorn"):
        pytest.importorskip(name, reason=f"pip install {name} (both come with gradio)")

from tests.local_hub.faults import Fault
from tests.local_hub.server import LocalHub, online
from tests.local_hub.xet import AVAILABLE as XET_AVAILABLE

__all__ = ["XET_AVAILABLE", "Fault", "LocalHub", "online"]
