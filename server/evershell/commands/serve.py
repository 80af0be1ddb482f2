"""The command `serve`."""

import click
import uvloop

from evershell.app import worker
from evershell.commands.environment import problems_reported, read_settings


@click.command(help="Run one control-plane worker.")
@click.option("--port", type=int, help="The port to listen on. Default: SERVER_PORT.")
def serve(port: int | None) -> None:
    """Runs until SIGTERM or SIGINT."""
    settings = read_settings()
    with problems_reported():
        uvloop.run(worker.serve(settings, port or settings.server_port))
