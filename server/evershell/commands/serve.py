"""The command `serve`."""

import click
import uvloop

from evershell.app import programs
from evershell.app.wiring import NotSetUpError
from evershell.commands.environment import read_settings


@click.command(help="Run one control-plane worker.")
@click.option("--port", type=int, help="The port to listen on. Default: SERVER_PORT.")
def serve(port: int | None) -> None:
    """Runs until SIGTERM or SIGINT."""
    settings = read_settings()
    try:
        uvloop.run(programs.serve(settings, port or settings.server_port))
    except NotSetUpError as error:
        raise click.ClickException(str(error)) from error
