"""A stub of a worker. The workspace id of a request decides what the stub does."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, cast

import grpc
from evershell.workspace.v1 import (
    error_pb2,
    event_pb2,
    task_pb2,
    workspace_service_pb2,
    workspace_service_pb2_grpc,
)
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from evershell.api import event_stream, reflection
from evershell.api.call import Call
from evershell.api.handlers import Handlers, Methods
from evershell.api.interceptors.errors import Errors
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.method_options import WORKSPACE_SERVICE
from evershell.api.rest_body import merge_rest_body
from evershell.api.server import OPTIONS
from evershell.core import errors
from evershell.core.event import Event, EventType
from tests.support.edge import a2a_stub
from tests.support.edge.answers import rule

START_SECONDS = 15
SLOW_SECONDS = 10.0
CODES = {status.value[0]: status for status in grpc.StatusCode}
# A message with characters that must be escaped in JSON, in headers or in Envoy's format strings.
AWKWARD = 'She said "größer", then\\left\n☃ 100% {"a":1}'


class _Health(health.aio.HealthServicer):  # type: ignore[misc] # the package has no types
    """Answers the health check of the service `waits` only once `release` is set."""

    def __init__(self, release: threading.Event) -> None:
        super().__init__()
        self._release = release

    async def Check(self, request: Any, context: Any) -> Any:
        if request.service == "waits":
            await asyncio.to_thread(self._release.wait, START_SECONDS)
            request = health_pb2.HealthCheckRequest()
        return await super().Check(request, context)


class Stub:
    """A worker whose answer depends on the workspace id of the request.

    With the id `error_<slug>`, the call fails with that error; with `bare_<n>`, it fails with gRPC
    status n and no details; with `raise`, because of an exception. With `slow`, the stub answers
    after SLOW_SECONDS; with `waits`, once `release` is set. With `ended`, a cancellation is
    answered with HTTP status 200. With `breaks`, a stream ends with an error.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[Any, dict[str, str]]] = []
        self.release = threading.Event()
        self.health = _Health(self.release)

    def set_serving(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        """Changes the health that the stub reports."""
        # No caller watches the health, so it may be set outside the event loop of the server.
        asyncio.run(self.health.set("", status))

    async def act(self, request: Any, context: Any) -> None:
        metadata = {
            key: value for key, value in context.invocation_metadata() if isinstance(value, str)
        }
        self.seen.append((request, metadata))
        name = getattr(request, "workspace_id", "") or getattr(request, "tenant", "")
        if name.startswith("error_"):
            slug = name.removeprefix("error_")
            body = {
                "error": {
                    "code": slug,
                    "message": AWKWARD,
                    "request_id": metadata["x-request-id"],
                    "details": {"n": 1},
                }
            }
            trailing = [("grpc-status-details-bin", b"\x08\x05"), ("retry-after", "7")]
            if metadata.get("x-evershell-edge") == "rest":
                trailing += [
                    ("x-evershell-error", json.dumps(body)),
                    ("x-evershell-status", str(rule(slug).http)),
                ]
            await context.abort(CODES[rule(slug).grpc], AWKWARD, tuple(trailing))
        if name.startswith("bare_"):
            await context.abort(CODES[int(name.removeprefix("bare_"))], "a secret of the library")
        if name == "raise":
            raise RuntimeError("a secret of the code")
        if name == "slow":
            await asyncio.sleep(SLOW_SECONDS)
        if name == "waits":
            await asyncio.to_thread(self.release.wait, START_SECONDS)

    async def CancelTask(
        self, request: Any, context: Any
    ) -> workspace_service_pb2.CancelTaskResponse:
        await self.act(request, context)
        if request.workspace_id == "ended":
            await context.send_initial_metadata([("x-evershell-status", "200")])
        task = task_pb2.Task(id=request.task_id or "task_1", status=task_pb2.Task.running)
        outcome = workspace_service_pb2.CancelTaskResponse.accepted
        context.set_trailing_metadata([("x-evershell-note", "internal")])
        return workspace_service_pb2.CancelTaskResponse(
            workspace_id=request.workspace_id,
            task_id=task.id,
            outcome=outcome,
            reason=request.reason,
            task=task,
        )

    async def ListTasks(
        self, request: Any, context: Any
    ) -> workspace_service_pb2.ListTasksResponse:
        await self.act(request, context)
        long = task_pb2.Task(id="task_1", description="x" * 100_000)
        return workspace_service_pb2.ListTasksResponse(tasks=[long] * request.page_size)

    async def WatchEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self.act(request, context)
        response = workspace_service_pb2.WatchEventsResponse
        yield response(
            event=event_pb2.Event(seq=request.after + 1, workspace_id=request.workspace_id)
        )
        if request.workspace_id == "breaks":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "a secret of the library")
        yield response(error=error_pb2.Error(code=error_pb2.Error.unavailable, message=AWKWARD))

    async def StreamEvents(self, request: Any, context: Any) -> AsyncIterator[HttpBody]:
        await self.act(request, context)
        yield event_stream.OPENING
        yield event_stream.frame(
            Event(
                seq=request.after + 1,
                workspace_id=request.workspace_id,
                type=EventType.TASK_STARTED,
                time=datetime.now(UTC),
                payload={"epoch": 1},
            )
        )
        if request.workspace_id == "breaks":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "a secret of the library")
        # Sends the second message only after the test has read the first one.
        await asyncio.to_thread(self.release.wait, START_SECONDS)
        yield event_stream.error_frame(
            error_pb2.Error(code=error_pb2.Error.unavailable, message=AWKWARD)
        )


def _plain(reply: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a method whose answer contains only the ids in its request."""

    async def method(self: Stub, request: Any, context: Any) -> Any:
        await self.act(request, context)
        answer = reply()
        for to, of in (("id", "task_id"), ("id", "workspace_id"), ("workspace_id", "workspace_id")):
            if hasattr(answer, to) and not getattr(answer, to):
                setattr(answer, to, getattr(request, of, ""))
        return answer

    return method


for _method in workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"].methods:
    if _method.name not in vars(Stub):
        setattr(Stub, _method.name, _plain(GetMessageClass(_method.output_type)))


class _ReadingAtOnce(Interceptor):
    """Reads requests as a worker does, but without the limits of a worker."""

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        async def read_first(call: Call) -> Any:
            message = await call.context.read()
            if message is grpc.aio.EOF:
                raise errors.invalid({"body": "is missing"})
            try:
                call.request = method.parse(message)
            except DecodeError as error:
                raise errors.invalid({"body": "is not a message"}) from error
            if call.is_rest:
                merge_rest_body(message, call.request)
            return await proceed(call)

        return read_first


@contextmanager
def serving(stub: Stub, grace_seconds: float = 0.0) -> Iterator[str]:
    """Serves the stub on an event loop in another thread. Yields its address.

    At the end, the stub stops like a worker: it reports NOT_SERVING, and then gives calls in
    progress `grace_seconds` to end.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(START_SECONDS)

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(options=OPTIONS)
        methods = Methods()
        workspace_service_pb2_grpc.add_WorkspaceServiceServicer_to_server(
            cast(Any, stub), cast(grpc.aio.Server, methods)
        )
        a2a_stub.register(stub, methods)
        server.add_generic_rpc_handlers((Handlers(methods, [Errors(), _ReadingAtOnce()]),))
        health_pb2_grpc.add_HealthServicer_to_server(stub.health, server)
        reflection.add_to_server((WORKSPACE_SERVICE,), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = run(start())
    try:
        yield f"127.0.0.1:{port}"
    finally:
        run(stub.health.enter_graceful_shutdown())
        run(server.stop(grace_seconds))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
