"""The windows: each makes calls of one kind for a while, and returns their figures."""

from collections.abc import Iterable, Sequence
from itertools import cycle, islice

from evershell.workspace.v1 import workspace_service_pb2

from tests.bench import arming, http1, load
from tests.bench.figures import Figures
from tests.bench.http2 import Connection, message
from tests.bench.load import Calls
from tests.bench.plan import Measure, Setting
from tests.bench.processes import cpu_seconds
from tests.bench.servers import floor
from tests.bench.side import Side

UNAUTHENTICATED, PERMISSION_DENIED, NOT_FOUND, OK = 16, 7, 5, 0
# Made before each window, and not measured.
WARM_UP_CALLS = 5
# All of them are made, even on a slow machine.
WARM_UP_SECONDS = 60.0
_HTTP_ACCEPTED = 202


class WrongStatusError(Exception):
    """A call of a window had another status than the window expects."""


def cancel(
    callers: int, seconds: float, armed: int, *, include_descendants: bool = False
) -> Measure:
    """CancelTask, each call for a task of its own. The outcomes are counted in the database."""

    def measure(setting: Setting, side: Side) -> Figures:
        tasks = side.arm(armed, setting.agent_address)
        bodies = [
            cancel_body(workspace_id, include_descendants=include_descendants)
            for workspace_id in tasks.workspace_ids
        ]
        connection = side.connect("CancelTask")
        return recorded(side, tasks, connection, bodies, callers, seconds, side.worker_pids)

    return measure


def record(callers: int, seconds: float, armed: int) -> Measure:
    """The durable floor: the same change and an empty call to the agent, bare."""

    def measure(setting: Setting, side: Side) -> Figures:
        tasks = side.arm(armed, setting.agent_address)
        bodies = [message(workspace_id.encode()) for workspace_id in tasks.workspace_ids]
        connection = floor_connection(setting, "Record")
        return recorded(side, tasks, connection, bodies, callers, seconds, [setting.floor_pid])

    return measure


def floor_method(method: str, callers: int, seconds: float) -> Measure:
    """A method of the floor that takes a row's id."""

    def measure(setting: Setting, side: Side) -> Figures:
        bodies = [message(row_id.encode()) for row_id in setting.row_ids]
        connection = floor_connection(setting, method)
        return figures_of([connection], cycle(bodies), callers, seconds, [setting.floor_pid])

    return measure


def get_task(callers: int, seconds: float) -> Measure:
    """GetTask of running tasks."""

    def measure(setting: Setting, side: Side) -> Figures:
        tasks = side.arm(100, setting.agent_address)
        bodies = [
            message(
                workspace_service_pb2.GetTaskRequest(
                    workspace_id=workspace_id, task_id=tasks.task_id(workspace_id)
                ).SerializeToString()
            )
            for workspace_id in tasks.workspace_ids
        ]
        connection = side.connect("GetTask")
        return figures_of([connection], cycle(bodies), callers, seconds, side.worker_pids)

    return measure


def refused(token: str, status: int, callers: int, seconds: float) -> Measure:
    """CancelTask of a workspace that does not exist, refused with this status."""

    def measure(setting: Setting, side: Side) -> Figures:
        connection = side.connect("CancelTask", token)
        bodies = cycle([cancel_body("ws_unknown")])
        return figures_of([connection], bodies, callers, seconds, side.worker_pids, status)

    return measure


def cancel_rest(callers: int, seconds: float, armed: int) -> Measure:
    """CancelTask over REST, through Envoy."""

    def measure(setting: Setting, side: Side) -> Figures:
        tasks = side.arm(armed, setting.agent_address)
        address = str(side.stack.ready["rest_url"]).removeprefix("http://")
        headers = {"authorization": f"Bearer {side.stack.tokens['full_access']}"}
        requests = [
            http1.request(address, f"/v1/workspaces/{workspace_id}/task/cancel", headers)
            for workspace_id in tasks.workspace_ids
        ]
        calls = http_calls(address, requests, callers, seconds, _HTTP_ACCEPTED)
        arming.check(side.database, tasks, WARM_UP_CALLS + calls.count)
        return calls.figures()

    return measure


def http_calls(
    address: str, requests: Iterable[bytes], callers: int, seconds: float, status: int
) -> Calls:
    """Makes calls over HTTP/1.1, each caller on a connection of its own."""
    remaining = iter(requests)
    connections = [http1.Connection(address) for _ in range(callers)]
    try:
        warm_up = islice(remaining, WARM_UP_CALLS)
        expect(load.run(connections[:1], warm_up, 1, WARM_UP_SECONDS), status)
        calls = load.run(connections, remaining, callers, seconds)
    finally:
        for connection in connections:
            connection.close()
    expect(calls, status)
    return calls


def figures_of(
    connections: Sequence[Connection],
    bodies: Iterable[bytes],
    callers: int,
    seconds: float,
    pids: Sequence[int],
    status: int = OK,
) -> dict[str, float]:
    """Makes the calls, and closes the connections.

    Adds the processor time that these processes use, in µs a call, and the number of calls.
    """
    remaining = iter(bodies)
    try:
        for each in connections:
            warm_up = islice(remaining, WARM_UP_CALLS)
            expect(load.run([each], warm_up, 1, WARM_UP_SECONDS), status)
        cpu_began = cpu_seconds(pids)
        calls = load.run(connections, remaining, callers, seconds)
        used = cpu_seconds(pids) - cpu_began
    finally:
        for each in connections:
            each.close()
    expect(calls, status)
    return {**calls.figures(), "cpu_us": used * 1e6 / calls.count, "calls": calls.count}


def expect(calls: Calls, status: int) -> None:
    """Raises WrongStatusError unless all calls had this status."""
    if set(calls.statuses) != {status}:
        raise WrongStatusError(f"expected {status}, got {dict(calls.statuses)}")


def recorded(
    side: Side,
    tasks: arming.Armed,
    connection: Connection,
    bodies: Sequence[bytes],
    callers: int,
    seconds: float,
    pids: Sequence[int],
) -> Figures:
    """Makes calls that record cancellations, and compares their number with the database."""
    postgres = side.postgres_pids()
    cpu_began = cpu_seconds(postgres)
    figures = figures_of([connection], bodies, callers, seconds, pids)
    used = cpu_seconds(postgres) - cpu_began
    arming.check(side.database, tasks, int(figures["calls"]) + WARM_UP_CALLS)
    return {**figures, "postgres_us": used * 1e6 / figures["calls"]}


def cancel_body(workspace_id: str, *, include_descendants: bool = False) -> bytes:
    request = workspace_service_pb2.CancelTaskRequest(
        workspace_id=workspace_id, include_descendants=include_descendants
    )
    return message(request.SerializeToString())


def floor_connection(setting: Setting, method: str) -> Connection:
    """A connection to the floor for calls of this method."""
    return Connection(setting.floor_address, f"/{floor.SERVICE}/{method}")
