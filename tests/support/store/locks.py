"""Holds the lock of a workspace or of a tree, so that a test decides the order of waiting calls."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection

from tests.support.waiting import eventually_async

_WaitUntil = Callable[[int], Coroutine[Any, Any, None]]


@asynccontextmanager
async def waiting_sessions(url: str) -> AsyncIterator[_WaitUntil]:
    """Yields a function that waits until at least `count` sessions wait for locks."""
    async with await AsyncConnection.connect(url, autocommit=True) as observer:

        async def waiting(count: int) -> None:
            async def reached() -> bool:
                query = (
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
                row = await (await observer.execute(query)).fetchone()
                return row is not None and row[0] >= count

            await eventually_async(reached)

        yield waiting


@asynccontextmanager
async def held(url: str, workspace_id: str) -> AsyncIterator[_WaitUntil]:
    """Locks the row of the workspace inside the block. Yields what `waiting_sessions` yields."""
    async with (
        await AsyncConnection.connect(url) as holder,
        waiting_sessions(url) as waiting,
    ):
        await holder.execute("SELECT FROM workspaces WHERE id = %s FOR UPDATE", (workspace_id,))
        yield waiting


@asynccontextmanager
async def held_tree(url: str, org_id: str, task_id: str) -> AsyncIterator[_WaitUntil]:
    """Locks the tree of the task inside the block. Yields what `waiting_sessions` yields."""
    async with (
        await AsyncConnection.connect(url) as holder,
        waiting_sessions(url) as waiting,
    ):
        await holder.execute("SELECT lock_tree(%s, %s)", (org_id, task_id))
        yield waiting
