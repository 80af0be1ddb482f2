"""The errors of the client. All of them are subclasses of EvershellError.

A failed call raises the subclass of CallError for the error code. The codes are the closed set in
error.proto, without the codes that only callers of REST can get.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from evershell.workspace.v1 import error_pb2

from evershell.client.types import CancelResult, Task

RULES: dict[str, error_pb2.ErrorRule] = {
    value.name: value.GetOptions().Extensions[error_pb2.rule]
    for value in error_pb2.Error.ErrorCode.DESCRIPTOR.values
    if value.number
}


class EvershellError(Exception):
    """The base of all errors that the client raises."""


class ConfigurationError(EvershellError, ValueError):
    """An option is missing or not valid, for example the address or the credential."""


class ClientClosedError(EvershellError):
    """The client is closed, or was closed during the call."""


class TaskNotEndedError(EvershellError):
    """The task did not end within the time that the caller wanted to wait.

    Attributes:
        task: The task as it was last seen; None if the service could not show it.
        result: The answer to the cancellation, if the caller waited for a cancelled task; otherwise
            None. The cancellation is recorded, so the task will end `cancelled`.
    """

    def __init__(self, message: str, task: Task | None, result: CancelResult | None = None) -> None:
        super().__init__(message, task, result)
        self.message = message
        self.task = task
        self.result = result

    def __str__(self) -> str:
        return self.message


class CallError(EvershellError):
    """A call has failed.

    Attributes:
        code: The member of the closed set of codes, for example `workspace_not_found`.
        message: Human-readable. Names the resource, its state and what to do next.
        request_id: Identifies the call in the log of the service; empty if the call did not reach
            the service.
        details: The facts of the failure, by name. The properties below give the common ones.
        is_from_service: False if the service did not describe the failure, for example because
            the connection broke. The code then follows from the gRPC code, and the call may or may
            not have taken effect.
    """

    code: ClassVar[str]

    def __init__(
        self,
        message: str,
        request_id: str = "",
        details: Mapping[str, Any] | None = None,
        is_from_service: bool = True,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.details: Mapping[str, Any] = dict(details or {})
        self.is_from_service = is_from_service

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Lets pickle copy the error to another process.
        return type(self), (self.message, self.request_id, self.details, self.is_from_service)

    @property
    def http_status(self) -> int:
        """The HTTP status that a REST caller gets for this failure."""
        return RULES[self.code].http

    @property
    def retry_after(self) -> float | None:
        """The pause in seconds before the call can be repeated; None if the error names none."""
        seconds = self.details.get("retry_after_seconds")
        return None if seconds is None else float(seconds)

    @property
    def workspace_id(self) -> str | None:
        """The workspace that the failure is about, if the service named one."""
        return self.details.get("workspace_id")

    @property
    def task_id(self) -> str | None:
        """The task that the failure is about, if the service named one."""
        return self.details.get("task_id")

    @property
    def fields(self) -> Mapping[str, str]:
        """The invalid fields of the request, each with its problem."""
        invalid: Mapping[str, str] = self.details.get("fields", {})
        return invalid

    @property
    def required(self) -> tuple[str, ...]:
        """The scopes that permit the call. Any one of them is enough."""
        return tuple(self.details.get("required", ()))

    @property
    def intent_recorded(self) -> bool:
        """Whether the cancellation is recorded despite the failure, and will be delivered."""
        return bool(self.details.get("intent_recorded", False))

    def to_dict(self) -> dict[str, Any]:
        """The error as the envelope of the REST API, for `json.dumps`."""
        content: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "request_id": self.request_id,
        }
        if self.details:
            content["details"] = dict(self.details)
        return {"error": content}


# begin: written by `make gen` from protos/evershell/workspace/v1/error.proto


class ValidationError(CallError):
    """A field of the request is not valid; `fields` names it.

    The client itself raises it, without a call, if a task id is empty or a request cannot hold a
    value.
    """

    code = "validation_error"


class UnauthenticatedError(CallError):
    """The call has no valid credential.

    Send a valid credential. A session token that has expired must be renewed.
    """

    code = "unauthenticated"


class PermissionDeniedError(CallError):
    """The credential is valid, but does not permit this call.

    Use a credential with one of the scopes in `required`.
    """

    code = "permission_denied"


class WorkspaceNotFoundError(CallError):
    """The caller's organization has no such workspace.

    Check the id, and whose credential you use.
    """

    code = "workspace_not_found"


class TaskNotFoundError(CallError):
    """The workspace has no such task, or the organization has no such parent task.

    Check the ids of the task and of its workspace.
    """

    code = "task_not_found"


class WorkspaceStoppedError(CallError):
    """The workspace is stopped or stopping.

    There is nothing to cancel: the task of the workspace has ended, or ends `cancelled`. To run
    tasks again, call `resume_workspace` once the workspace is `stopped`.
    """

    code = "workspace_stopped"


class WorkspaceFailedError(CallError):
    """The workspace's agent died or could not start.

    There is nothing to cancel or stop: the task of the workspace has ended. To run tasks again,
    read `status_reason` of the workspace, then call `resume_workspace`.
    """

    code = "workspace_failed"


class WorkspaceDeletingError(CallError):
    """The workspace is being deleted.

    There is nothing to cancel: the task of the workspace has ended, or ends `cancelled`. Use
    another workspace.
    """

    code = "workspace_deleting"


class WorkspaceProvisioningError(CallError):
    """The workspace's agent has not registered yet.

    Submit when the workspace is `idle`. Until then it has no task to cancel.
    """

    code = "workspace_provisioning"


class WorkspaceBusyError(CallError):
    """The workspace already has a task.

    Wait for the end of the task `task_id`, or cancel it.
    """

    code = "workspace_busy"


class InvalidStateError(CallError):
    """The state of the resource does not allow this call.

    Wait until the workspace has left the state in `details.status`.
    """

    code = "invalid_state"


class RateLimitedError(CallError):
    """The credential has exceeded its rate limit, or its share of the calls in progress.

    Wait as long as `retry_after` says. The call had no effect.
    """

    code = "rate_limited"


class AgentUnreachableError(CallError):
    """The workspace's agent did not answer in time; a recorded cancellation is delivered later.

    A cancellation is recorded and will be delivered: follow the task `task_id`. A call that names
    this task can be repeated, and signals the agent again; one without a task id could cancel the
    next task. A submitted task has ended `delivery_failed`: submit it again later. A read can be
    repeated.
    """

    code = "agent_unreachable"


class UnavailableError(CallError):
    """The service cannot be reached, or cannot answer now.

    Without `retry_after`, a repeat could have a second effect: first check whether the call had its
    effect.
    """

    code = "unavailable"


class DeadlineExceededError(CallError, TimeoutError):
    """The caller's deadline has passed.

    Check whether the call had an effect, or repeat it as after `unavailable`.
    """

    code = "deadline_exceeded"


class InternalError(CallError):
    """The service failed unexpectedly; its log has the cause under the request id.

    Report it with the request id. The call may have had an effect.
    """

    code = "internal"


class NotFoundError(CallError):
    """The address is not the address of an evershell service."""

    code = "not_found"


class MethodNotAllowedError(CallError):
    """The service does not have this method. It may be older than the client."""

    code = "method_not_allowed"


class IdempotencyConflictError(CallError):
    """The caller has already used the idempotency key for another request within the last 24 hours.

    Use a new key for a new request.
    """

    code = "idempotency_conflict"


class OrgOnHoldError(CallError):
    """The organization is on hold, so it gets no new task and no new agent.

    Ask whoever put it on hold, or wait for `release`. You can still cancel, stop and read.
    """

    code = "org_on_hold"


class WebhookNotFoundError(CallError):
    """The caller's organization has no such webhook.

    Check the id, and whose credential you use. `webhooks.list` has the ids.
    """

    code = "webhook_not_found"


class TooManyWebhooksError(CallError):
    """The organization or the task already has the maximum number of webhooks.

    Delete a webhook that is not needed, or use one for several purposes.
    """

    code = "too_many_webhooks"


class ParentNotRunningError(CallError):
    """The parent of a submitted task has ended, or is being cancelled.

    Nothing was submitted. Do not repeat the call with this parent.
    """

    code = "parent_not_running"


class TreeLimitReachedError(CallError):
    """The tree already has the maximum number of levels, or of tasks that have not ended.

    Nothing was submitted. Wait until tasks of the tree have ended, or choose a parent on a higher
    level.
    """

    code = "tree_limit_reached"


# end: written by `make gen`


BY_CODE: dict[str, type[CallError]] = {each.code: each for each in CallError.__subclasses__()}
