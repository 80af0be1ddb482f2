"""Migrations: repeated, concurrent, and on databases with foreign tables."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from yoyo.backends.base import DatabaseBackend

from evershell.app.settings import Settings
from evershell.core.errors import OperatorError
from evershell.stack.database import prepare_database
from evershell.store import migrate as migration
from evershell.store.audit import add_partitions
from evershell.store.migrate import migrate

MIGRATIONS = sorted(
    path.stem for path in (Path(migration.__file__).parent / "migrations").glob("*.sql")
)


def applied(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [
            row[0]
            for row in connection.execute("SELECT migration_id FROM _yoyo_migration ORDER BY 1")
        ]


def test_a_second_migration_changes_nothing(empty_database_url: str) -> None:
    migrate(empty_database_url)
    first = applied(empty_database_url)
    migrate(empty_database_url)
    assert applied(empty_database_url) == first == MIGRATIONS


FUNCTION = "renew_leases"
# What an earlier version of the function may differ in.
EARLIER = {
    "body": ("RETURN NEXT;", "RETURN NEXT; RETURN;"),
    "security": ("LANGUAGE plpgsql", "LANGUAGE plpgsql SECURITY DEFINER"),
    "default": ("p_now timestamptz,", "p_now timestamptz DEFAULT now(),"),
    "result column": ("OUT seconds_left float8,", "OUT seconds_left float8, OUT is_late boolean,"),
    "parameter": ("p_now timestamptz,", "p_now timestamptz, p_is_late boolean,"),
    "type": ("p_below_share float8,", "p_below_share numeric,"),
}


def definitions_of(connection: "psycopg.Connection[Any]") -> list[str]:
    """The stored functions of this name, with their headers."""
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


def test_a_statement_is_valid_after_its_function_was_replaced(empty_database_url: str) -> None:
    """A worker of the previous version has prepared it."""
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


def test_the_lock_of_a_killed_migration_is_ignored(empty_database_url: str) -> None:
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("INSERT INTO yoyo_lock (locked, pid) VALUES (1, 1)")
    migrate(empty_database_url)


def test_a_migration_that_is_interrupted_is_applied_later(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = DatabaseBackend.mark_one

    def interrupt(backend: Any, applied: Any, log: bool = True) -> None:
        if applied.id == MIGRATIONS[-1]:
            raise InterruptedError
        mark(backend, applied, log=log)

    with monkeypatch.context() as patched, pytest.raises(InterruptedError):
        patched.setattr(DatabaseBackend, "mark_one", interrupt)
        migrate(empty_database_url)
    migrate(empty_database_url)
    assert applied(empty_database_url) == MIGRATIONS


def test_a_user_without_a_name_can_migrate(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container, whose user is only a number."""

    def unknown() -> str:
        raise OSError("No username set in the environment")

    monkeypatch.setattr("getpass.getuser", unknown)
    migrate(empty_database_url)
    assert applied(empty_database_url) == MIGRATIONS


def test_a_url_may_have_an_encoded_host_and_password(empty_database_url: str) -> None:
    parts = {key: str(value) for key, value in conninfo_to_dict(empty_database_url).items()}
    login = f"{parts['user']}:pass%2Fword%20@" if "user" in parts else ""
    migrate(f"postgresql://{login}{parts['host'].replace('/', '%2F')}/{parts['dbname']}")
    assert applied(empty_database_url) == MIGRATIONS


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


def test_tables_of_extensions_and_later_foreign_tables_are_allowed(
    empty_database_url: str,
) -> None:
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("CREATE VIEW statistics AS SELECT 1")
        # CREATE EXTENSION records its tables and views like this.
        connection.execute(
            "INSERT INTO pg_depend SELECT 'pg_class'::regclass, 'statistics'::regclass, 0, "
            "'pg_extension'::regclass, oid, 0, 'e' "
            "FROM pg_extension WHERE extname = 'plpgsql'"
        )
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("CREATE TABLE orders (id int)")
    migrate(empty_database_url)


def test_a_migration_without_a_server_tells_the_operator() -> None:
    with pytest.raises(OperatorError, match="Check DATABASE_URL"):
        migrate("postgresql:///nowhere?host=/nonexistent")
