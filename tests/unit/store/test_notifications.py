"""The notifications between processes, and the channel of the fleet controller."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from psycopg import AsyncConnection

from evershell.core import workspace_lifecycle
from evershell.core.workspace import WorkspaceStatus
from evershell.store.connections import Pool
from evershell.store.notifications import FleetSubscriptions, WorkspaceSubscriptions, _payloads
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import NOW, intent, workspace
from tests.unit.store.sessions import end_sessions

LIMIT_SECONDS = 10


@pytest.fixture
async def worker(pool: Pool, database_url: str) -> AsyncIterator[WorkspaceSubscriptions]:
    async with WorkspaceSubscriptions(
        pool, database_url, machine_clock, poll_seconds=60
    ) as subscriptions:
        await subscriptions.listening()
        yield subscriptions


@pytest.fixture
async def fleet(pool: Pool, database_url: str) -> AsyncIterator[FleetSubscriptions]:
    async with (
        FleetSubscriptions(pool, database_url) as subscriptions,
        asyncio.timeout(LIMIT_SECONDS * 3),
    ):
        await subscriptions.listening()
        yield subscriptions


async def test_the_controller_receives_the_changes_that_await_it(
    worker: WorkspaceSubscriptions, fleet: FleetSubscriptions
) -> None:
    expected = {f"ws_{number:0120d}" for number in range(200)}
    async with fleet.subscribe() as subscription:
        for workspace_id in expected:
            worker.publish(workspace_id, watched=False, reconcile=True)
        seen: set[str] = set()
        async with asyncio.timeout(LIMIT_SECONDS):
            while seen != expected:
                seen |= await subscription.wait(60)
        assert await subscription.wait(0.01) == set()


async def test_the_controller_receives_new_stopping_and_resumed_workspaces(
    pool: Pool, worker: WorkspaceSubscriptions, fleet: FleetSubscriptions
) -> None:
    store, new = (
        PostgresStore(pool, machine_clock, worker.publish),
        workspace(WorkspaceStatus.PROVISIONING),
    )
    async with fleet.subscribe() as subscription, asyncio.timeout(LIMIT_SECONDS):

        async def received() -> bool:
            return await subscription.wait(60) == {new.id}

        await store.create_workspace(new)
        assert await received()
        await store.transition(
            new.id, lambda locked: workspace_lifecycle.register(locked, 1, "127.0.0.1:9", 10, NOW)
        )
        await store.transition(
            new.id, lambda locked: workspace_lifecycle.request_stop(locked, intent())
        )
        assert await received()
        await store.transition(
            new.id,
            lambda locked: workspace_lifecycle.finish_stop(locked, 1, NOW, work_stopped=True),
        )
        await store.transition(new.id, lambda locked: workspace_lifecycle.resume(locked, NOW))
        assert await received()
        assert await subscription.wait(0.01) == set()


async def test_the_controller_receives_no_other_changes(
    worker: WorkspaceSubscriptions, fleet: FleetSubscriptions
) -> None:
    async with fleet.subscribe() as subscription:
        for watched in (False, True):
            worker.publish("ws_other", watched=watched, reconcile=False)
            fleet.publish("ws_other", watched=watched, reconcile=False)
        worker.publish("ws_last", watched=False, reconcile=True)
        assert await asyncio.wait_for(subscription.wait(60), LIMIT_SECONDS) == {"ws_last"}


async def test_the_controller_receives_its_own_changes(fleet: FleetSubscriptions) -> None:
    async with fleet.subscribe() as subscription:
        fleet.publish("ws_1", watched=False, reconcile=True)
        assert await asyncio.wait_for(subscription.wait(60), LIMIT_SECONDS) == {"ws_1"}


async def test_a_lost_listener_reconnects_and_wakes_the_controller(
    database_url: str, worker: WorkspaceSubscriptions, fleet: FleetSubscriptions
) -> None:
    async with fleet.subscribe() as subscription, asyncio.timeout(LIMIT_SECONDS):
        await end_sessions(database_url)
        assert await subscription.wait(60) == set()
        await fleet.listening()
        worker.publish("ws_1", watched=False, reconcile=True)
        assert await subscription.wait(60) == {"ws_1"}


async def test_one_notification_carries_all_changes_since_the_last_one(
    database_url: str, worker: WorkspaceSubscriptions
) -> None:
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        for channel in ("evershell_changes", "evershell_fleet"):
            await connection.execute(f"LISTEN {channel}")
        for number in range(50):
            worker.publish(f"ws_{number}", watched=True, reconcile=True)
        received = [
            (notification.channel, len(notification.payload.split("\n")) - 1)
            async for notification in connection.notifies(timeout=LIMIT_SECONDS, stop_after=2)
        ]
    assert received == [("evershell_changes", 50), ("evershell_fleet", 50)]


def test_payloads_are_below_the_limit_of_notify() -> None:
    ids = {f"ws_{number:0125d}" for number in range(1000)}
    payloads = _payloads("origin", ids)
    assert all(len(payload) < 8000 for payload in payloads)
    assert {each for payload in payloads for each in payload.split("\n")[1:]} == ids
