"""Calls to the Hub: tried again where that is safe, and one sentence with the way out where they fail for good."""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import get_token, validate_repo_id

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
AGAIN = frozenset({408, 429, 500, 502, 503, 504})
WAITS = (1.0, 2.0, 4.0, 8.0)
LONGEST = 60.0
WAYS_OUT = {
    400: "the Hub does not accept it: {said}",
    401: "the token is missing, wrong or expired. Run `hf auth login` with a token of role write, or set HF_TOKEN.",
    402: "it needs a paid plan: {said}",
    403: "the token may not do that. Make one of role write (or with write access to this repository) at "
    "https://huggingface.co/settings/tokens, then run `hf auth login`.",
    404: "there is no such repository or revision, or this token may not see it. Check the name.",
    409: "the repository was changed or made by somebody else at the same time. Run the command again.",
    412: "the branch moved in between. Run the command again.",
    413: "a file or the repository is too large for this account: {said}",
    429: "the Hub limits the number of requests. Wait some minutes and run the command again; nothing is lost.",
}


class HubError(RuntimeError):
    """
    What went wrong at the Hub, in one sentence with the way out.

    Args:
        message (`str`):
            The sentence.
        status (`int`, *optional*):
            HTTP status, where the Hub answered.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def call(what: str, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """
    Calls the Hub. What may pass (429, 5xx, a lost connection) is tried again up to four times, always with the same
    content: the client leaves out what the Hub already has, so nothing is done twice.

    Args:
        what (`str`):
            What is done, for the sentence: `"make the repository me/model"`.
        function (`Callable`):
            The client's method.
        *args:
            Its arguments.
        **kwargs:
            Its named arguments.

    Returns:
        What the method returns.

    Raises:
        HubError: If it fails for good.
    """
    for wait in (*WAITS, None):
        try:
            return function(*args, **kwargs)
        except Exception as raised:
            error = _reason(raised)
            if error is None:
                raise
            status = _status(error)
            if wait is None or _is_final(error) or (status is not None and status not in AGAIN):
                raise HubError(f"Could not {what}: {_way_out(error, status)}", status) from error
            pause = _asked_pause(error, wait)
            logger.warning("Could not %s (%s); trying again in %.0f s.", what, status or "no connection", pause)
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def checked_repo(repo: str) -> str:
    """
    Args:
        repo (`str`):
            What the user typed.

    Returns:
        `str`: The same.

    Raises:
        ValueError: If it is no `USER/NAME`.
    """
    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise ValueError(
            f"A repository must be USER/NAME of letters, digits, '-', '_' and '.', but got {repo!r}. "
            "Example: jane/movie-reviews."
        )
    return repo


def check_rights(repo: str) -> HfApi:
    """
    Asks the Hub who we are, before any work is done.

    Args:
        repo (`str`):
            Repository to write to.

    Returns:
        `HfApi`: A client.

    Raises:
        ValueError: If the name of the repository is wrong.
        HubError: If the token is missing, wrong, or may only read.
    """
    checked_repo(repo)
    if get_token() is None:
        raise HubError(f"Could not write to {repo}: {WAYS_OUT[401]}", 401)
    api = HfApi()
    me = call("log in to the Hub", api.whoami)
    owner, names = repo.split("/")[0], [me.get("name"), *(org.get("name") for org in me.get("orgs", ()))]
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError(f"Could not write to {repo}: the token may only read. {WAYS_OUT[403].split('. ', 1)[1]}", 403)
    if owner not in names:
        raise HubError(
            f"Could not write to {repo}: this token is of {names[0]}, who can write to "
            f"{', '.join(f'{name}/...' for name in names)}. Choose such a name, or log in as {owner}.",
            403,
        )
    return api


def _reason(error: BaseException | None) -> Exception | None:
    """The fault of network, Hub or token in an error, or behind it: the client wraps that of an upload."""
    while error is not None and not isinstance(error, HTTPError | OSError | LocalTokenNotFoundError):
        error = error.__cause__
    return error


def _is_final(error: Exception) -> bool:
    """Whether trying again is of no use; a lost connection shows as a file that is neither on the Hub nor here."""
    missing = isinstance(error, FileNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
    return missing or isinstance(error, OfflineModeIsEnabled | LocalTokenNotFoundError)


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _asked_pause(error: Exception, wait: float) -> float:
    """Seconds that the Hub asks to wait, within reason."""
    response = getattr(error, "response", None)
    asked = "" if response is None else response.headers.get("retry-after", "")
    return min(max(float(asked), wait), LONGEST) if asked.isdigit() else wait


def _way_out(error: Exception, status: int | None) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it to reach the Hub."
    if isinstance(error, LocalTokenNotFoundError):
        return WAYS_OUT[401]
    if _is_final(error):
        return f"{error}."
    if status is None:
        return (
            f"no connection to the Hub ({type(error).__name__}). Check the network and run the command again; nothing "
            "is lost."
        )
    said = (getattr(error, "server_message", None) or str(error).splitlines()[0]).strip().rstrip(".") + "."
    if status >= 500:
        return f"the Hub answers {status}. Wait and run the command again; nothing is lost."
    return WAYS_OUT.get(status, f"the Hub answers {status}: {{said}}").format(said=said)
