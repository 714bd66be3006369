"""Routes: who am I, repositories and their settings, what is known of them, lists."""

import re

from starlette.responses import JSONResponse

from tests.local_hub.spaces import made, paid, runtime
from tests.local_hub.state import body, empty, part
from tests.local_hub.storage import KINDS, HubError, front_matter

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")


async def whoami(state, request):
    account = state.accounts.of(request, required=True)
    token = {"displayName": "local", "role": account.role, "createdAt": "2026-01-01T00:00:00.000Z"}
    return JSONResponse({
        "type": "user",
        "id": f"id-of-{account.name}",
        "name": account.name,
        "fullname": account.name,
        "email": f"{account.name}@example.org",
        "isPro": not state.free_account,
        "orgs": [],
        "auth": {"type": "access_token", "accessToken": token},
    })


def private(payload, default=False):
    return payload.get("private", default) if "visibility" not in payload else payload["visibility"] == "private"


async def create(state, request):
    payload = await body(request)
    type = payload.get("type") or "model"
    account = state.accounts.of(request, required=True)
    owner = payload.get("organization") or account.name
    state.accounts.writer(request, owner)
    if type not in KINDS.values():
        raise HubError(400, f"Invalid repo type: {type}")
    if not NAME.fullmatch(payload["name"]):
        raise HubError(400, f"Invalid repo name: {owner}/{payload['name']}")
    if type == "space":
        paid(state, payload)
    repo = state.repos.get((type, f"{owner}/{payload['name']}"))
    if repo is not None:
        url = f"{state.endpoint}/{repo.url}"
        raise HubError(409, f"You already created this {type} repo", url=url, name=repo.id, id=repo.id)
    repo = state.create(type, f"{owner}/{payload['name']}", private(payload), account.name)
    if type == "space":
        made(state, repo, payload)
    return JSONResponse({"url": f"{state.endpoint}/{repo.url}", "name": repo.id, "id": repo.id})


async def delete(state, request):
    payload = await body(request)
    account = state.accounts.of(request, required=True)
    owner = payload.get("organization") or account.name
    state.accounts.writer(request, owner)
    repo = state.find(payload.get("type") or "model", f"{owner}/{payload['name']}")
    del state.repos[repo.type, repo.id]
    return empty()


async def settings(state, request):
    repo = state.repo(request, write=True)
    payload = await body(request)
    repo.private = private(payload, repo.private)
    return JSONResponse({"private": repo.private})


def card(repo, commit):
    readme = commit.files.get("README.md")
    found = front_matter(readme.data.decode(errors="replace")) if readme and readme.data else {}
    return found if isinstance(found, dict) else {}


def sibling(file, path):
    entry = {"rfilename": path, "size": file.size, "blobId": file.oid}
    if file.sha256 is not None:
        entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
    return entry


def described(state, repo, revision="main", blobs=False):
    commit = repo.head(revision)
    data = card(repo, commit)
    tags = data.get("tags") or []
    siblings = [sibling(file, path) if blobs else {"rfilename": path} for path, file in sorted(commit.files.items())]
    found = {
        "_id": commit.id[:24],
        "id": repo.id,
        "author": repo.owner,
        "sha": commit.id,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "createdAt": repo.created,
        "lastModified": commit.date,
        "tags": [
            *tags,
            *(f"{key}:{data[key]}" for key in ("license", "base_model") if isinstance(data.get(key), str)),
        ],
        "cardData": data,
        "siblings": siblings,
        "usedStorage": sum(file.size for file in commit.files.values()),
    }
    if repo.type == "model":
        found |= {"modelId": repo.id}
        found |= {key: data[key] for key in ("pipeline_tag", "library_name") if key in data}
    if repo.type == "space":
        host = repo.id.replace("/", "-").lower()
        found |= {"sdk": data.get("sdk", repo.space["sdk"]), "subdomain": host, "runtime": runtime(repo)}
        found |= {"host": f"https://{host}.hf.space", "models": data.get("models", []), "datasets": []}
    return found


async def info(state, request):
    repo = state.repo(request)
    blobs = request.query_params.get("blobs", "").lower() in {"true", "1"}
    return JSONResponse(described(state, repo, part(request, "revision", "main"), blobs))


async def listed(state, request):
    if part(request, "kind") not in KINDS:
        raise HubError(404, "there is no such list")
    account = state.accounts.of(request)
    author, search = (request.query_params.get(key) for key in ("author", "search"))
    found = [
        described(state, repo)
        for (type, _), repo in state.repos.items()
        if type == KINDS[part(request, "kind")]
        and (not repo.private or (account is not None and account.name == repo.owner))
        and (author is None or repo.owner == author)
        and (search is None or search.lower() in repo.id.lower())
    ]
    return JSONResponse(found[: int(request.query_params.get("limit", 1000))])


ROUTES = [
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create),
    ("DELETE", "/api/repos/delete", delete),
    ("GET", "/api/{kind}", listed),
    ("PUT", "/api/{kind}/{owner}/{name}/settings", settings),
    ("GET", "/api/{kind}/{owner}/{name}/revision/{revision}", info),
    ("GET", "/api/{kind}/{owner}/{name}", info),
]
