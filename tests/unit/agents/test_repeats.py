"""How an agent repeats calls that fail or get no answer: to which worker, and when."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
import grpc.aio
import pytest
import structlog
from evershell.agent.v1.runtime_service_pb2 import (
    CommitEventsResponse,
    Directive,
    HeartbeatResponse,
)

from evershell.agents import runtime_client
from evershell.agents.active_task import ActiveTask
from evershell.agents.lease import MAX_BACKOFF_SECONDS, Lease
from evershell.agents.runtime_client import (
    BUSY_BACKOFF_SECONDS,
    FIRST_BACKOFF_SECONDS,
    FORCE_BACKOFF_SECONDS,
    ControlPlaneClock,
    RuntimeClient,
    RuntimeCredential,
    connect,
)
from evershell.agents.session import Session
from evershell.agents.shutdown import Shutdown
from evershell.core.task import Phase, TaskStarted
from evershell.pod.tokens import SECRET_BYTES, SLUG_TRAILER
from tests.support.waiting import settle

# The time limit of a call. No call of a test that passes takes this long.
LIMIT_SECONDS = 30

Answer = Callable[[], Awaitable[None]]


async def well() -> None:
    """A worker that answers as it should."""


async def never() -> None:
    """A frozen worker, whose answer never comes."""
    await asyncio.Event().wait()


def failing(code: grpc.StatusCode, slug: str = "") -> Answer:
    trailers = grpc.aio.Metadata(*([(SLUG_TRAILER, slug)] if slug else []))

    async def fail() -> None:
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, "injected")

    return fail


gone = failing(grpc.StatusCode.UNAVAILABLE)
busy = failing(grpc.StatusCode.UNAVAILABLE, "unavailable")
limited = failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "rate_limited")
slow = failing(grpc.StatusCode.DEADLINE_EXCEEDED)


class Worker:
    """The stub of a worker. Its `answer` decides how it answers each call."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls = 0
        # How many calls were cancelled before they were answered.
        self.cancelled = 0

    async def _take(self) -> None:
        self.calls += 1
        try:
            await self.answer()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def CommitEvents(self, *_: Any, **__: Any) -> CommitEventsResponse:
        await self._take()
        directive = Directive()
        directive.task.task_id = "task_1"
        return CommitEventsResponse(directive=directive)

    async def Heartbeat(self, *_: Any, **__: Any) -> HeartbeatResponse:
        await self._take()
        return HeartbeatResponse(directive=Directive(lease_ms=30_000, lease_length_ms=30_000))


class Side:
    """An agent with a task, and its workers. The first worker is the agent's current one."""

    def __init__(self, *answers: Answer, clock: Callable[[], float] | None = None) -> None:
        self.workers = [Worker(each) for each in answers]
        self.lease = Lease(clock) if clock else Lease()
        log, shutdown = structlog.get_logger(), Shutdown()
        session = Session(_work, shutdown, lambda: None, log)
        session._task = self.task = ActiveTask(id="task_1", description="", max_iterations=1)
        stubs = {f"worker {index}": cast("Any", each) for index, each in enumerate(self.workers)}
        clock_ = ControlPlaneClock()
        credential = RuntimeCredential("ws_1", 1, "00" * SECRET_BYTES, clock_)
        self.client = RuntimeClient(stubs, credential, self.lease, shutdown, session, log)
        self.client._current = 0

    async def commit(self) -> bool:
        async with asyncio.timeout(LIMIT_SECONDS):
            return await self.client.commit("task_1", [TaskStarted()])

    async def beat(self) -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            await self.client.heartbeat(lambda: ("task_1", Phase.NONE))

    @property
    def calls(self) -> list[int]:
        return [each.calls for each in self.workers]


async def _work(_: Any) -> None:
    raise AssertionError("no task was assigned")


@pytest.fixture
def hedged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_client, "HEDGE_SECONDS", 0.01)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Records the longest possible pause before each repeat, and makes each pause last 0 s."""
    noted: list[float] = []

    def uniform(_: float, longest: float) -> float:
        noted.append(longest)
        return 0.0

    monkeypatch.setattr(random, "uniform", uniform)
    return noted


@pytest.mark.usefixtures("hedged_at_once")
async def test_the_end_of_a_forced_task_goes_to_another_worker_if_the_first_is_silent() -> None:
    side = Side(never, well, well)
    side.task.cancel.request(0)
    assert await side.commit()
    assert side.calls == [1, 1, 0]
    # The next calls also avoid the silent worker.
    await side.beat()
    assert side.calls == [1, 2, 0]


@pytest.mark.usefixtures("hedged_at_once")
async def test_the_first_call_goes_on_and_its_answer_counts() -> None:
    answering = asyncio.Event()

    async def late() -> None:
        await answering.wait()

    side = Side(late, never)
    side.task.cancel.request(0)
    committing = asyncio.create_task(side.commit())
    async with asyncio.timeout(LIMIT_SECONDS):
        while side.calls != [1, 1]:
            await asyncio.sleep(0.001)
    assert side.workers[0].cancelled == 0
    answering.set()
    assert await committing
    await settle()
    # Nothing has called a third time, and the second call was cancelled.
    assert (side.calls, side.workers[1].cancelled) == ([1, 1], 1)


@pytest.mark.usefixtures("hedged_at_once")
async def test_a_call_in_flight_goes_to_another_worker_when_the_force_deadline_passes() -> None:
    side = Side(never, well)
    committing = asyncio.create_task(side.commit())
    side.task.cancel.request()
    done, _ = await asyncio.wait({committing}, timeout=0.2)
    # Without force, a cancelled task may take as long as its iteration takes, so the agent does not
    # call another worker, which would only add load.
    assert (done, side.calls) == (set(), [1, 0])
    side.task.cancel.request(0)
    assert await committing
    assert side.calls == [1, 1]


@pytest.mark.usefixtures("hedged_at_once")
async def test_a_single_worker_gets_a_call_once() -> None:
    side = Side(never)
    side.task.cancel.request(0)
    committing = asyncio.create_task(side.commit())
    done, _ = await asyncio.wait({committing}, timeout=0.2)
    assert (done, side.calls) == (set(), [1])
    committing.cancel()
    await asyncio.gather(committing, return_exceptions=True)
    await settle()
    assert side.workers[0].cancelled == 1


async def test_agents_begin_with_different_workers() -> None:
    log, shutdown, lease = structlog.get_logger(), Shutdown(), Lease()
    credential = RuntimeCredential("ws_1", 1, "00" * SECRET_BYTES, ControlPlaneClock())
    session = Session(_work, shutdown, lambda: None, log)
    begun: Counter[int] = Counter()
    for _ in range(200):
        stubs = {f"worker {index}": cast("Any", Worker(well)) for index in range(2)}
        client = RuntimeClient(stubs, credential, lease, shutdown, session, log)
        begun[client._current] += 1
    assert set(begun) == {0, 1}


@pytest.mark.parametrize(
    ("addresses", "connections"),
    [
        (["workers:50151"], 2),
        (["10.0.0.1:50151"], 1),
        (["[fd00::1]:50151"], 1),
        (["a:1", "b:1"], 2),
    ],
)
async def test_a_name_gets_a_second_connection(addresses: list[str], connections: int) -> None:
    channels, stubs = connect(addresses, None)
    assert (len(channels), len(stubs)) == (connections, connections)
    for each in channels:
        await each.close()


def after(count: int, failure: Answer) -> Answer:
    """Returns an answer that fails `count` times and then succeeds."""
    left = [failure] * count

    async def answer() -> None:
        if left:
            await left.pop()()

    return answer


@pytest.mark.parametrize(
    ("failure", "first"),
    [
        (gone, FIRST_BACKOFF_SECONDS),
        (busy, BUSY_BACKOFF_SECONDS),
        (limited, BUSY_BACKOFF_SECONDS),
        (slow, BUSY_BACKOFF_SECONDS),
    ],
)
async def test_repeats_back_off(pauses: list[float], failure: Answer, first: float) -> None:
    """The pauses grow. The first pause is longer if the worker is busy than if it is gone."""
    side = Side(after(9, failure))
    await side.beat()
    expected = [min(first * 2**number, MAX_BACKOFF_SECONDS) for number in range(9)]
    assert pauses == expected and expected[-1] == MAX_BACKOFF_SECONDS
    # After an answer, the pauses begin with the first pause again.
    pauses.clear()
    side.workers[0].answer = after(1, failure)
    await side.beat()
    assert pauses == [first]


async def test_the_repeats_of_a_forced_end_wait_for_a_second_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr(random, "uniform", lambda _, longest: longest)
    side = Side(after(8, busy))
    side.task.cancel.request(0)
    monkeypatch.setattr(asyncio, "sleep", note)
    await side.commit()
    assert waited == [BUSY_BACKOFF_SECONDS] + 7 * [FORCE_BACKOFF_SECONDS]


async def test_a_force_deadline_ends_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda *_: 10 * LIMIT_SECONDS)
    side = Side(after(1, busy))
    committing = asyncio.create_task(side.commit())
    async with asyncio.timeout(LIMIT_SECONDS):
        while side.calls != [1]:
            await asyncio.sleep(0)
    side.task.cancel.request(0)
    assert await committing
    assert side.calls == [2]


@pytest.mark.parametrize("lease_seconds", [1.0, 3.0, 30.0, 600.0])
@pytest.mark.parametrize("failure", [gone, busy, slow])
async def test_heartbeats_are_repeated_until_the_lease_ends(
    monkeypatch: pytest.MonkeyPatch, lease_seconds: float, failure: Answer
) -> None:
    """If the control plane is back before the lease ends, it gets a heartbeat in time.

    This holds even after long pauses.
    """
    now = 0.0
    sleep = asyncio.sleep

    async def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", pass_time)
    monkeypatch.setattr(random, "uniform", lambda _, longest: longest)
    side = Side(well, clock=lambda: now)
    side.lease.renew(0, lease_seconds, lease_seconds)
    left = whole = side.lease.remaining_seconds
    assert left is not None and whole is not None
    # The next attempt always comes before half of the remaining time has passed.
    for share in (0.9, 0.5, 0.1):
        now, back_at = 0.0, whole * (1 - share)

        async def fail_until_back(back_at: float = back_at) -> None:
            if now < back_at:
                await failure()

        side.workers[0].answer = fail_until_back
        await side.beat()
        assert back_at <= now < whole - (whole - back_at) / 2
        side.lease._over_at = whole
