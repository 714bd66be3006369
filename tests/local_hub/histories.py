"""Routes: branches, tags, commits, pull requests and discussions."""

from starlette.responses import JSONResponse

from tests.local_hub.state import body, empty, part
from tests.local_hub.storage import HubError


async def refs(state, request):
    repo = state.repo(request)

    def named(prefix):
        names = [name for name in repo.refs if name.startswith(prefix)]
        return [{"name": name.removeprefix(prefix), "ref": name, "targetCommit": repo.refs[name]} for name in names]

    answer = {"branches": named("refs/heads/"), "tags": named("refs/tags/"), "converts": named("refs/convert/")}
    if request.query_params.get("include_prs"):
        answer["pullRequests"] = named("refs/pr/")
    return JSONResponse(answer)


async def commits(state, request):
    repo = state.repo(request)
    return JSONResponse([
        {
            "id": commit.id,
            "title": commit.title,
            "message": commit.message,
            "date": commit.date,
            "authors": [{"user": commit.author}],
        }
        for commit in repo.log(part(request, "revision"))
    ])


def pointed(repo, name, commit, what):
    if name in repo.refs:
        raise HubError(409, f"Reference already exists: {what}")
    repo.refs[name] = commit.id
    return empty()


def removed(repo, name):
    if name not in repo.refs:
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    if name == "refs/heads/main":
        raise HubError(403, "The main branch cannot be deleted")
    del repo.refs[name]
    return empty()


async def branch(state, request):
    repo = state.repo(request, write=True)
    name = part(request, "branch")
    if request.method == "DELETE":
        return removed(repo, f"refs/heads/{name}")
    start = (await body(request)).get("startingPoint") or "main"
    return pointed(repo, f"refs/heads/{name}", repo.head(start), name)


async def tag(state, request):
    repo = state.repo(request, write=True)
    revision = part(request, "revision")
    if request.method == "DELETE":
        return removed(repo, f"refs/tags/{revision}")
    name = (await body(request))["tag"]
    return pointed(repo, f"refs/tags/{name}", repo.head(revision), name)


def pull_of(repo, request):
    pull = repo.pulls.get(request.path_params["number"])
    if pull is None:
        raise HubError(404, "Discussion not found")
    return pull


def shown(repo, pull):
    event = {"author": {"name": pull.author}, "createdAt": pull.date}
    comment = {"latest": {"raw": pull.description, "html": pull.description}, "hidden": False, "edited": False}
    return {
        "num": pull.number,
        "title": pull.title,
        "status": pull.status,
        "isPullRequest": pull.is_pull,
        "author": {"name": pull.author},
        "createdAt": pull.date,
        "repo": {"name": repo.id, "type": repo.type},
        "repoOwner": {"name": repo.owner},
        "numComments": 1,
        "events": [{"id": f"event-{pull.number}", "type": "comment", **event, "data": comment | {"history": []}}],
        "changes": {"base": f"refs/heads/{pull.base}"},
        "filesWithConflicts": [],
        "diff": "",
    }


async def discussions(state, request):
    if request.method == "GET":
        repo = state.repo(request)
        found = [shown(repo, pull) for pull in repo.pulls.values()]
        return JSONResponse({"discussions": found, "count": len(found), "start": 0})
    repo = state.repo(request, write=True, pull=True)
    payload = await body(request)
    author = state.accounts.of(request).name
    is_pull = bool(payload.get("pullRequest"))
    pull = repo.open_pull(payload["title"], payload.get("description") or "", author, "main", is_pull)
    if not is_pull:
        pull.status = "open"
    return JSONResponse(shown(repo, pull))


async def discussion(state, request):
    repo = state.repo(request)
    return JSONResponse(shown(repo, pull_of(repo, request)))


async def merge(state, request):
    repo = state.repo(request, write=True)
    pull = pull_of(repo, request)
    if pull.status == "merged" or not pull.is_pull:
        raise HubError(409, "This is not an open pull request")
    ref = f"refs/pr/{pull.number}"
    repo.refs[repo.ref(pull.base)] = repo.refs[ref]
    pull.status = "merged"
    return JSONResponse(shown(repo, pull) | {"newStatus": "merged"})


API = "/api/{kind}/{owner}/{name}"
ROUTES = [
    ("GET", API + "/refs", refs),
    ("GET", API + "/commits/{revision}", commits),
    ("POST", API + "/branch/{branch}", branch),
    ("DELETE", API + "/branch/{branch}", branch),
    ("POST", API + "/tag/{revision}", tag),
    ("DELETE", API + "/tag/{revision}", tag),
    ("GET", API + "/discussions", discussions),
    ("POST", API + "/discussions", discussions),
    ("GET", API + "/discussions/{number:int}", discussion),
    ("POST", API + "/discussions/{number:int}/merge", merge),
]
