"""The command `up`."""

import asyncio

import click

from server.cli.environment import read_settings
from server.fleet.isolation import IsolationError
from server.stack.envoy.config import EdgeConfigurationError
from server.stack.up import CannotStartError
from server.stack.up import up as run
from server.telemetry import logs


@click.command(help="Start the whole stack on this machine, in the foreground.")
def up() -> None:
    """Runs until Ctrl-C."""
    settings = read_settings()
    logs.configure("up", settings.log_level)
    try:
        asyncio.run(run(settings))
    except (CannotStartError, EdgeConfigurationError, IsolationError) as error:
        raise click.ClickException(str(error)) from error
