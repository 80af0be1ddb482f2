"""Which workers Envoy calls, by their health checks."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from grpc_health.v1 import health, health_pb2

from tests.support.edge.fixtures import short_directory
from tests.support.edge.running_edge import RunningEdge, running_edge
from tests.support.edge.stub import Stub, serving
from tests.support.waiting import eventually

Health = health_pb2.HealthCheckResponse
CALLS = 6
# The time limit for a change of health. A health check that is not answered fails after 5 s.
LIMIT_SECONDS = 60.0


class SlowHealth(health.aio.HealthServicer):  # type: ignore[misc] # the package has no types
    """Does not answer while `is_silent`, like an event loop that is far behind."""

    is_silent = False

    async def Check(self, request: Any, context: Any) -> Any:
        while self.is_silent:
            await asyncio.sleep(0.01)
        return await super().Check(request, context)


class Pair:
    """An edge in front of two workers."""

    def __init__(self, edge: RunningEdge, workers: dict[str, Stub]) -> None:
        self.edge = edge
        self.addresses, self.stubs = list(workers), list(workers.values())

    def await_health(self, worker: int, flag: str) -> None:
        line = f"control_plane::{self.addresses[worker]}::health_flags::{flag}"
        eventually(lambda: line in self.edge.admin("/clusters"), LIMIT_SECONDS)

    def called(self) -> set[int]:
        """Makes several calls, which all succeed. Returns which workers answered them."""
        before = [len(stub.seen) for stub in self.stubs]
        for _ in range(CALLS):
            url = f"{self.edge.rest_url}/v1/workspaces/ws_1"
            assert httpx.get(url, trust_env=False).status_code == 200
        return {index for index, stub in enumerate(self.stubs) if len(stub.seen) > before[index]}


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with ExitStack() as started:
        workers = {}
        for _ in range(2):
            stub = Stub()
            stub.health = SlowHealth()
            workers[started.enter_context(serving(stub))] = stub
        edge = started.enter_context(running_edge(short_directory(tmp_path_factory), *workers))
        running = Pair(edge, workers)
        for worker in (0, 1):
            running.await_health(worker, "healthy")
        yield running


def test_calls_follow_the_last_health_check(pair: Pair) -> None:
    """Each change follows the previous one within a second."""
    for _ in range(3):
        assert pair.called() == {0, 1}
        pair.stubs[0].set_serving(Health.NOT_SERVING)
        pair.await_health(0, "/failed_active_hc")
        assert pair.called() == {1}
        pair.stubs[0].set_serving(Health.SERVING)
        pair.await_health(0, "healthy")


def test_workers_that_are_slow_are_called_if_no_other_one_is_healthy(pair: Pair) -> None:
    """A worker that does not answer its health checks still answers calls."""
    first, second = (stub.health for stub in pair.stubs)
    first.is_silent = True
    pair.await_health(0, "/failed_active_hc")
    assert pair.called() == {1}
    second.is_silent = True
    pair.await_health(1, "/failed_active_hc")
    assert pair.called() == {0, 1}
    first.is_silent = False
    pair.await_health(0, "healthy")
    assert pair.called() == {0}
    second.is_silent = False
