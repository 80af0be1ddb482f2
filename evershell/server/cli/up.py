"""The command `up`."""

import asyncio

import click

from evershell.server.cli.environment import read_settings
from evershell.server.fleet.isolation import IsolationError
from evershell.server.stack.envoy.config import EdgeConfigurationError
from evershell.server.stack.postgres import NotInstalledError
from evershell.server.stack.up import CannotStartError
from evershell.server.stack.up import up as run
from evershell.server.telemetry import logs


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
