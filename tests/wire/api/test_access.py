"""Who may call what: every method, against its rule in the protos."""

from itertools import product
from pathlib import Path

import pytest
from evershell.workspace.v1.workspace_service_pb2 import DESCRIPTOR, edge

from evershell.api.interceptors import reading
from evershell.auth.api_keys import ApiKeys, fingerprint
from evershell.auth.authenticator import Authenticator
from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.core.caller import ApiKey, KeyTemplate
from tests.support.identity_provider import AUDIENCE, EC, ISSUER, jwk_set
from tests.support.world import NOW, World
from tests.wire.api.access_checks import ORGS, Asked, Checking
from tests.wire.api.access_rules import METHODS, RULES, TEMPLATES, Principal
from tests.wire.api.running import running

SERVICE = DESCRIPTOR.services_by_name["WorkspaceService"]
# The organization and the creator of each workspace.
WORKSPACES = (("org_a", "user_1"), ("org_a", "user_2"), ("org_a", None), ("org_b", "user_1"))
TARGETS = (*range(len(WORKSPACES)), None)
SCOPES = sorted({scope for rule in RULES.values() for scope in rule.scopes})
# No method accepts any of these scopes.
NO_SCOPES = ("*", "workspace:*", "workspace", "workspace:write:all", "WORKSPACE:READ", "tasks:read")
KEYS = {f"sk_{org}_{template}": (org, template) for org in ORGS for template in TEMPLATES}


def _key(secret: str) -> Principal:
    org_id, template = KEYS[secret]
    return Principal(org_id, None, frozenset(TEMPLATES[template]), f"key_{secret}", secret)


def _session(org_id: str, user: str, scopes: frozenset[str]) -> Principal:
    return Principal(org_id, user, scopes, user)


def test_each_method_has_a_rule() -> None:
    methods = SERVICE.methods_by_name.items()
    edges = {name: each.GetOptions().Extensions[edge] for name, each in methods}
    assert all(each.HasField("access") for each in edges.values())
    assert {name for name, rule in RULES.items() if not rule.scopes} == {"GetCaller"}


async def test_every_method_is_called_by_every_kind_of_caller(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls each method for the caller's own workspace, a colleague's and a stranger's."""
    # The audit entry of a slow request that is refused before it has arrived names no workspace.
    monkeypatch.setattr(reading, "_QUICK_SECONDS", 60.0)
    (tmp_path / "jwks.json").write_text(jwk_set(EC))
    authenticator = Authenticator(
        ApiKeys(_find_key), SessionTokens(JwkSet(str(tmp_path / "jwks.json")), ISSUER, AUDIENCE)
    )
    own = frozenset(f"{scope}:own" for scope in SCOPES)
    principals = [
        None,
        *map(_key, KEYS),
        _session("org_a", "user_1", frozenset(SCOPES)),
        _session("org_a", "user_1", own),
        _session("org_a", "user_1", frozenset(NO_SCOPES)),
        *(_session("org_a", "user_1", frozenset({scope})) for scope in [*SCOPES, *own]),
    ]
    async with running(world, authenticator=authenticator) as server:
        check = Checking(world, server)
        for org_id, creator in WORKSPACES:
            await check.add(org_id, creator)
        for method, principal in product(METHODS, principals):
            for target in TARGETS if RULES[method].on_workspace else [None]:
                await check.call(Asked(method, principal, target))
        await check.count()


async def _find_key(digest: bytes) -> ApiKey | None:
    for secret, (org_id, template) in KEYS.items():
        if fingerprint(secret) == digest:
            return ApiKey(
                id=f"key_{secret}",
                org_id=org_id,
                name="",
                template=KeyTemplate(template),
                created_at=NOW,
            )
    return None
