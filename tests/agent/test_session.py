"""Which task is taken into hand, and when it is dropped; the lease's arithmetic."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

import pytest
import structlog
from evershell.agent.v1.agent_service_pb2 import Assignment, Cancellation
from evershell.agent.v1.runtime_service_pb2 import Directive

from server.agent.lease import Lease
from server.agent.loop import ActiveTask, RejectedError
from server.agent.session import Session, WrongTaskError
from server.agent.shutdown import ExitCode, Shutdown
from server.core.task import TaskStatus
from server.core.task_lifecycle import TaskEnded
from tests.support.waiting import settle


class Runs:
    """Stands in for the loop: every task runs until the test lets it end."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.tasks: dict[str, ActiveTask] = {}
        self.ends: dict[str, asyncio.Event] = {}
        self.shutdown = Shutdown()
        self.hurried = 0
        self.error: Exception | None = None
        self.session = Session(self.run, self.shutdown, self._hurry, structlog.get_logger())

    def _hurry(self) -> None:
        self.hurried += 1

    async def run(self, task: ActiveTask) -> TaskEnded | None:
        self.begun.append(task.id)
        self.tasks[task.id] = task
        if self.error is not None:
            raise self.error
        await self.ends.setdefault(task.id, asyncio.Event()).wait()
        return TaskEnded(status=TaskStatus.COMPLETED)

    async def end(self, task_id: str) -> None:
        self.ends.setdefault(task_id, asyncio.Event()).set()
        await settle()


def _names(task_id: str, force_at: int | None = None) -> Directive:
    task = Assignment(task_id=task_id, max_iterations=5)
    if force_at is not None:
        task.cancellation.force_at.seconds = force_at
    return Directive(task=task, lease_ms=1_000)


@pytest.fixture
async def runs() -> AsyncIterator[Runs]:
    runs = Runs()
    yield runs
    await runs.session.close()


async def test_a_task_is_begun_once_however_often_it_comes(runs: Runs) -> None:
    for _ in range(2):
        runs.session.start(Assignment(task_id="a"))
        runs.session.apply(_names("a"), runs.session.mark())
    await settle()
    sent_before_its_end = runs.session.mark()
    await runs.end("a")
    runs.session.start(Assignment(task_id="a"))
    runs.session.apply(_names("a"), sent_before_its_end)
    await settle()
    assert runs.begun == ["a"]
    assert runs.session.task_id == ""
    assert not runs.shutdown.is_begun


async def test_an_agent_whose_end_of_a_task_was_lost_ends(runs: Runs) -> None:
    runs.session.start(Assignment(task_id="a"))
    await settle()
    await runs.end("a")
    runs.session.apply(_names("a"), runs.session.mark())
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
async def test_whatever_ends_the_work_on_a_task_ends_the_agent(
    runs: Runs, error: Exception, code: ExitCode
) -> None:
    runs.error = error
    runs.session.start(Assignment(task_id="a"))
    await settle()
    assert runs.shutdown.code is code
    assert error.args[-1] in runs.shutdown.reason


async def test_an_agent_whose_log_fails_ends_rather_than_lose_its_task(runs: Runs) -> None:
    class FullDisk:
        def info(self, event: str, **facts: object) -> None:
            raise OSError(28, "No space left on device")

        error = info

    runs.session._log = cast(Any, FullDisk())
    runs.session.start(Assignment(task_id="a"))
    with suppress(OSError):
        await settle()
    assert runs.shutdown.code is ExitCode.CRASHED


async def test_only_a_reply_to_a_call_sent_later_drops_a_task(runs: Runs) -> None:
    before = runs.session.mark()
    runs.session.start(Assignment(task_id="a"))
    await settle()
    runs.session.apply(Directive(), before)
    runs.session.apply(_names("old"), before)
    await settle()
    assert runs.session.task_id == "a"
    runs.session.apply(Directive(), runs.session.mark())
    await settle()
    assert runs.session.task_id == ""
    assert runs.begun == ["a"]


async def test_another_task_replaces_the_one_in_hand(runs: Runs) -> None:
    runs.session.start(Assignment(task_id="a"))
    await settle()
    runs.session.apply(_names("b", force_at=5), runs.session.mark())
    await settle()
    assert runs.begun == ["a", "b"]
    assert runs.tasks["b"].cancel.is_requested


async def test_the_loop_reads_the_replies_to_its_own_commits_itself(runs: Runs) -> None:
    runs.session.start(Assignment(task_id="a"))
    await settle()
    runs.session.apply(_names("b"), runs.session.mark(), "a")
    await settle()
    assert runs.session.task_id == "a"
    await runs.end("a")
    assert runs.begun == ["a", "b"]


async def test_a_task_that_comes_while_another_works_is_refused(runs: Runs) -> None:
    runs.session.start(Assignment(task_id="a"))
    await settle()
    with pytest.raises(WrongTaskError):
        runs.session.start(Assignment(task_id="b"))


async def test_a_task_that_overtakes_the_acknowledgement_of_the_last_ones_end_is_kept(
    runs: Runs,
) -> None:
    runs.session.start(Assignment(task_id="a"))
    await settle()
    runs.tasks["a"].is_ending = True
    runs.session.start(Assignment(task_id="b"))
    assert runs.session.cancel("b", Cancellation())
    # A heartbeat's reply from between the two.
    runs.session.apply(Directive(), runs.session.mark())
    await settle()
    assert runs.begun == ["a", "b"]
    assert runs.tasks["b"].cancel.is_requested


async def test_a_cancel_is_remembered_for_a_task_that_has_not_come(runs: Runs) -> None:
    assert not runs.session.cancel("a", Cancellation())
    runs.session.start(Assignment(task_id="a"))
    runs.session.start(Assignment(task_id="a"))
    await settle()
    assert runs.tasks["a"].cancel.is_requested
    await runs.end("a")
    runs.session.start(Assignment(task_id="b"))
    await settle()
    assert not runs.tasks["b"].cancel.is_requested


async def test_the_earliest_force_wins_whoever_brings_it(runs: Runs) -> None:
    runs.session.start(Assignment(task_id="a"))
    await settle()
    for force_at in (900, 500, 700):
        runs.session.apply(_names("a", force_at=force_at), runs.session.mark())
    cancellation = Cancellation()
    cancellation.force_at.FromMilliseconds(400_500)
    assert runs.session.cancel("a", cancellation)
    assert runs.session.cancel("a", Cancellation())
    assert runs.tasks["a"].cancel.force_at == 400.5


async def test_a_thousand_other_cancels_do_not_take_the_flag_from_the_task_in_hand(
    runs: Runs,
) -> None:
    runs.session.start(Assignment(task_id="a"))
    await settle()
    for number in range(2_000):
        runs.session.cancel(f"other{number}", Cancellation())
    assert runs.session.cancel("a", Cancellation())
    assert runs.tasks["a"].cancel.is_requested


async def test_fenced_ends_the_agent_and_nothing_is_taken_any_more(runs: Runs) -> None:
    runs.session.apply(Directive(fenced=True), runs.session.mark())
    runs.session.start(Assignment(task_id="a"))
    await settle()
    assert (runs.shutdown.code, runs.begun) == (ExitCode.FENCED, [])


@pytest.mark.parametrize(
    ("length", "over_after"), [(30, 24), (8, 6), (5, 3), (3, 1.5), (1, 0.5), (0.2, 0.1)]
)
async def test_the_lease_ends_a_margin_before_the_database_thinks_so(
    length: float, over_after: float
) -> None:
    now = 100.0
    lease = Lease(lambda: now)
    assert lease.remaining_seconds is None
    now = 101.0
    # Sent a second ago.
    lease.renew(100.0, length)
    assert lease.remaining_seconds == pytest.approx(over_after - 1)
    # An older reply that comes late.
    lease.renew(50.0, length)
    assert lease.remaining_seconds == pytest.approx(over_after - 1)
    now = 100.0 + length
    async with asyncio.timeout(1):
        await lease.wait_over()


async def test_a_cancellation_of_a_task_it_does_not_have_has_it_ask_what_it_is_to_do(
    runs: Runs,
) -> None:
    assert runs.session.cancel("t1", Cancellation()) is False
    assert runs.hurried == 1
    # The database holds it for this agent's after all: its end is committed, with no iteration
    # begun.
    runs.session.apply(_names("t1"), runs.session.mark())
    await settle()
    assert runs.tasks["t1"].cancel.is_requested


async def test_a_late_cancellation_of_what_it_has_ended_is_nothing_new(runs: Runs) -> None:
    runs.session.start(Assignment(task_id="t1", max_iterations=5))
    await settle()
    await runs.end("t1")
    hurried = runs.hurried
    assert runs.session.cancel("t1", Cancellation()) is False
    assert runs.hurried == hurried
