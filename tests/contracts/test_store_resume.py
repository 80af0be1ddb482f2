"""The contract of Store: match_failed and transition_many."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from evershell.core import workspace_lifecycle
from evershell.core.change import Change, FirstCall, Hold, KeyTakenError, Locked
from evershell.core.event import AuditFilter
from evershell.core.ports import Store
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.core.workspace_filter import AllWorkspaces, WorkspaceFilter
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.audit import audit_entry
from tests.support.store.examples import (
    NOW,
    ORG,
    USER,
    first_call,
    permission,
    with_task,
    workspace,
)
from tests.support.store.locks import held
from tests.support.store.published import Published

ALL = AllWorkspaces()


async def failed(store: Store, org_id: str = ORG, user_id: str | None = USER) -> Workspace:
    added = workspace(WorkspaceStatus.FAILED, org_id=org_id, user_id=user_id)
    await store.create_workspace(added)
    return added


def resume(locked: Locked) -> Change | None:
    locked.require_no_hold()
    if locked.workspace.status is not WorkspaceStatus.FAILED:
        return None
    return workspace_lifecycle.resume(locked, NOW)


async def test_failed_workspaces_match(store: Store) -> None:
    mine, other, keyed = (
        await failed(store),
        await failed(store, user_id="user_2"),
        await failed(store, user_id=None),
    )
    await failed(store, "org_b")
    await store.create_workspace(workspace())
    for wanted, expected in (
        (ALL, [mine, other, keyed]),
        (WorkspaceFilter(workspace_ids=(keyed.id, "ws_unknown", mine.id)), [mine, keyed]),
        (WorkspaceFilter(created_by_user_id="user_2"), [other]),
        (WorkspaceFilter(workspace_ids=(mine.id,), created_by_user_id="user_2"), []),
    ):
        found = await store.match_failed(permission(), wanted, 10)
        assert found == (len(expected), [each.id for each in expected])
    assert await store.match_failed(permission(), ALL, 1) == (3, [mine.id])
    assert await store.match_failed(permission(own_only=True), ALL, 10) == (1, [mine.id])
    assert await store.match_failed(permission(user_id=None, own_only=True), ALL, 1) == (0, [])


async def test_many_workspaces_change_at_once(store: Store, published: Published) -> None:
    gone = [await failed(store) for _ in range(3)]
    idle, foreign, (busy, _) = workspace(), await failed(store, "org_b"), await with_task(store)
    await store.create_workspace(idle)
    published.clear()
    entry = audit_entry(rpc="ResumeWorkspaces")
    ids = [each.id for each in (*gone[:2], idle, foreign, busy)]
    changes = await store.transition_many([*ids, ids[0], "ws_unknown"], resume, ORG, entry)
    resumed = [each.in_new_epoch("", NOW) for each in gone[:2]]
    assert [each.workspace for each in changes] == resumed
    for each in (*resumed, gone[2], idle, foreign, busy):
        assert await store.get_workspace(each.id) == each
    assert published.ids == published.to_reconcile == ids[:2]
    assert await store.list_audit_entries(permission(), AuditFilter(), None, 10) == [entry]


async def test_a_change_that_is_refused_changes_nothing(store: Store) -> None:
    gone = [await failed(store) for _ in range(2)]
    ids = [each.id for each in gone]
    call = first_call(workspace_id="")

    def answered(changes: Sequence[Change]) -> FirstCall:
        return replace(call, answer=f"{len(changes)} changes")

    await store.transition_many(ids[:1], resume, ORG, None, answered)
    assert await store.find_first_call(call) == replace(call, answer="1 changes")
    with pytest.raises(KeyTakenError):
        await store.transition_many(ids, resume, ORG, audit_entry(), answered)
    hold = Hold(org_id=ORG, held_by="user_1", held_since=NOW, reason="")
    await store.hold_org(hold)
    with pytest.raises(type(hold.refusal())):
        await store.transition_many(ids, resume, ORG, audit_entry())
    assert await store.get_workspace(ids[1]) == gone[1]
    assert await store.list_audit_entries(permission(), AuditFilter(), None, 10) == []


async def test_concurrent_calls_change_each_workspace_once(store: Store) -> None:
    gone = [await failed(store) for _ in range(20)]
    ids = [each.id for each in gone]
    calls = [store.transition_many(order, resume, ORG) for order in (ids, ids[::-1]) * 3]
    changes = [change for made in await asyncio.gather(*calls) for change in made]
    changes += await store.transition_many(ids, resume, ORG)
    assert sorted(each.workspace.id for each in changes) == ids
    assert {each.workspace.epoch for each in changes} == {2}


async def test_a_locked_workspace_is_left_out(database_url: str) -> None:
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, machine_clock)
        locked, free = await failed(store), await failed(store)
        async with held(database_url, locked.id):
            changes = await store.transition_many([locked.id, free.id], resume, ORG)
        assert [each.workspace.id for each in changes] == [free.id]
