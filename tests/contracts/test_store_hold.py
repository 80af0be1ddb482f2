"""The contract of Store: holds."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from evershell.core import task_lifecycle
from evershell.core.change import Change, Hold, Locked
from evershell.core.errors import Failure
from evershell.core.event import AuditFilter
from evershell.core.ports import Store
from evershell.core.task import Task
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.audit import audit_entry
from tests.support.store.examples import NOW, ORG, USER, permission, task, workspace
from tests.support.store.locks import held, waiting_sessions

HOLD = Hold(org_id=ORG, held_by=USER, held_since=NOW, reason="gone wröng")


async def submit(store: Store, new: Task) -> Change | None:
    """Submits the task unless the organization is on hold."""

    def decide(locked: Locked) -> Change:
        locked.require_no_hold()
        return task_lifecycle.submit(locked, new, USER)

    return await store.transition(new.workspace_id, decide, ORG)


async def idle(store: Store) -> Task:
    """Creates a workspace. Returns a task for it that is not submitted yet."""
    added = workspace()
    await store.create_workspace(added)
    return task(added.id)


async def test_the_first_hold_stays(store: Store) -> None:
    assert await store.get_hold(ORG) is None
    assert await store.hold_org(HOLD) == HOLD
    later = replace(HOLD, held_by="user_2", held_since=NOW + timedelta(1), reason="")
    assert await store.hold_org(later) == HOLD
    assert await store.get_hold(ORG) == HOLD
    assert await store.get_hold("org_b") is None
    assert await store.count_holds() == 1


async def test_a_released_hold_is_gone(store: Store) -> None:
    await store.hold_org(HOLD)
    await store.hold_org(replace(HOLD, org_id="org_b"))
    for _ in range(2):
        await store.release_org(ORG)
    assert await store.get_hold(ORG) is None
    assert await store.count_holds() == 1


async def test_a_transition_reads_the_hold_that_it_asks_for(store: Store) -> None:
    new = await idle(store)
    await store.hold_org(HOLD)
    seen: list[Hold | None] = []

    def look(locked: Locked) -> Change:
        seen.append(locked.hold)
        return Change(locked.workspace, locked.task)

    for org_id in (None, "org_b", ORG):
        await store.transition(new.workspace_id, look, org_id)
    assert seen == [None, None, HOLD]


async def test_no_workspace_is_created_during_a_hold(store: Store) -> None:
    await store.hold_org(HOLD)
    added = workspace()
    with pytest.raises(Failure) as raised:
        await store.create_workspace(added)
    assert raised.value.slug == "org_on_hold"
    assert await store.get_workspace(added.id) is None
    await store.create_workspace(workspace(org_id="org_b"))
    await store.release_org(ORG)
    await store.create_workspace(added)


async def test_each_call_stores_its_entry(store: Store) -> None:
    entries = [audit_entry(rpc="HoldOrg"), audit_entry(rpc="ReleaseOrg")]
    await store.hold_org(HOLD, entries[0])
    await store.release_org(ORG, entries[1])
    found = await store.list_audit_entries(permission(), AuditFilter(), None, 10)
    assert sorted(found, key=lambda each: each.rpc) == entries


async def test_no_task_is_submitted_after_a_hold_that_was_committed(store: Store) -> None:
    """The hold and the submissions run concurrently. Only submissions before the hold succeed."""
    new = [await idle(store) for _ in range(20)]
    outcomes: dict[str, bool] = {}

    async def try_to(each: Task) -> None:
        try:
            await submit(store, each)
        except Failure as failure:
            assert failure.slug == "org_on_hold"
            outcomes[each.id] = False
        else:
            outcomes[each.id] = True

    calls = [asyncio.create_task(try_to(each)) for each in new]
    await store.hold_org(HOLD)
    # After the hold, other connections see exactly the submissions that succeed.
    committed = {
        each.id for each in new if await store.get_task(each.workspace_id, each.id) is not None
    }
    await asyncio.gather(*calls)
    assert committed == {task_id for task_id, submitted in outcomes.items() if submitted}


async def test_a_hold_waits_for_the_submissions_in_flight(database_url: str) -> None:
    """Submissions do not wait for each other. A submission after the hold is refused."""
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, machine_clock)
        slow, fast, late = [await idle(store) for _ in range(3)]
        async with waiting_sessions(database_url) as waiting:
            async with held(database_url, slow.workspace_id) as slow_waits:
                submitting = asyncio.create_task(submit(store, slow))
                await slow_waits(1)
                assert await submit(store, fast) is not None
                holding = asyncio.create_task(store.hold_org(HOLD))
                await waiting(2)
                too_late = asyncio.create_task(submit(store, late))
                await waiting(3)
                assert not holding.done()
                assert await store.get_hold(ORG) is None
            assert await submitting is not None
            assert await holding == HOLD
            with pytest.raises(Failure, match="on hold"):
                await too_late
        assert await store.get_task(slow.workspace_id, slow.id) is not None
        assert await store.get_task(late.workspace_id, late.id) is None
