"""The store on PgBouncer in transaction mode, and the connections that cannot use a pooler."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from evershell.commands.migrate import migrate as migrate_command
from evershell.store.connections import PoolerError
from evershell.store.leadership import Leadership
from evershell.store.migrate import migrate
from evershell.store.notifications import WorkspaceSubscriptions
from evershell.store.pool import connected, open_pool
from evershell.store.service_clock import machine_clock
from evershell.store.session_settings import SETTINGS
from tests.support.pgbouncer import PgBouncer, needs_pgbouncer
from tests.support.waiting import eventually_async

pytestmark = needs_pgbouncer


@pytest.fixture
def session_url(empty_database_url: str) -> str:
    migrate(empty_database_url)
    return empty_database_url


@pytest.fixture
def pgbouncer(session_url: str, tmp_path: Path) -> Iterator[PgBouncer]:
    running = PgBouncer(session_url, tmp_path)
    try:
        running.start()
        yield running
    finally:
        running.stop()


async def test_migrate_stores_the_settings_that_a_pooler_does_not_pass_on(
    pgbouncer: PgBouncer, session_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_pool(pgbouncer.url, min_size=0, behind_pooler=True) as pool:
        with capture_logs() as logs:
            async with connected(pool) as connection:
                await connection.execute("SELECT 1")
        assert [each["event"] for each in logs] == ["session_settings_missing"]
        assert set(logs[0]["found"]) == set(SETTINGS) - {"default_transaction_isolation"}

    monkeypatch.setenv("DATABASE_URL", pgbouncer.url)
    monkeypatch.setenv("DATABASE_SESSION_URL", session_url)
    monkeypatch.delenv("MIGRATION_DATABASE_URL", raising=False)
    for _ in range(2):
        result = await asyncio.to_thread(CliRunner().invoke, migrate_command)
        assert (result.exit_code, result.output) == (0, "The schema is current.\n")
    # Open sessions do not have the new settings, so PgBouncer must open new sessions.
    await asyncio.to_thread(pgbouncer.admin, "RECONNECT")

    async with open_pool(pgbouncer.url, min_size=0, behind_pooler=True) as pool:
        with capture_logs() as logs:
            async with connected(pool) as connection:
                cursor = await connection.execute("SHOW statement_timeout")
                assert await cursor.fetchone() == ("5s",)
        assert logs == []


@pytest.mark.parametrize("ignored", ["", "options"])
async def test_a_pooler_is_not_used_where_a_session_is_needed(
    session_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignored: str
) -> None:
    """Two controllers that ask for the lock through one session would both get it.

    By default, PgBouncer refuses the options of a session; it can also be told to drop them.
    """
    pgbouncer = PgBouncer(session_url, tmp_path, ignored=ignored)
    try:
        pgbouncer.start()
        monkeypatch.setenv("DATABASE_URL", pgbouncer.url)
        monkeypatch.delenv("MIGRATION_DATABASE_URL", raising=False)
        refused = await asyncio.to_thread(CliRunner().invoke, migrate_command)
        assert (refused.exit_code, refused.output) == (1, f"Error: {PoolerError()}\n")
        reason = str(PoolerError())
        with capture_logs() as logs:
            async with (
                open_pool(session_url) as pool,
                WorkspaceSubscriptions(pool, pgbouncer.url, machine_clock),
            ):
                leading = asyncio.create_task(_lead(pgbouncer.url))
                await eventually_async(
                    lambda: (
                        {"leadership_impossible", "notifications_listener_lost"}
                        <= {each["event"] for each in logs if each.get("error") == reason}
                    )
                )
                assert not leading.done()
                leading.cancel()
                await asyncio.gather(leading, return_exceptions=True)
    finally:
        pgbouncer.stop()


async def _lead(url: str) -> None:
    async with Leadership(url).acquired():
        pass
