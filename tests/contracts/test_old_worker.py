"""A worker of the previous version works on the current schema, at the same time as a new worker.

Both use the same rows during a rolling restart, after the new version has migrated the database.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib import resources

import pytest
import yoyo
from psycopg import AsyncConnection

from evershell.core.task import Task
from evershell.core.workspace import WorkspaceStatus
from evershell.store import migrate as migration
from evershell.store.connections import Pool, open_pool
from evershell.store.migrate import migrate
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.contracts.old_worker import (
    OldWorker,
    released_row,
    task_columns,
    workspace_columns,
)
from tests.contracts.released_worker import released_migration
from tests.support.store.examples import (
    ORG,
    USER,
    complete,
    intent,
    permission,
    task,
    with_task,
    workspace,
)

_AFTER_ALL_IDS = "~"


@pytest.fixture
async def old(database_url: str) -> AsyncIterator[OldWorker]:
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        yield OldWorker(connection)


@pytest.fixture
def new(pool: Pool) -> PostgresStore:
    return PostgresStore(pool, machine_clock)


async def test_the_old_worker_reads_rows_of_the_new_one(old: OldWorker, new: PostgresStore) -> None:
    busy, submitted = await with_task(new)
    found = await new.record_cancellation(
        permission(), busy.id, None, intent(force_after_seconds=9)
    )
    assert found.workspace is not None and found.task is not None
    workspace_row = released_row("workspaces", workspace_columns(found.workspace))
    task_row = released_row("tasks", task_columns(found.task))
    assert await old.read("get_workspace", busy.id, None) == [workspace_row]
    assert await old.read("list_workspaces", ORG, _AFTER_ALL_IDS, 10) == [workspace_row]
    assert await old.read("list_own_workspaces", ORG, USER, _AFTER_ALL_IDS, 10) == [workspace_row]
    assert await old.read("list_wanted_pods", "", 10) == [workspace_row]
    assert await old.read("list_cancellations") == [workspace_row + task_row]
    assert await old.read("get_task", submitted.id, busy.id) == [task_row]
    assert await old.read("list_tasks", busy.id, _AFTER_ALL_IDS, 10) == [task_row]
    events = await old.read("list_events", busy.id, 0, 10)
    assert [event[:3] for event in events] == [
        (busy.id, 1, "task_submitted"),
        (busy.id, 2, "task_cancel_requested"),
    ]


async def test_the_new_worker_reads_rows_of_the_old_one(old: OldWorker, new: PostgresStore) -> None:
    idle, submitted = workspace(), task("")
    submitted = replace(submitted, workspace_id=idle.id)
    await old.insert("workspaces", workspace_columns(idle))
    assert await new.get_workspace(idle.id) == idle
    await old.submit(idle.id, submitted)
    busy = replace(idle, status=WorkspaceStatus.BUSY, current_task_id=submitted.id, last_seq=1)
    assert await new.get_workspace(idle.id) == busy
    assert await new.get_task(idle.id, submitted.id) == _of_old(submitted)
    assert await new.list_wanted_pods("", 10) == [busy]
    assert [event.type for event in await new.list_events(idle.id, 0, 10)] == ["task_submitted"]


async def test_each_worker_cancels_a_task_that_the_other_submitted(
    old: OldWorker, new: PostgresStore
) -> None:
    busy, submitted = await with_task(new)
    assert await old.record_cancellation(busy.id, intent("old", force_after_seconds=9))
    found = await new.record_cancellation(
        permission(), busy.id, None, intent("new", force_after_seconds=5)
    )
    assert not found.recorded
    stored = replace(intent("old"), force_at=intent(force_after_seconds=5).force_at)
    stored = replace(stored, force_requested_by=USER)
    assert found.task == replace(submitted, cancel=stored)
    await complete(new, busy, submitted.id)
    following = task(busy.id)
    await old.submit(busy.id, following)
    assert (await new.record_cancellation(permission(), busy.id, None, intent())).recorded
    assert not await old.record_cancellation(busy.id, intent(force_after_seconds=1))
    cancelled = await new.get_task(busy.id, following.id)
    assert cancelled == replace(_of_old(following), cancel=intent(force_after_seconds=1))


async def test_a_connected_old_worker_continues_after_the_migration(
    empty_database_url: str,
) -> None:
    """The old worker prepared its statements on the old schema."""
    migrate_to(empty_database_url, released_migration())
    idle, submitted = workspace(), task("")
    submitted = replace(submitted, workspace_id=idle.id)
    async with (
        await AsyncConnection.connect(empty_database_url, autocommit=True) as connection,
        open_pool(empty_database_url, min_size=1) as pool,
    ):
        old, new = OldWorker(connection), PostgresStore(pool, machine_clock)
        await old.insert("workspaces", workspace_columns(idle))
        await old.submit(idle.id, submitted)
        before = [
            await old.read("get_workspace", idle.id, None),
            await old.read("list_wanted_pods", "", 10),
        ]
        await asyncio.to_thread(migrate, empty_database_url)
        after = [
            await old.read("get_workspace", idle.id, None),
            await old.read("list_wanted_pods", "", 10),
        ]
        assert after == before
        assert await old.record_cancellation(idle.id, intent())
        found = await new.record_cancellation(permission(), idle.id, None, intent())
        assert found.task == replace(_of_old(submitted), cancel=intent())
        assert not found.recorded


def _of_old(submitted: Task) -> Task:
    """A task that the old worker has submitted. It knows no costs."""
    return replace(submitted, usage=replace(submitted.usage, cost_nanos=None))


def migrate_to(database_url: str, last_migration: str) -> None:
    """Migrates an empty database to an earlier schema."""
    source = resources.files("evershell.store") / "migrations"
    with (
        resources.as_file(source) as folder,
        yoyo.get_backend(migration._yoyo_url(database_url)) as backend,
    ):
        released = yoyo.read_migrations(str(folder)).filter(lambda each: each.id <= last_migration)
        backend.apply_migrations(backend.to_apply(released))
