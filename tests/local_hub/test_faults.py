"""Every kind of fault, what the client makes of it, and the libraries on top of the client."""

import json
import os
from pathlib import Path

import pytest
from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError

from tests.local_hub import Fault, online
from tests.local_hub.conversation import REPO, WEIGHTS, needs_xet, upload

pytest_plugins = ["tests.local_hub.fixtures"]
pytestmark = pytest.mark.hub


@pytest.mark.parametrize(("what", "error"), [({"status": 503}, HfHubHTTPError), ({"drop": "before"}, Exception)])
def test_a_fault_before_the_commit(hub, api, repo, what, error):
    fault = hub.faults.add("POST", "/commit/", **what)
    with pytest.raises(error):
        upload(api)
    assert (fault.hits, len(hub.commits(REPO))) == (1, 1)
    upload(api)
    assert len(hub.commits(REPO)) == 2


def test_a_commit_whose_answer_is_lost_is_there(hub, api, repo):
    hub.faults.add("POST", "/commit/", drop="after")
    with pytest.raises(Exception, match="(?i)disconnected|reset|closed|read"):
        upload(api)
    assert len(hub.commits(REPO)) == 2
    upload(api)
    assert len(hub.commits(REPO)) == 2


@pytest.mark.parametrize("path", ["/preupload/", "/objects/batch", "^/blobs/", "/objects/verify"])
@pytest.mark.parametrize("what", [{"status": 503, "retry_after": 0}, {"drop": "before"}], ids=["503", "drop"])
def test_the_client_retries_on_the_way_to_a_commit(hub, api, repo, path, what):
    fault = hub.faults.add("*", path, **what)
    upload(api)
    assert (fault.hits, hub.files(REPO)["model.safetensors"]) == (1, WEIGHTS)


@needs_xet
@pytest.mark.parametrize("path", ["/xet-write-token/", "/commit/"])
def test_a_folder_over_xet_is_retried(hub, api, repo, tmp_path, path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_bytes(WEIGHTS)
    fault = hub.faults.add("*", path, status=503)
    with online(xet=True):
        api.upload_folder(folder_path=tmp_path / "run", repo_id=REPO)
    assert (fault.hits, len(hub.commits(REPO)), hub.files(REPO)["model.safetensors"]) == (1, 2, WEIGHTS)


@pytest.mark.parametrize("cut", [50_000, 11_000_000])
def test_a_cut_download_is_finished(hub, api, repo, cache, cut):
    content = os.urandom(12_000_000) if cut > len(WEIGHTS) else WEIGHTS
    upload(api, content)
    hub.faults.add("GET", "^/blobs/", cut=cut)
    assert Path(api.hf_hub_download(REPO, "model.safetensors", cache_dir=cache)).read_bytes() == content
    first, second = hub.requests("GET", "/blobs/")
    assert first.sent == cut
    assert second.headers.get("range") == (None if cut < 10_000_000 else "bytes=10485760-")


def test_faults_count_and_skip(hub, repo):
    hub.faults.add("GET", "whoami", status=429, retry_after=3, times=2, skip=1)
    answers = [get_session().get(f"{hub.endpoint}/api/whoami-v2") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [401, 429, 429, 401]
    assert answers[1].headers["retry-after"] == "3"
    with pytest.raises(ValueError, match="one of `status`"):
        Fault("GET", "x")


# the libraries on top, each in a process of its own

MODEL = """
import hashlib, json, sys, torch
from transformers import BertConfig, BertForSequenceClassification
torch.manual_seed(0)
ids = torch.arange(8)[None]
if sys.argv[1] == "push":
    model = BertForSequenceClassification(BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                                     intermediate_size=32, vocab_size=50)).eval()
    model.push_to_hub("tester/tiny", private=True)
else:
    model = BertForSequenceClassification.from_pretrained("tester/tiny").eval()
digest = hashlib.sha256()
for name, value in sorted(model.state_dict().items()):
    digest.update(name.encode() + value.numpy().tobytes())
print(json.dumps([digest.hexdigest(), model(ids).logits[0].tolist()]))
"""
DATASET = """
from datasets import Dataset, DatasetDict, load_dataset
data = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]})
DatasetDict({"train": data, "test": data}).push_to_hub("tester/tiny")
found = load_dataset("tester/tiny")
assert found["train"].to_dict() == data.to_dict() and set(found) == {"train", "test"}
assert [row["text"] for row in load_dataset("tester/tiny", split="test", streaming=True)] == ["a", "b", "c"]
"""


def test_a_model_comes_back_as_it_was(hub, leg):
    found = [json.loads(hub.run(["-c", MODEL, what], xet=leg == "xet").stdout) for what in ("push", "pull")]
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-6)  # where the tensors lie decides about the last bit
    assert hub.repo(REPO).private
    assert hub.requests("GET", "/xet-read-token/" if leg == "xet" else "/blobs/")


def test_a_dataset_comes_back(hub, leg):
    hub.run(DATASET, xet=leg == "xet")
    assert any(path.endswith(".parquet") for path in hub.files(REPO, "dataset"))


def test_a_child_sees_this_hub_only(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_machine")
    monkeypatch.setenv("https_proxy", "http://proxy.invalid")
    found = hub.environment(tmp_path, token=None)
    assert "HF_TOKEN" not in found
    assert not any(key.lower().endswith("_proxy") or key == "HF_HUB_OFFLINE" for key in found)
    assert hub.environment(tmp_path, token="hf_wrong")["HF_TOKEN"] == "hf_wrong"
    with pytest.raises(AssertionError, match="wrong turn"):
        hub.run("raise SystemExit('wrong turn')")
