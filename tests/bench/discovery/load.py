"""A steady load: cancellations over REST and gRPC, at a bounded rate."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import httpx
from evershell.workspace.v1 import workspace_service_pb2, workspace_service_pb2_grpc

CALLERS = 4
PERIOD_SECONDS = 0.08
# As many calls a second over REST as over gRPC.
CALLS_PER_SECOND = 2 * CALLERS / PERIOD_SECONDS
_CALL_SECONDS = 20.0
_COUNTING = threading.Lock()
# The service has answered. An agent that has ended has left a `failed` workspace.
_ANSWERS = frozenset({grpc.StatusCode.OK, grpc.StatusCode.FAILED_PRECONDITION})


@dataclass(slots=True)
class Calls:
    """The calls over one protocol."""

    count: int = 0
    slowest_seconds: float = 0.0
    # When a call began that was lost, in Unix time, and how it ended.
    lost: list[tuple[float, str]] = field(default_factory=list)


@contextmanager
def calling(
    rest_url: str, grpc_address: str, token: str, workspace_id: str
) -> Iterator[dict[str, Calls]]:
    """Cancels what runs in a workspace, over and over, inside the block. Counts the calls."""
    stopping = threading.Event()
    headers = {"authorization": f"Bearer {token}"}
    calls = {"REST": Calls(), "gRPC": Calls()}

    def over_rest() -> None:
        path = f"/v1/workspaces/{workspace_id}/task/cancel"
        with httpx.Client(
            base_url=rest_url, headers=headers, timeout=_CALL_SECONDS, trust_env=False
        ) as client:
            _repeat(lambda: _rest_error(client, path), calls["REST"], stopping)

    def over_grpc() -> None:
        request = workspace_service_pb2.CancelTaskRequest(workspace_id=workspace_id)
        # Without it, the channels of all callers share a connection.
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
        with grpc.insecure_channel(grpc_address, options) as channel:
            stub = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
            metadata = tuple(headers.items())

            def call() -> str:
                try:
                    stub.CancelTask(request, metadata=metadata, timeout=_CALL_SECONDS)
                except grpc.RpcError as error:
                    return "" if error.code() in _ANSWERS else error.code().name
                return ""

            _repeat(call, calls["gRPC"], stopping)

    with ThreadPoolExecutor(2 * CALLERS) as threads:
        running = [threads.submit(each) for each in (over_rest, over_grpc) * CALLERS]
        try:
            yield calls
        finally:
            stopping.set()
            for each in running:
                each.result()


def _rest_error(client: httpx.Client, path: str) -> str:
    """Makes a call. Returns what went wrong; empty if the service has answered."""
    try:
        status = client.post(path).status_code
    except httpx.TransportError as error:
        return repr(error)
    return "" if status in (202, 409) else str(status)


def _repeat(call: Callable[[], str], calls: Calls, stopping: threading.Event) -> None:
    while not stopping.is_set():
        began, clock = time.time(), time.monotonic()
        error = call()
        seconds = time.monotonic() - clock
        with _COUNTING:
            calls.count += 1
            calls.slowest_seconds = max(calls.slowest_seconds, seconds)
            if error:
                calls.lost.append((began, error))
        stopping.wait(max(0.0, PERIOD_SECONDS - seconds))
