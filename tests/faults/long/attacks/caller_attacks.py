"""The attacks of callers on the whole stack."""

from evershell.agent.v1 import runtime_service_pb2

from tests.wire.api.access_rules import METHODS, RULES, TEMPLATES, Principal, Target, refusal

ALL_SCOPES = frozenset(
    {"workspace:read", "workspace:write", "tasks:write", "audit:read", "org:hold"}
)
_OWN_SCOPES = frozenset({"workspace:read:own", "workspace:write:own", "tasks:write:own"})
# The callers that are refused something, as the demo has them.
CALLERS: dict[str, Principal | None] = {
    "other_org": Principal("org_other", "user_other", ALL_SCOPES, "user_other"),
    "member": Principal("org_demo", "user_member", _OWN_SCOPES, "user_member"),
    "read_only": Principal("org_demo", None, frozenset(TEMPLATES["read_only"]), "key_"),
    "expired": None,
    "nobody": None,
}
# Headers in which a caller claims to be someone or something else.
SPOOFED = {
    "the organization": (("x-evershell-org", "org_demo"), ("x-org-id", "org_demo")),
    "the actor": (("x-evershell-actor", "user_owner"), ("x-forwarded-user", "user_owner")),
    "the scopes": (("x-evershell-scopes", "workspace:write"), ("x-permissions", "*")),
    "the edge": (("x-evershell-edge", "rest"), ("x-envoy-internal", "true")),
    "the address": (("x-forwarded-for", "127.0.0.1"), ("x-real-ip", "127.0.0.1")),
    "the host": (("x-evershell-host", "demo.evershell.ai"), ("x-forwarded-host", "demo")),
    "another path": (("x-original-url", "/healthz"), ("x-envoy-original-path", "/healthz")),
    "another method": (("x-http-method-override", "GET"), ("x-method-override", "GET")),
    "a status of the answer": (("x-evershell-status", "200"), ("x-evershell-error", "{}")),
}
# Bytes that are not a request, or that cost much to read.
MESSAGES = {
    "garbage": b"\xff" * 64,
    "a truncated field": b"\x0a\x7fws",
    "a length that overflows": b"\x0a" + b"\xff" * 9 + b"\x01",
    "a text that is not UTF-8": b"\x0a\x02\xff\xfe",
    "deep groups": b"\x0b" * 10_000,
    "an open group": b"\x0b\x08\x01",
    "a field number of 0": b"\x02\x00",
    "a wire type that does not exist": b"\x0f",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "a pickle": b"cos\nsystem\n(S'true'\ntR.",
}


def expected(method: str, by: str) -> str:
    """The slug with which the call on a workspace of the owner is refused; empty if allowed."""
    owned = Target("", "org_demo", "user_owner") if RULES[method].on_workspace else None
    return refusal(method, CALLERS[by], owned)


# Each method by each of these callers, unless it is allowed. Those of another organization may list
# and hold what is their own.
BEYOND_RIGHTS = [
    f"{method} by {by}"
    for method in METHODS
    for by in CALLERS
    if expected(method, by) or (by == "other_org" and method != "CreateWorkspace")
]
AGENT_METHODS = [
    method.name
    for method in runtime_service_pb2.DESCRIPTOR.services_by_name["RuntimeService"].methods
]
