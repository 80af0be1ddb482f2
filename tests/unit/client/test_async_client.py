"""What depends on asyncio and grpc.aio in the asynchronous client, with a real server.

The other files test the rules of calls, waits and watches with the synchronous client, because
grpcio-testing has no fake channel for grpc.aio. The synchronous client is generated from the
asynchronous one.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest
from evershell.workspace.v1 import (
    event_pb2,
    task_pb2,
    workspace_pb2,
    workspace_service_pb2,
    workspace_service_pb2_grpc,
)

from evershell.client import (
    Answer,
    AsyncClient,
    ClientClosedError,
    UnavailableError,
)
from evershell.core.errors import Failure
from tests.unit.client.scripted import Scripted

Message = workspace_service_pb2.WatchEventsResponse
WORKSPACE = workspace_pb2.Workspace(id="ws_1")
SOON = Failure("unavailable", "Later.", retry_after_seconds=0.01)


@pytest.fixture
async def service() -> AsyncIterator[tuple[Scripted, str]]:
    scripted = Scripted()
    server = grpc.aio.server()
    workspace_service_pb2_grpc.add_WorkspaceServiceServicer_to_server(cast(Any, scripted), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield scripted, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
def scripted(service: tuple[Scripted, str]) -> Scripted:
    return service[0]


@pytest.fixture
async def client(service: tuple[Scripted, str]) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service[1], "sk_secret") as made:
        yield made


def event(seq: int, **fields: Any) -> Message:
    return Message(event=event_pb2.Event(seq=seq, task_id="task_1", **fields))


async def test_an_attempt_that_fails_is_reported_and_repeated(
    service: tuple[Scripted, str],
) -> None:
    scripted, address = service
    answers: list[Answer] = []
    scripted.script = [SOON, WORKSPACE]
    async with AsyncClient(address, "sk_secret", on_answer=answers.append) as client:
        workspace = await client.with_options(metadata={"x-team": "blue"}).get_workspace("ws_1")
    assert workspace.id == "ws_1"
    assert (scripted.tokens, scripted.metadata["x-team"]) == (["Bearer sk_secret"] * 2, "blue")
    assert isinstance(answers[0].error, UnavailableError) and answers[1].error is None
    for answer in answers:
        assert (answer.rpc, answer.request_id) == ("GetWorkspace", "request_1")
        assert answer.metadata["x-request-id"] == "request_1"


async def test_a_watch_is_resumed(client: AsyncClient, scripted: Scripted) -> None:
    end = event_pb2.TaskCompleted(status=task_pb2.Task.cancelled)
    scripted.script = [
        [event(1), event(2)],
        SOON,
        [event(3, type=9, task_completed=end)],
    ]
    seqs = [each.seq async for each in client.watch("ws_1", task_id="task_1")]
    assert seqs == [1, 2, 3]
    assert [each.after for each in scripted.seen] == [0, 2, 2]


async def test_a_stream_on_which_nothing_arrives_is_opened_again(
    client: AsyncClient, scripted: Scripted
) -> None:
    client._idle_seconds = 0.05
    # On a busy machine, further streams may count as idle too.
    scripted.script = [["hang"], *[[event(1)]] * 50]
    watched = client.watch("ws_1")
    assert (await anext(watched)).seq == 1
    await watched.aclose()


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_callable_supplies_the_credential(
    service: tuple[Scripted, str], is_async: bool
) -> None:
    async def later() -> str:
        return "eyJ.later"

    scripted, address = service
    scripted.script = [WORKSPACE]
    async with AsyncClient(address, later if is_async else lambda: "eyJ.now") as client:
        await client.get_workspace("ws_1")
    assert scripted.tokens == [f"Bearer eyJ.{'later' if is_async else 'now'}"]


async def test_a_failure_of_the_callable_is_not_one_of_the_service(client: AsyncClient) -> None:
    async def late() -> str:
        raise TimeoutError("The identity provider does not answer.")

    watched = client.with_options(credential=late).watch("ws_1")
    with pytest.raises(TimeoutError, match="identity provider"):
        await anext(watched)


async def test_a_call_of_a_closed_client(client: AsyncClient, scripted: Scripted) -> None:
    scripted.script = ["hang"]
    call = asyncio.create_task(client.get_workspace("ws_1"))
    await scripted.started.wait()
    await client.close()
    for closed in (call, client.get_workspace("ws_1"), anext(client.watch("ws_1"))):
        with pytest.raises(ClientClosedError):
            await closed


async def test_a_watch_that_is_closed_ends_its_stream(
    client: AsyncClient, scripted: Scripted
) -> None:
    scripted.script = [[event(1), "hang"]]
    watched = client.watch("ws_1")
    assert (await anext(watched)).seq == 1
    await watched.aclose()
    async with asyncio.timeout(30):
        await scripted.ended.wait()


@pytest.mark.parametrize("is_closed", [False, True])
async def test_a_caller_can_cancel_its_own_call(
    client: AsyncClient, scripted: Scripted, is_closed: bool
) -> None:
    scripted.script = ["hang"]
    call = asyncio.create_task(client.get_workspace("ws_1"))
    await scripted.started.wait()
    call.cancel()
    if is_closed:
        await client.close()
    with pytest.raises(asyncio.CancelledError) as raised:
        await call
    assert raised.value.__cause__ is not raised.value
