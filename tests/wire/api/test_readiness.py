"""A worker that is not ready refuses public calls before it asks its database for anything."""

import grpc
from evershell.workspace.v1 import workspace_service_pb2 as messages

from tests.support.world import World
from tests.wire.api.running import INTERNAL, PUBLIC, SECRET, Failed, Running, agent_bearer, bearer


async def test_public_calls_are_refused_while_the_worker_is_not_ready(
    server: Running, world: World
) -> None:
    workspace = await world.add()
    request = messages.GetWorkspaceRequest(workspace_id=workspace.id).SerializeToString()

    async def get(credential: str = SECRET) -> bytes | Failed:
        return await server.raw(PUBLIC + "GetWorkspace", bearer(credential), request)

    assert isinstance(await get(), bytes)
    await server.server.set_serving(serving=False)
    # Calls with unknown credentials get the same refusal, because the credentials could not be
    # looked up.
    for credential in (SECRET, "unknown"):
        refused = await get(credential)
        assert isinstance(refused, Failed)
        assert (refused.code, refused.slug) == (grpc.StatusCode.UNAVAILABLE, "unavailable")
    # The call has not reached the service, so it leaves no entry in the queue of the audit log.
    cancel = messages.CancelTaskRequest(workspace_id=workspace.id).SerializeToString()
    refused = await server.raw(PUBLIC + "CancelTask", bearer(), cancel)
    assert isinstance(refused, Failed) and "no effect" in refused.message
    assert not server.audit.entries
    # Calls of agents are not refused: they wait for the database.
    assert isinstance(await server.raw(INTERNAL + "Heartbeat", agent_bearer(workspace.id)), bytes)
    await server.server.set_serving(serving=True)
    assert isinstance(await get(), bytes)
