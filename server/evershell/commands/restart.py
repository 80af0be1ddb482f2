"""The command `restart`."""

import os
import signal

import click
import psutil

from evershell.app.removed_settings import RENAMED, refuse_removed_settings
from evershell.commands.environment import problems_reported, read_settings
from evershell.stack.run_lock import choose_installation, running_pid
from evershell.version import VERSION


@click.command(
    help="Restart the programs of the running stack one after another, without losing a call. They "
    "then run the version of this command, which may be installed in another environment than the "
    "stack."
)
def restart() -> None:
    """Asks the stack to restart its programs, and does not wait for the restart."""
    state_dir = read_settings().state_dir
    pid = running_pid(state_dir)
    if pid is None:
        raise click.ClickException(f"No stack runs on {state_dir}.")
    try:
        with problems_reported():
            # The restarted programs get the environment of the stack, which may be of an earlier
            # version.
            refuse_removed_settings(psutil.Process(pid).environ(), but=RENAMED)
        choose_installation(state_dir)
        os.kill(pid, signal.SIGHUP)
    except (OSError, psutil.Error) as error:
        raise click.ClickException(
            f"Process {pid} of the stack cannot be signalled: {error}."
        ) from error
    click.echo(
        f"The stack (process {pid}) restarts its programs with version {VERSION}. "
        "This takes about 10 s. The output of the stack reports when it is complete."
    )
