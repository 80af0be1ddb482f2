"""Calls that a worker does not serve: it is behind, or their deadline has passed."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest
from evershell.agent.v1 import runtime_service_pb2 as agent_messages
from evershell.workspace.v1 import workspace_service_pb2 as messages
from google.protobuf.message import Message
from structlog.testing import capture_logs

from bench import http2
from evershell.api.queueing_delay import DelayProbe, Priority, QueueingDelay
from evershell.auth.authenticator import Authenticator
from evershell.auth.pod_tokens import PodTokens
from evershell.core import deadline
from evershell.store import background
from evershell.telemetry.metrics import Metrics
from tests.support.waiting import eventually_async, settle
from tests.support.world import World
from tests.wire.api.running import INTERNAL, PUBLIC, Failed, Running, agent_bearer, bearer, running

CANCEL = messages.CancelTaskRequest(workspace_id="ws_1")
NAMED = messages.CancelTaskRequest(workspace_id="ws_1", task_id="task_1")
GET = messages.GetTaskRequest(workspace_id="ws_1", task_id="task_1")
SUBMIT = messages.SubmitTaskRequest(workspace_id="ws_1", description="x")
LIST = messages.ListTasksRequest(workspace_id="ws_1")
WATCH = messages.WatchEventsRequest(workspace_id="ws_1")
DELAY_TASK = "queueing-delay"
# The classes of calls, in the order in which a worker that is behind refuses them.
CLASSES: list[list[tuple[str, Message]]] = [
    [(PUBLIC + "ListTasks", LIST), (PUBLIC + "WatchEvents", WATCH)],
    [(PUBLIC + "SubmitTask", SUBMIT)],
    [(INTERNAL + "CommitEvents", agent_messages.CommitEventsRequest())],
    [(PUBLIC + "CancelTask", NAMED), (PUBLIC + "CancelTask", CANCEL), (PUBLIC + "GetTask", GET)],
    # Never refused.
    [
        (INTERNAL + "Heartbeat", agent_messages.HeartbeatRequest()),
        (INTERNAL + "Register", agent_messages.RegisterRequest(address="127.0.0.1:1", pid=1)),
    ],
]
REFUSABLE = [each for each in Priority if each is not Priority.LEASES]


class Clock:
    """A monotonic clock that the test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def delay(clock: Clock) -> QueueingDelay:
    return QueueingDelay(clock)


def measure(delay: QueueingDelay, clock: Clock, seconds: float) -> None:
    """Makes one measurement, which finds a wait of `seconds`."""
    delay.begin()
    clock.seconds += seconds
    delay.end()


def refused(delay: QueueingDelay) -> list[Priority]:
    return [priority for priority in Priority if delay.refuses(priority)]


def fall_behind(delay: QueueingDelay, clock: Clock, seconds: float) -> None:
    """Makes several measurements of the same wait, so that the worker takes it into account."""
    for _ in range(5):
        measure(delay, clock, seconds)
        clock.seconds += 0.1


def test_the_longer_the_wait_the_more_important_are_the_calls_that_are_refused(
    delay: QueueingDelay, clock: Clock
) -> None:
    lists, submissions, agents, first, _ = reversed(Priority)
    for seconds, expected in (
        (0.9, []),
        (1.1, [lists]),
        (1.6, [submissions, lists]),
        (2.1, [agents, submissions, lists]),
        (2.6, [first, agents, submissions, lists]),
    ):
        fall_behind(delay, clock, seconds)
        assert refused(delay) == expected


def test_a_burst_is_served(delay: QueueingDelay, clock: Clock) -> None:
    measure(delay, clock, 0.01)
    delay.begin()
    clock.seconds += 0.9
    assert refused(delay) == []
    clock.seconds += 3600
    assert refused(delay) == REFUSABLE
    delay.end()
    measure(delay, clock, 0.01)
    assert refused(delay) == []


def test_the_first_calls_after_a_pause_are_served(delay: QueueingDelay, clock: Clock) -> None:
    measure(delay, clock, 0.01)
    clock.seconds += 3600
    delay.begin()
    clock.seconds += 0.4
    assert refused(delay) == []


def test_a_measurement_in_progress_counts(delay: QueueingDelay, clock: Clock) -> None:
    """A worker that does not begin any call notices that it is behind."""
    delay.begin()
    clock.seconds += 2.1
    assert refused(delay) == [Priority.AGENTS, Priority.OTHERS, Priority.LAST]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def server(world: World, delay: QueueingDelay, metrics: Metrics) -> AsyncIterator[Running]:
    async with running(world, delay=delay, metrics=metrics) as started:
        yield started


def ended_calls(metrics: Metrics) -> Counter[str]:
    """The number of cancellations and heartbeats that have ended, by outcome."""
    return Counter(
        {
            sample.labels["outcome"]: int(sample.value)
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name == "evershell_rpc_seconds_count"
            and sample.labels["rpc"] in ("CancelTask", "Heartbeat")
        }
    )


async def call(server: Running, path: str, request: Message, **metadata: str) -> Failed | bytes:
    credential = agent_bearer("ws_1") if path.startswith(INTERNAL) else bearer(**metadata)
    if "Watch" not in path:
        return await server.raw(path, credential, request.SerializeToString())
    return await server.fails(server.stub.WatchEvents(request, metadata=credential))  # type: ignore[arg-type]


def is_refused(seen: Failed | bytes) -> bool:
    return isinstance(seen, Failed) and seen.slug == "unavailable"


async def test_cancellations_are_the_last_to_be_refused_and_heartbeats_never_are(
    server: Running, delay: QueueingDelay, clock: Clock
) -> None:
    for served, seconds in enumerate((1.1, 1.6, 2.1, 2.6), 1):
        fall_behind(delay, clock, seconds)
        for place, calls in enumerate(CLASSES):
            for path, request in calls:
                assert is_refused(await call(server, path, request)) is (place < served), path


async def test_a_refusal_has_a_time_unless_a_repeat_could_cancel_the_next_task(
    server: Running, delay: QueueingDelay, clock: Clock
) -> None:
    fall_behind(delay, clock, 3)
    rest = {"x_evershell_edge": "rest"}
    for path, request, metadata, is_timed in (
        (PUBLIC + "CancelTask", CANCEL, {}, False),
        (PUBLIC + "CancelTask", CANCEL, rest, False),
        (PUBLIC + "CancelTask", NAMED, {}, True),
        (PUBLIC + "CancelTask", CANCEL, rest | {"x_evershell_task": "task_1"}, True),
        (PUBLIC + "CancelTask", CANCEL, {"x_evershell_task": "task_1"}, True),
        (PUBLIC + "SubmitTask", SUBMIT, {}, True),
        (PUBLIC + "SubmitTask", SUBMIT, rest, True),
        (PUBLIC + "SubmitTask", SUBMIT, rest | {"idempotency_key": "key"}, True),
        (INTERNAL + "CommitEvents", agent_messages.CommitEventsRequest(), {}, True),
    ):
        seen = await call(server, path, request, **metadata)
        assert isinstance(seen, Failed) and seen.slug == "unavailable"
        assert seen.code is grpc.StatusCode.UNAVAILABLE
        assert ("RetryInfo" in seen.details, "retry-after" in seen.trailers) == (is_timed,) * 2
        is_final = seen.trailers.get("x-should-retry") == "false"
        can_repeat = metadata.keys() & {"x_evershell_task", "idempotency_key"}
        assert is_final is ("x_evershell_edge" in metadata and not can_repeat)
        advice = "only with a task id" if not is_timed else "repeat it after 1 s"
        assert advice in seen.message and "no effect" in seen.message
        if path.startswith(INTERNAL):
            assert seen.trailers["x-evershell-slug"] == "unavailable"


async def test_a_refused_call_has_no_effect_and_no_entry(
    server: Running, world: World, delay: QueueingDelay, clock: Clock
) -> None:
    busy, task = await world.add_busy()
    fall_behind(delay, clock, 3)
    request = messages.CancelTaskRequest(workspace_id=busy.id)
    for token in ("sk_test", "sk_unknown"):
        seen = await server.raw(PUBLIC + "CancelTask", bearer(token), request.SerializeToString())
        assert is_refused(seen)
    after = await world.store.get_task(busy.id, task.id)
    assert after is not None and after.cancel is None
    assert not server.audit.entries and not world.agents.cancelled
    # A worker that is no longer behind serves calls.
    measure(delay, clock, 0.01)
    seen = await server.raw(PUBLIC + "CancelTask", bearer(), request.SerializeToString())
    assert isinstance(seen, bytes)


async def test_the_time_that_a_call_has_waited_is_part_of_its_budget(
    server: Running,
    world: World,
    delay: QueueingDelay,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[float] = []

    async def signal(*_: object) -> bool:
        left.append(deadline.left_of_call(3600.0, 0.0))
        return True

    monkeypatch.setattr(world.agents, "cancel_task", signal)
    for _ in range(2):
        busy, _ = await world.add_busy()
        request = messages.CancelTaskRequest(workspace_id=busy.id)
        if not left:
            fall_behind(delay, clock, 2.4)
        else:
            measure(delay, clock, 0.01)
        await server.stub.CancelTask(request, metadata=bearer())
    assert left[0] <= 3600.0 - 2.4 < left[1]


async def test_health_is_never_refused(server: Running, delay: QueueingDelay, clock: Clock) -> None:
    fall_behind(delay, clock, 5)
    assert isinstance(await server.raw("/grpc.health.v1.Health/Check"), bytes)


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("path", [PUBLIC + "CancelTask", INTERNAL + "Heartbeat"])
async def test_a_call_whose_caller_has_gone_does_no_work(
    server: Running,
    world: World,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    is_reset: bool,
) -> None:
    """The deadline passes, or the caller resets the call, while the call waits for the worker."""
    busy, task = await world.add_busy()
    asked: list[None] = []
    monkeypatch.setattr(world.store, "begin", lambda: asked.append(None))
    checked: list[None] = []
    if not is_reset:
        for type_, name in ((Authenticator, "authenticate"), (PodTokens, "identify")):
            monkeypatch.setattr(type_, name, lambda *_: checked.append(None))
    if path.startswith(PUBLIC):
        request: Message = messages.CancelTaskRequest(workspace_id=busy.id)
        metadata = bearer()
    else:
        request = agent_messages.HeartbeatRequest(task_id=task.id)
        metadata = agent_bearer(busy.id)
    metadata = (*metadata, ("grpc-timeout", "20S" if is_reset else "50m"))
    connection = http2.Connection(f"127.0.0.1:{server.port}", path, metadata)
    try:
        streams = [connection.call(http2.message(request.SerializeToString())) for _ in range(20)]
        connection.flush()
        # The server shares this event loop, so it begins no call meanwhile.
        time.sleep(0.1)  # noqa: ASYNC251
        if is_reset:
            for stream in streams:
                connection.cancel(stream)
            connection.flush()
            time.sleep(0.05)  # noqa: ASYNC251
        # The server begins the calls in turn, and this one last.
        assert isinstance(await server.raw("/grpc.health.v1.Health/Check"), bytes)
        await eventually_async(lambda: ended_calls(metrics).total() == 20)
    finally:
        connection.close()
    assert not asked
    if not is_reset:
        assert not checked and not server.audit.entries


async def test_a_call_that_waits_for_very_long_is_reset(server: Running) -> None:
    """Callers behind the edge get `unavailable`, as whenever a worker resets a call."""
    path = PUBLIC + "ListWorkspaces"
    connection = http2.Connection(f"127.0.0.1:{server.port}", path, bearer())
    try:
        stream = connection.call(http2.message(b""))
        connection.flush()
        # The server shares this event loop, so it begins no call meanwhile. It has already asked
        # the gRPC library for the first call, but not for the second one.
        later = connection.call(http2.message(b""))
        connection.flush()
        time.sleep(3.2)  # noqa: ASYNC251
        ended: dict[int, int] = {}
        while len(ended) < 2:
            ended |= dict(await asyncio.to_thread(connection.receive))
    finally:
        connection.close()
    assert (ended[stream], ended[later]) == (0, http2.RESET)


async def test_the_probe_measures_while_calls_arrive(world: World) -> None:
    probe = DelayProbe(QueueingDelay())
    begun: list[float] = []
    end = probe.delay.end

    def ended() -> None:
        begun.append(probe.delay.seconds)
        end()

    probe.delay.end = ended  # type: ignore[method-assign]
    async with running(world, delay=probe.delay, probe=probe) as server:
        await server.raw("/grpc.health.v1.Health/Check")
        assert not begun
        await server.raw(PUBLIC + "ListWorkspaces", bearer())
        await eventually_async(lambda: bool(begun))


async def test_a_worker_that_ends_its_measurements_refuses_no_call(
    delay: QueueingDelay, clock: Clock
) -> None:
    probe = DelayProbe(delay)
    # A server that never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with background.running(probe.run(f"127.0.0.1:{silent.getsockname()[1]}"), "probe"):
            await settle()
            probe.arrived()
            await settle()
            clock.seconds += 3
            assert refused(delay) == REFUSABLE
    clock.seconds += 3
    assert refused(delay) == []


async def test_a_worker_whose_measurements_fail_logs_it_and_serves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = DelayProbe(QueueingDelay())

    async def fail(_: object) -> None:
        probe.delay.begin()
        raise ValueError

    monkeypatch.setattr(probe, "_measure", fail)
    with capture_logs() as logged:
        async with running(world, delay=probe.delay, probe=probe) as server:
            await eventually_async(lambda: any(each.get("task") == DELAY_TASK for each in logged))
            assert probe.delay.is_short
            assert isinstance(await server.raw(PUBLIC + "ListWorkspaces", bearer()), bytes)
