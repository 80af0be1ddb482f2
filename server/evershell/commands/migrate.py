"""The command `migrate`."""

import click

from evershell.cli.terminal import say
from evershell.commands.environment import problems_reported, read_ready, read_settings
from evershell.stack.database import prepare_database


@click.command(
    help="Bring the database of MIGRATION_DATABASE_URL, or else of DATABASE_URL, or else of "
    "the stack on this machine, to the schema of this version, and remove old months of the audit "
    "log. Run it before a roll-out: programs of the previous version work with the new schema. It "
    "may be repeated."
)
def migrate() -> None:
    """Returns when the schema is current."""
    settings = read_settings()
    if not settings.owner_url and (ready := read_ready(settings.state_dir)):
        settings = settings.model_copy(update={"database_url": ready.database_url})
    if not settings.owner_url:
        raise click.ClickException("There is no database. Set DATABASE_URL.")
    with problems_reported():
        prepare_database(settings)
    say("The schema is current.")
