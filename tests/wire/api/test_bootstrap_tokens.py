"""Bootstrap, and the tokens that open it."""

import json

import pytest
from evershell.agent.v1 import runtime_service_pb2

from evershell.core.workspace import WorkspaceStatus
from tests.support.world import World
from tests.wire.api.access_rules import METHODS
from tests.wire.api.credentials import RUNTIME_METHODS, unauthenticated
from tests.wire.api.running import INTERNAL, POD_TOKENS, PUBLIC, Running, agent_bearer, bearer


def bootstrap_bearer(workspace_id: str, epoch: int = 1) -> tuple[tuple[str, str], ...]:
    return bearer(POD_TOKENS.bootstrap_token(workspace_id, epoch))


async def test_a_bootstrap_token_opens_only_bootstrap(server: Running, world: World) -> None:
    made = await world.add(WorkspaceStatus.PROVISIONING)
    for method in RUNTIME_METHODS:
        await unauthenticated(server, INTERNAL + method, bootstrap_bearer(made.id))
    for method in METHODS:
        await unauthenticated(server, PUBLIC + method, bootstrap_bearer(made.id))
    await unauthenticated(server, INTERNAL + "Bootstrap", agent_bearer(made.id))
    await unauthenticated(
        server, INTERNAL + "Bootstrap", POD_TOKENS.signal_metadata(made.id, made.epoch)
    )


async def test_a_bootstrap_token_is_spent_when_the_agent_registers(
    server: Running, world: World
) -> None:
    made = await world.add(WorkspaceStatus.PROVISIONING)
    # An answer may be lost, so the agent can ask again.
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
