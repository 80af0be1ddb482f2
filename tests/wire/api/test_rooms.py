"""A server without rooms."""

import grpc
import pytest
from a2a.types import a2a_pb2
from evershell.workspace.v1 import workspace_service_pb2
from google.protobuf.message import Message

from evershell.api.method_options import A2A_SERVICE
from tests.support.world import World
from tests.wire.api.running import PUBLIC, Failed, bearer, running

LISTED: dict[str, Message] = {
    PUBLIC + "ListWebhooks": workspace_service_pb2.ListWebhooksRequest(),
    f"/{A2A_SERVICE}/GetTask": a2a_pb2.GetTaskRequest(tenant="ws_1", id="task_1"),
}


@pytest.mark.parametrize("method", LISTED)
async def test_the_methods_of_a_room_that_was_removed_are_unimplemented(
    world: World, method: str
) -> None:
    request = LISTED[method].SerializeToString()
    async with running(world, has_rooms=False) as server:
        answer = await server.raw(method, bearer(a2a_version="1.0"), request)
        assert isinstance(answer, Failed)
        # Without details of the service, by which the edge knows it.
        assert (answer.code, answer.status) == (grpc.StatusCode.UNIMPLEMENTED, None)
        assert "x-evershell-error" not in answer.trailers
    async with running(world) as server:
        answer = await server.raw(method, bearer(a2a_version="1.0"), request)
        assert not (isinstance(answer, Failed) and answer.status is None)
