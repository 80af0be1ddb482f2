"""The wakeups over PostgreSQL. tests/contracts tests what they promise to the core."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from psycopg import AsyncConnection

from server.store.pool import Pool
from server.store.wakeups import PostgresWakeups, _payloads

LIMIT_SECONDS = 10


@pytest.fixture
async def wakeups(
    pool: Pool, database_url: str
) -> AsyncIterator[tuple[PostgresWakeups, PostgresWakeups]]:
    """The wakeups of two processes, both listening. Their poll is later than the end of a test."""
    async with (
        PostgresWakeups(pool, database_url, poll_seconds=60) as one,
        PostgresWakeups(pool, database_url, poll_seconds=60) as other,
        asyncio.timeout(LIMIT_SECONDS * 3),
    ):
        await one.listening()
        await other.listening()
        yield one, other


async def test_the_fleet_receives_the_changes_of_all_workspaces(
    wakeups: tuple[PostgresWakeups, PostgresWakeups],
) -> None:
    one, other = wakeups
    expected = {f"ws_{number:0120d}" for number in range(200)}
    async with other.subscribe_all() as wakeup:
        for workspace_id in expected:
            one.announce(workspace_id, watched=True, reconcile=True)
        seen: set[str] = set()
        async with asyncio.timeout(LIMIT_SECONDS):
            while seen != expected:
                seen |= await wakeup.wait(60)
        assert await wakeup.wait(0.01) == set()


async def test_a_poll_ends_a_wait(pool: Pool, database_url: str) -> None:
    async with (
        PostgresWakeups(pool, database_url, poll_seconds=0.01) as polling,
        polling.subscribe("ws_1") as wakeup,
    ):
        async with asyncio.timeout(LIMIT_SECONDS):
            await wakeup.wait(60)


async def test_a_lost_listener_reconnects_and_wakes_all_waits(
    database_url: str, wakeups: tuple[PostgresWakeups, PostgresWakeups]
) -> None:
    one, other = wakeups
    async with other.subscribe("ws_1") as wakeup, other.subscribe_all() as fleet:
        async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        async with asyncio.timeout(LIMIT_SECONDS):
            await wakeup.wait(60)
            assert await fleet.wait(60) == set()
            await other.listening()
            one.announce("ws_1", watched=True, reconcile=True)
            await wakeup.wait(60)
            assert await fleet.wait(60) == {"ws_1"}


async def test_wakeups_start_and_stop_without_a_database(pool: Pool) -> None:
    async with (
        PostgresWakeups(pool, "postgresql:///nowhere?host=/nonexistent") as wakeups,
        wakeups.subscribe("ws_1") as wakeup,
    ):
        wakeups.announce("ws_1", watched=True, reconcile=True)
        async with asyncio.timeout(LIMIT_SECONDS):
            await wakeup.wait(60)


def test_payloads_are_below_the_limit_of_notify() -> None:
    ids = {f"ws_{number:0125d}" for number in range(1000)}
    payloads = _payloads("origin", ids)
    assert all(len(payload) < 8000 for payload in payloads)
    assert {each for payload in payloads for each in payload.split("\n")[1:]} == ids


async def test_ending_waits_affects_current_subscriptions_only(
    wakeups: tuple[PostgresWakeups, PostgresWakeups],
) -> None:
    one, _ = wakeups
    async with (
        one.subscribe("ws_1") as waiting,
        one.subscribe("ws_1") as idle,
        asyncio.timeout(LIMIT_SECONDS),
    ):
        wait = asyncio.create_task(waiting.wait(60))
        await asyncio.sleep(0)
        one.end_waits()
        assert not await wait
        assert not await idle.wait(60)
        assert not await waiting.wait(60)
        async with one.subscribe("ws_1") as later:
            one.announce("ws_1", watched=True, reconcile=True)
            assert await later.wait(60)
