"""How an agent renews its lease: what replies say about the lease, and when heartbeats are sent."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import structlog
from evershell.agent.v1.runtime_service_pb2 import Directive, HeartbeatResponse

from evershell.agents.lease import JITTER, Heartbeat, Lease
from evershell.agents.runtime_client import ControlPlaneClock, RuntimeClient, RuntimeCredential
from evershell.agents.session import Session
from evershell.agents.shutdown import Shutdown
from evershell.core.task import Phase
from evershell.pod.tokens import SECRET_BYTES

NOW = 100.0


class Stub:
    """The stub of a worker that replies with `directive`. Calls `on_call` before each reply."""

    def __init__(self, directive: Directive, on_call: Callable[[], object]) -> None:
        self._directive = directive
        self._on_call = on_call

    async def Heartbeat(self, *_: Any, **__: Any) -> HeartbeatResponse:
        self._on_call()
        return HeartbeatResponse(directive=self._directive)


async def _no_work(_: Any) -> None:
    raise AssertionError("no task was assigned")


def client(
    directive: Directive,
    clock: Callable[[], float] = lambda: NOW,
    on_call: Callable[[], object] = lambda: None,
) -> tuple[RuntimeClient, Lease, Session]:
    log, shutdown, lease = structlog.get_logger(), Shutdown(), Lease(clock)
    session = Session(_no_work, shutdown, lambda: None, log, lambda: NOW)
    stubs = {"127.0.0.1:1": cast("Any", Stub(directive, on_call))}
    credential = RuntimeCredential(
        "ws_1", 1, "00" * SECRET_BYTES, ControlPlaneClock(lambda: NOW, lambda: NOW)
    )
    return RuntimeClient(stubs, credential, lease, shutdown, session, log), lease, session


@pytest.mark.parametrize(
    ("directive", "length_seconds", "remaining_seconds"),
    [
        # The margin is a fifth of the whole lease: 6 s.
        (Directive(lease_ms=30_000, lease_length_ms=30_000), 30, 24),
        (Directive(lease_ms=24_500, lease_length_ms=30_000), 30, 18.5),
        # An earlier version of the control plane does not send the length.
        (Directive(lease_ms=30_000), 30, 24),
    ],
)
async def test_a_reply_says_what_is_left_of_the_lease_and_how_long_it_is(
    directive: Directive, length_seconds: float, remaining_seconds: float
) -> None:
    runtime, lease, _ = client(directive)
    await runtime.heartbeat(lambda: ("", Phase.NONE))
    assert (lease.length_seconds, lease.remaining_seconds) == (length_seconds, remaining_seconds)
    assert lease.heartbeat_interval_seconds == length_seconds / 6


async def test_a_lease_counts_from_when_the_call_was_sent() -> None:
    now = NOW

    def take_a_second() -> None:
        nonlocal now
        now += 1

    directive = Directive(lease_ms=30_000, lease_length_ms=30_000)
    runtime, lease, _ = client(directive, lambda: now, take_a_second)
    await runtime.heartbeat(lambda: ("", Phase.NONE))
    assert lease.remaining_seconds == 23


async def test_the_intervals_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that started together must not send their heartbeats together."""
    runtime, lease, _ = client(Directive(lease_ms=30_000, lease_length_ms=30_000))
    lease.renew(NOW, 30, 30)
    factors, waits = iter([0.9, 1.1, 1.0]), []

    def uniform(low: float, high: float) -> float:
        assert (low, high) == JITTER
        return next(factors)

    def timeout(seconds: float) -> Any:
        waits.append(seconds)
        if len(waits) == 3:
            raise asyncio.CancelledError
        return expired(0)

    expired = asyncio.timeout
    monkeypatch.setattr("random.uniform", uniform)
    monkeypatch.setattr("asyncio.timeout", timeout)
    with pytest.raises(asyncio.CancelledError):
        await Heartbeat(partial(runtime.heartbeat, lambda: ("", Phase.NONE)), lease).run()
    assert waits == [4.5, 5.5, 5.0]
