"""The limits on reading requests: order, size, time and concurrency."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from evershell.api.call import LARGE_BODY_HEADER
from evershell.api.interceptors import reading, shares
from evershell.api.method_options import (
    HEARTBEAT,
    SCOPE_CHECKS,
    WORKSPACE_SERVICE,
    public_methods,
)
from evershell.core.errors import Failure
from evershell.telemetry.metrics import Metrics
from tests.support.waiting import eventually_async
from tests.support.world import World
from tests.wire.api.access_rules import METHODS, RULES
from tests.wire.api.running import (
    INTERNAL,
    PUBLIC,
    READER,
    Failed,
    Metadata,
    Running,
    agent_bearer,
    bearer,
    running,
)

CANCEL, LIST = f"{PUBLIC}CancelTask", f"{PUBLIC}ListWorkspaces"
CANCEL_BYTES, USUAL_BYTES = 16_384, 1_048_576
PROMPT_SECONDS = 30.0
BODIES = shares.Kind.BODIES
# Methods of A2A, each with the method of WorkspaceService that needs the same scopes.
A2A_LIKE = {
    "SendMessage": "SubmitTask",
    "SendStreamingMessage": "SubmitTask",
    "CreateTaskPushNotificationConfig": "CreateWebhook",
    "DeleteTaskPushNotificationConfig": "DeleteWebhook",
}


class Incomplete:
    """A call that sends these messages and leaves its stream open until `finish`."""

    def __init__(
        self, server: Running, method: str, metadata: Metadata = (), sent: Sequence[bytes] = ()
    ) -> None:
        self._ending = asyncio.Event()

        async def stream() -> AsyncIterator[bytes]:
            for message in sent:
                yield message
            await self._ending.wait()

        call: Any = server.channel.stream_unary(method)
        self.call: Any = call(stream(), metadata=metadata)

    def finish(self) -> None:
        """Ends the stream."""
        self._ending.set()

    async def failure(self) -> Failed:
        """The failure of the call, which may come while its stream is still open."""
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async with asyncio.timeout(PROMPT_SECONDS):
                await self.call
        return Failed.of(raised.value)


@pytest.mark.parametrize("method", [CANCEL, f"{PUBLIC}WatchEvents", f"{INTERNAL}Heartbeat"])
@pytest.mark.parametrize("metadata", [(), bearer("sk_unknown")])
async def test_a_bad_credential_is_refused_before_the_request_arrives(
    server: Running, method: str, metadata: Metadata
) -> None:
    assert (await Incomplete(server, method, metadata).failure()).slug == "unauthenticated"


async def test_a_method_takes_exactly_one_message(server: Running, world: World) -> None:
    none = Incomplete(server, CANCEL, bearer())
    none.finish()
    two = Incomplete(server, CANCEL, bearer(), [b"", b""])
    for seen in (await none.failure(), await two.failure()):
        assert (seen.code, seen.slug) == (grpc.StatusCode.INVALID_ARGUMENT, "validation_error")
        assert "one message" in seen.message


async def test_a_method_without_effect_does_not_wait_for_the_end_of_its_request(
    server: Running, world: World
) -> None:
    reads = public_methods(with_effect=False, services=[WORKSPACE_SERVICE])
    of_reads = ("Get", "List", "Watch", "Stream")
    assert reads == {PUBLIC + name for name in METHODS if name.startswith(of_reads)}
    async with asyncio.timeout(PROMPT_SECONDS):
        assert await Incomplete(server, LIST, bearer(), [b""]).call == b""
        agent = agent_bearer((await world.add()).id)
        assert await Incomplete(server, HEARTBEAT, agent, [b""]).call != b""
    none = Incomplete(server, LIST, bearer())
    none.finish()
    assert "one message" in (await none.failure()).message


@pytest.mark.parametrize(
    ("method", "metadata", "limit"),
    [
        (CANCEL, bearer(), CANCEL_BYTES),
        (LIST, bearer(), USUAL_BYTES),
        (f"{PUBLIC}WatchEvents", bearer(), USUAL_BYTES),
        ("/grpc.health.v1.Health/Check", (), 4096),
    ],
)
async def test_a_request_has_a_size_limit(
    server: Running, method: str, metadata: Metadata, limit: int
) -> None:
    too_large = await server.raw(method, metadata, unknown_field(limit + 1))
    assert isinstance(too_large, Failed)
    assert (too_large.code, too_large.slug) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "validation_error",
    )
    assert f"{limit + 1:,} bytes" in too_large.message and f"{limit:,}" in too_large.message
    largest = await server.raw(method, metadata, unknown_field(limit))
    assert not isinstance(largest, Failed) or "bytes" not in largest.message


async def test_agents_may_send_larger_requests(server: Running) -> None:
    request = unknown_field(3 * USUAL_BYTES)
    seen = await server.raw(f"{INTERNAL}CommitEvents", agent_bearer("ws_1"), request)
    assert not isinstance(seen, Failed) or "bytes" not in seen.message


async def test_an_agent_is_served_one_call_at_a_time_and_few_wait(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other calls wait unread, and a new call is refused. Heartbeats are served separately."""
    monkeypatch.setattr(reading, "MAX_WAITING_CALLS", 3)
    entered, go_on = list[str](), asyncio.Event()
    transition = world.store.transition

    async def wait_and_transit(workspace_id: str, *arguments: Any) -> Any:
        entered.append(workspace_id)
        await go_on.wait()
        return await transition(workspace_id, *arguments)

    monkeypatch.setattr(world.store, "transition", wait_and_transit)
    metrics = Metrics()
    async with running(world, metrics=metrics) as server, asyncio.timeout(PROMPT_SECONDS):
        commit, agent = f"{INTERNAL}CommitEvents", agent_bearer("ws_1")
        calls = [asyncio.create_task(server.raw(commit, agent)) for _ in range(4)]
        await eventually_async(lambda: in_flight(metrics, "CommitEvents") == len(calls))
        await eventually_async(lambda: entered == ["ws_1"])
        refused = await server.raw(commit, agent)
        assert isinstance(refused, Failed) and refused.slug == "rate_limited"
        assert isinstance(await server.raw(f"{INTERNAL}Heartbeat", agent), bytes)
        # The next epoch, and other workspaces, are not affected.
        others = [("ws_1", 2), ("ws_2", 1)]
        calls += [asyncio.create_task(server.raw(commit, agent_bearer(*other))) for other in others]
        await eventually_async(lambda: entered == ["ws_1", "ws_1", "ws_2"])
        go_on.set()
        assert all(isinstance(seen, bytes) for seen in await asyncio.gather(*calls))
        assert len(entered) == len(calls)


async def test_an_agent_that_sends_fast_waits_for_its_next_turn(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BYTES_PER_SECOND", 1_000_000)
    commit, agent = f"{INTERNAL}CommitEvents", agent_bearer("ws_1")
    began = time.monotonic()
    for _ in range(3):
        await server.raw(commit, agent, unknown_field(500_000))
    # The limit delays the second and the third call by half a second each. Without the limit, all
    # calls take a hundredth of a second.
    assert time.monotonic() - began >= 1.0


def unknown_field(size: int) -> bytes:
    """A message of `size` bytes, with one field that no message declares."""
    # Field 15 of type bytes. Its length is a varint of four bytes, padded if it is small.
    length = size - 5
    encoded = [length >> shift & 127 | (128 if shift < 21 else 0) for shift in (0, 7, 14, 21)]
    return bytes([15 << 3 | 2, *encoded]) + bytes(length)


async def test_a_request_that_does_not_arrive_in_time_is_refused(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_ARRIVAL_SECONDS", 0.05)
    # The second request needs the place of the first one.
    monkeypatch.setattr(shares, "SHARES", dict.fromkeys(shares.Kind, shares.Share(1, 1, 1)))
    seen = await Incomplete(server, CANCEL, bearer()).failure()
    assert (seen.code, seen.slug) == (grpc.StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded")
    unended = await Incomplete(server, CANCEL, bearer(), [b""]).failure()
    assert unended.slug == "deadline_exceeded"


async def test_slow_requests_beyond_a_share_are_refused_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quick requests with the same credential and slow ones with another credential are served."""
    few = {**shares.SHARES, shares.Kind.BODIES: shares.Share(9, 3, 2)}
    monkeypatch.setattr(shares, "SHARES", few)
    metrics = Metrics()
    async with running(world, metrics=metrics) as server, asyncio.timeout(PROMPT_SECONDS):
        slow = [Incomplete(server, LIST, bearer()) for _ in range(5)]
        failures = [asyncio.create_task(each.failure()) for each in slow]
        await eventually_async(lambda: sum(each.done() for each in failures) == 3)
        await eventually_async(lambda: in_flight(metrics) == 2)
        refused = [each.result() for each in failures if each.done()]
        assert [each.slug for each in refused] == ["rate_limited"] * 3
        assert all("RetryInfo" in each.details for each in refused)
        assert await server.raw(LIST, bearer()) == b""
        # The organization's share has a place for one of these slow requests.
        others = [Incomplete(server, LIST, bearer(READER)) for _ in range(2)]
        failures += [asyncio.create_task(each.failure()) for each in others]
        await eventually_async(lambda: in_flight(metrics) == 3)
        for each in failures:
            each.cancel()
        await asyncio.gather(*failures, return_exceptions=True)
        await eventually_async(lambda: in_flight(metrics) == 0)


async def test_slow_cancellations_have_places_of_their_own(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = {**shares.SHARES, shares.Kind.FIRST_BODIES: shares.Share(0, 0, 0)}
    monkeypatch.setattr(shares, "SHARES", none)
    seen = await Incomplete(server, CANCEL, bearer()).failure()
    assert seen.slug == "rate_limited" and "slow bodies of cancellations" in seen.message
    # The refused cancellation may name no task, so it must not be repeated.
    assert "RetryInfo" not in seen.details and "retry-after" not in seen.trailers


async def test_a_large_request_has_a_place_before_it_arrives(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "SHARES", {**shares.SHARES, BODIES: shares.Share(0, 0, 0)})
    monkeypatch.setattr(reading, "_QUICK_SECONDS", PROMPT_SECONDS)
    large = (*bearer(), (LARGE_BODY_HEADER, "1"))
    assert (await Incomplete(server, LIST, large).failure()).slug == "rate_limited"


@pytest.mark.parametrize("method", sorted(SCOPE_CHECKS))
async def test_the_scope_is_checked_before_a_slow_request_has_arrived(
    server: Running, method: str
) -> None:
    name = method.rpartition("/")[2]
    seen = await Incomplete(server, method, bearer(READER)).failure()
    assert seen.slug == "permission_denied"
    rule = RULES.get(name) or RULES[A2A_LIKE[name]]
    needed = set(seen.details["ErrorInfo"].metadata["required"].split(","))
    assert needed == {*rule.scopes, *rule.own_scopes}


def in_flight(metrics: Metrics, rpc: str = "ListWorkspaces") -> float:
    labels = {"rpc": rpc}
    return metrics.registry.get_sample_value("evershell_rpc_in_flight", labels) or 0.0


async def test_a_request_that_times_out_does_not_fail_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "_ARRIVAL_SECONDS", 0.05)
    turns, may_begin = reading._Turns(1), asyncio.Event()

    async def be_slow() -> None:
        async def never() -> bytes:
            await asyncio.Event().wait()
            return b""

        await reading._message(never, turns, reading._Turns(1))

    async def follow() -> None:
        await may_begin.wait()
        async with asyncio.timeout(PROMPT_SECONDS):
            await turns.take()

    slow, following = asyncio.create_task(be_slow()), asyncio.create_task(follow())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.01, may_begin.set)
    # Both timers are due in the same pass of the event loop, the slow request's first.
    time.sleep(0.1)  # noqa: ASYNC251 - the loop has to be late
    await following
    with pytest.raises(Failure) as raised:
        await slow
    assert raised.value.slug == "deadline_exceeded"
