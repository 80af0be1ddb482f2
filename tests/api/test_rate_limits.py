"""How many calls are served, by a clock that is set by hand."""

from collections.abc import AsyncIterator, Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from evershell.workspace.v1 import workspace_service_pb2 as messages
from grpc_health.v1 import health_pb2
from throttled import utils

from server.api import call as calls
from server.api.call import Call
from server.api.interceptors.rate_limits import Rate, RateLimits
from server.core.caller import Caller
from server.core.errors import Failure
from tests.api.running import (
    INTERNAL,
    OBSERVER,
    PUBLIC,
    READER,
    Failed,
    Running,
    agent_bearer,
    bearer,
    running,
)
from tests.support.world import World, caller

CALLS, CANCELS = Rate(100, 20), Rate(50, 10)


class Monotonic:
    """A clock that is set by hand."""

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


async def serve_metrics(call: Callable[[], Coroutine[Any, Any, Any]], limit: int = 50) -> int:
    """How many calls succeed before one is refused for there being too many."""
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


async def test_so_many_at_once_and_so_many_a_second(server: Running, clock: Monotonic) -> None:
    assert await serve_metrics(listing(server)) == 20
    clock.seconds += 0.1
    assert await serve_metrics(listing(server)) == 10
    clock.seconds += 60
    assert await serve_metrics(listing(server)) == 20


async def test_a_refused_call_spends_nothing_and_the_next_succeeds_when_it_is_said_to(
    server: Running, clock: Monotonic
) -> None:
    for _ in range(3):
        await serve_metrics(listing(server))
    seen = await listing(server)()
    assert isinstance(seen, Failed)
    clock.seconds += seen.details["RetryInfo"].retry_delay.ToMilliseconds() / 1000
    assert isinstance(await listing(server)(), bytes)


@pytest.mark.parametrize("edge", ["grpc", "rest"])
async def test_a_refused_call_is_told_the_same_on_both_wires(server: Running, edge: str) -> None:
    await serve_metrics(listing(server))
    seen = await server.raw(PUBLIC + "ListWorkspaces", bearer(x_evershell_edge=edge))
    assert isinstance(seen, Failed)
    assert (seen.code, seen.slug) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "rate_limited")
    assert (
        seen.trailers["retry-after"],
        seen.details["RetryInfo"].retry_delay.ToMilliseconds(),
    ) == ("1", 1000)
    facts = {"retry_after_seconds": 1, "limit_per_second": 100, "limit_burst": 20}
    assert dict(seen.details["ErrorInfo"].metadata) == {
        name: str(value) for name, value in facts.items()
    }
    assert "100 times a second" in seen.message and "has changed nothing" in seen.message
    if edge == "rest":
        assert (seen.trailers["x-evershell-status"], seen.envelope["code"]) == (
            "429",
            "rate_limited",
        )
        assert (seen.envelope["message"], seen.envelope["details"]) == (seen.message, facts)


async def test_spent_reads_do_not_block_a_cancellation(server: Running, world: World) -> None:
    busy, _ = await world.add_busy()
    await serve_metrics(listing(server))
    assert isinstance(await cancelling(server, busy.id)(), bytes)
    assert await serve_metrics(cancelling(server, busy.id)) == 9


async def test_spent_cancellations_do_not_block_a_read(server: Running, world: World) -> None:
    busy, _ = await world.add_busy()
    await serve_metrics(cancelling(server, busy.id))
    assert isinstance(await listing(server)(), bytes)


async def test_one_credential_is_not_limited_by_another_of_its_organization(
    server: Running,
) -> None:
    await serve_metrics(listing(server))
    assert await serve_metrics(listing(server, READER)) == 20


async def test_a_refused_cancellation_records_nothing(server: Running, world: World) -> None:
    idle = await world.add()
    assert await serve_metrics(cancelling(server, idle.id)) == 10
    running = await world.run(idle)
    seen = await cancelling(server, idle.id)()
    assert isinstance(seen, Failed) and seen.slug == "rate_limited"
    assert (await world.task(idle.id, running.id)).cancel is None
    assert world.agents.cancelled == []


async def test_a_loop_on_wrong_tasks_takes_nothing_from_others_in_the_same_workspace(
    server: Running, world: World
) -> None:
    busy, running = await world.add_busy()
    wrong = messages.CancelTaskRequest(
        workspace_id=busy.id, task_id="task_wrong"
    ).SerializeToString()
    assert (
        await serve_metrics(lambda: server.raw(PUBLIC + "CancelTask", bearer(OBSERVER), wrong))
        == 10
    )
    assert await serve_metrics(cancelling(server, busy.id)) == 10
    assert world.agents.cancelled == [running.id] * 10


async def test_a_loop_on_the_right_task_takes_nothing_from_others_either(
    server: Running, world: World
) -> None:
    busy, running = await world.add_busy()
    assert await serve_metrics(cancelling(server, busy.id, OBSERVER)) == 10
    assert await serve_metrics(cancelling(server, busy.id)) == 10
    assert world.agents.cancelled == [running.id] * 20


async def test_a_loop_over_workspaces_has_one_allowance(server: Running, world: World) -> None:
    first, _ = await world.add_busy()
    second, _ = await world.add_busy()
    assert await serve_metrics(cancelling(server, first.id)) == 10
    assert await serve_metrics(cancelling(server, second.id)) == 0


async def test_what_does_not_authenticate_is_not_counted(server: Running) -> None:
    assert (
        await serve_metrics(lambda: server.raw(PUBLIC + "ListWorkspaces", bearer("sk_unknown")))
        == 50
    )


async def test_agents_and_health_are_not_limited(server: Running) -> None:
    assert (
        await serve_metrics(lambda: server.raw(INTERNAL + "Heartbeat", agent_bearer("ws_1"))) == 50
    )
    answer = await server.raw("/grpc.health.v1.Health/Check")
    assert isinstance(answer, bytes)
    assert (
        health_pb2.HealthCheckResponse.FromString(answer).status
        == health_pb2.HealthCheckResponse.SERVING
    )


async def test_a_stream_counts_once(server: Running, world: World) -> None:
    busy, _ = await world.add_busy()
    call = server.stub.WatchEvents(
        messages.WatchEventsRequest(workspace_id=busy.id), metadata=bearer()
    )
    stream = aiter(call)
    assert [(await anext(stream)).event.seq, (await anext(stream)).event.seq] == [1, 2]
    assert await serve_metrics(listing(server)) == 19
    call.cancel()


async def spent(limits: RateLimits, by: Caller) -> int:
    """How many cancellations of this caller are let through."""

    async def proceed() -> None:
        pass

    details, context = SimpleNamespace(method=PUBLIC + "CancelTask"), SimpleNamespace()
    calls.begin(
        Call(method=details.method, request_id="req_1", is_rest=False, metadata={}, caller=by)
    )
    for count in range(50):
        try:
            await limits.around(cast(Any, details), cast(Any, context), proceed)
        except Failure as failure:
            assert failure.slug == "rate_limited"
            return count
    return 50


async def test_each_credential_has_a_bucket_and_a_users_sessions_share_one(
    limits: RateLimits,
) -> None:
    assert await spent(limits, caller("workspace:write", actor_id="user_1")) == 10
    assert await spent(limits, caller("workspace:write:own", actor_id="user_1")) == 0
    assert await spent(limits, caller("workspace:write", actor_id="user_2")) == 10
    assert await spent(limits, caller("workspace:write", org_id="org_b", actor_id="user_1")) == 10


async def test_the_memory_of_many_callers_is_bounded(
    clock: Monotonic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was used the longest ago is forgotten; a busy bucket is not."""
    monkeypatch.setattr("server.api.interceptors.rate_limits._MAX_BUCKETS", 100)
    limits = RateLimits(CALLS, CANCELS)
    first, busy = (
        caller("workspace:write", actor_id="first"),
        caller("workspace:write", actor_id="busy"),
    )
    assert await spent(limits, first) == await spent(limits, busy) == 10
    for number in range(99):
        assert await spent(limits, caller("workspace:write", actor_id=f"user_{number}")) == 10
        assert await spent(limits, busy) == 0
    assert await spent(limits, first) == 10
