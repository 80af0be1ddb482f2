"""The contract of Store: submissions with a parent, cancel_tree and list_org_tasks."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from evershell.core.change import Change, Locked
from evershell.core.errors import Failure
from evershell.core.event import AuditFilter
from evershell.core.ports import UNDELIVERED, RecordedCancellation, Store
from evershell.core.task import Task
from evershell.core.task_filter import OrgListFilter
from evershell.core.task_tree import Parent
from evershell.core.workspace import WorkspaceStatus
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.audit import audit_entry
from tests.support.store.examples import (
    ORG,
    intent,
    permission,
    set_status,
    workspace,
)
from tests.support.store.locks import held, held_tree, waiting_sessions
from tests.support.store.published import Published
from tests.support.store.trees import end, submit, submit_to


async def chain(store: Store, length: int) -> list[Task]:
    """Submits a root, the root's child, that child's child, and so on."""
    tasks = [await submit(store)]
    for _ in range(length - 1):
        tasks.append(await submit(store, tasks[-1]))
    return tasks


async def cancel(store: Store, of: Task, task_id: str | None = "") -> RecordedCancellation:
    """Cancels the tree of the task. If `task_id` is None, the call names no task."""
    named = of.id if task_id == "" else task_id
    return await store.cancel_tree(permission(), of.workspace_id, named, intent())


async def cancelled(store: Store, *tasks: Task) -> list[bool]:
    found = [await store.get_task(each.workspace_id, each.id) for each in tasks]
    return [each is not None and each.cancel is not None for each in found]


async def parent_of(store: Store, org_id: str, task_id: str) -> Parent | None:
    """The parent that the store finds for `task_id` when a task is submitted in `org_id`."""
    idle = workspace(org_id=org_id)
    await store.create_workspace(idle)
    seen: list[Parent | None] = []

    def look(locked: Locked) -> Change:
        seen.append(locked.parent)
        return Change(locked.workspace, locked.task)

    await store.transition(idle.id, look, org_id, task_id)
    return seen[0]


async def test_a_child_stores_its_ancestors(store: Store) -> None:
    root, middle, leaf = await chain(store, 3)
    assert (root.ancestor_ids, middle.ancestor_ids) == ((), (root.id,))
    assert await store.get_task(leaf.workspace_id, leaf.id) == leaf
    assert leaf.ancestor_ids == (root.id, middle.id)
    (event,) = await store.list_events(leaf.workspace_id, 0, 10)
    assert (event.payload["parent_task_id"], event.payload["root_task_id"]) == (middle.id, root.id)
    (event,) = await store.list_events(root.workspace_id, 0, 10)
    assert "parent_task_id" not in event.payload


async def test_a_parent_is_read_with_its_workspace_and_the_open_tasks_of_its_tree(
    store: Store,
) -> None:
    root, middle, leaf = await chain(store, 3)
    await submit(store, root)
    parent = await parent_of(store, ORG, middle.id)
    at = await store.get_workspace(middle.workspace_id)
    assert at is not None and parent == Parent(at, middle, 3)
    await end(store, leaf)
    parent = await parent_of(store, ORG, root.id)
    assert parent is not None and parent.open_descendants == 2
    assert await parent_of(store, "org_b", root.id) is None
    assert await parent_of(store, ORG, "task_unknown") is None


async def test_a_tree_is_cancelled_from_the_named_task_down(store: Store) -> None:
    root, middle, leaf = await chain(store, 3)
    sibling, other = await submit(store, root), await submit(store)
    recorded = await cancel(store, middle)
    assert (recorded.outcome, recorded.descendants_cancelled) == ("accepted", 1)
    assert recorded.task == replace(middle, cancel=intent())
    tasks = (root, middle, leaf, sibling, other)
    assert await cancelled(store, *tasks) == [False, True, True, False, False]
    events = await store.list_events(leaf.workspace_id, 1, 10)
    assert [(each.type, each.task_id) for each in events] == [("task_cancel_requested", leaf.id)]
    again = await cancel(store, root)
    assert (again.outcome, again.descendants_cancelled) == ("accepted", 1)
    assert (await cancel(store, root)).descendants_cancelled == 0
    assert await cancelled(store, *tasks) == [True, True, True, True, False]


async def test_an_ended_task_and_ended_descendants_do_not_hide_those_below(store: Store) -> None:
    root, middle, leaf = await chain(store, 3)
    await end(store, root)
    await end(store, middle)
    # This task runs in the root's workspace, but does not belong to the tree.
    following = await submit_to(store, root.workspace_id)
    recorded = await cancel(store, root)
    assert (recorded.outcome, recorded.descendants_cancelled) == ("already_finished", 1)
    assert await cancelled(store, root, middle, leaf, following) == [False, False, True, False]


async def test_a_call_without_a_task_cancels_the_tree_of_the_current_one(store: Store) -> None:
    root, child = await chain(store, 2)
    recorded = await cancel(store, root, None)
    assert (recorded.outcome, recorded.descendants_cancelled) == ("accepted", 1)
    await end(store, root)
    recorded = await cancel(store, root, None)
    assert (recorded.outcome, recorded.task) == ("no_active_task", None)
    assert await cancelled(store, child) == [True]


@pytest.mark.parametrize("refused", ["workspace_not_found", "task_not_found", "workspace_stopped"])
async def test_a_refused_call_records_nothing(store: Store, refused: str) -> None:
    root, child = await chain(store, 2)
    entry = audit_entry()
    by, workspace_id, task_id = permission(), root.workspace_id, root.id
    if refused == "workspace_not_found":
        by, entry = permission(org_id="org_b"), replace(entry, org_id="org_b")
    elif refused == "task_not_found":
        workspace_id = child.workspace_id
    else:
        await set_status(store, root.workspace_id, WorkspaceStatus.STOPPING)
    recorded = await store.cancel_tree(by, workspace_id, task_id, intent(), "", entry)
    assert (recorded.outcome, recorded.descendants_cancelled) == (refused, 0)
    assert await cancelled(store, root, child) == [False, False]
    (stored,) = await store.list_audit_entries(by, AuditFilter(), None, 10)
    assert stored.outcome == refused


@pytest.mark.parametrize("is_named", [True, False])
async def test_one_descendant_of_someone_else_refuses_the_whole_call(
    store: Store, is_named: bool
) -> None:
    root = await submit(store)
    mine, theirs = await submit(store, root), await submit(store, root, user_id="user_2")
    below = await submit(store, mine)
    own = permission(own_only=True)
    named = root.id if is_named else None
    entry = replace(audit_entry(), task_id=named or "")
    recorded = await store.cancel_tree(own, root.workspace_id, named, intent(), "", entry)
    assert (recorded.outcome, recorded.descendants_cancelled) == ("permission_denied", 0)
    assert recorded.workspace is not None and recorded.workspace.id == theirs.workspace_id
    (stored,) = await store.list_audit_entries(permission(), AuditFilter(), None, 10)
    assert (stored.outcome, stored.task_id) == ("permission_denied", root.id)
    assert await cancelled(store, root, mine, theirs, below) == [False] * 4
    await end(store, theirs)
    recorded = await store.cancel_tree(own, root.workspace_id, named, intent())
    assert (recorded.outcome, recorded.descendants_cancelled) == ("accepted", 2)


async def test_an_earlier_deadline_reaches_the_descendants(store: Store) -> None:
    root, child = await chain(store, 2)
    await cancel(store, root)
    sooner = intent(force_after_seconds=5)
    recorded = await store.cancel_tree(permission(), root.workspace_id, root.id, sooner)
    assert (recorded.outcome, recorded.descendants_cancelled) == ("already_requested", 0)
    found = await store.get_task(child.workspace_id, child.id)
    assert found is not None and found.cancel is not None
    assert found.cancel.force_at == sooner.force_at


async def test_the_entry_is_stored_once_with_the_outcome(store: Store) -> None:
    root, _ = await chain(store, 2)
    entry = audit_entry()
    await store.cancel_tree(permission(), root.workspace_id, None, intent(), "", entry)
    idle, of_idle = workspace(), audit_entry()
    await store.create_workspace(idle)
    await store.cancel_tree(permission(), idle.id, None, intent(), "", of_idle)
    stored = await store.list_audit_entries(permission(), AuditFilter(), None, 10)
    assert {each.id: (each.outcome, each.task_id) for each in stored} == {
        entry.id: ("accepted", root.id),
        of_idle.id: ("no_active_task", ""),
    }


async def test_a_tree_wakes_its_workspaces_and_the_controller(
    store: Store, published: Published
) -> None:
    root, child = await chain(store, 2)
    published.clear()
    await cancel(store, root)
    assert published.ids == [root.workspace_id, child.workspace_id, UNDELIVERED]
    assert published.to_reconcile == [UNDELIVERED]


async def test_a_listing_selects_tasks_of_a_tree(store: Store) -> None:
    root, middle, leaf = await chain(store, 3)
    sibling, other = await submit(store, root, user_id="user_2"), await submit(store)
    await end(store, middle)

    async def listed(own_only: bool = False, org_id: str = ORG, **fields: Any) -> list[str]:
        by = permission(own_only=own_only, org_id=org_id)
        found = await store.list_org_tasks(by, OrgListFilter(**fields), None, 10)
        return [each.id for each in found]

    assert await listed(root_task_id=root.id) == [sibling.id, leaf.id, middle.id, root.id]
    assert await listed(own_only=True, root_task_id=root.id) == [leaf.id, middle.id, root.id]
    assert await listed(root_task_id=middle.id) == []
    assert await listed(root_task_id=other.id) == [other.id]
    assert await listed(parent_task_id=root.id) == [sibling.id, middle.id]
    assert await listed(parent_task_id=middle.id, root_task_id=root.id) == [leaf.id]
    assert await listed(parent_task_id=root.id, workspace_id=middle.workspace_id) == [middle.id]
    assert await listed(parent_task_id=middle.id, root_task_id=other.id) == []
    assert await listed(org_id="org_b", root_task_id=root.id) == []
    newest, *older = await store.list_org_tasks(
        permission(), OrgListFilter(root_task_id=root.id), None, 9
    )
    wanted = OrgListFilter(root_task_id=root.id)
    assert await store.list_org_tasks(permission(), wanted, newest.id, 2) == older[:2]


async def test_a_child_waits_for_the_cancellation_of_its_tree(database_url: str) -> None:
    """The cancellation locks the tree before the workspaces.

    The submission of the child waits for the lock of the tree, and is then refused.
    """
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, machine_clock)
        root, child = await chain(store, 2)
        idle = workspace()
        await store.create_workspace(idle)
        async with held(database_url, child.workspace_id) as waits:
            call = asyncio.create_task(cancel(store, root))
            await waits(1)
            submission = asyncio.create_task(submit_to(store, idle.id, child))
            alone = await submit(store)
            await waits(2)
            assert not submission.done()
        assert (await call).descendants_cancelled == 1
        with pytest.raises(Failure, match="is being cancelled"):
            await submission
        assert await cancelled(store, alone) == [False]


async def test_a_cancellation_waits_for_a_child_that_is_submitted(database_url: str) -> None:
    """The submission holds the tree's lock while it waits for its workspace.

    The cancellation waits for the tree's lock, and then cancels the child.
    """
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, machine_clock)
        root = await submit(store)
        idle = workspace()
        await store.create_workspace(idle)
        async with held(database_url, idle.id) as waits:
            submission = asyncio.create_task(submit_to(store, idle.id, root))
            await waits(1)
            call = asyncio.create_task(cancel(store, root))
            await waits(2)
        child = await submission
        assert (await call).descendants_cancelled == 1
        assert await cancelled(store, root, child) == [True, True]


Hold = Callable[[str, Task, Task], AbstractAsyncContextManager[Callable[[int], Awaitable[None]]]]


async def root_and_child(store: Store) -> tuple[Task, Task]:
    """A root and its child. The child's workspace has the lower id, so its row is locked first."""
    idle = workspace()
    await store.create_workspace(idle)
    root = await submit(store)
    child = await submit_to(store, idle.id, root)
    assert child.workspace_id < root.workspace_id
    return root, child


@pytest.fixture(params=["tree", "row"])
def hold(request: pytest.FixtureRequest) -> Hold:
    """Holds a lock that cancelling the root needs, but does not lock the root's workspace."""
    if request.param == "tree":
        return lambda url, root, child: held_tree(url, ORG, root.id)
    return lambda url, root, child: held(url, child.workspace_id)


async def test_a_call_without_a_task_cancels_the_task_that_is_current_under_the_locks(
    database_url: str, hold: Hold
) -> None:
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, machine_clock)
        root, child = await root_and_child(store)
        async with hold(database_url, root, child) as waits:
            call = asyncio.create_task(cancel(store, root, None))
            await waits(1)
            await end(store, root)
            following = await submit_to(store, root.workspace_id)
            below = await submit(store, following)
        recorded = await call
        assert (recorded.outcome, recorded.descendants_cancelled) == ("accepted", 1)
        assert recorded.task == replace(following, cancel=intent())
        assert await cancelled(store, root, child, following, below) == [False, False, True, True]


async def test_a_call_without_a_task_cancels_nothing_if_none_is_current_under_the_locks(
    database_url: str, hold: Hold
) -> None:
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, machine_clock)
        root, child = await root_and_child(store)
        entry = audit_entry()
        async with hold(database_url, root, child) as waits:
            call = store.cancel_tree(permission(), root.workspace_id, None, intent(), "", entry)
            calling = asyncio.create_task(call)
            await waits(1)
            await end(store, root)
        recorded = await calling
        assert (recorded.outcome, recorded.task) == ("no_active_task", None)
        assert recorded.descendants_cancelled == 0
        assert await cancelled(store, root, child) == [False, False]
        (stored,) = await store.list_audit_entries(permission(), AuditFilter(), None, 10)
        assert (stored.outcome, stored.task_id) == ("no_active_task", "")


async def test_a_call_with_a_task_is_about_it_even_if_it_has_ended_under_the_locks(
    database_url: str, hold: Hold
) -> None:
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, machine_clock)
        root, child = await root_and_child(store)
        async with hold(database_url, root, child) as waits:
            call = asyncio.create_task(cancel(store, root))
            await waits(1)
            await end(store, root)
            following = await submit_to(store, root.workspace_id)
        recorded = await call
        assert (recorded.outcome, recorded.descendants_cancelled) == ("already_finished", 1)
        assert await cancelled(store, root, child, following) == [False, True, False]


async def test_a_call_that_begins_again_has_released_its_locks(database_url: str) -> None:
    """The call must not hold the lock of its first tree while it waits for another tree's lock."""
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, machine_clock)
        root, child = await root_and_child(store)
        async with AsyncExitStack() as second:
            async with held_tree(database_url, ORG, root.id) as waits:
                call = asyncio.create_task(cancel(store, root, None))
                await waits(1)
                await end(store, root)
                following = await submit_to(store, root.workspace_id)
                waits = await second.enter_async_context(held_tree(database_url, ORG, following.id))
            await waits(1)
            await end(store, await submit(store, child))
            await end(store, child)
            assert not call.done()
        assert (await call).outcome == "accepted"
        assert await cancelled(store, child, following) == [False, True]


async def test_trees_that_are_cancelled_together_do_not_deadlock(database_url: str) -> None:
    """Some calls cancel the tree, each from another task in it; others cancel one task each."""
    async with open_pool(database_url) as pool, waiting_sessions(database_url):
        store = PostgresStore(pool, machine_clock)
        tasks = await chain(store, 8)
        tasks += [await submit(store, tasks[0]) for _ in range(8)]
        calls = [cancel(store, each) for each in tasks]
        calls += [
            store.record_cancellation(permission(), each.workspace_id, each.id, intent())
            for each in reversed(tasks)
        ]
        results = await asyncio.gather(*calls)
        assert all(await cancelled(store, *tasks))
        recorded = sum(each.recorded + each.descendants_cancelled for each in results)
        assert recorded == len(tasks)


async def test_submissions_that_wait_for_a_tree_leave_connections_for_others(
    database_url: str,
) -> None:
    """The first submission keeps the lock of its tree. The others outnumber the connections."""
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, machine_clock)
        root, other = await submit(store), await submit(store)
        idle = [workspace() for _ in range(2 * pool.max_size)]
        for each in idle:
            await store.create_workspace(each)
        async with held(database_url, idle[0].id) as waits:
            first = asyncio.create_task(submit_to(store, idle[0].id, root))
            await waits(1)
            others = [asyncio.create_task(submit_to(store, each.id, root)) for each in idle[1:]]
            await waits(2)
            recorded = await store.record_cancellation(
                permission(), other.workspace_id, None, intent()
            )
            assert recorded.outcome == "accepted"
            assert not any(each.done() for each in (first, *others))
        await asyncio.gather(first, *others)
