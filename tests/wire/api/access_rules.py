"""The rule for access to each public method, written down apart from the service."""

from dataclasses import dataclass

from evershell.workspace.v1 import workspace_service_pb2

METHODS = sorted(
    method.name
    for method in workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"].methods
)


@dataclass(frozen=True)
class Rule:
    """What a method needs. Each of the scopes is enough; if there are none, none is needed."""

    scopes: tuple[str, ...]
    # Whether the request names a workspace, so that `:own` is limited to its creator.
    on_workspace: bool
    # Whether each call leaves one entry in the audit log.
    audited: bool
    # Whether the scopes have `:own` forms.
    has_own: bool = True
    # A scope that is needed too, in one of its forms.
    also: str = ""

    @property
    def own_scopes(self) -> set[str]:
        """The `:own` forms of the scopes."""
        return {f"{scope}:own" for scope in self.scopes} if self.has_own else set()


_CHANGE_OF_WEBHOOK = Rule(
    ("webhooks:write",), on_workspace=False, audited=True, has_own=False, also="workspace:read"
)
RULES = {
    "CancelTask": Rule(("workspace:write",), on_workspace=True, audited=True),
    "SubmitTask": Rule(("tasks:write",), on_workspace=True, audited=True),
    "GetTask": Rule(("workspace:read",), on_workspace=True, audited=False),
    "GetCurrentIteration": Rule(("workspace:read",), on_workspace=True, audited=False),
    "ListTasks": Rule(("workspace:read",), on_workspace=True, audited=False),
    "WatchEvents": Rule(("workspace:read",), on_workspace=True, audited=False),
    "StreamEvents": Rule(("workspace:read",), on_workspace=True, audited=False),
    "CreateWorkspace": Rule(("workspace:write",), on_workspace=False, audited=True),
    "GetWorkspace": Rule(("workspace:read",), on_workspace=True, audited=False),
    "ListWorkspaces": Rule(("workspace:read",), on_workspace=False, audited=False),
    "StopWorkspace": Rule(("workspace:write",), on_workspace=True, audited=True),
    "ResumeWorkspace": Rule(("workspace:write", "tasks:write"), on_workspace=True, audited=True),
    "DeleteWorkspace": Rule(("workspace:write",), on_workspace=True, audited=True),
    "ListAuditEntries": Rule(("audit:read",), on_workspace=True, audited=False),
    "CancelTasks": Rule(("workspace:write",), on_workspace=False, audited=True),
    "HoldOrg": Rule(("org:hold",), on_workspace=False, audited=True, has_own=False),
    "ReleaseOrg": Rule(("org:hold",), on_workspace=False, audited=True, has_own=False),
    "GetHold": Rule(("workspace:read",), on_workspace=False, audited=False),
    "GetCaller": Rule((), on_workspace=False, audited=False),
    "CreateWebhook": _CHANGE_OF_WEBHOOK,
    "ListWebhooks": Rule(("workspace:read",), on_workspace=False, audited=False),
    "DeleteWebhook": _CHANGE_OF_WEBHOOK,
    "RotateWebhookSecret": _CHANGE_OF_WEBHOOK,
    "ReplayWebhook": _CHANGE_OF_WEBHOOK,
    "ListWebhookDeliveries": Rule(("workspace:read",), on_workspace=True, audited=False),
}

# What each template of an API key may do.
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
    """Who calls. An API key belongs to no user, and no credential belongs to no organization."""

    org_id: str
    # None for an API key.
    user_id: str | None
    scopes: frozenset[str]
    actor_id: str
    token: str = ""


@dataclass(frozen=True)
class Target:
    """A workspace, or the id of one that does not exist."""

    id: str
    # Empty if there is no such workspace.
    org_id: str = ""
    creator: str | None = None


def refusal(method: str, principal: Principal | None, target: Target | None) -> str:
    """The slug with which the call is refused; empty if it is allowed.

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
    """The scopes that a permission_denied of this method names."""
    scopes, own = RULES[method].scopes, RULES[method].own_scopes
    if set(scopes) <= principal.scopes:
        # Only the other scope is missing.
        return {RULES[method].also, f"{RULES[method].also}:own"}
    # Who holds an `:own` form has been refused for a workspace of someone else.
    return set(scopes) if own & principal.scopes else set(scopes) | own
