"""The contract of Store: record_cancellation."""

import asyncio
from dataclasses import replace
from itertools import product

import pytest

from evershell.core import task_lifecycle
from evershell.core.event import AuditFilter, cancel_requested_payload
from evershell.core.ports import Store
from evershell.core.task import TaskStatus
from evershell.core.workspace import WorkspaceStatus
from evershell.store.memory.cancellations import cancellation_outcome
from tests.support.store.audit import audit_entry
from tests.support.store.examples import (
    NOW,
    complete,
    intent,
    permission,
    set_status,
    task,
    with_task,
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


STATES = ("none", "open", "cancelled", "ended")
CELLS = list(product(WorkspaceStatus, STATES, ("no", "this", "foreign")))


async def test_both_stores_decide_the_same_outcome_of_a_cancellation(store: Store) -> None:
    """Tests every state with callers from this and another organization, with or without `:own`."""
    elsewhere, foreign = await with_task(store)
    for status, state, named in CELLS:
        await check_outcomes(store, status, state, named, foreign.id)
    assert await store.get_task(elsewhere.id, foreign.id) == foreign


async def check_outcomes(
    store: Store, status: WorkspaceStatus, state: str, named: str, foreign_id: str
) -> None:
    busy, open_task = await with_task(store)
    if state == "cancelled":
        await store.record_cancellation(permission(), busy.id, None, intent())
    elif state != "open":
        await complete(store, busy, open_task.id)
    await set_status(store, busy.id, status)
    ids = {"no": None, "this": open_task.id, "foreign": foreign_id}
    # In the state `none`, the task has ended and the call names no task.
    task_id = None if state == "none" else ids[named]
    for by in (
        permission(org_id="org_b"),
        permission(own_only=True, user_id="user_2"),
        permission(own_only=True, user_id=None),
        permission(own_only=True),
        permission(),
    ):
        entry = audit_entry(org_id=by.caller.org_id, workspace_id=busy.id, task_id=task_id or "")
        at = await store.get_workspace(busy.id, by.caller.org_id)
        wanted_id = task_id or (at and at.current_task_id) or ""
        of_call = None if at is None else await store.get_task(at.id, wanted_id)
        expected = cancellation_outcome(by, at, of_call, is_named=task_id is not None)
        recorded = await store.record_cancellation(by, busy.id, task_id, intent(), "", entry)
        listed = await store.list_audit_entries(
            permission(org_id=by.caller.org_id), AuditFilter(workspace_id=busy.id), None, 100
        )
        (stored,) = [each for each in listed if each.id == entry.id]
        audited_id = entry.task_id if of_call is None else of_call.id
        expected_entry = replace(entry, outcome=expected, task_id=audited_id)
        assert (recorded.outcome, stored) == (expected, expected_entry), (status, state, named)
        # The result has no data of another organization's workspace. The task is changed only if
        # the outcome is `accepted`.
        assert recorded.workspace == await store.get_workspace(busy.id, by.caller.org_id)
        if of_call is None:
            assert recorded.task is None
        else:
            after = await store.get_task(busy.id, of_call.id)
            assert (after == of_call) is (expected != "accepted")


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
