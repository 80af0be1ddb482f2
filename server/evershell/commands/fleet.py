"""The command `fleet`."""

import asyncio

import click

from evershell.app import programs
from evershell.app.wiring import NotSetUpError
from evershell.commands.environment import read_settings
from evershell.fleet.local.isolation import IsolationError


@click.command(help="Run one fleet controller, which leads or stands by.")
@click.option(
    "--health-address",
    metavar="ADDRESS",
    help="Serve the gRPC health service at host:port or unix:/path. Its service `liveness` is "
    "SERVING while the process answers. Default: nowhere.",
)
def fleet(health_address: str | None) -> None:
    """Runs until SIGTERM or SIGINT."""
    try:
        asyncio.run(programs.fleet(read_settings(), health_address))
    except (NotSetUpError, IsolationError) as error:
        raise click.ClickException(str(error)) from error
