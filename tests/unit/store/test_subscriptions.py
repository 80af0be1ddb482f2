"""The subscriptions over PostgreSQL. tests/contracts tests what they promise to the core."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from psycopg import AsyncConnection

from evershell.store.connections import Pool
from evershell.store.notifications import WorkspaceSubscriptions
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import workspace
from tests.support.waiting import eventually_async
from tests.unit.store.sessions import end_sessions

LIMIT_SECONDS = 10


@pytest.fixture
async def subscriptions(pool: Pool, database_url: str) -> AsyncIterator[WorkspaceSubscriptions]:
    """Subscriptions that listen. Their poll is later than the end of a test."""
    async with (
        WorkspaceSubscriptions(pool, database_url, machine_clock, poll_seconds=60) as opened,
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
        WorkspaceSubscriptions(pool, database_url, machine_clock, poll_seconds=0.01) as polling,
        polling.subscribe(await added(pool)) as subscription,
    ):
        async with asyncio.timeout(LIMIT_SECONDS):
            await subscription.wait(60)


async def test_a_lost_listener_reconnects_and_wakes_all_waits(
    pool: Pool, database_url: str, subscriptions: WorkspaceSubscriptions
) -> None:
    one, other = await added(pool), await added(pool)
    async with subscriptions.subscribe(one) as a, subscriptions.subscribe(other) as b:
        await end_sessions(database_url)
        async with asyncio.timeout(LIMIT_SECONDS):
            await a.wait(60)
            await b.wait(60)


async def test_a_listener_that_reconnects_marks_the_watched_workspaces_again(
    pool: Pool, database_url: str, subscriptions: WorkspaceSubscriptions
) -> None:
    """A crash of the database loses its latest marks."""
    async with subscriptions.subscribe(await added(pool)):
        async with await AsyncConnection.connect(database_url, autocommit=True) as database:
            await database.execute("UPDATE workspaces SET watched_until = NULL")
        await end_sessions(database_url)
        async with await AsyncConnection.connect(database_url, autocommit=True) as database:

            async def is_marked() -> bool:
                query = "SELECT watched_until > clock_timestamp() FROM workspaces"
                return await (await database.execute(query)).fetchone() == (True,)

            await eventually_async(is_marked)


async def test_subscriptions_start_and_stop_without_a_database(pool: Pool) -> None:
    async with (
        WorkspaceSubscriptions(
            pool, "postgresql:///nowhere?host=/nonexistent", machine_clock
        ) as subscriptions,
        subscriptions.subscribe("ws_1") as subscription,
    ):
        subscriptions.publish("ws_1", watched=True, reconcile=True)
        async with asyncio.timeout(LIMIT_SECONDS):
            await subscription.wait(60)


async def test_a_caller_that_leaves_while_it_subscribes_leaves_no_subscription(pool: Pool) -> None:
    subscriptions = WorkspaceSubscriptions(
        pool, "postgresql:///nowhere?host=/nonexistent", machine_clock
    )
    # Without its background work, the workspace is not marked, so the caller waits.
    subscribing = asyncio.create_task(subscriptions.subscribe("ws_1").__aenter__())
    await asyncio.sleep(0)
    assert subscriptions.has_subscribers("ws_1")
    subscribing.cancel()
    await asyncio.gather(subscribing, return_exceptions=True)
    assert not subscriptions.has_subscribers("ws_1")


async def test_ending_waits_affects_current_subscriptions_only(
    pool: Pool, subscriptions: WorkspaceSubscriptions
) -> None:
    workspace_id = await added(pool)
    async with (
        subscriptions.subscribe(workspace_id) as waiting,
        subscriptions.subscribe(workspace_id) as idle,
        asyncio.timeout(LIMIT_SECONDS),
    ):
        wait = asyncio.create_task(waiting.wait(60))
        await asyncio.sleep(0)
        subscriptions.end_waits()
        assert not await wait
        assert not await idle.wait(60)
        assert not await waiting.wait(60)
        async with subscriptions.subscribe(workspace_id) as later:
            subscriptions.publish(workspace_id, watched=False, reconcile=False)
            assert await later.wait(60)
