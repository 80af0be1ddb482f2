"""A stack whose database fails over from a primary to its synchronous standby."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.replication import Replication, Server
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

WORKSPACES = 6
CALLERS = 3
# The time limit for a recovery after the promotion. A worker reconnects within 2 s, and then the
# edge calls it again.
RECOVER_SECONDS = 40.0
# The time limit for an answer. A worker waits for the database for at most 4.5 s; the callers would
# wait for 20 s.
ANSWER_SECONDS = 15.0
ANSWERED = ("accepted", "already_requested")


@pytest.fixture
def replication(tmp_path: Path) -> Iterator[Replication]:
    # Uses no subfolder: if the paths were longer, the sockets would be in /tmp, because the path of
    # a socket has at most 107 bytes.
    pair = Replication(tmp_path)
    try:
        pair.start()
        yield pair
    finally:
        pair.stop()


@pytest.fixture
def replicated_stack(replication: Replication, tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path / "state", DATABASE_URL=replication.url).started() as running:
        yield running


class Story:
    """A workspace whose task runs until the end of the test, and the answers to its callers."""

    def __init__(self, stack: Stack) -> None:
        self.workspace = Workspace(stack)
        self.gate = Gate(self.workspace)
        self.task_id = self.workspace.begin(self.gate.command, "echo never")
        self.agent = stack.agent_pid(self.workspace.id)
        self.answers: list[str] = []

    def cancel(self) -> str:
        """Makes one call and keeps its answer."""
        self.answers.append(faults.cancel(self.workspace, "grpc"))
        return self.answers[-1]

    @property
    def is_answered(self) -> bool:
        return any(answer in ANSWERED for answer in self.answers)


def test_no_accepted_cancellation_is_lost(
    replication: Replication, replicated_stack: Stack
) -> None:
    stack = replicated_stack
    stories = [Story(stack) for _ in range(WORKSPACES)]
    programs = {name: stack.pids(name) for name in ("serve", "fleet")}
    assert_nothing_is_accepted_without_the_standby(replication, stories[0])

    over = threading.Event()

    def call(mine: list[Story]) -> None:
        """Cancels the first task before the primary ends, and all tasks while it ends."""
        mine[0].cancel()
        barrier.wait(RECOVER_SECONDS)
        while not (over.is_set() or all(story.is_answered for story in mine)):
            for story in mine:
                story.cancel()
            # Pauses, as Retry-After requires.
            over.wait(0.1)

    barrier = threading.Barrier(CALLERS + 1)
    with ThreadPoolExecutor(CALLERS) as threads, ExitStack() as ending:
        # Ends the callers even if the test fails.
        ending.callback(over.set)
        calling = [threads.submit(call, stories[first::CALLERS]) for first in range(CALLERS)]
        barrier.wait(RECOVER_SECONDS)
        replication.primary.kill()
        began = time.monotonic()
        assert faults.cancel(stories[-1].workspace, "rest") == "unavailable"
        assert time.monotonic() - began < ANSWER_SECONDS
        use(stack, replication.standby)
        accepted = [story for story in stories if story.is_answered]
        assert accepted
        replication.promote()
        assert [faults.intent_of(each.workspace, each.task_id) for each in accepted] == [
            "whole"
        ] * len(accepted)
        for each in calling:
            each.result(RECOVER_SECONDS)

    assert {"unavailable"} <= {answer for story in stories for answer in story.answers}
    for story in stories:
        assert faults.intent_of(story.workspace, story.task_id) == "whole"
        story.gate.open()
        faults.await_terminal(story.workspace, story.task_id)
        faults.assert_story(story.workspace, story.task_id, status="cancelled", intent=True)
        assert stack.agent_pid(story.workspace.id) == story.agent
    assert programs == {name: stack.pids(name) for name in ("serve", "fleet")}
    assert_listeners_and_leader_are_back(stack, replication.standby, stories[0])
    assert_a_former_primary_is_not_used(replication, stack)


def use(stack: Stack, server: Server) -> None:
    """Makes the test read from this server from now on."""
    stack.ready["database_url"] = server.url


def assert_nothing_is_accepted_without_the_standby(replication: Replication, story: Story) -> None:
    """While the primary waits for its standby, the service does not accept the cancellation."""
    use(story.workspace.stack, replication.primary)
    with replication.standby.frozen():
        began = time.monotonic()
        assert story.cancel() == "unavailable"
        assert time.monotonic() - began < ANSWER_SECONDS
        assert faults.intent_of(story.workspace, story.task_id) == "absent"
    eventually(lambda: faults.intent_of(story.workspace, story.task_id) == "whole")
    assert story.cancel() == "already_requested"


def assert_listeners_and_leader_are_back(stack: Stack, server: Server, story: Story) -> None:
    listeners = "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^(LISTEN|SELECT 1$)'"
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
    eventually(lambda: server.value(locks) == 1)
    eventually(lambda: server.value(listeners) >= len(stack.worker_addresses()) + 2)
    faults.await_workers(stack)
    # Only a leader notices that the agent has ended.
    stack.kill(story.agent)
    faults.resume(story.workspace, after_outage=True)
    faults.assert_next_task_works(story.workspace, after_outage=True)


def assert_a_former_primary_is_not_used(replication: Replication, stack: Stack) -> None:
    """Nothing writes to the former primary, although it accepts writes and the URL names it first.

    The function closes every connection, so programs must open new ones.
    """
    former, current = replication.primary, replication.standby
    former.start(autovacuum="off")
    # The id that the next transaction that writes will get: it stays the same if nothing writes.
    next_transaction = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"
    expected = former.value(next_transaction)
    current.value(
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
        "WHERE application_name IN ('evershell', 'evershell calls')"
    )
    # Replaces a worker. The new worker has not seen the promotion, but must find the new primary.
    (first, *_) = stack.pids("serve")
    stack.kill(first)
    eventually(lambda: len(stack.pids("serve")) == 2 and first not in stack.pids("serve"))
    faults.await_workers(stack)
    story = Story(stack)
    for address in stack.worker_addresses():
        answer = stack.grpc(address=address).call("CancelTask", workspace_id=story.workspace.id)
        assert answer["outcome"] in ANSWERED
    story.gate.open()
    faults.await_terminal(story.workspace, story.task_id)
    faults.assert_story(story.workspace, story.task_id, status="cancelled", intent=True)
    assert former.value(next_transaction) == expected
