"""The controller and live agents that let a deadline pass: it ends their pods, and only then."""

from collections.abc import Sequence
from datetime import timedelta

import pytest

from evershell.core import workspace_lifecycle
from evershell.core.bounds import CANCEL_MARGIN, FORCE_MARGIN, RECOVERY_MARGIN
from evershell.core.errors import UnavailableError
from evershell.core.task import Phase, Task, TaskStatus
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.support.fleet import BOUNDS, Fleet
from tests.support.waiting import settle
from tests.support.world import NOW


async def test_an_overdue_force_deadline_ends_the_pod_of_a_live_agent(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy()
    await fleet.world.cancel(busy.id, force_after_seconds=1)
    fleet.world.clock.now = NOW + timedelta(seconds=1) + FORCE_MARGIN
    await fleet.scan()
    assert fleet.pods.calls == []
    fleet.world.clock.advance(0.1)
    await fleet.scan()
    ended, failed = (
        await fleet.world.task(busy.id, running.id),
        await fleet.world.workspace(busy.id),
    )
    assert (ended.status, ended.forced, ended.reason) == (
        TaskStatus.CANCELLED,
        True,
        "its agent did not interrupt the task in time",
    )
    assert (failed.status, fleet.pods.calls) == (WorkspaceStatus.FAILED, ["end 0"])


async def test_after_an_outage_an_agent_has_time_to_commit(fleet: Fleet) -> None:
    busy, _ = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.now = NOW + timedelta(seconds=7)
    fleet.answering_since = fleet.world.clock.now - RECOVERY_MARGIN
    await fleet.scan()
    assert fleet.pods.calls == []
    fleet.world.clock.advance(0.1)
    await fleet.scan()
    assert fleet.pods.calls == ["end 0"]


async def test_a_failed_scan_counts_as_an_outage(fleet: Fleet) -> None:
    busy, _ = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.now = NOW + timedelta(seconds=7)
    list_cancellations = fleet.world.store.list_cancellations

    async def fail_once() -> Sequence[tuple[Workspace, Task]]:
        fleet.world.store.list_cancellations = list_cancellations  # type: ignore[method-assign]
        raise UnavailableError("frozen")

    fleet.world.store.list_cancellations = fail_once  # type: ignore[method-assign]
    async with fleet.running():
        fleet.changes.queue.put_nowait(set())
        await settle()
    assert fleet.pods.calls == []


async def test_repeated_outages_postpone_a_deadline_by_one_lease_at_most(fleet: Fleet) -> None:
    busy, _ = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.now = NOW + FORCE_MARGIN + timedelta(seconds=BOUNDS.lease_seconds + 0.1)
    fleet.answering_since = fleet.world.clock.now
    await fleet.scan()
    assert fleet.pods.calls == ["end 0"]


async def test_a_cancelled_task_that_exceeds_an_iteration_ends_with_its_pod(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id)
    limits = timedelta(seconds=BOUNDS.model_timeout_seconds + BOUNDS.tool_timeout_seconds)
    fleet.world.clock.now = NOW + limits + CANCEL_MARGIN
    await fleet.scan()
    assert fleet.pods.calls == []
    fleet.world.clock.advance(0.1)
    await fleet.scan()
    ended = await fleet.world.task(busy.id, running.id)
    assert (ended.status, ended.forced) == (TaskStatus.CANCELLED, False)
    assert (
        ended.reason == "its agent did not end the cancelled task within the limits of an iteration"
    )


@pytest.mark.parametrize(
    ("cancelled", "status"), [(False, TaskStatus.FAILED), (True, TaskStatus.CANCELLED)]
)
async def test_a_task_that_its_heartbeats_do_not_name_ends_with_its_pod(
    fleet: Fleet, cancelled: bool, status: TaskStatus
) -> None:
    busy, running = await fleet.add_busy(cancelled=cancelled)

    async def beat(task_id: str) -> None:
        await fleet.world.change(
            busy.id,
            lambda locked: workspace_lifecycle.heartbeat(
                locked, 1, task_id, Phase.NONE, 60, fleet.world.clock()
            ),
        )

    await beat("")
    fleet.world.clock.advance(BOUNDS.lease_seconds - 1)
    await beat(running.id)
    await beat("task_other")
    fleet.world.clock.advance(BOUNDS.lease_seconds)
    await beat("")
    await fleet.scan()
    assert fleet.pods.calls == []
    fleet.world.clock.advance(0.1)
    await fleet.scan()
    ended, failed = (
        await fleet.world.task(busy.id, running.id),
        await fleet.world.workspace(busy.id),
    )
    assert (ended.status, ended.reason) == (
        status,
        "its agent did not work on the task that it was given",
    )
    assert (failed.status, failed.task_unnamed_since) == (WorkspaceStatus.FAILED, None)


@pytest.mark.parametrize(
    ("cancelled", "status"), [(False, TaskStatus.FAILED), (True, TaskStatus.CANCELLED)]
)
async def test_the_pod_of_an_agent_that_broke_a_rule_ends_and_then_its_task(
    fleet: Fleet, cancelled: bool, status: TaskStatus
) -> None:
    busy, running = await fleet.add_busy(cancelled=cancelled)
    await fleet.world.change(
        busy.id, lambda locked: workspace_lifecycle.record_breach(locked, 1, "its agent lied")
    )
    await fleet.scan()
    ended = await fleet.world.task(busy.id, running.id)
    failed = await fleet.world.workspace(busy.id)
    assert (ended.status, ended.reason) == (status, "its agent lied")
    assert (failed.status, fleet.pods.calls) == (WorkspaceStatus.FAILED, ["end 0"])


async def test_a_pod_whose_task_ended_during_the_scan_is_not_ended(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy()
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.advance(3)
    list_cancellations = fleet.world.store.list_cancellations

    async def list_then_end() -> Sequence[tuple[Workspace, Task]]:
        listed = await list_cancellations()
        await fleet.world.end(busy.id, running.id)
        return listed

    fleet.world.store.list_cancellations = list_then_end  # type: ignore[method-assign]
    await fleet.scan()
    assert ((await fleet.world.workspace(busy.id)).status, fleet.pods.calls) == (
        WorkspaceStatus.IDLE,
        [],
    )


async def test_a_pod_whose_lease_was_renewed_during_the_scan_is_not_ended(fleet: Fleet) -> None:
    """A controller that was frozen continues with outdated rows."""
    idle = await fleet.add(WorkspaceStatus.IDLE, lease_expires_at=NOW)
    fleet.world.clock.advance(3)
    list_expired = fleet.world.store.list_expired_leases

    async def list_then_renew() -> Sequence[Workspace]:
        listed = await list_expired()
        await fleet.world.store.renew_lease(idle.id, 1, 60)
        return listed

    fleet.world.store.list_expired_leases = list_then_renew  # type: ignore[method-assign]
    await fleet.scan()
    assert ((await fleet.world.workspace(idle.id)).status, fleet.pods.calls) == (
        WorkspaceStatus.IDLE,
        [],
    )
