"""The command `evershell`: the group of all commands.

A command's module is imported only when the command runs. So a command does not load the programs
of the others, and works without their packages.
"""

import importlib
import os
import sys
from dataclasses import dataclass

import click

from evershell.cli.terminal import Commands


@dataclass(frozen=True, slots=True)
class Command:
    """A command `name`: the object `name` of the module `name`.

    The module is in evershell.cli, or in evershell.server.cli if the command needs an extra.
    """

    help: str
    # The extra of the distribution that has the packages of the command.
    extra: str = ""


# In the order of use.
COMMANDS = {
    "up": Command("Start everything on this machine, in the foreground.", "local"),
    "restart": Command(
        "Restart the programs of the running stack, without losing a call.", "local"
    ),
    "demo": Command("Show a cancellation and check every promise.", "local"),
    "cancel": Command("Cancel the task that runs in a workspace.", "server"),
    "keys": Command("Create, list and revoke API keys.", "server"),
    "orgs": Command("Create and list organizations.", "server"),
    "audit": Command("Remove old entries of the audit log.", "server"),
    "serve": Command("Run one control-plane worker.", "server"),
    "fleet": Command("Run one fleet controller, which leads or stands by.", "server"),
}


class _LazyCommands(Commands):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = COMMANDS.get(cmd_name)
        return None if command is None else _load(cmd_name, command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing their modules."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])


def _load(name: str, command: Command) -> click.Command:
    """Raises click.ClickException, which says what to install, if a package is missing."""
    package = "evershell.server.cli" if command.extra else "evershell.cli"
    try:
        module = importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "evershell":
            raise
        raise click.ClickException(
            f"`evershell {name}` needs the package {error.name}, which is not installed: "
            f"pip install 'evershell[{command.extra}]'"
        ) from error
    loaded: click.Command = getattr(module, name)
    return loaded


@click.group(cls=_LazyCommands, help="The cancel button of an agent platform.")
@click.version_option(package_name="evershell")
def main() -> None:
    """Prepares the process for every command."""
    # Opens standard streams that are closed. Otherwise a socket could get the descriptor of
    # standard error, and the log would be written to the socket.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # gRPC, which is not loaded yet, logs each failed TLS handshake of a stranger below this level.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Python has none if it was closed when the program started.
    if sys.stdin is None:
        sys.stdin = os.fdopen(0)
