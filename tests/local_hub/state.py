"""The Hub's state behind all routes: accounts, repositories, blobs, signed addresses."""

import hashlib
import hmac
import json
import secrets
from pathlib import Path
from urllib.parse import unquote

from starlette.responses import JSONResponse, Response

from tests.local_hub.accounts import Accounts
from tests.local_hub.storage import GIT_ATTRIBUTES, KINDS, Blobs, HubError, Repo, regular
from tests.local_hub.xet import AVAILABLE, XetStore

COLOURS = "emoji: 🐳\ncolorFrom: blue\ncolorTo: indigo\n"


class State:
    def __init__(self, folder, user, xet):
        folder = Path(folder)
        self.user = user
        self.accounts = Accounts(user)
        self.repos = {}
        self.blobs = Blobs(folder / "blobs")
        self.xet = XetStore(folder / "xet", self.blobs) if xet and AVAILABLE else None
        self.free_account = False
        self.key = secrets.token_bytes(16)
        self.endpoint = self.cdn = None  # known when the server listens

    def find(self, type, id):
        repo = self.repos.get((type, id))
        if repo is None:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repo

    def repo(self, request, write=False, pull=False):
        """The repository that a request names, if whoever asks may see it (`write`: may change it)."""
        names = request.path_params
        type = KINDS.get(names.get("kind", "models"))
        id = f"{unquote(names['owner'])}/{unquote(names['name']).removesuffix('.git')}"
        account = self.accounts.of(request)
        repo = self.repos.get((type, id))
        if repo is None or (repo.private and (account is None or account.name != repo.owner)):
            status = 401 if account is None else 404
            raise HubError(status, "Repository not found", "RepoNotFound")
        if write:
            self.accounts.writer(request, None if pull else repo.owner)
        return repo

    def create(self, type, id, private, author):
        repo = self.repos[type, id] = Repo(type, id, private)
        repo.commit("refs/heads/main", {".gitattributes": regular(GIT_ATTRIBUTES)}, "initial commit", author=author)
        return repo

    def space_readme(self, repo, sdk):
        text = f"---\ntitle: {repo.id.split('/')[1]}\n{COLOURS}sdk: {sdk}\n---\n"
        files = {**repo.head("main").files, "README.md": regular(text.encode())}
        repo.refs.clear()
        repo.commits.clear()
        repo.commit("refs/heads/main", files, "initial commit", author=repo.owner)

    def has(self, sha256):
        if sha256 not in self.blobs and self.xet is not None:
            self.xet.collect()
        return sha256 in self.blobs

    def xet_hash(self, file):
        return None if self.xet is None or file.sha256 is None else self.xet.hashes.get(file.sha256)

    def sign(self, sha256):
        return hmac.new(self.key, sha256.encode(), hashlib.sha256).hexdigest()[:32]

    def signed(self, sha256):
        return f"{self.cdn}/blobs/{sha256}?signature={self.sign(sha256)}"


def part(request, name, default=None):
    """A part of the path; it arrives as the client quoted it."""
    found = request.path_params.get(name, default)
    return found if found is None else unquote(found)


async def body(request):
    """The JSON of a request, {} where there is none."""
    data = await request.body()
    try:
        found = json.loads(data) if data else {}
    except ValueError as error:
        raise HubError(400, f"The body is not JSON: {error}") from None
    return found


def failure(_, error):
    headers = {"X-Error-Message": error.message.encode("ascii", "replace").decode().replace("\n", " ")}
    if error.code is not None:
        headers["X-Error-Code"] = error.code
    headers.update(error.extra.pop("headers", {}))
    return JSONResponse({"error": error.message, **error.extra}, error.status, headers)


def empty():
    return Response(status_code=200, content=b"{}", media_type="application/json")
