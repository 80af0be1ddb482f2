"""Migrates a database to the schema of this version."""

from importlib import resources
from urllib.parse import urlencode

import psycopg
import yoyo
from psycopg.conninfo import conninfo_to_dict

from server.core.errors import UnavailableError

# An arbitrary number, the same in every process that migrates.
_LOCK_KEY = 0x6576_6D69


def migrate(database_url: str) -> None:
    """Applies the missing migrations. Blocks. Any number of processes may call it at once.

    `database_url` is a libpq connection URI. Raises UnavailableError when the database cannot be reached.
    """
    try:
        # yoyo's own lock is a row, and a killed process leaves it behind. This lock ends with its session, so the process that
        # holds it may remove such a row.
        with psycopg.connect(database_url, autocommit=True, connect_timeout=10) as guard:
            guard.execute("SELECT pg_advisory_lock(%s)", (_LOCK_KEY,))
            _apply(database_url)
    except psycopg.OperationalError as error:
        raise UnavailableError(f"The database cannot be migrated: {error}") from error


def _apply(database_url: str) -> None:
    source = resources.files("server.store") / "migrations"
    with resources.as_file(source) as folder, yoyo.get_backend(_yoyo_url(database_url)) as backend:
        backend.break_lock()
        with backend.lock():
            backend.apply_migrations(backend.to_apply(yoyo.read_migrations(str(folder))))


def _yoyo_url(database_url: str) -> str:
    """The same database as a URL for yoyo, which passes every query parameter to psycopg.connect."""
    parameters = {key: str(value) for key, value in conninfo_to_dict(database_url).items() if value is not None}
    return f"postgresql+psycopg:///?{urlencode(parameters)}"
