"""The contract of Store: the removal of a workspace."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from psycopg import AsyncConnection

from evershell.core import task_lifecycle, workspace_lifecycle
from evershell.core.change import unchanged
from evershell.core.errors import Failure, UnavailableError
from evershell.core.event import AuditFilter
from evershell.core.ports import DELIVERY_WAIT, Store
from evershell.core.task import Task
from evershell.core.workspace import AgentCard, Workspace, WorkspaceStatus
from evershell.features.webhooks.deliveries import WebhookDeliveries
from evershell.features.webhooks.rules import AttemptResult, TaskScope
from evershell.features.webhooks.store import PostgresWebhooks
from evershell.store.deletions import Deletions
from evershell.store.pool import Connection, Pool, connected, open_pool
from evershell.store.postgres_store import PostgresStore
from tests.contracts.test_store_webhooks import webhook
from tests.support.store.audit import audit_entry
from tests.support.store.due import UNSETTLED, due_ids
from tests.support.store.examples import (
    NOW,
    ORG,
    complete,
    first_call,
    intent,
    permission,
    with_task,
    workspace,
)
from tests.support.store.locks import waiting_sessions
from tests.support.store.published import Published
from tests.support.store.trees import submit, submit_to

# Every table from which a removal deletes rows, and the column that has the workspace's id. The
# audit log and the idempotency keys stay.
TABLES = {
    "workspaces": "id",
    "tasks": "workspace_id",
    "events": "workspace_id",
    "agent_cards": "workspace_id",
    "webhooks": "workspace_id",
    "webhook_deliveries": "workspace_id",
}


async def delete(store: Store, workspace_id: str) -> Workspace:
    """Records the deletion of the workspace and the end of its pod. Returns the workspace."""
    await store.transition(
        workspace_id,
        lambda locked: workspace_lifecycle.request_delete(locked, intent("workspace deleted")),
    )
    change = await store.transition(
        workspace_id,
        lambda locked: workspace_lifecycle.finish_stop(
            replace(locked, workspace=replace(locked.workspace, run_id="run_1")),
            locked.workspace.epoch,
            NOW,
            work_stopped=True,
        ),
    )
    assert change is not None and change.workspace.awaits_removal
    return change.workspace


async def test_a_removed_workspace_is_found_only_as_deleted(
    store: Store, published: Published
) -> None:
    busy, running = await with_task(store)
    deleted = await delete(store, busy.id)
    ended = await store.get_task(busy.id, running.id)
    assert ended is not None and ended.status == "cancelled"
    assert await due_ids(store, *UNSETTLED) == [busy.id]
    assert published.to_reconcile[-1] == busy.id
    assert await store.find_deleted_workspace(busy.id, ORG) is None
    assert await store.remove_workspace(busy.id) is True
    assert (published.ids[-1], published.watched[-1]) == (busy.id, busy.id)
    found = await store.find_deleted_workspace(busy.id, ORG)
    assert found is not None and replace(found, last_seq=deleted.last_seq) == deleted
    assert await store.find_deleted_workspace(busy.id, "org_b") is None
    assert await store.get_workspace(busy.id) is None
    assert await store.get_task(busy.id, running.id) is None
    assert await store.transition(busy.id, unchanged) is None
    assert await store.renew_lease(busy.id, busy.epoch, 20) is None
    assert await due_ids(store, *UNSETTLED) == []
    assert await store.list_workspaces(permission(), None, 10) == []
    recorded = await store.record_cancellation(permission(), busy.id, running.id, intent())
    assert recorded.outcome == "workspace_not_found"
    with pytest.raises(Failure, match=f"There is no workspace {busy.id}"):
        await store.list_events(busy.id, 0, 10)


async def test_a_removal_may_be_repeated(store: Store) -> None:
    other, _ = await with_task(store)
    idle = workspace()
    await store.create_workspace(idle)
    await delete(store, idle.id)
    assert await asyncio.gather(*(store.remove_workspace(idle.id) for _ in range(3))) == [True] * 3
    assert await store.remove_workspace("ws_unknown") is True
    assert await store.get_workspace(other.id) == other


async def test_the_entries_of_the_audit_log_stay_and_belong_to_the_creator(store: Store) -> None:
    idle = workspace()
    await store.create_workspace(idle, audit_entry(rpc="CreateWorkspace", workspace_id=idle.id))
    await delete(store, idle.id)
    await store.remove_workspace(idle.id)
    await store.add_audit_entry(audit_entry(rpc="DeleteWorkspace", workspace_id=idle.id))
    for by, count in (
        (permission(), 2),
        (permission(own_only=True), 2),
        (permission(user_id="user_2", own_only=True), 0),
    ):
        assert len(await store.list_audit_entries(by, AuditFilter(), None, 10)) == count


async def test_an_idempotency_key_outlives_what_its_call_created(store: Store) -> None:
    """A late repeat of the creation must not create a second workspace."""
    idle = workspace()
    call = first_call(workspace_id=idle.id)
    await store.create_workspace(idle, None, call)
    await delete(store, idle.id)
    await store.remove_workspace(idle.id)
    assert await store.find_first_call(call) == call


async def test_a_child_outlives_the_workspace_of_its_parent(store: Store) -> None:
    root = await submit(store)
    middle = await submit(store, root)
    leaf = await submit(store, middle)
    other = workspace()
    await store.create_workspace(other)
    await delete(store, root.workspace_id)
    await store.remove_workspace(root.workspace_id)
    with pytest.raises(Failure, match=root.id):
        await submit_to(store, other.id, root)
    further = await submit_to(store, other.id, leaf)
    recorded = await store.cancel_tree(permission(), middle.workspace_id, middle.id, intent())
    assert (recorded.outcome, recorded.descendants_cancelled) == ("accepted", 2)
    for each in (middle, leaf, further):
        found = await store.get_task(each.workspace_id, each.id)
        assert found is not None and found.cancel is not None


@dataclass
class Bench:
    """The stores of a database, and a clock that the test sets."""

    pool: Pool
    store: PostgresStore
    webhooks: PostgresWebhooks
    now: datetime = NOW

    async def rows(self, workspace_id: str) -> dict[str, int]:
        async with connected(self.pool) as connection:
            return {
                table: await _count(connection, table, column, workspace_id)
                for table, column in TABLES.items()
            }


async def _count(connection: Connection, table: str, column: str, workspace_id: str) -> int:
    query = f"SELECT count(*) AS number FROM {table} WHERE {column} = %s"
    row: Any = await (await connection.execute(query, (workspace_id,))).fetchone()
    return int(row.number)


@pytest.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with open_pool(database_url) as pool:
        made = Bench(pool, PostgresStore(pool, lambda: made.now), PostgresWebhooks(pool))
        yield made


async def full(bench: Bench, tasks: int) -> tuple[Workspace, list[Task]]:
    """A workspace that has rows in every table, and whose pod has ended."""
    await bench.webhooks.create_webhook(webhook(), 10)
    at = workspace()
    await bench.store.create_workspace(at, card=AgentCard(description="card"))
    done = []
    for _ in range(tasks):
        done.append(await submit_to(bench.store, at.id))
        scope = TaskScope(workspace_id=at.id, task_id=done[-1].id, name="mine")
        await bench.webhooks.create_webhook(webhook(task=scope), 10)
        await complete(bench.store, at, done[-1].id)
    return await delete(bench.store, at.id), done


async def deliver_all(bench: Bench) -> None:
    worker = WebhookDeliveries(bench.pool, lambda: bench.now, "a")
    while await worker.read_log() is not None:
        pass
    while claimed := (await worker.claim([], [])).deliveries:
        await worker.record(
            [AttemptResult(key=each.key, delivered_seq=each.events[-1][0]) for each in claimed]
        )


async def test_a_removal_takes_bounded_transactions_and_continues_after_each(bench: Bench) -> None:
    at, _ = await full(bench, tasks=5)
    other, _ = await full(bench, tasks=1)
    await deliver_all(bench)
    before, kept = await bench.rows(at.id), await bench.rows(other.id)
    assert all(before.values()), before
    steps = 0
    parameters = (at.id, 2, bench.now, bench.now)
    while True:
        async with connected(bench.pool) as connection:
            cursor = await connection.execute(
                "SELECT remove_workspace(%s, %s, %s, %s) AS result", parameters
            )
            row: Any = await cursor.fetchone()
        after = await bench.rows(at.id)
        if row.result == "removed":
            break
        steps += 1
        assert row.result == "more"
        assert all(before[table] - after[table] <= 4 for table in TABLES), (before, after)
        # The row of the workspace is removed last, because the controller finds the rest by it.
        assert after["workspaces"] == 1
        before = after
    assert not any(after.values()), after
    assert steps > 5
    assert await bench.rows(other.id) == kept


async def test_a_removal_that_is_cut_off_is_continued_by_another(bench: Bench) -> None:
    at, _ = await full(bench, tasks=5)
    await deliver_all(bench)
    before = await bench.rows(at.id)
    # Each transaction first reads the time, then removes one event. The ninth one fails.
    times = Mock(side_effect=[NOW] * 8 + [UnavailableError()])
    deletions = Deletions(bench.pool, times)
    deletions.removed_at_once = 1
    with pytest.raises(UnavailableError):
        await deletions.remove_workspace(at.id)
    assert await bench.rows(at.id) == before | {"events": before["events"] - 8}
    assert await bench.store.remove_workspace(at.id) is True
    assert not any((await bench.rows(at.id)).values())


async def test_no_event_is_left_if_retention_removes_events_at_the_same_time(
    bench: Bench, database_url: str
) -> None:
    at, _ = await full(bench, tasks=5)
    await deliver_all(bench)
    deletions = Deletions(bench.pool, lambda: bench.now)
    # More than the deliveries and the tasks that are left after retention has removed three tasks.
    deletions.removed_at_once = 6
    async with (
        await AsyncConnection.connect(database_url) as retention,
        waiting_sessions(database_url) as waiting,
    ):
        # Removes all events that the first transaction of the removal would remove.
        parameters = (at.id, NOW + timedelta(days=1), deletions.removed_at_once)
        removed = await retention.execute("SELECT remove_old_tasks(%s, %s, 0, %s)", parameters)
        assert await removed.fetchone()
        removal = asyncio.create_task(deletions.remove_workspace(at.id))
        await waiting(1)
        await retention.commit()
        assert await removal is True
    assert not any((await bench.rows(at.id)).values())


async def test_a_removal_waits_for_deliveries_but_not_for_ever(bench: Bench) -> None:
    """The deliveries include the end of the task that the deletion cancelled."""
    at, _ = await full(bench, tasks=1)
    before = await bench.rows(at.id)
    assert await bench.store.remove_workspace(at.id) is False
    assert await bench.rows(at.id) == before
    bench.now = NOW + DELIVERY_WAIT - timedelta(seconds=1)
    assert await bench.store.remove_workspace(at.id) is False
    other, _ = await full(bench, tasks=1)
    bench.now += timedelta(seconds=1)
    assert await bench.store.remove_workspace(at.id) is True
    await deliver_all(bench)
    assert await bench.store.remove_workspace(other.id) is True


async def test_a_removal_waits_until_the_last_event_was_read_for_webhooks(bench: Bench) -> None:
    await bench.webhooks.create_webhook(webhook(), 10)
    at = workspace()
    await bench.store.create_workspace(at)
    await submit_to(bench.store, at.id)
    at = await delete(bench.store, at.id)
    assert await bench.store.remove_workspace(at.id) is False
    await deliver_all(bench)
    assert await bench.store.remove_workspace(at.id) is True


async def test_no_webhook_is_created_for_a_task_that_was_removed(bench: Bench) -> None:
    at, (task, *_) = await full(bench, tasks=1)
    await deliver_all(bench)
    await bench.store.remove_workspace(at.id)
    scope = TaskScope(workspace_id=at.id, task_id=task.id, name="late")
    with pytest.raises(Failure) as raised:
        await bench.webhooks.create_webhook(webhook(task=scope), 10)
    assert raised.value.slug == "task_not_found"
    assert (await bench.rows(at.id))["webhooks"] == 0


async def test_a_workspace_that_is_not_deleted_is_not_removed(bench: Bench) -> None:
    busy, _ = await with_task(bench.store)
    before = await bench.rows(busy.id)
    with pytest.raises(Exception, match="assertion failed"):
        await bench.store.remove_workspace(busy.id)
    assert await bench.rows(busy.id) == before
    await bench.store.transition(
        busy.id, lambda locked: task_lifecycle.request_cancel(locked, intent())
    )
    assert (await bench.rows(busy.id))["events"] == 2
    found = await bench.store.get_workspace(busy.id)
    assert found is not None and found.status is WorkspaceStatus.BUSY
