"""WatchEvents: the replay of a long log, compared with a bare stream of equally large messages."""

import time

from evershell.workspace.v1 import workspace_service_pb2

from bench import arming
from bench.figures import Figures, Row, at_least, at_most, figure, ratio
from bench.http2 import Connection, message
from bench.plan import Block, Measure, Setting, Window
from bench.processes import cpu_seconds
from bench.servers import floor
from bench.side import Side

_PREFIX_BYTES = 5
# The size of each message when the log is replayed.
MESSAGE_BYTES = 237


def blocks(quick: bool) -> list[Block]:
    """The block that compares the replay with the bare stream."""
    events = 10_000 if quick else 20_000
    return [
        Block(
            name="replay",
            windows=[
                Window("bare stream", _bare(events), is_shared=True),
                Window("replay", _replay(events)),
            ],
            rows=[
                Row(
                    name="WatchEvents over gRPC, replay",
                    unit="events/s",
                    value=figure("per_second", "replay"),
                    target=at_least(15_000),
                ),
                Row(
                    name="WatchEvents over gRPC, replay, CPU of the worker for an event",
                    unit="µs",
                    value=figure("cpu_us", "replay"),
                    target=at_most(50),
                ),
                Row(
                    name="WatchEvents over gRPC, replay ÷ bare gRPC stream, events/s",
                    unit="×",
                    value=ratio("per_second", "replay", "bare stream"),
                    less_is_better=False,
                ),
                Row(
                    name="bare gRPC stream",
                    unit="events/s",
                    value=figure("per_second", "bare stream"),
                    less_is_better=False,
                ),
                Row(
                    name="bare gRPC stream, CPU of the server for an event",
                    unit="µs",
                    value=figure("cpu_us", "bare stream"),
                ),
            ],
            rounds=5,
            quick_rounds=2,
        )
    ]


def _replay(events: int) -> Measure:
    logs: dict[Side, str] = {}

    def measure(setting: Setting, side: Side) -> Figures:
        if side not in logs:
            logs[side] = arming.create_log(side.database, events, setting.agent_address)
        request = workspace_service_pb2.WatchEventsRequest(workspace_id=logs[side])
        connection = side.connect("WatchEvents")
        return read_stream(connection, request.SerializeToString(), events, side.worker_pids)

    return measure


def _bare(events: int) -> Measure:
    def measure(setting: Setting, side: Side) -> Figures:
        connection = Connection(setting.floor_address, f"/{floor.SERVICE}/Stream")
        request = f"{events} {MESSAGE_BYTES}".encode()
        return read_stream(connection, request, events, [setting.floor_pid])

    return measure


def read_stream(connection: Connection, request: bytes, events: int, pids: list[int]) -> Figures:
    """Reads `events` messages of a stream, and closes the connection."""
    cpu_began, began = cpu_seconds(pids), time.perf_counter()
    stream = connection.call(message(request))
    collected = connection.collect(stream)
    connection.flush()
    count = position = 0
    while count < events:
        ended = connection.receive()
        while len(collected) - position >= _PREFIX_BYTES:
            size = int.from_bytes(collected[position + 1 : position + _PREFIX_BYTES], "big")
            if len(collected) - position < _PREFIX_BYTES + size:
                break
            position += _PREFIX_BYTES + size
            count += 1
        if ended and count < events:
            raise ConnectionError(f"the stream has ended after {count} messages: {ended}")
    taken, used = time.perf_counter() - began, cpu_seconds(pids) - cpu_began
    connection.cancel(stream)
    connection.flush()
    connection.close()
    return {
        "per_second": events / taken,
        "cpu_us": used * 1e6 / events,
        "bytes": position / events - _PREFIX_BYTES,
    }
