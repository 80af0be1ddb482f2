"""Workers that freeze or drain, each in its own process behind a real edge."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack

import httpx
import psutil
import pytest

from tests.support.edge.answers import Answer, check
from tests.support.edge.cases import CANCEL
from tests.support.edge.fixtures import short_directory
from tests.support.edge.running_edge import RunningEdge, running_edge
from tests.support.waiting import eventually
from tests.wire.edge.worker import Worker, worker

# A worker answers this call only after `Worker.release`.
WAITS = "/v1/workspaces/waits/task/cancel"
LIMIT_SECONDS = 60.0


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    with ExitStack() as started:
        yield [started.enter_context(worker()) for _ in range(2)]


@pytest.fixture
def pair(workers: list[Worker], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEdge]:
    """An edge in front of two workers, each in its own process."""
    with running_edge(
        short_directory(tmp_path_factory), *(each.address for each in workers)
    ) as running:
        yield running


def calls_in_flight(edge: RunningEdge, each: Worker) -> int:
    """How many calls the edge has in flight at a worker."""
    line = next(
        line
        for line in edge.admin("/clusters").splitlines()
        if f"control_plane::{each.address}::rq_active::" in line
    )
    return int(line.rpartition("::")[2])


def one_call_at_each(
    pool: ThreadPoolExecutor, workers: list[Worker], edge: RunningEdge
) -> "list[Future[httpx.Response]]":
    """Calls that wait until their worker is released."""
    calls = [
        pool.submit(httpx.post, edge.rest_url + WAITS, trust_env=False, timeout=LIMIT_SECONDS)
        for _ in workers
    ]
    eventually(lambda: all(calls_in_flight(edge, each) == 1 for each in workers))
    return calls


def test_calls_at_a_frozen_worker_fail_soon(workers: list[Worker], pair: RunningEdge) -> None:
    """A call at a frozen worker fails as soon as the health check fails.

    Calls at the other worker are not affected, and it receives all new calls.
    """
    with ThreadPoolExecutor(2) as pool:
        calls = one_call_at_each(pool, workers, pair)
        os.kill(workers[0].process.pid, signal.SIGSTOP)
        eventually(lambda: psutil.Process(workers[0].process.pid).status() == psutil.STATUS_STOPPED)
        answered, waiting = wait(calls, LIMIT_SECONDS, FIRST_COMPLETED)
        workers[1].release()
        (failed,), (succeeded,) = ([each.result() for each in some] for some in (answered, waiting))
    error = check(Answer(failed.status_code, failed.headers.multi_items(), failed.content))
    assert error is not None
    assert (error["code"], failed.headers["x-should-retry"]) == ("unavailable", "false")
    assert "retry-after" not in failed.headers
    assert succeeded.status_code == 202
    eventually(lambda: "health_flags::/failed_active_hc" in pair.admin("/clusters"))
    assert [httpx.post(pair.rest_url + CANCEL, trust_env=False).status_code for _ in range(4)] == [
        202
    ] * 4


def test_a_draining_worker_finishes_its_calls(workers: list[Worker], pair: RunningEdge) -> None:
    with ThreadPoolExecutor(2) as pool:
        calls = one_call_at_each(pool, workers, pair)
        workers[0].process.terminate()
        eventually(lambda: "health_flags::/failed_active_hc" in pair.admin("/clusters"))
        assert [
            httpx.post(pair.rest_url + CANCEL, trust_env=False).status_code for _ in range(4)
        ] == [202] * 4
        for each in workers:
            each.release()
        assert [each.result().status_code for each in calls] == [202, 202]
