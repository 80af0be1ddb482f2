"""The error that use cases raise, and the messages of the common failures.

protos/evershell/workspace/v1/error.proto declares the slugs, each with its gRPC code and HTTP
status. The type `Slug` is generated from it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from evershell.workspace.v1.error_slugs import Slug


class Failure(Exception):
    """A call failed.

    `message` tells people the resource, its state and what to do next. `details` is for programs.
    Some of its keys also become standard details of gRPC errors: `fields` (field to problem),
    `resource_type` with `resource_name`, `workspace_id` (the subject of a precondition), and
    `retry_after_seconds`. `unix_seconds` tells an agent the time of the control plane.
    """

    def __init__(self, slug: Slug, message: str, **details: Any) -> None:
        super().__init__(message)
        self.slug: Slug = slug
        self.message = message
        self.details: Mapping[str, Any] = details


class AgentUnreachableError(Exception):
    """The agent did not answer in time. It may have received the message."""


class UnavailableError(Exception):
    """The database did not answer. A write may or may not have been committed."""


class OperatorError(Exception):
    """A program cannot do its work. The message tells the operator the reason and the remedy."""


def invalid(fields: Mapping[str, str]) -> Failure:
    """The request is not valid. `fields` maps the name of a field to its problem."""
    named = "; ".join(f"{field}: {problem}" for field, problem in fields.items())
    return Failure("validation_error", f"The request is not valid. {named}.", fields=dict(fields))


def unauthenticated(problem: str) -> Failure:
    """The call has no valid credential."""
    return Failure(
        "unauthenticated", f"{problem} Send `authorization: Bearer <API key or session token>`."
    )


def permission_denied(message: str, required: Sequence[str]) -> Failure:
    """The credential is valid, but does not permit the call.

    Any one of the scopes in `required` would permit it. `required` is empty if no scope would.
    """
    return Failure("permission_denied", message, required=list(required))


def created_by_other(thing: str, kind: str, scopes: Sequence[str]) -> Failure:
    """Somebody else created `thing`, and the caller has the scopes only in their `:own` forms."""
    message = (
        f"{thing} was created by someone else, and your credential is limited to your own {kind}. "
        f"This call needs the scope {' or '.join(scopes)}."
    )
    return permission_denied(message, scopes)


def workspace_not_found(workspace_id: str) -> Failure:
    """The caller's organization has no such workspace.

    The answer is the same for a workspace of another organization.
    """
    message = f"There is no workspace {workspace_id} in your organization. " + (
        "Check the id, and whose credential you use."
        if workspace_id.startswith("ws_")
        else "The id of a workspace begins with ws_; ListWorkspaces has the id for each name."
    )
    return Failure(
        "workspace_not_found", message, resource_type="workspace", resource_name=workspace_id
    )


def task_not_found(workspace_id: str, task_id: str) -> Failure:
    """The workspace has no such task."""
    message = f"Workspace {workspace_id} has no task {task_id}. Check the ids of both."
    return Failure(
        "task_not_found",
        message,
        resource_type="task",
        resource_name=task_id,
        workspace_id=workspace_id,
    )


def parent_not_found(task_id: str) -> Failure:
    """The caller's organization has no task with the id of the parent."""
    message = f"There is no task {task_id} in your organization. Check the id of the parent."
    return Failure("task_not_found", message, resource_type="task", resource_name=task_id)


def webhook_not_found(webhook_id: str) -> Failure:
    """The caller's organization has no such webhook."""
    message = (
        f"There is no webhook {webhook_id} in your organization. "
        "Check the id, and whose credential you use."
    )
    return Failure("webhook_not_found", message, resource_type="webhook", resource_name=webhook_id)


def too_many_webhooks(org_id: str, limit: int, owner: str) -> Failure:
    """`owner`, an organization or a task, already has the maximum number of webhooks."""
    message = f"{owner} has {limit} webhooks, which is the limit. Delete one that is not needed."
    return Failure("too_many_webhooks", message, org_id=org_id, limit=limit)


def rate_limited(message: str, retry_after_seconds: int | None, **facts: Any) -> Failure:
    """The caller has made too many calls. This call had no effect.

    Pass None for `retry_after_seconds` if the call cancels the current task without naming it,
    because a repeat could cancel the next task.
    """
    message = f"{message} This call has changed nothing"
    if retry_after_seconds is None:
        message += ". Repeat it only with a task id: without one, it could cancel the next task."
        return Failure("rate_limited", message, **facts)
    message += f"; make it again after {retry_after_seconds} s."
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


def idempotency_conflict(key: str, called_at: datetime) -> Failure:
    """The caller has used the idempotency key with another request."""
    message = (
        f"The idempotency key {key} was used with another request at "
        f"{called_at.isoformat(timespec='seconds')}. Use a new key for a new request."
    )
    return Failure("idempotency_conflict", message, idempotency_key=key)


def unavailable(advice: str = "") -> Failure:
    """The service's database cannot be reached.

    Pass `advice` to replace the advice to repeat the call, if a repeat could have a different
    effect.
    """
    problem = "The service cannot reach its database."
    if advice:
        return Failure("unavailable", f"{problem} {advice}")
    return Failure("unavailable", f"{problem} Try again shortly.", retry_after_seconds=1)


def refused(problem: str, *, names_no_task: bool) -> Failure:
    """The service cannot serve the call now. The call had no effect.

    Set `names_no_task` if the call may cancel the current task without naming it: the body, which
    could name the task, may not have been read. The answer then suggests no time for a repeat,
    because a repeat could cancel the next task.
    """
    message = f"{problem} This call had no effect"
    if names_no_task:
        message += ". Repeat it only with a task id: without one, it could cancel the next task."
        return Failure("unavailable", message)
    seconds = 1
    message += f"; repeat it after {seconds} s."
    return Failure("unavailable", message, retry_after_seconds=seconds)


def internal(advice: str = "") -> Failure:
    """An unexpected error. `advice` is appended to the message."""
    problem = "Internal error. Report this request id."
    return Failure("internal", f"{problem} {advice}".strip())
