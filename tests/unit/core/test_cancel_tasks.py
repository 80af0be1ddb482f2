"""CancelTasks: which tasks a call cancels, and what it does with tasks that change meanwhile."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest

from evershell.core import cancel_tasks as use_case
from evershell.core import workspace_lifecycle
from evershell.core.bulk import BulkResult
from evershell.core.caller import Caller, CredentialKind
from evershell.core.cancel_tasks import (
    CancelTasks,
    cancel_tasks,
    cancel_until_done,
)
from evershell.core.errors import Failure, UnavailableError
from evershell.core.event import Origin
from evershell.core.task import TaskStatus
from evershell.core.task_filter import AllTasks, TaskFilter, TaskSelection
from tests.support.world import NOW, USER, World, caller, intent

ALL = AllTasks()


async def cancel(
    world: World, by: Caller | None = None, wanted: TaskSelection = ALL, **fields: Any
) -> BulkResult:
    request = CancelTasks(wanted=wanted, origin=Origin("req_b"), **fields)
    return await cancel_tasks(by or caller(), request, world.store, world.clock)


def counts(result: BulkResult) -> tuple[int, int, int, int]:
    return result.matched, result.accepted, result.already_requested, result.remaining


async def test_every_task_of_the_organization_is_cancelled(world: World) -> None:
    running = [await world.add_busy() for _ in range(3)]
    await world.add()
    other, untouched = await world.add_busy(org_id="org_b")
    result = await cancel(world, reason="gone wrong")
    assert counts(result) == (3, 3, 0, 0)
    assert [(each.workspace_id, each.task_id, each.outcome) for each in result.results] == [
        (at.id, task.id, "accepted") for at, task in running
    ]
    for at, task in running:
        cancelled = (await world.task(at.id, task.id)).cancel
        assert cancelled is not None
        assert (cancelled.requested_by, cancelled.reason, cancelled.request_id) == (
            USER,
            "gone wrong",
            "req_b",
        )
        await world.end(at.id, task.id)
        assert (await world.task(at.id, task.id)).status is TaskStatus.CANCELLED
    assert (await world.task(other.id, untouched.id)).cancel is None
    assert counts(await cancel(world)) == (0, 0, 0, 0)
    # The use case sends no signals; the fleet controller does.
    assert world.agents.cancelled == []


async def test_an_earlier_force_deadline_applies(world: World) -> None:
    busy, task = await world.add_busy()
    for seconds, expected in ((60, 60), (90, 60), (5, 5)):
        result = await cancel(
            world, caller(actor_id=f"user_{seconds}"), force_after_seconds=seconds
        )
        assert result.remaining == 0
        cancelled = (await world.task(busy.id, task.id)).cancel
        assert cancelled is not None
        assert cancelled.force_at == NOW + timedelta(seconds=expected)
        assert cancelled.force_requested_by == f"user_{expected}"


async def test_a_dry_run_changes_nothing(world: World) -> None:
    busy, task = await world.add_busy()
    requested, _ = await world.add_busy()
    await world.cancel(requested.id)
    before = await world.workspace(busy.id)
    result = await cancel(world, dry_run=True)
    assert counts(result) == (2, 0, 1, 1)
    assert [each.outcome for each in result.results] == ["matched", "already_requested"]
    assert await world.workspace(busy.id) == before
    assert (await world.task(busy.id, task.id)).cancel is None


async def test_own_permissions_cancel_only_the_callers_workspaces(world: World) -> None:
    mine, _ = await world.add_busy()
    await world.add_busy(created_by_user_id="user_2")
    own = caller("workspace:write:own")
    assert [each.workspace_id for each in (await cancel(world, own)).results] == [mine.id]
    key = caller("workspace:write:own", actor_id="key_1", kind=CredentialKind.API_KEY)
    assert counts(await cancel(world, key)) == (0, 0, 0, 0)
    with pytest.raises(Failure, match="workspace:write"):
        await cancel(world, caller("workspace:read"))


async def test_a_call_has_a_limit_and_the_next_one_continues(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use_case, "MAX_TASKS", 5)
    monkeypatch.setattr(use_case, "MAX_BATCH", 2)
    running = [(await world.add_busy())[1].id for _ in range(12)]
    seen: list[str] = []
    found = []
    for _ in range(4):
        result = await cancel(world)
        found.append(counts(result))
        assert len(result.results) <= 5
        seen += [each.task_id for each in result.results if each.outcome == "accepted"]
    assert found == [(12, 5, 0, 7), (12, 5, 5, 2), (12, 2, 10, 0), (12, 0, 12, 0)]
    # The oldest tasks come first.
    assert seen == running


async def test_until_done_repeats_until_nothing_remains(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use_case, "MAX_TASKS", 5)
    running = [await world.add_busy() for _ in range(12)]
    await world.cancel(running[0][0].id)
    permission = caller().permission("workspace:write")
    result = await cancel_until_done(permission, ALL, intent(), Origin(), world.store, 10.0)
    assert counts(result) == (12, 11, 1, 0)


class Locked:
    """Makes the store leave out these tasks, as if others had locked their workspaces."""

    def __init__(self, world: World, task_ids: Sequence[str], *, stuck: bool = False) -> None:
        self.task_ids = set(task_ids)
        self.waited: list[str] = []
        self._stuck = stuck
        self._cancel = world.store.cancel_tasks
        world.store.cancel_tasks = self._cancel_tasks  # type: ignore[assignment]

    async def _cancel_tasks(
        self, permission: Any, task_ids: Sequence[str], *more: Any, wait: bool = False
    ) -> Mapping[str, bool]:
        if wait:
            self.waited += task_ids
            await asyncio.sleep(0)
            if self._stuck:
                raise UnavailableError("locked")
        free = [each for each in task_ids if wait or each not in self.task_ids]
        return await self._cancel(permission, free, *more, wait=wait)


async def test_a_locked_task_is_cancelled_alone(world: World) -> None:
    running = [(await world.add_busy())[1].id for _ in range(4)]
    locked = Locked(world, running[1:3])
    assert counts(await cancel(world)) == (4, 4, 0, 0)
    assert sorted(locked.waited) == running[1:3]


async def test_a_task_that_stays_locked_remains(world: World) -> None:
    running = [(await world.add_busy())[1].id for _ in range(4)]
    Locked(world, running[1:3], stuck=True)
    result = await cancel(world)
    assert counts(result) == (4, 2, 0, 2)
    assert [each.task_id for each in result.results] == [running[0], running[3]]


async def test_a_task_that_ends_meanwhile_no_longer_matches(world: World) -> None:
    busy, ending = await world.add_busy()
    _, other = await world.add_busy()
    locked = Locked(world, [ending.id])
    unlocked = world.store.cancel_tasks

    async def end_first(*arguments: Any, wait: bool = False) -> Mapping[str, bool]:
        if wait:
            await world.end(busy.id, ending.id)
        return await unlocked(*arguments, wait=wait)

    world.store.cancel_tasks = end_first  # type: ignore[assignment]
    result = await cancel(world)
    assert counts(result) == (1, 1, 0, 0)
    assert [each.task_id for each in result.results] == [other.id]
    assert locked.waited == [ending.id]
    assert (await world.task(busy.id, ending.id)).status is TaskStatus.COMPLETED


async def test_a_task_whose_workspace_stops_meanwhile_is_cancelled_by_that(world: World) -> None:
    busy, stopping = await world.add_busy()
    Locked(world, [stopping.id])
    unlocked = world.store.cancel_tasks

    async def stop_first(*arguments: Any, wait: bool = False) -> Mapping[str, bool]:
        if wait:
            reason = intent(reason="workspace stopped")
            await world.store.transition(
                busy.id, lambda locked: workspace_lifecycle.request_stop(locked, reason)
            )
        return await unlocked(*arguments, wait=wait)

    world.store.cancel_tasks = stop_first  # type: ignore[assignment]
    result = await cancel(world)
    assert counts(result) == (1, 0, 1, 0)
    assert [(each.task_id, each.outcome) for each in result.results] == [
        (stopping.id, "already_requested")
    ]


@pytest.mark.parametrize(
    ("field", "fields"),
    [("reason", {"reason": "x" * 501}), ("force_after", {"force_after_seconds": -1})],
)
def test_a_request_is_checked(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(Failure) as raised:
        CancelTasks(wanted=ALL, origin=Origin(), **fields)
    assert list(raised.value.details["fields"]) == [field]


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("filter", {}),
        *(
            (f"filter.{name}", {name: ids})
            for name in ("task_ids", "workspace_ids")
            for ids in ((), ("",), ("id_1", "id 1"), ("id_1",) * 1001)
        ),
        *(
            (f"filter.{name}", {name: value})
            for name in ("created_by_user_id", "submitted_by")
            for value in ("", "x" * 256, "\0")
        ),
        *(
            ("filter.metadata", {"metadata": value})
            for value in ({}, {"": "x"}, {"x": ""}, {str(n): "x" for n in range(33)})
        ),
    ],
)
def test_a_filter_that_is_empty_or_not_valid_cannot_be_made(
    field: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(Failure) as raised:
        TaskFilter(**fields)
    assert list(raised.value.details["fields"]) == [field]
