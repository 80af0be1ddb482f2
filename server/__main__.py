"""The commands. Each imports what it needs when it runs: an agent, of which there are many, is not
to carry the control plane.
"""

import asyncio
import json
import os
import resource
import sys
from pathlib import Path
from typing import TextIO

import click

from server.terminal import Commands


@click.group(cls=Commands, help="The cancel button of an agent platform.")
def main() -> None:
    """The commands' root."""
    # A standard stream that was closed: a socket could get its number, and the log would be written
    # to it.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@main.command(help="Start everything on this machine, in the foreground.")
def up() -> None:
    """See server.stack.up."""
    from server import logs
    from server.commands.environment import read_settings
    from server.stack.envoy import EdgeConfigurationError
    from server.stack.up import CannotStartError
    from server.stack.up import up as run

    settings = read_settings()
    logs.configure("up", settings.log_level)
    try:
        asyncio.run(run(settings))
    except (CannotStartError, EdgeConfigurationError) as error:
        raise click.ClickException(str(error)) from error


@main.command(
    help="Restart the programs of the running stack one after another, without losing a call."
)
def restart() -> None:
    """See server.stack.rolling_restart."""
    import signal

    from server.commands.environment import read_settings
    from server.stack.run_lock import running_pid

    state_dir = read_settings().state_dir
    pid = running_pid(state_dir)
    if pid is None:
        raise click.ClickException(f"No stack runs on {state_dir}.")
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        raise click.ClickException(
            f"Process {pid} of the stack cannot be signalled: {error.strerror}."
        ) from error
    click.echo(
        f"The stack (process {pid}) restarts its programs. This takes about 10 s; its output says when it is complete."
    )


@main.command(
    help="Show a cancellation, and check each promise: on the stack that runs here, else on one of its own."
)
def demo() -> None:
    """See server.commands.demo."""
    from server.commands.demo import run

    run()


@main.command(help="Run one control-plane worker.")
@click.option("--port", type=int, help="The port it listens on; SERVER_PORT when absent.")
def serve(port: int | None) -> None:
    """See server.bootstrap.serve."""
    import uvloop

    from server import bootstrap
    from server.commands.environment import read_settings

    settings = read_settings()
    try:
        uvloop.run(bootstrap.serve(settings, port or settings.server_port))
    except bootstrap.NotSetUpError as error:
        raise click.ClickException(str(error)) from error


@main.command(help="Run one fleet controller, which leads or stands by.")
def fleet() -> None:
    """See server.bootstrap.fleet."""
    from server import bootstrap
    from server.commands.environment import read_settings

    settings = read_settings()
    try:
        asyncio.run(bootstrap.fleet(settings))
    except bootstrap.NotSetUpError as error:
        raise click.ClickException(str(error)) from error


@main.command(
    help="Run one agent; what it is to know comes as JSON on standard input.", hidden=True
)
def agent() -> None:
    """See server.agent.program."""
    from server import logs
    from server.agent.program import AgentSettings, run_agent

    # Lifts the memory limit inherited from the controller, which is for the programs of the stack,
    # not for tools.
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    spec = json.load(sys.stdin)
    logs.configure("agent", "INFO", workspace_id=spec["workspace_id"], epoch=spec["epoch"])
    sys.exit(asyncio.run(run_agent(AgentSettings(**spec))))


_CANCEL_HELP = """Cancel the task that runs in WORKSPACE: its agent finishes the current iteration and starts no other.

Without --address and TOKEN, the stack that runs on this machine is called, with its demo credential.

\b
Exit codes:
  0  the cancellation stands; with --wait, the task has ended cancelled
  1  a defect of the service, or no address or token to call with
  2  the command line is not valid
  3  nothing to cancel: no task runs, or the task named had ended
  4  recorded, will be delivered; the agent could not be reached
  5  refused: the request, the credential, or the workspace's state
  6  the service is not available, too slow, or had too many calls
  7  the cancellation stands; the wait was over before the task ended
"""


@main.command(help=_CANCEL_HELP)
@click.argument("workspace")
@click.option("--task", default="", metavar="ID", help="Cancel only this task.")
@click.option(
    "--reason",
    default="",
    metavar="TEXT",
    help="Shown on the task and on its events; at most 500 characters.",
)
@click.option(
    "--wait",
    metavar="DURATION",
    help="Answer when the task has ended, or when this is over: 500ms, 10s; at most 30s.",
)
@click.option(
    "--force-after",
    metavar="DURATION",
    help="Break the iteration off if it still runs then: 0s, 30s; at most 24 h.",
)
@click.option(
    "--address",
    envvar="GRPC_ADDR",
    default="",
    metavar="HOST:PORT",
    help="GRPC_ADDR when absent; https://… for TLS.",
)
@click.option(
    "--token-file",
    type=click.File(),
    help="Holds the token (- for standard input); the variable TOKEN when absent.",
)
@click.option(
    "--ca-file",
    type=Path,
    metavar="FILE",
    help="TLS: trust these authorities, in place of the system's.",
)
@click.option(
    "--cert-file",
    type=Path,
    metavar="FILE",
    help="TLS: a client certificate, for a service that asks for one.",
)
@click.option("--key-file", type=Path, metavar="FILE", help="TLS: the client certificate's key.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the reply, or the error, as REST shows it."
)
def cancel(
    workspace: str,
    task: str,
    reason: str,
    wait: str | None,
    force_after: str | None,
    address: str,
    token_file: TextIO | None,
    as_json: bool,
    **files: Path | None,
) -> None:
    """See server.commands.cancel."""
    from server.client import WorkspaceClient
    from server.commands.cancel import Cancel, Identity, find_endpoint, parse_seconds, run

    def seconds(option: str, given: str | None) -> float | None:
        try:
            return None if given is None else parse_seconds(given)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=option) from error

    command = Cancel(
        workspace_id=workspace,
        task_id=task,
        reason=reason,
        wait_seconds=seconds("--wait", wait),
        force_after_seconds=seconds("--force-after", force_after),
        as_json=as_json,
    )
    endpoint = find_endpoint(address, os.environ.get("TOKEN", ""), token_file, Identity(**files))
    with WorkspaceClient(
        endpoint.address, endpoint.token, credentials=endpoint.identity.credentials()
    ) as client:
        sys.exit(run(command, endpoint, client))


@main.group(
    help="The API keys of organizations, in the database of DATABASE_URL or of the stack that runs on this machine."
)
def keys() -> None:
    """The key commands' root."""


@keys.command(
    "create",
    help="Make a key. Its secret is printed to standard output, this once; all else to standard error.",
)
@click.option(
    "--org",
    required=True,
    metavar="ORG",
    help="The id of the organization that the key belongs to.",
)
@click.option(
    "--template",
    required=True,
    metavar="TEMPLATE",
    help="What it may do: full_access, submit_observe or read_only.",
)
@click.option("--name", default="", metavar="NAME", help="For people.")
@click.option(
    "--create-org",
    default="",
    metavar="SLUG",
    help="Add the organization with this slug if it is not there.",
)
def keys_create(org: str, template: str, name: str, create_org: str) -> None:
    """See server.commands.keys."""
    from server.commands.keys import create
    from server.core.api_key import KeyTemplate

    if template not in list(KeyTemplate):
        raise click.BadParameter(
            f"{template!r} is none of {', '.join(KeyTemplate)}.", param_hint="--template"
        )
    create(org, KeyTemplate(template), name, create_org)


@keys.command(
    "list",
    help="List an organization's keys, newest first, the revoked ones too; never their secrets.",
)
@click.option("--org", required=True, metavar="ORG", help="The id of the organization.")
def keys_list(org: str) -> None:
    """See server.commands.keys."""
    from server.commands.keys import list_

    list_(org)


@keys.command("revoke", help="End a key: within 10 s no replica takes it any more.")
@click.argument("key_id")
def keys_revoke(key_id: str) -> None:
    """See server.commands.keys."""
    from server.commands.keys import revoke

    revoke(key_id)


if __name__ == "__main__":
    main()
