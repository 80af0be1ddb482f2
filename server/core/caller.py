"""The authenticated caller and the permissions of their scopes."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeGuard

from server.core import errors
from server.core.workspace import Workspace

# The limit of OpenID Connect for a subject. It also keeps organization and creator short enough for
# an index of PostgreSQL.
MAX_NAME_BYTES = 255


def is_name(value: object) -> TypeGuard[str]:
    """Whether a credential may use this name for an organization, user, workspace or scope: 1 to
    255 bytes of printable UTF-8.

    Excludes what PostgreSQL cannot store (NUL, lone surrogates) and what people cannot see (control
    and format characters).
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_BYTES:
        return False
    return value.isprintable() and len(value.encode()) <= MAX_NAME_BYTES


class CredentialKind(StrEnum):
    """The kind of credential that the caller authenticated with."""

    API_KEY = "api_key"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller."""

    org_id: str
    # The user's id, or the API key's.
    actor_id: str
    credential_kind: CredentialKind
    # `<resource>:<verb>` or `<resource>:<verb>:own`.
    scopes: frozenset[str]

    @property
    def user_id(self) -> str | None:
        """The user's id; None for an API key, which belongs to no user."""
        return self.actor_id if self.credential_kind is CredentialKind.SESSION else None

    @property
    def key(self) -> str:
        """Identifies the caller among all callers. All sessions of a user have the same key."""
        return f"{self.org_id}\n{self.credential_kind}\n{self.actor_id}"

    def permission(self, scope: str) -> "Permission":
        """The permission that `scope` grants. Raises Failure permission_denied without the scope
        and its `:own` form.
        """
        if scope in self.scopes:
            return Permission(self, scope, own_only=False)
        if f"{scope}:own" in self.scopes:
            return Permission(self, scope, own_only=True)
        message = f"This call needs the scope {scope} or {scope}:own. Your credential has neither."
        raise errors.permission_denied(message, [scope, f"{scope}:own"])


@dataclass(frozen=True, slots=True)
class Permission:
    """A scope that the caller has, for all workspaces of their organization or only for those they
    created.
    """

    caller: Caller
    scope: str
    own_only: bool

    def covers(self, workspace: Workspace) -> bool:
        """Whether the permission includes the workspace. An API key has no user, so its `:own`
        scopes match none.
        """
        return not self.own_only or (
            self.caller.user_id is not None and workspace.created_by_user_id == self.caller.user_id
        )

    def check(self, workspace: Workspace | None, workspace_id: str) -> Workspace:
        """The workspace, if the caller may use it. Raises Failure workspace_not_found, then
        permission_denied.
        """
        if workspace is None or workspace.org_id != self.caller.org_id:
            raise errors.workspace_not_found(workspace_id)
        if not self.covers(workspace):
            message = (
                f"Workspace {workspace.id} was created by someone else, "
                f"and your credential has only {self.scope}:own."
            )
            raise errors.permission_denied(message, [self.scope])
        return workspace
