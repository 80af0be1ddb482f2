"""When a task has exceeded its bounds, with and without an outage of the control plane."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from evershell.agents.lease import MAX_BACKOFF_SECONDS
from evershell.agents.runtime_client import FORCE_BACKOFF_SECONDS, MAX_ATTEMPT_SECONDS
from evershell.core.bounds import (
    CANCEL_MARGIN,
    FORCE_MARGIN,
    FORCE_RECOVERY_MARGIN,
    RECOVERY_MARGIN,
    Bounds,
)
from evershell.core.task import Task
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.support.world import NOW, World

BOUNDS = Bounds(model_timeout_seconds=5, tool_timeout_seconds=10, lease_seconds=30)
LEASE, MOMENT = timedelta(seconds=30), timedelta(milliseconds=1)
LONG_AGO = NOW - timedelta(hours=1)

# A workspace, its task, the time at which a bound ends, and how much time an agent gets after an
# outage.
Case = tuple[Workspace, Task | None, datetime, timedelta]


async def forced(world: World) -> Case:
    busy, _ = await world.add_busy()
    task = (await world.cancel(busy.id, force_after_seconds=1)).task
    return busy, task, NOW + timedelta(seconds=1) + FORCE_MARGIN, FORCE_RECOVERY_MARGIN


async def limited_late(world: World) -> Case:
    """The limit was reached while no controller was running."""
    busy, _ = await world.add_busy()
    task = (await world.cancel(busy.id, force_after_seconds=1)).task
    assert task is not None and task.cancel is not None
    late = replace(task.cancel, force_at=NOW - timedelta(minutes=1))
    return busy, replace(task, cancel=late), NOW + FORCE_MARGIN, FORCE_RECOVERY_MARGIN


async def cancelled(world: World) -> Case:
    busy, _ = await world.add_busy()
    task = (await world.cancel(busy.id)).task
    return busy, task, NOW + timedelta(seconds=15) + CANCEL_MARGIN, RECOVERY_MARGIN


async def unnamed(world: World) -> Case:
    busy, task = await world.add_busy()
    return replace(busy, task_unnamed_since=NOW), task, NOW + LEASE, RECOVERY_MARGIN


async def starting(world: World) -> Case:
    added = await world.add(WorkspaceStatus.PROVISIONING)
    return added, None, NOW + timedelta(seconds=BOUNDS.start_seconds), RECOVERY_MARGIN


@pytest.mark.parametrize("case", [forced, limited_late, cancelled, unnamed, starting])
async def test_a_bound_waits_for_the_control_plane_for_a_lease_at_most(
    world: World, case: object
) -> None:
    workspace, task, bound, recovery = await case(world)  # type: ignore[operator]

    def is_over(now: datetime, last_outage_at: datetime) -> bool:
        return BOUNDS.violation(workspace, task, now, last_outage_at) is not None

    assert not is_over(bound, LONG_AGO)
    assert is_over(bound + MOMENT, LONG_AGO)
    # An outage has ended exactly at the bound.
    assert not is_over(bound + recovery, bound)
    assert is_over(bound + recovery + MOMENT, bound)
    # An outage that ended long enough before the bound has no effect.
    assert is_over(bound + MOMENT, bound - recovery)
    # The outage has not ended.
    assert not is_over(bound + LEASE, bound + LEASE)
    assert is_over(bound + LEASE + MOMENT, bound + LEASE + MOMENT)


@pytest.mark.parametrize(
    ("silences", "are_answering"),
    [
        ([0.0], True),
        ([1.0, 1.2, 0.2], True),
        ([0.1, 1.3], False),
        ([29.0], False),
        # After such a long silence, no agent is still waiting for the worker.
        ([0.1, 31.0], True),
        # All workers have ended.
        ([], False),
    ],
)
def test_workers_answer_if_they_give_signs_of_life(
    silences: Sequence[float], are_answering: bool
) -> None:
    assert BOUNDS.are_answering(silences) is are_answering


def test_an_agent_has_time_to_repeat_a_call_after_an_outage() -> None:
    """An outage may last up to one second longer than the controller knows."""
    assert RECOVERY_MARGIN.total_seconds() >= 1 + MAX_BACKOFF_SECONDS + MAX_ATTEMPT_SECONDS
    assert FORCE_RECOVERY_MARGIN.total_seconds() >= 1 + FORCE_BACKOFF_SECONDS + MAX_ATTEMPT_SECONDS
