"""The one error that use cases raise, and how each of the ordinary failures is worded.

A code is a slug of the closed set in protos/evershell/workspace/v1/error.proto, which alone says
what it is over gRPC and HTTP.
"""

from collections.abc import Mapping
from typing import Any


class Failure(Exception):
    """A call cannot be done.

    `message` is for people: it names the thing, its state and what to do next. `details` are the
    facts for programs; these keys have a meaning of their own on the wire: `fields` (field → what
    is wrong), `resource_type` with `resource_name`, `workspace_id` (the subject of a precondition),
    `retry_after_seconds`.
    """

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details: Mapping[str, Any] = details


class AgentUnreachableError(Exception):
    """The agent did not answer within its time limits; whether it got the message is unknown."""


class UnavailableError(Exception):
    """The database did not answer; nothing was promised, and whether a write took place may be
    unknown.
    """


def invalid(fields: Mapping[str, str]) -> Failure:
    """Fields of the request are wrong: field name → what is wrong with it."""
    named = "; ".join(f"{field}: {problem}" for field, problem in fields.items())
    return Failure("validation_error", f"The request is not valid. {named}.", fields=dict(fields))


def unauthenticated(problem: str) -> Failure:
    """There is no valid credential."""
    return Failure(
        "unauthenticated", f"{problem} Send `authorization: Bearer <API key or session token>`."
    )


def permission_denied(message: str, required: list[str]) -> Failure:
    """The credential is valid and does not suffice; `required` lists the scopes of which one would."""
    return Failure("permission_denied", message, required=required)


def workspace_not_found(workspace_id: str) -> Failure:
    """No such workspace in the caller's organization; another organization's looks the same."""
    message = f"There is no workspace {workspace_id} in your organization. Check the id, and whose credential you use."
    return Failure(
        "workspace_not_found", message, resource_type="workspace", resource_name=workspace_id
    )


def task_not_found(workspace_id: str, task_id: str) -> Failure:
    """The workspace has no such task."""
    message = f"Workspace {workspace_id} has no task {task_id}. ListTasks shows the tasks it has."
    return Failure(
        "task_not_found",
        message,
        resource_type="task",
        resource_name=task_id,
        workspace_id=workspace_id,
    )


def rate_limited(message: str, retry_after_seconds: int, **facts: Any) -> Failure:
    """Too many calls; this one has had no effect."""
    message = (
        f"{message} This call has changed nothing; make it again after {retry_after_seconds} s."
    )
    return Failure("rate_limited", message, retry_after_seconds=retry_after_seconds, **facts)


def agent_unreachable(
    workspace_id: str, task_id: str, message: str, *, intent_recorded: bool
) -> Failure:
    """The agent did not answer in time."""
    return Failure(
        "agent_unreachable",
        message,
        workspace_id=workspace_id,
        task_id=task_id,
        intent_recorded=intent_recorded,
    )


def unavailable() -> Failure:
    """The service's database cannot be reached."""
    return Failure(
        "unavailable",
        "The service cannot reach its database. Try again shortly.",
        retry_after_seconds=1,
    )
