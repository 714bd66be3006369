"""The whole way of a demo: pushed, downloaded as the Hub would build it, its model loaded from there, asked."""

import sys
from urllib.parse import urlsplit

import pytest
from transformers import pipeline

from tests.test_demo_browser import browser, client, faults, open_page, served  # noqa: F401
from tests.test_publish import LEGS, REPO, TEXT, finished, hub, run  # noqa: F401

pytestmark = pytest.mark.hub


@pytest.mark.parametrize("xet", LEGS)
def test_a_pushed_space_answers_from_its_download(hub, run, tmp_path, served, client, browser, xet):  # noqa: F811
    from playwright.sync_api import expect

    hub.run(["-m", "hf_transfer_plugin", "push", run, REPO, "--space"], xet=xet)
    download = (
        f"from huggingface_hub import snapshot_download as get; get({REPO!r}, repo_type='space', local_dir='space')"
    )
    hub.run(download, xet=xet, token=None, cwd=tmp_path)
    seen = hub.environment(tmp_path / "home", token=None, xet=xet) | {"HF_HUB_OFFLINE": "0"}
    changed = [f"{name}={value}" for name, value in seen.items() if name.startswith(("HF_", "GRADIO_"))]
    url, _ = served(["env", *changed, sys.executable, "app.py"], cwd=tmp_path / "space")
    expected = {a["label"]: a["score"] for a in pipeline("text-classification", model=str(run))(TEXT, top_k=None)}
    answer = client(url).predict(TEXT, api_name="/classify")
    found = {a["label"]: a["confidence"] for a in answer["confidences"]}
    assert found == pytest.approx(expected, abs=1e-5)
    page = browser.new_page()
    asked = set()
    page.on("request", lambda sent: asked.add(urlsplit(sent.url)))
    open_page(page, url)
    page.locator("textarea:visible").first.fill(TEXT)
    page.locator("button.primary").click()
    expect(page.locator(".answer")).to_contain_text("%")
    assert faults(page) in {"", "[]"}
    page.close()
    assert {url.hostname for url in asked if url.scheme not in {"data", "blob"}} == {"127.0.0.1"}
    assert hub.requests("GET", f"{REPO}/resolve") or hub.requests("HEAD", f"{REPO}/resolve")
    assert hub.leaks() == []


def test_without_its_model_a_space_says_how_to_make_one(hub, run, tmp_path):  # noqa: F811
    hub.run(["-m", "hf_transfer_plugin", "demo", run, "--output_dir", tmp_path / "space", "--model", "tester/absent"])
    done = hub.run(["app.py"], cwd=tmp_path / "space", token=None, check=False)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Make one with `hf-transfer-plugin quickstart" in done.stderr
    assert "Traceback" not in done.stderr
