"""The reported usage of an open iteration counts once, even if the iteration is lost."""

from dataclasses import replace
from typing import Any

import pytest

from evershell.core import task_lifecycle
from evershell.core.agent_rules import OPEN_ITERATION_BYTES, BreachError, check_events
from evershell.core.change import Change, Locked
from evershell.core.errors import Failure
from evershell.core.prices import PriceList, Prices
from evershell.core.task import (
    MAX_CALL_TOKENS,
    MAX_TOOL_CALLS,
    IterationReported,
    Phase,
    Task,
    TaskEnded,
    TaskLimits,
    TaskStatus,
    Usage,
)
from tests.support.world import intent, iteration, locked_busy
from tests.unit.core.committing import LATER, after, types

MODEL = "priced"
# Each token costs one nano-dollar.
PRICES = PriceList(
    own={MODEL: Prices(dict.fromkeys(("input_tokens", "output_tokens"), ((0, 1000),)))}
)
CALL = {"id": "call_1", "name": "shell", "arguments": "{}"}


def report(number: int = 1, calls: int = 1, **model_call: Any) -> IterationReported:
    """Returns a report with the same tokens as `iteration`."""
    reply = {"model": MODEL, "input_tokens": "2", "output_tokens": "3", **model_call}
    return IterationReported(number, {"model_call": reply, "started_calls": [CALL] * calls})


def commit(locked: Locked, *events: Any) -> Change:
    assert locked.task is not None
    return task_lifecycle.commit(locked, 1, locked.task.id, events, LATER, PRICES)


def busy(**changes: Any) -> Locked:
    locked = locked_busy()
    assert locked.task is not None
    return replace(locked, task=replace(locked.task, **changes))


def task_of(change: Change) -> Task:
    assert change.task is not None
    return change.task


def lose(locked: Locked) -> Task:
    return task_of(task_lifecycle.end_open_task(locked, "it died", LATER, work_stopped=True))


ONE = Usage(input_tokens=2, output_tokens=3, model_calls=1, tool_calls=1, cost_nanos=5)


def test_an_iteration_that_is_reported_and_lost_counts() -> None:
    change = commit(busy(), report())
    assert (types(change), task_of(change).usage, task_of(change).used) == ([], Usage(), ONE)
    ended = lose(after(change))
    assert (ended.status, ended.iterations, ended.iteration_lost) == (TaskStatus.FAILED, 0, True)
    assert (ended.usage, ended.used, ended.open_iteration) == (ONE, ONE, None)


def test_an_iteration_that_is_committed_counts_once() -> None:
    change = commit(after(commit(busy(), report(), report())), iteration(1, model=MODEL))
    assert (task_of(change).used, task_of(change).open_iteration) == (ONE, None)
    ended = task_of(commit(after(change), TaskEnded(status=TaskStatus.COMPLETED)))
    assert (ended.usage, ended.iteration_lost) == (ONE, False)
    # The agent is lost between two iterations, so no iteration is lost.
    assert not lose(after(change)).iteration_lost


def test_usage_never_shrinks() -> None:
    reported = after(commit(busy(), report(calls=2, input_tokens="9"), report()))
    more = Usage(input_tokens=9, output_tokens=3, model_calls=1, tool_calls=2, cost_nanos=12)
    assert reported.task is not None and reported.task.used == more
    assert task_of(commit(reported, iteration(1, model=MODEL))).used == more


def test_a_late_report_replaces_no_newer_one() -> None:
    newer = after(commit(busy(), report(calls=2, input_tokens="9")))
    assert newer.task is not None and newer.task.open_iteration is not None
    late = after(commit(newer, report(calls=1, model="no price")))
    assert late.task == newer.task
    again = task_of(commit(late, report(calls=2, input_tokens="10"))).open_iteration
    assert again is not None and again.usage.input_tokens == 10


def test_a_cost_that_a_commit_or_a_later_report_knows_replaces_an_unknown_one() -> None:
    unknown = after(commit(busy(), report(model="no price")))
    assert unknown.task is not None and unknown.task.used == replace(ONE, cost_nanos=None)
    assert task_of(commit(unknown, report())).used == ONE
    assert task_of(commit(unknown, iteration(1, model=MODEL))).used == ONE
    # If the cost of a committed iteration is unknown, it stays unknown.
    known = after(commit(busy(), report()))
    committed = after(commit(known, iteration(1, model="no price")))
    assert committed.task is not None and committed.task.used.cost_nanos is None
    assert task_of(commit(committed, iteration(2, model=MODEL))).used.cost_nanos is None


def test_a_repeat_and_an_iteration_that_is_committed_have_no_effect() -> None:
    open_task = after(commit(busy(), report()))
    assert commit(open_task, report()) == Change(open_task.workspace, open_task.task)
    committed = after(commit(open_task, iteration(1)))
    assert commit(committed, report()) == Change(committed.workspace, committed.task)
    ended = commit(committed, TaskEnded(status=TaskStatus.COMPLETED))
    late = replace(after(ended), task=ended.task)
    assert commit(late, report(2)).task == ended.task


def test_many_reports_keep_one_iteration() -> None:
    locked = busy()
    for count in range(1, MAX_TOOL_CALLS + 1):
        locked = after(commit(locked, report(calls=count)))
    assert locked.task is not None and locked.task.open_iteration is not None
    assert locked.task.used == replace(ONE, tool_calls=MAX_TOOL_CALLS)
    assert len(locked.task.open_iteration.started_calls) == MAX_TOOL_CALLS


def test_only_the_next_iteration_of_a_running_task_is_open() -> None:
    with pytest.raises(Failure, match="2 cannot follow"):
        commit(busy(), report(2))
    with pytest.raises(BreachError, match="before the start"):
        commit(locked_busy(TaskStatus.DELIVERED), report())
    with pytest.raises(BreachError, match="limit of 1 iterations"):
        commit(busy(max_iterations=1, iterations=1), report(2))


@pytest.mark.parametrize(
    "broken",
    [
        report(0),
        report(calls=MAX_TOOL_CALLS + 1),
        report(input_tokens=str(MAX_CALL_TOKENS + 1)),
        report(output_tokens="-1"),
        IterationReported(1, {"started_calls": []}),
        replace(report(), size_bytes=OPEN_ITERATION_BYTES + 1),
    ],
)
def test_a_report_has_the_bounds_of_an_iteration(broken: IterationReported) -> None:
    with pytest.raises(BreachError):
        check_events([broken])
    check_events([replace(report(calls=MAX_TOOL_CALLS), size_bytes=OPEN_ITERATION_BYTES)])


@pytest.mark.parametrize(
    "limits",
    [
        TaskLimits(max_total_tokens=5, force_after_seconds=1),
        TaskLimits(max_cost_nanos=5, force_after_seconds=1),
    ],
)
def test_a_limit_is_reached_by_an_iteration_that_runs(limits: TaskLimits) -> None:
    change = commit(busy(limits=limits), report())
    cancel = task_of(change).cancel
    assert types(change) == ["task_cancel_requested"]
    assert cancel is not None and "reached" in cancel.reason and cancel.force_at is not None


def test_a_limit_is_approached_once() -> None:
    change = commit(busy(limits=TaskLimits(max_total_tokens=6)), report())
    assert types(change) == ["task_limit_approached"]
    assert types(commit(after(change), iteration(1))) == ["iteration_completed"]


def test_an_end_of_the_agent_without_the_iteration_that_it_reported_has_lost_it() -> None:
    """A tool has raised TaskFailed after the report."""
    failed = TaskEnded(status=TaskStatus.FAILED, reason="the disk is full")
    ended = task_of(commit(after(commit(busy(), report())), failed))
    assert (ended.usage, ended.iteration_lost) == (ONE, True)


@pytest.mark.parametrize(("phase", "is_lost"), [(Phase.NONE, False), (Phase.MODEL_CALL, True)])
def test_without_a_report_the_phase_says_whether_an_iteration_was_lost(
    phase: Phase, is_lost: bool
) -> None:
    change = task_lifecycle.end_open_task(busy(phase=phase), "it died", LATER, work_stopped=True)
    assert task_of(change).iteration_lost is is_lost
    assert change.events[-1].payload["iteration_lost"] is is_lost
    cancelled = Locked(locked_busy().workspace, replace(task_of(change), cancel=intent()))
    assert cancelled.task is not None and cancelled.task.usage == Usage()
