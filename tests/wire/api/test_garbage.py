"""Nothing of a call waits for the garbage collector, which would delay other calls."""

import gc
from collections.abc import Iterator
from contextlib import suppress

import grpc
import pytest
from evershell.workspace.v1 import workspace_service_pb2 as messages

from tests.support.waiting import eventually_async
from tests.support.world import World
from tests.wire.api.running import READER, SECRET, Running, bearer

# The call of this service, and what gRPC has of it.
OF_A_CALL = {"Call", "_ServicerContext"}


@pytest.fixture(autouse=True)
def earlier() -> Iterator[list[object]]:
    """Disables the collection. Returns the objects of calls that earlier tests have left."""
    gc.collect()
    gc.disable()
    yield calls()
    gc.enable()


def calls() -> list[object]:
    """The objects of calls that exist."""
    return [each for each in gc.get_objects() if type(each).__name__ in OF_A_CALL]


@pytest.mark.parametrize("token", [SECRET, READER, "sk_unknown"])
async def test_a_call_is_freed_when_it_has_ended(
    server: Running, world: World, token: str, earlier: list[object]
) -> None:
    """The call is accepted, denied or not authenticated."""
    busy, _ = await world.add_busy()
    request = messages.CancelTaskRequest(workspace_id=busy.id)
    with suppress(grpc.aio.AioRpcError):
        await server.stub.CancelTask(request, metadata=bearer(token))
    await eventually_async(lambda: len(calls()) == len(earlier))


async def test_a_stream_is_freed_when_it_was_refused(
    server: Running, earlier: list[object]
) -> None:
    request = messages.WatchEventsRequest(workspace_id="ws_unknown")
    with pytest.raises(grpc.aio.AioRpcError):
        await anext(aiter(server.stub.WatchEvents(request, metadata=bearer())))
    await eventually_async(lambda: len(calls()) == len(earlier))
