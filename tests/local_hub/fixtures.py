"""Fixtures for tests against a `LocalHub`; `pytest_plugins = ["tests.local_hub.fixtures"]` loads them."""

import pytest

from tests.local_hub import LocalHub, online
from tests.local_hub.conversation import REPO, needs_xet


@pytest.fixture
def hub(tmp_path):
    with LocalHub(tmp_path / "hub") as hub, online():
        yield hub
        assert hub.leaks() == []
        assert [entry for entry in hub.log if entry.error is not None] == []


@pytest.fixture
def api(hub):
    return hub.api()


@pytest.fixture(params=["lfs", pytest.param("xet", marks=needs_xet)])
def leg(request, hub):
    with online(xet=request.param == "xet"):
        yield request.param


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def repo(api):
    return api.create_repo(REPO).repo_id
