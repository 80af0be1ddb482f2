"""The errors of the client. All are EvershellError.

A call that failed raises the class of its code, which is a CallError. The codes are the closed set
of error.proto, without those that only callers of REST can get.
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
    """The client cannot be used like this: no address, no credential, or one that is not valid."""


class ClientClosedError(EvershellError):
    """The client is closed, or was closed during the call."""


class TaskNotEndedError(EvershellError):
    """The task did not end within the time that the caller wanted to wait.

    Attributes:
        task: The task as it was last seen; None if the service could not show it.
        result: The answer to the cancellation, if the caller waited for one. It is recorded, so the
            task will end `cancelled`.
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
        request_id: Identifies the call in the log of the service; empty if it did not get there.
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
        # For a copy in another process.
        return type(self), (self.message, self.request_id, self.details, self.is_from_service)

    @property
    def http_status(self) -> int:
        """The HTTP status that a REST caller gets for this failure."""
        return RULES[self.code].http

    @property
    def retry_after(self) -> float | None:
        """The seconds after which the service asks to repeat the call; None if it does not."""
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
        """The scopes of which one would have permitted the call."""
        return tuple(self.details.get("required", ()))

    @property
    def intent_recorded(self) -> bool:
        """Whether the cancellation is recorded nevertheless, so that it will be delivered."""
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


class ValidationError(CallError):
    """A field of the request is not valid; `fields` names it.

    The client itself raises it, and makes no call, for an empty id of a task and for a field that
    no request can hold.
    """

    code = "validation_error"


class UnauthenticatedError(CallError):
    """The call has no valid credential."""

    code = "unauthenticated"


class PermissionDeniedError(CallError):
    """The credential is valid, but does not permit this call; `required` has what would."""

    code = "permission_denied"


class WorkspaceNotFoundError(CallError):
    """The caller's organization has no such workspace."""

    code = "workspace_not_found"


class TaskNotFoundError(CallError):
    """The workspace has no such task."""

    code = "task_not_found"


class WebhookNotFoundError(CallError):
    """The caller's organization has no such webhook."""

    code = "webhook_not_found"


class WorkspaceStoppedError(CallError):
    """The workspace is stopped or stopping."""

    code = "workspace_stopped"


class WorkspaceFailedError(CallError):
    """The workspace's agent died or could not start; resume_workspace starts a new one."""

    code = "workspace_failed"


class WorkspaceDeletingError(CallError):
    """The workspace is being deleted."""

    code = "workspace_deleting"


class WorkspaceProvisioningError(CallError):
    """The workspace's agent has not registered yet."""

    code = "workspace_provisioning"


class WorkspaceBusyError(CallError):
    """The workspace already has a task, which is `task_id`."""

    code = "workspace_busy"


class InvalidStateError(CallError):
    """The state of the resource does not allow this call."""

    code = "invalid_state"


class IdempotencyConflictError(CallError):
    """The idempotency key belongs to another request of the caller."""

    code = "idempotency_conflict"


class ParentNotRunningError(CallError):
    """The parent of the task, which is `task_id`, has ended or is being cancelled."""

    code = "parent_not_running"


class TreeLimitReachedError(CallError):
    """The tree has as many levels or open tasks as it may have; `details` has the `limit`."""

    code = "tree_limit_reached"


class TooManyWebhooksError(CallError):
    """The organization has as many webhooks as it may have; `details` has the `limit`."""

    code = "too_many_webhooks"


class OrgOnHoldError(CallError):
    """The organization is on hold; `details` has `held_by`, `held_since` and `hold_reason`."""

    code = "org_on_hold"


class RateLimitedError(CallError):
    """The credential has exceeded its rate limit. The call had no effect."""

    code = "rate_limited"


class AgentUnreachableError(CallError):
    """The workspace's agent did not answer in time.

    A cancellation is recorded (`intent_recorded`) and will be delivered to the task `task_id`. Do
    not repeat it without that id: it could cancel the next task.
    """

    code = "agent_unreachable"


class UnavailableError(CallError):
    """The service cannot be reached, or cannot answer now."""

    code = "unavailable"


class DeadlineExceededError(CallError, TimeoutError):
    """The timeout of the call has passed. The call may have taken effect."""

    code = "deadline_exceeded"


class InternalError(CallError):
    """The service failed unexpectedly; its log has the cause under the request id."""

    code = "internal"


class NotFoundError(CallError):
    """The address is not that of the service."""

    code = "not_found"


class MethodNotAllowedError(CallError):
    """The service does not have this method. It may be older than the client."""

    code = "method_not_allowed"


BY_CODE: dict[str, type[CallError]] = {each.code: each for each in CallError.__subclasses__()}
