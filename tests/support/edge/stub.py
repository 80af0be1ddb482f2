"""A stub of a worker that acts on the id of the workspace, and a real Envoy in front of it."""

import asyncio
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import httpx
from evershell.workspace.v1 import (
    error_pb2,
    event_pb2,
    hold_pb2,
    task_pb2,
    workspace_pb2,
    workspace_service_pb2,
    workspace_service_pb2_grpc,
)
from google.api.httpbody_pb2 import HttpBody
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from evershell.server.api import event_stream
from evershell.server.api.server import OPTIONS
from evershell.server.core.event import Event, EventType
from evershell.server.stack.envoy.config import Edge, Tls, command, render
from evershell.server.stack.envoy.files import edge_file
from tests.support.edge.answers import rule
from tests.support.ports import free_ports
from tests.support.waiting import eventually

START_SECONDS = 15
SLOW_SECONDS = 10.0
CODES = {status.value[0]: status for status in grpc.StatusCode}
# A message with characters that need escaping in JSON, in headers or in Envoy's format strings.
AWKWARD = 'She said "größer", then\\left\n☃ 100% {"a":1}'


class Stub(workspace_service_pb2_grpc.WorkspaceServiceServicer):
    """A worker that acts on the id of the workspace.

    `error_<slug>` fails with that error, and `bare_<n>` with gRPC status n and no details. `raise`
    raises an exception, `slow` answers after SLOW_SECONDS, and `waits` answers when `release` is
    set. `ended` answers a cancellation with HTTP status 200, and `breaks` ends a stream with an
    error.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[Any, dict[str, str]]] = []
        self.release = threading.Event()
        self.health = health.aio.HealthServicer()

    def set_serving(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        """Changes the health that the stub reports."""
        # There are no watchers to wake, so any event loop will do.
        asyncio.run(self.health.set("", status))

    async def _act(self, request: Any, context: Any) -> None:
        metadata = {
            key: value for key, value in context.invocation_metadata() if isinstance(value, str)
        }
        self.seen.append((request, metadata))
        name = request.workspace_id
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
        await self._act(request, context)
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

    async def CreateWorkspace(self, request: Any, context: Any) -> workspace_pb2.Workspace:
        return workspace_pb2.Workspace(id="ws_new")

    async def GetWorkspace(self, request: Any, context: Any) -> workspace_pb2.Workspace:
        await self._act(request, context)
        return workspace_pb2.Workspace(id=request.workspace_id)

    async def ListTasks(
        self, request: Any, context: Any
    ) -> workspace_service_pb2.ListTasksResponse:
        await self._act(request, context)
        long = task_pb2.Task(id="task_1", description="x" * 100_000)
        return workspace_service_pb2.ListTasksResponse(tasks=[long] * request.page_size)

    async def GetTask(self, request: Any, context: Any) -> task_pb2.Task:
        return task_pb2.Task(id=request.task_id)

    async def SubmitTask(
        self, request: Any, context: Any
    ) -> workspace_service_pb2.SubmitTaskResponse:
        return workspace_service_pb2.SubmitTaskResponse(workspace_id=request.workspace_id)

    async def ListWorkspaces(
        self, request: Any, context: Any
    ) -> workspace_service_pb2.ListWorkspacesResponse:
        return workspace_service_pb2.ListWorkspacesResponse()

    async def StopWorkspace(self, request: Any, context: Any) -> workspace_pb2.Workspace:
        return workspace_pb2.Workspace(id=request.workspace_id)

    async def ResumeWorkspace(self, request: Any, context: Any) -> workspace_pb2.Workspace:
        return workspace_pb2.Workspace(id=request.workspace_id)

    async def CancelTasks(
        self, request: Any, context: Any
    ) -> workspace_service_pb2.CancelTasksResponse:
        self.seen.append((request, {}))
        return workspace_service_pb2.CancelTasksResponse()

    async def HoldOrg(self, request: Any, context: Any) -> workspace_service_pb2.HoldOrgResponse:
        self.seen.append((request, {}))
        return workspace_service_pb2.HoldOrgResponse()

    async def ReleaseOrg(self, request: Any, context: Any) -> hold_pb2.Hold:
        return hold_pb2.Hold()

    async def GetHold(self, request: Any, context: Any) -> hold_pb2.Hold:
        return hold_pb2.Hold()

    async def ListAuditEntries(
        self, request: Any, context: Any
    ) -> workspace_service_pb2.ListAuditEntriesResponse:
        await self._act(request, context)
        return workspace_service_pb2.ListAuditEntriesResponse()

    async def WatchEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._act(request, context)
        response = workspace_service_pb2.WatchEventsResponse
        yield response(
            event=event_pb2.Event(seq=request.after + 1, workspace_id=request.workspace_id)
        )
        if request.workspace_id == "breaks":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "a secret of the library")
        yield response(error=error_pb2.Error(code=error_pb2.Error.unavailable, message=AWKWARD))

    async def StreamEvents(self, request: Any, context: Any) -> AsyncIterator[HttpBody]:
        await self._act(request, context)
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


@contextmanager
def serving(stub: Stub, grace_seconds: float = 0.0) -> Iterator[str]:
    """Serves the stub on an event loop in another thread, and yields its address.

    At the end it stops like a worker: it reports NOT_SERVING, then calls have `grace_seconds`.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(START_SECONDS)

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(options=OPTIONS)
        workspace_service_pb2_grpc.add_WorkspaceServiceServicer_to_server(stub, server)
        health_pb2_grpc.add_HealthServicer_to_server(stub.health, server)
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


class RunningEdge:
    """A running Envoy, and its addresses."""

    def __init__(self, settings: Edge, verify: ssl.SSLContext | bool = True) -> None:
        self.settings = settings
        self.verify = verify
        self.rest_url = f"{'https' if settings.tls else 'http'}://127.0.0.1:{settings.rest_port}"
        self.grpc_address = f"127.0.0.1:{settings.grpc_port}"

    def admin(self, path: str) -> str:
        """The answer of the admin interface to a GET of `path`."""
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.settings.admin_socket)), trust_env=False
        ) as client:
            return client.get(f"http://admin{path}").text

    def stat(self, name: str) -> int:
        """The value of a counter or gauge of Envoy."""
        return int(self.admin(f"/stats?filter=^{name}$").rpartition(": ")[2])

    def answers(self, status: int) -> bool:
        """Whether /healthz answers with this status."""
        try:
            return (
                httpx.get(
                    f"{self.rest_url}/healthz", verify=self.verify, trust_env=False
                ).status_code
                == status
            )
        except httpx.TransportError:
            return False

    def raw(self, data: bytes) -> bytes:
        """Sends bytes, and returns what the edge sends until it closes the connection."""
        with socket.create_connection(
            ("127.0.0.1", self.settings.rest_port), timeout=START_SECONDS
        ) as connection:
            connection.sendall(data)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        return received


@contextmanager
def running_edge(
    directory: Path,
    *workers: str,
    healthz: int = 200,
    replacements: dict[str, str] | None = None,
    tls: Tls | None = None,
    verify: ssl.SSLContext | bool = True,
    logs_all: bool = True,
) -> Iterator[RunningEdge]:
    """Runs Envoy in front of the workers at these addresses, until the block ends.

    `healthz` is the status that /healthz answers when Envoy has started. `replacements` are texts
    of the rendered configuration and what to put in their place. `verify` is how httpx verifies the
    certificate of the edge. `logs_all` lifts the limit on log lines, which tests would exceed.
    """
    rest_port, grpc_port = free_ports(2)
    settings = Edge(rest_port, grpc_port, workers, directory / "admin.sock", tls=tls)
    config = directory / "envoy.yaml"
    render(settings, config)
    text = config.read_text()
    if logs_all:
        shipped = edge_file("unsolicited_calls.yaml")
        roomy = directory / shipped.name
        roomy.write_text(shipped.read_text().replace("max_tokens: 20", "max_tokens: 1000000"))
        replacements = (replacements or {}) | {str(shipped): str(roomy)}
    for shipped_text, replacement in (replacements or {}).items():
        assert shipped_text in text
        text = text.replace(shipped_text, replacement)
    config.write_text(text)
    edge = RunningEdge(settings, verify)
    # Flushes the log every 20 ms instead of every second, because tests wait for its lines.
    arguments = ["20" if argument == "1000" else argument for argument in command(config)]
    with (directory / "envoy.log").open("w") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
    try:
        eventually(lambda: edge.answers(healthz))
        yield edge
    finally:
        process.terminate()
        process.wait(START_SECONDS)
