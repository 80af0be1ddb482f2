"""Forged and ambiguous credentials, sent to a real server whose callers have real keys.

tests/unit/auth has the forgeries that the token's own checks refuse. These need a call, or a
header that names a key.
"""

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from evershell.workspace.v1 import workspace_service_pb2 as messages

from evershell.auth.api_keys import ApiKeys
from evershell.auth.authenticator import Authenticator, HostBinding
from evershell.auth.session_tokens import JwkSet, SessionTokens
from tests.support.forgeries import AT_WORKER, FORGED, OWN_KEYS, Victim
from tests.support.identity_provider import AUDIENCE, EC, ISSUER, RSA, claims, jwk_set
from tests.support.waiting import eventually_async
from tests.support.world import World
from tests.wire.api.running import (
    INTERNAL,
    PUBLIC,
    SECRET,
    Failed,
    Running,
    agent_bearer,
    bearer,
    find_key,
    running,
)


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


@pytest.fixture
def victim(listening: socket.socket) -> Victim:
    agents_token = agent_bearer("ws_1")[0][1].removeprefix("Bearer ")
    return Victim(
        key=EC,
        kid="ec",
        claims=claims(permissions=["workspace:write"]),
        api_key=SECRET,
        agent_token=agents_token,
        url=f"http://127.0.0.1:{listening.getsockname()[1]}/attacker.json",
    )


async def test_the_keys_of_these_tests_are_good(
    server: Running, world: World, victim: Victim
) -> None:
    """So each refusal comes from what the row has changed."""
    idle = await world.add()
    request = messages.CancelTaskRequest(workspace_id=idle.id)
    for metadata in (bearer(), bearer(victim.good())):
        await server.stub.CancelTask(request, metadata=metadata)


async def test_the_attackers_tokens_are_good_where_the_key_is_trusted(
    tmp_path: Path, victim: Victim
) -> None:
    (tmp_path / "attacker.json").write_text(OWN_KEYS)
    trusting = SessionTokens(JwkSet(str(tmp_path / "attacker.json")), ISSUER, AUDIENCE)
    assert (await trusting.authenticate(victim.forged())).actor_id == "user_1"


@pytest.mark.parametrize("name", [*FORGED, *AT_WORKER])
async def test_a_forged_credential_is_refused(
    server: Running, listening: socket.socket, victim: Victim, name: str
) -> None:
    metadata = {**FORGED, **AT_WORKER}[name](victim)
    # The service of agents takes an agent's token.
    internal = (INTERNAL + "Register",) if name != "an agent's token" else ()
    for method in (PUBLIC + "CancelTask", PUBLIC + "ListWorkspaces", *internal):
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
