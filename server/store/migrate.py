"""Brings a database to the schema of this version."""

from importlib import resources
from urllib.parse import urlencode

import psycopg
import yoyo
from psycopg.conninfo import conninfo_to_dict

from server.core.errors import UnavailableError

# Any number of our own; the same in every process that migrates.
_LOCK_KEY = 0x6576_6D69


def migrate(database_url: str) -> None:
    """Applies the migrations that are missing. Blocks; any number of processes may call it at once.

    `database_url` is whatever libpq takes. Raises UnavailableError when the database cannot be reached.
    """
    try:
        # yoyo's own lock is a row, which a killed process leaves behind. This one ends with its session, and whoever holds it
        # knows that a row it finds is such a leftover.
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
    """The same database in yoyo's spelling: it hands every parameter of the query on to psycopg.connect."""
    parameters = {key: str(value) for key, value in conninfo_to_dict(database_url).items() if value is not None}
    return f"postgresql+psycopg:///?{urlencode(parameters)}"
