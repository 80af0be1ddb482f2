"""The command `edge`."""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import httpx

from evershell.cli.values import DURATION
from evershell.commands.environment import problems_reported, read_settings
from evershell.stack.environments import edge_environment
from evershell.stack.envoy import config as envoy
from evershell.stack.envoy.config import edge_of

# The time limit of a call to Envoy's admin interface.
_ADMIN_SECONDS = 5.0


@click.command(
    help="Run Envoy in front of the WORKERS, each of which is HOST:PORT. A name stands for all of "
    "its addresses, which are resolved again every few seconds. Envoy ends at once on SIGTERM; to "
    "move its callers to other edges before that, run this command with --drain."
)
@click.argument("workers", nargs=-1)
@click.option(
    "--admin-socket",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The Unix socket of Envoy's admin interface. Default: one in a temporary folder.",
)
@click.option(
    "--drain",
    "drain_seconds",
    type=DURATION,
    metavar="DURATION",
    help="Do not run Envoy. Ask the one at --admin-socket to close each connection with its next "
    "answer, and return after this time.",
)
@click.option(
    "--render",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Do not run Envoy. Write its configuration to this file.",
)
def edge(
    workers: Sequence[str],
    admin_socket: Path | None,
    drain_seconds: float | None,
    config_path: Path | None,
) -> None:
    """Becomes Envoy, drains a running Envoy, or only writes the configuration."""
    if config_path is not None:
        with problems_reported():
            socket = admin_socket or config_path.with_name("admin.sock")
            envoy.render(_wanted(workers, socket), config_path)
    elif drain_seconds is None:
        _run(workers, admin_socket)
    elif admin_socket is None:
        raise click.UsageError("--drain needs --admin-socket.")
    else:
        _drain(admin_socket, drain_seconds)


def _drain(admin_socket: Path, seconds: float) -> None:
    """Starts the drain, and waits. New connections are still served meanwhile."""
    transport = httpx.HTTPTransport(uds=str(admin_socket))
    try:
        with httpx.Client(transport=transport, timeout=_ADMIN_SECONDS) as client:
            client.post(f"http://admin{envoy.START_DRAIN}").raise_for_status()
    except httpx.HTTPError as error:
        message = (
            f"Envoy does not answer at {admin_socket}: {error}. Run it with "
            f"`evershell edge --admin-socket {admin_socket}`."
        )
        raise click.ClickException(message) from error
    time.sleep(seconds)


def _run(workers: Sequence[str], admin_socket: Path | None) -> None:
    """Writes the configuration, and becomes Envoy."""
    # The folder is not removed. It disappears with the container.
    folder = Path(tempfile.mkdtemp(prefix="edge-"))
    with problems_reported():
        wanted = _wanted(workers, admin_socket or folder / "admin.sock")
        envoy.render(wanted, folder / "envoy.yaml")
        envoy.validate(folder / "envoy.yaml")
        options = ("--disable-hot-restart", *envoy.DRAIN_AT_ONCE)
        command = envoy.command(folder / "envoy.yaml", *options)
    # This process becomes Envoy, so that Envoy gets the signals.
    os.execve(command[0], command, edge_environment(wanted))  # noqa: S606 - no shell is needed


def _wanted(workers: Sequence[str], admin_socket: Path) -> envoy.Edge:
    """The edge that the settings describe. Raises click.ClickException or OperatorError."""
    settings = read_settings()
    # The variable is refused above, unless an `up` of version 0.1.0 has started this program.
    if not workers and (named := os.environ.get("EDGE_WORKERS")):
        workers = named.split(",")
    if not workers:
        raise click.UsageError("Missing HOST:PORT of the workers.")
    return edge_of(settings, workers, admin_socket=admin_socket, metrics_port=settings.metrics_port)
