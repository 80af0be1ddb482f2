"""`python -m evershell.server`: the commands.

A command's module is imported only when the command runs, so that a command does not load the
programs of the others.
"""

import importlib
import os
import sys

import click

from evershell.server.terminal import Commands

# The help of each command, in the order of use.
COMMANDS = {
    "up": "Start everything on this machine, in the foreground.",
    "restart": "Restart the programs of the running stack, without losing a call.",
    "demo": "Show a cancellation and check every promise.",
    "cancel": "Cancel the task that runs in a workspace.",
    "keys": "Create, list and revoke API keys.",
    "orgs": "Create and list organizations.",
    "audit": "Remove old entries of the audit log.",
    "serve": "Run one control-plane worker.",
    "fleet": "Run one fleet controller, which leads or stands by.",
}


class _LazyCommands(Commands):
    """Finds the command `name` as `evershell.server.cli.name.name`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(
            importlib.import_module(f"evershell.server.cli.{cmd_name}"), cmd_name
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing their modules."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_LazyCommands, help="The cancel button of an agent platform.")
def main() -> None:
    """Opens standard streams that are closed.

    Otherwise a socket could get the descriptor of standard error, and the log would be written to
    the socket.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # Python has none if it was closed when the program started.
    if sys.stdin is None:
        sys.stdin = os.fdopen(0)


if __name__ == "__main__":
    main()
