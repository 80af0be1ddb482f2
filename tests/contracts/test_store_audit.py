"""The contract of Store: the audit log."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from evershell.core import task_lifecycle, workspace_lifecycle
from evershell.core.caller import Permission
from evershell.core.change import Change, Locked, unchanged
from evershell.core.errors import Failure
from evershell.core.event import AuditEntry, AuditFilter, Origin
from evershell.core.ports import Store
from tests.support.store.audit import audit_entry
from tests.support.store.examples import (
    NOW,
    ORG,
    intent,
    permission,
    task,
    with_task,
    workspace,
)


async def entries(
    store: Store, wanted: AuditFilter | None = None, by: Permission | None = None
) -> Sequence[AuditEntry]:
    return await store.list_audit_entries(by or permission(), wanted or AuditFilter(), None, 1000)


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
    # A call that changes nothing also has an audit entry.
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
