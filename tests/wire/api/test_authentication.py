"""Which credential opens which service."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from evershell.agent.v1 import runtime_service_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from evershell.auth.api_keys import ApiKeys
from evershell.auth.authenticator import Authenticator, HostBinding
from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.core.workspace import WorkspaceStatus
from tests.support.identity_provider import AUDIENCE, EC, ISSUER, jwk_set, token
from tests.support.world import ORG, World
from tests.wire.api.access_rules import METHODS
from tests.wire.api.credentials import INTERNAL_METHODS, unauthenticated
from tests.wire.api.running import (
    INTERNAL,
    POD_TOKENS,
    PUBLIC,
    Failed,
    Running,
    agent_bearer,
    bearer,
    find_key,
    running,
)

BAD_CREDENTIALS: list[tuple[tuple[str, str], ...]] = [
    (),
    (("authorization", ""),),
    (("authorization", "Bearer"),),
    (("authorization", "Basic c2tfdGVzdA=="),),
    (("authorization", "sk_test"),),
    bearer("sk_unknown"),
    bearer("nonsense"),
    bearer("eyJhbGciOiJub25lIn0.e30."),
]


@pytest.mark.parametrize("metadata", BAD_CREDENTIALS)
async def test_a_bad_credential_is_refused_by_both_services(
    server: Running, metadata: tuple[tuple[str, str], ...]
) -> None:
    for method in (PUBLIC + "CancelTask", INTERNAL + "Register"):
        seen = await server.raw(method, metadata)
        assert isinstance(seen, Failed)
        # The key set cannot be read here, so a session token may be unavailable instead.
        assert seen.slug == "unauthenticated" or (
            seen.slug == "unavailable" and metadata[0][1].startswith("Bearer eyJ")
        )


@pytest.mark.parametrize(
    "claims", [{"exp": 10**400}, {"sub": "a\0"}, {"org_id": "\ud800"}, {"sub": "a" * 3_000}]
)
async def test_a_signed_token_with_impossible_claims_is_unauthenticated(
    world: World, tmp_path: Path, claims: dict[str, Any]
) -> None:
    jwks = tmp_path / "jwks.json"
    jwks.write_text(jwk_set(EC))
    authenticator = Authenticator(
        ApiKeys(find_key), SessionTokens(JwkSet(str(jwks)), ISSUER, AUDIENCE)
    )
    scopes = ["workspace:write", "tasks:write"]
    async with running(world, authenticator=authenticator) as server:
        good = await server.raw(
            PUBLIC + "CreateWorkspace", bearer(token("ES256", permissions=scopes))
        )
        assert isinstance(good, bytes)
        for method in ("CreateWorkspace", "CancelTask"):
            bad = await unauthenticated(
                server, PUBLIC + method, bearer(token("ES256", permissions=scopes, **claims))
            )
            assert (bad.code, bad.slug) == (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated")


@pytest.mark.parametrize("method", INTERNAL_METHODS)
async def test_a_users_credential_does_not_open_the_runtime_service(
    server: Running, method: str
) -> None:
    for metadata in ((), bearer(), POD_TOKENS.signal_metadata("ws_1", 1)):
        assert (
            await unauthenticated(server, INTERNAL + method, metadata)
        ).slug == "unauthenticated"


@pytest.mark.parametrize("method", METHODS)
async def test_an_agents_token_opens_no_public_method(server: Running, method: str) -> None:
    seen = await unauthenticated(server, PUBLIC + method, agent_bearer("ws_1"))
    assert seen.slug in ("unauthenticated", "unavailable")


async def test_an_agent_acts_for_its_own_workspace(server: Running, world: World) -> None:
    mine, other = (
        await world.add(WorkspaceStatus.PROVISIONING),
        await world.add(WorkspaceStatus.PROVISIONING),
    )
    request = runtime_service_pb2.RegisterRequest(address="127.0.0.1:1").SerializeToString()
    answer = await server.raw(INTERNAL + "Register", agent_bearer(mine.id), request)
    assert isinstance(answer, bytes)
    directive = runtime_service_pb2.RegisterResponse.FromString(answer).directive
    assert (directive.fenced, directive.lease_ms, directive.HasField("task")) == (
        False,
        30_000,
        False,
    )
    assert (await world.workspace(mine.id)).agent_address == "127.0.0.1:1"
    assert (await world.workspace(other.id)).agent_address is None


@pytest.mark.parametrize(
    ("service", "without_database"),
    [
        ("", health_pb2.HealthCheckResponse.NOT_SERVING),
        ("evershell.workspace.v1.WorkspaceService", health_pb2.HealthCheckResponse.NOT_SERVING),
        ("liveness", health_pb2.HealthCheckResponse.SERVING),
    ],
)
async def test_health_needs_no_credential(
    server: Running, service: str, without_database: int
) -> None:
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()

    async def check() -> int:
        answer = await server.raw("/grpc.health.v1.Health/Check", request=request)
        assert isinstance(answer, bytes)
        return int(health_pb2.HealthCheckResponse.FromString(answer).status)

    assert await check() == health_pb2.HealthCheckResponse.SERVING
    await server.server.set_serving(serving=False)
    assert await check() == without_database


@pytest.mark.parametrize("service", ["evershell.agent.v1.RuntimeService", "Nope"])
async def test_health_knows_only_the_public_service(server: Running, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    answer = await server.raw("/grpc.health.v1.Health/Check", request=request)
    assert isinstance(answer, Failed) and answer.code is grpc.StatusCode.NOT_FOUND


async def test_reflection_needs_no_credential_and_hides_the_runtime_service(
    server: Running,
) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    names: list[str] = []
    async for answer in stub.ServerReflectionInfo(iter([request])):
        names += [service.name for service in answer.list_services_response.service]
    assert sorted(names) == [
        "evershell.workspace.v1.WorkspaceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]


async def test_a_host_of_another_organization_is_denied(world: World) -> None:
    async def find_slug(org_id: str) -> str | None:
        return {ORG: "acme"}.get(org_id)

    async with running(world, HostBinding("evershell.ai", find_slug)) as server:
        method = PUBLIC + "ListWorkspaces"
        denied = await server.raw(method, bearer(x_evershell_host="other.evershell.ai"))
        assert isinstance(denied, Failed) and denied.slug == "permission_denied"
        assert isinstance(
            await server.raw(method, bearer(x_evershell_host="acme.evershell.ai")), bytes
        )
        no_key = await server.raw(method, (("x-evershell-host", "other.evershell.ai"),))
        assert isinstance(no_key, Failed) and no_key.slug == "unauthenticated"
        health = await server.raw(
            "/grpc.health.v1.Health/Check", (("x-evershell-host", "other.evershell.ai"),)
        )
        assert isinstance(health, bytes)
