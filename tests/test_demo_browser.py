"""The rendered Space as visitors meet it: a process of its own, asked by a client and in a browser."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from hf_transfer_plugin.hub import render_space
from tests.test_demo import MULTI, REGRESSION, SINGLE, adapter, classifier, record

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
INSTALL = 'pip install "hf-transfer-plugin[test]" and apt-get install chromium'
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
PATIENCE = 90_000  # milliseconds; other tests may take the processor meanwhile
SIZES = {"desktop": (1280, 900, "light"), "phone": (390, 844, "light"), "dark": (390, 844, "dark")}
pytestmark = pytest.mark.hub
pytest.importorskip("gradio_client", reason=INSTALL)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Starts apps; ends them all."""
    running = []

    def serve(command, cwd=None):
        port = free_port()
        log = tmp_path_factory.mktemp("log") / "app.log"
        with log.open("w") as file:
            child = subprocess.Popen(
                [*command, "--port", str(port)], cwd=cwd, stdout=file, stderr=subprocess.STDOUT, env=os.environ
            )
        running.append(child)
        url = f"http://127.0.0.1:{port}/"
        until = time.monotonic() + 90
        while time.monotonic() < until and child.poll() is None:
            try:
                urlopen(url, timeout=2).close()
            except OSError:
                time.sleep(0.3)
            else:
                return url, child
        raise AssertionError(log.read_text())

    yield serve
    for child in running:
        child.terminate()
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@pytest.fixture(scope="module")
def urls(served, tmp_path_factory, tokenizer):
    """One app for each form of the task; the first compares with its base."""
    work = tmp_path_factory.mktemp("work")

    def start(name, model, **changes):
        folder = render_space(record(**changes), work / name, "me/model")
        return served([sys.executable, "app.py", "--model", model], cwd=folder)[0]

    adapted, _ = adapter(work / "adapter", classifier(work / "base", tokenizer), tokenizer)
    return {
        SINGLE: start("single", adapted),
        MULTI: start("multi", classifier(work / "m", tokenizer, MULTI), problem_type=MULTI, pair=True),
        REGRESSION: start("number", classifier(work / "r", tokenizer, REGRESSION), problem_type=REGRESSION),
    }


@pytest.fixture(scope="module")
def client():
    from gradio_client import Client

    return lambda url: Client(url, verbose=False, analytics_enabled=False)


def test_client_asks_by_names_that_read_well(urls, client):
    single, multi, number = (client(urls[kind]) for kind in (SINGLE, MULTI, REGRESSION))
    found = [list(asked.view_api(return_format="dict")["named_endpoints"]) for asked in (single, multi, number)]
    assert found == [["/classify"], ["/classify"], ["/predict_value"]]
    ours, base = single.predict(text="a fine film", compare_with_base=True, api_name="/classify")
    assert {c["label"] for c in ours["confidences"]} == {c["label"] for c in base["confidences"]} == {"bad", "good"}
    assert sum(c["confidence"] for c in ours["confidences"]) == pytest.approx(1, abs=1e-5)
    found = multi.predict(text="a film", text_pair="a cast", api_name="/classify")
    assert {c["label"] for c in found["confidences"]} == {"fun", "warm", "dull"}
    assert isinstance(number.predict("a film", api_name="/predict_value"), float)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), (None, "is empty"), (7, "got int"), (["a"], "got list"), ("x" * 20_001, "at most 20,000")],
)
def test_client_is_told_what_is_wrong(urls, client, text, message):
    with pytest.raises(Exception, match=message):
        client(urls[REGRESSION]).predict(text, api_name="/predict_value")


def test_huge_request_is_turned_away_before_it_is_read(urls, client):
    with pytest.raises(Exception, match="413"):
        client(urls[REGRESSION]).predict("x" * 2_000_000, api_name="/predict_value")
    assert isinstance(client(urls[REGRESSION]).predict("still here", api_name="/predict_value"), float)


@pytest.mark.parametrize("path", ["gradio_api/file=app.py", "gradio_api/file=demo.json", "monitoring"])
def test_nothing_else_is_served(urls, path):
    with pytest.raises(OSError, match="40[34]"):
        urlopen(urls[SINGLE] + path, timeout=10)


def test_one_command_serves_a_run_and_ends_with_it(served, client, tmp_path, tokenizer):
    run = classifier(tmp_path / "run", tokenizer)
    record().save(run)
    url, child = served([sys.executable, "-m", "hf_transfer_plugin", "demo", run, "--no_browser"])
    assert client(url).predict("a fine film", api_name="/classify")["label"] in {"bad", "good"}
    child.terminate()
    assert child.wait(20) == 143
    with pytest.raises(OSError, match="refused"):
        urlopen(url, timeout=2)


# The browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None and not os.environ.get("CI"):
        pytest.skip(f"needs a browser: {INSTALL}")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(params=SIZES)
def page(browser, request):
    """A fresh page that must not leave this machine."""
    width, height, scheme = SIZES[request.param]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE)
    opened, asked = context.new_page(), set()
    opened.on("request", lambda sent: asked.add(urlsplit(sent.url)))
    yield opened
    context.close()
    hosts = {url.hostname for url in asked if url.scheme not in {"data", "blob"}}
    assert hosts == {"127.0.0.1"}


def faults(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return json.dumps([v for v in found if v["impact"] in {"serious", "critical"}], indent=1) if found else ""


def open_page(page, url):
    page.goto(url)
    page.wait_for_selector("button.primary")
    page.wait_for_load_state("networkidle")


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_page_answers_without_accessibility_faults(urls, page, kind):
    from playwright.sync_api import expect

    open_page(page, urls[kind])
    assert faults(page) in {"", "[]"}
    for box in page.locator("textarea:visible").all():
        box.fill("a fine warm film")
    switch = page.get_by_label("Compare with the base model")
    if kind == SINGLE:
        switch.check()
    else:
        expect(switch).to_have_count(0)
    page.locator("button.primary").click()
    if kind == REGRESSION:
        expect(page.get_by_label("Value")).to_have_value(re.compile(r"-?\d+(\.\d+)?"))
    else:
        answers = page.locator(".answer")
        expect(answers).to_have_count(2 if kind == SINGLE else 1)
        for i in range(answers.count()):
            expect(answers.nth(i)).to_contain_text("%")
            expect(answers.nth(i)).to_have_attribute("aria-live", "polite")
    assert faults(page) in {"", "[]"}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("textarea:visible").first).to_have_value("")
    assert faults(page) in {"", "[]"}


def test_example_fills_the_box_and_faults_are_shown(urls, page):
    from playwright.sync_api import expect

    open_page(page, urls[REGRESSION])
    page.locator("button.primary").click()
    expect(page.get_by_text("Text is empty. Type something, or choose an example.")).to_be_visible()
    page.wait_for_function("[...document.querySelectorAll('.toast-body')].every(e => !e.getAnimations().length)")
    assert faults(page) in {"", "[]"}
    page.get_by_text("a fine warm film").first.click()
    expect(page.locator("textarea:visible").first).to_have_value("a fine warm film")
