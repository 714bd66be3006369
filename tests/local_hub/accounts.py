"""Who asks, and what they may do: 401, 403, and 404 for what they may not even see."""

from dataclasses import dataclass

from tests.local_hub.storage import HubError


@dataclass(frozen=True)
class Account:
    """A token of a user: `role` is "write" or "read"."""

    name: str
    role: str


class Accounts:
    def __init__(self, user):
        self.by_token = {
            "hf_local_writer": Account(user, "write"),
            "hf_local_reader": Account(user, "read"),
            "hf_local_other": Account("somebody-else", "write"),
        }
        self.tokens = dict(zip(("writer", "reader", "other"), self.by_token, strict=True))

    def of(self, request, required=False):
        """The account behind a request, None for nobody; a token that nobody has is refused everywhere."""
        header = request.headers.get("authorization")
        if header is None:
            if required:
                raise HubError(401, "Invalid username or password.")
            return None
        account = self.by_token.get(header.removeprefix("Bearer "))
        if account is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return account

    def writer(self, request, owner=None):
        account = self.of(request, required=True)
        if account.role != "write":
            raise HubError(403, "Forbidden: this token has the role 'read', not 'write'")
        if owner is not None and account.name != owner:
            raise HubError(403, f"You don't have the rights to write under the namespace {owner!r}")
        return account
