"""`python -m server`: the commands.

A command's module is imported only when the command runs, so that the many agents do not load the
control plane.
"""

import importlib
import os

import click

from server.terminal import Commands

_COMMANDS = ("up", "restart", "demo", "cancel", "keys", "serve", "fleet", "agent")


class _LazyCommands(Commands):
    """Finds the command `name` as `server.cli.name.name`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(
            importlib.import_module(f"server.cli.{cmd_name}"), cmd_name
        )
        return command


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


if __name__ == "__main__":
    main()
