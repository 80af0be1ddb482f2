"""Migrates a database to the schema of this version: the migrations first, then the functions.

functions/ has one file for each function. The file has the name of the function.
"""

import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import resources
from typing import Any

import psycopg
from psycopg import sql

from evershell.core.errors import OperatorError
from evershell.store.audit import add_partitions
from evershell.store.connections import PoolerError, primary_conninfo
from evershell.store.service_clock import time_of
from evershell.store.session_settings import grant
from evershell.store.statements import statements

# An arbitrary number, the same in every process that migrates.
_LOCK_KEY = 0x6576_6D69
# A record of this migration exists in every database that this service has migrated.
_FIRST_MIGRATION = "0001_initial"
# This line marks a migration that PostgreSQL refuses in a transaction, for example one that creates
# an index while workers write. Such a migration must be safe to repeat, and each of its statements
# must end at the end of a line.
_NOT_TRANSACTIONAL = "-- transactional: false\n"
_NAMED_TABLES = 3
# Version 0.1.0 keeps its records with the library yoyo. The names of the tables come from yoyo,
# which finds a migration by the hash of its name. Version 0.1.0 can start on a database that has
# both tables.
_CREATE_RECORDS = """
CREATE TABLE _yoyo_migration (
    migration_hash varchar(64) PRIMARY KEY, migration_id varchar(255), applied_at_utc timestamp
);
CREATE TABLE _yoyo_version (version int PRIMARY KEY, installed_at_utc timestamp);
INSERT INTO _yoyo_version VALUES (2, now() AT TIME ZONE 'UTC')
"""
SQL = statements("migrate")


def migrate(database_url: str, service_database_url: str = "") -> None:
    """Applies the missing migrations. Synchronous. Several processes may call it at once.

    `database_url` is a libpq connection URI. If `service_database_url` names another role, that
    role gets access to the tables, but can only read and add entries in the audit log. Raises
    OperatorError if the database cannot be reached or is read-only, or if the schema has tables
    although this service has never migrated it.
    """
    try:
        with psycopg.connect(primary_conninfo(database_url), autocommit=True) as guard:
            check_writable(guard)
            _lock(guard)
            _check_owner(guard)
            _apply(guard)
            _replace_functions(guard, _definitions())
            # If the role may not add partitions, later entries go to the default partition.
            with suppress(psycopg.errors.InsufficientPrivilege):
                add_partitions(guard, time_of(guard))
            grant(guard, service_database_url or database_url)
    except PoolerError:
        raise
    except psycopg.OperationalError as error:
        message = f"The database cannot be migrated: {error} Check DATABASE_URL."
        raise OperatorError(message) from error


def _lock(guard: psycopg.Connection[Any]) -> None:
    """Waits for the lock, but not within a statement.

    The process that has the lock may create an index, which waits for all running statements. If
    one of them waited for the lock, neither process would ever go on.
    """
    while guard.execute(SQL.try_lock, {"key": _LOCK_KEY}).fetchone() != (True,):
        time.sleep(0.1)


def check_writable(connection: psycopg.Connection[Any]) -> None:
    """Raises OperatorError if the database is a standby, or if its settings make it read-only."""
    if connection.execute("SHOW transaction_read_only").fetchone() == ("on",):
        raise OperatorError(
            f"Database {connection.info.dbname} is read-only: it is a standby, or has "
            "default_transaction_read_only set. This service needs a database that it can write."
        )


def _check_owner(connection: psycopg.Connection[Any]) -> None:
    """Raises OperatorError if the schema has tables but this service has never migrated it."""
    foreign = [str(name) for (name,) in connection.execute(SQL.list_tables)]
    if not foreign or _was_migrated(connection):
        return
    names = ", ".join(foreign[:_NAMED_TABLES]) + (", …" if len(foreign) > _NAMED_TABLES else "")
    row = connection.execute(SQL.name_schema).fetchone()
    database, schema = row or ("", "")
    raise OperatorError(
        f"Schema {schema} of database {database} holds tables that this service has not created "
        f"({names}). Nothing was changed. Create a database for this service (CREATE DATABASE "
        "evershell) and name it in DATABASE_URL, or create a schema (CREATE SCHEMA evershell) and "
        "add ?options=-csearch_path%3Devershell to DATABASE_URL. Without DATABASE_URL an embedded "
        "PostgreSQL is started."
    )


def _was_migrated(connection: psycopg.Connection[Any]) -> bool:
    """Whether this service has migrated the current schema before."""
    if not _has_records(connection):
        return False
    first = {"migration_id": _FIRST_MIGRATION}
    return connection.execute(SQL.has_migration, first).fetchone() is not None


def _has_records(connection: psycopg.Connection[Any]) -> bool:
    return connection.execute(SQL.find_migrations).fetchone() != (None,)


def _apply(guard: psycopg.Connection[Any]) -> None:
    """Applies the missing migrations in the order of their names, and records each of them."""
    if not _has_records(guard):
        guard.execute(_CREATE_RECORDS)
    applied = {name for (name,) in guard.execute(SQL.list_migrations)}
    for name, text in sorted(_sources("migrations").items()):
        if name in applied:
            continue
        if _NOT_TRANSACTIONAL in text:
            # Sends each statement alone: PostgreSQL would run several in one transaction.
            for statement in text.split(";\n"):
                if statement.strip():
                    guard.execute(statement.encode())
            _record(guard, name)
        else:
            with guard.transaction():
                guard.execute(text.encode())
                _record(guard, name)


def _record(guard: psycopg.Connection[Any], name: str) -> None:
    guard.execute(SQL.record_migration, {"migration_id": name})


def _definitions() -> dict[str, str]:
    """The CREATE OR REPLACE FUNCTION statements of this version, by the names of the functions."""
    return _sources("functions")


def _sources(folder_name: str) -> dict[str, str]:
    """The texts of the SQL files in a folder, by the names of the files without `.sql`."""
    folder = resources.files("evershell.store") / folder_name
    files = (file for file in folder.iterdir() if file.name.endswith(".sql"))
    return {file.name.removesuffix(".sql"): file.read_text() for file in files}


def _replace_functions(connection: psycopg.Connection[Any], definitions: Mapping[str, str]) -> None:
    """Replaces the functions whose definitions have changed, all of them in one transaction.

    The functions call each other, and workers call them meanwhile. The comment of each function is
    the hash of its definition. If all hashes match, nothing is written, so a role that may only use
    the schema can start a stack on an up-to-date database.
    """
    with connection.transaction():
        # A function may call one that is created after it.
        connection.execute("SET LOCAL check_function_bodies = off")
        _replace_changed(connection, definitions)


def _replace_changed(connection: psycopg.Connection[Any], definitions: Mapping[str, str]) -> None:
    for name, definition in sorted(definitions.items()):
        digest = hashlib.sha256(definition.encode()).hexdigest()
        stored = connection.execute(SQL.stored_functions, {"name": name}).fetchall()
        if [comment for _, comment in stored] == [digest]:
            continue
        try:
            _create_function(connection, name, definition, digest)
        except (
            psycopg.errors.InvalidFunctionDefinition,
            psycopg.errors.AmbiguousFunction,
        ):
            # CREATE OR REPLACE cannot change the parameters or the result columns.
            with connection.transaction():
                for signature, _ in stored:
                    connection.execute(f"DROP FUNCTION {signature}".encode())
                _create_function(connection, name, definition, digest)


def _create_function(
    connection: psycopg.Connection[Any], name: str, definition: str, digest: str
) -> None:
    """Creates the function or replaces it, and sets its comment."""
    comment = sql.SQL("COMMENT ON FUNCTION {} IS {}").format(sql.Identifier(name), digest)
    with connection.transaction():
        connection.execute(definition.encode())
        connection.execute(comment)
