"""Who may call what, for random callers and workspaces, against an independent table."""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from evershell.api.method_options import public_methods
from evershell.auth.api_keys import ApiKeys, fingerprint
from evershell.auth.authenticator import Authenticator
from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.core.caller import ApiKey, KeyTemplate
from evershell.core.workspace import WorkspaceStatus
from tests.support.identity_provider import AUDIENCE, EC, ISSUER, jwk_set
from tests.support.world import NOW, World
from tests.wire.api.access_checks import ORGS, Asked, Checking
from tests.wire.api.access_rules import METHODS, RULES, TEMPLATES, Principal
from tests.wire.api.running import PUBLIC, running

USERS = ("user_1", "user_2")
SCOPES = sorted({scope for rule in RULES.values() for scope in rule.scopes})
# None of them grants anything here.
NO_SCOPES = ("*", "workspace:*", "workspace", "workspace:write:all", "WORKSPACE:READ", "tasks:read")
KEYS = {f"sk_{org}_{template}": (org, template) for org in ORGS for template in TEMPLATES}


def _key(secret: str) -> Principal:
    org_id, template = KEYS[secret]
    return Principal(org_id, None, frozenset(TEMPLATES[template]), f"key_{secret}", secret)


def _session(org_id: str, user: str, scopes: frozenset[str]) -> Principal:
    return Principal(org_id, user, scopes, user)


_SCOPE_SETS = st.frozensets(
    st.sampled_from([*SCOPES, *(f"{scope}:own" for scope in SCOPES), *NO_SCOPES]), max_size=5
)
_PRINCIPALS = st.one_of(
    st.sampled_from(sorted(KEYS)).map(_key),
    st.builds(_session, st.sampled_from(ORGS), st.sampled_from(USERS), _SCOPE_SETS),
)
_WORKSPACES = st.lists(
    st.tuples(
        st.sampled_from(ORGS), st.sampled_from([None, *USERS]), st.sampled_from(WorkspaceStatus)
    ),
    min_size=1,
    max_size=4,
)
_CALLS = st.lists(
    st.builds(
        Asked,
        st.sampled_from(METHODS),
        # Few calls without a credential: of those, only 20 a second are recorded.
        st.one_of(*[_PRINCIPALS] * 9, st.none()),
        st.one_of(*[st.integers(0, 3)] * 4, st.none()),
        st.one_of(st.integers(0, 3), st.none()),
    ),
    min_size=1,
    max_size=8,
)


def test_each_method_has_a_rule() -> None:
    assert sorted(RULES) == METHODS
    changing = {path.removeprefix(PUBLIC) for path in public_methods(with_effect=True)}
    assert {method for method, rule in RULES.items() if rule.audited} == changing


@settings(max_examples=30, deadline=None)
@given(workspaces=_WORKSPACES, calls=_CALLS)
def test_a_call_is_allowed_and_recorded_as_the_rules_say(
    workspaces: list[tuple[str, str | None, WorkspaceStatus]], calls: list[Asked]
) -> None:
    asyncio.run(_make(workspaces, calls))


def test_every_method_is_called_by_every_kind_of_caller() -> None:
    """The same checks, for each method and each distance between caller and workspace."""
    workspaces: list[tuple[str, str | None, WorkspaceStatus]] = [
        ("org_a", "user_1", WorkspaceStatus.IDLE),
        ("org_a", "user_2", WorkspaceStatus.IDLE),
        ("org_a", None, WorkspaceStatus.IDLE),
        ("org_b", "user_1", WorkspaceStatus.IDLE),
    ]
    own = frozenset(f"{scope}:own" for scope in SCOPES)
    principals = [
        None,
        *map(_key, KEYS),
        _session("org_a", "user_1", frozenset(SCOPES)),
        _session("org_a", "user_1", own),
        _session("org_a", "user_1", frozenset(NO_SCOPES)),
        *(_session("org_a", "user_1", frozenset({scope})) for scope in [*SCOPES, *own]),
    ]
    calls = [
        Asked(method, principal, target, None)
        for method in METHODS
        for principal in principals
        for target in (0, 1, 2, 3, None)
    ]
    assert asyncio.run(_make(workspaces, calls)) == len(calls)


async def _make(
    workspaces: Sequence[tuple[str, str | None, WorkspaceStatus]], calls: Sequence[Asked]
) -> int:
    """Makes the calls one after the other and checks each. Returns their number."""
    world = World()
    with tempfile.TemporaryDirectory() as folder:
        jwks = Path(folder, "jwks.json")
        jwks.write_text(jwk_set(EC))
        authenticator = Authenticator(
            ApiKeys(_find_key), SessionTokens(JwkSet(str(jwks)), ISSUER, AUDIENCE)
        )
        async with running(world, authenticator=authenticator) as server:
            check = Checking(world, server)
            await check.add(workspaces)
            for asked in calls:
                await check.call(asked)
            await check.count()
            return check.made


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
