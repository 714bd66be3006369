"""Routes: everything on the way of an upload: preupload, LFS, Xet tokens, commits, the check of a card's YAML."""

import base64
import json
from fnmatch import fnmatch

from starlette.responses import JSONResponse

from tests.local_hub.cards import check
from tests.local_hub.state import body, empty, part
from tests.local_hub.storage import HubError, large, regular

LARGE = 10_000_000
MOST_FILES = 256


def goes_to_lfs(path, entry, attributes):
    if entry["size"] > LARGE or b"\0" in base64.b64decode(entry.get("sample") or ""):
        return True
    patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
    return any(fnmatch(path, pattern) or fnmatch(path.split("/")[-1], pattern) for pattern in patterns)


def ignored(path, rules):
    rules = [rule.strip().strip("/") for rule in rules.splitlines() if rule.strip() and not rule.startswith("#")]
    return any(fnmatch(piece, rule) for rule in rules for piece in (path, *path.split("/")))


def text_of(commit, path):
    file = commit.files.get(path)
    return file.data.decode() if file is not None and file.data is not None else ""


def pull_wanted(request):
    return request.query_params.get("create_pr") in {"1", "true"}


def committable(state, request):
    """The repository, if whoever asks may commit to the revision; a pull request is open to everyone."""
    revision = part(request, "revision")
    pull = pull_wanted(request) or revision.startswith("refs/pr/")
    return state.repo(request, write=True, pull=pull), revision


async def preupload(state, request):
    repo, revision = committable(state, request)
    payload = await body(request)
    if len(payload["files"]) > MOST_FILES:
        raise HubError(413, f"At most {MOST_FILES} files at once")
    commit = repo.head(revision)
    attributes = text_of(commit, ".gitattributes")
    rules = payload.get("gitIgnore") or text_of(commit, ".gitignore")
    files = []
    for entry in payload["files"]:
        path = entry["path"]
        there = commit.files.get(path)
        files.append({
            "path": path,
            "uploadMode": "lfs" if goes_to_lfs(path, entry, attributes) else "regular",
            "shouldIgnore": ignored(path, rules),
            "oid": there.etag if there is not None else None,
        })
    return JSONResponse({"files": files, "commitOid": commit.id})


async def batch(state, request):
    repo = state.repo(request, write=True, pull=True)
    payload = await body(request)
    objects = []
    for entry in payload["objects"]:
        found = {"oid": entry["oid"], "size": entry["size"]}
        if not state.has(entry["oid"]):
            verify = f"{state.endpoint}/{repo.url}.git/info/lfs/objects/verify"
            found["actions"] = {"upload": {"href": state.signed(entry["oid"])}, "verify": {"href": verify}}
        objects.append(found)
    return JSONResponse({"transfer": "basic", "objects": objects})


async def verify(state, request):
    state.repo(request, write=True, pull=True)
    payload = await body(request)
    if not state.has(payload["oid"]) or state.blobs.size(payload["oid"]) != payload["size"]:
        raise HubError(404, "The object was not uploaded")
    if state.xet is not None:
        state.xet.know(payload["oid"])
    return empty()


async def xet_write_token(state, request):
    revision = part(request, "revision")
    pull = pull_wanted(request) or revision == "None" or revision.startswith("refs/pr/")
    state.repo(request, write=True, pull=pull)
    return xet_answer(state, lambda: state.xet.write_token())


def xet_answer(state, make):
    if state.xet is None:
        raise HubError(404, "This Hub has no Xet storage")
    token = make()
    headers = {
        "X-Xet-Cas-Url": token["casUrl"],
        "X-Xet-Access-Token": token["accessToken"],
        "X-Xet-Token-Expiration": str(token["exp"]),
    }
    return JSONResponse(token, headers=headers)


def added(value):
    data = base64.b64decode(value["content"]) if value.get("encoding") == "base64" else value["content"].encode()
    return regular(data)


def pointed(state, value):
    if not state.has(value["oid"]):
        raise HubError(400, f"LFS pointer points to a file that does not exist: {value['path']} ({value['oid']})")
    return large(value["oid"], state.blobs.size(value["oid"]))


def without(files, key, path):
    """The files less one, or less a folder."""
    kept = {name: file for name, file in files.items() if name != path}
    if key == "deletedFolder":
        kept = {name: file for name, file in files.items() if not name.startswith(path.rstrip("/") + "/")}
    if len(kept) == len(files):
        raise HubError(404, f"{path!r} does not exist", "EntryNotFound")
    return kept


def applied(state, files, operations):
    """The files after the operations of a commit, in their order."""
    for key, value in operations:
        if key == "file":
            files = files | {value["path"]: added(value)}
        elif key == "lfsFile":
            files = files | {value["path"]: pointed(state, value)}
        elif key in {"deletedFile", "deletedFolder"}:
            files = without(files, key, value["path"])
        else:
            raise HubError(400, f"Unknown operation: {key}")
    return files


async def commit(state, request):
    repo, revision = committable(state, request)
    lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
    header = next((line["value"] for line in lines if line["key"] == "header"), {})
    if not header.get("summary"):
        raise HubError(400, "A commit needs a summary")
    ref, head = repo.ref(revision), repo.head(revision)
    if ref is None or ref.startswith("refs/tags/"):
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    if not head.id.startswith(header.get("parentCommit") or ""):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = applied(state, head.files, [(line["key"], line["value"]) for line in lines if line["key"] != "header"])
    readme = files.get("README.md")
    if readme is not None and readme != head.files.get("README.md"):
        errors, _ = check((readme.data or b"").decode(errors="replace"), repo.type)
        if errors:
            raise HubError(400, f"Invalid metadata in README.md. {errors[0]}")
    author = state.accounts.of(request).name
    answer = {"success": True, "hookOutput": ""}
    if pull_wanted(request):
        pull = repo.open_pull(header["summary"], header.get("description", ""), author, revision)
        ref = f"refs/pr/{pull.number}"
        answer["pullRequestUrl"] = f"{state.endpoint}/{repo.url}/discussions/{pull.number}"
    new = repo.commit(ref, files, header["summary"], header.get("description", ""), author)
    return JSONResponse({**answer, "commitOid": new.id, "commitUrl": f"{state.endpoint}/{repo.url}/commit/{new.id}"})


async def validate_yaml(state, request):
    payload = await body(request)
    errors, warnings = check(payload["content"], payload.get("repoType") or "model")
    answer = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return JSONResponse(answer, 400 if errors else 200)


API = "/api/{kind}/{owner}/{name}"
ROUTES = [
    ("POST", "/api/validate-yaml", validate_yaml),
    ("POST", API + "/preupload/{revision}", preupload),
    ("POST", API + "/commit/{revision}", commit),
    ("GET", API + "/xet-write-token/{revision}", xet_write_token),
    *(
        ("POST", f"{prefix}/{{owner}}/{{name}}/info/lfs/objects/{what}", handler)
        for prefix in ("", "/{kind}")
        for what, handler in (("batch", batch), ("verify", verify))
    ),
]
