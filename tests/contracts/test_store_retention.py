"""The contract of Store: old tasks are removed with their events, and nothing else is removed."""

import asyncio
from datetime import timedelta
from functools import partial

import pytest
from psycopg import AsyncConnection

from evershell.core import task_lifecycle, workspace_lifecycle
from evershell.core.errors import Failure
from evershell.core.ports import Removed, Store
from evershell.core.task import Task
from evershell.core.workspace import Workspace
from evershell.features.webhooks.rules import TaskScope
from evershell.features.webhooks.store import PostgresWebhooks
from evershell.store.pool import Pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.contracts.test_store_webhooks import webhook
from tests.support.store.examples import NOW, USER, complete, intent, permission, task, workspace
from tests.support.store.locks import waiting_sessions
from tests.support.store.trees import end, submit

LATER = NOW + timedelta(days=1)


async def run_task(store: Store, at: Workspace, days: int = 0) -> Task:
    """Submits a task and ends it `days` days after NOW. The task has two events."""
    new = await begin_task(store, at)
    await complete(store, at, new.id, NOW + timedelta(days))
    return new


async def begin_task(store: Store, at: Workspace) -> Task:
    new = task(at.id)
    await store.transition(at.id, lambda locked: task_lifecycle.submit(locked, new, USER))
    return new


async def idle(store: Store) -> Workspace:
    created = workspace()
    await store.create_workspace(created)
    return created


async def rest(store: Store, at: Workspace) -> tuple[list[str], list[int]]:
    """The ids of the remaining tasks, and the seqs of the remaining events."""
    tasks = await store.list_tasks(at.id, None, 100)
    events = await store.list_events(at.id, 0, 100)
    return [each.id for each in reversed(tasks)], [each.seq for each in events]


async def test_what_ended_before_the_time_is_removed_and_seq_goes_on(store: Store) -> None:
    at = await idle(store)
    old, _, new = [await run_task(store, at, days) for days in (0, 0, 1)]
    assert await store.remove_old_tasks(at.id, NOW, 0, 100) == Removed(0, 0, 0)
    assert await store.remove_old_tasks(at.id, LATER, 0, 100) == Removed(2, 4, 4)
    assert await rest(store, at) == ([new.id], [5, 6])
    recorded = await store.record_cancellation(permission(), at.id, old.id, intent())
    assert recorded.outcome == "task_not_found"
    assert await store.remove_old_tasks(at.id, LATER, 0, 100) == Removed(0, 0, 0)
    assert await store.remove_old_tasks(at.id, LATER + timedelta(1), 0, 100) == Removed(1, 2, 6)
    last = await run_task(store, at)
    assert await rest(store, at) == ([last.id], [7, 8])


async def test_a_task_that_runs_stays(store: Store) -> None:
    at = await idle(store)
    await run_task(store, at)
    running = await begin_task(store, at)
    assert await store.remove_old_tasks(at.id, LATER, 0, 100) == Removed(1, 2, 2)
    assert await rest(store, at) == ([running.id], [3])


async def test_events_of_the_workspace_itself_go_by_their_time(store: Store) -> None:
    for failed_at, seqs in ((NOW, []), (LATER, [3])):
        at = await idle(store)
        await run_task(store, at)
        fail = partial(
            workspace_lifecycle.lose_agent,
            epoch=at.epoch,
            reason="gone",
            now=failed_at,
            work_stopped=True,
        )
        await store.transition(at.id, fail)
        await store.remove_old_tasks(at.id, LATER, 0, 100)
        assert await rest(store, at) == ([], seqs)


async def test_a_task_stays_until_its_tree_has_ended(store: Store) -> None:
    root = await submit(store)
    child = await submit(store, root)
    at = [await store.get_workspace(each.workspace_id) for each in (root, child)]
    await end(store, child)
    assert (await store.remove_old_tasks(child.workspace_id, LATER, 0, 100)).events == 0
    grandchild = await submit(store, root)
    await end(store, root)
    for each in at:
        assert each is not None
        # A later task of the same workspace stays as long as the first task.
        await run_task(store, each)
        assert (await store.remove_old_tasks(each.id, LATER, 0, 100)).events == 0
    await end(store, grandchild)
    for each in at:
        assert each is not None
        assert await store.remove_old_tasks(each.id, LATER, 0, 100) == Removed(2, 4, 4)


async def test_a_call_looks_at_a_limited_number_of_events(store: Store) -> None:
    at = await idle(store)
    for _ in range(2):
        await run_task(store, at)
    # The row of a task is removed together with the task's first event.
    assert await store.remove_old_tasks(at.id, LATER, 0, 3) == Removed(2, 3, 3)
    assert await rest(store, at) == ([], [4])
    assert await store.remove_old_tasks(at.id, LATER, 3, 3) == Removed(0, 1, 4)
    assert await store.remove_old_tasks(at.id, LATER, 4, 3) == Removed(0, 0, 4)


async def test_workspaces_with_old_events_are_listed_in_pages(store: Store) -> None:
    created = [await idle(store) for _ in range(5)]
    for each, days in zip(created[:4], (0, 3, 0, 0), strict=True):
        await run_task(store, each, days)
    ids = sorted(each.id for each in created)
    old = [each.id for each in created[:4]]
    first, after = await store.list_old_logs(LATER, "", 2)
    assert (sorted(first), after) == (sorted(set(old) & set(ids[:2])), ids[1])
    rest_of, after = await store.list_old_logs(LATER, ids[1], 10)
    assert (sorted(rest_of), after) == (sorted(set(old) & set(ids[2:])), None)
    assert await store.list_old_logs(NOW, "", 10) == ([], None)


async def test_the_oldest_end_is_that_of_the_first_task_that_has_ended(store: Store) -> None:
    at = await idle(store)
    await begin_task(store, await idle(store))
    assert await store.oldest_end() is None
    for days in (2, 1):
        await run_task(store, at, days)
    assert await store.oldest_end() == NOW + timedelta(2)


async def test_no_webhook_is_created_for_a_task_that_is_being_removed(
    pool: Pool, database_url: str
) -> None:
    store, webhooks = PostgresStore(pool, machine_clock), PostgresWebhooks(pool)
    at = await idle(store)
    old = await run_task(store, at)
    scope = TaskScope(workspace_id=at.id, task_id=old.id, name="late")
    async with (
        await AsyncConnection.connect(database_url) as removal,
        waiting_sessions(database_url) as waiting,
    ):
        await removal.execute("SELECT remove_old_tasks(%s, %s, 0, 100)", (at.id, LATER))
        creation = asyncio.create_task(webhooks.create_webhook(webhook(task=scope), 10))
        await waiting(1)
        await removal.commit()
        with pytest.raises(Failure) as raised:
            await creation
    assert raised.value.slug == "task_not_found"
