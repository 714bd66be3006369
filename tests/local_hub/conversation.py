"""Short cuts for tests that talk to a `LocalHub`."""

import os

import pytest
from huggingface_hub.errors import HfHubHTTPError

from tests.local_hub import XET_AVAILABLE

REPO = "tester/tiny"
WEIGHTS = os.urandom(200_000)
needs_xet = pytest.mark.skipif(not XET_AVAILABLE, reason="pip install hf_xet")


def status(call, *args, **kwargs):
    with pytest.raises(HfHubHTTPError) as caught:
        call(*args, **kwargs)
    return caught.value.response.status_code


def upload(api, content=WEIGHTS, path="model.safetensors", **kwargs):
    return api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=REPO, **kwargs)
