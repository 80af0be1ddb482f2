"""The rule for access to each public method, as the protos declare it.

The core does not read the protos: it names the scopes of each use case itself.
"""

from dataclasses import dataclass
from typing import Any

from evershell.workspace.v1 import workspace_service_pb2
from google.api import annotations_pb2

_SERVICE = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
METHODS = sorted(method.name for method in _SERVICE.methods)


@dataclass(frozen=True)
class Rule:
    """Who may call a method: callers with any one of the scopes, or everyone if there are none."""

    scopes: tuple[str, ...]
    # Whether the request names a workspace. If so, the `:own` form of a scope permits the call only
    # to the creator of that workspace.
    on_workspace: bool
    # Whether each call leaves one entry in the audit log.
    audited: bool
    # Whether the scopes have `:own` forms.
    has_own: bool
    # A second scope that is also required, in one of its forms; empty if only one is required.
    also: str

    @property
    def own_scopes(self) -> set[str]:
        """The `:own` forms of the scopes."""
        return {f"{scope}:own" for scope in self.scopes} if self.has_own else set()


def _rule(method: Any) -> Rule:
    options = method.GetOptions()
    access = options.Extensions[workspace_service_pb2.edge].access
    return Rule(
        tuple(access.scopes),
        on_workspace="workspace_id" in method.input_type.fields_by_name,
        # Methods that change something are audited. Over REST, other methods are called with GET
        # or are not offered.
        audited=options.Extensions[annotations_pb2.http].WhichOneof("pattern") not in (None, "get"),
        has_own=not access.without_own,
        also=access.also,
    )


RULES = {method.name: _rule(method) for method in _SERVICE.methods}

# The scopes of each template for API keys.
TEMPLATES = {
    "full_access": {
        "workspace:read",
        "workspace:write",
        "tasks:write",
        "audit:read",
        "caps:write",
        "webhooks:write",
    },
    "submit_observe": {"workspace:read", "workspace:write", "tasks:write", "audit:read"},
    "read_only": {"workspace:read", "audit:read"},
}


@dataclass(frozen=True)
class Principal:
    """A caller. An API key has no user; every credential has an organization."""

    org_id: str
    # The user's id; None for an API key.
    user_id: str | None
    scopes: frozenset[str]
    actor_id: str
    token: str = ""


@dataclass(frozen=True)
class Target:
    """A workspace, or the id of a workspace that does not exist."""

    id: str
    # Empty if there is no such workspace.
    org_id: str = ""
    creator: str | None = None


def refusal(method: str, principal: Principal | None, target: Target | None) -> str:
    """The slug with which the call is refused; empty if the call is allowed.

    `target` is None if the request names no workspace.
    """
    rule = RULES[method]
    if principal is None:
        return "unauthenticated"
    in_all = not rule.scopes or any(scope in principal.scopes for scope in rule.scopes)
    in_own = bool(rule.own_scopes & principal.scopes)
    has_other = not rule.also or {rule.also, f"{rule.also}:own"} & principal.scopes
    if not (in_all or in_own) or not has_other:
        return "permission_denied"
    if target is None:
        return ""
    if target.org_id != principal.org_id:
        return "workspace_not_found"
    is_creator = principal.user_id is not None and target.creator == principal.user_id
    return "" if in_all or is_creator else "permission_denied"


def required(method: str, principal: Principal) -> set[str]:
    """The scopes that the error permission_denied of this method names to this caller."""
    scopes, own = RULES[method].scopes, RULES[method].own_scopes
    if set(scopes) <= principal.scopes:
        # The caller lacks only the second required scope.
        return {RULES[method].also, f"{RULES[method].also}:own"}
    # A caller with an `:own` form was refused because someone else created the workspace, so only a
    # scope without `:own` would help.
    return set(scopes) if own & principal.scopes else set(scopes) | own
