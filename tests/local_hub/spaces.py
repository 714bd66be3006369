"""Routes: Spaces: hardware, variables, secrets, runtime, and what a free account has to pay for."""

from functools import partial

from starlette.responses import JSONResponse

from tests.local_hub.state import body
from tests.local_hub.storage import HubError, now

SDKS = ("gradio", "docker", "static")
FREE_HARDWARE = "zero-a10g"


def paid(state, payload):
    """402 as the Hub answers it, which is before it looks whether the Space exists."""
    if payload.get("sdk") not in SDKS:
        raise HubError(400, f'"sdk" must be one of {list(SDKS)}')
    free = payload["sdk"] == "static" or payload.get("hardware") == FREE_HARDWARE
    if state.free_account and not free:
        raise HubError(402, "Subscribe to PRO to host Gradio and Docker Spaces; static Spaces are free")


def made(state, repo, payload):
    repo.space = {
        "sdk": payload["sdk"],
        "stage": "NO_APP_FILE",
        "hardware": payload.get("hardware") or "cpu-basic",
        "sleep": payload.get("sleepTimeSeconds"),
        "variables": {},
        "secrets": {},
    }
    for field in ("variables", "secrets"):
        for entry in payload.get(field) or []:
            repo.space[field][entry["key"]] = {**entry, "updatedAt": now()}
    state.space_readme(repo, payload["sdk"])


def runtime(repo):
    space = repo.space
    stage = "RUNNING" if space["stage"] == "NO_APP_FILE" and "app.py" in repo.head("main").files else space["stage"]
    hardware = {"current": space["hardware"], "requested": space["hardware"]}
    return {"stage": stage, "hardware": hardware, "gcTimeout": space["sleep"], "storage": None, "replicas": 1}


async def get_runtime(state, request):
    return JSONResponse(runtime(state.repo(request)))


async def change(state, request, what):
    repo = state.repo(request, write=True)
    payload = await body(request)
    if what == "hardware":
        repo.space["hardware"] = payload["flavor"]
    elif what == "sleeptime":
        repo.space["sleep"] = payload["seconds"]
    else:
        repo.space["stage"] = {"pause": "PAUSED", "restart": "RUNNING"}[what]
    return JSONResponse(runtime(repo))


async def entries(state, request, what):
    """Variables and secrets; a secret's value goes in and never comes out."""
    kept = state.repo(request, write=True).space[what]
    if request.method != "GET":
        payload = await body(request)
        if request.method == "POST":
            kept[payload["key"]] = {**payload, "updatedAt": now()}
        else:
            kept.pop(payload["key"], None)
    hidden = {"value"} if what == "secrets" else set()
    return JSONResponse({
        key: {field: value for field, value in entry.items() if field not in hidden} for key, entry in kept.items()
    })


SPACE = "/api/{kind}/{owner}/{name}"
ROUTES = [
    ("GET", f"{SPACE}/runtime", get_runtime),
    *(
        ("POST", f"{SPACE}/{what}", partial(change, what=what))
        for what in ("hardware", "sleeptime", "pause", "restart")
    ),
    *(
        (method, f"{SPACE}/{what}", partial(entries, what=what))
        for what in ("variables", "secrets")
        for method in ("GET", "POST", "DELETE")
    ),
]
