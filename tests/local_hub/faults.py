"""Faults on demand and a log of all requests, as the outermost layer of the server."""

import json
import logging
import re
import threading
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)


@dataclass
class Fault:
    """What goes wrong, where (`path` is a regular expression, searched), and how many times.

    Exactly one of: `status` (with `retry_after`, in seconds), `drop` ("before" or "after" the work is done),
    `cut` (the answer's body ends after so many bytes). `skip` lets the first matching requests pass.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    retry_after: int | None = None
    drop: str | None = None
    cut: int | None = None
    skip: int = 0
    hits: int = 0

    def __post_init__(self):
        if [self.status, self.drop, self.cut].count(None) != 2 or self.drop not in {None, "before", "after"}:
            raise ValueError("a fault needs one of `status`, `drop` ('before' or 'after') and `cut`")

    def takes(self, method, path):
        if self.method not in {"*", method} or not re.search(self.path, path) or self.hits >= self.times:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.hits += 1
        return True


class Faults:
    """The faults still to happen; the first that matches a request takes it."""

    def __init__(self):
        self.rules = []
        self.lock = threading.Lock()

    def add(self, method, path, **what):
        fault = Fault(method, path, **what)
        with self.lock:
            self.rules.append(fault)
        return fault

    def clear(self):
        with self.lock:
            self.rules.clear()

    def take(self, method, path):
        with self.lock:
            return next((fault for fault in self.rules if fault.takes(method, path)), None)


@dataclass
class Logged:
    """One request as it came; `status` is None where no answer went out."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    status: int | None = None
    received: int = 0
    sent: int = 0
    fault: Fault | None = field(default=None, repr=False)
    error: Exception | None = field(default=None, repr=False)

    @property
    def token(self):
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    @property
    def host(self):
        return self.headers.get("host", "").split(":")[0]


class Answer:
    """ASGI's `send`, counted, and ended early where a fault cuts the body."""

    def __init__(self, send, entry):
        self.send, self.entry = send, entry
        self.transport = send.__self__.transport  # of uvicorn's request cycle: ASGI itself cannot hang up

    async def __call__(self, message):
        entry, fault = self.entry, self.entry.fault
        if message["type"] == "http.response.start":
            entry.status = message["status"]
        body = message.get("body", b"")
        if fault is not None and fault.cut is not None and entry.sent + len(body) > fault.cut:
            message = {**message, "body": body[: fault.cut - entry.sent], "more_body": True}
            await self.send(message)
            self.transport.close()  # what is buffered still goes out
            entry.sent = fault.cut
            return
        entry.sent += len(body)
        await self.send(message)


async def lost(message):
    """A `send` for work whose answer nobody gets."""


class Gate:
    """ASGI: logs, injects faults, and lets the routes see the path as it was quoted.

    Revisions such as `refs/pr/1` come as one segment, `refs%2Fpr%2F1`, which the server would unquote.
    """

    def __init__(self, app, faults, log):
        self.app, self.faults, self.log = app, faults, log

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["raw_path"].decode().split("?")[0]
        headers = {key.decode().lower(): value.decode("latin-1") for key, value in scope["headers"]}
        entry = Logged(scope["method"], path, scope["query_string"].decode(), headers)
        entry.fault = self.faults.take(entry.method, path)
        self.log.append(entry)

        async def counted():
            message = await receive()
            entry.received += len(message.get("body", b""))
            return message

        try:
            await self.serve({**scope, "path": path}, counted, Answer(send, entry), entry.fault)
        except Exception as error:  # the 500 went out already; a test can see that the Hub itself is wrong
            entry.error = error
            logger.exception("The local Hub failed at %s %s", entry.method, path)

    async def serve(self, scope, receive, answer, fault):
        if fault is None or fault.cut is not None:
            await self.app(scope, receive, answer)
        elif fault.status is not None:
            await self.refuse(receive, answer, fault)
        else:
            if fault.drop == "after":
                await self.app(scope, receive, lost)
            answer.transport.abort()

    @staticmethod
    async def refuse(receive, send, fault):
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"application/json")]
        if fault.retry_after is not None:
            headers.append((b"retry-after", str(fault.retry_after).encode()))
        await send({"type": "http.response.start", "status": fault.status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"error": "injected fault"}).encode()})
