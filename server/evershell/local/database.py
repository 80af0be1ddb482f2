"""Prepares the database before the programs of the stack start."""

from contextlib import suppress
from datetime import timedelta

import psycopg

from evershell.app.settings import Settings
from evershell.store.audit import prune
from evershell.store.command_session import connect_for_command
from evershell.store.migrate import migrate
from evershell.store.service_clock import time_of
from evershell.store.session_settings import store_as_defaults


def prepare_database(settings: Settings) -> None:
    """Migrates, and removes what is older than the retention of the audit log. Blocks.

    If a pooler is used, also stores the settings of its sessions.

    Raises what migrate raises, and psycopg.Error.
    """
    migrate(settings.owner_url, settings.session_url)
    if settings.database_session_url:
        store_as_defaults(settings.database_session_url)
    if settings.audit_retention_days:
        # A role that may only use the tables does not prune; `audit prune` does, with another role.
        with (
            suppress(psycopg.errors.InsufficientPrivilege),
            connect_for_command(settings.owner_url) as connection,
        ):
            prune(connection, time_of(connection) - timedelta(days=settings.audit_retention_days))
