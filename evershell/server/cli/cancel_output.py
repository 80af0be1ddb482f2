"""The output of the command `cancel`."""

import json
import shlex
from typing import Any

from evershell.workspace.v1 import task_pb2, workspace_service_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from evershell.cli.terminal import say, say_lines
from evershell.server.cli.endpoint import Endpoint
from evershell.server.client import WorkspaceServiceError

Reply = workspace_service_pb2.CancelTaskResponse
ENDED = {
    task_pb2.Task.completed,
    task_pb2.Task.failed,
    task_pb2.Task.cancelled,
    task_pb2.Task.delivery_failed,
}


def print_reply(wait_seconds: float | None, endpoint: Endpoint, reply: Reply) -> None:
    """Prints the outcome, the state of the task, and what to do next."""
    outcome = Reply.Outcome.Name(reply.outcome)
    if reply.outcome == Reply.no_active_task:
        say(
            f"{outcome}: nothing runs in workspace {reply.workspace_id}, "
            "so there is nothing to cancel."
        )
        return
    status = task_pb2.Task.Status.Name(reply.task.status)
    if reply.outcome == Reply.already_finished:
        ended_at = _time(reply.task.completed_at)
        say(f"{outcome}: task {reply.task_id} had ended {status} at {ended_at}.")
        if reply.task.reason:
            say(f"  because    {reply.task.reason}")
        return
    recorded = "is recorded" if reply.outcome == Reply.accepted else "had been recorded before"
    say(
        f"{outcome}: the cancellation of task {reply.task_id} "
        f"in workspace {reply.workspace_id} {recorded}."
    )
    say(f"  requested  {_time(reply.requested_at)} by {reply.requested_by}")
    if reply.reason:
        say(f"  reason     {reply.reason}")
    say(f"  task       {status}, {_progress(reply.task)}")
    if reply.task.status in ENDED:
        say("  next       The workspace takes its next task.")
        return
    if wait_seconds is not None:
        say(f"  waited     {wait_seconds:g} s; the task has not ended yet.")
    say(
        "  next       The agent finishes its current iteration and starts no other; "
        "the task then ends cancelled."
    )
    if reply.task.HasField("cancel_force_at"):
        force_at = _time(reply.task.cancel_force_at)
        say(f"  force      An iteration that still runs at {force_at} is interrupted.")
    say(f"  follow     {_how_to_follow(endpoint, reply.workspace_id, reply.task_id)}")


def print_error(workspace_id: str, endpoint: Endpoint, error: WorkspaceServiceError) -> None:
    """Prints the error to standard error, and what to do next."""
    say(f"{error.slug}: {error.message}", error=True)
    if error.request_id:
        say(f"  request    {error.request_id}", error=True)
    task_id = str(error.details.get("task_id", ""))
    if error.slug == "agent_unreachable" and task_id:
        say(f"  follow     {_how_to_follow(endpoint, workspace_id, task_id)}", error=True)
    elif error.slug == "rate_limited":
        seconds = error.details.get("retry_after_seconds", 1)
        say(f"  recorded?  No. Call again after {seconds:g} s.", error=True)
    elif error.slug in ("unavailable", "deadline_exceeded"):
        say(f"  called     {endpoint.address}", error=True)
        say(
            "  recorded?  Not known. With --task it is safe to repeat the call. "
            "Without it, check first which task runs.",
            error=True,
        )


def envelope(error: WorkspaceServiceError) -> dict[str, Any]:
    """The error as the envelope of REST."""
    content: dict[str, Any] = {
        "code": error.slug,
        "message": error.message,
        "request_id": error.request_id,
    }
    if error.details:
        content["details"] = dict(error.details)
    return {"error": content}


def _progress(task: task_pb2.Task) -> str:
    iterations = (
        f"{task.iterations} {'iteration' if task.iterations == 1 else 'iterations'} completed"
    )
    if task.phase == task_pb2.Task.phase_unspecified:
        return iterations
    return f"{iterations}, now in a {task_pb2.Task.Phase.Name(task.phase).replace('_', ' ')}"


def _how_to_follow(endpoint: Endpoint, workspace_id: str, task_id: str) -> str:
    """A grpcurl command that reads the token from the environment, so that it is not printed."""
    host = endpoint.address.removeprefix("https://").removeprefix("http://")
    tls = (
        endpoint.identity.grpcurl_options()
        if endpoint.address.startswith("https://")
        else "-plaintext "
    )
    request = shlex.quote(json.dumps({"workspace_id": workspace_id, "task_id": task_id}))
    header = '-H "authorization: Bearer $TOKEN"'
    return (
        f"grpcurl {tls}{header} -d {request} {host} evershell.workspace.v1.WorkspaceService/GetTask"
    )


def _time(moment: Timestamp) -> str:
    return moment.ToJsonString()


def print_json(value: Any) -> None:
    """Prints JSON in ASCII, so that no character can control the terminal."""
    say_lines(json.dumps(value, indent=2))
