"""The windows: each window makes calls of one kind for some time, and returns their figures."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import psycopg
from evershell.workspace.v1 import workspace_service_pb2

from bench import arming, http1, load
from bench.figures import Figures
from bench.http2 import Connection, message
from bench.load import Calls
from bench.plan import Measure, Setting
from bench.processes import cpu_seconds
from bench.servers import floor
from bench.side import Side

UNAUTHENTICATED, PERMISSION_DENIED, NOT_FOUND, OK = 16, 7, 5, 0
# How many calls a connection makes before the measured calls. `cancelled` warms up instead by
# cancelling a task of each agent.
WARM_UP_CALLS = 5
# Long enough for all warm-up calls, even on a slow machine.
WARM_UP_SECONDS = 60.0
HTTP_ACCEPTED = 202


class WrongStatusError(Exception):
    """A call of a window had a status that the window does not expect."""


def cancel_body(workspace_id: str, *, include_descendants: bool = False) -> bytes:
    request = workspace_service_pb2.CancelTaskRequest(
        workspace_id=workspace_id, include_descendants=include_descendants
    )
    return message(request.SerializeToString())


def cancel(callers: int, seconds: float, *, include_descendants: bool = False) -> Measure:
    """CancelTask, each call for its own task. The outcomes are checked in the database."""
    body = partial(cancel_body, include_descendants=include_descendants)

    def measure(setting: Setting, side: Side) -> Figures:
        return cancelled(
            side,
            setting.agent_addresses,
            [side.connect("CancelTask")],
            callers,
            seconds,
            side.worker_pids,
            body=body,
        )

    return measure


def record(callers: int, seconds: float) -> Measure:
    """The durable floor: records a cancellation, and makes an empty call to the agent."""

    def measure(setting: Setting, side: Side) -> Figures:
        return cancelled(
            side,
            setting.agent_addresses,
            [floor_connection(setting, "Record")],
            callers,
            seconds,
            [setting.floor_pid],
            tasks=setting.floor_tasks,
            body=lambda workspace_id: message(workspace_id.encode()),
        )

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
    """CancelTask for an unknown workspace. Every call must be refused with this status."""

    def measure(setting: Setting, side: Side) -> Figures:
        connection = side.connect("CancelTask", token)
        bodies = cycle([cancel_body("ws_unknown")])
        return figures_of([connection], bodies, callers, seconds, side.worker_pids, status)

    return measure


def cancel_rest(callers: int, seconds: float) -> Measure:
    """CancelTask over REST, through Envoy."""

    def measure(setting: Setting, side: Side) -> Figures:
        address, body = rest_cancel(side)
        connections = [http1.Connection(address) for _ in range(callers)]
        return cancelled(
            side,
            setting.agent_addresses,
            connections,
            callers,
            seconds,
            side.worker_pids,
            body=body,
            status=HTTP_ACCEPTED,
        )

    return measure


def rest_cancel(side: Side) -> tuple[str, Callable[[str], bytes]]:
    """The address of Envoy, and the request that cancels a workspace's task."""
    address = str(side.stack.ready["rest_url"]).removeprefix("http://")
    headers = {"authorization": f"Bearer {side.stack.tokens['full_access']}"}
    return address, lambda workspace_id: http1.request(
        address, f"/v1/workspaces/{workspace_id}/task/cancel", headers
    )


def http_calls(
    address: str, requests: Iterable[bytes], callers: int, seconds: float, status: int
) -> Calls:
    """Makes calls over HTTP/1.1, each caller on its own connection."""
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
    """Makes calls, and closes the connections.

    The figures include the processor time that these processes use for each call, in µs, and the
    number of calls.
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


def cancelled(
    side: Side,
    agent_addresses: Sequence[str],
    connections: Sequence[load.Connection],
    callers: int,
    seconds: float,
    pids: Sequence[int],
    *,
    tasks: arming.RunningTasks | None = None,
    body: Callable[[str], bytes] = cancel_body,
    status: int = OK,
) -> Figures:
    """Cancels tasks of the agents, each with its own call, and closes the connections.

    The tasks are those of the side, unless `tasks` is given.

    Before the measurement, the worker signals every agent once, so that it has a stream to each.
    Once the tasks of all agents are cancelled, all agents get new tasks. The time for this is not
    measured.
    """
    running = tasks or side.tasks
    processes = {"cpu_us": pids, "postgres_us": side.postgres_pids()}
    used: Counter[str] = Counter()
    measured: list[Calls] = []
    left = seconds
    try:
        first = running.next(agent_addresses)
        cancel_each(running.database, first, connections, callers, body, status)
        while left > 0:
            armed = running.next(agent_addresses)
            used.subtract({name: cpu_seconds(each) for name, each in processes.items()})
            bodies = map(body, armed.workspace_ids)
            measured.append(load.run(connections, bodies, callers, left))
            used.update({name: cpu_seconds(each) for name, each in processes.items()})
            expect(measured[-1], status)
            arming.check(running.database, armed, measured[-1].count)
            left -= measured[-1].seconds
    finally:
        for each in connections:
            each.close()
    calls = load.joined(measured)
    shares = {name: total * 1e6 / calls.count for name, total in used.items()}
    return {**calls.figures(), **shares, "calls": calls.count}


def cancel_each(
    database: psycopg.Connection[Any],
    tasks: arming.Armed,
    connections: Sequence[load.Connection],
    callers: int,
    body: Callable[[str], bytes] = cancel_body,
    status: int = OK,
) -> Calls:
    """Cancels each of the tasks once. The outcomes are checked in the database."""
    bodies = map(body, tasks.workspace_ids)
    calls = load.run(connections, bodies, callers, WARM_UP_SECONDS)
    expect(calls, status)
    arming.check(database, tasks, len(tasks.workspace_ids))
    return calls


def floor_connection(setting: Setting, method: str) -> Connection:
    """A connection to the floor for calls of this method."""
    return Connection(setting.floor_address, f"/{floor.SERVICE}/{method}")
