"""The command `up`."""

import asyncio

import click

from evershell.commands.environment import read_settings
from evershell.fleet.local.isolation import IsolationError
from evershell.local.envoy.config import EdgeConfigurationError
from evershell.local.postgres import NotInstalledError
from evershell.local.up import CannotStartError
from evershell.local.up import up as run
from evershell.telemetry import logs


@click.command(help="Start the whole stack on this machine, in the foreground.")
def up() -> None:
    """Runs until Ctrl-C."""
    settings = read_settings()
    logs.configure("up", settings.log_level)
    try:
        asyncio.run(run(settings))
    except (
        CannotStartError,
        EdgeConfigurationError,
        IsolationError,
        NotInstalledError,
    ) as error:
        raise click.ClickException(str(error)) from error
