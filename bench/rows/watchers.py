"""A thousand idle watchers: how much they slow other calls, and their memory in the worker."""

from collections.abc import Iterator
from contextlib import contextmanager

from evershell.workspace.v1 import workspace_service_pb2

from bench import windows
from bench.figures import Figures, Row, at_most, figure, ratio
from bench.http2 import Connection, message
from bench.plan import Block, Measure, Setting, Window
from bench.processes import private_bytes
from bench.side import Side

_WATCHERS = 1_000
_PER_CONNECTION = 100


def blocks(quick: bool) -> list[Block]:
    """One block."""
    seconds = 1.0
    return [
        Block(
            name="watchers",
            windows=[
                Window("without", windows.cancel(1, seconds)),
                Window("with 100", _watched(windows.cancel(1, seconds), 100)),
                Window("with", _watched(windows.cancel(1, seconds))),
                Window("memory", _memory("WatchEvents")),
                Window("memory, events", _memory("StreamEvents")),
            ],
            rows=[
                Row(
                    name="CancelTask over gRPC with 1,000 idle watchers ÷ without, 1 caller, p50",
                    unit="×",
                    value=ratio("p50", "with", "without"),
                    target=at_most(1.05),
                ),
                Row(
                    name="memory of the worker for an idle watcher",
                    unit="kB",
                    value=figure("kilobytes", "memory"),
                    target=at_most(32),
                ),
                Row(
                    name="memory of the worker for an idle watcher, Server-Sent Events",
                    unit="kB",
                    value=figure("kilobytes", "memory, events"),
                    target=at_most(32),
                ),
                _p50_row("without", "0"),
                _p50_row("with 100", "100"),
                _p50_row("with", "1,000"),
            ],
            rounds=5,
            quick_rounds=0,
        )
    ]


def _p50_row(window: str, watchers: str) -> Row:
    return Row(
        name=f"CancelTask over gRPC with {watchers} idle watchers, 1 caller, p50",
        unit="ms",
        value=figure("p50", window),
    )


def _watched(measured: Measure, count: int = _WATCHERS) -> Measure:
    def measure(setting: Setting, side: Side) -> Figures:
        with _watching(setting, side, side.address, count):
            return measured(setting, side)

    return measure


def _memory(method: str) -> Measure:
    """Measures a new worker, because earlier windows have increased the memory of other workers."""

    def measure(setting: Setting, side: Side) -> Figures:
        with side.second_worker(setting.folder / "watched-worker.log") as (address, pid):
            # Not measured: the first watchers also load code and open connections to the database.
            with _watching(setting, side, address, 10, method):
                before = private_bytes(pid)
            with _watching(setting, side, address, _WATCHERS, method):
                grown = private_bytes(pid) - before
        return {"kilobytes": grown / _WATCHERS / 1_000}

    return measure


@contextmanager
def _watching(
    setting: Setting,
    side: Side,
    address: str,
    count: int = _WATCHERS,
    method: str = "WatchEvents",
) -> Iterator[None]:
    """Watches `count` workspaces inside the block. Nothing happens in these workspaces."""
    tasks = side.arm(count, setting.agent_address)
    opened: list[Connection] = []
    try:
        for first in range(0, count, _PER_CONNECTION):
            connection = side.connect(method, address=address)
            opened.append(connection)
            _subscribe(connection, tasks.workspace_ids[first : first + _PER_CONNECTION])
        yield
    finally:
        for connection in opened:
            connection.close()


def _subscribe(connection: Connection, workspace_ids: list[str]) -> None:
    """Watches each workspace with `after` 2, and waits until each stream has sent event 3."""
    waiting = []
    for workspace_id in workspace_ids:
        # Also used for StreamEvents, because its request has the same fields.
        request = workspace_service_pb2.WatchEventsRequest(workspace_id=workspace_id, after=2)
        stream = connection.call(message(request.SerializeToString()))
        waiting.append(connection.collect(stream))
    connection.flush()
    while not all(waiting):
        ended = connection.receive()
        if ended:
            raise ConnectionError(f"a watcher was refused: {ended}")
