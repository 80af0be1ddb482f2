"""Calls and their answers, in one form for REST and gRPC."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

# These stand in for a slug.
# There was no connection, or it broke.
NO_CONNECTION = "(no connection)"
# The caller's own time limit passed.
NO_ANSWER = "(no answer)"
# The caller hung up before the answer, as planned.
HUNG_UP = "(hung up)"
# A gRPC status without details, from Envoy or from the client library.
BARE = "(bare status)"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, or what a caller got instead of one."""

    # HTTP status, or the name of the gRPC code.
    status: str
    # Empty for a success.
    slug: str
    # The message of a success, or the details of a failure.
    body: Mapping[str, Any]
    # What is malformed. Empty for a well-formed answer.
    problem: str = ""
    # The id of the call in the logs. Empty if the answer has none.
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A call with its reply."""

    # Identifies the call. A cancellation sends it as its reason.
    call: str
    rpc: str
    wire: str
    # Empty for a call about the whole organization.
    workspace_id: str
    # The task that the call names. Empty for the current task.
    task_id: str = ""
    waits: bool = False
    forces: bool = False
    # HoldOrg: whether it cancels what runs.
    cancels: bool = False
    # Seconds since 1970.
    sent: float
    answered: float
    status: str
    slug: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    request_id: str = ""

    def __str__(self) -> str:
        return f"{self.call} ({self.rpc} over {self.wire}, request {self.request_id or 'unknown'})"

    @property
    def is_cancel(self) -> bool:
        return self.rpc in ("CancelTask", "CancelTasks")

    @property
    def outcome(self) -> str:
        """The outcome of a successful cancellation, else empty."""
        return str(self.body.get("outcome", "")) if self.is_cancel and not self.slug else ""

    @property
    def may_cancel(self) -> bool:
        """Whether a cancellation may name the call as its reason."""
        return self.is_cancel or self.cancels

    @property
    def accepted_task_ids(self) -> tuple[str, ...]:
        """The tasks whose cancellation this call recorded, as far as the answer names them."""
        return tuple(id_ for id_, outcome in self._outcomes if outcome == "accepted")

    @property
    def promised_task_ids(self) -> tuple[str, ...]:
        """The tasks that must end `cancelled` after this answer."""
        recorded = (
            self.is_cancel
            and self.slug == "agent_unreachable"
            and str(self.body.get("intent_recorded")).lower() == "true"
        )
        if recorded:
            return (str(self.body["task_id"]),)
        promises = ("accepted", "already_requested")
        return tuple(id_ for id_, outcome in self._outcomes if outcome in promises)

    @property
    def is_complete_stop(self) -> bool:
        """Whether the call says that it left no task of the organization uncancelled."""
        is_stop = self.rpc == "CancelTasks" or (self.rpc == "HoldOrg" and self.cancels)
        return is_stop and not (self.workspace_id or self.slug) and not self.body["remaining"]

    @property
    def _outcomes(self) -> Iterator[tuple[str, str]]:
        if self.slug or not self.is_cancel:
            return
        results = [self.body] if self.workspace_id else self.body["results"]
        yield from (
            (str(each["task_id"]), str(each["outcome"])) for each in results if each.get("outcome")
        )

    @property
    def told_task(self) -> Mapping[str, Any]:
        """The task in the answer, or empty."""
        if self.slug:
            return {}
        if self.rpc == "GetTask":
            return self.body
        task: Mapping[str, Any] = (self.body.get("task") if self.is_cancel else None) or {}
        return task
