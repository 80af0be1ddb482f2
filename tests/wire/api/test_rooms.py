"""A server without optional rooms, or without one of them."""

from typing import Any

import grpc
import pytest
from a2a.types import a2a_pb2, a2a_pb2_grpc
from evershell.workspace.v1 import workspace_service_pb2
from google.protobuf.message import Message

from evershell.api.method_options import A2A_SERVICE
from tests.support.world import World
from tests.wire.api.a2a_calls import error_type, headers, sending
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
    async with running(world, rooms=()) as server:
        answer = await server.raw(method, bearer(a2a_version="1.0"), request)
        assert isinstance(answer, Failed)
        # The answer has no error details of the service, so the edge writes the error itself.
        assert (answer.code, answer.status) == (grpc.StatusCode.UNIMPLEMENTED, None)
        assert "x-evershell-error" not in answer.trailers
    async with running(world) as server:
        answer = await server.raw(method, bearer(a2a_version="1.0"), request)
        assert not (isinstance(answer, Failed) and answer.status is None)


async def test_a2a_without_webhooks_refuses_push_configurations(world: World) -> None:
    """A message with a push configuration does not begin a task."""
    idle = await world.add()
    config = a2a_pb2.TaskPushNotificationConfig(tenant=idle.id, task_id="task_1", url="https://a.b")
    configuration = {"task_push_notification_config": config}
    async with running(world, rooms=("a2a",)) as server:
        stub: Any = a2a_pb2_grpc.A2AServiceStub(server.channel)
        for call in (
            stub.CreateTaskPushNotificationConfig(config, metadata=headers()),
            stub.SendMessage(sending(idle.id, configuration=configuration), metadata=headers()),
        ):
            refused = await server.fails(call)
            assert error_type(refused) == "PUSH_NOTIFICATION_NOT_SUPPORTED"
            assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
        card = await stub.GetExtendedAgentCard(
            a2a_pb2.GetExtendedAgentCardRequest(tenant=idle.id), metadata=headers()
        )
    assert not card.capabilities.push_notifications
    assert await world.store.list_tasks(idle.id, None, 1) == []
