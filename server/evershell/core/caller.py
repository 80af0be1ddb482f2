"""The authenticated caller, the permissions that scopes grant, and the API keys of programs."""

from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeGuard

from evershell.core import errors
from evershell.core.workspace import Workspace

# The maximum length of a subject in OpenID Connect. The limit also keeps the ids of organizations
# and creators short enough for a PostgreSQL index.
MAX_NAME_BYTES = 255

# The organization of the current call; empty outside of a call. It lets the connection pool limit
# how many connections the list calls of one organization use.
calling_org: ContextVar[str] = ContextVar("calling_org", default="")


def is_valid_name(value: object) -> TypeGuard[str]:
    """Whether the value is a text of 1 to 255 bytes in UTF-8 with only printable characters.

    This is the rule for the ids and scopes in a session token. It excludes what PostgreSQL cannot
    store (NUL, lone surrogates) and what people cannot see (control and format characters).
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_BYTES:
        return False
    return value.isprintable() and len(value.encode()) <= MAX_NAME_BYTES


class CredentialKind(StrEnum):
    """The kind of credential that the caller authenticated with."""

    API_KEY = "api_key"
    SESSION = "session"
    # The token of an agent that makes a call about children of its task (children.py).
    AGENT = "agent"
    # The service itself, which has no credential.
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller."""

    org_id: str
    # The user's id, the API key's id, or `agent:` and the id of the agent's workspace.
    actor_id: str
    credential_kind: CredentialKind
    # `<resource>:<verb>` or `<resource>:<verb>:own`.
    scopes: frozenset[str]
    # The API key's id, or the session token's `jti`; empty if there is neither.
    credential_id: str = ""
    # When the credential expires; None for never.
    expires_at: datetime | None = None

    @property
    def user_id(self) -> str | None:
        """The user's id; None unless the caller is a user."""
        return self.actor_id if self.credential_kind is CredentialKind.SESSION else None

    @property
    def key(self) -> str:
        """Identifies the caller among all callers. All sessions of a user have the same key."""
        return f"{self.org_id}\n{self.credential_kind}\n{self.actor_id}"

    def permission(self, *scopes: str) -> "Permission":
        """The widest permission that the caller has from any of these scopes or their `:own` forms.

        Raises Failure permission_denied if the caller has none of them.
        """
        for own_only in (False, True):
            for scope in scopes:
                if (f"{scope}:own" if own_only else scope) in self.scopes:
                    return Permission(self, scopes, own_only)
        required = [form for scope in scopes for form in (scope, f"{scope}:own")]
        message = (
            f"This call needs the scope {' or '.join(required)}. Your credential has none of them."
        )
        raise errors.permission_denied(message, required)

    def require(self, scope: str) -> None:
        """Checks that the caller has this scope. Its `:own` form is not enough.

        Raises Failure permission_denied.
        """
        if scope not in self.scopes:
            message = f"This call needs the scope {scope}. Your credential does not have it."
            raise errors.permission_denied(message, [scope])


@dataclass(frozen=True, slots=True)
class Permission:
    """What a caller may do, in all workspaces of their organization or only in their own."""

    caller: Caller
    # Any one of these scopes grants the permission for all workspaces. The `:own` form of a scope
    # grants it for the caller's own workspaces.
    scopes: tuple[str, ...]
    # Whether the permission is limited to workspaces that the caller created.
    own_only: bool

    def covers(self, workspace: Workspace) -> bool:
        """Whether the permission includes the workspace, which is in the caller's organization.

        An API key does not belong to a user, so its `:own` scopes do not include any workspace.
        """
        return self.includes(workspace.created_by_user_id)

    def includes(self, creator_id: str | None) -> bool:
        """Whether the permission includes what this creator has created in the organization."""
        user_id = self.caller.user_id
        return not self.own_only or (user_id is not None and creator_id == user_id)

    def check(self, workspace: Workspace | None, workspace_id: str) -> Workspace:
        """Returns the workspace. Raises Failure workspace_not_found or permission_denied."""
        if workspace is None or workspace.org_id != self.caller.org_id:
            raise errors.workspace_not_found(workspace_id)
        if not self.covers(workspace):
            raise self.denial(workspace)
        return workspace

    def denial(self, workspace: Workspace) -> errors.Failure:
        """The Failure permission_denied for a workspace that the permission does not cover."""
        return errors.created_by_other(f"Workspace {workspace.id}", "workspaces", self.scopes)


class KeyTemplate(StrEnum):
    """The named sets of scopes. Each API key has one of them."""

    FULL_ACCESS = "full_access"
    SUBMIT_OBSERVE = "submit_observe"
    READ_ONLY = "read_only"


TEMPLATE_SCOPES = {
    KeyTemplate.FULL_ACCESS: frozenset(
        {
            "workspace:read",
            "workspace:write",
            "tasks:write",
            "audit:read",
            "caps:write",
            "webhooks:write",
        }
    ),
    KeyTemplate.SUBMIT_OBSERVE: frozenset(
        {"workspace:read", "workspace:write", "tasks:write", "audit:read"}
    ),
    KeyTemplate.READ_ONLY: frozenset({"workspace:read", "audit:read"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as the database stores it. The secret is not stored, only its SHA-256."""

    id: str
    org_id: str
    name: str
    template: KeyTemplate
    created_at: datetime
    revoked_at: datetime | None = None
    # From this time on, the key is refused. None if it does not expire.
    expires_at: datetime | None = None
    # Accurate to about a minute. None if the key was never used.
    last_used_at: datetime | None = None

    def caller(self) -> Caller:
        return Caller(
            org_id=self.org_id,
            actor_id=self.id,
            credential_kind=CredentialKind.API_KEY,
            scopes=TEMPLATE_SCOPES[self.template],
            credential_id=self.id,
            expires_at=self.expires_at,
        )
