"""`LocalHub`: the server in a thread, and what tests ask of it."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Host, Route, Router

from tests.local_hub import downloads, histories, repositories, spaces, uploads
from tests.local_hub.faults import Faults, Gate
from tests.local_hub.state import State, failure
from tests.local_hub.storage import HubError

ROOT = Path(__file__).parents[2]
LOOPBACK, STORAGE_HOST = "127.0.0.1", "localhost"  # two names of one machine: a token must not cross over
FOREIGN = ("HF_", "HUGGING", "TRANSFORMERS_", "GRADIO_", "SPACE_")
START_SECONDS, STOP_SECONDS = 20, 5


def application(state):
    def bound(handler):
        async def endpoint(request):
            return await handler(state, request)

        return endpoint

    def table(routes):
        return [Route(path, bound(handler), methods=[method]) for method, path, handler in routes]

    rooms = (spaces, histories, uploads, downloads, repositories)
    api = [route for room in rooms for route in table(room.ROUTES)]
    storage = Host(STORAGE_HOST, app=Router(table(downloads.STORAGE)))
    return Starlette(routes=[storage, *api], exception_handlers={HubError: failure})


class LocalHub:
    """A Hub on loopback that the real clients talk to, for `with`; it keeps what it is given in `folder`.

    `tokens` has "writer" (of `user`), "reader" (of the same user, read only) and "other" (somebody else, may write).
    `faults.add(method, path, ...)` breaks the next requests that fit (see `Fault`), `log` has all requests.
    `free_account = True` answers 402 to Gradio and Docker Spaces. With `xet=False` no file has a Xet hash, and
    downloads go to the storage host by the address in the redirect.
    """

    def __init__(self, folder, *, user="tester", xet=True):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.user = user
        self.state = State(self.folder, user, xet)
        self.tokens = self.state.accounts.tokens
        self.faults, self.log = Faults(), []
        self.endpoint = None
        self.homes = 0

    def __enter__(self):
        listener = socket.socket()
        listener.bind((LOOPBACK, 0))
        port = listener.getsockname()[1]
        self.endpoint = self.state.endpoint = f"http://{LOOPBACK}:{port}"
        self.state.cdn = f"http://{STORAGE_HOST}:{port}"
        app = Gate(application(self.state), self.faults, self.log)
        config = uvicorn.Config(
            app, http="h11", lifespan="off", log_level="critical", proxy_headers=False, timeout_graceful_shutdown=1
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self.server.started:
            if time.monotonic() > deadline or not self.thread.is_alive():
                raise RuntimeError("the local Hub did not start")
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(STOP_SECONDS)

    @property
    def free_account(self):
        return self.state.free_account

    @free_account.setter
    def free_account(self, value):
        self.state.free_account = value

    def repo(self, repo_id, repo_type="model"):
        return self.state.find(repo_type, repo_id)

    def repo_ids(self, repo_type="model"):
        return sorted(id for type, id in self.state.repos if type == repo_type)

    def commits(self, repo_id, repo_type="model", revision="main"):
        """Newest first; the last is the Hub's own "initial commit"."""
        return self.repo(repo_id, repo_type).log(revision)

    def files(self, repo_id, repo_type="model", revision="main"):
        found = self.repo(repo_id, repo_type).head(revision).files
        return {path: self.state.blobs.read(file) for path, file in found.items()}

    def requests(self, method="*", path=""):
        """The logged requests with this method whose path contains `path`."""
        return [entry for entry in list(self.log) if method in {"*", entry.method} and path in entry.path]

    def leaks(self):
        """The requests that carried a token to the storage host."""
        return [entry for entry in list(self.log) if entry.host == STORAGE_HOST and entry.token is not None]

    def environment(self, home, token="writer", xet=False):
        """Variables for a process that knows this Hub only; `token` is a name in `tokens`, a token, or None."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN) and not k.lower().endswith("_proxy")}
        kept |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "PYTHONPATH": str(ROOT),
        }
        if token is not None:
            kept["HF_TOKEN"] = self.tokens.get(token, token)
        if not xet:
            kept["HF_HUB_DISABLE_XET"] = "1"
        return kept

    def run(self, code, *, token="writer", xet=False, home=None, cwd=None, timeout=120, check=True, **variables):
        """Runs Python (code as a string, or a list of arguments) in a process of its own, with a fresh home."""
        if home is None:
            self.homes += 1
            home = self.folder / f"home-{self.homes}"
        arguments = ["-c", code] if isinstance(code, str) else [str(argument) for argument in code]
        done = subprocess.run(
            [sys.executable, *arguments],
            env=self.environment(home, token, xet) | variables,
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"the child process failed ({done.returncode}):\n{done.stdout}\n{done.stderr}")
        return done

    def api(self, token="writer"):
        """A client in this process; see `online` for what it needs."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.tokens.get(token, token))


@contextlib.contextmanager
def online(xet=False):
    """Lets the client of this process reach a `LocalHub`: it read HF_HUB_OFFLINE and HF_HUB_DISABLE_XET at import."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = False, not xet
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = before
