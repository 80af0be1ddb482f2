"""Forged and ambiguous credentials, sent to a real server whose callers have real keys.

tests/auth has the forgeries that the token's own checks refuse. These need a call, or a header that
names a key.
"""

import json
import socket
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from evershell.workspace.v1 import workspace_service_pb2 as messages
from joserfc import jwe, jws
from joserfc.jwk import ECKey, OctKey

from evershell.server.auth.api_keys import ApiKeys
from evershell.server.auth.authenticator import Authenticator, HostBinding
from evershell.server.auth.session_tokens import JwkSet, SessionTokens
from tests.api.running import (
    INTERNAL,
    PUBLIC,
    SECRET,
    Failed,
    Metadata,
    Running,
    agent_bearer,
    bearer,
    find_key,
    running,
)
from tests.support.identity_provider import AUDIENCE, EC, ISSUER, RSA, claims, jwk_set, token
from tests.support.waiting import eventually_async
from tests.support.world import World

ATTACKER = ECKey.generate_key("P-256", {"kid": "attacker"})
# A key of the attacker that the token itself carries or points to.
OWN_KEYS = jwk_set(ATTACKER)
Forge = Callable[[str], Metadata]


@pytest.fixture
async def server(world: World, tmp_path: Path) -> AsyncIterator[Running]:
    jwks = tmp_path / "jwks.json"
    jwks.write_text(jwk_set(RSA, EC))
    (tmp_path / "attacker.json").write_text(OWN_KEYS)
    authenticator = Authenticator(
        ApiKeys(find_key), SessionTokens(JwkSet(str(jwks)), ISSUER, AUDIENCE)
    )
    async with running(world, authenticator=authenticator) as started:
        yield started


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A socket to which a fetch of the attacker's keys would connect."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        opened.setblocking(False)
        yield opened


def _signed(**header: Any) -> str:
    """A token with good claims that the attacker has signed."""
    protected = {"alg": "ES256", "kid": "attacker", **header}
    # The library refuses to sign with most of these headers, so the token is put together here.
    signing_input = f"{_part(protected)}.{_part(claims(permissions=['workspace:write']))}"
    signature = _signature(signing_input)
    return f"{signing_input}.{signature}"


def _signature(signing_input: str) -> str:
    algorithm = jws.JWSRegistry.algorithms["ES256"]
    return _base64(algorithm.sign(signing_input.encode(), ATTACKER))


def _part(value: Any) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _encrypted(_: str) -> Metadata:
    """A token of five parts (JWE), encrypted with a key that the header names."""
    key = OctKey.generate_key(128, {"kid": "rsa"})
    return bearer(
        jwe.encrypt_compact(
            {"alg": "dir", "enc": "A128GCM", "kid": "rsa"}, json.dumps(claims()), key
        )
    )


def _twice(first: str, second: str) -> Metadata:
    return (("authorization", first), ("authorization", second))


GOOD = f"Bearer {SECRET}"
FORGED: dict[str, Forge] = {
    "jku names a set of the attacker": lambda url: bearer(_signed(jku=url)),
    "x5u names a certificate of the attacker": lambda url: bearer(_signed(x5u=url)),
    "x5c holds a certificate of the attacker": lambda _: bearer(_signed(x5c=["TUlJQg=="])),
    "jwk holds the key, under a known kid": lambda _: bearer(
        _signed(kid="ec", jwk=ATTACKER.as_dict(private=False))
    ),
    "jwk holds the key, and there is no kid": lambda _: bearer(
        _signed(kid=None, jwk=ATTACKER.as_dict(private=False))
    ),
    "kid is a path": lambda _: bearer(_signed(kid="../attacker.json")),
    "kid is a device": lambda _: bearer(_signed(kid="/dev/null")),
    "kid is a URL": lambda url: bearer(_signed(kid=url)),
    "kid is SQL": lambda _: bearer(_signed(kid="x' UNION SELECT 'key'; --")),
    "kid is a command": lambda _: bearer(_signed(kid="ec; touch /tmp/kid #")),
    "kid is very long": lambda _: bearer(_signed(kid="k" * 4_000)),
    "kid is a number": lambda _: bearer(_signed(kid=0)),
    "kid has control characters": lambda _: bearer(_signed(kid="ec\n\x1b[2J\0")),
    "an encrypted token": _encrypted,
    "two signatures": lambda _: bearer(token("ES256") + "." + token("ES256").rpartition(".")[2]),
    "two tokens in one value": lambda _: bearer(f"{SECRET},Bearer {SECRET}"),
    "two tokens, one space": lambda _: bearer(f"{SECRET} {SECRET}"),
    "a good header, then a bad one": lambda _: _twice(GOOD, "Bearer sk_unknown"),
    "a bad header, then a good one": lambda _: _twice("Bearer sk_unknown", GOOD),
    "an empty header, then a good one": lambda _: _twice("", GOOD),
    "the same good header twice": lambda _: _twice(GOOD, GOOD),
    "a key, then an agent's token": lambda _: _twice(GOOD, agent_bearer("ws_1")[0][1]),
    "an SQL key": lambda _: bearer("sk_' OR ''='"),
    "a key with a wildcard": lambda _: bearer("sk_%"),
    "the fingerprint of a key": lambda _: bearer("sk_" + "00" * 32),
    "the credential in another header": lambda _: (
        ("x-authorization", GOOD),
        ("proxy-authorization", GOOD),
        ("cookie", f"authorization={SECRET}"),
    ),
    "identity in headers": lambda _: (
        ("x-evershell-org", "org_a"),
        ("x-evershell-actor", "key_full_access"),
        ("x-forwarded-user", "user_1"),
        ("x-envoy-internal", "true"),
        ("x-evershell-edge", "rest"),
    ),
}


async def test_the_keys_of_these_tests_are_good(server: Running, world: World) -> None:
    """So each refusal comes from what the row has changed."""
    idle = await world.add()
    request = messages.CancelTaskRequest(workspace_id=idle.id)
    for metadata in (bearer(), bearer(token("ES256", permissions=["workspace:write"]))):
        await server.stub.CancelTask(request, metadata=metadata)


async def test_the_attackers_tokens_are_good_where_the_key_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "attacker.json").write_text(OWN_KEYS)
    trusting = SessionTokens(JwkSet(str(tmp_path / "attacker.json")), ISSUER, AUDIENCE)
    assert (await trusting.authenticate(_signed())).actor_id == "user_1"


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_credential_is_refused(
    server: Running, listening: socket.socket, name: str
) -> None:
    metadata = FORGED[name](f"http://127.0.0.1:{listening.getsockname()[1]}/attacker.json")
    for method in (PUBLIC + "CancelTask", PUBLIC + "ListWorkspaces", INTERNAL + "Register"):
        seen = await server.raw(method, metadata, b"\x0a\x04ws_1")
        assert isinstance(seen, Failed), method
        assert (seen.code, seen.slug) == (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated")
    # Nobody has fetched the attacker's keys.
    with pytest.raises(BlockingIOError):
        listening.accept()
    await eventually_async(lambda: server.audit.entries)
    (entry,) = server.audit.entries
    assert (entry.outcome, entry.org_id, entry.actor_id, entry.credential_id) == (
        "unauthenticated",
        "",
        "",
        "",
    )


@pytest.mark.parametrize("name", ["x-evershell-org", "x-evershell-actor", "x-evershell-scopes"])
async def test_a_header_changes_nobodys_identity(server: Running, world: World, name: str) -> None:
    """A caller of one organization names another one, with a good credential of its own."""
    foreign = await world.add(org_id="org_b")
    for value in ("org_b", "user_1", "workspace:write"):
        seen = await server.fails(
            server.stub.CancelTask(
                messages.CancelTaskRequest(workspace_id=foreign.id),
                metadata=(*bearer(), (name, value)),
            )
        )
        assert seen.slug == "workspace_not_found"


async def test_a_repeated_host_is_not_that_of_the_organization(world: World) -> None:
    async def find_slug(org_id: str) -> str | None:
        return "acme"

    own, other = "acme.evershell.ai", "other.evershell.ai"
    async with running(world, HostBinding("evershell.ai", find_slug)) as server:
        for hosts in ((own, other), (other, own)):
            metadata = (*bearer(), *(("x-evershell-host", host) for host in hosts))
            seen = await server.raw(PUBLIC + "ListWorkspaces", metadata)
            assert isinstance(seen, Failed) and seen.slug == "permission_denied"
