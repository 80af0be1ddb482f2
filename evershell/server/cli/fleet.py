"""The command `fleet`."""

import asyncio

import click

from evershell.server import programs
from evershell.server.bootstrap import NotSetUpError
from evershell.server.cli.environment import read_settings
from evershell.server.fleet.isolation import IsolationError


@click.command(help="Run one fleet controller, which leads or stands by.")
def fleet() -> None:
    """Runs until SIGTERM or SIGINT."""
    try:
        asyncio.run(programs.fleet(read_settings()))
    except (NotSetUpError, IsolationError) as error:
        raise click.ClickException(str(error)) from error
