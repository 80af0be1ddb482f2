"""Repeated and concurrent migrations, other applications' tables, and programs that wait."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from evershell.app.settings import Settings
from evershell.core.errors import OperatorError
from evershell.stack.database import prepare_database
from evershell.store import migrate as migration
from evershell.store import schema
from evershell.store.audit import add_partitions
from evershell.store.connections import connect_for_command
from evershell.store.migrate import migrate
from evershell.store.pool import open_pool
from evershell.store.schema import await_schema
from evershell.store.session_settings import store_as_defaults
from tests.support.waiting import eventually

MIGRATIONS = sorted(
    path.stem for path in (Path(migration.__file__).parent / "migrations").glob("*.sql")
)


def applied(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [
            row[0]
            for row in connection.execute("SELECT migration_id FROM _yoyo_migration ORDER BY 1")
        ]


FUNCTION = "renew_leases"
# By part: the current text of the function, and a text that an earlier version may have.
EARLIER = {
    "body": ("RETURN NEXT;", "RETURN NEXT; RETURN;"),
    "security": ("LANGUAGE plpgsql", "LANGUAGE plpgsql SECURITY DEFINER"),
    "default": ("p_now timestamptz,", "p_now timestamptz DEFAULT now(),"),
    "result column": ("OUT seconds_left float8,", "OUT seconds_left float8, OUT is_late boolean,"),
    "parameter": ("p_now timestamptz,", "p_now timestamptz, p_is_late boolean,"),
    "type": ("p_below_share float8,", "p_below_share numeric,"),
}


def definitions_of(connection: "psycopg.Connection[Any]") -> list[str]:
    """The definitions of the stored functions with the name FUNCTION, including their headers."""
    query = "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = %s"
    return [definition for (definition,) in connection.execute(query, (FUNCTION,))]


@pytest.mark.parametrize("part", EARLIER)
def test_a_function_whose_definition_has_changed_is_replaced(
    part: str, empty_database_url: str
) -> None:
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        current = definitions_of(connection)
        before, after = EARLIER[part]
        definition = migration._definitions()[FUNCTION].replace(before, after)
        migration._replace_functions(connection, {FUNCTION: definition})
        assert definitions_of(connection) != current
        migrate(empty_database_url)
        assert definitions_of(connection) == current


def test_the_functions_are_replaced_together(empty_database_url: str) -> None:
    """A function must not become visible before the functions that it calls."""
    migrate(empty_database_url)
    new = "CREATE FUNCTION {} RETURNS integer LANGUAGE sql AS $$ SELECT {} $$"
    calling, called = new.format("a_new()", "b_new()"), new.format("b_new()", "1")
    query = "SELECT count(*) FROM pg_proc WHERE proname IN ('a_new', 'b_new')"
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.SyntaxError):
            migration._replace_functions(connection, {"a_new": calling, "b_new": "CREATE b_new"})
        assert connection.execute(query).fetchone() == (0,)
        migration._replace_functions(connection, {"a_new": calling, "b_new": called})
        assert connection.execute("SELECT a_new()").fetchone() == (1,)


def test_a_statement_is_valid_after_its_function_was_replaced(empty_database_url: str) -> None:
    """A worker of the previous version may have prepared the statement."""
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        query = f"SELECT seconds_left FROM {FUNCTION}('{{ws_1}}', '{{1}}', '{{30}}', 0.5, now())"
        expected = connection.execute(query, prepare=True).fetchall()
        before, after = EARLIER["result column"]
        definition = migration._definitions()[FUNCTION].replace(before, after)
        migration._replace_functions(connection, {FUNCTION: definition})
        assert connection.execute(query, prepare=True).fetchall() == expected


def latest_partition(connection: "psycopg.Connection[tuple[object, ...]]") -> str:
    """The name of the latest partition of the audit log."""
    found = connection.execute(
        "SELECT max(relname::text) FROM pg_class WHERE relname ~ '^audit_entries_[0-9_]+$' "
        "AND relkind = 'r'"
    ).fetchone()
    assert found is not None
    return str(found[0])


def test_an_up_to_date_database_needs_no_privilege_to_create(empty_database_url: str) -> None:
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("CREATE ROLE limited")
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO limited")
        connection.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO limited")
    limited = make_conninfo(empty_database_url, options="-c role=limited")
    try:
        migrate(limited)
        # A month later, a partition is missing, and an old one is due for removal.
        with psycopg.connect(empty_database_url) as connection:
            missing = latest_partition(connection)
            connection.execute(f"DROP TABLE {missing}")
            add_partitions(connection, datetime(2024, 1, 5, tzinfo=UTC))
        prepare_database(Settings(database_url=limited))
        with psycopg.connect(empty_database_url) as connection:
            assert latest_partition(connection) != missing
    finally:
        with psycopg.connect(empty_database_url) as connection:
            connection.execute("DROP OWNED BY limited")
            connection.execute("DROP ROLE limited")


def test_concurrent_migrations_succeed(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(migrate, [empty_database_url] * 4))
    assert applied(empty_database_url) == MIGRATIONS


@pytest.mark.parametrize("interrupted", MIGRATIONS)
def test_a_migration_that_is_interrupted_is_applied_later(
    interrupted: str, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = migration._record

    def interrupt(guard: "psycopg.Connection[Any]", name: str) -> None:
        if name == interrupted:
            raise InterruptedError
        record(guard, name)

    with monkeypatch.context() as patched, pytest.raises(InterruptedError):
        patched.setattr(migration, "_record", interrupt)
        migrate(empty_database_url)
    assert applied(empty_database_url) == MIGRATIONS[: MIGRATIONS.index(interrupted)]
    migrate(empty_database_url)
    assert applied(empty_database_url) == MIGRATIONS


def test_the_previous_version_finds_its_migrations(empty_database_url: str) -> None:
    """Version 0.1.0 migrates with yoyo, which expects these hashes, and version 2 of its tables."""
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        found = connection.execute("SELECT migration_id, migration_hash FROM _yoyo_migration")
        assert dict(found) == {name: sha256(name.encode()).hexdigest() for name in MIGRATIONS}
        version = connection.execute("SELECT max(version) FROM _yoyo_version").fetchone()
        assert version == (2,)


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        query = (
            "SELECT tablename FROM pg_tables "
            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        return {row[0] for row in connection.execute(query)}


# The second table belongs to an application that uses the same migration tool.
@pytest.mark.parametrize("table", ["customers", "_yoyo_migration"])
def test_a_database_of_another_application_is_not_migrated(
    empty_database_url: str, table: str
) -> None:
    with psycopg.connect(empty_database_url) as connection:
        connection.execute(f"CREATE TABLE {table} (migration_id text)")
        connection.execute("CREATE TABLE orders (id int)")
    with pytest.raises(OperatorError, match="CREATE DATABASE"):
        migrate(empty_database_url)
    assert tables(empty_database_url) == {table, "orders"}


def test_a_separate_schema_is_migrated_beside_foreign_tables(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("CREATE TABLE orders (id int)")
        connection.execute("CREATE SCHEMA evershell")
    own = make_conninfo(empty_database_url, options="-csearch_path=evershell")
    migrate(own)
    migrate(own)
    assert applied(own) == MIGRATIONS


def test_migrations_have_no_limits_although_their_role_has(empty_database_url: str) -> None:
    store_as_defaults(empty_database_url)
    with connect_for_command(empty_database_url) as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)
    migrate(empty_database_url)


LIMIT_SECONDS = 10.0


@pytest.fixture
async def role_url(empty_database_url: str) -> AsyncIterator[str]:
    """The URL of the database for a role that owns no table."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE schema_reader LOGIN")
    yield make_conninfo(empty_database_url, user="schema_reader")
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("DROP OWNED BY schema_reader")
        connection.execute("DROP ROLE schema_reader")


async def test_the_service_role_sees_that_the_schema_becomes_current(
    empty_database_url: str, role_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_RETRY_SECONDS", 0.01)
    async with open_pool(role_url, min_size=1, max_size=1) as pool:
        waiting = asyncio.create_task(await_schema(pool))
        # The first migration is not given this role, so it grants nothing to the role.
        await asyncio.to_thread(migrate, empty_database_url)
        await asyncio.wait([waiting], timeout=0.2)
        assert not waiting.done()
        await asyncio.to_thread(migrate, empty_database_url, role_url)
        async with asyncio.timeout(LIMIT_SECONDS):
            await waiting


async def test_a_missing_function_is_waited_for(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version may add a function without a migration."""
    monkeypatch.setattr(schema, "_RETRY_SECONDS", 0.01)
    await asyncio.to_thread(migrate, empty_database_url)
    async with open_pool(empty_database_url, min_size=1, max_size=1) as pool:
        async with pool.connection() as connection:
            await connection.execute("ALTER FUNCTION renew_leases RENAME TO another")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await await_schema(pool)
        await asyncio.to_thread(migrate, empty_database_url)
        async with asyncio.timeout(LIMIT_SECONDS):
            await await_schema(pool)


def test_a_migration_without_a_server_tells_the_operator() -> None:
    with pytest.raises(OperatorError, match="Check DATABASE_URL"):
        migrate("postgresql:///nowhere?host=/nonexistent")


def test_workers_write_while_an_index_is_created(empty_database_url: str) -> None:
    """An earlier attempt was interrupted, and has left an unusable index."""
    migrate(empty_database_url)
    with (
        psycopg.connect(empty_database_url) as slow,
        psycopg.connect(empty_database_url, autocommit=True) as other,
        ThreadPoolExecutor() as executor,
    ):
        other.execute("DROP INDEX tasks_in_tree")
        other.execute("CREATE INDEX tasks_in_tree ON tasks (id)")
        other.execute("DELETE FROM _yoyo_migration WHERE migration_id = '0004_tasks_in_tree'")
        slow.execute("LOCK TABLE tasks IN ROW EXCLUSIVE MODE")
        migrating = executor.submit(migrate, empty_database_url)
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND "
        eventually(lambda: other.execute(waiting + "wait_event_type = 'Lock'").fetchone() == ())
        other.execute("SET lock_timeout = '10s'")
        other.execute("UPDATE tasks SET result = ''")
        slow.commit()
        migrating.result(120)
        row = other.execute("SELECT pg_get_indexdef('tasks_in_tree'::regclass)").fetchone()
    assert row is not None and "COALESCE" in row[0]
    assert applied(empty_database_url) == MIGRATIONS
