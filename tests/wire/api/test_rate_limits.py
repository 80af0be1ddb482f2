"""The rate limits, with a clock that the tests set."""

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

import pytest
from evershell.workspace.v1 import workspace_service_pb2 as messages
from throttled import utils

from evershell.api.call import Call
from evershell.api.interceptors.interceptor import Method
from evershell.api.interceptors.rate_limits import Rate, RateLimits
from evershell.core.caller import Caller
from evershell.core.errors import Failure
from tests.support.world import World, caller
from tests.wire.api.running import (
    INTERNAL,
    OBSERVER,
    PUBLIC,
    Failed,
    Running,
    agent_bearer,
    bearer,
    running,
)

HEALTH = "/grpc.health.v1.Health/Check"
CALLS, CANCELS = Rate(100, 20), Rate(50, 10)


class Monotonic:
    """A monotonic clock that the test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Monotonic:
    clock = Monotonic()
    monkeypatch.setattr(utils, "now_mono_f", clock)
    return clock


@pytest.fixture
def limits(clock: Monotonic) -> RateLimits:
    return RateLimits(CALLS, CANCELS)


@pytest.fixture
async def server(world: World, limits: RateLimits) -> AsyncIterator[Running]:
    async with running(world, rate_limits=limits) as started:
        yield started


async def count_served(call: Callable[[], Coroutine[Any, Any, Any]], limit: int = 50) -> int:
    """The number of calls before the first one that is rate limited; at most `limit`."""
    for count in range(limit):
        seen = await call()
        if isinstance(seen, Failed) and seen.slug == "rate_limited":
            return count
    return limit


def listing(server: Running, token: str = "sk_test") -> Callable[[], Coroutine[Any, Any, Any]]:
    return lambda: server.raw(PUBLIC + "ListWorkspaces", bearer(token))


def cancelling(
    server: Running, workspace_id: str, token: str = "sk_test"
) -> Callable[[], Coroutine[Any, Any, Any]]:
    request = messages.CancelTaskRequest(workspace_id=workspace_id).SerializeToString()
    return lambda: server.raw(PUBLIC + "CancelTask", bearer(token), request)


async def test_calls_have_a_burst_and_a_rate(server: Running, clock: Monotonic) -> None:
    assert await count_served(listing(server)) == 20
    clock.seconds += 0.1
    assert await count_served(listing(server)) == 10
    clock.seconds += 60
    assert await count_served(listing(server)) == 20


async def test_a_refused_call_spends_nothing_and_names_when_to_retry(
    server: Running, clock: Monotonic
) -> None:
    for _ in range(3):
        await count_served(listing(server))
    seen = await listing(server)()
    assert isinstance(seen, Failed)
    clock.seconds += seen.details["RetryInfo"].retry_delay.ToMilliseconds() / 1000
    assert isinstance(await listing(server)(), bytes)


async def test_a_refusal_says_which_limit_it_is(server: Running) -> None:
    await count_served(listing(server))
    seen = await listing(server)()
    assert isinstance(seen, Failed)
    assert dict(seen.details["ErrorInfo"].metadata) == {
        "retry_after_seconds": "1",
        "limit_per_second": "100",
        "limit_burst": "20",
    }


async def test_only_a_cancellation_that_names_its_task_gets_a_time(
    server: Running, world: World
) -> None:
    busy, task = await world.add_busy()
    await count_served(cancelling(server, busy.id))
    for task_id in ("", task.id):
        request = messages.CancelTaskRequest(workspace_id=busy.id, task_id=task_id)
        seen = await server.raw(PUBLIC + "CancelTask", bearer(), request.SerializeToString())
        assert isinstance(seen, Failed) and seen.slug == "rate_limited"
        assert ("RetryInfo" in seen.details) == ("retry-after" in seen.trailers) == bool(task_id)


async def test_spent_reads_do_not_block_a_cancellation(server: Running, world: World) -> None:
    busy, _ = await world.add_busy()
    await count_served(listing(server))
    assert isinstance(await cancelling(server, busy.id)(), bytes)
    assert await count_served(cancelling(server, busy.id)) == 9


async def test_a_loop_on_the_right_task_does_not_limit_other_callers(
    server: Running, world: World
) -> None:
    busy, running = await world.add_busy()
    assert await count_served(cancelling(server, busy.id, OBSERVER)) == 10
    assert await count_served(cancelling(server, busy.id)) == 10
    assert world.agents.cancelled == [running.id] * 20


async def test_unauthenticated_calls_are_not_counted(server: Running) -> None:
    assert (
        await count_served(lambda: server.raw(PUBLIC + "ListWorkspaces", bearer("sk_unknown")))
        == 50
    )


async def test_agents_and_health_are_not_limited(world: World) -> None:
    once = Rate(1, 1)
    async with running(world, rate_limits=RateLimits(once, once)) as server:
        agent = agent_bearer("ws_1")
        assert await count_served(lambda: server.raw(INTERNAL + "Heartbeat", agent), limit=3) == 3
        assert await count_served(lambda: server.raw(HEALTH), limit=3) == 3
        assert await count_served(listing(server)) == 1


async def count_admitted(limits: RateLimits, by: Caller) -> int:
    """The number of this caller's cancellations that pass before the first refusal."""

    async def proceed(_call: Call) -> None:
        pass

    method = Method("evershell.workspace.v1.WorkspaceService", "CancelTask", bytes, is_stream=False)
    limited = limits.wrap(method, proceed)
    call = Call(cast(Any, None), metadata={}, request_id="req_1", is_rest=True, caller=by)
    for count in range(50):
        try:
            await limited(call)
        except Failure as failure:
            assert failure.slug == "rate_limited"
            return count
    return 50


async def test_each_credential_has_a_bucket_and_a_users_sessions_share_one(
    limits: RateLimits,
) -> None:
    assert await count_admitted(limits, caller("workspace:write", actor_id="user_1")) == 10
    assert await count_admitted(limits, caller("workspace:write:own", actor_id="user_1")) == 0
    assert await count_admitted(limits, caller("workspace:write", actor_id="user_2")) == 10
    assert (
        await count_admitted(limits, caller("workspace:write", org_id="org_b", actor_id="user_1"))
        == 10
    )


async def test_the_memory_of_many_callers_is_bounded(
    clock: Monotonic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least recently used bucket is evicted; a busy one is kept."""
    monkeypatch.setattr("evershell.api.interceptors.rate_limits._MAX_BUCKETS", 100)
    limits = RateLimits(CALLS, CANCELS)
    first, busy = (
        caller("workspace:write", actor_id="first"),
        caller("workspace:write", actor_id="busy"),
    )
    assert await count_admitted(limits, first) == await count_admitted(limits, busy) == 10
    for number in range(99):
        assert (
            await count_admitted(limits, caller("workspace:write", actor_id=f"user_{number}")) == 10
        )
        assert await count_admitted(limits, busy) == 0
    assert await count_admitted(limits, first) == 10
