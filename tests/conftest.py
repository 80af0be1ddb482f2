"""Fixtures for PostgreSQL: one server per test run, and a migrated database that tests share.

The server is the embedded one, or the server of TEST_DATABASE_URL. The database is emptied after
each test: a new copy from a template would take a third of a second on a slow disk.
"""

import asyncio
import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
import structlog
from psycopg import sql
from psycopg.conninfo import make_conninfo

from evershell.stack import postgres
from evershell.store.migrate import migrate
from evershell.store.pool import Pool, open_pool

pytest_plugins = [
    # Must come first: the other plugins import it, and pytest can rewrite only modules that it
    # imports itself.
    "tests.support.secrets",
    "tests.support.browser",
    "tests.support.commands",
    "tests.support.edge.fixtures",
    "tests.support.leftovers",
    "tests.support.missing",
    "tests.support.other_org",
    "tests.support.stack_fixtures",
]

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def plain_log() -> None:
    """Sets a plain format: structlog's default shows all variables of a traceback, which is slow.

    A program that an earlier test has run in this process leaves its settings of structlog behind.
    With these, modules would cache their loggers, and `capture_logs` would miss the lines of cached
    loggers.
    """
    structlog.configure(
        processors=[structlog.processors.JSONRenderer(default=str)],
        cache_logger_on_first_use=False,
    )


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server on which tests may create databases."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    places = postgres.places(tmp_path_factory.mktemp("postgres"))
    postgres.initialise(places.data_dir)
    with _log(places.data_dir.parent).open("wb") as log:
        # No test needs its data after a crash of the server, so commits do not wait for the disk.
        command = [*postgres.command(places.data_dir, places.socket_dir), "-c", "fsync=off"]
        process = subprocess.Popen(command, stderr=log)
    try:
        url = postgres.database_url(places.socket_dir)
        asyncio.run(postgres.wait_ready(url, 20))
        yield url
    finally:
        process.send_signal(postgres.STOP_SIGNAL)
        process.wait(20)


def _log(folder: Path) -> Path:
    return folder / "postgres.log"


def new_database(server_url: str) -> str:
    """Creates a database and returns its URL."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return make_conninfo(server_url, dbname=name)


def drop_database(server_url: str, database_url: str) -> None:
    """Drops a database and closes the connections that are still open."""
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(str(name)))
        )


@pytest.fixture(scope="session")
def migrated_database_url(server_url: str) -> Iterator[str]:
    url = new_database(server_url)
    migrate(url)
    yield url
    drop_database(server_url, url)


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    url = new_database(server_url)
    yield url
    drop_database(server_url, url)


@pytest.fixture
def database_url(migrated_database_url: str) -> Iterator[str]:
    """An empty database with the current schema. After the test, its connections are closed."""
    yield migrated_database_url
    with psycopg.connect(migrated_database_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        # Deletes rows, because truncating a table takes longer than deleting a few rows.
        connection.execute(
            "DELETE FROM events; DELETE FROM tasks; DELETE FROM workspaces; DELETE FROM api_keys; "
            "DELETE FROM orgs; DELETE FROM audit_entries; DELETE FROM idempotency_keys; "
            "DELETE FROM org_holds; DELETE FROM webhooks; DELETE FROM webhook_deliveries; "
            "DELETE FROM deleted_workspaces"
        )


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with open_pool(database_url) as opened:
        yield opened


@pytest.fixture
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that belongs to no pod. Like an agent, it leads its own session."""
    process = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait(10)
