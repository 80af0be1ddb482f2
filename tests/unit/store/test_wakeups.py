"""The wakeups over PostgreSQL. tests/contracts tests what they promise to the core."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from psycopg import AsyncConnection

from evershell.store.pool import Pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from evershell.store.wakeups import PostgresWakeups
from tests.support.store.examples import workspace
from tests.support.store.sessions import end_sessions
from tests.support.waiting import eventually_async

LIMIT_SECONDS = 10


@pytest.fixture
async def wakeups(pool: Pool, database_url: str) -> AsyncIterator[PostgresWakeups]:
    """Wakeups that listen. Their poll is later than the end of a test."""
    async with (
        PostgresWakeups(pool, database_url, machine_clock, poll_seconds=60) as opened,
        asyncio.timeout(LIMIT_SECONDS * 3),
    ):
        await opened.listening()
        yield opened


async def added(pool: Pool) -> str:
    """Adds a workspace and returns its id."""
    idle = workspace()
    await PostgresStore(pool, machine_clock).create_workspace(idle)
    return idle.id


async def test_a_poll_ends_a_wait(pool: Pool, database_url: str) -> None:
    async with (
        PostgresWakeups(pool, database_url, machine_clock, poll_seconds=0.01) as polling,
        polling.subscribe(await added(pool)) as wakeup,
    ):
        async with asyncio.timeout(LIMIT_SECONDS):
            await wakeup.wait(60)


async def test_a_lost_listener_reconnects_and_wakes_all_waits(
    pool: Pool, database_url: str, wakeups: PostgresWakeups
) -> None:
    one, other = await added(pool), await added(pool)
    async with wakeups.subscribe(one) as a, wakeups.subscribe(other) as b:
        await end_sessions(database_url)
        async with asyncio.timeout(LIMIT_SECONDS):
            await a.wait(60)
            await b.wait(60)


async def test_a_listener_that_reconnects_marks_the_watched_workspaces_again(
    pool: Pool, database_url: str, wakeups: PostgresWakeups
) -> None:
    """A crash of the database loses its latest marks."""
    async with wakeups.subscribe(await added(pool)):
        async with await AsyncConnection.connect(database_url, autocommit=True) as database:
            await database.execute("UPDATE workspaces SET watched_until = NULL")
        await end_sessions(database_url)
        async with await AsyncConnection.connect(database_url, autocommit=True) as database:

            async def is_marked() -> bool:
                query = "SELECT watched_until > clock_timestamp() FROM workspaces"
                return await (await database.execute(query)).fetchone() == (True,)

            await eventually_async(is_marked)


async def test_wakeups_start_and_stop_without_a_database(pool: Pool) -> None:
    async with (
        PostgresWakeups(pool, "postgresql:///nowhere?host=/nonexistent", machine_clock) as wakeups,
        wakeups.subscribe("ws_1") as wakeup,
    ):
        wakeups.announce("ws_1", watched=True, reconcile=True)
        async with asyncio.timeout(LIMIT_SECONDS):
            await wakeup.wait(60)


async def test_a_caller_that_leaves_while_it_subscribes_leaves_no_subscription(pool: Pool) -> None:
    wakeups = PostgresWakeups(pool, "postgresql:///nowhere?host=/nonexistent", machine_clock)
    # Without its background work, the workspace is not marked, so the caller waits.
    subscribing = asyncio.create_task(wakeups.join("ws_1"))
    await asyncio.sleep(0)
    assert wakeups.is_awaited("ws_1")
    subscribing.cancel()
    await asyncio.gather(subscribing, return_exceptions=True)
    assert not wakeups.is_awaited("ws_1")


async def test_ending_waits_affects_current_subscriptions_only(
    pool: Pool, wakeups: PostgresWakeups
) -> None:
    workspace_id = await added(pool)
    async with (
        wakeups.subscribe(workspace_id) as waiting,
        wakeups.subscribe(workspace_id) as idle,
        asyncio.timeout(LIMIT_SECONDS),
    ):
        wait = asyncio.create_task(waiting.wait(60))
        await asyncio.sleep(0)
        wakeups.end_waits()
        assert not await wait
        assert not await idle.wait(60)
        assert not await waiting.wait(60)
        async with wakeups.subscribe(workspace_id) as later:
            wakeups.announce(workspace_id, watched=False, reconcile=False)
            assert await later.wait(60)
