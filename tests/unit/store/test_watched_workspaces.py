"""The marks that say in which workspaces some process has subscribers."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from psycopg.rows import TupleRow

from evershell.store import watched_workspaces
from evershell.store.background import running
from evershell.store.connections import Pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from evershell.store.watched_workspaces import WatchedWorkspaces
from tests.support.store.examples import workspace
from tests.support.store.locks import held
from tests.support.waiting import eventually_async
from tests.unit.store.sessions import end_sessions

Database = psycopg.Connection[TupleRow]

LIMIT_SECONDS = 10.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subscribers wait for their mark even if the machine is slow."""
    monkeypatch.setattr(watched_workspaces, "_MARK_LIMIT_SECONDS", LIMIT_SECONDS)


@pytest.fixture
def impatient(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Subscribers do not wait long for a mark that cannot be set."""
    monkeypatch.setattr(watched_workspaces, "_MARK_LIMIT_SECONDS", 0.05)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@asynccontextmanager
async def process(
    pool: Pool, woken: list[str] | None = None, *, renew_seconds: float = 20.0
) -> AsyncIterator[WatchedWorkspaces]:
    """The marks of one process. Adds the workspaces whose subscribers it wakes to `woken`."""
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
    """For how many seconds the workspace is marked; 0 if it has no mark."""
    query = (
        "SELECT coalesce(extract(epoch FROM watched_until - clock_timestamp()), 0)::float"
        " FROM workspaces WHERE id = %s"
    )
    row = database.execute(query, (workspace_id,)).fetchone()
    assert row is not None
    return float(row[0])


def version(database: Database, workspace_id: str) -> object:
    """Identifies the version of the row. It differs after each update."""
    query = "SELECT xmin::text FROM workspaces WHERE id = %s"
    return database.execute(query, (workspace_id,)).fetchone()


async def test_the_mark_is_committed_before_watch_returns(pool: Pool, database: Database) -> None:
    workspace_id = await added(pool)
    async with process(pool) as watched:
        assert remaining(database, workspace_id) == 0
        await watched.watch(workspace_id)
        assert 50 < remaining(database, workspace_id) <= 60


async def test_the_mark_changes_nothing_else(pool: Pool) -> None:
    workspace_id, store = await added(pool), PostgresStore(pool, machine_clock)
    before = await store.get_workspace(workspace_id)
    async with process(pool) as watched:
        await watched.watch(workspace_id)
    assert await store.get_workspace(workspace_id) == before


async def test_setting_a_mark_changes_no_index(
    database: Database,
) -> None:
    """An update of a column that no index has is a heap-only update."""
    query = "SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%watched_until%'"
    assert database.execute(query).fetchone() == (0,)


async def test_a_mark_in_force_costs_the_next_subscriber_no_statement(
    pool: Pool, database: Database
) -> None:
    workspace_id, woken = await added(pool), list[str]()
    async with process(pool, woken) as watched:
        await watched.watch(workspace_id)
        # Only a statement would set it again.
        database.execute("UPDATE workspaces SET watched_until = NULL")
        await watched.watch(workspace_id)
        assert remaining(database, workspace_id) == 0
    assert woken == [workspace_id]


async def test_the_mark_of_another_process_is_kept(pool: Pool, database: Database) -> None:
    workspace_id = await added(pool)
    async with process(pool) as one, process(pool) as other:
        await one.watch(workspace_id)
        marked = version(database, workspace_id)
        await asyncio.wait_for(other.watch(workspace_id), LIMIT_SECONDS)
        assert version(database, workspace_id) == marked


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
    # One statement for each hundred.
    assert row == (250, 3)


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
    # Renewals wake nobody: no commit was missed.
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
            # The subscriber of the locked workspace reads without a mark ...
            assert remaining(database, locked_id) == 0
        # ... and again once it has one.
        await eventually_async(lambda: woken == [free_id, locked_id])
        assert remaining(database, locked_id) > 50


async def test_marks_that_a_crash_has_lost_are_set_again(
    pool: Pool, database_url: str, database: Database
) -> None:
    """The listener calls `mark_again` when it has reconnected."""
    workspace_id, woken = await added(pool), list[str]()
    async with process(pool, woken) as watched:
        await watched.watch(workspace_id)
        database.execute("UPDATE workspaces SET watched_until = NULL")
        watched.mark_again()
        await eventually_async(lambda: woken == [workspace_id] * 2)
        assert remaining(database, workspace_id) > 50


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


async def test_a_lost_connection_delays_a_mark_only(pool: Pool, database_url: str) -> None:
    ids, woken = [await added(pool) for _ in range(2)], list[str]()
    async with process(pool, woken) as watched:
        await watched.watch(ids[0])
        await end_sessions(database_url)
        await watched.watch(ids[1])
        await eventually_async(lambda: woken == ids)
