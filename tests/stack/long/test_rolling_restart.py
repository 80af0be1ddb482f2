"""SIGHUP restarts all programs under load, and no call fails."""

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.stack.long.canceller import LONG, SHORT, Canceller
from tests.stack.long.load import Caller, GrpcCaller, Load, RestCaller
from tests.support.metrics import scrape
from tests.support.programs import run
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

log = logging.getLogger(__name__)

ROUNDS = 2
ROUND_SECONDS = 60.0
CONTROL_PLANE = frozenset({("envoy_cluster_name", "control_plane")})
# How long each caller pauses between two calls.
PAUSE_SECONDS = 0.2


def programs(stack: Stack) -> set[int]:
    """Returns the processes that a restart replaces."""
    envoys = [
        child.pid for child in psutil.Process(stack.pid).children() if child.name() == "envoy"
    ]
    return {*stack.pids("serve"), *stack.pids("fleet"), *envoys}


def statuses(stack: Stack) -> dict[str, int]:
    """Maps each user agent to the status of its last call, from the edge's log.

    The log may have been rotated, and its last line may be incomplete.
    """
    logs = sorted((stack.state_dir / "logs").glob("envoy.log*"), reverse=True)
    lines = [line for log in logs for line in log.read_text().splitlines() if "load-" in line]
    calls = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return {
        call["user_agent"]: call["status"]
        for call in calls
        if (call["user_agent"] or "").startswith("load-")
    }


@pytest.mark.soak
def test_no_call_is_lost_while_everything_is_restarted(stack: Stack) -> None:
    load = Load(PAUSE_SECONDS)
    short: dict[str, Caller] = {
        "REST over HTTP/1.1": RestCaller(stack),
        "REST over HTTP/2": RestCaller(stack, token="submit_observe", http2=True),
        "REST, always a new connection": RestCaller(stack, keeps_connection=False),
        "gRPC": GrpcCaller(stack, token="submit_observe"),
        "gRPC, always a new connection": GrpcCaller(stack, keeps_connection=False),
    }
    long: dict[str, Caller] = {
        "REST, waits": RestCaller(stack),
        "gRPC, waits": GrpcCaller(stack, token="submit_observe"),
    }
    watchers: dict[str, Caller] = {
        "stream over HTTP/1.1": RestCaller(stack),
        "stream over HTTP/2": RestCaller(stack, http2=True),
        "stream over gRPC": GrpcCaller(stack),
        "quiet stream over HTTP/1.1": RestCaller(stack),
        "quiet stream over gRPC": GrpcCaller(stack),
    }
    done, before = stack.restarts(), programs(stack)
    with ThreadPoolExecutor() as pool:
        quiet, *workspaces = pool.map(lambda _: Workspace(stack), range(1 + len(short) + len(long)))
    cancellers = [
        Canceller(load, what, caller, workspaces.pop(), SHORT) for what, caller in short.items()
    ]
    cancellers += [
        Canceller(load, what, caller, workspaces.pop(), LONG, wait="10s")
        for what, caller in long.items()
    ]
    for what, caller in watchers.items():
        watched = quiet if what.startswith("quiet") else cancellers[0].workspace
        load.watch(what, caller, watched)
    eventually(lambda: all(canceller.ended for canceller in cancellers), ROUND_SECONDS)
    calls, began = load.outcomes.calls.total(), time.monotonic()

    for number in range(ROUNDS):
        # The second request comes during the first restart.
        assert run("restart", stack.state_dir).returncode == 0
        eventually(
            lambda: stack.output.read_text().count("rolling_restart_started") == done + number + 1,
            ROUND_SECONDS,
        )
    eventually(lambda: stack.restarts() == done + ROUNDS, ROUND_SECONDS)

    calls, seconds = load.outcomes.calls.total() - calls, time.monotonic() - began
    load.stop()
    text = "%d calls within %d restarts of %.1f s; in all %s"
    log.info(text, calls, ROUNDS, seconds / ROUNDS, load.outcomes)
    assert load.outcomes.failures == [], "\n".join(load.outcomes.failures)
    assert len(programs(stack)) == len(before)
    assert not programs(stack) & before
    # The new edge serves its metrics. Lower ports serve the metrics of workers and a controller.
    healthy = ("envoy_cluster_membership_healthy", CONTROL_PLANE)
    assert scrape(stack, len(stack.pids("serve")) + 1)[healthy] == 2
    for canceller in cancellers:
        assert canceller.ended > 1
        canceller.assert_cancelled()
    # The edge buffers its access log.
    unread = set(load.outcomes.unread)
    eventually(lambda: unread <= statuses(stack).keys())
    assert {
        name: status
        for name, status in statuses(stack).items()
        if name in unread and status not in (200, 202)
    } == {}
