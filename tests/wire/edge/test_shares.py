"""A cancellation succeeds while other clients hold as many calls as the edge allows."""

import socket
from contextlib import closing
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import httpx
import pytest
from evershell.workspace.v1 import workspace_service_pb2, workspace_service_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from bench.http2 import message
from tests.support.edge.cases import CANCEL
from tests.support.edge.running_edge import RunningEdge
from tests.support.edge.stub import START_SECONDS, Stub
from tests.support.waiting import eventually, eventually_async

REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
HEALTH = "/grpc.health.v1.Health/Check"
METHOD = "/evershell.workspace.v1.WorkspaceService/CancelTask"
# The limit in envoy.yaml on calls of reflection, and on calls of health.
PLACES = 64
EXCESS = 16
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]


async def reflects(channel: grpc.aio.Channel) -> bool:
    """Whether reflection answers."""
    # The only message is sent with the call: sending a message later fails if the call was already
    # refused.
    call: Any = channel.unary_stream(
        REFLECTION,
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    try:
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = [each async for each in call(question)]
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return False
    return bool(answers[0].list_services_response.service)


async def is_healthy(channel: grpc.aio.Channel) -> bool:
    """Whether the health service answers."""
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def hold(channel: grpc.aio.Channel, method: str, count: int) -> list[Any]:
    """Holds calls that are not answered. A call ends after 5 s, or at once if it gets no place."""
    if method == HEALTH:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="waits")
        return [health.Check(request) for _ in range(count)]
    return silent_calls(channel, method, count)


def silent_calls(channel: grpc.aio.Channel, method: str, count: int) -> list[Any]:
    """Calls whose message never arrives."""
    call: Any = channel.stream_stream(method)
    return [call() for _ in range(count)]


@pytest.mark.parametrize("method", [REFLECTION, HEALTH])
async def test_strangers_hold_all_places_of_a_method_without_a_credential(
    edge: RunningEdge, stub: Stub, method: str
) -> None:
    """Reflection and health each have their own places, so neither uses up the other's."""
    async with (
        grpc.aio.insecure_channel(edge.grpc_address, OPTIONS) as strangers,
        grpc.aio.insecure_channel(edge.grpc_address, OPTIONS) as caller,
    ):
        calls = hold(strangers, method, PLACES + EXCESS)
        await eventually_async(lambda: sum(each.done() for each in calls) >= EXCESS)
        refused = [each for each in calls if each.done()]
        assert len(refused) == EXCESS
        for each in refused:
            assert await each.code() is grpc.StatusCode.UNAVAILABLE
        await cancel(caller)
        assert await reflects(caller) == (method != REFLECTION)
        assert await is_healthy(caller) == (method != HEALTH)
        assert edge.answers(200)
        assert sum(not each.done() for each in calls) == PLACES
        for each in calls:
            each.cancel()
        stub.release.set()
        await eventually_async(lambda: reflects(caller))
        await eventually_async(lambda: is_healthy(caller))


async def test_strangers_that_send_nothing_hold_no_place_of_health(
    edge: RunningEdge, stub: Stub
) -> None:
    async with (
        grpc.aio.insecure_channel(edge.grpc_address, OPTIONS) as strangers,
        grpc.aio.insecure_channel(edge.grpc_address, OPTIONS) as caller,
    ):
        before = edge.stat("http.grpc.downstream_rq_active")
        calls = silent_calls(strangers, HEALTH, PLACES + EXCESS)
        expected = before + len(calls)
        await eventually_async(lambda: edge.stat("http.grpc.downstream_rq_active") >= expected)
        assert await is_healthy(caller)
        await cancel(caller)
        assert not any(each.done() for each in calls)
        for each in calls:
            each.cancel()


async def cancel(channel: grpc.aio.Channel) -> None:
    request = workspace_service_pb2.CancelTaskRequest(workspace_id="ws_1")
    await workspace_service_pb2_grpc.WorkspaceServiceStub(channel).CancelTask(request)


class Multiplexed:
    """An HTTP/2 connection with many calls at a time, which obeys the limit of the edge."""

    def __init__(self, port: int, *, is_rest: bool) -> None:
        self._is_rest = is_rest
        self._socket = socket.create_connection(("127.0.0.1", port), START_SECONDS)
        self.protocol = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.protocol.initiate_connection()
        self._flush()
        # The edge first sends its limit on streams.
        self.receive()

    def call(self) -> None:
        """Begins a cancellation that waits. Raises TooManyStreamsError at the edge's limit."""
        stream = self.protocol.get_next_available_stream_id()
        path = CANCEL.replace("ws_1", "waits") if self._is_rest else METHOD
        request = workspace_service_pb2.CancelTaskRequest(workspace_id="waits")
        content_type = "application/json" if self._is_rest else "application/grpc"
        headers = {
            ":method": "POST",
            ":path": path,
            ":scheme": "http",
            ":authority": "x",
            "content-type": content_type,
        }
        self.protocol.send_headers(stream, list(headers.items()))
        body = b"" if self._is_rest else message(request.SerializeToString())
        self.protocol.send_data(stream, body, end_stream=True)
        self._flush()

    def receive(self) -> int:
        """Waits for data, and returns how many calls have ended."""
        events = self.protocol.receive_data(self._socket.recv(65_536))
        self._flush()
        assert not any(isinstance(each, h2.events.StreamReset) for each in events)
        return sum(isinstance(each, h2.events.StreamEnded) for each in events)

    def close(self) -> None:
        self._socket.close()

    def _flush(self) -> None:
        self._socket.sendall(self.protocol.data_to_send())


@pytest.mark.parametrize(("is_rest", "limit"), [(True, 100), (False, 1000)], ids=["REST", "gRPC"])
def test_a_connection_has_as_many_calls_as_it_may_and_others_cancel(
    edge: RunningEdge, stub: Stub, is_rest: bool, limit: int
) -> None:
    """All calls of a class go over one connection to the worker. No call blocks this connection."""
    port = edge.settings.rest_port if is_rest else edge.settings.grpc_port
    with closing(Multiplexed(port, is_rest=is_rest)) as full:
        for _ in range(limit):
            full.call()
        with pytest.raises(h2.exceptions.TooManyStreamsError):
            full.call()
        eventually(lambda: len(stub.seen) == limit)
        assert edge.stat("cluster.control_plane.upstream_rq_active") == limit
        assert httpx.post(edge.rest_url + CANCEL, trust_env=False).status_code == 202
        # There is at most one connection for each of the two classes of calls with a time limit.
        assert edge.stat("cluster.control_plane.upstream_cx_active") <= 2
        stub.release.set()
        ended = 0
        while ended < limit:
            ended += full.receive()
