"""The command `fleet`."""

import asyncio

import click

from evershell.app import fleet as controller
from evershell.commands.environment import problems_reported, read_settings


@click.command(help="Run one fleet controller, which leads or stands by.")
@click.option(
    "--health-address",
    metavar="ADDRESS",
    help="Serve the gRPC health service at host:port or unix:/path. Its service `liveness` is "
    "SERVING while the process answers. Default: it is not served.",
)
def fleet(health_address: str | None) -> None:
    """Runs until SIGTERM or SIGINT."""
    with problems_reported():
        asyncio.run(controller.fleet(read_settings(), health_address))
