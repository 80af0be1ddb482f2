"""The command `cancel`: cancels the task that runs in a workspace, and says what happened.

Exit codes, for scripts:

  0  The cancellation stands; with --wait, the task has ended cancelled.
  1  The service has a defect, or this command cannot be set up (no address, no token).
  2  The command line is not valid.
  3  There is nothing to cancel: no task runs, or the task named had ended.
  4  The cancellation is recorded and will be delivered; the agent could not be reached.
  5  Refused: the request, the credential, or the state of the workspace.
  6  The service is not available, did not answer in time, or has had too many calls.
  7  The cancellation stands, and the task had not ended when the wait was over.
"""

import json
import re
import shlex
from dataclasses import dataclass, field, replace
from enum import IntEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any, TextIO

import click
import grpc
from evershell.workspace.v1 import task_pb2, workspace_service_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from server.client import WorkspaceClient, WorkspaceServiceError
from server.commands.environment import read_ready, read_settings
from server.terminal import say

_UNITS_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|)")
_ENDED = {
    task_pb2.Task.completed,
    task_pb2.Task.failed,
    task_pb2.Task.cancelled,
    task_pb2.Task.delivery_failed,
}
_Reply = workspace_service_pb2.CancelTaskResponse
_STANDS = {_Reply.accepted, _Reply.already_requested}


class ExitCode(IntEnum):
    """See the module's docstring."""

    CANCELLED = 0
    DEFECT = 1
    NOTHING_TO_CANCEL = 3
    AGENT_UNREACHABLE = 4
    REFUSED = 5
    UNAVAILABLE = 6
    NOT_ENDED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """The command line. `wait_seconds` None: answer at once; `force_after_seconds` None: break
    nothing off.
    """

    workspace_id: str
    task_id: str
    reason: str
    wait_seconds: float | None
    force_after_seconds: float | None
    as_json: bool


@dataclass(frozen=True, slots=True)
class Identity:
    """PEM files for TLS: whom to trust beside the system's authorities, and as whom to show oneself
    to a service that asks.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For a channel; None when there is nothing to say. Raises click.ClickException."""
        if not any((self.ca_file, self.cert_file, self.key_file)):
            return None
        if (self.cert_file is None) != (self.key_file is None):
            raise click.ClickException(
                "A client certificate and its key go together: --cert-file and --key-file."
            )
        return grpc.ssl_channel_credentials(
            _read(self.ca_file), _read(self.key_file), _read(self.cert_file)
        )

    def of_grpcurl(self) -> str:
        """The same, as options of grpcurl."""
        options = {"-cacert": self.ca_file, "-cert": self.cert_file, "-key": self.key_file}
        return "".join(
            f"{option} {shlex.quote(str(path))} " for option, path in options.items() if path
        )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Whom to call, and as whom."""

    address: str
    token: str
    identity: Identity = field(default_factory=Identity)


def parse_seconds(text: str) -> float:
    """`500ms`, `10s`, `1m`, or a number of seconds. Raises ValueError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a duration; write 500ms, 10s or 1m.")
    return float(found[1]) * _UNITS_SECONDS[found[2]]


def find_endpoint(
    address: str, token: str, token_file: TextIO | None, identity: Identity | None = None
) -> Endpoint:
    """From what is given, else from the stack that runs on this machine. Raises
    click.ClickException.
    """
    identity = identity or Identity()
    if token_file is not None:
        token = token_file.read().strip()
    ready = _local_stack(needed=not address or not token)
    local = str(ready.get("grpc_addr", ""))
    address = address or local
    if address and address == local:
        # The demo's credential is for its own stack, and is shown to no one else.
        if not token and token_file is None:
            token = ready["demo"]["tokens"]["full_access"]
        if "tls_cert_file" in ready:
            address = f"https://{address}"
            identity = replace(identity, ca_file=identity.ca_file or Path(ready["tls_cert_file"]))
    if not address:
        raise click.ClickException(
            f"There is no service to call: no stack runs in {read_settings().state_dir}. Start one with `make run`, or say where "
            "the service is with --address or GRPC_ADDR."
        )
    if not token:
        raise click.ClickException(
            "There is no credential. Export TOKEN, or name a file that holds it with --token-file."
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise click.ClickException(
            "The credential is not valid: it holds characters that no token has."
        )
    return Endpoint(address, token, identity)


def _local_stack(*, needed: bool) -> dict[str, Any]:
    """What the stack on this machine says of itself; who has named all does without, whatever is
    wrong with it.
    """
    try:
        return read_ready(read_settings().state_dir)
    except click.ClickException:
        if needed:
            raise
        return {}


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}.") from error


def run(command: Cancel, endpoint: Endpoint, client: WorkspaceClient) -> ExitCode:
    """Makes the call, prints what came of it, and returns the exit code."""
    try:
        reply = client.cancel_task(
            command.workspace_id,
            command.task_id,
            command.reason,
            command.wait_seconds,
            command.force_after_seconds,
        )
    except WorkspaceServiceError as error:
        _print_error(command, endpoint, error)
        return _code_of_error(error)
    if command.as_json:
        _print_json(
            MessageToDict(
                reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
        )
    else:
        _print_reply(command, endpoint, reply)
    return _code_of_reply(command, reply)


def _code_of_reply(command: Cancel, reply: _Reply) -> ExitCode:
    if reply.outcome not in _STANDS:
        return ExitCode.NOTHING_TO_CANCEL
    if command.wait_seconds is not None and reply.task.status not in _ENDED:
        return ExitCode.NOT_ENDED
    return ExitCode.CANCELLED


def _code_of_error(error: WorkspaceServiceError) -> ExitCode:
    if error.slug == "agent_unreachable":
        return ExitCode.AGENT_UNREACHABLE
    if error.http_status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return ExitCode.DEFECT
    if (
        error.http_status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
        or error.http_status > 500
    ):
        return ExitCode.UNAVAILABLE
    return ExitCode.REFUSED


def _print_reply(command: Cancel, endpoint: Endpoint, reply: _Reply) -> None:
    outcome = _Reply.Outcome.Name(reply.outcome)
    if reply.outcome == _Reply.no_active_task:
        say(
            f"{outcome}: nothing runs in workspace {reply.workspace_id}, so there is nothing to cancel."
        )
        return
    status = task_pb2.Task.Status.Name(reply.task.status)
    if reply.outcome == _Reply.already_finished:
        say(
            f"{outcome}: task {reply.task_id} had ended {status} at {_time(reply.task.completed_at)}."
        )
        if reply.task.reason:
            say(f"  because    {reply.task.reason}")
        return
    recorded = "is recorded" if reply.outcome == _Reply.accepted else "had been recorded before"
    say(
        f"{outcome}: the cancellation of task {reply.task_id} in workspace {reply.workspace_id} {recorded}."
    )
    say(f"  requested  {_time(reply.requested_at)} by {reply.requested_by}")
    if reply.reason:
        say(f"  reason     {reply.reason}")
    say(f"  task       {status}, {_standing(reply.task)}")
    if reply.task.status in _ENDED:
        say("  next       The workspace takes its next task.")
        return
    if command.wait_seconds is not None:
        say(f"  waited     {command.wait_seconds:g} s; the task has not ended yet.")
    say(
        "  next       The agent finishes its current iteration and starts no other; the task then ends cancelled."
    )
    if reply.task.HasField("cancel_force_at"):
        say(
            f"  force      An iteration that still runs at {_time(reply.task.cancel_force_at)} is broken off."
        )
    say(f"  follow     {_how_to_follow(endpoint, reply.workspace_id, reply.task_id)}")


def _print_error(command: Cancel, endpoint: Endpoint, error: WorkspaceServiceError) -> None:
    if command.as_json:
        envelope: dict[str, Any] = {
            "code": error.slug,
            "message": error.message,
            "request_id": error.request_id,
        }
        if error.details:
            envelope["details"] = dict(error.details)
        _print_json({"error": envelope})
        return
    say(f"{error.slug}: {error.message}", error=True)
    if error.request_id:
        say(f"  request    {error.request_id}", error=True)
    task_id = str(error.details.get("task_id", ""))
    if error.slug == "agent_unreachable" and task_id:
        say(f"  follow     {_how_to_follow(endpoint, command.workspace_id, task_id)}", error=True)
    elif error.slug == "rate_limited":
        seconds = error.details.get("retry_after_seconds", 1)
        say(f"  recorded?  No. Call again after {seconds:g} s.", error=True)
    elif error.slug in ("unavailable", "deadline_exceeded"):
        say(f"  called     {endpoint.address}", error=True)
        again = "Not known. With --task it is safe to repeat the call; without, look first which task runs."
        say(f"  recorded?  {again}", error=True)


def _standing(task: task_pb2.Task) -> str:
    iterations = (
        f"{task.iterations} {'iteration' if task.iterations == 1 else 'iterations'} completed"
    )
    if task.phase == task_pb2.Task.phase_unspecified:
        return iterations
    return f"{iterations}, now in a {task_pb2.Task.Phase.Name(task.phase).replace('_', ' ')}"


def _how_to_follow(endpoint: Endpoint, workspace_id: str, task_id: str) -> str:
    """A call to paste; it takes the token from the environment, so that none is printed."""
    host = endpoint.address.removeprefix("https://").removeprefix("http://")
    tls = (
        endpoint.identity.of_grpcurl() if endpoint.address.startswith("https://") else "-plaintext "
    )
    request = shlex.quote(json.dumps({"workspace_id": workspace_id, "task_id": task_id}))
    header = '-H "authorization: Bearer $TOKEN"'
    return (
        f"grpcurl {tls}{header} -d {request} {host} evershell.workspace.v1.WorkspaceService/GetTask"
    )


def _time(moment: Timestamp) -> str:
    return moment.ToJsonString()


def _print_json(value: Any) -> None:
    # JSON in ASCII: all other characters are escaped, so nothing can steer the terminal.
    click.echo(json.dumps(value, indent=2))
