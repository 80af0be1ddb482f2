"""The access log has every answer of a worker, and calls without a credential cannot fill it."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from a2a.types import a2a_pb2, a2a_pb2_grpc
from evershell.workspace.v1 import workspace_service_pb2, workspace_service_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.edge.fixtures import short_directory
from tests.support.edge.running_edge import RunningEdge, running_edge
from tests.support.edge.stub import Stub
from tests.support.waiting import eventually

# The refill rate of the token bucket in envoy/unsolicited_calls.yaml.
_PER_SECOND = 20
# The maximum length of a line, with every field at its maximum length.
_LINE_BYTES = 2_000
CANCEL = "/v1/workspaces/{}/task/cancel"


@pytest.fixture(scope="module")
def quiet_edge(
    _stub_and_address: tuple[Stub, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEdge]:
    """An edge that no other test module calls, with the shipped limit on log lines."""
    with running_edge(
        short_directory(tmp_path_factory), _stub_and_address[1], logs_all=False
    ) as running:
        # Waits for the log lines of calls that the edge gets as it starts. No test must count them.
        started = Log(running, from_start=True)
        eventually(
            lambda: (
                len(started.lines()) + started.denied()
                == running.stat("http.rest.downstream_rq_total")
            )
        )
        yield running


class Log:
    """The lines that an edge logs after this object was created, or after the edge started."""

    def __init__(self, edge: RunningEdge, *, from_start: bool = False) -> None:
        self._edge = edge
        self._path: Path = edge.settings.admin_socket.parent / "envoy.log"
        self._denied = self.denied()
        self._begin = 0 if from_start else self._path.stat().st_size
        self._began = time.monotonic()

    def denied(self) -> int:
        return self._edge.stat("access_log.process_ratelimit.denied")

    def text(self) -> str:
        with self._path.open() as log:
            log.seek(self._begin)
            return log.read()

    def lines(self) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for line in self.text().splitlines(keepends=True)
            if line.endswith("\n")
        ]

    def assert_all(self, calls: int) -> None:
        """Every call has a line in the log, or was counted as omitted."""
        eventually(lambda: len(self.lines()) + self.denied() - self._denied >= calls)
        assert len(self.lines()) + self.denied() - self._denied == calls

    def assert_bounded(self) -> None:
        most = _PER_SECOND * (2 + time.monotonic() - self._began)
        assert len(self.lines()) <= most
        assert len(self.text()) <= most * _LINE_BYTES


@pytest.fixture
def log(quiet_edge: RunningEdge) -> Log:
    return Log(quiet_edge)


@pytest.fixture
def client(quiet_edge: RunningEdge) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=quiet_edge.rest_url, trust_env=False, timeout=15) as client:
        yield client


def long_paths(edge: RunningEdge, client: httpx.Client) -> int:
    for _ in range(100):
        client.get("/" + "x" * 50_000, headers={"user-agent": "u" * 5_000})
    return 100


def bad_keys(edge: RunningEdge, client: httpx.Client) -> int:
    for _ in range(200):
        assert client.post(CANCEL.format("error_unauthenticated")).status_code == 401
    return 200


def web_call(client: httpx.Client, workspace_id: str) -> str | None:
    """Cancels by gRPC-Web. Returns the gRPC status of an error."""
    request = workspace_service_pb2.CancelTaskRequest(workspace_id=workspace_id)
    message = request.SerializeToString()
    answer = client.post(
        "/evershell.workspace.v1.WorkspaceService/CancelTask",
        content=b"\0" + len(message).to_bytes(4, "big") + message,
        headers={"content-type": "application/grpc-web+proto"},
    )
    assert answer.status_code == 200
    status: str | None = answer.headers.get("grpc-status")
    return status


def bad_binary_headers(edge: RunningEdge, client: httpx.Client) -> int:
    for _ in range(200):
        answer = client.post(CANCEL.format("ws_1"), headers={"x-bin": "!!!"})
        assert answer.status_code == 400
    return 200


def health(edge: RunningEdge, client: httpx.Client) -> int:
    with grpc.insecure_channel(edge.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for _ in range(300):
            stub.Check(health_pb2.HealthCheckRequest())
    return 300


def preflights(edge: RunningEdge, client: httpx.Client) -> int:
    """Makes CORS preflights for a gRPC method, which the edge itself answers."""
    headers = {"origin": "https://app.example", "access-control-request-method": "POST"}
    path = "/evershell.workspace.v1.WorkspaceService/CancelTask"
    for _ in range(200):
        assert client.options(path, headers=headers).status_code == 200
    return 200


def public_cards(edge: RunningEdge, client: httpx.Client) -> int:
    for _ in range(200):
        assert client.get("/a2a/ws_1/.well-known/agent-card.json").status_code == 200
    return 200


@pytest.mark.parametrize(
    "flood", [long_paths, bad_keys, bad_binary_headers, health, preflights, public_cards]
)
def test_calls_without_a_credential_do_not_fill_the_log(
    quiet_edge: RunningEdge,
    log: Log,
    client: httpx.Client,
    flood: Callable[[RunningEdge, httpx.Client], int],
) -> None:
    log.assert_all(flood(quiet_edge, client))
    log.assert_bounded()


def test_every_answer_of_a_worker_is_logged(
    quiet_edge: RunningEdge, log: Log, client: httpx.Client
) -> None:
    for _ in range(60):
        client.post(CANCEL.format("ws_1"))
        client.post(CANCEL.format("error_unavailable"))
        assert web_call(client, "ws_1") is None
        assert web_call(client, "error_unavailable") == "14"
    with grpc.insecure_channel(quiet_edge.grpc_address) as channel:
        stub = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
        for _ in range(60):
            stub.CancelTask(workspace_service_pb2.CancelTaskRequest(workspace_id="ws_1"))
            for failing in ("error_unavailable", "bare_2"):
                with suppress(grpc.RpcError):
                    stub.CancelTask(workspace_service_pb2.CancelTaskRequest(workspace_id=failing))
    eventually(lambda: len(log.lines()) >= 420)
    assert Counter(
        (line["path"].startswith("/v1"), line["status"], line["grpc_status"])
        for line in log.lines()
    ) == {
        (True, 202, "Unknown"): 60,
        (True, 503, "Unavailable"): 60,
        (False, 200, "OK"): 60,
        (False, 200, "Unavailable"): 120,
        # 60 of these calls succeeded over gRPC-Web; the gRPC status of a success is in the body.
        (False, 200, "Unknown"): 120,
    }


def test_every_answer_of_a_worker_to_a2a_is_logged(
    quiet_edge: RunningEdge, log: Log, client: httpx.Client
) -> None:
    with grpc.insecure_channel(quiet_edge.grpc_address) as channel:
        stub = a2a_pb2_grpc.A2AServiceStub(channel)
        for _ in range(60):
            client.get("/a2a/ws_1/tasks/task_1")
            client.get("/a2a/error_unavailable/tasks/task_1")
            stub.GetTask(a2a_pb2.GetTaskRequest(tenant="ws_1", id="task_1"))
    eventually(lambda: len(log.lines()) >= 180)
    assert Counter(line["status"] for line in log.lines()) == {200: 120, 503: 60}


def test_fields_that_a_caller_chooses_are_truncated(
    quiet_edge: RunningEdge, log: Log, client: httpx.Client
) -> None:
    client.get("/" + "x" * 50_000, headers={"user-agent": "u" * 5_000})
    client.request("M" * 3_000, "/x")
    client.post(CANCEL.format("ws_1"), json={"reason": {"r" * 30_000: "r" * 30_000}})
    quiet_edge.raw(
        b"GET / HTTP/1.1\r\nhost: x\r\nx-request-id: " + b"r" * 3_000 + b"\r\nbad\r\n\r\n"
    )
    eventually(lambda: len(log.lines()) == 4)
    assert max(len(json.dumps(line)) for line in log.lines()) < _LINE_BYTES
    assert (len(log.lines()[0]["path"]), len(log.lines()[0]["user_agent"])) == (300, 200)
