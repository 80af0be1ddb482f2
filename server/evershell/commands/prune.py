"""The command `audit prune`. It uses the database directly."""

from datetime import timedelta

import click
import psycopg

from evershell.cli.duration import DURATION
from evershell.cli.terminal import say
from evershell.commands.environment import read_ready, read_settings
from evershell.store.audit import add_partitions
from evershell.store.audit import prune as remove_months
from evershell.store.connections import PoolerError, connect_for_command, problem_of
from evershell.store.service_clock import time_of

_DAY_SECONDS = 86_400


@click.command(
    "prune",
    help="Remove the months of the audit log that ended before a time. Uses the database of "
    "MIGRATION_DATABASE_URL, of DATABASE_URL, or of the stack that runs on this machine.",
)
@click.option(
    "--older-than",
    "seconds",
    type=DURATION,
    metavar="DURATION",
    help="Remove months that ended longer ago than this: 90d. Default: AUDIT_RETENTION_DAYS.",
)
def prune(seconds: float | None) -> None:
    """Prints how many months were removed."""
    settings = read_settings()
    database_url = settings.owner_url
    if not database_url and (ready := read_ready(settings.state_dir)):
        database_url = ready.database_url
    if not database_url:
        raise click.ClickException(
            "There is no database. Set MIGRATION_DATABASE_URL or DATABASE_URL, or start a stack."
        )
    if seconds is None:
        seconds = settings.audit_retention_days * _DAY_SECONDS
        if not seconds:
            raise click.UsageError("AUDIT_RETENTION_DAYS is 0, so --older-than is required.")
    try:
        with connect_for_command(database_url) as connection:
            now = time_of(connection)
            add_partitions(connection, now)
            count = remove_months(connection, now - timedelta(seconds=seconds))
    except PoolerError as error:
        raise click.ClickException(str(error)) from error
    except psycopg.Error as error:
        message = f"The audit log was not pruned: {problem_of(error)}."
        raise click.ClickException(message) from None
    say(f"Removed {count} months of the audit log.")
