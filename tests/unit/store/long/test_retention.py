"""A year in which old tasks are removed: the tables stay as large as after the second day."""

import random
from datetime import timedelta

import pytest

from evershell.core import task_lifecycle
from evershell.core.ids import new_task_id
from evershell.core.task import Task, TaskEnded, TaskStarted, TaskStatus
from evershell.core.workspace import Workspace
from evershell.fleet import periodic
from evershell.fleet.retention import Retention
from evershell.store.pool import Pool, connected, open_pool
from evershell.store.postgres_store import PostgresStore
from tests.support.store.examples import NOW, USER, workspace

_DAYS, _WORKSPACES = 365, 4
# Allows for the free space that removed rows leave until later rows use it.
_MAX_GROWTH = 2.0
_SIZE = (
    "SELECT sum(pg_total_relation_size(name::regclass))::bigint AS bytes "
    "FROM unnest(ARRAY['events', 'tasks', 'workspaces']) AS name"
)


class Year:
    """A store with its own clock."""

    def __init__(self, pool: Pool) -> None:
        self.now = NOW
        self._pool = pool
        self.store = PostgresStore(pool, lambda: self.now)
        self.retention = Retention(self.store, lambda: self.now, timedelta(days=1))
        self._texts = random.Random(0)

    async def run_task(self, at: Workspace) -> None:
        """Runs a task that has three events, and text that cannot be compressed."""
        new = Task(
            id=new_task_id(self.now),
            workspace_id=at.id,
            description=self._texts.randbytes(700).hex(),
            metadata={},
            created_at=self.now,
        )
        end = TaskEnded(status=TaskStatus.COMPLETED, result="done")
        await self.store.transition(at.id, lambda locked: task_lifecycle.submit(locked, new, USER))
        await self.store.transition(
            at.id,
            lambda locked: task_lifecycle.commit(
                locked, at.epoch, new.id, (TaskStarted(), end), self.now
            ),
        )

    async def size(self) -> int:
        """Vacuums the tables, as autovacuum would. Returns their size in bytes."""
        async with self._pool.connection() as connection:
            for table in ("events", "tasks", "workspaces"):
                await connection.execute(f"VACUUM {table}".encode())
        async with connected(self._pool) as connection:
            row = await (await connection.execute(_SIZE)).fetchone()
        assert row is not None
        return int(row.bytes)


async def test_the_size_is_level_after_the_second_day(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(periodic, "_SHARE", 1.0)
    async with open_pool(database_url) as pool:
        year, sizes = Year(pool), list[int]()
        made = [workspace() for _ in range(_WORKSPACES)]
        for each in made:
            await year.store.create_workspace(each)
        for _ in range(_DAYS):
            for each in made:
                await year.run_task(each)
            await year.retention.sweep()
            sizes.append(await year.size())
            year.now += timedelta(days=1)
        assert max(sizes) <= _MAX_GROWTH * sizes[1], sizes
        for each in made:
            # Only the tasks of the last two days are left.
            seqs = [event.seq for event in await year.store.list_events(each.id, 0, 100)]
            assert seqs == list(range(3 * (_DAYS - 2) + 1, 3 * _DAYS + 1))
            assert len(await year.store.list_tasks(each.id, None, 100)) == 2
