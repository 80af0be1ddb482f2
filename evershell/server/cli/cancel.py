"""The command `cancel`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from http import HTTPStatus
from pathlib import Path
from typing import TextIO

import click
from google.protobuf.json_format import MessageToDict

from evershell.cli.terminal import OutputError
from evershell.server import client
from evershell.server.cli.cancel_output import (
    ENDED,
    Reply,
    envelope,
    print_error,
    print_json,
    print_reply,
)
from evershell.server.cli.duration import DURATION
from evershell.server.cli.endpoint import Identity, find_endpoint
from evershell.server.client import WorkspaceServiceError

_RECORDED = {Reply.accepted, Reply.already_requested}

_HELP = """Cancel the task that runs in WORKSPACE. Its agent finishes the current iteration and
starts no other.

Without --address and TOKEN, calls the stack that runs on this machine, with its demo credential.

\b
Exit codes:
  0  the cancellation is recorded; with --wait, the task has ended cancelled
  1  the service has a defect, or there is no address or token to call with
  2  the command line is not valid
  3  nothing to cancel: no task runs, or the task had ended
  4  recorded and will be delivered, but the agent could not be reached
  5  refused: the request, the credential, or the state of the workspace
  6  the service is unavailable, too slow, or had too many calls
  7  the cancellation is recorded, but the task did not end within --wait
"""


class ExitCode(IntEnum):
    """The exit codes of `_HELP`. click itself exits with 2."""

    CANCELLED = 0
    DEFECT = 1
    NOTHING_TO_CANCEL = 3
    AGENT_UNREACHABLE = 4
    REFUSED = 5
    UNAVAILABLE = 6
    NOT_ENDED = 7


@click.command(help=_HELP)
@click.argument("workspace")
@click.option("--task", default="", metavar="ID", help="Cancel only this task.")
@click.option(
    "--reason",
    default="",
    metavar="TEXT",
    help="Recorded with the task and its events; at most 500 characters.",
)
@click.option(
    "--wait",
    type=DURATION,
    metavar="DURATION",
    help="Answer when the task has ended, or after this time: 500ms, 10s; at most 30s.",
)
@click.option(
    "--force-after",
    type=DURATION,
    metavar="DURATION",
    help="Interrupt the iteration if it still runs after this time: 0s, 30s; at most 24 h.",
)
@click.option(
    "--address",
    envvar="GRPC_ADDR",
    default="",
    metavar="HOST:PORT",
    help="The service; https://… for TLS. Default: GRPC_ADDR.",
)
@click.option(
    "--token-file",
    type=click.File(),
    help="The file with the token, - for standard input. Default: the variable TOKEN.",
)
@click.option(
    "--ca-file",
    type=Path,
    metavar="FILE",
    help="TLS: trust these authorities instead of the system's.",
)
@click.option(
    "--cert-file",
    type=Path,
    metavar="FILE",
    help="TLS: a client certificate, for a service that asks for one.",
)
@click.option("--key-file", type=Path, metavar="FILE", help="TLS: the client certificate's key.")
@click.option("--json", "as_json", is_flag=True, help="Print the reply or the error as REST does.")
def cancel(
    workspace: str,
    task: str,
    reason: str,
    wait: float | None,
    force_after: float | None,
    address: str,
    token_file: TextIO | None,
    as_json: bool,
    **files: Path | None,
) -> None:
    """Makes the call, prints its result, and exits with an ExitCode."""
    endpoint = find_endpoint(address, os.environ.get("TOKEN", ""), token_file, Identity(**files))
    try:
        with client.WorkspaceClient(
            endpoint.address, endpoint.token, credentials=endpoint.identity.credentials()
        ) as service:
            reply = service.cancel_task(workspace, task, reason, wait, force_after)
    except WorkspaceServiceError as error:
        with _reported():
            if as_json:
                print_json(envelope(error))
            else:
                print_error(workspace, endpoint, error)
        sys.exit(_code_of_error(error))
    with _reported():
        if as_json:
            message = MessageToDict(
                reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            print_json(message)
        else:
            print_reply(wait, endpoint, reply)
    sys.exit(_code_of_reply(reply, has_waited=wait is not None))


@contextmanager
def _reported() -> Iterator[None]:
    """Reports that the block could not print, and goes on: the exit code tells the outcome."""
    try:
        yield
    except OutputError as error:
        # Standard error may be full as well.
        with suppress(OSError):
            error.show()


def _code_of_reply(reply: Reply, *, has_waited: bool) -> ExitCode:
    if reply.outcome not in _RECORDED:
        return ExitCode.NOTHING_TO_CANCEL
    if has_waited and reply.task.status not in ENDED:
        return ExitCode.NOT_ENDED
    return ExitCode.CANCELLED


def _code_of_error(error: WorkspaceServiceError) -> ExitCode:
    if error.slug == "agent_unreachable":
        return ExitCode.AGENT_UNREACHABLE
    if error.http_status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return ExitCode.DEFECT
    is_unavailable = (
        error.http_status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
        or error.http_status > HTTPStatus.INTERNAL_SERVER_ERROR
    )
    return ExitCode.UNAVAILABLE if is_unavailable else ExitCode.REFUSED
