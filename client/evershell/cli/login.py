"""The command `login`."""

import sys
from typing import TextIO

import click

from evershell.cli import profiles, show
from evershell.cli.completion import complete_profile
from evershell.cli.profiles import Profile
from evershell.cli.service import Target, read_token
from evershell.cli.terminal import say_lines
from evershell.client import CallError, PermissionDeniedError

_SECONDS = 10.0


@click.command(
    help="Store the address of a service and a credential for it, so that other commands need no "
    "options. They are stored in a file that only you can read. To replace them, run `evershell "
    "login` again."
)
@click.option("--url", metavar="URL", help="The service. Default: asks for it.")
@click.option(
    "--profile",
    default=profiles.DEFAULT,
    metavar="NAME",
    shell_complete=complete_profile,
    help="A name for this service. Default: default.",
)
@click.option(
    "--token-file",
    type=click.File(),
    help="The file with the API key or session token, - for standard input. Default: asks for it.",
)
@click.option(
    "--ca-file",
    type=click.Path(resolve_path=True),
    metavar="FILE",
    help="TLS: trust these authorities.",
)
@click.option(
    "--cert-file",
    type=click.Path(resolve_path=True),
    metavar="FILE",
    help="TLS: a client certificate.",
)
@click.option(
    "--key-file", type=click.Path(resolve_path=True), metavar="FILE", help="TLS: its key."
)
def login(
    url: str | None,
    profile: str,
    token_file: TextIO | None,
    ca_file: str | None,
    cert_file: str | None,
    key_file: str | None,
) -> None:
    """Stores the profile once the service has accepted its credential."""
    url = url or _ask("Address (https://host:port)", "--url")
    credential = (
        read_token(token_file)
        if token_file
        else _ask("API key or session token", "--token-file -", hide_input=True)
    )
    entry = Profile(url, credential, ca_file, cert_file, key_file)
    files = {"ca_file": ca_file, "cert_file": cert_file, "key_file": key_file}
    target = Target(url, credential, {name: path for name, path in files.items() if path})
    with target.connect(_SECONDS) as client:
        try:
            next(client.list_workspaces(page_size=1).pages())
        except PermissionDeniedError:
            # The credential is valid, but may not list workspaces.
            pass
        except CallError as error:
            show.fail(error, url, as_json=False)
    profiles.add(profile, entry)
    say_lines(f"Profile {profile} calls {url}. It is stored in {profiles.path()}.", error=True)


def _ask(question: str, option: str, *, hide_input: bool = False) -> str:
    """The answer of the user.

    Raises click.UsageError, which names the option, if there is no terminal.
    """
    try:
        return str(click.prompt(question, hide_input=hide_input))
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise click.UsageError(f"There is no terminal to ask for it: use {option}.") from None
