"""The command `evershell`: the group of all commands.

The module of a command is imported only when the command runs. So a command does not load the code
of other commands, and does not need the packages of other commands.
"""

import importlib
import io
import os
import sys
from dataclasses import dataclass

import click

from evershell.cli.exit_codes import TABLE
from evershell.cli.terminal import Commands
from evershell.imports import without_collection
from evershell.version import VERSION


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is defined, and what the list of commands says about it.

    The module is in evershell.commands if the command needs an extra, otherwise in evershell.cli.
    """

    help: str
    # The extra of the distribution that installs the packages of the command.
    extra: str = ""
    # The name of the module; empty if it is the name of the command.
    module: str = ""


# The commands in the order in which a user needs them.
_CALLS = {
    "cancel": Command("Cancel the task that runs in a workspace."),
    "hold": Command("Refuse new tasks and agents in your organization."),
    "release": Command("End the hold of your organization.", module="hold"),
    "top": Command("Show what runs, live, and cancel it from there."),
    "submit": Command("Submit a task to the agent of a workspace."),
    "tasks": Command("List the tasks of a workspace."),
    "task": Command("Show one task.", module="tasks"),
    "watch": Command("Print the events of a workspace as they happen."),
    "workspaces": Command("List the workspaces of your organization."),
    "workspace": Command("Show, create, stop, resume and delete a workspace.", module="workspaces"),
    "audit": Command("List the audit log."),
    "get": Command("Print one object from the service as JSON."),
    "webhooks": Command("Send events of your organization to a program of yours."),
    "login": Command("Store the address of a service and a credential for it."),
    "completion": Command("Print the script for the completion of a shell."),
}
_OPERATIONS = {
    "up": Command("Start everything on this machine, in the foreground.", "local"),
    "restart": Command(
        "Restart the programs of the running stack, without losing a call.", "local"
    ),
    "demo": Command("Show a cancellation and check every promise.", "local"),
    "verify": Command("Check a deployment while you inject faults."),
    "agent": Command("Check an agent of your own.", "agent"),
    "keys": Command("Create, list and revoke API keys.", "server"),
    "orgs": Command("Create and list organizations.", "server"),
    "serve": Command("Run one control-plane worker.", "server"),
    "fleet": Command("Run one fleet controller, which leads or stands by.", "server"),
    "edge": Command("Run Envoy in front of workers.", "local"),
    "rotate": Command("Replace the signing key of the control plane.", "server"),
    "migrate": Command("Bring the database to the schema of this version.", "server"),
    "fence": Command("Fence all agents after a restore of the database.", "server"),
}
COMMANDS = _CALLS | _OPERATIONS
_HELP = f"""The cancel button of an agent platform.

A command that calls the service takes the address from --url, EVERSHELL_URL, a profile of
`evershell login`, or the stack that runs on this machine, and the credential from --token-file,
EVERSHELL_API_KEY, the profile or the stack. It calls over gRPC.

WORKSPACE is the id of a workspace, or its name.

{TABLE}"""


class _LazyCommands(Commands):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = COMMANDS.get(cmd_name)
        return None if command is None else _load(cmd_name, command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggests a similar command if the given one does not exist."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Also accepts `help`, `help COMMAND` and `version`."""
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        elif args == ["version"]:
            args = ["--version"]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing their modules."""
        for title, commands in (
            ("Commands that call the service", _CALLS),
            ("Commands for operators", _OPERATIONS),
        ):
            with formatter.section(title):
                formatter.write_dl([(name, command.help) for name, command in commands.items()])


def _load(name: str, command: Command) -> click.Command:
    """The command of this name.

    Raises click.ClickException, which says what to install, if a package is missing.
    """
    package = "evershell.commands" if command.extra else "evershell.cli"
    _set_up_grpc()
    try:
        with without_collection():
            module = importlib.import_module(f"{package}.{command.module or name}")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "evershell":
            raise
        raise click.ClickException(
            f"`evershell {name}` needs the package {error.name}, which is not installed. "
            f"Install the extra `{command.extra}` of evershell."
        ) from error
    loaded: click.Command = getattr(module, name)
    return loaded


def _set_up_grpc() -> None:
    """Sets defaults of gRPC's C library, which reads these variables when gRPC is imported."""
    # Turns off gRPC's own log, which is plain text and is neither limited nor redacted.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Turns off gRPC's fork() handlers, which only help children that use gRPC without an exec. When
    # `up` starts programs, the handlers would log a line, and some programs would crash.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


@click.group(
    cls=_LazyCommands, help=_HELP, context_settings={"help_option_names": ["--help", "-h"]}
)
@click.version_option(VERSION, prog_name="evershell")
def main() -> None:
    """Prepares the process for every command."""
    # Opens the descriptors of closed standard streams. Otherwise, a socket could get the descriptor
    # of standard error, and the log would be written to the socket.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # A stream that was closed when Python started is None.
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Texts may contain characters that the encoding of the locale does not have.
            stream.reconfigure(errors="backslashreplace")
