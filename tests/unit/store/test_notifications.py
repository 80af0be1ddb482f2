"""Notifications between processes: the controller's channel, and subscriptions to workspaces.

tests/contracts tests what subscriptions promise to the core.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from evershell.core.bounds import SILENT_SECONDS
from evershell.store import notifications, watched_workspaces
from evershell.store.background import running
from evershell.store.connections import CALLS_NAME
from evershell.store.notifications import (
    FleetSubscriptions,
    WorkspaceSubscriptions,
)
from evershell.store.pool import Pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from evershell.store.watched_workspaces import WatchedWorkspaces
from tests.support.store.examples import intent, permission, with_task, workspace
from tests.support.store.locks import held
from tests.support.waiting import eventually_async

_SLOW = """
SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND state = 'active'
AND clock_timestamp() - state_change > make_interval(secs => %s)
"""


_HOLD_MARKS = """
CREATE FUNCTION wait_for_marks() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END';
CREATE TRIGGER wait_for_marks BEFORE UPDATE OF watched_until ON workspaces
    EXECUTE FUNCTION wait_for_marks()
"""
_WAITING_FOR_MARKS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'advisory'
"""


async def end_sessions(database_url: str) -> None:
    """Ends all sessions of the database except its own."""
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


LIMIT_SECONDS = 10
Database = psycopg.Connection[TupleRow]


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


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes subscribers wait until their workspace is marked as watched, even on a slow machine."""
    monkeypatch.setattr(watched_workspaces, "_MARK_LIMIT_SECONDS", LIMIT_SECONDS)


@pytest.fixture
def impatient(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes subscribers wait only briefly if their workspace cannot be marked as watched."""
    monkeypatch.setattr(watched_workspaces, "_MARK_LIMIT_SECONDS", 0.05)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@asynccontextmanager
async def process(
    pool: Pool, woken: list[str] | None = None, *, renew_seconds: float = 20.0
) -> AsyncIterator[WatchedWorkspaces]:
    """Runs WatchedWorkspaces as one process does.

    `woken` gets the ids of the workspaces whose subscribers are woken.
    """
    woken = [] if woken is None else woken
    watched = WatchedWorkspaces(pool, woken.append, machine_clock, renew_seconds=renew_seconds)
    async with running(watched.run(), "watched"), asyncio.timeout(3 * LIMIT_SECONDS):
        yield watched


async def added(pool: Pool) -> str:
    """Adds a workspace and returns its id."""
    idle = workspace()
    await PostgresStore(pool, machine_clock).create_workspace(idle)
    return idle.id


def remaining(database: Database, workspace_id: str) -> float:
    """For how many more seconds the workspace is marked as watched; 0 if it is not marked."""
    query = (
        "SELECT coalesce(extract(epoch FROM watched_until - clock_timestamp()), 0)::float"
        " FROM workspaces WHERE id = %s"
    )
    row = database.execute(query, (workspace_id,)).fetchone()
    assert row is not None
    return float(row[0])


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


async def test_the_controller_receives_no_other_changes(
    worker: WorkspaceSubscriptions, fleet: FleetSubscriptions
) -> None:
    async with fleet.subscribe() as subscription:
        for watched in (False, True):
            worker.publish("ws_other", watched=watched, reconcile=False)
            fleet.publish("ws_other", watched=watched, reconcile=False)
        worker.publish("ws_last", watched=False, reconcile=True)
        assert await asyncio.wait_for(subscription.wait(60), LIMIT_SECONDS) == {"ws_last"}


async def test_a_lost_listener_reconnects_and_wakes_the_controller(
    database_url: str, worker: WorkspaceSubscriptions, fleet: FleetSubscriptions
) -> None:
    async with fleet.subscribe() as subscription, asyncio.timeout(LIMIT_SECONDS):
        await end_sessions(database_url)
        assert await subscription.wait(60) == set()
        await fleet.listening()
        worker.publish("ws_1", watched=False, reconcile=True)
        assert await subscription.wait(60) == {"ws_1"}


async def test_a_poll_ends_a_wait(pool: Pool, database_url: str) -> None:
    async with (
        WorkspaceSubscriptions(pool, database_url, machine_clock, poll_seconds=0.01) as polling,
        polling.subscribe(await added(pool)) as subscription,
    ):
        async with asyncio.timeout(LIMIT_SECONDS):
            await subscription.wait(60)


async def test_a_lost_listener_reconnects_and_wakes_all_waits(
    pool: Pool, database_url: str, worker: WorkspaceSubscriptions
) -> None:
    one, other = await added(pool), await added(pool)
    async with worker.subscribe(one) as a, worker.subscribe(other) as b:
        await end_sessions(database_url)
        async with asyncio.timeout(LIMIT_SECONDS):
            await a.wait(60)
            await b.wait(60)


async def test_a_listener_that_reconnects_marks_the_watched_workspaces_again(
    pool: Pool, database_url: str, database: Database, worker: WorkspaceSubscriptions
) -> None:
    """A crash of the database may lose the latest marks of watched workspaces."""
    workspace_id = await added(pool)
    async with worker.subscribe(workspace_id):
        database.execute("UPDATE workspaces SET watched_until = NULL")
        # This ends the session of `database` too.
        await end_sessions(database_url)
        with psycopg.connect(database_url, autocommit=True) as observer:
            await eventually_async(lambda: remaining(observer, workspace_id) > 50)


async def test_a_caller_that_leaves_while_it_subscribes_leaves_no_subscription(pool: Pool) -> None:
    subscriptions = WorkspaceSubscriptions(
        pool, "postgresql:///nowhere?host=/nonexistent", machine_clock
    )
    # The background work does not run, so the workspace is not marked and the caller waits.
    subscribing = asyncio.create_task(subscriptions.subscribe("ws_1").__aenter__())
    await asyncio.sleep(0)
    assert subscriptions.has_subscribers("ws_1")
    subscribing.cancel()
    await asyncio.gather(subscribing, return_exceptions=True)
    assert not subscriptions.has_subscribers("ws_1")


async def test_ending_waits_affects_current_subscriptions_only(
    pool: Pool, worker: WorkspaceSubscriptions
) -> None:
    workspace_id = await added(pool)
    async with (
        worker.subscribe(workspace_id) as waiting,
        worker.subscribe(workspace_id) as idle,
        asyncio.timeout(LIMIT_SECONDS),
    ):
        wait = asyncio.create_task(waiting.wait(60))
        await asyncio.sleep(0)
        worker.end_waits()
        assert not await wait
        assert not await idle.wait(60)
        assert not await waiting.wait(60)
        async with worker.subscribe(workspace_id) as later:
            worker.publish(workspace_id, watched=False, reconcile=False)
            assert await later.wait(60)


async def test_a_worker_gives_signs_of_life_until_it_ends(
    pool: Pool, database_url: str, fleet: FleetSubscriptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener of a controller does not count as a worker."""
    store = PostgresStore(pool, machine_clock)
    monkeypatch.setattr(notifications, "SIGN_OF_LIFE_SECONDS", 0.01)
    async with WorkspaceSubscriptions(pool, database_url, machine_clock) as worker:
        await worker.listening()
        began = time.monotonic()

        async def is_heard() -> bool:
            (silence,) = await store.worker_silences()
            return silence < (time.monotonic() - began) / 2

        await eventually_async(is_heard)
        # From here on, the worker gives no sign of life, as if its event loop were blocked.
        monkeypatch.setattr(notifications, "SIGN_OF_LIFE_SECONDS", 60)

        async def is_silent() -> bool:
            (silence,) = await store.worker_silences()
            return silence > SILENT_SECONDS

        await eventually_async(is_silent)

    async def is_gone() -> bool:
        return await store.worker_silences() == []

    await eventually_async(is_gone)


async def test_a_slow_statement_of_a_worker_is_no_silence(pool: Pool, database_url: str) -> None:
    """A commit that waits for a disk or standby would make the worker silent. A query does not."""
    url = make_conninfo(database_url, application_name=CALLS_NAME)
    async with await AsyncConnection.connect(url, autocommit=True) as calls:
        answer = asyncio.create_task(calls.execute("SELECT pg_sleep(60)"))
        async with await AsyncConnection.connect(database_url, autocommit=True) as other:

            async def is_slow() -> bool:
                found = await other.execute(_SLOW, (CALLS_NAME, SILENT_SECONDS))
                return await found.fetchone() is not None

            await eventually_async(is_slow)
        assert await PostgresStore(pool, machine_clock).worker_silences() == []
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)


async def test_the_mark_is_committed_before_watch_returns(pool: Pool, database: Database) -> None:
    workspace_id = await added(pool)
    async with process(pool) as watched:
        assert remaining(database, workspace_id) == 0
        await watched.watch(workspace_id)
        assert 50 < remaining(database, workspace_id) <= 60


async def test_a_mark_that_ends_soon_is_set_anew(pool: Pool, database: Database) -> None:
    workspace_id = await added(pool)
    database.execute("UPDATE workspaces SET watched_until = clock_timestamp() + interval '39 s'")
    async with process(pool) as watched:
        await watched.watch(workspace_id)
    assert remaining(database, workspace_id) > 50


async def test_many_marks_are_set_at_once(pool: Pool, database: Database) -> None:
    ids = [await added(pool) for _ in range(250)]
    async with process(pool) as watched:
        await asyncio.gather(*map(watched.watch, ids))
        row = database.execute(
            "SELECT count(DISTINCT id), count(DISTINCT xmin::text) FROM workspaces "
            "WHERE watched_until > clock_timestamp()"
        ).fetchone()
    # One transaction sets up to a hundred marks.
    assert row == (250, 3)


@pytest.mark.usefixtures("impatient")
async def test_many_subscriptions_wait_with_one_connection_and_delay_no_cancellation(
    pool: Pool, database: Database
) -> None:
    """Another organization cancels and subscribes while the marks of the first one are slow."""
    ids, store, woken = (
        [await added(pool) for _ in range(250)],
        PostgresStore(pool, machine_clock),
        list[str](),
    )
    other, _ = await with_task(store, org_id="org_b")
    database.execute(_HOLD_MARKS)
    try:
        database.execute("SELECT pg_advisory_lock(1)")
        async with process(pool, woken) as watched:
            # Each subscriber goes on after a while, although its workspace is not marked yet.
            await asyncio.gather(*map(watched.watch, ids))
            await eventually_async(lambda: database.execute(_WAITING_FOR_MARKS).fetchone() != (0,))
            by = permission(org_id="org_b")
            recorded = await store.record_cancellation(by, other.id, None, intent())
            assert recorded.outcome == "accepted"
            await watched.watch(other.id)
            assert database.execute(_WAITING_FOR_MARKS).fetchone() == (1,)
            assert woken == []
            database.execute("SELECT pg_advisory_unlock(1)")
            await eventually_async(lambda: sorted(woken) == sorted([*ids, other.id]))
    finally:
        database.execute("DROP FUNCTION wait_for_marks CASCADE")


async def test_marks_are_renewed_while_there_are_subscribers(
    pool: Pool,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watched_workspaces, "_CHECK_SECONDS", 0.01)
    watched_id, left_id, woken = await added(pool), await added(pool), list[str]()
    async with process(pool, woken, renew_seconds=0.02) as watched:
        await watched.watch(watched_id)
        await watched.watch(left_id)
        watched.leave(left_id)
        database.execute("UPDATE workspaces SET watched_until = NULL")
        for _ in range(3):
            await eventually_async(lambda: remaining(database, watched_id) > 50)
            database.execute(
                "UPDATE workspaces SET watched_until = NULL WHERE id = %s", (watched_id,)
            )
        assert remaining(database, left_id) == 0
    # Renewals of marks wake nobody, because no commit was missed.
    assert woken == [watched_id, left_id]


@pytest.mark.usefixtures("impatient")
async def test_a_locked_workspace_does_not_delay_the_marks_of_others(
    pool: Pool, database_url: str, database: Database
) -> None:
    locked_id, free_id, woken = await added(pool), await added(pool), list[str]()
    async with process(pool, woken) as watched:
        async with held(database_url, locked_id):
            await asyncio.gather(watched.watch(locked_id), watched.watch(free_id))
            await eventually_async(lambda: remaining(database, free_id) > 50)
            # The locked workspace cannot be marked yet, so its subscriber goes on without the mark.
            assert remaining(database, locked_id) == 0
        # Once the workspace has its mark, the subscriber is woken to read again.
        await eventually_async(lambda: woken == [free_id, locked_id])
        assert remaining(database, locked_id) > 50


@pytest.mark.usefixtures("impatient")
async def test_marks_are_set_once_the_database_answers_again(
    pool: Pool, database_url: str, database: Database
) -> None:
    workspace_id, woken = await added(pool), list[str]()
    async with process(pool, woken) as watched:
        # The statement fails until the column is back.
        database.execute("ALTER TABLE workspaces RENAME COLUMN watched_until TO away")
        try:
            await watched.watch(workspace_id)
        finally:
            database.execute("ALTER TABLE workspaces RENAME COLUMN away TO watched_until")
        await eventually_async(lambda: woken == [workspace_id])
        assert remaining(database, workspace_id) > 50
