"""Prepares the database before the programs of the stack start."""

from contextlib import suppress
from datetime import timedelta

import psycopg

from evershell.server.config import Settings
from evershell.server.programs import now
from evershell.server.store.audit_partitions import prune
from evershell.server.store.migrate import migrate


def prepare_database(settings: Settings) -> None:
    """Migrates, and removes what is older than the retention of the audit log. Blocks.

    Raises what migrate raises, and psycopg.Error.
    """
    database_url = settings.migration_database_url or settings.database_url
    migrate(database_url, settings.database_url)
    if settings.audit_retention_days:
        # A role that may only use the tables does not prune; `audit prune` does, with another role.
        with (
            suppress(psycopg.errors.InsufficientPrivilege),
            psycopg.connect(database_url, autocommit=True) as connection,
        ):
            prune(connection, now() - timedelta(days=settings.audit_retention_days))
