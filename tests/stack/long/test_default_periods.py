"""Periods that no setting shortens: the heartbeats of a stream, and the grace of a stop.

The first heartbeat comes after 15 s. The test of the grace period, which takes 10 s, runs
meanwhile.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest

from tests.support.stack import Stack, Workspace, running, unique_seconds
from tests.support.waiting import eventually

# It distinguishes this process from every other sleep on the machine.
STUBBORN = unique_seconds()
# Until the heartbeat, and some time to spare.
HEARTBEAT_SECONDS = 60.0


@pytest.fixture(scope="module", autouse=True)
def quiet_stream(stack: Stack) -> Iterator[Future[Any]]:
    """The first message of a stream without events."""
    workspace = Workspace(stack)
    last = workspace.log()[-1]["seq"]

    def first_message() -> Any:
        (message,) = islice(workspace.rest.events(workspace.id, after=last), 1)
        return message

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(first_message)
    workspace.rest.post(f"{workspace.path}/stop")


def test_stopping_breaks_off_an_iteration_that_does_not_end_within_the_grace_period(
    workspace: Workspace,
) -> None:
    task_id = workspace.begin(f"sleep {STUBBORN}", "touch never")
    eventually(lambda: running(STUBBORN))
    began = time.monotonic()
    assert workspace.rest.post(f"{workspace.path}/stop")["status"] == "stopping"
    # A second request does not restart the grace period.
    assert workspace.rest.post(f"{workspace.path}/stop")["status"] == "stopping"
    end = workspace.await_end(task_id)
    assert (end["status"], end["forced"], end["iterations"]) == ("cancelled", True, 1)
    assert (end["cancel"]["reason"], end["work_stopped"]) == ("workspace stopped", "yes")
    # Not at once, and long before the time limit of a tool.
    assert 9.5 < time.monotonic() - began < 100
    assert workspace.await_status("stopped")["status_reason"] == "workspace stopped"
    assert running(STUBBORN) == []
    (iteration,) = [entry for entry in workspace.log() if entry["type"] == "iteration_completed"]
    assert iteration["tool_call"]["result"]["status"] == "interrupted"
    assert [entry["type"] for entry in workspace.log()][-2:] == [
        "task_completed",
        "workspace_stopped",
    ]


def test_a_stream_that_is_quiet_says_that_it_lives(quiet_stream: Future[Any]) -> None:
    # A comment.
    assert quiet_stream.result(HEARTBEAT_SECONDS) == {"heartbeat": {}}
