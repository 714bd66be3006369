"""Routes: trees, paths, files, and the storage host that files of LFS are sent to and fetched from."""

import re

from starlette.responses import JSONResponse, RedirectResponse, Response

from tests.local_hub.state import part
from tests.local_hub.storage import HubError, large, regular
from tests.local_hub.uploads import xet_answer

PAGE = 1000


def entry_of(state, commit, path, expand=False):
    """A tree's entry for a file or a folder, None where neither is there."""
    file = commit.files.get(path)
    if file is not None:
        entry = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
        if file.sha256 is not None:
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
        if state.xet_hash(file) is not None:
            entry["xetHash"] = state.xet_hash(file)
    elif any(name.startswith(f"{path}/") for name in commit.files):
        entry = {"type": "directory", "path": path, "oid": regular(path.encode()).oid, "size": 0}
    else:
        return None
    if expand:
        entry["lastCommit"] = {"id": commit.id, "title": commit.title, "date": commit.date}
    return entry


async def tree(state, request):
    repo = state.repo(request)
    commit = repo.head(part(request, "revision"))
    folder = part(request, "path", "").strip("/")
    query = request.query_params
    recursive, expand = (query.get(key, "").lower() in {"true", "1"} for key in ("recursive", "expand"))
    prefix = f"{folder}/" if folder else ""
    inside = [name for name in commit.files if name.startswith(prefix)]
    if folder and not inside:
        raise HubError(404, f"{folder} does not exist on {part(request, 'revision')!r}", "EntryNotFound")
    paths = set()
    for name in inside:
        pieces = name.removeprefix(prefix).split("/")
        depth = len(pieces) if recursive else 1
        paths |= {prefix + "/".join(pieces[: i + 1]) for i in range(depth)}
    paths = sorted(paths)
    start = int(query.get("cursor", 0))
    headers = {}
    if len(paths) > start + PAGE:
        url = request.url.include_query_params(cursor=start + PAGE)
        headers["Link"] = f'<{state.endpoint}{request.scope["path"]}?{url.query}>; rel="next"'
    page = [entry_of(state, commit, path, expand) for path in paths[start : start + PAGE]]
    return JSONResponse(page, headers=headers)


async def paths_info(state, request):
    commit = state.repo(request).head(part(request, "revision"))
    form = await request.form()
    expand = str(form.get("expand", "")).lower() in {"true", "1"}
    found = (entry_of(state, commit, path.strip("/"), expand) for path in form.getlist("paths"))
    return JSONResponse([entry for entry in found if entry is not None])


def ranged(request, data, headers):
    """The bytes that a Range header asks for: 200, 206 or 416."""
    headers = {**headers, "Accept-Ranges": "bytes"}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if wanted is None:
        return Response(data, 200, headers, media_type="application/octet-stream")
    start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
    if start >= len(data):
        return Response(b"", 416, {**headers, "Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
    return Response(data[start : end + 1], 206, headers, media_type="application/octet-stream")


async def resolve(state, request):
    repo = state.repo(request)
    commit = repo.head(part(request, "revision"))
    headers = {"X-Repo-Commit": commit.id}
    file = commit.files.get(part(request, "path"))
    if file is None:
        raise HubError(404, "Entry not found", "EntryNotFound", headers=headers)
    if file.sha256 is None:
        return ranged(request, file.data, {**headers, "ETag": f'"{file.oid}"'})
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    xet_hash = state.xet_hash(file)
    if xet_hash is not None:
        route = f"{state.endpoint}/api/{repo.type}s/{repo.id}/xet-read-token/{commit.id}"
        headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{route}>; rel="xet-auth"'}
    return RedirectResponse(state.signed(file.sha256), 302, headers)


async def xet_read_token(state, request):
    commit = state.repo(request).head(part(request, "revision"))
    return xet_answer(state, lambda: state.xet.read_token(commit.files.values()))


async def blob(state, request):
    """The storage host knows signatures only; a token that reaches it has leaked."""
    sha256 = request.path_params["sha256"]
    if "authorization" in request.headers:
        raise HubError(400, "Only one auth mechanism allowed: a Hub token was sent to the storage host")
    if request.query_params.get("signature") != state.sign(sha256):
        raise HubError(403, "The signature does not match")
    if request.method == "PUT":
        state.blobs.add(await request.body(), sha256)
        return Response(status_code=200, headers={"ETag": f'"{sha256}"'})
    if sha256 not in state.blobs:
        raise HubError(404, "NoSuchKey")
    return ranged(request, state.blobs.read(large(sha256, 0)), {"ETag": f'"{sha256}"'})


API = "/api/{kind}/{owner}/{name}"
ROUTES = [
    ("GET", API + "/tree/{revision}", tree),
    ("GET", API + "/tree/{revision}/{path:path}", tree),
    ("POST", API + "/paths-info/{revision}", paths_info),
    ("GET", API + "/xet-read-token/{revision}", xet_read_token),
    ("GET", "/{owner}/{name}/resolve/{revision}/{path:path}", resolve),
    ("GET", "/{kind}/{owner}/{name}/resolve/{revision}/{path:path}", resolve),
]
STORAGE = [("GET", "/blobs/{sha256}", blob), ("PUT", "/blobs/{sha256}", blob)]
