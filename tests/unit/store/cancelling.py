"""A store on PostgreSQL, on which a test decides when the statements of cancellations return."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection

from evershell.core.caller import Permission
from evershell.core.ports import RecordedCancellation
from evershell.core.task import Task
from evershell.core.workspace import Workspace
from evershell.store.connections import Pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import intent, permission, with_task
from tests.support.store.published import Published
from tests.support.waiting import eventually_async, settle

# As many as start alone. Later requests gather.
STATEMENTS_AT_ONCE = 2
# The log of a workspace after one cancellation of its first task.
CANCELLED_LOG = [(1, "task_submitted"), (2, "task_cancel_requested")]


class Cell:
    """A store on a database, on which a test decides when statements return."""

    def __init__(self, url: str, pool: Pool, published: Published) -> None:
        self.url = url
        self.published = published
        self.store = PostgresStore(pool, machine_clock, published)

    def cancel(
        self,
        workspace_id: str,
        task_id: str | None = None,
        *,
        by: Permission | None = None,
        **of_intent: Any,
    ) -> asyncio.Task[RecordedCancellation]:
        return asyncio.create_task(
            self.store.record_cancellation(
                by or permission(), workspace_id, task_id, intent(**of_intent)
            )
        )

    async def busy(self, count: int) -> list[tuple[Workspace, Task]]:
        return [await with_task(self.store) for _ in range(count)]

    @asynccontextmanager
    async def statements_in_flight(self) -> AsyncIterator[AsyncConnection[Any]]:
        """Keeps statements in flight, so that all requests of the block share the next one.

        Yields the connection that blocks them.
        """
        fillers = await self.busy(STATEMENTS_AT_ONCE)
        async with await AsyncConnection.connect(self.url) as holder:
            await holder.execute("LOCK TABLE events IN SHARE MODE")
            calls = [self.cancel(filler.id) for filler, _ in fillers]
            await self.waiting(STATEMENTS_AT_ONCE)
            yield holder
            await settle()
            await holder.rollback()
            await asyncio.gather(*calls)

    async def waiting(self, count: int, kind: str = "%") -> None:
        """Waits until that many sessions wait for a lock of this kind."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND wait_event_type = 'Lock' AND wait_event LIKE %s"
        )

        async def reached() -> bool:
            return bool((await self.query(query, kind))[0][0] >= count)

        await eventually_async(reached)

    async def query(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        async with await AsyncConnection.connect(self.url, autocommit=True) as connection:
            return await (await connection.execute(query, parameters)).fetchall()

    async def transactions(self, task_ids: Sequence[str]) -> int:
        """The number of transactions that have written these tasks last."""
        query = "SELECT count(DISTINCT xmin::text) FROM tasks WHERE id = ANY (%s)"
        return int((await self.query(query, list(task_ids)))[0][0])

    async def log(self, workspace_id: str) -> list[tuple[int, str]]:
        events = await self.store.list_events(workspace_id, 0, 100)
        return [(event.seq, str(event.type)) for event in events]
