"""Workers that freeze or drain, each a process of its own behind a real edge."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import psutil
import pytest

from tests.edge.worker import Worker, worker
from tests.support.edge.answers import Answer, check
from tests.support.edge.cases import CANCEL
from tests.support.edge.fixtures import short_directory
from tests.support.edge.stub import RunningEdge, running_edge
from tests.support.waiting import eventually

SLOW = "/v1/workspaces/slow/task/cancel"
# Envoy checks a worker every second and waits two seconds for the answer. The rest is for a busy
# machine.
NOTICED_SECONDS = 5.0


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


def test_calls_at_a_frozen_worker_fail_soon(workers: list[Worker], pair: RunningEdge) -> None:
    """A call at a frozen worker fails as soon as the health check fails.

    Calls at the other worker are not affected, and it receives all new calls.
    """
    with ThreadPoolExecutor(2) as pool:
        slow = [
            pool.submit(httpx.post, pair.rest_url + SLOW, trust_env=False, timeout=60)
            for _ in range(2)
        ]
        eventually(lambda: all(calls_in_flight(pair, each) == 1 for each in workers))
        os.kill(workers[0].process.pid, signal.SIGSTOP)
        began = time.monotonic()
        eventually(lambda: psutil.Process(workers[0].process.pid).status() == psutil.STATUS_STOPPED)
        answers = [each.result() for each in slow]
    assert time.monotonic() - began < 15
    failed, succeeded = sorted(answers, key=lambda answer: answer.status_code, reverse=True)
    error = check(Answer(failed.status_code, failed.headers.multi_items(), failed.content))
    assert error is not None
    assert (error["code"], failed.headers["retry-after"]) == ("unavailable", "1")
    assert failed.elapsed.total_seconds() < NOTICED_SECONDS
    assert succeeded.status_code == 202
    eventually(lambda: "health_flags::/failed_active_hc" in pair.admin("/clusters"))
    assert [httpx.post(pair.rest_url + CANCEL, trust_env=False).status_code for _ in range(4)] == [
        202
    ] * 4


def test_a_draining_worker_finishes_its_calls(workers: list[Worker], pair: RunningEdge) -> None:
    with ThreadPoolExecutor(2) as pool:
        slow = [
            pool.submit(httpx.post, pair.rest_url + SLOW, trust_env=False, timeout=60)
            for _ in range(2)
        ]
        eventually(lambda: all(calls_in_flight(pair, each) == 1 for each in workers))
        workers[0].process.terminate()
        eventually(lambda: "health_flags::/failed_active_hc" in pair.admin("/clusters"))
        assert [
            httpx.post(pair.rest_url + CANCEL, trust_env=False).status_code for _ in range(4)
        ] == [202] * 4
        assert [each.result().status_code for each in slow] == [202, 202]
