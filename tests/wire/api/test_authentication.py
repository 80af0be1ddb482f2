"""Which credential is valid for which service."""

import json
from typing import Any

import grpc
import pytest
from evershell.agent.v1 import runtime_service_pb2
from evershell.workspace.v1.workspace_service_pb2 import (
    CancelTaskRequest,
    ListWorkspacesRequest,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from evershell.auth.authenticator import HostBinding
from evershell.core.caller import calling_org
from evershell.core.workspace import WorkspaceStatus
from tests.support.world import ORG, World
from tests.wire.api.access_rules import METHODS
from tests.wire.api.running import (
    INTERNAL,
    POD_TOKENS,
    PUBLIC,
    Failed,
    Metadata,
    Running,
    agent_bearer,
    bearer,
    running,
)

INTERNAL_METHODS = [
    method.name
    for method in runtime_service_pb2.DESCRIPTOR.services_by_name["RuntimeService"].methods
]


async def unauthenticated(server: Running, method: str, metadata: Metadata) -> Failed:
    """Calls with this metadata, and returns the refusal."""
    seen = await server.raw(method, metadata)
    assert isinstance(seen, Failed)
    return seen


def signal_bearer(workspace_id: str, epoch: int = 1) -> Metadata:
    return bearer(POD_TOKENS.signal_token(workspace_id, epoch))


@pytest.mark.parametrize("method", INTERNAL_METHODS)
async def test_a_users_credential_does_not_open_the_runtime_service(
    server: Running, method: str
) -> None:
    for metadata in ((), bearer(), signal_bearer("ws_1")):
        assert (
            await unauthenticated(server, INTERNAL + method, metadata)
        ).slug == "unauthenticated"


async def test_a_second_credential_is_refused(server: Running) -> None:
    """The edge drops an empty header, so this test calls the worker directly."""
    empty = (("authorization", ""),)
    for metadata in ((*empty, *bearer()), (*bearer(), *empty)):
        refused = await unauthenticated(server, PUBLIC + "ListWorkspaces", metadata)
        assert refused.slug == "unauthenticated"


@pytest.mark.parametrize("name", ["x-evershell-org", "x-evershell-actor", "x-evershell-scopes"])
async def test_a_header_changes_nobodys_identity(server: Running, world: World, name: str) -> None:
    """Headers that name another organization, user or scope do not change who the caller is."""
    foreign = await world.add(org_id="org_b")
    request = CancelTaskRequest(workspace_id=foreign.id)
    for value in ("org_b", "user_1", "workspace:write"):
        call = server.stub.CancelTask(request, metadata=(*bearer(), (name, value)))
        assert (await server.fails(call)).slug == "workspace_not_found"


async def test_a_call_knows_its_organization(
    server: Running, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store needs the organization of a call, because organizations take turns."""
    known: list[str] = []
    read = world.store.list_workspaces

    async def list_workspaces(*arguments: Any) -> Any:
        known.append(calling_org.get())
        return await read(*arguments)

    monkeypatch.setattr(world.store, "list_workspaces", list_workspaces)
    await server.stub.ListWorkspaces(ListWorkspacesRequest(), metadata=bearer())
    assert known == [ORG]


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


def bootstrap_bearer(workspace_id: str, epoch: int = 1) -> Metadata:
    return bearer(POD_TOKENS.bootstrap_token(workspace_id, epoch))


async def test_a_bootstrap_token_opens_only_bootstrap(server: Running, world: World) -> None:
    made = await world.add(WorkspaceStatus.PROVISIONING)
    for method in set(INTERNAL_METHODS) - {"Bootstrap"}:
        await unauthenticated(server, INTERNAL + method, bootstrap_bearer(made.id))
    for method in METHODS:
        await unauthenticated(server, PUBLIC + method, bootstrap_bearer(made.id))
    await unauthenticated(server, INTERNAL + "Bootstrap", agent_bearer(made.id))
    await unauthenticated(server, INTERNAL + "Bootstrap", signal_bearer(made.id, made.epoch))


async def test_a_bootstrap_token_is_spent_when_the_agent_registers(
    server: Running, world: World
) -> None:
    made = await world.add(WorkspaceStatus.PROVISIONING)
    # The first answer may be lost, so the agent can repeat the call.
    for _ in range(2):
        seen = await server.raw(INTERNAL + "Bootstrap", bootstrap_bearer(made.id))
        assert isinstance(seen, bytes)
        spec = json.loads(runtime_service_pb2.BootstrapResponse.FromString(seen).spec)
        assert (spec["workspace_id"], spec["epoch"]) == (made.id, 1)
    request = runtime_service_pb2.RegisterRequest(address="127.0.0.1:1").SerializeToString()
    assert isinstance(
        await server.raw(INTERNAL + "Register", agent_bearer(made.id), request), bytes
    )
    refused = await unauthenticated(server, INTERNAL + "Bootstrap", bootstrap_bearer(made.id))
    assert "was spent" in refused.message


@pytest.mark.parametrize(
    "status", [each for each in WorkspaceStatus if each is not WorkspaceStatus.PROVISIONING]
)
async def test_no_bootstrap_in_another_state(
    server: Running, world: World, status: WorkspaceStatus
) -> None:
    made = await world.add(status)
    await unauthenticated(server, INTERNAL + "Bootstrap", bootstrap_bearer(made.id))


async def test_a_bootstrap_token_is_bound_to_its_workspace_and_epoch(
    server: Running, world: World
) -> None:
    made, other = (
        await world.add(WorkspaceStatus.PROVISIONING),
        await world.add(WorkspaceStatus.PROVISIONING),
    )
    await unauthenticated(server, INTERNAL + "Bootstrap", bootstrap_bearer(made.id, 2))
    await unauthenticated(server, INTERNAL + "Bootstrap", bootstrap_bearer("ws_none"))
    mixed = POD_TOKENS.bootstrap_token(made.id, 1).replace(made.id, other.id)
    await unauthenticated(server, INTERNAL + "Bootstrap", bearer(mixed))


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
    listed = await health_pb2_grpc.HealthStub(server.channel).List(health_pb2.HealthListRequest())
    assert listed.statuses[service].status == health_pb2.HealthCheckResponse.SERVING
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
        "lf.a2a.v1.A2AService",
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
        own, other = (("x-evershell-host", f"{slug}.evershell.ai") for slug in ("acme", "other"))
        for hosts in ((own, other), (other, own)):
            repeated = await server.raw(method, (*bearer(), *hosts))
            assert isinstance(repeated, Failed) and repeated.slug == "permission_denied"
