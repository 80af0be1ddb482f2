"""The command `migrate`."""

import click
import psycopg

from evershell.cli.terminal import say
from evershell.commands.environment import read_settings
from evershell.core.errors import UnavailableError
from evershell.local.database import prepare_database
from evershell.store.connections import PoolerError, problem_of
from evershell.store.migrate import ForeignTablesError, ReadOnlyDatabaseError


@click.command(
    help="Bring the database of MIGRATION_DATABASE_URL, or else of DATABASE_URL, to the schema of "
    "this version, and remove old months of the audit log. Run it before a roll-out: programs of "
    "the previous version work with the new schema. It may be repeated."
)
def migrate() -> None:
    """Returns when the schema is current."""
    settings = read_settings()
    if not settings.owner_url:
        raise click.ClickException("There is no database. Set DATABASE_URL.")
    try:
        prepare_database(settings)
    except (UnavailableError, ForeignTablesError, ReadOnlyDatabaseError, PoolerError) as error:
        raise click.ClickException(str(error)) from error
    except psycopg.Error as error:
        message = f"The database cannot be used: {problem_of(error)}."
        raise click.ClickException(message) from None
    say("The schema is current.")
