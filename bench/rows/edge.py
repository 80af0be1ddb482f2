"""What Envoy adds to a CancelTask over REST, and what a bare Envoy adds to an empty call."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import islice, repeat

from bench import arming, http1, load, processes, windows
from bench.figures import Figures, Row, at_most, figure, percentile
from bench.http2 import message
from bench.plan import Block, Measure, Setting, Window
from bench.servers import bare_edge
from bench.side import Side

# A window alternates between its two callers after this many calls, because the speed of the
# machine changes within a second. The latencies of each caller's first turn do not count.
_CALLS = 50
_OK = 200
# A connection that stays open, the bodies of its calls, and the status that they must have.
_Caller = tuple[load.Connection, Iterable[bytes], int]


def blocks(quick: bool) -> list[Block]:
    """One block."""
    turns = 6 if quick else 21
    return [
        Block(
            name="edge",
            windows=[
                Window("cancel", _cancel(turns)),
                Window("bare", _BareEdge().empty(turns), is_shared=True),
            ],
            rows=[
                Row(
                    name="REST through Envoy ÷ gRPC at the worker, 1 caller, p50",
                    unit="×",
                    value=lambda figures: figures["cancel"]["rest"] / figures["cancel"]["grpc"],
                    target=at_most(1.25),
                ),
                Row(
                    name="CPU of Envoy for a CancelTask over REST, 1 caller",
                    unit="µs",
                    value=figure("envoy_us", "cancel"),
                ),
                Row(
                    name="CancelTask over REST, 1 caller, p50",
                    unit="ms",
                    value=figure("rest", "cancel"),
                ),
                Row(
                    name="REST ÷ gRPC at the worker if Envoy were bare, 1 caller, p50",
                    unit="×",
                    value=lambda figures: (
                        1
                        + (figures["bare"]["rest"] - figures["bare"]["grpc"])
                        / figures["cancel"]["grpc"]
                    ),
                ),
            ],
            rounds=10,
            quick_rounds=3,
        )
    ]


def _cancel(turns: int) -> Measure:
    """CancelTask over REST and over gRPC, in turns. The outcomes are checked in the database."""

    def measure(setting: Setting, side: Side) -> Figures:
        address, request = windows.rest_cancel(side)
        workspace_ids = _workspace_ids(setting, side)
        envoys = processes.descendants(side.stack.pid, "envoy")
        before = processes.cpu_seconds(envoys)
        figures = _in_turns(
            {
                "rest": (
                    http1.Connection(address),
                    map(request, workspace_ids),
                    windows.HTTP_ACCEPTED,
                ),
                "grpc": (
                    side.connect("CancelTask"),
                    map(windows.cancel_body, workspace_ids),
                    windows.OK,
                ),
            },
            turns,
        )
        used = processes.cpu_seconds(envoys) - before
        return {**figures, "envoy_us": used * 1e6 / (turns * _CALLS)}

    return measure


def _workspace_ids(setting: Setting, side: Side) -> Iterator[str]:
    """Yields the ids of workspaces with running tasks, endlessly.

    Before the first id, the worker opens a stream to each agent.
    """
    tasks = side.tasks.next(setting.agent_addresses)
    with closing(side.connect("CancelTask")) as connection:
        windows.cancel_each(side.database, tasks, [connection], 1)
    while True:
        tasks = side.tasks.next(setting.agent_addresses)
        yield from tasks.workspace_ids
        arming.check(side.database, tasks, len(tasks.workspace_ids))


class _BareEdge:
    """The bare Envoy in front of the floor. The first window that needs it starts it."""

    def __init__(self) -> None:
        self._address = ""

    def empty(self, turns: int) -> Measure:
        """The floor's empty call, through the bare Envoy and without it."""

        def measure(setting: Setting, side: Side) -> Figures:
            if not self._address:
                running = bare_edge.running(setting.floor_address, setting.folder)
                self._address = setting.resources.enter_context(running)
            request = http1.request(self._address, bare_edge.PATH, {})
            return _in_turns(
                {
                    "rest": (http1.Connection(self._address), repeat(request), _OK),
                    "grpc": (
                        windows.floor_connection(setting, "Empty"),
                        repeat(message(b"")),
                        windows.OK,
                    ),
                },
                turns,
            )

        return measure


def _in_turns(callers: Mapping[str, _Caller], turns: int) -> Figures:
    """Makes calls for each caller in turn, and closes the connections. Returns each p50 in ms."""
    latencies = defaultdict[str, list[int]](list)
    remaining = {name: iter(bodies) for name, (_, bodies, _) in callers.items()}
    try:
        for turn in range(turns):
            for name, (connection, _, status) in callers.items():
                bodies = islice(remaining[name], _CALLS)
                calls = load.run([connection], bodies, 1, windows.WARM_UP_SECONDS)
                windows.expect(calls, status)
                if turn > 0:
                    latencies[name] += calls.nanoseconds
    finally:
        for connection, _, _ in callers.values():
            connection.close()
    return {name: percentile(each, 50) / 1e6 for name, each in latencies.items()}
