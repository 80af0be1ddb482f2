"""The contract of Store: the audit log."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import product

import pytest

from evershell.core import task_lifecycle, workspace_lifecycle
from evershell.core.caller import Permission
from evershell.core.change import Change, Locked, unchanged
from evershell.core.errors import Failure
from evershell.core.event import AuditEntry, AuditFilter, Origin
from evershell.core.ids import new_task_id
from evershell.core.ports import Store
from evershell.core.workspace import WorkspaceStatus
from tests.support.fakes import cancellation_outcome
from tests.support.store.audit import audit_entry
from tests.support.store.examples import (
    NOW,
    ORG,
    complete,
    intent,
    permission,
    set_status,
    task,
    with_task,
    workspace,
)


async def entries(
    store: Store, wanted: AuditFilter | None = None, by: Permission | None = None
) -> Sequence[AuditEntry]:
    return await store.list_audit_entries(by or permission(), wanted or AuditFilter(), None, 1000)


STATES = ("none", "open", "cancelled", "ended")
CELLS = list(product(WorkspaceStatus, STATES, ("no", "this", "unknown")))


async def test_both_stores_decide_the_same_outcome_of_a_cancellation(store: Store) -> None:
    """For every state, and everyone who may call: in the organization or not, `:own` or not."""
    for status, state, named in CELLS:
        await check_outcomes(store, status, state, named)


async def check_outcomes(store: Store, status: WorkspaceStatus, state: str, named: str) -> None:
    busy, open_task = await with_task(store)
    if state == "cancelled":
        await store.record_cancellation(permission(), busy.id, None, intent())
    elif state != "open":
        await complete(store, busy, open_task.id)
    await set_status(store, busy.id, status)
    ids = {"no": None, "this": open_task.id, "unknown": new_task_id()}
    # With `none` nothing names the task that has ended.
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
        reader = permission(org_id=by.caller.org_id)
        listed = await entries(store, AuditFilter(workspace_id=busy.id), reader)
        (stored,) = [each for each in listed if each.id == entry.id]
        audited_id = entry.task_id if of_call is None else of_call.id
        expected_entry = replace(entry, outcome=expected, task_id=audited_id)
        assert (recorded.outcome, stored) == (expected, expected_entry), (status, state, named)


async def test_concurrent_cancellations_leave_one_entry_each(store: Store) -> None:
    busy, submitted = await with_task(store)
    idle = workspace()
    await store.create_workspace(idle)
    calls = [
        (busy.id, audit_entry(workspace_id=busy.id)),
        (idle.id, audit_entry(workspace_id=idle.id)),
        ("ws_unknown", audit_entry(workspace_id="ws_unknown")),
    ]
    calls += [(id_, audit_entry(workspace_id=id_)) for id_, _ in calls for _ in range(10)]
    await asyncio.gather(
        *(
            store.record_cancellation(permission(), id_, None, intent(), "", entry)
            for id_, entry in calls
        )
    )
    found = {entry.id: entry for entry in await entries(store)}
    assert set(found) == {entry.id for _, entry in calls}
    outcomes = sorted(each.outcome for each in found.values() if each.workspace_id == busy.id)
    assert outcomes == ["accepted", *["already_requested"] * 10]
    assert {each.outcome for each in found.values() if each.workspace_id == idle.id} == {
        "no_active_task"
    }
    assert {each.outcome for each in found.values() if each.workspace_id == "ws_unknown"} == {
        "workspace_not_found"
    }
    assert {each.task_id for each in found.values() if each.workspace_id == busy.id} == {
        submitted.id
    }


async def test_an_entry_that_is_stored_already_does_not_disturb_the_call(store: Store) -> None:
    busy, _ = await with_task(store)
    entry = audit_entry(workspace_id=busy.id)
    for _ in range(2):
        await store.record_cancellation(permission(), busy.id, None, intent(), "", entry)
    assert [each.outcome for each in await entries(store)] == ["accepted"]
    await store.transition(busy.id, lambda locked: unchanged(locked).caused_by(Origin(audit=entry)))
    assert [each.outcome for each in await entries(store)] == ["accepted"]


async def test_a_change_and_its_entry_are_committed_together(store: Store) -> None:
    idle = workspace()
    created = audit_entry(rpc="CreateWorkspace", workspace_id=idle.id)
    await store.create_workspace(idle, created)
    new, later = task(idle.id), NOW + timedelta(seconds=1)
    entry = audit_entry(later, rpc="SubmitTask", workspace_id=idle.id)

    def submit(locked: Locked) -> Change:
        return task_lifecycle.submit(locked, new, "user_1").caused_by(Origin(audit=entry))

    def refuse(locked: Locked) -> Change:
        submit(locked)
        raise Failure("internal", "refused")

    with pytest.raises(Failure):
        await store.transition(idle.id, refuse)
    assert await entries(store) == [created]
    await store.transition(idle.id, submit)
    submitted = replace(entry, task_id=new.id)
    assert await entries(store) == [submitted, created]
    # A call that changes nothing has an entry too.
    latest = NOW + timedelta(seconds=2)
    repeated = audit_entry(latest, rpc="ResumeWorkspace", workspace_id=idle.id)
    await store.transition(
        idle.id,
        lambda locked: workspace_lifecycle.resume(locked, NOW).caused_by(Origin(audit=repeated)),
    )
    assert next(iter(await entries(store))).id == repeated.id


async def test_the_list_is_filtered_and_paged(store: Store) -> None:
    mine, theirs = workspace(), workspace(user_id="user_2")
    for each in (mine, theirs):
        await store.create_workspace(each)
    made = [
        audit_entry(NOW + timedelta(hours=number), workspace_id=workspace_id, **fields)
        for number, (workspace_id, fields) in enumerate(
            [
                (mine.id, {"rpc": "StopWorkspace", "outcome": "ok"}),
                (mine.id, {"rpc": "SubmitTask", "task_id": "task_1", "actor_id": "key_1"}),
                (theirs.id, {"rpc": "SubmitTask", "outcome": "workspace_busy"}),
                ("ws_unknown", {"rpc": "SubmitTask", "outcome": "workspace_not_found"}),
                (mine.id, {"org_id": "org_b", "outcome": "workspace_not_found"}),
            ]
        )
    ]

    def audited_by(entry: AuditEntry) -> Callable[[Locked], Change]:
        return lambda locked: replace(unchanged(locked), audit=entry)

    for entry in made:
        await store.transition(mine.id, audited_by(entry))
    stop, submit, busy, unknown, foreign = made

    async def found(by: Permission | None = None, **fields: object) -> list[AuditEntry]:
        return list(await entries(store, AuditFilter(**fields), by))  # type: ignore[arg-type]

    assert await found() == [unknown, busy, submit, stop]
    assert await found(permission(org_id="org_b")) == [foreign]
    assert await found(permission(own_only=True)) == [submit, stop]
    assert await found(permission(own_only=True, user_id=None)) == []
    assert await found(permission(own_only=True, org_id="org_b")) == []
    assert await found(workspace_id=theirs.id) == [busy]
    assert await found(task_id="task_1") == [submit]
    assert await found(actor_id="key_1") == [submit]
    assert await found(rpc="SubmitTask") == [unknown, busy, submit]
    assert await found(rpc="SubmitTask", outcome="workspace_busy") == [busy]
    assert await found(outcome="' OR true --") == []
    assert await found(start_time=busy.time) == [unknown, busy]
    assert await found(end_time=busy.time) == [submit, stop]
    assert await found(start_time=submit.time, end_time=unknown.time) == [busy, submit]
    page = await store.list_audit_entries(permission(), AuditFilter(), unknown.id, 2)
    assert page == [busy, submit]
    assert await store.list_audit_entries(permission(), AuditFilter(), stop.id, 2) == []
    assert foreign.org_id != ORG
