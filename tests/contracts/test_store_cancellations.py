"""The contract of Store: record_cancellation."""

import asyncio
from dataclasses import replace

import pytest

from evershell.core import task_lifecycle
from evershell.core.event import cancel_requested_payload
from evershell.core.ids import new_task_id
from evershell.core.ports import Store
from evershell.core.task import TaskStatus
from evershell.core.workspace import WorkspaceStatus
from tests.support.store.examples import (
    NOW,
    complete,
    intent,
    permission,
    set_status,
    task,
    with_task,
    workspace,
)
from tests.support.store.published import Published


async def test_a_cancellation_is_recorded_with_its_event(store: Store) -> None:
    busy, submitted = await with_task(store)
    found = await store.record_cancellation(permission(), busy.id, None, intent())
    assert found.recorded
    assert found.task == replace(submitted, cancel=intent())
    assert found.workspace == replace(busy, last_seq=2)
    assert await store.get_task(busy.id, submitted.id) == found.task
    assert await store.get_workspace(busy.id) == found.workspace
    (event,) = await store.list_events(busy.id, 1, 10)
    assert (event.seq, event.type, event.task_id, event.origin.request_id) == (
        2,
        "task_cancel_requested",
        submitted.id,
        "req_1",
    )
    assert (event.time, event.payload) == (NOW, cancel_requested_payload(intent()))


async def test_a_cancellation_may_name_the_task(store: Store) -> None:
    busy, submitted = await with_task(store)
    found = await store.record_cancellation(permission(), busy.id, submitted.id, intent())
    assert found.recorded


async def test_the_first_intent_is_kept(store: Store) -> None:
    busy, _ = await with_task(store)
    first = await store.record_cancellation(permission(), busy.id, None, intent("first"))
    second = await store.record_cancellation(
        permission(), busy.id, None, intent("second", request_id="req_2")
    )
    assert not second.recorded
    assert (second.workspace, second.task) == (first.workspace, first.task)
    assert len(await store.list_events(busy.id, 0, 10)) == 2


@pytest.mark.parametrize(
    ("recorded", "requested", "expected"),
    [(None, 9, 9), (9, 5, 5), (5, 9, 5), (5, None, 5), (None, None, None)],
)
async def test_the_earliest_deadline_wins_together_with_its_requester(
    store: Store, recorded: float | None, requested: float | None, expected: float | None
) -> None:
    busy, submitted = await with_task(store)
    await store.record_cancellation(
        permission(), busy.id, None, intent("first", force_after_seconds=recorded)
    )
    found = await store.record_cancellation(
        permission(),
        busy.id,
        None,
        intent("second", force_after_seconds=requested, requested_by="user_2"),
    )
    assert not found.recorded
    requester = "user_1" if expected == recorded else "user_2"
    forced = intent(force_after_seconds=expected, requested_by=requester)
    merged = replace(
        intent("first"), force_at=forced.force_at, force_requested_by=forced.force_requested_by
    )
    assert found.task == replace(submitted, cancel=merged)
    assert await store.get_task(busy.id, submitted.id) == found.task


async def test_another_organization_finds_nothing(store: Store) -> None:
    busy, submitted = await with_task(store)
    for task_id in (None, submitted.id):
        found = await store.record_cancellation(
            permission(org_id="org_b"), busy.id, task_id, intent()
        )
        assert (found.workspace, found.task, found.recorded) == (None, None, False)
    assert await store.get_task(busy.id, submitted.id) == submitted


@pytest.mark.parametrize(
    ("creator", "caller", "recorded"),
    [
        ("user_1", "user_1", True),
        ("user_1", "user_2", False),
        (None, "user_1", False),
        ("user_1", None, False),
        (None, None, False),
    ],
)
async def test_own_only_covers_the_creator(
    store: Store, creator: str | None, caller: str | None, recorded: bool
) -> None:
    busy, submitted = await with_task(store, user_id=creator)
    found = await store.record_cancellation(
        permission(user_id=caller, own_only=True), busy.id, None, intent()
    )
    assert found.recorded is recorded
    assert found.workspace is not None and found.workspace.id == busy.id
    stored = await store.get_task(busy.id, submitted.id)
    assert stored is not None and (stored.cancel is not None) is recorded


async def test_a_task_of_another_workspace_is_not_found(store: Store) -> None:
    busy, submitted = await with_task(store)
    _, other = await with_task(store)
    for task_id in (other.id, new_task_id()):
        found = await store.record_cancellation(permission(), busy.id, task_id, intent())
        assert (found.workspace, found.task, found.recorded) == (busy, None, False)
    assert await store.get_task(busy.id, submitted.id) == submitted


async def test_an_idle_workspace_has_no_task(store: Store) -> None:
    idle = workspace()
    await store.create_workspace(idle)
    found = await store.record_cancellation(permission(), idle.id, None, intent())
    assert (found.workspace, found.task, found.recorded) == (idle, None, False)


async def test_a_finished_task_is_not_changed(store: Store) -> None:
    busy, submitted = await with_task(store)
    await complete(store, busy, submitted.id)
    found = await store.record_cancellation(permission(), busy.id, submitted.id, intent())
    assert not found.recorded
    assert found.task is not None and (found.task.status, found.task.cancel) == (
        TaskStatus.COMPLETED,
        None,
    )
    current = await store.record_cancellation(permission(), busy.id, None, intent())
    assert (current.task, current.recorded) == (None, False)


@pytest.mark.parametrize("status", WorkspaceStatus)
async def test_only_a_workspace_that_is_up_accepts_a_cancellation(
    store: Store, status: WorkspaceStatus
) -> None:
    busy, submitted = await with_task(store)
    await set_status(store, busy.id, status)
    found = await store.record_cancellation(permission(), busy.id, None, intent())
    assert found.recorded is (status in (WorkspaceStatus.IDLE, WorkspaceStatus.BUSY))
    assert found.workspace is not None and found.workspace.status is status
    assert found.task is not None and found.task.id == submitted.id


async def test_a_refused_cancellation_does_not_change_the_deadline(store: Store) -> None:
    busy, submitted = await with_task(store)
    await store.record_cancellation(permission(), busy.id, None, intent(force_after_seconds=9))
    await set_status(store, busy.id, WorkspaceStatus.STOPPING)
    found = await store.record_cancellation(
        permission(), busy.id, None, intent(force_after_seconds=1)
    )
    assert found.task == replace(submitted, cancel=intent(force_after_seconds=9))


async def test_one_of_many_concurrent_cancellations_is_recorded(store: Store) -> None:
    busy, _ = await with_task(store)
    calls = [
        store.record_cancellation(permission(), busy.id, None, intent(request_id=f"req_{number}"))
        for number in range(50)
    ]
    found = await asyncio.gather(*calls)
    assert [each.recorded for each in found].count(True) == 1
    assert (
        len({each.task.cancel.request_id for each in found if each.task and each.task.cancel}) == 1
    )
    assert len(await store.list_events(busy.id, 0, 100)) == 2


async def test_each_of_many_concurrent_callers_gets_his_own_outcome(store: Store) -> None:
    workspaces = [await with_task(store) for _ in range(10)]
    calls, expected = [], []
    for number, (busy, submitted) in enumerate(workspaces):
        requested = intent(f"reason {number}", request_id=f"req_{number}")
        calls += [
            store.record_cancellation(permission(org_id="org_b"), busy.id, None, requested),
            store.record_cancellation(permission(), busy.id, None, requested),
            store.record_cancellation(permission(), busy.id, new_task_id(), requested),
            store.record_cancellation(permission(), f"ws_unknown_{number}", None, requested),
        ]
        cancelled = replace(submitted, cancel=requested)
        expected += [(None, None), (busy.id, cancelled), (busy.id, None), (None, None)]
    found = await asyncio.gather(*calls)
    assert [(each.workspace and each.workspace.id, each.task) for each in found] == expected
    assert [each.recorded for each in found] == [False, True, False, False] * 10
    for busy, _ in workspaces:
        assert [event.seq for event in await store.list_events(busy.id, 0, 10)] == [1, 2]


async def test_a_cancellation_does_not_affect_the_next_task(store: Store) -> None:
    busy, submitted = await with_task(store)
    await store.record_cancellation(permission(), busy.id, None, intent())
    await complete(store, busy, submitted.id)
    ended = await store.get_task(busy.id, submitted.id)
    assert ended is not None and (ended.status, ended.result) == (TaskStatus.CANCELLED, "done")
    following = task(busy.id)
    change = await store.transition(
        busy.id, lambda locked: task_lifecycle.submit(locked, following, "user_1")
    )
    assert change is not None and change.task == following
    assert await store.get_task(busy.id, following.id) == following


async def test_a_cancellation_is_published_if_it_changed_something(
    store: Store, published: Published
) -> None:
    busy, _ = await with_task(store)
    published.clear()
    await store.record_cancellation(permission(org_id="org_b"), busy.id, None, intent())
    assert published.ids == []
    await store.record_cancellation(permission(), busy.id, None, intent())
    await store.record_cancellation(permission(), busy.id, None, intent())
    assert published.ids == [busy.id]
    await store.record_cancellation(permission(), busy.id, None, intent(force_after_seconds=1))
    assert published.ids == [busy.id] * 2
