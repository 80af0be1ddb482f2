"""The command `up`."""

import asyncio

import click

from evershell.commands.environment import problems_reported, read_settings
from evershell.stack.up import up as run
from evershell.telemetry import logs


@click.command(help="Start the whole stack on this machine, in the foreground.")
def up() -> None:
    """Runs until Ctrl-C."""
    settings = read_settings()
    logs.configure("up", settings.log_level)
    with problems_reported():
        asyncio.run(run(settings))
