"""The contract of Store: match_tasks and cancel_tasks."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from evershell.core import task_lifecycle
from evershell.core.change import FirstCall, KeyTakenError
from evershell.core.event import AuditEntry, AuditFilter, cancel_requested_payload
from evershell.core.ports import UNDELIVERED, MatchedTask, MatchedTasks, Store
from evershell.core.task import Task, TaskStatus
from evershell.core.task_filter import AllTasks, TaskFilter, TaskSelection
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.audit import audit_entry
from tests.support.store.examples import (
    NOW,
    USER,
    complete,
    first_call,
    intent,
    permission,
    set_status,
    task,
    with_task,
    workspace,
)
from tests.support.store.locks import held
from tests.support.store.published import Published

ALL = AllTasks()


async def busy_with(
    store: Store, *, org_id: str = "org_a", user_id: str | None = USER, **fields: Any
) -> Task:
    """A task with these fields, in its own workspace."""
    idle = workspace(org_id=org_id, user_id=user_id)
    await store.create_workspace(idle)
    submitted = replace(task(idle.id), **fields)
    await store.transition(idle.id, lambda locked: task_lifecycle.submit(locked, submitted, USER))
    return submitted


async def matching(store: Store, wanted: TaskSelection = ALL, **of_permission: Any) -> list[str]:
    found = await store.match_tasks(permission(**of_permission), wanted, None, 100)
    assert found.matched == found.pending == len(found.tasks)
    return [each.task_id for each in found.tasks]


async def stored(store: Store, of: Task) -> Task:
    found = await store.get_task(of.workspace_id, of.id)
    assert found is not None
    return found


async def test_a_batch_records_each_intent_with_its_event(store: Store) -> None:
    tasks = [await with_task(store) for _ in range(3)]
    outcomes = await store.cancel_tasks(
        permission(), [each.id for _, each in tasks], intent(), "a" * 32
    )
    assert outcomes == {each.id: True for _, each in tasks}
    for busy, submitted in tasks:
        assert await stored(store, submitted) == replace(submitted, cancel=intent())
        assert await store.get_workspace(busy.id) == replace(busy, last_seq=2)
        (event,) = await store.list_events(busy.id, 1, 10)
        assert (event.seq, event.type, event.task_id, event.time) == (
            2,
            "task_cancel_requested",
            submitted.id,
            NOW,
        )
        assert (event.origin.request_id, event.origin.trace_id) == ("req_1", "a" * 32)
        assert event.payload == cancel_requested_payload(intent())


@pytest.mark.parametrize(
    ("recorded", "requested", "expected"),
    [(None, 9, 9), (9, 5, 5), (5, 9, 5), (5, None, 5), (None, None, None)],
)
async def test_the_earliest_deadline_wins_together_with_its_requester(
    store: Store, recorded: float | None, requested: float | None, expected: float | None
) -> None:
    busy, submitted = await with_task(store)
    first = intent("first", force_after_seconds=recorded)
    await store.record_cancellation(permission(), busy.id, None, first)
    second = intent("second", force_after_seconds=requested, requested_by="user_2")
    found = await store.match_tasks(permission(), ALL, second.force_at, 10)
    is_sooner = requested is not None and requested == expected
    assert found == MatchedTasks(1, int(is_sooner), [MatchedTask(busy.id, submitted.id, is_sooner)])
    assert await store.cancel_tasks(permission(), [submitted.id], second) == {submitted.id: False}
    by = second if is_sooner else first
    merged = replace(first, force_at=by.force_at, force_requested_by=by.force_requested_by)
    assert await stored(store, submitted) == replace(submitted, cancel=merged)


async def test_only_tasks_of_the_organization_match(store: Store) -> None:
    mine = await busy_with(store)
    other = await busy_with(store, org_id="org_b")
    await store.create_workspace(workspace())
    assert await matching(store) == [mine.id]
    assert await matching(store, org_id="org_b") == [other.id]
    assert await matching(store, TaskFilter(task_ids=(other.id,))) == []
    assert await store.cancel_tasks(permission(), [other.id], intent()) == {}
    assert (await stored(store, other)).cancel is None


async def test_a_task_that_has_ended_does_not_match(store: Store) -> None:
    busy, submitted = await with_task(store)
    await complete(store, busy, submitted.id)
    assert await matching(store) == []
    assert await matching(store, TaskFilter(task_ids=(submitted.id,))) == []
    assert await store.cancel_tasks(permission(), [submitted.id], intent()) == {}
    following = task(busy.id)
    await store.transition(busy.id, lambda locked: task_lifecycle.submit(locked, following, USER))
    assert await store.cancel_tasks(permission(), [submitted.id], intent(), wait=True) == {}
    assert await stored(store, following) == following


@pytest.mark.parametrize(
    ("status", "accepts"),
    [
        (WorkspaceStatus.BUSY, True),
        # The workspace is being woken.
        (WorkspaceStatus.PROVISIONING, True),
        (WorkspaceStatus.STOPPING, False),
    ],
)
async def test_only_a_workspace_that_is_up_or_woken_accepts_a_cancellation(
    store: Store, status: WorkspaceStatus, accepts: bool
) -> None:
    busy, submitted = await with_task(store)
    await set_status(store, busy.id, status)
    found = await store.match_tasks(permission(), ALL, None, 10)
    assert (found.matched, found.pending) == (1, accepts)
    assert bool(await store.cancel_tasks(permission(), [submitted.id], intent())) is accepts
    assert ((await stored(store, submitted)).cancel is not None) is accepts


@pytest.mark.parametrize("user_id", [USER, None])
async def test_own_only_covers_the_creator(store: Store, user_id: str | None) -> None:
    mine = await busy_with(store)
    others = [await busy_with(store, user_id="user_2"), await busy_with(store, user_id=None)]
    own = permission(user_id=user_id, own_only=True)
    expected = [mine.id] if user_id else []
    assert [each.task_id for each in (await store.match_tasks(own, ALL, None, 9)).tasks] == expected
    outcomes = await store.cancel_tasks(own, [each.id for each in (mine, *others)], intent())
    assert list(outcomes) == expected
    for each in others:
        assert (await stored(store, each)).cancel is None


async def test_a_filter_selects_tasks(store: Store) -> None:
    team = {"team": "ü 'x'", "run": "1"}
    a = await busy_with(store, submitted_by=USER, metadata=team)
    b = await busy_with(store, submitted_by="key_1", created_at=NOW + timedelta(seconds=1))
    c = await busy_with(store, user_id="user_2", metadata={"team": "ü 'x'", "run": "2"})
    for wanted, expected in (
        (ALL, [a, b, c]),
        (TaskFilter(task_ids=(c.id, "task_unknown", a.id)), [a, c]),
        (TaskFilter(task_ids=(a.id,), workspace_ids=(c.workspace_id,)), []),
        (TaskFilter(workspace_ids=(c.workspace_id, "ws_unknown")), [c]),
        (TaskFilter(created_by_user_id=USER), [a, b]),
        (TaskFilter(submitted_by="key_1"), [b]),
        (TaskFilter(submitted_before=NOW + timedelta(seconds=1)), [a, c]),
        (TaskFilter(submitted_before=NOW), []),
        (TaskFilter(metadata={"team": "ü 'x'"}), [a, c]),
        (TaskFilter(metadata=team), [a]),
        (TaskFilter(metadata={"team": "x"}), []),
        (TaskFilter(metadata={"team": "ü 'x'"}, created_by_user_id=USER), [a]),
    ):
        assert await matching(store, wanted) == [each.id for each in expected], wanted


async def test_pending_tasks_come_first_from_the_oldest_on(store: Store) -> None:
    tasks = [await busy_with(store) for _ in range(6)]
    await store.cancel_tasks(permission(), [tasks[0].id, tasks[2].id], intent())
    found = await store.match_tasks(permission(), ALL, None, 5)
    assert (found.matched, found.pending) == (6, 4)
    order = [tasks[n] for n in (1, 3, 4, 5, 0)]
    assert [(each.workspace_id, each.task_id, each.is_pending) for each in found.tasks] == [
        (each.workspace_id, each.id, each not in (tasks[0], tasks[2])) for each in order
    ]


async def test_the_entry_is_stored_once(store: Store) -> None:
    tasks = [await busy_with(store) for _ in range(2)]
    entry = audit_entry(rpc="CancelTasks")
    await store.cancel_tasks(permission(), [], intent(), "", entry)
    for each in tasks:
        await store.cancel_tasks(permission(), [each.id], intent(), "", entry)
    assert await store.list_audit_entries(permission(), AuditFilter(), None, 10) == [entry]


async def test_a_key_is_stored_with_its_batch(store: Store) -> None:
    tasks = [await busy_with(store) for _ in range(2)]
    call = first_call(workspace_id="")

    def answered(recorded: Mapping[str, bool]) -> FirstCall:
        return replace(call, answer=str(dict(recorded)))

    async def cancel(of: Task, audit: AuditEntry) -> Mapping[str, bool]:
        return await store.cancel_tasks(
            permission(), [of.id], intent(), "", audit, first_call=answered
        )

    entry = audit_entry(rpc="CancelTasks")
    assert await cancel(tasks[0], entry) == {tasks[0].id: True}
    found = await store.find_first_call(call)
    assert found == replace(call, answer=str({tasks[0].id: True}))
    with pytest.raises(KeyTakenError):
        await cancel(tasks[1], audit_entry(rpc="CancelTasks"))
    assert await stored(store, tasks[1]) == tasks[1]
    assert await store.find_first_call(call) == found
    assert await store.list_audit_entries(permission(), AuditFilter(), None, 10) == [entry]


async def test_one_of_concurrent_batches_with_a_key_has_an_effect(store: Store) -> None:
    ids = [(await busy_with(store)).id for _ in range(20)]
    calls = [
        store.cancel_tasks(permission(), ids, intent(), first_call=lambda _: first_call())
        for _ in range(4)
    ]
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [each for each in done if not isinstance(each, KeyTakenError)] == [
        dict.fromkeys(ids, True)
    ]


async def test_a_batch_wakes_its_workspaces_and_the_controller(
    store: Store, published: Published
) -> None:
    busy, submitted = await with_task(store)
    published.clear()
    await store.cancel_tasks(permission(), [], intent())
    assert published.ids == []
    await store.cancel_tasks(permission(), [submitted.id], intent())
    assert published.ids == [busy.id, UNDELIVERED]
    assert published.to_reconcile == [UNDELIVERED]


async def test_one_of_many_concurrent_calls_records_each_task(store: Store) -> None:
    """Some calls are batches, in both orders of the tasks; the others cancel one task each."""
    tasks = [await with_task(store) for _ in range(20)]
    ids = [each.id for _, each in tasks]

    async def one(busy: Workspace, of: Task) -> dict[str, bool]:
        found = await store.record_cancellation(permission(), busy.id, of.id, intent())
        return {of.id: found.recorded}

    calls: list[Any] = [
        store.cancel_tasks(permission(), order, intent()) for order in (ids, ids[::-1]) * 4
    ]
    calls += [one(busy, submitted) for busy, submitted in tasks]
    # The last call cancels the tasks that every batch left out because they were locked.
    found = [*await asyncio.gather(*calls), await store.cancel_tasks(permission(), ids, intent())]
    for task_id in ids:
        assert [outcomes.get(task_id) for outcomes in found].count(True) == 1
    for busy, _ in tasks:
        assert [event.seq for event in await store.list_events(busy.id, 0, 10)] == [1, 2]


async def test_a_batch_does_not_wait_for_a_locked_workspace(database_url: str) -> None:
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, machine_clock)
        locked, free = await busy_with(store), await busy_with(store)
        async with held(database_url, locked.workspace_id) as waits:
            ids = [locked.id, free.id]
            assert await store.cancel_tasks(permission(), ids, intent()) == {free.id: True}
            call = asyncio.create_task(
                store.cancel_tasks(permission(), [locked.id], intent(), wait=True)
            )
            await waits(1)
            assert not call.done()
        assert await call == {locked.id: True}


async def test_a_task_that_ends_under_the_lock_is_not_cancelled(database_url: str) -> None:
    """After its wait for the lock, the call sees that the task has ended."""
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, machine_clock)
        busy, submitted = await with_task(store)
        async with held(database_url, busy.id) as waits:
            ending = asyncio.create_task(complete(store, busy, submitted.id))
            await waits(1)
            call = asyncio.create_task(
                store.cancel_tasks(permission(), [submitted.id], intent(), wait=True)
            )
            await waits(2)
        await ending
        assert await call == {}
        ended = await stored(store, submitted)
        assert (ended.status, ended.cancel) == (TaskStatus.COMPLETED, None)
