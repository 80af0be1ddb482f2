"""The options of all commands that call the service."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TextIO

import click

from evershell.cli.completion import complete_profile
from evershell.cli.exit_codes import ExitCode
from evershell.cli.names import workspace_id
from evershell.cli.service import Target, find_target
from evershell.cli.show import fail
from evershell.cli.values import DURATION
from evershell.client import CallError, Client


@dataclass(frozen=True, slots=True)
class Call:
    """What a command needs to call the service and to print the answer."""

    client: Client
    target: Target
    as_json: bool
    # The time limit of each call, in seconds.
    timeout: float


def service_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of all commands that call the service, and passes a Call to the command.

    If the user names a workspace, the command gets the id as `workspace`. A failed call ends the
    command with a message and the exit code of the error. Ctrl-C ends the command with 130.
    """

    @wraps(command)
    def run(
        url: str,
        profile: str,
        token_file: TextIO | None,
        timeout: float,
        as_json: bool,
        ca_file: str | None,
        cert_file: str | None,
        key_file: str | None,
        **arguments: Any,
    ) -> None:
        files = {"ca_file": ca_file, "cert_file": cert_file, "key_file": key_file}
        if (cert_file is None) != (key_file is None):
            raise click.UsageError("--cert-file and --key-file must be given together.")
        present = {name: path for name, path in files.items() if path is not None}
        target = find_target(url, profile, token_file, present)
        with target.connect(timeout) as client:
            try:
                if arguments.get("workspace"):
                    arguments["workspace"] = workspace_id(client, arguments["workspace"])
                command(Call(client, target, as_json, timeout), **arguments)
            except CallError as error:
                fail(error, target.url, as_json=as_json)
            except BrokenPipeError:
                # The reader has closed the pipe, as in `evershell tasks | head -1`.
                sys.exit(ExitCode.DONE)
            except KeyboardInterrupt:
                sys.exit(ExitCode.INTERRUPTED)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


_OPTIONS = [
    click.option(
        "--url",
        default="",
        metavar="URL",
        help="The service: https://host:port, or http://host:port for plain text. "
        "Default: EVERSHELL_URL, the profile, or the stack that runs on this machine.",
    ),
    click.option(
        "--profile",
        envvar="EVERSHELL_PROFILE",
        default="",
        metavar="NAME",
        shell_complete=complete_profile,
        help="The profile of `evershell login` to use. Default: default.",
    ),
    click.option(
        "--token-file",
        type=click.File(),
        help="The file with the API key or session token, - for standard input. "
        "Default: EVERSHELL_API_KEY, or the credential of the profile.",
    ),
    click.option(
        "--timeout",
        type=DURATION,
        default="10s",
        metavar="DURATION",
        help="The limit of each call, including retries. Default: 10s.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the answer as the REST API does."),
    click.option(
        "--ca-file",
        type=click.Path(),
        metavar="FILE",
        help="TLS: trust these authorities instead of the system's.",
    ),
    click.option(
        "--cert-file",
        type=click.Path(),
        metavar="FILE",
        help="TLS: a client certificate, for a service that asks for one.",
    ),
    click.option(
        "--key-file",
        type=click.Path(),
        metavar="FILE",
        help="TLS: the client certificate's key.",
    ),
]
