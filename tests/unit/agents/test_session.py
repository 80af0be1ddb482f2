"""When an agent's session starts, replaces or drops a task, and when an agent's lease is over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

import pytest
import structlog
from evershell.agent.v1.agent_service_pb2 import Assignment, Cancellation
from evershell.agent.v1.runtime_service_pb2 import Directive

from evershell.agents.active_task import ActiveTask
from evershell.agents.lease import Lease
from evershell.agents.loop import RejectedError
from evershell.agents.session import Session
from evershell.agents.shutdown import ExitCode, Shutdown
from evershell.core.task import TaskEnded, TaskStatus
from tests.support.waiting import settle


class Runs:
    """Stands in for the agent's loop: each task runs until the test ends it."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.tasks: dict[str, ActiveTask] = {}
        self.ends: dict[str, asyncio.Event] = {}
        self.shutdown = Shutdown()
        self.early_beats = 0
        self.error: Exception | None = None
        self.session = Session(
            self.run, self.shutdown, self._beat_now, structlog.get_logger(), lambda: 100.0
        )

    def _beat_now(self) -> None:
        self.early_beats += 1

    async def run(self, task: ActiveTask) -> TaskEnded | None:
        self.started.append(task.id)
        self.tasks[task.id] = task
        if self.error is not None:
            raise self.error
        await self.ends.setdefault(task.id, asyncio.Event()).wait()
        return TaskEnded(status=TaskStatus.COMPLETED)

    async def end(self, task_id: str) -> None:
        self.ends.setdefault(task_id, asyncio.Event()).set()
        await settle()


def _directive(task_id: str, force_after: int | None = None) -> Directive:
    task = Assignment(task_id=task_id, max_iterations=5)
    if force_after is not None:
        task.cancellation.force_after_ms = force_after * 1000
    return Directive(task=task, lease_ms=1_000)


@pytest.fixture
async def runs() -> AsyncIterator[Runs]:
    runs = Runs()
    yield runs
    await runs.session.close()


async def test_a_task_starts_once_however_often_it_is_named(runs: Runs) -> None:
    for _ in range(2):
        runs.session.start(Assignment(task_id="a"))
        runs.session.apply(_directive("a"), runs.session.mark())
    await settle()
    sent_before_its_end = runs.session.mark()
    await runs.end("a")
    runs.session.start(Assignment(task_id="a"))
    runs.session.apply(_directive("a"), sent_before_its_end)
    await settle()
    assert runs.started == ["a"]
    assert runs.session.task_id == ""
    assert not runs.shutdown.is_begun


async def test_an_agent_whose_end_of_a_task_was_not_committed_exits(runs: Runs) -> None:
    runs.session.start(Assignment(task_id="a"))
    await settle()
    await runs.end("a")
    runs.session.apply(_directive("a"), runs.session.mark())
    assert (runs.shutdown.code, runs.shutdown.reason) == (
        ExitCode.CRASHED,
        "the end of task a was not committed",
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(28, "No space left on device"), ExitCode.CRASHED),
        (RejectedError("too large"), ExitCode.REJECTED),
    ],
)
async def test_an_exception_of_the_loop_ends_the_agent(
    runs: Runs, error: Exception, code: ExitCode
) -> None:
    runs.error = error
    runs.session.start(Assignment(task_id="a"))
    await settle()
    assert runs.shutdown.code is code
    assert error.args[-1] in runs.shutdown.reason


async def test_an_agent_whose_log_fails_exits(runs: Runs) -> None:
    class FullDisk:
        def info(self, event: str, **facts: object) -> None:
            raise OSError(28, "No space left on device")

        error = info

    runs.session._log = cast(Any, FullDisk())
    runs.session.start(Assignment(task_id="a"))
    with suppress(OSError):
        await settle()
    assert runs.shutdown.code is ExitCode.CRASHED


async def test_only_a_reply_to_a_later_call_drops_a_task(runs: Runs) -> None:
    before = runs.session.mark()
    runs.session.start(Assignment(task_id="a"))
    await settle()
    runs.session.apply(Directive(), before)
    runs.session.apply(_directive("old"), before)
    await settle()
    assert runs.session.task_id == "a"
    runs.session.apply(Directive(), runs.session.mark())
    await settle()
    assert runs.session.task_id == ""
    assert runs.started == ["a"]


async def test_a_reply_that_names_another_task_replaces_the_task(runs: Runs) -> None:
    runs.session.start(Assignment(task_id="a"))
    await settle()
    runs.session.apply(_directive("b", force_after=5), runs.session.mark())
    await settle()
    assert runs.started == ["a", "b"]
    assert runs.tasks["b"].cancel.is_requested


async def test_the_reply_to_a_commit_of_the_loop_does_not_replace_its_task(runs: Runs) -> None:
    runs.session.start(Assignment(task_id="a"))
    await settle()
    runs.session.apply(_directive("b"), runs.session.mark(), "a")
    await settle()
    assert runs.session.task_id == "a"
    await runs.end("a")
    assert runs.started == ["a", "b"]


async def test_a_second_task_is_refused_while_one_runs(runs: Runs) -> None:
    runs.session.start(Assignment(task_id="a"))
    await settle()
    assert not runs.session.start(Assignment(task_id="b"))


async def test_a_task_that_arrives_before_the_acknowledgement_of_an_end_is_kept(
    runs: Runs,
) -> None:
    runs.session.start(Assignment(task_id="a"))
    await settle()
    runs.tasks["a"].is_ending = True
    runs.session.start(Assignment(task_id="b"))
    assert runs.session.cancel("b", Cancellation())
    # This reply names no task, like a reply that was written before task b was assigned.
    runs.session.apply(Directive(), runs.session.mark())
    await settle()
    assert runs.started == ["a", "b"]
    assert runs.tasks["b"].cancel.is_requested


async def test_a_cancellation_is_remembered_until_its_task_arrives(runs: Runs) -> None:
    assert not runs.session.cancel("a", Cancellation())
    runs.session.start(Assignment(task_id="a"))
    runs.session.start(Assignment(task_id="a"))
    await settle()
    assert runs.tasks["a"].cancel.is_requested
    await runs.end("a")
    runs.session.start(Assignment(task_id="b"))
    await settle()
    assert not runs.tasks["b"].cancel.is_requested


async def test_the_earliest_force_deadline_applies(runs: Runs) -> None:
    runs.session.start(Assignment(task_id="a"))
    await settle()
    for force_after in (900, 500, 700):
        runs.session.apply(_directive("a", force_after=force_after), runs.session.mark())
    assert runs.session.cancel("a", Cancellation(force_after_ms=400_500))
    assert runs.session.cancel("a", Cancellation())
    assert runs.tasks["a"].cancel.force_at == 500.5


async def test_many_other_cancellations_do_not_affect_the_running_task(
    runs: Runs,
) -> None:
    runs.session.start(Assignment(task_id="a"))
    await settle()
    for number in range(2_000):
        runs.session.cancel(f"other{number}", Cancellation())
    assert runs.session.cancel("a", Cancellation())
    assert runs.tasks["a"].cancel.is_requested


async def test_a_fenced_agent_exits_and_starts_no_task(runs: Runs) -> None:
    runs.session.apply(Directive(fenced=True), runs.session.mark())
    runs.session.start(Assignment(task_id="a"))
    await settle()
    assert (runs.shutdown.code, runs.started) == (ExitCode.FENCED, [])


@pytest.mark.parametrize(
    ("length", "over_after"), [(30, 24), (8, 6), (5, 3), (3, 1.5), (1, 0.5), (0.2, 0.1)]
)
async def test_the_lease_ends_a_margin_before_it_ends_in_the_database(
    length: float, over_after: float
) -> None:
    now = 100.0
    lease = Lease(lambda: now)
    assert lease.remaining_seconds is None
    now = 101.0
    # The reply is to a call that was sent a second ago.
    lease.renew(100.0, length, length)
    assert lease.remaining_seconds == pytest.approx(over_after - 1)
    # The reply is to an older call, and arrives late.
    lease.renew(50.0, length, length)
    assert lease.remaining_seconds == pytest.approx(over_after - 1)
    now = 100.001 + over_after
    async with asyncio.timeout(10):
        await lease.wait_over()


async def test_a_cancellation_of_an_unknown_task_sends_a_heartbeat_at_once(
    runs: Runs,
) -> None:
    assert runs.session.cancel("t1", Cancellation()) is False
    assert runs.early_beats == 1
    # The reply has the task, so the agent starts it, with the cancellation.
    runs.session.apply(_directive("t1"), runs.session.mark())
    await settle()
    assert runs.tasks["t1"].cancel.is_requested


async def test_a_late_cancellation_of_an_ended_task_sends_no_heartbeat(runs: Runs) -> None:
    runs.session.start(Assignment(task_id="t1", max_iterations=5))
    await settle()
    await runs.end("t1")
    early_beats = runs.early_beats
    assert runs.session.cancel("t1", Cancellation()) is False
    assert runs.early_beats == early_beats
